"""Few values as indices into tables: the look-up decoder of TensorFlow Lite Micro (`TFLM_DECODE`, type 0).

Indices of 1 to 7 bits, one behind the other from the highest bit of each byte on, and a table for each channel.
TensorFlow Lite Micro's own tool writes them (`exporters/tflm/compression.py`); here they are only read.
"""

from __future__ import annotations

import numpy as np

from orbit_kd.errors import InputError


def decode(
    indices: bytes, tables: bytes, count: int, *, bits: int, stride: int, channel: np.ndarray, dtype: str
) -> np.ndarray:
    """The (count,) values that indices stand for.

    Args:
        indices: as stored.
        tables: one after the other.
        count: of values.
        bits: of an index.
        stride: values of a table.
        channel: (count,) of each value.
        dtype: of the values.

    Raises:
        InputError: the indices or tables end too early.
    """
    stream = np.unpackbits(np.frombuffer(indices, np.uint8))[: count * bits]
    values = np.frombuffer(tables[: len(tables) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize], dtype)
    if bits and len(stream) == count * bits:
        place = channel * stride + stream.reshape(count, bits) @ (1 << np.arange(bits)[::-1])
        if place.max(initial=0) < len(values):
            return values[place]
    raise InputError(
        "A constant stored as indices into a table ends before all its values are decoded.",
        expected="a file as an export target wrote it",
        fix="export the model again",
    )
