"""Zeros as a bit mask: the pruning decoder of TensorFlow Lite Micro (`TFLM_DECODE`, type 2).

One bit a value, from the highest bit of each byte on, 1 for a value that is not 0; those values follow elsewhere.
"""

from __future__ import annotations

import numpy as np

from orbit_kd.errors import InputError


def encode(values: np.ndarray) -> tuple[bytes, bytes]:
    """(mask, values that are not 0) of an array of any shape and type."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.packbits(flat != 0).tobytes(), flat[flat != 0].tobytes()


def decode(mask: bytes, kept: bytes, count: int, *, dtype: str) -> np.ndarray:
    """The (count,) values of a mask.

    Raises:
        InputError: the mask or the values end too early.
    """
    bits = np.unpackbits(np.frombuffer(mask, np.uint8))[:count].astype(bool)
    size = np.dtype(dtype).itemsize
    values, needed = np.frombuffer(kept[: len(kept) // size * size], dtype), int(bits.sum())
    if len(bits) < count or len(values) < needed:
        raise InputError(
            "A constant stored as a bit mask and values ends before all its values are decoded.",
            expected="a file as an export target wrote it",
            fix="export the model again",
        )
    out = np.zeros(count, dtype)
    out[bits] = values[:needed]
    return out
