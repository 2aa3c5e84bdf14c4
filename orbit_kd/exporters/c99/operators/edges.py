"""Where numbers change their type: float32 or uint8 at the edges of the network, another scale within."""

from __future__ import annotations

from orbit_kd.exporters.c99.network import Call
from orbit_kd.exporters.c99.operators.activations import by_table
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator


@operator("QUANTIZE", dtypes=("float32", "int8", "uint8"))
def quantize(call: Call, choice: Choice) -> list[Step]:
    """From float32 by arithmetic, from 8 bits by a table."""
    source, out = call.input(0), call.output
    if source.dtype != "float32" and out.dtype != "float32":
        return by_table(call, choice)
    if out.dtype != "int8":
        raise call.refusal(
            f"makes {out.dtype} of {source.dtype}", expected="int8", fix="export the model to tflite_int8"
        )
    return [_of_floats(call, "orbit_quantize_f32", "quantize.c")]


@operator("DEQUANTIZE", dtypes=("float32", "int8"))
def dequantize(call: Call, choice: Choice) -> list[Step]:
    """To float32, for an output."""
    source = call.input(0)
    if source.dtype != "int8" or source.data is not None:
        raise call.refusal(
            f"makes float32 of a {'constant' if source.data is not None else source.dtype}",
            expected="an int8 activation: only the edges of the network may be float32",
            fix="export the model to tflite_int8",
        )
    return [_of_floats(call, "orbit_dequantize_s8", "dequantize.c")]


def _of_floats(call: Call, kernel: str, source: str) -> Step:
    integers = call.output if call.output.dtype == "int8" else call.input(0)
    fields: Fields = {"size": call.output.size, "scale": integers.scale, "zero": integers.zero}
    return Step.of(call, kernel, source, "orbit_float", fields, call.input(0))
