"""Reads what Vela says about a network it compiled: the summary table and the debug database.

Both are of Vela 5. The database (`--enable-debug-db`) follows every operator of the .tflite file (`source`, `ext_key`)
to what it was compiled to (`perf`, `perf_debug`). Cycles are Vela's own estimates, for the whole of a batch of 1.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from orbit_kd.errors import InputError

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class VelaOp:
    """One operator of the .tflite file, in the order of that file.

    Attributes:
        index: its place there.
        on_npu: it was compiled; otherwise the Cortex-M or -A beside the NPU has to run it.
        cycles: estimated, waiting for memory included; 0 where it is fused into another operator or runs elsewhere.
        npu_cycles: the part the NPU itself works.
        weight_bytes: encoded weights, without biases and scales.
        runs_2_4: its weights are stored and run in the 2:4 form (`SPARSE_2_4` in the register command stream).
    """

    index: int
    on_npu: bool
    cycles: int
    npu_cycles: int
    weight_bytes: int
    runs_2_4: bool


@dataclasses.dataclass(frozen=True)
class VelaReport:
    """What Vela estimates for a network.

    Attributes:
        cycles: of one inference, waiting for memory included.
        npu_cycles: the part the NPU itself works.
        inferences_per_second: at the clock of the system configuration, without what runs on the CPU.
        sram_bytes: feature maps, and whatever else the memory mode puts there.
        dram_bytes: used in DRAM.
        on_chip_flash_bytes: constants that the memory mode keeps on the chip.
        off_chip_flash_bytes: constants that it keeps off the chip.
        weight_bytes: encoded weights, without biases and scales.
        source_weight_bytes: the same weights in the .tflite file.
        ops: those of the file that were compiled by themselves or left to the CPU; the others were fused or folded.
    """

    cycles: int
    npu_cycles: int
    inferences_per_second: float
    sram_bytes: int
    dram_bytes: int
    on_chip_flash_bytes: int
    off_chip_flash_bytes: int
    weight_bytes: int
    source_weight_bytes: int
    ops: tuple[VelaOp, ...]


def read_report(folder: Path) -> VelaReport:
    """The report in the folder that Vela wrote one network to, with `--enable-debug-db`.

    Raises:
        InputError: the files are missing or of another shape: another Vela than this was written for.
    """
    try:
        text = next(folder.glob("*_summary_*.csv")).read_text(encoding="utf-8")
        summary = next(csv.DictReader(io.StringIO(text)))
        tables = _tables(next(folder.glob("*_debug.xml")))
        kib = {name: round(1024 * float(summary[f"{name}_memory_used"])) for name in _MEMORIES}
        return VelaReport(
            cycles=round(float(summary["cycles_total"])),
            npu_cycles=round(float(summary["cycles_npu"])),
            inferences_per_second=float(summary["inferences_per_second"]),
            **{f"{name}_bytes": size for name, size in kib.items()},
            weight_bytes=int(summary["total_npu_encoded_weights"]),
            source_weight_bytes=int(summary["total_original_weights"]),
            ops=tuple(_operators(tables)),
        )
    except (StopIteration, KeyError, ValueError, ElementTree.ParseError) as error:
        raise InputError(
            f"Vela's report cannot be read ({type(error).__name__}: {error}).",
            expected="the summary and the debug database of Vela 5",
            fix='pip install "ethos-u-vela>=5,<6"',
        ) from error


_MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")


def _tables(path: Path) -> dict[str, list[Row]]:
    root = ElementTree.parse(path).getroot()
    return {t.attrib["name"]: list(csv.DictReader(io.StringIO((t.text or "").strip()))) for t in root}


def _operators(tables: dict[str, list[Row]]) -> Iterable[VelaOp]:
    """One row an operator of the file; Vela has one for each piece that it cut it into."""
    debug = {row["id"]: row for row in tables["perf_debug"]}
    place = {row["id"]: int(row["ext_key"]) for row in tables["source"]}
    pieces: dict[int, list[Row]] = {}
    for row in tables["perf"]:
        if row["source_id"] in place:
            pieces.setdefault(place[row["source_id"]], []).append(row | debug[row["id"]])
    for index, rows in sorted(pieces.items()):
        weights = [row for row in rows if row["weight_format"]]
        # pieces that work on different parts of an image share their weights
        stored = {tuple(row[key] for key in _SAME_WEIGHTS) for row in weights}
        yield VelaOp(
            index=index,
            on_npu=all(row["operator"] != "Passthrough" for row in rows),
            cycles=sum(int(row["op_cycles"]) for row in rows),
            npu_cycles=sum(int(row["npu_cycles"]) for row in rows),
            weight_bytes=sum(int(key[0]) for key in stored),
            runs_2_4=bool(weights) and all("Sparse2_4" in row["weight_format"] for row in weights),
        )


_SAME_WEIGHTS = ("weight_total_bytes", "weight_distinct", "weight_zero", "ofm_offset_c")
