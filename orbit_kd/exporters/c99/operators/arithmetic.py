"""Sums, differences and products of two tensors."""

from __future__ import annotations

import numpy as np

from orbit_kd.exporters.c99.fixed_point import activation_range, quantize_multiplier
from orbit_kd.exporters.c99.network import Call
from orbit_kd.exporters.c99.operators.activations import by_table, is_unary
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator
from orbit_kd.exporters.c99.walks import broadcast_walk

_MORE_BITS = 20  # with which operands are rescaled: int8 in lite/kernels/add.cc


@operator("ADD", "SUB")
def add(call: Call, choice: Choice) -> list[Step]:
    """Both operands are brought to one scale first."""
    one, two, out = call.input(0), call.input(1), call.output
    if is_unary(call):
        return by_table(call, choice)
    twice = 2 * max(one.scale, two.scale)
    fields = _scales(1, one.scale / twice) | _scales(2, two.scale / twice)
    fields |= _scales("", twice / (2**_MORE_BITS * out.scale))
    name = {"ADD": "add", "SUB": "subtract"}[call.operator]
    return [_binary(call, name, fields)]


@operator("MUL")
def multiply(call: Call, choice: Choice) -> list[Step]:
    """One scale suffices."""
    if is_unary(call):
        return by_table(call, choice)
    scales = [np.float32(tensor.scale) for tensor in (call.input(0), call.input(1), call.output)]
    real = float(scales[0] * scales[1] / scales[2])  # float32, as in lite/kernels/mul.cc
    nothing = _scales(1, 0.0) | _scales(2, 0.0)
    return [_binary(call, "multiply", nothing | _scales("", real))]


def _scales(which: int | str, real: float) -> Fields:
    multiplier, shift = quantize_multiplier(real)
    return {f"multiplier{which}": multiplier, f"shift{which}": shift}


def _binary(call: Call, name: str, fields: Fields) -> Step:
    one, two, out = call.input(0), call.input(1), call.output
    size, step1, step2 = broadcast_walk(call, one.shape, two.shape)
    low, high = activation_range(call.options.fusedActivationFunction, scale=out.scale, zero=out.zero)
    fields = {
        "size": size, "step1": step1, "step2": step2, "zero1": one.zero, "zero2": two.zero, "out_zero": out.zero,
        "act_min": low, "act_max": high, **fields,
    }  # fmt: skip
    return Step.of(call, f"orbit_{name}_s8", f"{name}.c", "orbit_binary", fields, one, two, in_place=True)
