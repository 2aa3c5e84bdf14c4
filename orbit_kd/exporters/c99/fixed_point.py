"""TensorFlow Lite's fixed-point numbers: multipliers, paddings and ranges, as its kernels prepare them.

Source: lite/kernels/internal/quantization_util.cc and lite/kernels/kernel_util.cc.
"""

from __future__ import annotations

import math

import numpy as np

from orbit_kd.errors import InputError

INT8 = np.iinfo(np.int8)
INT32 = np.iinfo(np.int32)


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
