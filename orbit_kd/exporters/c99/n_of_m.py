"""Kernels that keep an N:M pattern, as the C kernels read them (`kernels/conv_nm.c`)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99.sums import SUM_LIMIT, as_array, flush, int8_bytes, largest, place_sums
from orbit_kd.support.n_of_m import grouped

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_GROUP_SIZES = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True, eq=False)
class _NofM:
    """N of M, and the entries that each row of (out, ky, kx) stores.

    Attributes:
        n, m: the pattern.
        places: int64 (rows, groups, n), channels, ascending.
        values: int8, their weights.
    """

    n: int
    m: int
    places: np.ndarray
    values: np.ndarray

    @property
    def pairs(self) -> bool:
        """Whether it is 2:4, which has a layout of its own."""
        return (self.n, self.m) == (2, 4)

    @property
    def largest_step(self) -> int:
        """Channels from an entry to the next, at most."""
        return largest(np.diff(self.places.reshape(len(self.places), -1), axis=1, prepend=0))

    def index_bits(self, of_pairs: int) -> int:
        """Bits of an entry's distance, 4 or 8; for 2:4, which has a group's, what is asked for."""
        if self.pairs:
            return of_pairs
        return 4 if self.largest_step < 16 else 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, with the shortest index."""
        groups, count = self.places.shape[1], self.places.shape[1] * self.n
        if self.pairs:
            return groups // 2 * 5 + groups % 2 * 3
        return count // 2 * 3 + count % 2 * 2 if self.index_bits(4) == 4 else 2 * count


def _placed(rows: np.ndarray, groups: np.ndarray, n: int, m: int) -> _NofM:
    """Places of each group's N entries: its non-zeros, then the first free places."""
    places = np.sort(np.argsort(groups == 0, axis=2, kind="stable")[:, :, :n], axis=2)
    values = np.take_along_axis(groups, places, axis=2)
    places = places + m * np.arange(groups.shape[1])[None, :, None]
    if (n, m) != (2, 4):
        # A place behind the last channel holds no weight: its entry stays at the last channel.
        places = np.minimum(places, rows.shape[1] - 1)
    return _NofM(n, m, places, values)


def _n_of_m(weights: np.ndarray) -> _NofM | None:
    """The pattern with the fewest bytes that a kernel keeps; None where none takes fewer than all weights."""
    rows = weights.reshape(-1, weights.shape[3])
    found = []
    for m in _GROUP_SIZES:
        groups = grouped(rows, m)
        n = max(int(np.count_nonzero(groups, axis=2).max(initial=0)), 1)
        if n < m:
            found.append(_placed(rows, groups, n, m))
    smaller = [pattern for pattern in found if pattern.row_bytes < weights.shape[3]]
    return min(smaller, key=lambda pattern: (pattern.row_bytes, pattern.m), default=None)


def fits_nm(weights: np.ndarray, *, index_bits: int) -> bool:
    pattern = _n_of_m(weights)
    if pattern is None or place_sums(weights) >= SUM_LIMIT:
        return False
    return pattern.pairs or index_bits == 4  # other patterns have one layout


def pack_nm(weights: np.ndarray, *, index_bits: int) -> np.ndarray:
    pattern = _n_of_m(weights)
    if pattern is None:
        raise InputError(
            "A kernel keeps no N:M pattern that makes it smaller.",
            expected="N non-zeros in each group of M consecutive input channels",
            fix='take the format "csr" or "dense"',
        )
    bits = pattern.index_bits(index_bits)
    row_of = _ROWS[pattern.pairs, bits]
    data = bytearray([pattern.n, pattern.m, flush(weights), bits])
    for places, values in zip(pattern.places, pattern.values, strict=True):
        data += int8_bytes(row_of(places, values))
    return as_array(data)


def _pair_row(places: np.ndarray, values: np.ndarray, *, bits: int) -> list[int]:
    """A row of 2:4: see kernels/conv_nm.c."""
    pairs = [6 * g + _PAIRS.index((int(a) - 4 * g, int(b) - 4 * g)) for g, (a, b) in enumerate(places)]
    steps = np.diff(pairs, prepend=0).tolist()
    row: list[int] = []
    for g in range(0, len(pairs) - 1, 2):
        (a, b), (c, d) = values[g].tolist(), values[g + 1].tolist()
        row += [a, c, b, d, *([steps[g] | steps[g + 1] << 4] if bits == 4 else steps[g : g + 2])]
    if len(pairs) % 2:
        row += [*values[-1].tolist(), steps[-1]]
    return row


def _short_row(places: np.ndarray, values: np.ndarray) -> list[int]:
    """Single entries with 4 bits of distance."""
    weights, steps = values.ravel().tolist(), np.diff(places.ravel(), prepend=0).tolist()
    row: list[int] = []
    for i in range(0, len(weights) - 1, 2):
        row += [weights[i], weights[i + 1], steps[i] | steps[i + 1] << 4]
    if len(weights) % 2:
        row += [steps[-1], weights[-1]]
    return row


def _long_row(places: np.ndarray, values: np.ndarray) -> list[int]:
    """Single entries with 8 bits of distance."""
    steps = np.diff(places.ravel(), prepend=0)
    return np.stack([steps, values.ravel().astype(np.int64)], 1).ravel().tolist()


_ROWS: dict[tuple[bool, int], Callable[[np.ndarray, np.ndarray], list[int]]] = {
    (True, 4): functools.partial(_pair_row, bits=4),
    (True, 8): functools.partial(_pair_row, bits=8),
    (False, 4): _short_row,
    (False, 8): _long_row,
}


def nm_cost(weights: np.ndarray, *, index_bits: int) -> float:
    pattern = _n_of_m(weights)
    if pattern is None:
        return math.inf
    # the last group is stored whole, whatever channels it has
    share = pattern.places.shape[1] * pattern.n / weights.shape[3]
    short = pattern.index_bits(index_bits) == 4
    if pattern.pairs:
        return share * (1.2 if short else 1.12)
    return share * (1.4 if short else 1.3)
