"""Reads a folder of packed weights: the kernels dense again."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.packed.packing import PackedKernel, unpack
from orbit_kd.tflite.layers import Int8Layer
from orbit_kd.tflite.reader import read_bytes

MAGIC = b"OKDP\x01\x00\x00\x00"


def read_packed(path: str | os.PathLike[str]) -> list[Int8Layer]:
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
            kernel = unpack(PackedKernel.of_bytes(values, section(row, "indices"), shape=shape, n=row["n"], m=row["m"],
                                            index=row["index"]))  # fmt: skip
        else:
            kernel = np.frombuffer(values, np.int8).reshape(shape)
        bias, scales = np.frombuffer(section(row, "bias"), "<i4"), np.frombuffer(section(row, "scales"), "<f4")
        layers.append(Int8Layer(row["name"], row["op"], kernel, bias, scales, row["input"], row["output"]))
    return layers
