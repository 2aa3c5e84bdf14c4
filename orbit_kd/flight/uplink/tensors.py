"""An update that knows the tensors: the new .tflite file as its structure and, tensor by tensor, what changed.

The structure is the file with zeros for its constants and scales; it is packed with the old structure as dictionary and
still parses, so that the receiver learns from it where each tensor stands. Then scales and constants follow. Each is
nothing (as predicted), a difference to its prediction, or the values alone, whichever takes fewer bits; the entropy
coder is `entropy.py`.

The prediction is the tensor of the same name and type in the old file. Quantized values are brought to the new scales
first, so that a weight that stays what it is in real numbers is predicted right. Where shapes differ (classes were
added) what both have is taken over, and the rest is predicted as 0. The scales of a bias are predicted by those they
are the product of, its input's and its kernel's.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from orbit_kd.flight.uplink.entropy import PACES, Decoder, Encoder, bit_lengths
from orbit_kd.flight.uplink.methods import Method, methods
from orbit_kd.flight.uplink.whole import pack_zstd, unpack_zstd
from orbit_kd.tflite.places import Place, bias_factors, places, without

_AS_PREDICTED, _DIFFERENCE, _ALONE, _PLAIN = range(4)
_DOUBTS = 3  # rounded up, hardly, or down: three models for the differences of rescaled values
_Known = dict[tuple[int, str, str], tuple[Place, np.ndarray]]


def pack(old: bytes, new: bytes) -> bytes:
    """The structure and the tensors of `new`, for who has `old`.

    Raises:
        InputError: one of them is no .tflite file.
    """
    before, after = _Tensors(old), _Tensors(new)
    structure = pack_zstd(after.structure, dictionary=before.structure)
    streams = []
    for number, pace in enumerate(PACES):
        encoder, scales = Encoder(pace), _Known()
        for place in after.places:
            values = _values(new, place)
            _encode(encoder, values, expected(place, before, after, scales), use=place.kind)
            _remember(scales, place, values)
        streams.append((encoder.finish(), number))
    stream, number = min(streams, key=lambda found: (len(found[0]), found[1]))
    return struct.pack("<BI", number, len(structure)) + structure + stream


def unpack(old: bytes, payload: bytes, size: int) -> bytes:
    """The file that `pack` was given as `new`."""
    (number, length), payload = struct.unpack_from("<BI", payload), payload[5:]
    before = _Tensors(old)
    new = bytearray(unpack_zstd(payload[:length], size, dictionary=before.structure))
    after = _Tensors(bytes(new))
    decoder, scales = Decoder(payload[length:], PACES[number]), _Known()
    for place in after.places:
        values = _decode(decoder, expected(place, before, after, scales), use=place.kind)
        new[place.start : place.end] = values.tobytes()
        _remember(scales, place, values)
    return bytes(new)


class _Tensors:
    """A file, or its structure: where its tensors stand, and what they hold.

    Attributes:
        structure: the file without constants and scales.
        places: each range of bytes once, in the order of coding: scales, those of biases last, then constants.
        values: (graph, name, kind) -> place and array.
        factors: (graph, name) of a bias -> names of the tensors the product of whose scales is the bias's.
    """

    def __init__(self, data: bytes) -> None:
        found = places(data)
        self.structure = without(data, found)
        self.values = {(place.graph, place.name, place.kind): (place, _values(data, place)) for place in found}
        self.factors = bias_factors(self.structure)
        once = {(place.kind, place.start, place.bytes): place for place in reversed(found)}

        def order(place: Place) -> tuple[bool, bool, int, int]:
            bias = (place.graph, place.name) in self.factors
            return place.kind == "constant", place.kind == "scale" and bias, place.graph, place.tensor

        self.places = sorted(once.values(), key=order)


@dataclasses.dataclass(frozen=True, eq=False)
class Expected:
    """What is expected in a place of the new file.

    Attributes:
        values: an array of its type and shape.
        doubt: int (n,), how far each value was rounded, in `_DOUBTS` classes: those of a class have a model together.
    """

    values: np.ndarray
    doubt: np.ndarray


def expected(place: Place, before: _Tensors, after: _Tensors, scales: _Known) -> Expected:
    """The prediction for a place of the new file.

    Args:
        place: of the new file.
        before: the old file.
        after: the new one, or its structure; its values are not looked at.
        scales: those of the new file that are known already.
    """
    count = place.bytes // place.numpy_dtype.itemsize
    shape = place.shape if count == np.prod(place.shape, dtype=np.int64) else (count,)
    key, scale = (place.graph, place.name, place.kind), (place.graph, place.name, "scale")
    if place.kind == "scale" and (place.graph, place.name) in after.factors:
        parts = [scales.get((place.graph, name, "scale")) for name in after.factors[place.graph, place.name]]
        if all(part is not None and part[1].size in (1, count) for part in parts):
            with np.errstate(all="ignore"):  # scales of a damaged update
                product = parts[0][1] * parts[1][1]  # type: ignore[index]
            return _exact(np.broadcast_to(product, shape).astype("<f4"))
    if key not in before.values or before.values[key][0].numpy_dtype != place.numpy_dtype:
        return _exact(np.zeros(shape, place.numpy_dtype))
    values = _fitted(before.values[key][1], shape)
    if place.kind == "scale" or values.dtype.kind != "i" or scale not in scales or scale not in before.values:
        return _exact(values)
    return _rescaled(values, before.values[scale][1], scales[scale][1], axis=place.axis)


def _exact(values: np.ndarray) -> Expected:
    return Expected(values, np.full(values.size, _DOUBTS // 2))


def _remember(scales: _Known, place: Place, values: np.ndarray) -> None:
    if place.kind == "scale":
        scales[place.graph, place.name, place.kind] = (place, values)


def _values(data: bytes, place: Place) -> np.ndarray:
    values = np.frombuffer(data, place.numpy_dtype, offset=place.start, count=place.bytes // place.numpy_dtype.itemsize)
    return values.reshape(place.shape) if values.size == np.prod(place.shape, dtype=np.int64) else values


def _fitted(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of another shape with the values where both have a place, zeros elsewhere."""
    if values.shape == shape or values.ndim != len(shape):
        return values if values.shape == shape else np.zeros(shape, values.dtype)
    fitted = np.zeros(shape, values.dtype)
    both = tuple(slice(min(a, b)) for a, b in zip(values.shape, shape, strict=True))
    fitted[both] = values[both]
    return fitted


def _rescaled(values: np.ndarray, old: np.ndarray, new: np.ndarray, *, axis: int) -> Expected:
    """Integers of the old scales as those of the new scales that are nearest to the same real numbers."""
    old = _fitted(old, new.shape)
    if np.array_equal(old, new) or (len(new) > 1 and (axis >= values.ndim or len(new) != values.shape[axis])):
        return _exact(values)
    low, high = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
    if values.itemsize == 8:
        low, high = low // 2, high // 2  # the very end is no float64, and would be rounded over the edge
    with np.errstate(all="ignore"):  # scales of 0, or of a damaged update
        factor = np.nan_to_num(old.astype(np.float64) / new.astype(np.float64), nan=1.0)
        factor = factor.reshape([-1 if i == axis else 1 for i in range(values.ndim)]) if len(new) > 1 else factor[0]
        real = np.nan_to_num(values * factor)
        nearest = np.rint(real)
        doubt = np.clip(np.rint((real - nearest) * _DOUBTS) + _DOUBTS // 2, 0, _DOUBTS - 1).astype(np.int64)
    return Expected(np.clip(nearest, low, high).astype(values.dtype), doubt.reshape(-1))


def _encode(encoder: Encoder, values: np.ndarray, prediction: Expected, *, use: str) -> None:
    difference, alone = _differences(values, prediction.values), _differences(values, np.zeros_like(values))
    costs = {_DIFFERENCE: _bits(difference), _ALONE: _bits(alone), _PLAIN: 8 * values.nbytes}
    choice = min(costs, key=lambda c: costs[c]) if difference.any() else _AS_PREDICTED
    encoder.choice(choice, 4, use=use)
    if choice == _PLAIN:
        encoder.plain(values.tobytes())
    elif choice == _DIFFERENCE and values.itemsize == 1:
        for part in np.unique(prediction.doubt):
            encoder.small(difference[prediction.doubt == part], use=f"{use}, difference {part}", near_zero=True)
    elif choice == _DIFFERENCE:
        encoder.wide(_zigzag(difference), use=f"{use}, difference")
    elif choice == _ALONE and values.itemsize == 1:
        encoder.small(alone, use=f"{use}, alone")
    elif choice == _ALONE:
        encoder.wide(_zigzag(alone), use=f"{use}, alone")


def _decode(decoder: Decoder, prediction: Expected, *, use: str) -> np.ndarray:
    base, choice = prediction.values, decoder.choice(4, use=use)
    if choice == _AS_PREDICTED:
        return base
    if choice == _PLAIN:
        return np.frombuffer(decoder.plain(base.nbytes), base.dtype).reshape(base.shape)
    if choice == _DIFFERENCE and base.itemsize == 1:
        difference = np.zeros(base.size, np.int64)
        for part in np.unique(prediction.doubt):
            here = prediction.doubt == part
            difference[here] = decoder.small(
                int(np.count_nonzero(here)), use=f"{use}, difference {part}", near_zero=True
            )
    elif choice == _DIFFERENCE:
        difference = _signed(decoder.wide(base.size, use=f"{use}, difference"))
    else:
        base, use = np.zeros_like(base), f"{use}, alone"
        difference = (
            decoder.small(base.size, use=use) if base.itemsize == 1 else _signed(decoder.wide(base.size, use=use))
        )
    return _from_ordered(_ordered_bits(base) + difference.astype(np.uint64), base.dtype).reshape(base.shape)


def _differences(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """values - base, int64 (n,), modulo the width of the type: of floats, how many other floats lie between."""
    bits = np.uint64(8 * values.itemsize)
    difference = (_ordered_bits(values) - _ordered_bits(base)) << (np.uint64(64) - bits)
    return difference.view(np.int64) >> (np.int64(64) - bits.astype(np.int64))


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """uint64 (n,) in the order of the numbers: those of floats with the sign turned round."""
    kind = f"<u{values.itemsize}"
    bits = np.ascontiguousarray(values).reshape(-1).view(kind)
    if values.dtype.kind == "f":
        sign = np.array(1 << (8 * values.itemsize - 1), kind)
        bits = np.where(bits & sign, ~bits, bits | sign)
    return bits.astype(np.uint64)


def _from_ordered(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    kind = f"<u{dtype.itemsize}"
    bits = (bits & np.uint64((1 << 8 * dtype.itemsize) - 1)).astype(kind)
    if dtype.kind == "f":
        sign = np.array(1 << (8 * dtype.itemsize - 1), kind)
        bits = np.where(bits & sign, bits ^ sign, ~bits)
    return bits.astype(kind).view(dtype)


def _zigzag(values: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: int64 -> uint64."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _signed(values: np.ndarray) -> np.ndarray:
    half = (values >> np.uint64(1)).view(np.int64)
    return half ^ -(values & np.uint64(1)).astype(np.int64)


def _bits(values: np.ndarray) -> float:
    """About how many bits integers take: their entropy and what learning it costs; of wide ones their lengths."""
    if np.all((values >= -128) & (values < 128)):
        counts = np.unique(values, return_counts=True)[1]
        shares = counts / len(values)
        return float(-len(values) * np.sum(shares * np.log2(shares)) + 0.5 * len(counts) * np.log2(len(values) + 1))
    return float(bit_lengths(_zigzag(values)).sum())


methods.register("tensors")(Method(pack, unpack, ("constriction", "zstandard")))
