"""Which coding each of several constants takes, and which share a Huffman code.

A table costs bytes, and so does a code that fits less well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orbit_kd.tflite.coding import (
    PAIR_STRUCTURE,
    STRUCTURE,
    TABLE_STRUCTURE,
    Code,
    best_code,
    histogram,
    mask_size,
    pair_histogram,
)

Choice = tuple[str, Code | None]  # "huffman" or "pairs" with its code, "mask" or "none"
_ROUNDS = 3


def choose(values: Sequence[np.ndarray], codings: Sequence[str], *, pairs: bool = True) -> list[Choice]:
    """The coding of each int8 constant.

    Args:
        values: the constants.
        codings: what is asked for, "auto" for the smallest.
        pairs: whether "auto" may be "pairs", which take more of the arena.
    """
    counts = [histogram(one) for one in values]
    singly = _singly(counts, codings)
    if not pairs and "pairs" not in codings:
        return singly
    paired = _paired(values, counts, singly, codings)
    if any(coding == "pairs" for coding in codings):
        return paired
    return min((singly, paired), key=lambda choices: _total(values, counts, choices))


def coded_size_together(values: Sequence[np.ndarray]) -> int:
    """Bytes that int8 constants take in a coded file, tables shared: at most about the sum of their `coded_size`.

    Args:
        values: the constants, of any shapes.
    """
    return _total(values, [histogram(one) for one in values], choose(values, ["auto"] * len(values)))


def _total(values: Sequence[np.ndarray], counts: Sequence[np.ndarray], choices: Sequence[Choice]) -> int:
    tables = {id(code): code for _, code in choices if code is not None}.values()
    size = sum(TABLE_STRUCTURE + len(code.ancillary) for code in tables)
    for one, c, (coding, code) in zip(values, counts, choices, strict=True):
        if coding == "pairs" and code is not None:
            size += STRUCTURE - TABLE_STRUCTURE + PAIR_STRUCTURE + code.stream_size(pair_histogram(one))
        elif code is not None:
            size += STRUCTURE - TABLE_STRUCTURE + code.stream_size(c)
        else:
            size += one.size if coding == "none" else STRUCTURE + mask_size(c)
    return size


def _paired(
    values: Sequence[np.ndarray], counts: Sequence[np.ndarray], singly: Sequence[Choice], codings: Sequence[str]
) -> list[Choice]:
    """The choices where pairs share one code: those constants that gain by it, and those for which it is asked."""
    asked = {i for i, coding in enumerate(codings) if coding == "pairs" and values[i].size % 2 == 0}
    free = {i for i, (coding, _) in enumerate(singly) if coding == "huffman" and codings[i] == "auto"}
    members = asked | {i for i in free if values[i].size % 2 == 0}
    twos = {i: pair_histogram(values[i]) for i in members}
    for _ in range(_ROUNDS):
        if not members:
            return list(singly)
        code = best_code(np.sum([twos[i] for i in members], axis=0))
        gain = {i: _stream(counts[i], singly[i]) - code.stream_size(twos[i]) - PAIR_STRUCTURE for i in members - asked}
        losers = {i for i, saved in gain.items() if saved <= 0}
        if not losers:
            break
        members = members - losers
    if not members:
        return list(singly)
    code = best_code(np.sum([twos[i] for i in members], axis=0))
    rest = [i for i in range(len(values)) if i not in members]
    choices = dict(zip(rest, _singly([counts[i] for i in rest], [codings[i] for i in rest]), strict=True))
    return [("pairs", code) if i in members else choices[i] for i in range(len(values))]


def _stream(counts: np.ndarray, choice: Choice) -> int:
    return 0 if choice[1] is None else choice[1].stream_size(counts)


def _singly(counts: Sequence[np.ndarray], codings: Sequence[str]) -> list[Choice]:
    """The choices without pairs."""
    asked = [i for i, coding in enumerate(codings) if coding in ("auto", "huffman")]
    codes = dict(zip(asked, share_codes([counts[i] for i in asked]), strict=True))
    # where another coding is smaller than the codes alone, whoever pays for the table, the constant leaves its group
    stay = [i for i in asked if codings[i] == "huffman" or _stays(counts[i], codes[i], alone=_alone(i, codes))]
    codes = dict(zip(stay, share_codes([counts[i] for i in stay]), strict=True))
    return [("huffman", codes[i]) if i in codes else (_otherwise(counts[i], c), None) for i, c in enumerate(codings)]


def _alone(one: int, codes: dict[int, Code]) -> bool:
    return sum(code is codes[one] for code in codes.values()) == 1


def _stays(counts: np.ndarray, code: Code, *, alone: bool) -> bool:
    size = STRUCTURE - TABLE_STRUCTURE + code.stream_size(counts)
    size += TABLE_STRUCTURE + len(code.ancillary) if alone else 0
    return size < min(int(counts.sum()), STRUCTURE + mask_size(counts))


def _otherwise(counts: np.ndarray, asked: str) -> str:
    if asked != "auto":
        return asked
    return "mask" if STRUCTURE + mask_size(counts) < int(counts.sum()) else "none"


def share_codes(counts: Sequence[np.ndarray]) -> list[Code]:
    """A code for each constant, the same object where it is shared.

    From a code for each on, the two are merged that cost least together, until there is one for all; of all the
    partitions on this way the smallest is taken. Which two, says the entropy; how small, say the codes themselves.

    Args:
        counts: (256,) of each constant, as `coding.histogram` gives them.
    """
    if not len(counts):
        return []
    members = {i: [i] for i in range(len(counts))}
    sums = {i: np.asarray(c) for i, c in enumerate(counts)}
    codes = {i: best_code(c) for i, c in sums.items()}
    sizes = {i: _size(code, sums[i]) for i, code in codes.items()}
    estimates = {i: _estimate(c[None])[0] for i, c in sums.items()}
    gains = {i: _gains(i, sums, estimates) for i in sums}
    best = sum(sizes.values()), dict(members), dict(codes)
    while len(members) > 1:
        first, second = max(
            ((i, j) for i in members for j in members if i < j), key=lambda pair: gains[pair[0]][pair[1]]
        )
        for table in (codes, sizes, estimates):
            del table[second]
        members[first] = members[first] + members.pop(second)
        sums[first] = sums[first] + sums.pop(second)
        codes[first] = best_code(sums[first])
        sizes[first] = _size(codes[first], sums[first])
        estimates[first] = _estimate(sums[first][None])[0]
        gains[first] = _gains(first, sums, estimates)
        for i in members:
            gains[i][first] = gains[first][i]
        if sum(sizes.values()) < best[0]:
            best = sum(sizes.values()), dict(members), dict(codes)
    found = {i: best[2][first] for first, group in best[1].items() for i in group}
    return [found[i] for i in range(len(counts))]


def _size(code: Code, counts: np.ndarray) -> int:
    return TABLE_STRUCTURE + len(code.ancillary) + code.stream_size(counts)


def _estimate(counts: np.ndarray) -> np.ndarray:
    """About the bytes of a code and its table, of each row."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(counts > 0, counts, 1) / np.maximum(totals, 1)
    bits = -(counts * np.log2(shares)).sum(axis=1)
    return bits / 8 + 2 * (counts > 0).sum(axis=1) + TABLE_STRUCTURE


def _gains(one: int, sums: dict[int, np.ndarray], estimates: dict[int, float]) -> dict[int, float]:
    """About the bytes that are saved when a group is merged with each other one."""
    both = _estimate(np.stack(list(sums.values())) + sums[one])
    return {i: estimates[i] + estimates[one] - size for i, size in zip(sums, both, strict=True)}
