"""Int8 kernels of convolutions in the formats that the C kernels read, and which of them a layer is to take.

A format is a value, filed in `formats`: whether it holds a kernel, its bytes, and the scratch its C function needs. The
layout of each is written in its C file (`kernels/conv_*.c`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99.n_of_m import fits_nm, nm_cost, pack_nm
from orbit_kd.exporters.c99.sums import SUM_LIMIT, as_array, flush, int8_bytes, interval_of, place_sums, whole_sums
from orbit_kd.registry import Registry

PREFERENCES = ("speed", "vectors", "bytes")  # of `choose`
LANES = 8  # ORBIT_LANES: output pixels that a kernel computes at once
NARROW = 3  # ORBIT_NARROW: rows with fewer output pixels are computed pixel by pixel
# Requantization on a Cortex-M4 takes twice a sum, and the bias may be half of it.
_TOTAL_LIMIT = 2**29 // 128
_STEP_LIMIT = 2**15  # bytes from a channel to the next in the scratch, an operand of 16 bits


@dataclasses.dataclass(frozen=True)
class Format:
    """How a kernel's weights lie in flash, and the C function that reads them.

    Attributes:
        name: of the registry.
        function: the C function.
        pack: int8 (out, kernel_h, kernel_w, in) -> int8 (bytes,), as C gets them.
        fits: whether `pack` takes a kernel.
        channels, channel_bytes: of the scratch, so many bytes a column for so many input channels.
        source: the file in `kernels/` that holds the function; what it includes is there, too.
        cost: (kernel) -> a Cortex-M4's instructions for a dense multiply-accumulate, as `benchmarks/mcu_kernels.py`
            measured them on large layers; what "speed" means.
        vector_cost: those of a Cortex-M55, for a format that is for vectors alone; else None.
        reordered: columns of a row stand in the order of the stride's remainders.
    """

    name: str
    function: str
    source: str
    pack: Callable[[np.ndarray], np.ndarray]
    fits: Callable[[np.ndarray], bool]
    channels: int
    channel_bytes: int
    cost: Callable[[np.ndarray], float]
    vector_cost: float | None = None
    reordered: bool = True

    def scratch_bytes(self, fields: Mapping[str, Any]) -> int:
        """Bytes of scratch that the C function needs, on the core that needs most.

        Args:
            fields: of `orbit_conv`: in_c, out_w, kernel_h, kernel_w, stride_w, dilation_w.

        Raises:
            InputError: rows too wide for the kernels.
        """
        if not self.reordered:
            fields = {**fields, "out_w": (fields["out_w"] - 1) * fields["stride_w"] + 1, "stride_w": 1}
        columns = _columns(fields)
        if columns * 4 >= _STEP_LIMIT:
            raise InputError(
                f"A convolution's rows are {columns} columns wide with their padding.",
                expected=f"fewer than {_STEP_LIMIT // 4}: distances in the kernels have 16 bits",
                fix="cut the images into tiles, and run the network on each",
            )
        if fields["out_w"] < NARROW:
            row = fields["in_c"] * columns
        else:
            row = -(-fields["in_c"] // self.channels) * self.channel_bytes * columns
        return int(fields["kernel_h"] * (16 * fields["kernel_w"] + 16 + -(-row // 8) * 8))


def _columns(fields: Mapping[str, Any]) -> int:
    """Columns of a row in the scratch: `orbit_rows_of`."""
    reach, stride = (fields["kernel_w"] - 1) * fields["dilation_w"], fields["stride_w"]
    lanes = fields["out_w"] if fields["out_w"] < NARROW else -(-fields["out_w"] // LANES) * LANES
    return int((lanes + reach // stride) * min(stride, reach + 1))


formats: Registry[Format] = Registry("weight format")


def fitting(weights: np.ndarray) -> list[str]:
    """Names of the formats that hold a kernel.

    Raises:
        InputError: no int8 kernel (out, kernel_h, kernel_w, in), or one whose sums no format holds.
    """
    if weights.dtype != np.int8 or weights.ndim != 4 or not weights.size:
        raise InputError(
            f"A kernel of type {weights.dtype} and shape {weights.shape}.",
            expected="int8 (output channels, kernel height, kernel width, input channels)",
            fix="quantize first: target tflite_int8; a dense layer's kernel has height and width 1",
        )
    names = [str(name) for name in formats if formats.get(name).fits(weights)]
    if not names or whole_sums(weights) >= _TOTAL_LIMIT:
        raise InputError(
            "The sums of a layer may leave the 23 bits that the kernels keep them in between two steps.",
            expected=f"weights whose magnitudes add up to less than {_TOTAL_LIMIT} in an output channel, and to less "
            f"than {SUM_LIMIT} in an input channel of it",
            fix="use a smaller kernel (two of 3x3 for one of 5x5), or fewer input channels",
        )
    return names


def choose(weights: np.ndarray, *, prefer: str = "speed") -> Format:
    """The format for a layer: the fastest, or the smallest; of equals the other one decides.

    Args:
        weights: int8 (out, kernel_h, kernel_w, in).
        prefer: "speed" (fewest instructions on a Cortex-M4), "vectors" (on a Cortex-M55) or "bytes" (of flash).

    Raises:
        InputError: another `prefer`, or a kernel that no format holds.
    """
    if prefer not in PREFERENCES:
        raise InputError(f"prefer={prefer!r}.", expected=f"one of: {', '.join(PREFERENCES)}", fix="leave it out: speed")
    found = [formats.get(name) for name in fitting(weights)]
    found = [form for form in found if form.vector_cost is None or prefer == "vectors"]

    def rank(form: Format) -> tuple[float, float]:
        cost = form.cost(weights) if form.vector_cost is None else form.vector_cost
        size = form.pack(weights).nbytes
        return (size, cost) if prefer == "bytes" else (cost, size)

    return min(found, key=rank)


# ---- dense --------------------------------------------------------------------------------------------------------


def _all_channels(weights: np.ndarray) -> list[np.ndarray]:
    return [np.arange(weights.shape[3])] * len(weights)


def _pack_dense(weights: np.ndarray) -> np.ndarray:
    return as_array(
        bytes([interval_of(weights, _all_channels(weights)), 0, 0, 0]) + weights.transpose(0, 3, 1, 2).tobytes()
    )


# ---- csr ----------------------------------------------------------------------------------------------------------


def _distances(places: list[int], limit: int) -> list[tuple[int, int]]:
    """(place or -1, distance from the last) with steps of at most `limit`; -1 stands for a step to nothing."""
    steps, at = [], 0
    for place in places:
        while place - at > limit:
            steps.append((-1, limit))
            at += limit
        steps.append((place, place - at))
        at = place
    return steps


def _pack_csr(weights: np.ndarray) -> np.ndarray:
    rows = weights.reshape(-1, weights.shape[3])
    entries = [
        [(step, 0 if place < 0 else int(row[place])) for place, step in _distances(np.flatnonzero(row).tolist(), 255)]
        for row in rows
    ]
    count_bytes = 1 if max(map(len, entries)) < 256 else 2
    data = bytearray([count_bytes, flush(weights), 0, 0])
    for row_entries in entries:
        data += len(row_entries).to_bytes(count_bytes, "little")
        data += int8_bytes([v for entry in row_entries for v in entry])
    return as_array(data)


# ---- shared -------------------------------------------------------------------------------------------------------


def _used_channels(weights: np.ndarray) -> list[np.ndarray]:
    """Input channels of each output channel's entries; a step beyond 255 takes a channel on the way."""
    used = []
    for kernel in weights:
        steps = _distances(np.flatnonzero(kernel.any((0, 1))).tolist(), 255)
        used.append(np.cumsum([step for _, step in steps], dtype=np.int64))
    return used


def _pack_shared(weights: np.ndarray) -> np.ndarray:
    used = _used_channels(weights)
    data = bytearray([interval_of(weights, used), 0, 0, 0])
    for kernel, channels in zip(weights, used, strict=True):
        data += len(channels).to_bytes(2, "little")
        for channel, step in zip(channels, np.diff(channels, prepend=0), strict=True):
            data += bytes([int(step)]) + kernel[:, :, channel].tobytes()
    return as_array(data)


# ---- The table ----------------------------------------------------------------------------------------------------


def _weight_cost(weights: np.ndarray) -> float:
    """Of a weight whose neighbours in its row are there, too."""
    return 0.96 if weights.shape[2] == 3 else 1.25


formats.register("dense")(
    Format(
        "dense",
        "orbit_conv2d_dense_s8",
        "conv_dense.c",
        pack=_pack_dense,
        fits=lambda w: interval_of(w, _all_channels(w)) >= 0,
        channels=1,
        channel_bytes=4,
        cost=_weight_cost,
    )
)
for _name, _bits in (("nm", 4), ("nm_long", 8)):
    formats.register(_name)(
        Format(
            _name,
            "orbit_conv2d_nm_s8",
            "conv_nm.c",
            pack=functools.partial(pack_nm, index_bits=_bits),
            fits=functools.partial(fits_nm, index_bits=_bits),
            channels=4,
            channel_bytes=24,
            cost=functools.partial(nm_cost, index_bits=_bits),
        )
    )
formats.register("shared")(
    Format(
        "shared",
        "orbit_conv2d_shared_s8",
        "conv_shared.c",
        pack=_pack_shared,
        fits=lambda w: w.shape[3] < 2**16 and not w.any((1, 2)).all() and interval_of(w, _used_channels(w)) >= 0,
        channels=1,
        channel_bytes=4,
        cost=lambda w: float(w.any((1, 2)).mean()) * (_weight_cost(w) + 0.04),
    )
)
formats.register("csr")(
    Format(
        "csr",
        "orbit_conv2d_csr_s8",
        "conv_csr.c",
        pack=_pack_csr,
        fits=lambda w: w.shape[3] < 2**16 and not w.all() and place_sums(w) < SUM_LIMIT,
        channels=1,
        channel_bytes=4,
        cost=lambda w: float((w != 0).mean()) * 1.3,
    )
)
formats.register("vector")(
    Format(
        "vector",
        "orbit_conv2d_vector_s8",
        "conv_vector.c",
        pack=lambda w: w.reshape(-1),
        fits=lambda w: interval_of(w, _all_channels(w)) >= 0,
        channels=1,
        channel_bytes=1,
        cost=lambda w: 8.0,  # a weight, an activation and a sum at a time
        vector_cost=0.2,
        reordered=False,
    )
)
