"""From operators to calls of C kernels. A new operator is one function here, and its registration.

@operator("NEG")
def neg(call: Call, choice: Choice) -> list[Step]: ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99.network import Call, Network, Tensor
from orbit_kd.registry import Registry

Value = int | float | tuple[int, ...] | np.ndarray
Fields = dict[str, Value]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the user leaves to each layer: `prefer` "speed" or "bytes" for the format of its weights."""

    prefer: str


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One call of a kernel: `kernel(&parameters, inputs..., output[, scratch])`.

    Attributes:
        operator: TFLite's name.
        layer: for people.
        kernel: the C function.
        source: the file in kernels/ that holds it; what it includes is there, too.
        type: the C type of its parameters.
        fields: of the parameters, by name: a number, a tuple for an array within, a NumPy array for a pointer to one.
        inputs: tensors.
        output: tensor.
        scratch: bytes of memory that the kernel may overwrite; None for kernels without.
        in_place: the output may lie where an input lies, of the same bytes at most.
        moves: it changes no value and keeps the order, so that in place it is not called at all.
        details: for the manifest.
    """

    operator: str
    layer: str
    kernel: str
    source: str
    type: str
    fields: Mapping[str, Value]
    inputs: tuple[Tensor, ...]
    output: Tensor
    scratch: int | None = None
    in_place: bool = False
    moves: bool = False
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        call: Call,
        kernel: str,
        source: str,
        type: str,
        fields: Mapping[str, Value],
        *inputs: Tensor,
        **other: Any,
    ) -> Step:
        """A step of an operator that writes its first output, unless `other` names another one.

        Args:
            call: the operator.
            kernel, source, type, fields: see `Step`.
            *inputs: tensors.
            **other: further attributes.
        """
        output = other.pop("output", call.output)
        return cls(call.operator, call.layer, kernel, source, type, fields, inputs, output, **other)


@dataclasses.dataclass(frozen=True)
class Operator:
    """What is known of an operator: how it becomes steps, and the types of its activations."""

    lower: Callable[[Call, Choice], list[Step]]
    dtypes: frozenset[str]


operators: Registry[Operator] = Registry("operator of the target c99")
Lower = Callable[[Call, Choice], list[Step]]


def operator(*names: str, dtypes: tuple[str, ...] = ("int8",)) -> Callable[[Lower], Lower]:
    """Decorator that files a function under TFLite's names of operators.

    Args:
        *names: "ADD", ...
        dtypes: that its activations may have.
    """

    def file(lower: Lower) -> Lower:
        operators.register(*names)(Operator(lower, frozenset(dtypes)))
        return lower

    return file


def lower(network: Network, choice: Choice) -> list[Step]:
    """The steps of a network, in order.

    Raises:
        InputError: an operator that has no kernel, activations that are not int8, or what an operator refuses.
    """
    steps: list[Step] = []
    for call in network.calls:
        if call.operator not in operators:
            raise call.refusal(
                "has no C99 kernel",
                expected=f"one of: {', '.join(operators.names())}",
                fix="replace the layer, use the target tflm, or write the kernel and register a function for it in "
                "orbit_kd/exporters/c99/operators/",
            )
        entry = operators.get(call.operator)
        for tensor in (*call.inputs, *call.outputs):
            if tensor is not None and tensor.data is None and tensor.dtype not in entry.dtypes:
                raise call.refusal(
                    f"has an activation of {tensor.dtype}, {tensor.name[:80]!r}",
                    expected=" or ".join(sorted(entry.dtypes)),
                    fix="export the model to tflite_int8, without layers that stay in float",
                )
        steps += entry.lower(call, choice)
    _check_outputs(network, {step.output.index for step in steps})
    return steps


def _check_outputs(network: Network, made: set[int]) -> None:
    """Each output of the network needs a step that writes it to the caller's memory, and only there."""
    indices = [tensor.index for tensor in network.outputs]
    for tensor in network.outputs:
        if tensor.index not in made or indices.count(tensor.index) > 1:
            raise InputError(
                f"The output {tensor.name[:80]!r} is "
                + ("another output, too." if tensor.index in made else "an input or a constant: nothing computes it."),
                expected="outputs that the network computes, each of its own",
                fix="leave it out of the model",
            )
