"""How large the sums of a kernel get that share a word on a Cortex-M4, and bytes as C gets them."""

from __future__ import annotations

import numpy as np

# Cortex-M4 keeps two sums in 64 bits, the lower one within 2**22, of activations of 128 at most.
SUM_LIMIT = 2**22 // 128


def largest(magnitudes: np.ndarray) -> int:
    """Of them; 0 of none."""
    return int(magnitudes.max(initial=0))


def whole_sums(weights: np.ndarray) -> int:
    """The largest sum of an output channel's magnitudes."""
    return largest(np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(1))


def place_sums(weights: np.ndarray) -> int:
    """The same of one place of the kernel."""
    return largest(np.abs(weights.astype(np.int64)).sum(3))


def interval_of(weights: np.ndarray, channels: list[np.ndarray]) -> int:
    """After how many entries of any output channel, of the input channels listed, sums are flushed.

    127 at most; 0 where they need never be; -1 where one entry alone may be too large.
    """
    if whole_sums(weights) < SUM_LIMIT:
        return 0
    sums = np.abs(weights.astype(np.int64)).sum((1, 2))
    totals = [np.cumsum([0, *row[some]]) for row, some in zip(sums, channels, strict=True)]
    interval = 127
    while interval and any(largest(t[interval:] - t[:-interval]) >= SUM_LIMIT for t in totals if len(t) > interval):
        interval -= 1
    return interval or -1


def flush(weights: np.ndarray) -> int:
    """1 where the sum of a whole channel may be too large, so that sums are flushed after each place."""
    return int(whole_sums(weights) >= SUM_LIMIT)


def int8_bytes(values: list[int]) -> bytes:
    """Bytes of weights (negative too), counts and distances."""
    return bytes(v & 0xFF for v in values)


def as_array(data: bytes | bytearray) -> np.ndarray:
    """int8 (n,)."""
    return np.frombuffer(bytes(data), np.int8)
