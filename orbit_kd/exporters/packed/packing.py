"""N:M weights in few bytes: the values, and bits that say where in its group each one stands.

A kernel (..., channels) is cut along its last axis into aligned groups of M channels; a short last group is filled up
with zeros. Each group gives exactly N values, in the order of their channels; where it has fewer non-zeros, zeros at
its first free places fill it up. UHP, which keeps half of each group of M, is N = M / 2.

The places of a group are stored in one of two ways, `index=`:

- "positions": N numbers of ceil(log2 M) bits, ascending. 2:4: 2 x 2 bits; 4 weights in 2.5 bytes, 0.625x of int8.
- "codes": one number of ceil(log2 C(M, N)) bits, the rank of the set of places p0 < p1 < ... in colexicographic order,
  sum of C(p_i, i + 1) (the combinatorial number system; Knuth, TAOCP 7.2.1.3). 2:4: 3 bits, 19 bits a group, 0.594x.

Bit streams are little-endian: field i of w bits takes the bits i*w ... i*w + w - 1, its lowest bit first, and bit b of
the stream is bit b % 8 (of weight 2**(b % 8)) of byte b // 8. Zero bits fill up the last byte.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.support.n_of_m import grouped, ungrouped

MAX_M = 64  # the largest rank, C(64, 32), still fits 64 bits
INDEX_KINDS = ("positions", "codes")


@dataclasses.dataclass(frozen=True, eq=False)
class PackedKernel:
    """A packed kernel.

    Attributes:
        shape: of the kernel, channels last.
        n, m: the pattern: at most n non-zeros in m channels.
        index: "positions" or "codes".
        values: int8 (groups, n), the groups in C order of the kernel, each in ascending channels.
        fields: uint64 (groups, n) places in the group, or (groups, 1) codes.
    """

    shape: tuple[int, ...]
    n: int
    m: int
    index: str
    values: np.ndarray
    fields: np.ndarray

    @property
    def field_bits(self) -> int:
        """Width of one field of `fields`."""
        return field_bits(self.n, self.m, index=self.index)

    @property
    def group_bits(self) -> int:
        """Index bits of a group."""
        return self.field_bits * self.fields.shape[1]

    @property
    def value_bytes(self) -> bytes:
        """The values as they are stored."""
        return self.values.tobytes()

    @property
    def index_bytes(self) -> bytes:
        """The fields as they are stored."""
        return pack_bits(self.fields.ravel(), self.field_bits)

    @classmethod
    def of_bytes(
        cls, values: bytes, indices: bytes, *, shape: tuple[int, ...], n: int, m: int, index: str = "positions"
    ) -> PackedKernel:
        """The packed kernel of what `value_bytes` and `index_bytes` gave.

        Raises:
            InputError: too few or too many bytes for that shape, or a pattern that is none.
        """
        width = field_bits(n, m, index=index)
        groups, per_group = math.prod(shape[:-1]) * -(-shape[-1] // m), n if index == "positions" else 1
        expected = groups * n, (groups * per_group * width + 7) // 8
        if (len(values), len(indices)) != expected:
            raise InputError(
                f"{len(values)} bytes of values and {len(indices)} of indices for a kernel of shape {shape}.",
                expected=f"{expected[0]} and {expected[1]} bytes at {n}:{m} with index={index!r}",
                fix="take offsets, shape and pattern from the manifest that was written with the file",
            )
        fields = unpack_bits(indices, width=width, count=groups * per_group).reshape(groups, per_group)
        return cls(tuple(shape), n, m, index, np.frombuffer(values, np.int8).reshape(groups, n), fields)


def field_bits(n: int, m: int, *, index: str = "positions") -> int:
    """Bits of one field: of a place in the group, or of a code.

    Raises:
        InputError: no pattern, or an unknown kind of index.
    """
    if not 1 <= n <= m <= MAX_M:
        raise InputError(f"Pattern {n}:{m}.", expected=f"1 <= N <= M <= {MAX_M}", fix="use for example 2:4 or 8:16")
    if index not in INDEX_KINDS:
        raise InputError(f"index={index!r}.", expected='"positions" or "codes"', fix="codes take fewer bits")
    return (m - 1).bit_length() if index == "positions" else (math.comb(m, n) - 1).bit_length()


def pack(weights: np.ndarray, *, n: int, m: int, index: str = "positions") -> PackedKernel:
    """Packs a kernel; `unpack` gives back exactly the same.

    Args:
        weights: int8 (..., channels).
        n: non-zeros in a group, at most.
        m: channels of a group.
        index: see the module.

    Raises:
        InputError: another type, no channels, or a group with more than n non-zeros.
    """
    field_bits(n, m, index=index)
    if weights.dtype != np.int8 or weights.ndim < 1:
        raise InputError(f"Weights of type {weights.dtype}.", expected="int8", fix="quantize first: target tflite_int8")
    groups = grouped(weights, m).reshape(-1, m)
    nonzero = groups != 0
    if (bad := np.flatnonzero(nonzero.sum(1) > n)).size:
        raise InputError(
            f"{bad.size} of {len(groups)} groups have more than {n} non-zeros in {m} channels, the first is group "
            f"{bad[0]}: {groups[bad[0]].tolist()}.",
            expected=f"a kernel that keeps {n}:{m}",
            fix=f'sparsify(model, "{n}:{m}") and retrain before the export, or store it dense',
        )
    # a stable sort puts the non-zeros first, then the free places, both in order; the n first are taken, ascending
    places = np.sort(np.argsort(~nonzero, axis=1, kind="stable")[:, :n], axis=1)
    values = np.take_along_axis(groups, places, axis=1)
    fields = places.astype(np.uint64) if index == "positions" else _ranks(places, m)[:, None]
    return PackedKernel(tuple(weights.shape), n, m, index, values, fields)


def unpack(packed: PackedKernel) -> np.ndarray:
    """The kernel, int8 (..., channels)."""
    p = packed
    limit = p.m if p.index == "positions" else math.comb(p.m, p.n)
    if p.fields.size and p.fields.max() >= limit:
        raise InputError(
            f"The index {p.fields.max()} in {p.index} of {p.n}:{p.m}.",
            expected=f"below {limit}: bits that `pack` wrote",
            fix="check offsets and pattern against the manifest",
        )
    places = p.fields.astype(np.int64) if p.index == "positions" else _places(p.fields[:, 0], p.n, p.m)
    groups = np.zeros((len(p.values), p.m), np.int8)
    np.put_along_axis(groups, places, p.values, axis=1)
    return ungrouped(groups.reshape(*p.shape[:-1], -(-p.shape[-1] // p.m), p.m), p.shape[-1])


def pack_bits(fields: np.ndarray, width: int) -> bytes:
    """Fields of `width` bits as a little-endian bit stream."""
    shifts = np.arange(width, dtype=np.uint64)
    bits = (fields.astype(np.uint64)[:, None] >> shifts) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack_bits(data: bytes, *, width: int, count: int) -> np.ndarray:
    """The inverse of `pack_bits`, uint64 (count,)."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: width * count].reshape(count, width)
    return (bits.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)


def _binomials(n: int, m: int) -> np.ndarray:
    """C(place, i) as uint64, [place, i] for places below m and i up to n."""
    return np.array([[math.comb(p, i) for i in range(n + 1)] for p in range(m)], np.uint64)


def _ranks(places: np.ndarray, m: int) -> np.ndarray:
    """Colexicographic rank of each row of ascending places."""
    n = places.shape[1]
    return _binomials(n, m)[places, np.arange(1, n + 1)].sum(axis=1, dtype=np.uint64)


def _places(ranks: np.ndarray, n: int, m: int) -> np.ndarray:
    """The inverse of `_ranks`: from the last place down, the largest one whose binomial still fits."""
    table, left = _binomials(n, m), ranks.astype(np.uint64)
    places = np.zeros((len(ranks), n), np.int64)
    for i in range(n, 0, -1):
        places[:, i - 1] = np.searchsorted(table[:, i], left, side="right") - 1
        left = left - table[places[:, i - 1], i]
    return places
