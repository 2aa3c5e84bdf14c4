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
using Input = std::{input_type};
constexpr std::size_t kInputSize = {input_size};  // {input_shape}
constexpr float kInputScale = {input_scale}f;
constexpr std::int32_t kInputZeroPoint = {input_zero};

using Output = std::{output_type};
constexpr std::size_t kOutputSize = {output_size};  // {output_shape}
constexpr float kOutputScale = {output_scale}f;
constexpr std::int32_t kOutputZeroPoint = {output_zero};

}}  // namespace orbit_kd

#endif  // ORBIT_KD_MODEL_SETTINGS_H_
"""
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
extern const Input kGoldenInput[kInputSize];
extern const Output kGoldenOutput[kOutputSize];

}}  // namespace orbit_kd

#endif  // ORBIT_KD_GOLDEN_H_
"""
_GOLDEN_SOURCE = """\
{note}
#include "golden.h"

namespace orbit_kd {{

alignas(16) const Input kGoldenInput[kInputSize] = {{
{input}
}};

alignas(16) const Output kGoldenOutput[kOutputSize] = {{
{output}
}};

}}  // namespace orbit_kd
"""
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

  TfLiteTensor* input = interpreter.input(0);
  TfLiteTensor* output = interpreter.output(0);
  if (input->bytes != sizeof(kGoldenInput) || output->bytes != sizeof(kGoldenOutput)) return Fail("sizes");
  if (input->params.scale != kInputScale || input->params.zero_point != kInputZeroPoint) return Fail("input scale");
  if (output->params.scale != kOutputScale || output->params.zero_point != kOutputZeroPoint) {{
    return Fail("output scale");
  }}

{reset}  std::memcpy(input->data.raw, kGoldenInput, sizeof(kGoldenInput));
  if (interpreter.Invoke() != kTfLiteOk) return Fail("an operator");
  const Output* found = reinterpret_cast<const Output*>(output->data.raw);
  for (std::size_t i = 0; i < kOutputSize; ++i) {{
    if (std::abs(static_cast<int>(found[i]) - static_cast<int>(kGoldenOutput[i])) > 1) return Fail("another output");
  }}

  MicroPrintf("ok: model %d bytes, arena %d of %d bytes", static_cast<int>(model_data_len),
              static_cast<int>(interpreter.arena_used_bytes()), static_cast<int>(kTensorArenaSize));
  return 0;
}}
"""
_RESET = """\
  // The network has variables (LSTM). Before each input they have to be set back, or one leaves its traces in the next.
  if (interpreter.Reset() != kTfLiteOk) return Fail("reset");
"""


@dataclasses.dataclass(frozen=True)
class Golden:
    """An input and the output that TFLM computes from it, as integers without the batch; `origin` is for a comment."""

    input: np.ndarray
    output: np.ndarray
    origin: str


def sources(
    *, input: Port, output: Port, golden: Golden, methods: Sequence[str], arena: int, margin: int, variables: bool
) -> dict[str, str]:
    """File name -> text, of all but the model's array.

    Args:
        input: of the file, an integer port.
        output: likewise.
        golden: what main.cc checks.
        methods: of `MicroMutableOpResolver`, see `tflm_operators.add_methods`.
        arena: bytes measured.
        margin: bytes on top; the size written is rounded up to 16.
        variables: whether the file has variable tensors, which main.cc then resets.
    """
    calls = " &&\n         ".join(f"resolver.{method}() == kTfLiteOk" for method in methods)
    settings = _SETTINGS.format(
        note=_NOTE,
        arena=arena,
        margin=margin,
        total=arena_size(arena, margin),
        **_port("input", input),
        **_port("output", output),
    )
    return {
        "model_settings.h": settings,
        "model_operators.h": _OPERATORS.format(note=_NOTE, count=len(methods), calls=calls),
        "golden.h": _GOLDEN_HEADER.format(note=_NOTE, origin=golden.origin),
        "golden.cc": _GOLDEN_SOURCE.format(note=_NOTE, input=_rows(golden.input), output=_rows(golden.output)),
        "main.cc": _MAIN.format(note=_NOTE, reset=_RESET if variables else ""),
    }


def _port(side: str, port: Port) -> dict[str, object]:
    return {
        f"{side}_type": f"{port.dtype.name}_t",
        f"{side}_size": int(np.prod(port.shape)),
        f"{side}_shape": " x ".join(map(str, port.shape)),
        f"{side}_scale": str(np.float32(port.scale)),  # the shortest text that reads back as the same float
        f"{side}_zero": port.zero_point,
    }


def _rows(values: np.ndarray) -> str:
    flat = values.reshape(-1).tolist()
    return "\n".join("".join(f"{value}," for value in flat[i : i + 32]) for i in range(0, len(flat), 32))
