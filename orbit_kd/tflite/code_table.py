"""The tables with which TensorFlow Lite Micro's Huffman decoder walks a code, packed as small as they get.

A table of k bits has 2**k entries, of 16 bits for symbols of a byte, of 32 for symbols of two. The highest bit of an
entry says whether it is a symbol: then the next four are how many of the k bits its code really has, and the symbol is
in the lowest. Else they are k - 1 of a further table, and the rest is how many entries further on that starts. One
table for a whole code repeats the short codes; a table of one bit at every fork of the tree repeats nothing, but costs
an entry a fork. A small dynamic programme finds the best.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.huffman import canonical_order, first_codes, per_length

_COUNT = 0xF
_WIDEST = 9  # bits of one table; the best plans have hardly wider ones
_LONGEST = 40  # bits of a code that the decoder here follows: a window of 64 bits holds it at any place in a byte
_CHUNK = 1 << 18  # bits handled at a time


@dataclasses.dataclass(frozen=True, eq=False)
class CodeTable:
    """A tree of look-up tables.

    Attributes:
        bits: of the first table.
        entries: uint16 or uint32, of all tables.
    """

    bits: int
    entries: np.ndarray

    @property
    def shift(self) -> int:
        """Where the four bits begin that are a count."""
        return _shift(self.entries.dtype)


def entries_needed(lengths: np.ndarray) -> int:
    """How many entries the smallest tables of a canonical code have."""
    return _plan(per_length(lengths))[1] if lengths.any() else 2


def build(lengths: np.ndarray, *, only: int = 0) -> CodeTable:
    """The smallest tables of a canonical code.

    Args:
        lengths: (256,) or (65536,) in bits; all 0 for a code of one symbol.
        only: that symbol.
    """
    kind = np.dtype(np.uint16 if len(lengths) == 256 else np.uint32)
    shift, is_symbol = _shift(kind), 1 << (_shift(kind) + 4)
    if not lengths.any():  # no bits at all: whatever is read is put back
        return CodeTable(1, np.full(2, is_symbol | only, kind))
    number = per_length(lengths)
    widths, size = _plan(number)
    first, order = first_codes(lengths), canonical_order(lengths)
    shorter = np.cumsum(number) - number  # codes that are shorter than each length

    def width_of(depth: int, node: int) -> int:
        """Bits of the table at a fork; 0 where a path of `depth` bits is a code, or goes on behind one."""
        place = (1 << depth) - node - 1
        return int(widths[depth][place]) if depth < len(widths) and place < len(widths[depth]) else 0

    def symbol_of(depth: int, node: int) -> tuple[int, int]:
        """(length, symbol) of the code that a path of `depth` bits begins with."""
        length = next(n for n in range(1, depth + 1) if 0 <= (node >> (depth - n)) - first[n] < number[n])
        return length, int(order[shorter[length] + (node >> (depth - length)) - first[length]])

    entries = np.zeros(size, kind)
    waiting, end = [(0, 0, 0)], 1 << width_of(0, 0)
    for depth, node, start in waiting:  # which grows on the way
        below = depth + width_of(depth, node)
        for i in range(1 << (below - depth)):
            path = node << (below - depth) | i
            if wide := width_of(below, path):
                entries[start + i] = (wide - 1) << shift | (end - start - i)
                waiting.append((below, path, end))
                end += 1 << wide
            else:
                length, symbol = symbol_of(below, path)
                entries[start + i] = is_symbol | (length - depth) << shift | symbol
    return CodeTable(width_of(0, 0), entries)


def _plan(number: np.ndarray) -> tuple[list[np.ndarray], int]:
    """How wide the tables at the forks of a canonical code are best, and how many entries there are then.

    In a canonical code the forks of a depth come after its codes: counted from the last on, those below the first `u`
    forks of a depth are the first `u << k` forks `k` levels further down, if there are so many.

    Args:
        number: of codes of each length.

    Returns:
        For each depth the bits of the tables at its forks, from the last fork on; and the entries of all tables.
    """
    longest = len(number) - 1
    forks = [1]
    for depth in range(1, longest + 1):
        forks.append(2 * forks[-1] - int(number[depth]))
    sums = np.zeros((longest + 1, max(forks) + 1), np.int64)  # entries at and below the first forks of each depth
    widths = [np.zeros(0, np.int64)] * longest
    for depth in range(longest - 1, -1, -1):
        width = np.arange(1, min(_WIDEST, longest - depth) + 1)[:, None]
        below = np.minimum(np.arange(forks[depth] + 1) << width, np.array(forks)[depth + width])
        needed = (1 << width) + np.diff(sums[depth + width, below], axis=1)
        # of equal ones the widest, which takes the fewest steps
        widths[depth] = len(needed) - np.argmin(needed[::-1], axis=0)
        np.cumsum(needed.min(axis=0), out=sums[depth, 1 : forks[depth] + 1])
    return widths, int(sums[0, 1])


def decode(stream: bytes, table: CodeTable, count: int) -> np.ndarray:
    """What the decoder makes of a stream: (count,) symbols, int8 of small entries and int16 of large ones.

    What starts at each bit is looked up for many bits at once; then the codes are followed from the first on.

    Raises:
        InputError: the stream ends, or the tables lead out of themselves, before there are `count` symbols.
    """
    data = np.frombuffer(stream + bytes(8), np.uint8)
    windows = np.zeros(len(stream), np.uint64)  # the 64 bits from each byte on
    for i in range(8):
        windows = windows << np.uint64(8) | data[i : i + len(stream)]
    values, place, total = list[int](), 0, 8 * len(stream)
    while len(values) < count:
        at = np.arange(place, min(place + _CHUNK, total))
        symbols, used = _at_each(windows[at >> 3] << (at & 7).astype(np.uint64), table)
        start = place
        while len(values) < count and place - start < len(used):
            step = used[place - start]
            if step < 0:
                raise _damaged()
            values.append(symbols[place - start])
            if step == 0:  # a code of one symbol
                return np.full(count, values[0], np.uint32).astype(_symbols(table))
            place += step
        if place > total or (place == start and len(values) < count):
            raise _damaged()
    return np.array(values, np.uint32).astype(_symbols(table))


def _at_each(windows: np.ndarray, table: CodeTable) -> tuple[list[int], list[int]]:
    """The symbol and the length of the code at the beginning of each window; a length of -1 where there is none."""
    entries, shift = table.entries.astype(np.int64), table.shift
    is_symbol = 1 << (shift + 4)
    offset = (windows >> np.uint64(64 - table.bits)).astype(np.int64)
    seen, width = np.full(len(windows), table.bits), np.full(len(windows), table.bits)
    lost = np.zeros(len(windows), bool)
    entry = np.full(len(windows), is_symbol, np.int64)
    open_ = np.arange(len(windows))
    while open_.size:
        lost[open_[(offset[open_] >= len(entries)) | (seen[open_] > _LONGEST)]] = True
        open_ = open_[~lost[open_]]
        entry[open_] = entries[offset[open_]]
        open_ = open_[entry[open_] & is_symbol == 0]
        width[open_] = (entry[open_] >> shift & _COUNT) + 1
        seen[open_] += width[open_]
        rest = (windows[open_] >> (64 - np.minimum(seen[open_], 64)).astype(np.uint64)).astype(np.int64)
        offset[open_] += (entry[open_] & ((1 << shift) - 1)) + (rest & ((1 << width[open_]) - 1))
    used = seen - np.maximum(width - (entry >> shift & _COUNT), 0)
    return (entry & 0xFFFF).tolist(), np.where(lost, -1, used).tolist()


def _shift(kind: np.dtype) -> int:
    return 8 * kind.itemsize - 5


def _symbols(table: CodeTable) -> type:
    return np.int8 if table.entries.itemsize == 2 else np.int16


def _damaged() -> InputError:
    return InputError(
        "A Huffman-coded constant ends, or its tables lead nowhere, before all its values are decoded.",
        expected="a file as an export target wrote it",
        fix="export the model again",
    )
