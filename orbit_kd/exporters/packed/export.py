"""Int8 weights for FPGA block RAM: N:M kernels as values and bit-packed indices, the others dense.

What is written, byte by byte, is in docs/packed_format.md; the packing itself is in `packing.py`.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.packed.images import coe_text, mem_text, memory_words
from orbit_kd.exporters.packed.packing import PackedKernel, field_bits, pack
from orbit_kd.exporters.packed.reading import MAGIC
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.support import n_of_m
from orbit_kd.support.files import write_file
from orbit_kd.tflite.layers import Int8Layer, int8_layers

_ALIGN = 4


@target("packed", suffix="", made_of="tflite_int8", runtime="")
def export_packed(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    variant: str = "",
    index: str = "positions",
    images: bool = True,
    **options: Any,
) -> Artifact:
    """A folder with `weights.bin`, `manifest.json` and block-RAM images, `images/*.mem` and `images/*.coe`.

    A kernel is packed where it keeps the pattern and gets smaller; every other one is stored dense, and the manifest
    says why. Biases and scales are in the same file.

    Args:
        model: an int8 .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first.
        path: the folder.
        calibration: for the conversion of a Keras model.
        variant: the pattern, "N:M", or "uhp" for 4:8 and "uhp:M" for M/2:M; "" for 2:4.
        index: "positions" (places in the group) or "codes" (one number a group, fewer bits).
        images: write the .mem (Verilog $readmemh) and .coe (Xilinx block memory) images.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of `weights.bin`; details: pattern, index, layers, packed_layers, dense_bytes (of all kernels),
        kernel_bytes (as stored), ratio (of the two), packed_ratio (over the packed kernels; None without any).

    Raises:
        InputError: not an int8 .tflite file, an unknown pattern or index; or what "tflite_int8" raises.
    """
    n, m = _pattern(variant or "2:4")
    field_bits(n, m, index=index)
    data, details = tflite_of(model, calibration=calibration, **options)
    folder, blob = Path(path), bytearray(MAGIC)
    rows: list[dict[str, Any]] = []
    words: dict[str, list[str]] = {}
    for number, layer in enumerate(int8_layers(data)):
        packed, reason = _packed(layer.kernel, n, m, index)
        values = layer.kernel.tobytes() if packed is None else packed.value_bytes
        sections = {
            "values": values,
            "indices": b"" if packed is None else packed.index_bytes,
            "bias": layer.bias.astype("<i4").tobytes(),
            "scales": layer.scales.astype("<f4").tobytes(),
        }
        row = _row(layer, packed, reason) | {"bytes": len(values) + len(sections["indices"])}
        for section, content in sections.items():
            blob += bytes(-len(blob) % _ALIGN)
            row[section] = {"offset": len(blob), "bytes": len(content)}
            blob += content
        if images:
            row["images"] = {k: f"images/{number:02d}_{layer.op.lower()}_{k}" for k in ("values", "indices", "bias")
                             if sections[k]}  # fmt: skip
            words |= {row["images"][k]: w for k, w in memory_words(layer, packed).items() if k in row["images"]}
        rows.append(row)
    manifest = {"format": "orbit_kd packed", "version": 1, "file": "weights.bin", "bytes": len(blob),
                "crc32": zlib.crc32(blob), "byte_order": "little", "layers": rows}  # fmt: skip
    files = [
        write_file(folder / "weights.bin", bytes(blob)),
        write_file(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n"),
        *(write_file(folder / f"{name}.mem", mem_text(hexes)) for name, hexes in words.items()),
        *(write_file(folder / f"{name}.coe", coe_text(hexes)) for name, hexes in words.items()),
    ]
    details |= {"pattern": f"{n}:{m}", "index": index, **_totals(rows)}
    name = f"packed:{variant}" if variant else "packed"
    return Artifact.of(bytes(blob), target=name, files=tuple(files), details=details)


def _pattern(text: str) -> tuple[int, int]:
    if found := n_of_m.parse(text):
        return found
    raise InputError(f"Pattern {text!r}.", expected='"N:M", or "uhp:M" with an even M', fix='for example "packed:2:4"')


def _packed(kernel: np.ndarray, n: int, m: int, index: str) -> tuple[PackedKernel | None, str]:
    """The packed kernel, or None and why it stays dense."""
    if kernel.ndim == 4 and kernel.shape[0] == 1 and kernel.shape[3] > 1 and kernel.shape[1] * kernel.shape[2] > 1:
        return None, "depthwise: one input channel for each output"
    try:
        packed = pack(kernel, n=n, m=m, index=index)
    except InputError as error:
        return None, error.what.split(", the first")[0]
    size = len(packed.value_bytes) + len(packed.index_bytes)
    if size >= kernel.nbytes:
        return None, f"{size} bytes packed, {kernel.nbytes} dense: {kernel.shape[-1]} channels fill groups of {m} badly"
    return packed, ""


def _row(layer: Int8Layer, packed: PackedKernel | None, reason: str) -> dict[str, Any]:
    """What the manifest says about a layer, without offsets."""
    layout = (
        {"layout": "dense", "reason": reason}
        if packed is None
        else {"layout": "n:m", "n": packed.n, "m": packed.m, "index": packed.index, "group_bits": packed.group_bits,
              "groups": len(packed.values)}
    )  # fmt: skip
    return {
        "name": layer.name,
        "op": layer.op,
        "shape": list(layer.kernel.shape),
        "nonzero": int(np.count_nonzero(layer.kernel)),
        "dense_bytes": layer.kernel.nbytes,
        **layout,
        "kernel_scales": [float(s) for s in layer.scales],
        "kernel_zero_points": [0] * len(layer.scales),
        "input": layer.input,
        "output": layer.output,
    }


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def ratio(some: list[dict[str, Any]]) -> float | None:
        return sum(r["bytes"] for r in some) / sum(r["dense_bytes"] for r in some) if some else None

    packed = [row for row in rows if row["layout"] == "n:m"]
    kept = ("name", "op", "shape", "layout", "reason", "dense_bytes", "bytes", "nonzero")
    return {
        "dense_bytes": sum(row["dense_bytes"] for row in rows),
        "kernel_bytes": sum(row["bytes"] for row in rows),
        "ratio": ratio(rows),
        "packed_ratio": ratio(packed),
        "packed_layers": len(packed),
        "layers": [{key: row[key] for key in kept if key in row} for row in rows],
    }
