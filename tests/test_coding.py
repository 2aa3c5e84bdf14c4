"""Constants in TensorFlow Lite Micro's codings: code lengths, tables, bits and masks, in NumPy."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.errors import InputError
from orbit_kd.tflite import code_table, coding, huffman

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=256).filter(any)


def padded(counts: list[int]) -> np.ndarray:
    return np.pad(np.array(counts), (0, 256 - len(counts)))


def huffman_bits(counts: np.ndarray) -> int:
    """Bits of the unlimited optimum, by the plain algorithm."""
    heap, bits = [int(c) for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, both)
        bits += both
    return bits


@given(COUNTS, st.integers(1, 16))
@settings(max_examples=150, deadline=None)
def test_codes_are_complete_and_keep_their_limit(counts, limit):
    """Kraft's sum is exactly 1 for two symbols or more, and no code is longer than the limit."""
    counts = np.array(counts)
    symbols = int((counts > 0).sum())
    packages = huffman.PackageMerge(counts, longest=16)
    if symbols > 1 << limit:
        with pytest.raises(ValueError, match="do not fit"):
            packages.lengths(limit)
        return
    lengths = packages.lengths(limit)
    assert lengths.max() <= limit
    assert not lengths[counts == 0].any()
    if symbols > 1:
        assert (lengths[counts > 0] > 0).all()
        assert sum(2.0 ** -int(n) for n in lengths if n) == 1


@given(COUNTS)
@settings(max_examples=100, deadline=None)
def test_codes_without_a_limit_that_binds_are_optimal(counts):
    """As many bits as Huffman's own algorithm takes; no fewer than the entropy, less than a bit a value more."""
    counts = np.array(counts)
    bits = int(counts @ huffman.PackageMerge(counts, longest=40).lengths(40))
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum() * counts.sum()
    assert bits == huffman_bits(counts)
    if len(p) > 1:
        assert entropy - 1e-6 <= bits < entropy + counts.sum()


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(3, 4))
@settings(max_examples=40, deadline=None)
def test_limited_codes_are_the_best_there_are(counts, limit):
    """No other lengths within the limit that Kraft allows take fewer bits."""
    counts = np.array(counts)
    best = min(
        sum(c * n for c, n in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, limit + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert int(counts @ huffman.PackageMerge(counts, longest=16).lengths(limit)) == best


def test_a_limit_of_seven_fits_a_single_table():
    """127 levels of very unequal counts, in codes of at most seven bits."""
    counts = (2.0 ** np.linspace(0, 30, 127)).astype(np.int64)
    lengths = huffman.PackageMerge(counts, longest=7).lengths(7)
    assert lengths.max() == 7
    assert sum(2.0 ** -int(n) for n in lengths) == 1


@given(COUNTS, st.integers(8, 16))
@settings(max_examples=60, deadline=None)
def test_tables_hold_every_code_once_and_are_small(counts, limit):
    """As many entries as planned, at most those of a table of one bit a fork, and each code leads to its symbol."""
    lengths = huffman.PackageMerge(padded(counts), longest=16).lengths(limit)
    symbols = np.flatnonzero(padded(counts))
    table = code_table.build(lengths, only=int(symbols[0]))
    assert len(table.entries) == code_table.entries_needed(lengths) <= max(2, 2 * len(symbols) - 2)
    stream = huffman.encode(symbols.astype(np.uint8), lengths)
    assert len(stream) % 4 == 0
    assert (code_table.decode(stream, table, len(symbols)).view(np.uint8) == symbols).all()


def test_equal_counts_make_one_table():
    """16 symbols of 4 bits: 16 entries, not 30."""
    lengths = huffman.PackageMerge(padded([7] * 16), longest=16).lengths(16)
    assert code_table.build(lengths).bits == 4
    assert code_table.entries_needed(lengths) == 16


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.sampled_from([1, 2, 3, 15, 31, 255]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_decoding_gives_what_was_encoded(seed, size, levels, zeros):
    """Any int8 values, in both codings; sizes are those that were promised."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(size) < zeros, 0, rng.integers(-(levels // 2), levels // 2 + 1, size)).astype(np.int8)
    for name in ("huffman", "mask"):
        coded = coding.encode(values, coding=name)
        assert coded is not None
        again = coding.of_parts(coded.encoded, coded.ancillary)
        assert (coding.decode(again, size) == values).all()
    best = coding.encode(values)
    alone = coding.coded_size_of(coding.histogram(values))
    assert coding.coded_size(values) <= alone == (size if best is None else best.size + coding.STRUCTURE) <= size
    even = values[: size // 2 * 2]
    pairs = coding.encode(even, coding="pairs")
    again = coding.of_parts(pairs.encoded, pairs.ancillary, pairs=True)
    assert (coding.decode(again, even.size) == even).all()


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "int64"])
def test_a_mask_holds_other_types(dtype):
    """Zeros of biases and the like."""
    values = np.array([[0, 3, 0, -7], [1, 0, 0, 0]], dtype)
    coded = coding.encode(values, coding="mask")
    assert coded.encoded == bytes([0b01011000])
    assert (coding.decode(coded, 8, dtype=dtype) == values.ravel()).all()


def test_values_of_many_chunks_are_decoded():
    """A stream longer than what is looked up at a time, with codes across the border."""
    values = np.random.default_rng(0).integers(-40, 41, 200_000).astype(np.int8)
    coded = coding.encode(values, coding="huffman")
    assert (coding.decode(coded, values.size) == values).all()


def test_a_code_may_be_shared():
    """Two constants, one code of both: the same ancillary, each its own stream."""
    a, b = np.array([1, 1, 2, 0] * 50, np.int8), np.array([-5, 0, 0, 2] * 40, np.int8)
    code = coding.best_code(coding.histogram(a) + coding.histogram(b))
    first, second = (coding.encode(v, coding="huffman", code=code) for v in (a, b))
    assert first.ancillary == second.ancillary
    assert len(first.encoded) == code.stream_size(coding.histogram(a))
    for coded, values in ((first, a), (second, b)):
        assert (coding.decode(coded, values.size) == values).all()


def test_random_values_stay_as_they_are():
    """Noise of 8 bits has nothing to save."""
    values = np.random.default_rng(0).integers(-128, 128, 4000).astype(np.int8)
    assert coding.encode(values) is None
    assert coding.coded_size(values) == values.size


def test_what_cannot_be_coded_is_refused():
    """Another type for Huffman codes, and a name that is none."""
    with pytest.raises(InputError, match="int32 cannot be Huffman-coded"):
        coding.encode(np.zeros(4, np.int32), coding="huffman")
    with pytest.raises(InputError, match="even number"):
        coding.encode(np.zeros(5, np.int8), coding="pairs")
    with pytest.raises(InputError, match="Unknown coding 'zip'"):
        coding.encode(np.zeros(4, np.int8), coding="zip")


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_damage_is_told_or_decodes_to_something(seed):
    """Bytes changed or cut off: the right number of values, or an InputError; never another exception."""
    rng = np.random.default_rng(seed)
    values = (rng.integers(-7, 8, 300) * (rng.random(300) < 0.6)).astype(np.int8)
    for name in ("huffman", "mask"):
        coded = coding.encode(values, coding=name)
        encoded, ancillary = bytearray(coded.encoded), bytearray(coded.ancillary)
        for part in (encoded, ancillary):
            part[rng.integers(len(part))] = rng.integers(256)
            if rng.random() < 0.3:
                del part[rng.integers(len(part)) :]
        try:
            assert coding.decode(coding.of_parts(bytes(encoded), bytes(ancillary)), 300).size == 300
        except InputError as error:
            assert error.fix


def test_pairs_are_smaller_where_zeros_are_many():
    """A code takes at least a bit: of one value singly, of two in pairs."""
    rng = np.random.default_rng(0)
    values = (rng.integers(-3, 4, 20_000) * (rng.random(20_000) < 0.1)).astype(np.int8)
    singly, pairs = (coding.encode(values, coding=name) for name in ("huffman", "pairs"))
    assert len(singly.encoded) > values.size / 8 > len(pairs.encoded)
    assert coding.coded_size(values) == pairs.size + coding.STRUCTURE + coding.PAIR_STRUCTURE
