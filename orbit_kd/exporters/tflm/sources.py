"""The C++ sources of the target "tflm": settings, operators, a golden pair, and a main that uses them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from orbit_kd.exporters.tflm.memory import arena_size
from orbit_kd.runtimes.runner import Port

_NOTE = "// Written by orbit_kd. Do not edit."
_SETTINGS = """\
{note}
#ifndef ORBIT_KD_MODEL_SETTINGS_H_
#define ORBIT_KD_MODEL_SETTINGS_H_

#include <cstddef>
#include <cstdint>

namespace orbit_kd {{

// {arena:,} bytes, measured by TFLite Micro's own allocator with its reference kernels, and a margin of {margin:,}: the
// scratch memory of CMSIS-NN's kernels and 1 KiB. main.cc prints what a device really takes; lower it to that.
constexpr std::size_t kTensorArenaSize = {total};

// real = (integer - zero point) * scale
{ports}

}}  // namespace orbit_kd

#endif  // ORBIT_KD_MODEL_SETTINGS_H_
"""
_PORT = """\
using {Port} = std::{type};
constexpr std::size_t k{Port}Size = {size};  // {shape}
constexpr float k{Port}Scale = {scale}f;
constexpr std::int32_t k{Port}ZeroPoint = {zero};"""
_OPERATORS = """\
{note}
#ifndef ORBIT_KD_MODEL_OPERATORS_H_
#define ORBIT_KD_MODEL_OPERATORS_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace orbit_kd {{

using OpResolver = tflite::MicroMutableOpResolver<{count}>;

// The operators of the model and no others, so that the linker drops all other kernels.
inline bool AddOperators(OpResolver& resolver) {{
  return {calls};
}}

}}  // namespace orbit_kd

#endif  // ORBIT_KD_MODEL_OPERATORS_H_
"""
_GOLDEN_HEADER = """\
{note}
#ifndef ORBIT_KD_GOLDEN_H_
#define ORBIT_KD_GOLDEN_H_

#include "model_settings.h"

namespace orbit_kd {{

// {origin}, and what TFLite Micro makes of it.
{declared}

}}  // namespace orbit_kd

#endif  // ORBIT_KD_GOLDEN_H_
"""
_GOLDEN_SOURCE = """\
{note}
#include "golden.h"

namespace orbit_kd {{

{arrays}

}}  // namespace orbit_kd
"""
_ARRAY = """\
alignas(16) const {Port} kGolden{Port}[k{Port}Size] = {{
{rows}
}};"""
_MAIN = """\
{note}
// Runs the golden input through TFLite Micro. Returns 0 if the output is the golden one within 1 step, else 1.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "golden.h"
#include "model_data.h"
#include "model_operators.h"
#include "model_settings.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

alignas(16) std::uint8_t tensor_arena[orbit_kd::kTensorArenaSize];

int Fail(const char* why) {{
  MicroPrintf("failed: %s", why);
  return 1;
}}

}}  // namespace

int main() {{
  using namespace orbit_kd;
  tflite::InitializeTarget();

  OpResolver resolver;
  if (!AddOperators(resolver)) return Fail("an operator was not added");
  tflite::MicroInterpreter interpreter(tflite::GetModel(model_data), resolver, tensor_arena, kTensorArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) return Fail("the tensor arena is too small");

{tensors}

{reset}{given}
  if (interpreter.Invoke() != kTfLiteOk) return Fail("an operator");
{checks}

  MicroPrintf("ok: model %d bytes, arena %d of %d bytes", static_cast<int>(model_data_len),
              static_cast<int>(interpreter.arena_used_bytes()), static_cast<int>(kTensorArenaSize));
  return 0;
}}
"""
_TENSOR = """\
  TfLiteTensor* {port} = interpreter.{side}({index});
  if ({port}->bytes != sizeof(kGolden{Port})) return Fail("size of {port}");
  if ({port}->params.scale != k{Port}Scale || {port}->params.zero_point != k{Port}ZeroPoint) {{
    return Fail("scale of {port}");
  }}"""
_GIVEN = """\
  std::memcpy({port}->data.raw, kGolden{Port}, sizeof(kGolden{Port}));"""
_CHECK = """\
  const {Port}* {found} = reinterpret_cast<const {Port}*>({port}->data.raw);
  for (std::size_t i = 0; i < k{Port}Size; ++i) {{
    if (std::abs(static_cast<int>({found}[i]) - static_cast<int>(kGolden{Port}[i])) > 1) return Fail("another {port}");
  }}"""
_RESET = """\
  // The network has variables (LSTM). Before each input they have to be set back, or one leaves its traces in the next.
  if (interpreter.Reset() != kTfLiteOk) return Fail("reset");
"""


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that TFLM computes from them, as integers without the batch; `origin` is for a comment."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    origin: str


def sources(
    *,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    golden: Golden,
    methods: Sequence[str],
    arena: int,
    margin: int,
    variables: bool,
) -> dict[str, str]:
    """File name -> text, of all but the model's array.

    Args:
        inputs: of the file, integer ports.
        outputs: likewise.
        golden: what main.cc checks.
        methods: of `MicroMutableOpResolver`, see `tflm_operators.add_methods`.
        arena: bytes measured.
        margin: bytes on top; the size written is rounded up to 16.
        variables: whether the file has variable tensors, which main.cc then resets.
    """
    calls = " &&\n         ".join(f"resolver.{method}() == kTfLiteOk" for method in methods)
    took, gave = _fields("input", inputs, golden.inputs), _fields("output", outputs, golden.outputs)
    ports = [*took, *gave]
    settings = _SETTINGS.format(
        note=_NOTE, arena=arena, margin=margin, total=arena_size(arena, margin), ports=_each(_PORT, ports, "\n\n")
    )
    main = _MAIN.format(
        note=_NOTE,
        reset=_RESET if variables else "",
        tensors=_each(_TENSOR, ports),
        given=_each(_GIVEN, took),
        checks=_each(_CHECK, gave),
    )
    declared = _each("extern const {Port} kGolden{Port}[k{Port}Size];", ports)
    return {
        "model_settings.h": settings,
        "model_operators.h": _OPERATORS.format(note=_NOTE, count=len(methods), calls=calls),
        "golden.h": _GOLDEN_HEADER.format(note=_NOTE, origin=golden.origin, declared=declared),
        "golden.cc": _GOLDEN_SOURCE.format(note=_NOTE, arrays=_each(_ARRAY, ports, "\n\n")),
        "main.cc": main,
    }


def _fields(side: str, ports: Sequence[Port], golden: Sequence[np.ndarray]) -> list[dict[str, object]]:
    """What the templates say of each port; numbered where there are several."""
    several = len(ports) > 1
    return [
        {
            "side": side,
            "index": index,
            "port": f"{side}{index}" if several else side,
            "Port": f"{side.capitalize()}{index}" if several else side.capitalize(),
            "found": f"found{index}" if several else "found",
            "type": f"{port.dtype.name}_t",
            "size": int(np.prod(port.shape)),
            "shape": " x ".join(map(str, port.shape)) + (f", {port.name!a}" if several and port.name else ""),
            "scale": str(np.float32(port.scale)),  # the shortest text that reads back as the same float
            "zero": port.zero_point,
            "rows": _rows(values),
        }
        for index, (port, values) in enumerate(zip(ports, golden, strict=True))
    ]


def _each(template: str, ports: Sequence[dict[str, object]], between: str = "\n") -> str:
    return between.join(template.format(**port) for port in ports)


def _rows(values: np.ndarray) -> str:
    flat = values.reshape(-1).tolist()
    return "\n".join("".join(f"{value}," for value in flat[i : i + 32]) for i in range(0, len(flat), 32))
