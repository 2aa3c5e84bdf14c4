"""Block-RAM images of packed weights: memory words as hex text."""

from __future__ import annotations

import math

import numpy as np

from orbit_kd.exporters.packed.packing import PackedKernel
from orbit_kd.tflite.layers import Int8Layer


def memory_words(layer: Int8Layer, packed: PackedKernel | None) -> dict[str, list[str]]:
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


def coe_text(words: list[str]) -> str:
    """A block memory image for Xilinx' tools."""
    return "memory_initialization_radix=16;\nmemory_initialization_vector=\n" + ",\n".join(words) + ";\n"


def mem_text(words: list[str]) -> str:
    """A block memory image for Verilog's $readmemh."""
    return "\n".join(words) + "\n"
