"""Huffman codes of small numbers: code lengths within a limit, codes, and the bits of an array.

The decoder of TensorFlow Lite Micro (`TFLM_DECODE`, type 1) walks a tree of look-up tables (`code_table.py`), reads
bits from the highest on, in 32-bit words whose first byte is the highest, and gives one int8 or int16 value for each
code.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 18  # values, or bits, handled at a time: tens of MB, whatever the size of the tensor
_WORD = 4  # bytes


class PackageMerge:
    """Optimal prefix codes of limited length (Larmore and Hirschberg, JACM 37(3), 1990).

    The lists of packages do not depend on the limit, so that one build serves them all.

    Args:
        counts: (symbols,) how often each occurs; those of 0 get no code.
        longest: the largest limit that will be asked for, in bits.
    """

    def __init__(self, counts: np.ndarray, *, longest: int) -> None:
        used = np.flatnonzero(counts)
        self._symbols, self._used = len(counts), used[np.argsort(counts[used], kind="stable")]
        weights = counts[self._used].astype(np.int64)
        # level by level: the leaves, and the pairs of the level before, cheapest first. What is kept of each list is
        # how many leaves there are among its first items.
        self._leaves, merged = [np.arange(1, len(used) + 1)], weights
        for _ in range(longest - 1):
            even = len(merged) - len(merged) % 2
            both = np.concatenate([weights, merged[:even:2] + merged[1:even:2]])
            order = np.argsort(both, kind="stable")
            merged = both[order]
            self._leaves.append(np.cumsum(order < len(used)))

    def lengths(self, limit: int) -> np.ndarray:
        """(symbols,) bits of each symbol's code; 0 without one, and for a symbol that is alone, which needs none.

        Raises:
            ValueError: so many symbols do not fit into codes of `limit` bits.
        """
        if len(self._used) > 1 << limit:
            raise ValueError(f"{len(self._used)} symbols do not fit into codes of {limit} bits")
        lengths, take = np.zeros(self._symbols, np.int64), 2 * len(self._used) - 2
        for leaves in reversed(self._leaves[:limit]):
            if take <= 0:
                break
            taken = int(leaves[take - 1])
            lengths[self._used[:taken]] += 1
            take = 2 * (take - taken)
        return lengths


def per_length(lengths: np.ndarray) -> np.ndarray:
    """(longest + 1,) how many codes have each length; there is none of length 0."""
    return np.bincount(lengths[lengths > 0], minlength=2)


def first_codes(lengths: np.ndarray) -> np.ndarray:
    """The smallest code of each length of a canonical code: (longest + 1,) int.

    In a canonical code the shorter come first, and of one length the smaller symbols.
    """
    number = per_length(lengths)
    first = np.zeros(len(number), np.int64)
    for length in range(1, len(number)):
        first[length] = (first[length - 1] + number[length - 1]) << 1
    return first


def canonical_order(lengths: np.ndarray) -> np.ndarray:
    """The symbols that have a code, in the order of their codes."""
    symbols = np.flatnonzero(lengths)
    return symbols[np.argsort(lengths[symbols], kind="stable")]


def encode(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """The codes of an array's values, one after the other, in whole words.

    TFLM's decoder reads as many bits as its table has and puts back what was too much: at the end of a stream it may
    look at the word behind it, which has to be there. In a .tflite file it is.

    Args:
        values: symbols, as unsigned integers, any shape.
        lengths: (symbols,) of the code; all symbols of `values` have one, or there is one symbol only.
    """
    first, order = first_codes(lengths), canonical_order(lengths)
    longest = len(first) - 1
    shape = (len(lengths), longest)
    bits, valid = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    code = first.copy()  # the next of each length
    for symbol in order:
        length = int(lengths[symbol])
        bits[symbol, :length] = code[length] >> np.arange(length)[::-1] & 1
        valid[symbol, :length] = True
        code[length] += 1
    flat = values.reshape(-1)
    parts = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    stream = np.concatenate([bits[part][valid[part]] for part in parts] or [np.zeros(0, np.uint8)])
    words = max(1, -(-stream.size // (8 * _WORD)))
    return np.packbits(stream).tobytes().ljust(words * _WORD, b"\0")
