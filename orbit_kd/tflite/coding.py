"""Constants that TensorFlow Lite Micro decodes at run time (`TFLM_DECODE`): which coding is smallest, and how small.

A coded constant is a pair: what is encoded, and an ancillary that says how. The ancillary begins with 16 bytes: the
type of the decoder, version 1, and from byte 4 on what the decoder asks for, again a version of 1 first
(https://github.com/tensorflow/tflite-micro/tree/main/tensorflow/lite/micro/kernels, `decode*`). Only NumPy is used.

    plain = values.nbytes
    small = coded_size(values)              # bytes in the file, with table and structure
    coded = encode(values)                  # or coding="huffman", "mask"
    assert (decode(coded, values.size) == values.ravel()).all()
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tflite import code_table, huffman, lut, mask

CODINGS = ("huffman", "pairs", "mask", "none")
# What a coded constant takes in the file besides its bytes, and a plain one does not: two more tensors, one more
# buffer, a place in an operator, perhaps the operator. What of it belongs to the ancillary, which several may share.
STRUCTURE = 76
TABLE_STRUCTURE = 28
PAIR_STRUCTURE = 88  # of the operator that makes int8 of pairs, and of a tensor with its shape
_HEADER = 16
_VERSION_AT, _DECODER_VERSION_AT, _TABLE_AT, _STRIDE_AT = 1, 4, 5, 6
_NAMES = {0: "lut", 1: "huffman", 2: "mask"}
_TYPES = {name: number for number, name in _NAMES.items()}
_MOST_VALUES = 1 << 28
_LONGEST_CODE = 16  # bits; longer codes save nothing that their tables do not take


@dataclasses.dataclass(frozen=True)
class Coded:
    """A constant as the interpreter's decoder takes it.

    Attributes:
        coding: "huffman", "pairs" (Huffman codes of two int8 values each, which the decoder gives as one int16) or
            "mask"; or "lut", indices into tables, which are read here and not written.
        encoded: the codes, the mask, or the indices.
        ancillary: the header, and the code's tables, the values that the mask keeps, or the tables of values.
    """

    coding: str
    encoded: bytes
    ancillary: bytes

    @property
    def size(self) -> int:
        """Bytes in the file, each part filled up to a multiple of 4."""
        return _whole(len(self.encoded)) + _whole(len(self.ancillary))


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """A Huffman code for int8 values, or for pairs of them, which several constants may share.

    Attributes:
        lengths: (256,) bits of each symbol, which is the value as uint8; of pairs (65536,), which are two values as a
            little-endian uint16; 0 for symbols without a code.
        only: the symbol, where there is one alone.
    """

    lengths: np.ndarray
    only: int = 0

    @functools.cached_property
    def table(self) -> code_table.CodeTable:
        """The tables that the decoder walks."""
        return code_table.build(self.lengths, only=self.only)

    @functools.cached_property
    def ancillary(self) -> bytes:
        """The header and the tables."""
        header = bytearray(_header("huffman"))
        wide = self.table.entries.itemsize == 4
        header[_TABLE_AT] = (self.table.bits - 1) << 4 | wide
        return bytes(header) + self.table.entries.astype("<u4" if wide else "<u2").tobytes()

    def stream_size(self, counts: np.ndarray) -> int:
        """Bytes of the codes of values that occur so often; the code has them all."""
        return _stream_size(counts, self.lengths)


def histogram(values: np.ndarray) -> np.ndarray:
    """(256,) how often each int8 value occurs, counted as uint8: 0 to 127, then -128 to -1."""
    return np.bincount(values.reshape(-1).view(np.uint8), minlength=256)


def pair_histogram(values: np.ndarray) -> np.ndarray:
    """(65536,) how often each pair of int8 values occurs; of an even number of values."""
    return np.bincount(np.ascontiguousarray(values).reshape(-1).view("<u2"), minlength=1 << 16)


def coded_size(values: np.ndarray) -> int:
    """Bytes that a constant takes in a coded file, in the smallest coding: its bytes, its table, its structure.

    Never more than `values.nbytes`: what no coding makes smaller stays as it is. A file may be smaller than the sum of
    its constants, as several share a table (`sharing.coded_size_together`).

    Args:
        values: int8, any shape.
    """
    size = coded_size_of(histogram(values))
    if size > 2 * STRUCTURE and values.size % 2 == 0:  # else its table would take what it saves
        size = min(size, STRUCTURE + PAIR_STRUCTURE + _best_code(pair_histogram(values))[1])
    return size


def coded_size_of(counts: np.ndarray) -> int:
    """`coded_size` of int8 values that occur so often, (256,) as `histogram` counts them, without coding pairs."""
    total = int(counts.sum())
    return min(total, STRUCTURE + min(mask_size(counts), _best_code(counts)[1])) if total else 0


def mask_size(counts: np.ndarray) -> int:
    """Bytes of the mask, the header and the values that it keeps, of int8 values that occur so often."""
    total, zeros = int(counts.sum()), int(counts[0])
    return _whole(-(-total // 8)) + _whole(_HEADER + total - zeros)


def best_code(counts: np.ndarray) -> Code:
    """The Huffman code with which codes and tables together are smallest, of counts as a histogram here has them."""
    return _best_code(counts)[0]


def _best_code(counts: np.ndarray) -> tuple[Code, int]:
    """The code, and the bytes of codes, tables and header.

    Longer codes are nearer to the entropy, shorter ones have smaller tables: limits are tried upwards from the shortest
    until the file would grow again.
    """
    symbols = np.flatnonzero(counts)
    packages = huffman.PackageMerge(counts, longest=_LONGEST_CODE)
    best, smallest, width = np.zeros(len(counts), np.int64), -1, 2 if len(counts) == 256 else 4
    for limit in range(max(1, len(symbols) - 1).bit_length(), _LONGEST_CODE + 1):
        lengths = packages.lengths(limit)
        table = _HEADER + _whole(width * code_table.entries_needed(lengths))
        size = table + _stream_size(counts, lengths)
        if 0 <= smallest <= size:
            break
        best, smallest = lengths, size
    return Code(best, int(symbols[0]) if len(symbols) else 0), smallest


def check_name(coding: str) -> None:
    """Raises InputError for a coding that does not exist."""
    if coding not in ("auto", *CODINGS):
        raise InputError(
            f"Unknown coding {coding!r}.",
            expected=f"one of: auto, {', '.join(CODINGS)}",
            fix="leave it out for the smallest",
        )


def encode(values: np.ndarray, *, coding: str = "auto", code: Code | None = None) -> Coded | None:
    """A constant in a coding; None where it stays as it is, "none" or the smallest of "auto".

    Args:
        values: any shape; int8 for Huffman codes, an even number of them for "pairs"; any type for "mask".
        coding: "auto" ("huffman", "mask" or "none"), or one of `CODINGS`.
        code: a Huffman code that is shared; None for the constant's own.

    Raises:
        InputError: an unknown coding, or a type that its decoder does not have.
    """
    check_name(coding)
    if coding == "none":
        return None
    if coding == "auto":
        tried = [encode(values, coding="mask")]
        if values.dtype == np.int8:
            tried.append(encode(values, coding="huffman", code=code))
        best = min((one for one in tried if one is not None), key=lambda one: one.size)
        return best if best.size + STRUCTURE < values.nbytes else None
    if coding == "mask":
        bits, kept = mask.encode(values)
        return Coded("mask", bits, _header("mask") + kept)
    if values.dtype != np.int8:
        raise InputError(
            f"A constant of type {values.dtype.name} cannot be Huffman-coded.",
            expected="int8, which is what the decoder gives",
            fix="coding='mask' or 'none' for it",
        )
    if coding == "pairs":
        if values.size % 2:
            raise InputError(
                f"A constant of {values.size} values cannot be coded in pairs.",
                expected="an even number of values",
                fix="coding='huffman' for it",
            )
        pairs = np.ascontiguousarray(values).reshape(-1).view("<u2")
        code = code or best_code(pair_histogram(values))
        return Coded("pairs", huffman.encode(pairs, code.lengths), code.ancillary)
    code = code or best_code(histogram(values))
    return Coded("huffman", huffman.encode(values.view(np.uint8), code.lengths), code.ancillary)


def decode(coded: Coded, count: int, *, dtype: str = "int8", channel: np.ndarray | None = None) -> np.ndarray:
    """The (count,) values that the interpreter's decoder gives.

    Args:
        coded: the constant.
        count: how many values it has.
        dtype: of the values.
        channel: (count,) the channel of each value, which tables of indices ask for; None where there is one table.

    Raises:
        InputError: damaged, absurdly large, or of a kind that is not known here.
    """
    if count > _MOST_VALUES:
        raise InputError(
            f"A coded constant of {count:,} values.",
            expected=f"at most {_MOST_VALUES:,}, which is more than a microcontroller holds",
            fix="the file is damaged: export the model again",
        )
    body, settings = coded.ancillary[_HEADER:], coded.ancillary[_TABLE_AT]
    if coded.coding == "mask":
        return mask.decode(coded.encoded, body, count, dtype=dtype)
    if coded.coding == "lut":
        channel = np.zeros(count, np.int64) if channel is None else channel
        stride = coded.ancillary[_STRIDE_AT]
        return lut.decode(coded.encoded, body, count, bits=settings & 7, stride=stride, channel=channel, dtype=dtype)
    if dtype != "int8":
        raise InputError(
            f"A Huffman-coded constant of type {dtype}.",
            expected="int8, as this package writes it",
            fix="read the file from before it was coded",
        )
    width = 4 if settings & 1 else 2
    entries = np.frombuffer(body[: len(body) // width * width], f"<u{width}")
    table = code_table.CodeTable((settings >> 4) + 1, entries)
    if coded.coding == "pairs":
        return code_table.decode(coded.encoded, table, count // 2).view(np.int8)
    return code_table.decode(coded.encoded, table, count).astype(np.int8)


def of_parts(encoded: bytes, ancillary: bytes, *, pairs: bool = False) -> Coded:
    """A coded constant from what a file holds; `pairs` of int8 where the file says so elsewhere.

    Raises:
        InputError: a decoder or a version that is not known here.
    """
    known = len(ancillary) >= _HEADER and ancillary[0] in _NAMES and (not pairs or _NAMES[ancillary[0]] == "huffman")
    if not known or ancillary[_VERSION_AT] != 1 or ancillary[_DECODER_VERSION_AT] != 1:
        raise InputError(
            f"A constant is coded in a way that is not known here (its ancillary begins with {ancillary[:6].hex()!r}).",
            expected="Huffman codes, a bit mask or indices into tables, version 1",
            fix="read the file from before it was coded",
        )
    return Coded("pairs" if pairs else _NAMES[ancillary[0]], encoded, ancillary)


def _stream_size(counts: np.ndarray, lengths: np.ndarray) -> int:
    return max(4, _whole(math.ceil(int(counts @ lengths) / 8)))


def _header(coding: str) -> bytes:
    header = bytearray(_HEADER)
    header[0], header[_VERSION_AT], header[_DECODER_VERSION_AT] = _TYPES[coding], 1, 1
    return bytes(header)


def _whole(size: int) -> int:
    return -(-size // 4) * 4
