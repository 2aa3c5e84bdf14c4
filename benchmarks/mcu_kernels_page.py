"""docs/mcu_kernels.md: the rows of mcu_kernels.py as tables, and the issue's aims beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
# (core, row, than, layers, times fewer instructions)
THREE = ("L1", "L2", "L3", "L4", "L7", "L8")
DEEP = ("L3", "L4", "L7", "L8", "L9")
CMSIS, FAST, SHARED, VECTORS = "CMSIS-NN", "2:4, long index", "tap-shared 2:4", "dense, vectors"
AIMS = (
    ("cortex-m4", FAST, CMSIS, THREE, 3.0), ("cortex-m4", FAST, CMSIS, ("L9",), 2.4),
    ("cortex-m4", FAST, "dense", DEEP, 1.5), ("cortex-m4", FAST, "CSR 50%", DEEP, 1.2),
    ("cortex-m3", "2:4", CMSIS, (*THREE, "L9"), 2.0), ("cortex-m3", "2:4", "dense", DEEP, 1.45),
    ("cortex-m3", "2:4", "CSR 50%", DEEP, 1.0), ("cortex-m3", SHARED, CMSIS, THREE[2:], 3.0),
    ("cortex-m3", SHARED, "dense", THREE[2:], 2.0), ("cortex-m3", SHARED, "CSR 50%", THREE[2:], 1.5),
    ("cortex-m4", SHARED, CMSIS, THREE[2:], 3.0), ("cortex-m4", SHARED, "dense", THREE[2:], 2.0),
    ("cortex-m4", SHARED, "CSR 50%", THREE[2:], 1.5), ("cortex-m55", VECTORS, CMSIS, (*THREE, "L9"), 1.1),
    ("rv32", "2:4", "dense", DEEP, 1.5), ("leon3", "2:4", "dense", DEEP, 1.5),
)  # fmt: skip
TEXT = """\
# Instructions of the C99 kernels

Written by `python benchmarks/mcu_kernels.py --cmsis_nn=CMSIS-NN` from `benchmarks/results/mcu_kernels.jsonl`. Rows that
are there are not run again: take the file away to measure anew.

Instructions (QEMU) for each multiply-accumulate of the dense layer, zeros counted, so that rows compare. They are no
cycles: a core's pipeline and its flash are not in them. A load or a long multiplication may take several cycles (on
Cortex-M3 SMLAL takes 4 to 7, which is why it is used from Cortex-M4 on only). All that a call does is in them: turning
the input's rows, all taps, requantization, the store. Every output is equal to what TFLite's arithmetic gives.

Layers, all int8 with stride 1 and 'same' padding: {layers}. Weights are normal, their zeros random in the pattern.
The compilers are Debian's GCC 12 with -O2 (on rv32 and leon3 with -fno-schedule-insns, too, or sums leave the
registers). CMSIS-NN (commit {commit}, its own -Ofast) has no sparse kernels.

"long index" is 2:4 with a byte for each group's index in place of half of one. CSR has a byte of distance a weight.
Tap-shared 2:4 keeps the same channels of a group at all taps.
"""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def page(rows: list[Row], layers: dict[str, tuple[int, int, int, int]], forms: Sequence[str]) -> str:
    """The page.

    Args:
        rows: of the results.
        layers: name -> (height and width, input channels, output channels, kernel).
        forms: rows of a table, in order.
    """
    found = {(row["core"], row["layer"], row["form"]): row for row in rows}
    shapes = [f"{name} {s}x{s}x{i}->{o} {k}x{k}" for name, (s, i, o, k) in layers.items()]
    commits = {row["commit"][:7] for row in rows if "commit" in row}
    parts = [TEXT.format(layers=", ".join(shapes), commit=", ".join(sorted(commits)) or "none")]
    for core in dict.fromkeys(row["core"] for row in rows):
        lines = [
            [form, *(_per_mac(found.get((core, layer, form))) for layer in layers)]
            for form in forms if any((core, layer, form) in found for layer in layers)
        ]  # fmt: skip
        parts.append(f"## {core}\n\n{markdown([core, *layers], lines)}\n")
    sizes = [[form, *(_bytes(rows, layer, form) for layer in layers)] for form in forms]
    parts.append(f"## Bytes a weight\n\nOf flash, for each weight of the dense kernel.\n\n"
                 f"{markdown(['', *layers], sizes)}\n")  # fmt: skip
    scratch = [[form, *(_scratch(rows, layer, form) for layer in layers)] for form in forms if form != CMSIS]
    parts.append("## Scratch\n\nBytes of RAM beside input and output, as the exporter plans them: what the core with "
                 f"the largest needs.\n\n{markdown(['', *layers], scratch)}\n")  # fmt: skip
    head = ["core", "row", "times fewer than", "aim", "measured", "reached"]
    parts.append(f"## Aims\n\nThe fewest and the most over the layers.\n\n{markdown(head, _aims(found))}\n")
    return "\n".join(parts)


def _per_mac(row: Row | None) -> str:
    return f"{row['instructions'] / row['macs']:.2f}" if row else "-"


def _bytes(rows: list[Row], layer: str, form: str) -> str:
    row = next((r for r in rows if (r["layer"], r["form"]) == (layer, form)), None)
    return f"{row['weight_bytes'] / row['weights']:.3f}" if row else "-"


def _scratch(rows: list[Row], layer: str, form: str) -> str:
    row = next((r for r in rows if (r["layer"], r["form"]) == (layer, form)), None)
    return f"{row['scratch_bytes']:,}" if row else "-"


def _aims(found: dict[tuple[str, str, str], Row]) -> Iterable[list[str]]:
    for core, form, than, names, aim in AIMS:
        pairs = [(found.get((core, layer, than)), found.get((core, layer, form)), layer) for layer in names]
        ratios = {layer: a["instructions"] / b["instructions"] for a, b, layer in pairs if a and b}
        if not ratios:
            continue
        low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        measured = f"{ratios[low]:.2f} ({low}) to {ratios[high]:.2f} ({high})" if low != high else f"{ratios[low]:.2f}"
        reached = [layer for layer, ratio in ratios.items() if ratio >= aim]
        missed = [layer for layer in ratios if layer not in reached]
        yield [core, form, than, f"{aim:g} on {' '.join(names)}", measured,
               "yes" if not missed else f"not on {' '.join(missed)}"]  # fmt: skip
