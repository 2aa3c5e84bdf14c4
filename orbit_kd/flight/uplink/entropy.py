"""Integers in few bytes: range coding with models that learn from what was coded before, alike at both ends.

The range coder is that of `constriction` (https://arxiv.org/abs/2201.01741). Its models are counts of the symbols seen
so far, turned into probabilities once a block, so that no table is sent. Counts are whole numbers and the division is
IEEE 754's: both ends come to the same model on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from orbit_kd.support.extras import require

_BLOCK = 32  # symbols a model stands for before it learns
_SHARES = (0.0, 0.03, 0.15, 0.5, 1.0)  # of non-zeros in the block before: a model for what lies up to each
_NEAR = (16.0, 2.0, 0.5)  # seen symbols that 0, 1 and 2 away begin with, where such are expected
_MODELLED = 7  # bits below the highest one of a wide number that have a model: they hold most of a float's exponent
_CHUNK = 16  # bits that are coded at once without a model


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast the models learn.

    Attributes:
        step: what a seen symbol counts, where each symbol begins with 1.
        window: symbols that are remembered: counts are halved above it.
    """

    step: int
    window: int


PACES = (Pace(64, 1024), Pace(32, 4096), Pace(8, 16384), Pace(4, 65536))  # an update says which: their order is fixed


class _Counts:
    """The counts of one alphabet: a row for each share of non-zeros in the block before."""

    def __init__(self, size: int, zero: int, pace: Pace, near_zero: bool) -> None:
        self._pace = pace
        self._counts = np.ones((len(_SHARES), size), np.int64)
        if near_zero:
            away = np.abs(np.arange(size) - zero)
            near = np.array([*_NEAR, 0.0])[np.minimum(away, len(_NEAR))]
            self._counts += (pace.step * near).astype(np.int64)
        self._zero, self._row = zero, len(_SHARES) - 1

    def start(self) -> None:
        """Before an array: nothing is known of the block before."""
        self._row = len(_SHARES) - 1

    def model(self) -> Any:
        import constriction

        counts = self._counts[self._row].astype(np.float64)
        return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)

    def learn(self, symbols: np.ndarray) -> None:
        counts = self._counts[self._row]
        counts += self._pace.step * np.bincount(symbols, minlength=len(counts))
        while counts.sum() > self._pace.step * self._pace.window:
            counts -= counts // 2
        self._row = int(np.searchsorted(_SHARES, np.count_nonzero(symbols != self._zero) / len(symbols)))


class _Models:
    """What encoder and decoder share: one set of counts an alphabet and use, by name.

    Args:
        pace: of their learning.
    """

    def __init__(self, pace: Pace) -> None:
        require("constriction", extra="uplink")
        self._pace = pace
        self._counts: dict[tuple[str, int], _Counts] = {}

    def _of(self, use: str, size: int, zero: int, *, near_zero: bool = False) -> _Counts:
        if (use, size) not in self._counts:
            self._counts[use, size] = _Counts(size, zero, self._pace, near_zero)
        counts = self._counts[use, size]
        counts.start()
        return counts

    @staticmethod
    def _blocks(count: int) -> Iterator[slice]:
        return (slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))


class Encoder(_Models):
    """Takes arrays of integers; `finish` gives their bytes."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace)
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def choice(self, symbol: int, size: int, *, use: str) -> None:
        """One of `size` choices."""
        self._symbols(np.array([symbol]), self._of(use, size, 0))

    def small(self, values: np.ndarray, *, use: str, near_zero: bool = False) -> None:
        """Integers in -128..127; `near_zero` where most are expected to be 0 or 1 away, before any was seen."""
        self._symbols(values.astype(np.int64) + 128, self._of(use, 256, 128, near_zero=near_zero))

    def wide(self, values: np.ndarray, *, use: str) -> None:
        """uint64: the number of bits by a model, then the bits below the highest as they are."""
        lengths = bit_lengths(values)
        self._symbols(lengths, self._of(use, 65, 0))
        for length, shift, size, chosen in _chunks(lengths):
            chunk = ((values[chosen] >> np.uint64(shift)) & np.uint64((1 << size) - 1)).astype(np.int32)
            if shift + size == length - 1:
                self._symbols(chunk, self._of(f"{use}, {length} bits", 1 << size, 0))
            else:
                self._coder.encode(chunk, _uniform(size))

    def plain(self, data: bytes) -> None:
        """Bytes as they are."""
        self._coder.encode(np.frombuffer(data, np.uint8).astype(np.int32), _uniform(8))

    def finish(self) -> bytes:
        """The bytes: a multiple of 4."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def _symbols(self, symbols: np.ndarray, counts: _Counts) -> None:
        for block in self._blocks(len(symbols)):
            part = symbols[block].astype(np.int32)
            self._coder.encode(part, counts.model())
            counts.learn(part)


class Decoder(_Models):
    """Gives the arrays again, asked for in the same order."""

    def __init__(self, data: bytes, pace: Pace) -> None:
        super().__init__(pace)
        import constriction

        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def choice(self, size: int, *, use: str) -> int:
        """As `Encoder.choice`."""
        return int(self._symbols(1, self._of(use, size, 0))[0])

    def small(self, count: int, *, use: str, near_zero: bool = False) -> np.ndarray:
        """As `Encoder.small`: int64 (count,)."""
        return self._symbols(count, self._of(use, 256, 128, near_zero=near_zero)) - 128

    def wide(self, count: int, *, use: str) -> np.ndarray:
        """As `Encoder.wide`: uint64 (count,)."""
        lengths = self._symbols(count, self._of(use, 65, 0))
        values = np.where(lengths > 0, np.uint64(1) << np.maximum(lengths - 1, 0).astype(np.uint64), np.uint64(0))
        for length, shift, size, chosen in _chunks(lengths):
            count = int(np.count_nonzero(chosen))
            if shift + size == length - 1:
                chunk = self._symbols(count, self._of(f"{use}, {length} bits", 1 << size, 0))
            else:
                chunk = self._coder.decode(_uniform(size), count)
            values[chosen] |= np.asarray(chunk).astype(np.uint64) << np.uint64(shift)
        return values

    def plain(self, count: int) -> bytes:
        """As `Encoder.plain`."""
        return np.asarray(self._coder.decode(_uniform(8), count)).astype(np.uint8).tobytes()

    def _symbols(self, count: int, counts: _Counts) -> np.ndarray:
        symbols = np.empty(count, np.int64)
        for block in self._blocks(count):
            symbols[block] = self._coder.decode(counts.model(), block.stop - block.start)
            counts.learn(symbols[block])
        return symbols


def bit_lengths(values: np.ndarray) -> np.ndarray:
    """Bits of each number, 0 for 0; exact, which a logarithm of a 64-bit number is not."""
    lengths, left = np.zeros(len(values), np.int64), values.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = left >= np.uint64(1) << np.uint64(step)
        lengths[high] += step
        left[high] >>= np.uint64(step)
    return lengths + (left > 0)


def _chunks(lengths: np.ndarray) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """(length, shift, bits, which numbers) of the bits below the highest of each number, a few at a time."""
    for length in map(int, np.unique(lengths[lengths > 1])):
        modelled = min(_MODELLED, length - 1)
        rest = length - 1 - modelled
        yield length, rest, modelled, lengths == length
        for shift in range(0, rest, _CHUNK):
            yield length, shift, min(_CHUNK, rest - shift), lengths == length


def _uniform(bits: int) -> Any:
    import constriction

    return constriction.stream.model.Uniform(1 << bits)
