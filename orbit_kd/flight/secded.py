"""SECDED 64/72: a check byte for eight bytes, which corrects one flipped bit of the 72 and notices two.

An odd-weight-column code (Hsiao, "A Class of Optimal Minimum Odd-weight-column SEC-DED Codes", IBM J. Res. Dev. 1970):
each data bit has its own column of three or five ones in the check byte, which is the sum (exclusive or) of the columns
of the bits that are set. The sum of what is stored and what is computed, the syndrome, is the column of the bit that
flipped; of two bits it has an even number of ones, which is no column.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

WORD = 8  # data bytes to a check byte


@functools.cache
def columns() -> tuple[int, ...]:
    """The check byte of each of the 64 data bits alone, bit 0 of the first byte first."""
    chosen = [sum(1 << i for i in ones) for count in (3, 5) for ones in itertools.combinations(range(8), count)]
    return tuple(chosen[:64])


def encode(data: np.ndarray) -> np.ndarray:
    """Check bytes of some bytes; the last word is filled up with zeros.

    Args:
        data: uint8 (n,).

    Returns:
        uint8 (ceil(n / 8),).
    """
    words = _words(data)
    return np.bitwise_xor.reduce(_tables()[np.arange(WORD), words], axis=1)


def correct(data: np.ndarray, checks: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Bytes with single flips undone.

    Args:
        data: uint8 (n,).
        checks: uint8, as `encode` gave them, or damaged too.

    Returns:
        (bytes, number of words that were corrected, in data or check byte, numbers of the words that cannot be). Three
        and more flips in a word may pass for one.
    """
    words, syndromes = _words(data), encode(data) ^ checks
    places = _places()[syndromes]
    at = np.flatnonzero((places >= 0) & (places < 64))
    words[at, places[at] >> 3] ^= (1 << (places[at] & 7)).astype(np.uint8)
    found = np.count_nonzero(places >= 0)
    return words.reshape(-1)[: len(data)], int(found), np.flatnonzero(places == -2)


def _words(data: np.ndarray) -> np.ndarray:
    return np.concatenate([data, np.zeros(-len(data) % WORD, np.uint8)]).reshape(-1, WORD)


@functools.cache
def _tables() -> np.ndarray:
    """(8, 256): check byte of each value of each byte of a word."""
    out = np.zeros((WORD, 256), np.uint8)
    for byte, bit in itertools.product(range(WORD), range(8)):
        out[byte, (np.arange(256) >> bit) & 1 == 1] ^= np.uint8(columns()[8 * byte + bit])
    return out


@functools.cache
def _places() -> np.ndarray:
    """(256,): the data bit of each syndrome, 64 for one of the check byte, -1 where all is well, -2 for more flips."""
    out = np.full(256, -2)
    out[0] = -1
    out[list(columns())] = np.arange(64)
    out[[1 << i for i in range(8)]] = 64
    return out
