"""Convolutions and dense layers."""

from __future__ import annotations

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99 import packing
from orbit_kd.exporters.c99.fixed_point import (
    INT8_STEPS,
    INT32,
    activation_range,
    multiplier_once,
    quantize_multiplier,
    same_padding,
)
from orbit_kd.exporters.c99.network import Call, Tensor
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator

_SAME = 0  # of the schema's Padding
ROUNDED_ONCE = 64  # ORBIT_ONCE


@operator("CONV_2D")
def conv2d(call: Call, choice: Choice) -> list[Step]:
    """Dense, N:M, tap-shared or CSR, whatever suits the weights."""
    kernel, options = _kernel(call, 1), call.options
    image, out = call.input(0), call.output
    if kernel.shape[3] != image.shape[3]:
        raise call.refusal(
            f"has groups: {image.shape[3]} channels come in, its filters read {kernel.shape[3]}",
            expected="filters that read every channel, or depthwise ones",
            fix="replace it by a convolution without groups, or by one a group and a Concatenate",
        )
    dilation = options.dilationHFactor, options.dilationWFactor
    fields = _geometry(image, out, kernel.shape[1:3], (options.strideH, options.strideW), dilation, options.padding)
    return [_packed(call, choice, fields, kernel, options.fusedActivationFunction)]


@operator("FULLY_CONNECTED")
def fully_connected(call: Call, choice: Choice) -> list[Step]:
    """A convolution of one pixel a row, with a kernel of 1 x 1."""
    kernel, options = _kernel(call, 1), call.options
    outs, ins = kernel.shape
    rows = call.output.size // outs
    if call.input(0).size != rows * ins or options.weightsFormat:
        raise call.refusal(
            f"reads {call.input(0).shape} with a kernel of {kernel.shape}",
            expected="rows as long as the kernel's, and weights in their plain order",
            fix="export the model again",
        )
    shape = (1, rows, 1, ins)
    fields = _geometry(shape, (1, rows, 1, outs), (1, 1), (1, 1), (1, 1), _SAME)
    return [_packed(call, choice, fields, kernel.reshape(outs, 1, 1, ins), options.fusedActivationFunction)]


@operator("DEPTHWISE_CONV_2D")
def depthwise(call: Call, choice: Choice) -> list[Step]:
    """A filter, or several, for each channel."""
    kernel, options = _kernel(call, 1), call.options
    image, out = call.input(0), call.output
    dilation = options.dilationHFactor, options.dilationWFactor
    fields = _geometry(image, out, kernel.shape[1:3], (options.strideH, options.strideW), dilation, options.padding)
    return [
        _plain(call, fields, kernel, "depthwise_conv2d", "depthwise_conv.c", options.fusedActivationFunction, axis=3)
    ]


@operator("TRANSPOSE_CONV")
def transpose_conv(call: Call, choice: Choice) -> list[Step]:
    """A convolution from the output to the input, run backwards."""
    kernel, options = _kernel(call, 1), call.options
    image, out, strides = call.input(2), call.output, (options.strideH, options.strideW)
    fields = _geometry(image, out, kernel.shape[1:3], strides, (1, 1), 1)
    if options.padding == _SAME:
        for side, axis in (("top", 1), ("left", 2)):
            size, stride = out.shape[axis], strides[axis - 1]
            steps = -(-size // stride)
            fields[f"pad_{side}"] = same_padding(size, steps, kernel=kernel.shape[axis], stride=stride)
    activation = getattr(options, "fusedActivationFunction", 0)
    return [_plain(call, fields, kernel, "transpose_conv2d", "transpose_conv.c", activation, axis=0)]


def _geometry(
    image: Tensor | tuple[int, ...],
    out: Tensor | tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: int,
) -> Fields:
    took, gave = (side.shape if isinstance(side, Tensor) else side for side in (image, out))
    pads = [
        same_padding(took[i + 1], gave[i + 1], kernel=kernel[i], stride=strides[i], dilation=dilation[i])
        if padding == _SAME
        else 0
        for i in (0, 1)
    ]
    return {
        "in_h": took[1], "in_w": took[2], "in_c": took[3], "out_h": gave[1], "out_w": gave[2], "out_c": gave[3],
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": strides[0], "stride_w": strides[1],
        "dilation_h": dilation[0], "dilation_w": dilation[1], "pad_top": pads[0], "pad_left": pads[1],
    }  # fmt: skip


def _kernel(call: Call, place: int) -> np.ndarray:
    """The weights.

    Raises:
        InputError: they are not int8 with zero points of 0.
    """
    tensor, values = call.input(place), call.constant(place)
    if tensor.dtype != "int8" or np.any(tensor.zeros):
        raise call.refusal(
            f"has weights of {tensor.dtype}, zero points {np.unique(tensor.zeros).tolist()[:4]}",
            expected="int8 with zero points of 0",
            fix="export to tflite_int8",
        )
    return values


def _packed(call: Call, choice: Choice, fields: Fields, weights: np.ndarray, activation: int) -> Step:
    """A layer for the fast kernels, in the format that suits its weights; the plain kernel where none holds it.

    They treat places outside the image as its input's zero, which is why that is in the bias.
    """
    image = call.input(0)
    bias, common = _common(call, image, weights, activation, axis=0)
    sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
    folded = bias - image.zero * sums
    try:
        form = packing.choose(weights, prefer=choice.prefer)
    except InputError:  # their sums do not fit into the words that the fast kernels keep them in
        return _plain(call, fields, weights, "conv2d_plain", "conv_plain.c", activation, axis=0)
    packed = form.pack(weights)
    fields = {**fields, **common, "bias": folded.astype(np.int32), "weights": packed}
    scratch = form.scratch_bytes(fields)
    details = {"format": form.name, "weight_bytes": packed.nbytes, "dense_bytes": weights.nbytes}
    return Step.of(call, form.function, form.source, "orbit_conv", fields, image, scratch=scratch, details=details)


def _plain(
    call: Call, fields: Fields, weights: np.ndarray, kernel: str, source: str, activation: int, *, axis: int
) -> Step:
    image = call.input(2 if call.operator == "TRANSPOSE_CONV" else 0)
    bias, common = _common(call, image, weights, activation, axis=axis)
    fields = {**fields, **common, "bias": bias.astype(np.int32), "weights": weights}
    details = {"format": "plain", "weight_bytes": weights.nbytes, "dense_bytes": weights.nbytes}
    return Step.of(call, f"orbit_{kernel}_s8", source, "orbit_conv", fields, image, details=details)


def _common(call: Call, image: Tensor, weights: np.ndarray, activation: int, *, axis: int) -> tuple[np.ndarray, Fields]:
    """The bias, int64 (out,), and all fields of the structure that are about numbers.

    Args:
        call: the operator.
        image: its activation.
        weights: int8.
        activation: the fused one.
        axis: of the output channels.

    Raises:
        InputError: a sum that could leave int32.
    """
    out, tensor = call.output, call.input(1)
    channels = weights.shape[axis]
    place = {"TRANSPOSE_CONV": 3}.get(call.operator, 2)
    given = call.inputs[place] if place < len(call.inputs) else None
    bias = np.zeros(channels, np.int64) if given is None else call.constant(place).astype(np.int64)
    products = np.broadcast_to(image.scale * tensor.scales.astype(np.float64), channels)
    sums = _largest_sums(bias, np.moveaxis(weights, axis, 0))
    pairs = [_multiplier(call, float(p) / out.scale, int(s)) for p, s in zip(products, sums, strict=True)]
    multiplier, shift = (np.array(side) for side in zip(*pairs, strict=True))
    _check_sums(call, sums, shift)
    low, high = activation_range(activation, scale=out.scale, zero=out.zero)
    return bias, {
        "in_zero": image.zero, "out_zero": out.zero, "act_min": low, "act_max": high,
        "multiplier": multiplier.astype(np.int32), "shift": shift.astype(np.int8),
    }  # fmt: skip


def _multiplier(call: Call, real: float, largest: int) -> tuple[int, int]:
    """Of an output channel, as the C structure has it."""
    if call.operator != "FULLY_CONNECTED" or not real:
        return quantize_multiplier(real)
    pair = multiplier_once(real, steps=INT8_STEPS, largest=largest)
    if pair is None:
        raise call.refusal(
            f"multiplies its sums by {real}: too little for one multiplier of 31 bits to round as LiteRT does",
            expected="outputs of int8 that use their range",
            fix="calibrate with real, varied images",
        )
    return pair[0], pair[1] - ROUNDED_ONCE


def _largest_sums(bias: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The largest magnitude of each channel's sum on its way, int64 (out,), whatever the image is.

    With the zero point folded into the bias, that is |bias| + 128 sum|w| + 128 sum|w|.
    """
    return np.abs(bias) + 256 * np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)


def _check_sums(call: Call, sums: np.ndarray, shift: np.ndarray) -> None:
    """Refuses a layer one of whose sums might not fit into int32."""
    shifted = sums * 2 ** np.maximum(shift, 0).astype(np.int64)
    worst = int(np.argmax(shifted))
    if shifted[worst] > INT32.max:
        raise call.refusal(
            f"could overflow its 32-bit sum: output channel {worst} reaches {int(shifted[worst]):,}",
            expected=f"at most {INT32.max:,} for every image",
            fix="calibrate with real, varied images, so that the bias is not counted in tiny steps; or give the layer "
            "fewer inputs",
        )
