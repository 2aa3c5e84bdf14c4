"""Pooling, and means and maxima over axes."""

from __future__ import annotations

import math

import numpy as np

from orbit_kd.exporters.c99.fixed_point import INT32, activation_range, quantize_multiplier, same_padding
from orbit_kd.exporters.c99.network import Call
from orbit_kd.exporters.c99.steps import Choice, Step, operator

_SAME = 0  # of the schema's Padding


@operator("MAX_POOL_2D", "AVERAGE_POOL_2D")
def pool(call: Call, choice: Choice) -> list[Step]:
    """The largest, or the mean, of a window; one that begins at the pixel itself may lie in place."""
    kind = call.operator.split("_")[0].lower()
    image, out, options = call.input(0), call.output, call.options
    if (image.scale, image.zero) != (out.scale, out.zero):
        raise call.refusal(
            "has another scale or zero point before than after",
            expected="one scale, as the converter writes it",
            fix="export the model again",
        )
    sizes, strides = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
    pads = [
        same_padding(image.shape[i + 1], out.shape[i + 1], kernel=sizes[i], stride=strides[i])
        if options.padding == _SAME
        else 0
        for i in (0, 1)
    ]
    low, high = activation_range(options.fusedActivationFunction, scale=out.scale, zero=out.zero)
    fields = {
        "in_h": image.shape[1], "in_w": image.shape[2], "channels": image.shape[3], "out_h": out.shape[1],
        "out_w": out.shape[2], "kernel_h": sizes[0], "kernel_w": sizes[1], "stride_h": strides[0],
        "stride_w": strides[1], "pad_top": pads[0], "pad_left": pads[1], "act_min": low, "act_max": high,
    }  # fmt: skip
    # with nothing before the image, a window holds no place before the output's own: what is overwritten was read
    in_place = not any(pads) and out.shape[2] <= image.shape[2]
    return [Step.of(call, f"orbit_{kind}_pool_s8", f"{kind}_pool.c", "orbit_pool", fields, image, in_place=in_place)]


@operator("MEAN")
def mean(call: Call, choice: Choice) -> list[Step]:
    """Over axes that stand side by side, such as height and width."""
    image, out = call.input(0), call.output
    outer, count, inner = _axes(call)
    multiplier, shift = quantize_multiplier(image.scale / out.scale)
    # the division by the count goes into the multiplier, as far as int32 and a shift of 31 places allow: reduce.h
    places = min(count.bit_length() - 1, 32, 31 + shift)
    multiplier, shift = (multiplier << places) // count, shift - places
    if 256 * count * 2 ** max(shift, 0) > INT32.max:
        raise call.refusal(
            f"could overflow its 32-bit sum of {count:,} elements",
            expected=f"at most {INT32.max // 256:,}",
            fix="pool before it",
        )
    fields = {"outer": outer, "count": count, "inner": inner, "in_zero": image.zero, "out_zero": out.zero,
              "multiplier": multiplier, "shift": shift}  # fmt: skip
    return [Step.of(call, "orbit_mean_s8", "mean.c", "orbit_mean", fields, image)]


@operator("REDUCE_MAX")
def reduce_max(call: Call, choice: Choice) -> list[Step]:
    """Likewise."""
    outer, count, inner = _axes(call)
    fields = {"outer": outer, "count": count, "inner": inner}
    return [Step.of(call, "orbit_reduce_max_s8", "reduce_max.c", "orbit_reduce", fields, call.input(0))]


def _axes(call: Call) -> tuple[int, int, int]:
    """The elements before the axes that are reduced, of these, and after them.

    Raises:
        InputError: the axes do not stand side by side.
    """
    shape = call.input(0).shape
    axes = sorted({int(axis) % len(shape) for axis in np.ravel(call.constant(1))})
    axes = [axis for axis in axes if shape[axis] > 1] or axes[:1]
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        raise call.refusal(
            f"reduces the axes {axes} of {shape}",
            expected="axes side by side, such as height and width",
            fix="reduce one after the other, in two layers",
        )
    first, last = axes[0], axes[-1] + 1
    return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])
