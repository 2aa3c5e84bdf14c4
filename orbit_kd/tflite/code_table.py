"""The tables with which TensorFlow Lite Micro's Huffman decoder walks a code, packed as small as they get.

A table of k bits has 2**k entries of 16 bits. An entry is a symbol (0x8000, how many of the k bits its code really has
in bits 11 to 14, the symbol in the low byte) or leads to a further table (its k - 1 in bits 11 to 14, and how many
entries further on it starts, in bits 0 to 10). One table for a whole code repeats the short codes; a table of one bit
at every fork of the tree repeats nothing, but costs an entry a fork. A small dynamic programme finds the best.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite.huffman import canonical_order, first_codes, per_length

_SYMBOL, _COUNT_SHIFT, _COUNT, _VALUE = 0x8000, 11, 0xF, 0x7FF
_WIDEST = 9  # bits of one table; the best plan never has wider ones for 256 symbols
_LONGEST = 40  # bits of a code that the decoder here follows: a window of 64 bits holds it at any place in a byte
_CHUNK = 1 << 18  # bits handled at a time


@dataclasses.dataclass(frozen=True, eq=False)
class CodeTable:
    """A tree of look-up tables.

    Attributes:
        bits: of the first table.
        entries: uint16, of all tables.
    """

    bits: int
    entries: np.ndarray


def entries_needed(lengths: np.ndarray) -> int:
    """How many entries the smallest tables of a canonical code have."""
    return _plan(per_length(lengths))[1] if lengths.any() else 2


def build(lengths: np.ndarray, *, only: int = 0) -> CodeTable:
    """The smallest tables of a canonical code.

    Args:
        lengths: (256,) in bits; all 0 for a code of one symbol.
        only: that symbol.
    """
    if not lengths.any():  # no bits at all: whatever is read is put back
        return CodeTable(1, np.full(2, _SYMBOL | only, np.uint16))
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

    entries = np.zeros(size, np.uint16)
    waiting, end = [(0, 0, 0)], 1 << width_of(0, 0)
    for depth, node, start in waiting:  # which grows on the way
        below = depth + width_of(depth, node)
        for i in range(1 << (below - depth)):
            path = node << (below - depth) | i
            if wide := width_of(below, path):
                entries[start + i] = (wide - 1) << _COUNT_SHIFT | (end - start - i)
                waiting.append((below, path, end))
                end += 1 << wide
            else:
                length, symbol = symbol_of(below, path)
                entries[start + i] = _SYMBOL | (length - depth) << _COUNT_SHIFT | symbol
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
    """What the decoder makes of a stream: (count,) int8.

    What starts at each bit is looked up for many bits at once; then the codes are followed from the first on.

    Raises:
        InputError: the stream ends, or the tables lead out of themselves, before there are `count` values.
    """
    data = np.frombuffer(stream + bytes(8), np.uint8)
    windows = np.zeros(len(stream), np.uint64)  # the 64 bits from each byte on
    for i in range(8):
        windows = windows << np.uint64(8) | data[i : i + len(stream)]
    values, place = bytearray(), 0
    total = 8 * len(stream)
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
                values.extend(bytes([symbols[place - start]]) * (count - len(values)))
            place += step
        if place > total or (place == start and len(values) < count):
            raise _damaged()
    if place > total:
        raise _damaged()
    return np.frombuffer(bytes(values), np.int8)


def _at_each(windows: np.ndarray, table: CodeTable) -> tuple[bytes, list[int]]:
    """The symbol and the length of the code at the beginning of each window; a length of -1 where there is none."""
    entries = table.entries.astype(np.int64)
    offset = (windows >> np.uint64(64 - table.bits)).astype(np.int64)
    seen, width = np.full(len(windows), table.bits), np.full(len(windows), table.bits)
    lost = np.zeros(len(windows), bool)
    entry = np.full(len(windows), _SYMBOL, np.int64)
    open_ = np.arange(len(windows))
    while open_.size:
        lost[open_[(offset[open_] >= len(entries)) | (seen[open_] > _LONGEST)]] = True
        open_ = open_[~lost[open_]]
        entry[open_] = entries[offset[open_]]
        open_ = open_[entry[open_] & _SYMBOL == 0]
        width[open_] = (entry[open_] >> _COUNT_SHIFT & _COUNT) + 1
        seen[open_] += width[open_]
        rest = (windows[open_] >> (64 - np.minimum(seen[open_], 64)).astype(np.uint64)).astype(np.int64)
        offset[open_] += (entry[open_] & _VALUE) + (rest & ((1 << width[open_]) - 1))
    used = seen - np.maximum(width - (entry >> _COUNT_SHIFT & _COUNT), 0)
    return (entry & 0xFF).astype(np.uint8).tobytes(), np.where(lost, -1, used).tolist()


def _damaged() -> InputError:
    return InputError(
        "A Huffman-coded constant ends, or its tables lead nowhere, before all its values are decoded.",
        expected="a file as an export target wrote it",
        fix="export the model again",
    )
