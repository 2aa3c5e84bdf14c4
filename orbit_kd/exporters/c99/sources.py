"""The C sources of a network: model.h, model.c, the kernels it calls, a golden pair, and a main that checks it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np

from orbit_kd.exporters.c99.arena import Plan
from orbit_kd.exporters.c99.network import Tensor
from orbit_kd.exporters.c99.steps import Step, Value

NOTE = "/* Written by orbit_kd. Do not edit. */"
_C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t",
            "uint32": "uint32_t", "float32": "float"}  # fmt: skip
_HEADER = """\
{note}
#ifndef ORBIT_{NAME}_H_
#define ORBIT_{NAME}_H_

#include <stdint.h>

/* Bytes of memory that an inference needs beside its inputs and outputs. */
#define {NAME}_ARENA_BYTES {arena}

/* real = (integer - zero point) * scale */
{ports}

/* All that is written to. Two contexts may be in use at once; what is in them between two inferences does not count. */
typedef struct {{
  union {{
    int64_t alignment;
    int8_t bytes[{NAME}_ARENA_BYTES];
  }} arena;
}} {name}_context;

/* One inference. Inputs, outputs and the context must not overlap. */
{declaration};

#endif /* ORBIT_{NAME}_H_ */
"""
_SOURCE = """\
{note}
#include "model.h"

#include "orbit_kernels.h"

{constants}
{declaration} {{
{body}
}}
"""
_GOLDEN = """\
{note}
#ifndef ORBIT_{NAME}_GOLDEN_H_
#define ORBIT_{NAME}_GOLDEN_H_

#include "model.h"

/* {origin}, and what LiteRT's reference kernels make of it. */
{arrays}

#endif /* ORBIT_{NAME}_GOLDEN_H_ */
"""
_MAIN = """\
{note}
/* Runs the golden input. Returns 0 where every output is the golden one, bit for bit, else 1. */
#include <string.h>

#include "golden.h"
#include "model.h"

static {name}_context context;
{buffers}

int main(void) {{
  {name}_invoke(&context, {arguments});
  return {checks} ? 0 : 1;
}}
"""


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and outputs of the file, without the batch; where the inputs are from, for a comment."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    origin: str


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output as C has it: a tensor, and a name such as "input" or "output1"."""

    tensor: Tensor
    name: str

    @property
    def type(self) -> str:
        """Of its elements."""
        return _C_TYPES[self.tensor.dtype]


def ports(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[list[Port], list[Port]]:
    """The ports, numbered where there are several."""
    return tuple(  # type: ignore[return-value]
        [Port(tensor, f"{side}{number}" if len(tensors) > 1 else side) for number, tensor in enumerate(tensors)]
        for side, tensors in (("input", inputs), ("output", outputs))
    )


class Constants:
    """Static arrays and structures, each written once: equal arrays share one name."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.bytes = b""
        self._names: dict[tuple[str, bytes], str] = {}

    def array(self, name: str, values: np.ndarray) -> str:
        """Adds an array; returns the name it has."""
        kind = values.dtype.name
        key = kind, np.ascontiguousarray(values).tobytes()
        if key not in self._names:
            self._names[key] = name
            self.bytes += key[1]
            self.texts.append(f"static const {_C_TYPES[kind]} {name}[{values.size}] = {{\n{_rows(values)}\n}};")
        return self._names[key]

    def structure(self, name: str, step: Step) -> str:
        """Adds a step's parameters."""
        fields = []
        for key, value in step.fields.items():
            text, content = self._field(f"{name}_{key}", value)
            self.bytes += content
            fields.append(f".{key} = {text}")
        comment = _comment(f"{step.operator} {step.layer}")
        lines = _wrapped(fields, indent="    ")
        self.texts.append(f"/* {comment} */\nstatic const {step.type} {name} = {{\n{lines}}};")
        return name

    def _field(self, name: str, value: Value) -> tuple[str, bytes]:
        """A field's text, and the bytes it takes in the structure on a 32-bit core."""
        if isinstance(value, np.ndarray):
            return self.array(name, value), bytes(4)
        if isinstance(value, tuple):
            return "{" + ", ".join(map(str, value)) + "}", np.array(value, np.int32).tobytes()
        if isinstance(value, float):
            return _float(value), np.float32(value).tobytes()
        return str(int(value)), np.int32(value).tobytes()


def model_files(
    name: str, steps: Sequence[Step], plan: Plan, inputs: Sequence[Tensor], outputs: Sequence[Tensor], golden: Golden
) -> tuple[dict[str, str], bytes]:
    """File name -> text of the folder, and the bytes of all constants as flash holds them.

    Args:
        name: how the functions begin.
        steps: what to call.
        plan: where tensors lie.
        inputs: of the network.
        outputs: likewise.
        golden: what main.c checks.
    """
    took, gave = ports(inputs, outputs)
    constants, body = Constants(), _Body(plan, took, gave)
    sources: dict[str, None] = {}
    for number, step in enumerate(steps):
        if step.moves and body.place(step.inputs[0]) == body.place(step.output):
            continue
        sources[step.source] = None
        body.call(number, step, constants)
    arena = max(plan.bytes, 8)
    pointers = [*(f"const {p.type} *{p.name}" for p in took), *(f"{p.type} *{p.name}" for p in gave)]
    declaration = _wrapped_call(f"void {name}_invoke(", [f"{name}_context *context", *pointers])
    common = {"note": NOTE, "name": name, "NAME": name.upper(), "declaration": declaration}
    texts = {
        "model.h": _HEADER.format(**common, arena=arena, ports=_each(_port_lines(name, p) for p in (*took, *gave))),
        "model.c": _SOURCE.format(**common, constants=_each(constants.texts) + "\n", body=body.text(plan.bytes > 0)),
        **kernel_files(sources),
        "golden.h": _golden_text(common, took, gave, golden),
        "main.c": _main_text(common, took, gave),
    }
    return texts, constants.bytes


class _Body:
    """The calls within the invoke function."""

    def __init__(self, plan: Plan, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self._plan = plan
        self._ports = {port.tensor.index: port.name for port in (*inputs, *outputs)}
        self._lines: list[str] = []

    def place(self, tensor: Tensor) -> str | int | None:
        """A port's name, an offset in the arena, or None for a constant."""
        return self._ports.get(tensor.index, self._plan.tensors.get(tensor.index))

    def call(self, number: int, step: Step, constants: Constants) -> None:
        """Adds one."""
        name = constants.structure(f"layer{number}", step)
        arguments = [f"&{name}", *(self._pointer(t, f"constant{t.index}", constants) for t in step.inputs)]
        arguments.append(self._pointer(step.output, "", constants))
        if step.scratch is not None:
            offset = self._plan.scratch.get(number)
            arguments.append("NULL" if offset is None else f"(void *)(arena + {offset})")
        self._lines.append(_wrapped_call(f"  {step.kernel}(", arguments) + ";")

    def _pointer(self, tensor: Tensor, name: str, constants: Constants) -> str:
        if tensor.data is not None:
            return constants.array(name, tensor.data)
        place = self.place(tensor)
        text = f"arena + {place}" if isinstance(place, int) else str(place)
        if tensor.dtype == "float32" and isinstance(place, int):
            return f"(float *)(void *)({text})"
        return text if tensor.dtype != "uint8" else f"(const int8_t *){text}"

    def text(self, arena: bool) -> str:
        """The lines."""
        first = "  int8_t *const arena = context->arena.bytes;" if arena else "  (void)context;"
        return "\n".join([first, *self._lines])


def kernel_files(sources: Iterable[str]) -> dict[str, str]:
    """The files of the folder that hold kernels, name -> text: orbit_kernels.c, and the headers that it includes.

    Args:
        sources: files in kernels/.
    """
    texts = [kernel_text(name) for name in sorted(sources)]
    own = '#include "orbit_kernels.h"\n'
    files = {"orbit_kernels.c": f"{NOTE}\n{own}\n" + "\n".join(text.replace(own, "") for text in texts)}

    def add_headers(text: str) -> None:
        for name in re.findall(r'^#include "(.*)"$', text, flags=re.MULTILINE):
            if name not in files:
                files[name] = kernel_text(name)
                add_headers(files[name])

    add_headers(files["orbit_kernels.c"])
    return files


def kernel_text(name: str) -> str:
    """A file of kernels/."""
    return resources.files("orbit_kd.exporters.c99").joinpath("kernels", name).read_text(encoding="utf-8")


def _port_lines(name: str, port: Port) -> str:
    upper, tensor = f"{name}_{port.name}".upper(), port.tensor
    shape = " x ".join(map(str, tensor.shape[1:])) or "1"
    lines = [f"#define {upper}_SIZE {tensor.size} /* {port.type}, {shape}; {_comment(tensor.name)} */"]
    if tensor.scale:
        lines += [f"#define {upper}_SCALE {_float(tensor.scale)}", f"#define {upper}_ZERO_POINT ({tensor.zero})"]
    return "\n".join(lines)


def _golden_text(common: dict[str, str], took: Sequence[Port], gave: Sequence[Port], golden: Golden) -> str:
    arrays = [
        f"static const {port.type} golden_{port.name}[{values.size}] = {{\n{_rows(values)}\n}};"
        for port, values in zip((*took, *gave), (*golden.inputs, *golden.outputs), strict=True)
    ]
    return _GOLDEN.format(**common, origin=golden.origin, arrays=_each(arrays))


def _main_text(common: dict[str, str], took: Sequence[Port], gave: Sequence[Port]) -> str:
    name = common["NAME"]
    return _MAIN.format(
        **common,
        buffers="\n".join(f"static {p.type} {p.name}[{name}_{p.name.upper()}_SIZE];" for p in gave),
        arguments=", ".join([*(f"golden_{p.name}" for p in took), *(p.name for p in gave)]),
        checks=" && ".join(f"!memcmp({p.name}, golden_{p.name}, sizeof({p.name}))" for p in gave),
    )


def _each(texts: Iterable[str]) -> str:
    return "\n".join(texts)


def _rows(values: np.ndarray) -> str:
    flat = [_float(v) for v in values.reshape(-1)] if values.dtype.kind == "f" else values.reshape(-1).tolist()
    return "\n".join("".join(f"{value}," for value in flat[i : i + 24]) for i in range(0, len(flat), 24))


def _float(value: float) -> str:
    return f"{np.float32(value)!s}f"  # the shortest text that reads back as the same float


def _comment(text: str) -> str:
    """A name of the file in a comment, which it must not end."""
    return re.sub(r"[^\w ./:;-]", "_", text, flags=re.ASCII)


def _wrapped(parts: Sequence[str], *, indent: str) -> str:
    lines, line = [], indent
    for part in parts:
        if len(line) + len(part) > 117 and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{part}, "
    return "\n".join([*lines, line.rstrip().rstrip(",")])


def _wrapped_call(start: str, arguments: Sequence[str]) -> str:
    text = f"{start}{', '.join(arguments)})"
    return text if len(text) <= 118 else start + "\n" + _wrapped(arguments, indent=" " * 6) + ")"
