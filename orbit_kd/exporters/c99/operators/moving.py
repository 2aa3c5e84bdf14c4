"""Operators that move values and change none: parts put side by side, cut out, turned, put in a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd.exporters.c99.fixed_point import INT8
from orbit_kd.exporters.c99.network import Call, Tensor
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator
from orbit_kd.exporters.c99.walks import joined, steps_of


@operator("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
def reshape(call: Call, choice: Choice) -> list[Step]:
    """Nothing to do but to lie in the same place, if it may."""
    source, out = call.input(0), call.output
    return [_copy(call, source, out, (out.size,), (1,), (1,), moves=True)]


@operator("CONCATENATION")
def concatenation(call: Call, choice: Choice) -> list[Step]:
    """A copy a part."""
    axis = call.options.axis % len(call.output.shape)
    if call.options.fusedActivationFunction:
        raise call.refusal("has a fused activation", expected="none", fix="put the activation in a layer of its own")
    to, done, start = steps_of(call.output.shape), [], 0
    for part in (call.input(place) for place in range(len(call.inputs))):
        _same_scale(call, part, call.output)
        done.append(_copy(call, part, call.output, part.shape, steps_of(part.shape), to, out_start=start * to[axis]))
        start += part.shape[axis]
    return done


@operator("SPLIT", "SPLIT_V")
def split(call: Call, choice: Choice) -> list[Step]:
    """A copy a part."""
    source = call.input(1 if call.operator == "SPLIT" else 0)
    axis = int(np.ravel(call.constant(0 if call.operator == "SPLIT" else 2))[0]) % len(source.shape)
    steps, done, start = steps_of(source.shape), [], 0
    for part in call.outputs:
        done.append(_copy(call, source, part, part.shape, steps, steps_of(part.shape), in_start=start * steps[axis]))
        start += part.shape[axis]
    return done


@operator("SLICE", "STRIDED_SLICE")
def slice_(call: Call, choice: Choice) -> list[Step]:
    """A part of each axis, perhaps every second element or backwards."""
    source, out = call.input(0), call.output
    begin = [int(n) for n in call.constant(1)]
    strides = [1] * len(begin)
    if call.operator == "STRIDED_SLICE":
        strides = [int(n) for n in call.constant(3)]
        options = call.options
        if options.ellipsisMask or options.newAxisMask:
            raise call.refusal("has an ellipsis or a new axis", expected="a slice an axis", fix="use Reshape for it")
        for axis, (size, stride) in enumerate(zip(source.shape, strides, strict=True)):
            if options.beginMask >> axis & 1:
                begin[axis] = 0 if stride > 0 else size - 1
            elif begin[axis] < 0:
                begin[axis] += size
    # an axis that is cut down to one element, and perhaps left out of the shape, is walked along once
    sizes = [n for axis, n in enumerate(_unsqueezed(call, out.shape, len(begin))) if axis < len(begin)]
    steps = steps_of(source.shape)
    walk = [step * stride for step, stride in zip(steps, strides, strict=True)]
    start = sum(first * step for first, step in zip(begin, steps, strict=True))
    return [_copy(call, source, out, sizes, walk, steps_of(sizes), in_start=start)]


def _unsqueezed(call: Call, shape: Sequence[int], rank: int) -> list[int]:
    """A shape with the axes of 1 that a strided slice leaves out."""
    left = iter(shape)
    mask = getattr(call.options, "shrinkAxisMask", 0) or 0
    return [1 if mask >> axis & 1 else next(left) for axis in range(rank)]


@operator("TRANSPOSE")
def transpose(call: Call, choice: Choice) -> list[Step]:
    """Axes in another order."""
    source, out = call.input(0), call.output
    steps = steps_of(source.shape)
    walk = [steps[int(axis)] for axis in call.constant(1)]
    return [_copy(call, source, out, out.shape, walk, steps_of(out.shape))]


@operator("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")
def depth_to_space(call: Call, choice: Choice) -> list[Step]:
    """Blocks of pixels that lie in the channels of one pixel, or the other way round."""
    block = int(call.options.blockSize)
    source, out = call.input(0), call.output
    deep, wide = (source, out) if call.operator == "DEPTH_TO_SPACE" else (out, source)
    _, height, width, channels = deep.shape
    run = block * wide.shape[3]  # what lies side by side in both
    size = (height, block, width, run)
    in_deep = (width * channels, run, channels, 1)
    in_wide = (block * wide.shape[2] * wide.shape[3], wide.shape[2] * wide.shape[3], run, 1)
    walks = (in_deep, in_wide) if deep is source else (in_wide, in_deep)
    return [_copy(call, source, out, size, *walks)]


@operator("PAD", "PADV2")
def pad(call: Call, choice: Choice) -> list[Step]:
    """A frame of one value, by default the zero point."""
    source, out = call.input(0), call.output
    before = [int(pair[0]) for pair in call.constant(1)]
    value = int(np.ravel(call.constant(2))[0]) if call.operator == "PADV2" else out.zero
    if not INT8.min <= value <= INT8.max:
        raise call.refusal(f"pads with {value}", expected="an int8", fix="export the model again")
    to = steps_of(out.shape)
    start = sum(first * step for first, step in zip(before, to, strict=True))
    frame = Step.of(call, "orbit_fill_s8", "fill.c", "orbit_fill", {"size": out.size, "value": value})
    return [frame, _copy(call, source, out, source.shape, steps_of(source.shape), to, out_start=start)]


def _copy(
    call: Call,
    source: Tensor,
    out: Tensor,
    size: Sequence[int],
    in_steps: Sequence[int],
    out_steps: Sequence[int],
    *,
    in_start: int = 0,
    out_start: int = 0,
    moves: bool = False,
) -> Step:
    _same_scale(call, source, out)
    size, in_steps, out_steps = joined(call, size, in_steps, out_steps)
    if math.prod(size) > min(source.size, out.size):
        raise call.refusal(
            f"moves {math.prod(size)} of {source.size} elements to {out.size}",
            expected="as many as there are", fix="export the model again",
        )  # fmt: skip
    fields: Fields = {
        "size": size, "in_step": in_steps, "out_step": out_steps, "in_start": in_start, "out_start": out_start
    }  # fmt: skip
    how: dict[str, Any] = {"output": out, "in_place": moves, "moves": moves}
    return Step.of(call, "orbit_copy_s8", "copy.c", "orbit_copy", fields, source, **how)


def _same_scale(call: Call, source: Tensor, out: Tensor) -> None:
    if (source.scale, source.zero) != (out.scale, out.zero):
        raise call.refusal(
            f"changes the scale from {source.scale} to {out.scale}, or the zero point from {source.zero} to {out.zero}",
            expected="values that only move; the converter puts a QUANTIZE before",
            fix="export the model again",
        )
