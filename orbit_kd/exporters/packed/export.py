"""Int8 weights for FPGA block RAM: N:M kernels as values and bit-packed indices, the others dense.

What is written, byte by byte, is in docs/packed_format.md; the packing itself is in `packing.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.packed.packing import Packed, field_bits, pack, unpack
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.support import n_of_m
from orbit_kd.support.files import write_file
from orbit_kd.tflite.reader import parse, read_bytes
from orbit_kd.tflite.subgraph import Subgraph

MAGIC = b"OKDP\x01\x00\x00\x00"
_ALIGN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer with weights.

    Attributes:
        name: of the operator's output tensor in the .tflite file.
        op: TFLite's name, "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", ...
        kernel: int8, (out, ky, kx, in) for convolutions, (1, ky, kx, channels) for depthwise ones, (out, in) for dense
            layers.
        bias: int32 (out,), in units of input scale * kernel scale; empty where the layer has none.
        scales: float32, of the kernel, one for each output channel or one.
        input, output: {"scale", "zero_point", "shape"} of the activations, real = (integer - zero_point) * scale.
    """

    name: str
    op: str
    kernel: np.ndarray
    bias: np.ndarray
    scales: np.ndarray
    input: dict[str, Any]
    output: dict[str, Any]


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
    for number, layer in enumerate(layers_of(data)):
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
            words |= {row["images"][k]: w for k, w in _words(layer, packed).items() if k in row["images"]}
        rows.append(row)
    manifest = {"format": "orbit_kd packed", "version": 1, "file": "weights.bin", "bytes": len(blob),
                "crc32": zlib.crc32(blob), "byte_order": "little", "layers": rows}  # fmt: skip
    files = [
        write_file(folder / "weights.bin", bytes(blob)),
        write_file(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n"),
        *(write_file(folder / f"{name}.mem", "\n".join(hexes) + "\n") for name, hexes in words.items()),
        *(write_file(folder / f"{name}.coe", _coe(hexes)) for name, hexes in words.items()),
    ]
    details |= {"pattern": f"{n}:{m}", "index": index, **_totals(rows)}
    name = f"packed:{variant}" if variant else "packed"
    return Artifact.of(bytes(blob), target=name, files=tuple(files), details=details)


def read_packed(path: str | os.PathLike[str]) -> list[Layer]:
    """The layers of what `export_packed` wrote, kernels dense again.

    Args:
        path: the folder, or its `weights.bin` or `manifest.json`.

    Raises:
        InputError: no such files, or files that do not belong together or are damaged.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    blob, text = read_bytes(folder / "weights.bin"), read_bytes(folder / "manifest.json")
    try:
        manifest = json.loads(text)
        whole = blob[: len(MAGIC)] == MAGIC and zlib.crc32(blob) == manifest["crc32"]
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{folder} is damaged: weights.bin is not what manifest.json describes.",
                         expected="the two files of one export", fix="export the model again")  # fmt: skip

    def section(row: dict[str, Any], name: str) -> bytes:
        return blob[row[name]["offset"] : row[name]["offset"] + row[name]["bytes"]]

    layers = []
    for row in manifest["layers"]:
        shape, values = tuple(row["shape"]), section(row, "values")
        if row["layout"] == "n:m":
            kernel = unpack(Packed.of_bytes(values, section(row, "indices"), shape=shape, n=row["n"], m=row["m"],
                                            index=row["index"]))  # fmt: skip
        else:
            kernel = np.frombuffer(values, np.int8).reshape(shape)
        bias, scales = np.frombuffer(section(row, "bias"), "<i4"), np.frombuffer(section(row, "scales"), "<f4")
        layers.append(Layer(row["name"], row["op"], kernel, bias, scales, row["input"], row["output"]))
    return layers


def layers_of(data: bytes) -> list[Layer]:
    """The layers with weights of an int8 .tflite file, in execution order.

    Raises:
        InputError: a kernel of another type, or with a zero point other than 0.
    """
    graph, layers = Subgraph(parse(data)), []
    for op in graph.operators:
        index = graph.kernel(op)
        if index is None:
            continue
        name, kernel = graph.output_name(op), graph.dense(index)
        if graph.dtype(index) != "int8" or np.any(graph.zero_point(index)):
            raise InputError(
                f"The kernel of {name[:80]!r} is {graph.dtype(index)}, zero points {graph.zero_point(index)}.",
                expected="int8 with zero points of 0",
                fix="export to tflite_int8 first",
            )
        constants = dict(graph.inputs(op))
        bias = next((i for i in constants.values() if graph.dtype(i) == "int32" and i != index), None)
        quantization = graph.tensors[index].quantization
        layers.append(
            Layer(
                name=name,
                op=graph.name(op),
                kernel=kernel,
                bias=np.zeros(0, np.int32) if bias is None else graph.dense(bias),
                scales=np.asarray(quantization.scale, np.float32),
                input=_activation(graph, int(next(i for i in op.inputs if int(i) not in constants.values()))),
                output=_activation(graph, int(op.outputs[0])),
            )
        )
    return layers


def _activation(graph: Subgraph, index: int) -> dict[str, Any]:
    quantization = graph.tensors[index].quantization
    known = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    return {
        "shape": list(graph.shape(index)),
        "scale": float(quantization.scale[0]) if known else None,
        "zero_point": int(quantization.zeroPoint[0]) if known else None,
    }


def _pattern(text: str) -> tuple[int, int]:
    if found := n_of_m.parse(text):
        return found
    raise InputError(f"Pattern {text!r}.", expected='"N:M", or "uhp:M" with an even M', fix='for example "packed:2:4"')


def _packed(kernel: np.ndarray, n: int, m: int, index: str) -> tuple[Packed | None, str]:
    """The packed kernel, or None and why it stays dense."""
    if kernel.ndim == 4 and kernel.shape[0] == 1 and kernel.shape[3] > 1 and kernel.shape[1] * kernel.shape[2] > 1:
        return None, "depthwise: one input channel for each output"
    try:
        packed = pack(kernel, n, m, index=index)
    except InputError as error:
        return None, error.what.split(", the first")[0]
    size = len(packed.value_bytes) + len(packed.index_bytes)
    if size >= kernel.nbytes:
        return None, f"{size} bytes packed, {kernel.nbytes} dense: {kernel.shape[-1]} channels fill groups of {m} badly"
    return packed, ""


def _row(layer: Layer, packed: Packed | None, reason: str) -> dict[str, Any]:
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


def _words(layer: Layer, packed: Packed | None) -> dict[str, list[str]]:
    """Memory words as hex: a group a word, its first value or field in the lowest bits; of dense kernels one weight."""
    bias = {"bias": _hex(layer.bias.astype("<i4").view(np.uint8).reshape(-1, 4), 32)}
    if packed is None:
        return bias | {"values": _hex(layer.kernel.reshape(-1, 1).view(np.uint8), 8)}
    shifts = np.arange(packed.field_bits, dtype=np.uint64)
    bits = (packed.fields[..., None] >> shifts).astype(np.uint8) & 1
    codes = np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="little")
    return bias | {
        "values": _hex(packed.values.view(np.uint8), 8 * packed.n),
        "indices": _hex(codes, packed.group_bits),
    }


def _hex(words: np.ndarray, bits: int) -> list[str]:
    """Rows of little-endian bytes -> hex numbers, the highest digit first, of as many digits as `bits` need."""
    text, width, digits = words[:, ::-1].tobytes().hex(), 2 * words.shape[1], math.ceil(bits / 4)
    return [text[i + width - digits : i + width] for i in range(0, len(text), width)]


def _coe(hexes: list[str]) -> str:
    return "memory_initialization_radix=16;\nmemory_initialization_vector=\n" + ",\n".join(hexes) + ";\n"
