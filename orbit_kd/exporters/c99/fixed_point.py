"""TensorFlow Lite's fixed-point numbers: multipliers, paddings and ranges, as its kernels prepare them.

Source: lite/kernels/internal/quantization_util.cc and lite/kernels/kernel_util.cc.
"""

from __future__ import annotations

import math

import numpy as np

from orbit_kd.errors import InputError

INT8 = np.iinfo(np.int8)
INT32 = np.iinfo(np.int32)
INT8_STEPS = 256  # from a zero point to a limit, and one more


def quantize_multiplier(real: float) -> tuple[int, int]:
    """A real multiplier >= 0 as (multiplier, shift): real = multiplier * 2^(shift - 31), multiplier in Q31.

    Raises:
        InputError: it is 2^30 or larger, or not finite.
    """
    if not 0 <= real < 2**30:
        raise InputError(
            f"The scales of a layer make a multiplier of {real}.",
            expected="finite scales, and a multiplier from 0 to 2^30",
            fix="calibrate with real, varied images, and export tflite_int8 again",
        )
    if not real:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def multiplier_once(real: float, *, steps: int, largest: int) -> tuple[int, int] | None:
    """A multiplier and a shift with which one rounding gives what a product in double precision gives.

    LiteRT's reference kernel of dense layers computes round(sum * real) in double precision
    (reference/integer_ops/fully_connected.h), which small cores lack. Its result grows by 1 at certain sums; the
    multiplier is chosen so that it grows at the same ones in integers.

    Args:
        real: input scale * kernel scale / output scale, > 0.
        steps: the largest result of interest: all above is clamped.
        largest: no sum is larger in magnitude.

    Returns:
        (multiplier in Q31, shift) as of `quantize_multiplier`; None where no multiplier of 31 bits does it.
    """
    multiplier, shift = quantize_multiplier(real)
    bits = 31 - shift
    low, high = 0, 2**31 - 1
    for step in range(1, steps + 1):
        first = _first_sum(real, step)
        border = (step << bits) - (1 << (bits - 1))  # multiplier * sum reaches it just at `first`
        below = min(first - 1, largest)
        if below > 0:
            high = min(high, -(-border // below) - 1)
        if first > largest:
            break
        low = max(low, -(-border // first))
    return (min(max(multiplier, low), high), shift) if low <= high else None


def _first_sum(real: float, step: int) -> int:
    """The smallest sum whose product, in double precision, rounds to `step` or more."""
    first = max(1, math.floor((step - 0.5) / real) - 1)
    while first * real < step - 0.5:
        first += 1
    return first


def activation_range(activation: int, *, scale: float, zero: int) -> tuple[int, int]:
    """The smallest and largest int8 that a fused activation lets pass.

    Args:
        activation: as the schema numbers it.
        scale: of the output.
        zero: of the output.

    Raises:
        InputError: an activation that TFLite's integer kernels do not have either.
    """
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.ActivationFunctionType
    limits: dict[int, tuple[float | None, float | None]] = {
        kinds.NONE: (None, None),
        kinds.RELU: (0.0, None),
        kinds.RELU6: (0.0, 6.0),
        kinds.RELU_N1_TO_1: (-1.0, 1.0),
    }
    if activation not in limits:
        raise InputError(
            f"A fused activation with the number {activation} in the schema.",
            expected="none, RELU, RELU6 or RELU_N1_TO_1",
            fix="put the activation in a layer of its own, and export again",
        )
    low, high = limits[activation]
    return (
        int(INT8.min) if low is None else max(int(INT8.min), _steps(low, scale, zero)),
        int(INT8.max) if high is None else min(int(INT8.max), _steps(high, scale, zero)),
    )


def same_padding(size: int, out: int, *, kernel: int, stride: int, dilation: int = 1) -> int:
    """Places before the image, where the padding is SAME; those after it are as many, or one more."""
    return max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size) // 2


def _steps(value: float, scale: float, zero: int) -> int:
    """Rounded half away from zero, in the kernels' float32."""
    steps = float(np.float32(value) / np.float32(scale))
    return zero + int(math.copysign(math.floor(abs(steps) + 0.5), steps))
