"""A guard beside an exported file: what finds flipped bits in it, and undoes them. The file stays as it is.

The format, all numbers little-endian:

    3 x u32      bytes of the table
    3 x          the table, and its check bytes (`secded`)
    payloads

    table        magic b"OKG1", u32 length of the file, u32 number of sections, the sections, u32 CRC-32 of all before
    section      u32 kind, u32 number of ranges, u32 offset of its payload in the guard, u32 CRC-32 of its bytes, then
                 u32 start, u32 size of each range: its bytes are those of the file there, in this order

A section of kind 1 has no payload: its bytes are checked. Kind 2 holds two further copies: of three, the majority of
each bit counts. Kind 3 holds a check byte for every eight bytes. Sections are undone in the order of the table, so that
a code cleans up after a majority. The table itself is read by majority and code.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.flight import secded
from orbit_kd.flight.regions import Span, spans
from orbit_kd.tflite.reader import read_bytes

CHECK, COPIES, SECDED = 1, 2, 3
LEVELS = ("checksums", "small", "constants", "file")
_MAGIC, _MOST = b"OKG1", 1 << 24
_HEAD, _SECTION, _RANGE = struct.Struct("<4sII"), struct.Struct("<4I"), struct.Struct("<2I")
_NEAR = 32  # bytes of structure that are guarded with what is small around them: a range of its own costs as much


@dataclasses.dataclass(frozen=True)
class Section:
    """Bytes of the file, and what guards them; the fields are those of the format."""

    kind: int
    ranges: tuple[tuple[int, int], ...]
    offset: int
    crc: int

    @property
    def places(self) -> np.ndarray:
        """Numbers of its bytes."""
        return np.concatenate([np.arange(start, start + size) for start, size in self.ranges])


@dataclasses.dataclass(frozen=True)
class Repair:
    """What `repair` found.

    Attributes:
        data: the file, mended as far as the guard can.
        whole: whether all that is guarded is as it was, by its checksums.
        mended: bytes that were changed.
        damaged: (start, size) of the ranges that are in sections still not as they were.
    """

    data: bytes
    whole: bool
    mended: int
    damaged: tuple[tuple[int, int], ...]


def harden(file: str | os.PathLike[str] | bytes, *, level: str = "constants") -> bytes:
    """The guard of an exported file, to be sent and stored beside it.

    Args:
        file: any .tflite file; it stays as it is, and runs on stock runtimes.
        level: what is guarded, and what it costs in bytes of that part:
            "checksums": a CRC-32 of every kernel, of all that is small, and of the rest: damage is found, not undone.
            "small": biases, scales and zero points have two more copies and a code (212.5%): one flip in them costs
            more than hundreds in weights.
            "constants": and weights have a code (12.5%).
            "file": and what holds the file together has two more copies and a code (212.5%).

    Returns:
        The guard's bytes.

    Raises:
        InputError: no .tflite file, or an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"level={level!r}.", expected=f"one of {', '.join(LEVELS)}", fix='"constants" is usual')
    data = read_bytes(file)
    rank = LEVELS.index(level)
    planned: list[tuple[int, tuple[tuple[int, int], ...]]] = []
    for name, ranges in _parts(spans(data)):
        strong = rank >= {"small": 1, "weights": 2, "structure": 3}[name]
        kinds = [CHECK] if not strong else [SECDED] if name == "weights" else [COPIES, SECDED]
        planned += [(kind, ranges) for kind in kinds]
    size = _HEAD.size + sum(_SECTION.size + _RANGE.size * len(ranges) for _, ranges in planned) + 4
    at = 12 + 3 * (size + -(-size // secded.WORD))
    sections, payloads, whole = [], [], np.frombuffer(data, np.uint8)
    for kind, ranges in planned:
        part = whole[Section(kind, ranges, 0, 0).places]
        stored = {CHECK: b"", COPIES: 2 * part.tobytes(), SECDED: secded.encode(part).tobytes()}[kind]
        sections.append(Section(kind, ranges, at, zlib.crc32(part.tobytes())))
        payloads.append(stored)
        at += len(stored)
    table = _HEAD.pack(_MAGIC, len(data), len(sections))
    for section in sections:
        table += _SECTION.pack(section.kind, len(section.ranges), section.offset, section.crc)
        table += b"".join(_RANGE.pack(*place) for place in section.ranges)
    table += struct.pack("<I", zlib.crc32(table))
    table += secded.encode(np.frombuffer(table, np.uint8)).tobytes()
    return 3 * struct.pack("<I", size) + 3 * table + b"".join(payloads)


def repair(file: str | os.PathLike[str] | bytes, guard: str | os.PathLike[str] | bytes) -> Repair:
    """Finds what is damaged in a file, and undoes it. The guard itself may be damaged too.

    Raises:
        InputError: the guard is of another file, is none, or is damaged beyond its own repair.
    """
    data, stored = read_bytes(file), read_bytes(guard)
    length, sections = table_of(stored)
    if len(data) != length:
        raise InputError(
            f"The file has {len(data):,} bytes, and the guard is of one with {length:,}.",
            expected="the file that the guard was made of",
            fix="make a guard of this file: okd.flight.guard.harden(file)",
        )
    out, before = np.frombuffer(data, np.uint8).copy(), np.frombuffer(data, np.uint8)
    for section in sections:
        part = out[section.places]
        if zlib.crc32(part.tobytes()) != section.crc:
            out[section.places] = _mended(part, section, stored)
    bad = [s for s in sections if zlib.crc32(out[s.places].tobytes()) != s.crc]
    left = tuple(dict.fromkeys(place for s in bad for place in s.ranges))
    return Repair(out.tobytes(), not left, int(np.count_nonzero(out != before)), left)


def table_of(stored: bytes) -> tuple[int, list[Section]]:
    """Length of the file, and the sections of a guard.

    Raises:
        InputError: no guard, or one whose table is damaged beyond repair.
    """
    if len(stored) < 12:
        raise _damaged("it ends too early")
    size = int(_majority(np.frombuffer(stored[:12], "<u4")))
    each = size + -(-size // secded.WORD)
    if not _HEAD.size + 4 < size < _MOST or len(stored) < 12 + 3 * each:
        raise _damaged("its table has no size that is possible")
    read = _majority(np.frombuffer(stored[12 : 12 + 3 * each], np.uint8).reshape(3, -1))
    table = secded.correct(read[:size], read[size:])[0].tobytes()
    magic, length, count = _HEAD.unpack_from(table)
    if magic != _MAGIC or zlib.crc32(table[:-4]) != struct.unpack("<I", table[-4:])[0]:
        raise _damaged("its table is not whole")
    sections, at = [], _HEAD.size
    for _ in range(count):
        if at + _SECTION.size > size - 4:
            raise _damaged("its table ends within a section")
        kind, ranges, offset, crc = _SECTION.unpack_from(table, at)
        at += _SECTION.size
        if at + ranges * _RANGE.size > size - 4:
            raise _damaged("its table ends within a section")
        places = tuple(_RANGE.unpack_from(table, at + i * _RANGE.size) for i in range(ranges))
        at += ranges * _RANGE.size
        if kind not in (CHECK, COPIES, SECDED) or not places or any(a + n > length or not n for a, n in places):
            raise _damaged("a section of it makes no sense")
        sections.append(Section(kind, places, offset, crc))
    return length, sections


def _mended(part: np.ndarray, section: Section, stored: bytes) -> np.ndarray:
    size = len(part)
    needed = {CHECK: 0, COPIES: 2 * size, SECDED: -(-size // secded.WORD)}[section.kind]
    found = np.frombuffer(stored[section.offset : section.offset + needed], np.uint8)
    if len(found) != needed:
        raise _damaged("it ends too early")
    if section.kind == COPIES:
        return _majority(np.stack([part, *found.reshape(2, -1)]))
    return secded.correct(part, found)[0] if section.kind == SECDED else part


def _majority(three: np.ndarray) -> np.ndarray:
    """Of each bit."""
    a, b, c = three
    return (a & b) | (a & c) | (b & c)


def _parts(found: Sequence[Span]) -> list[tuple[str, tuple[tuple[int, int], ...]]]:
    """What is guarded alike: all that is small, with what lies between; each kernel; the rest."""
    small, rest = list[tuple[int, int]](), list[tuple[int, int]]()
    for i, span in enumerate(found):
        between = 0 < i < len(found) - 1 and span.size <= _NEAR and "weights" not in (
            found[i - 1].region, found[i + 1].region)  # fmt: skip
        if span.region in ("biases", "scales") or (span.region == "structure" and between):
            _append(small, span)
        elif span.region == "structure":
            _append(rest, span)
    kernels = [("weights", ((span.start, span.size),)) for span in found if span.region == "weights"]
    named = [("small", tuple(small)), *kernels, ("structure", tuple(rest))]
    return [(name, ranges) for name, ranges in named if ranges]


def _append(ranges: list[tuple[int, int]], span: Span) -> None:
    """Another range, or more of the last one."""
    if ranges and sum(ranges[-1]) == span.start:
        ranges[-1] = ranges[-1][0], ranges[-1][1] + span.size
    else:
        ranges.append((span.start, span.size))


def _damaged(what: str) -> InputError:
    return InputError(
        f"Not a guard, or a damaged one: {what}.",
        expected="what harden wrote for this file",
        fix="send the guard again",
    )
