"""What a runtime is: it loads what a target wrote, and that then takes and gives arrays. Each is filed in `runtimes`.

A runtime is a function from the file or folder that its target writes (its path; of a .tflite or .onnx file the bytes
will do) and a number of threads to a `Runner`. The target names it (`Target.runtime`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.runtimes.ports import Port
from orbit_kd.tflite.reader import only_tflm, parse

R = TypeVar("R")
Model = str | os.PathLike[str] | bytes


class Runner(Protocol):
    """A loaded file, without memory: no image leaves anything behind for the next.

    Its ports come in the order of the file, which for the targets here is that of the Keras model.

    Attributes:
        inputs: what goes in.
        outputs: what comes out.
        input: the first of the inputs, for files with one.
        output: the first of the outputs.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input: Port
    output: Port

    def raw(self, x: Any) -> Any:
        """Values as the file has them.

        Args:
            x: (n, ...) in the type of the one input; for several a tuple of such arrays, in the order of `inputs`.

        Returns:
            (n, ...) in the type of the one output; for several a tuple of such arrays, in the order of `outputs`.
        """


runtimes: Registry[Callable[[Model, int], Runner]] = Registry("runtime")


def port_names(data: bytes) -> tuple[list[str], list[str]]:
    """The names of a .tflite file's inputs and outputs, in its order: the signature's, or else the tensors'.

    Raises:
        InputError: no .tflite file, or one without inputs or outputs.
    """
    model = parse(data)
    graph = model.subgraphs[0]
    signature = next((s for s in model.signatureDefs or [] if not s.subgraphIndex), None)
    found = []
    for side, entries in (
        (graph.inputs, signature.inputs if signature else []),
        (graph.outputs, signature.outputs if signature else []),
    ):
        if side is None or not len(side):
            raise InputError(
                "The file has no inputs or no outputs.", expected="at least one of each", fix="export the model again"
            )
        left = [(entry.tensorIndex, entry.name) for entry in entries or []]
        names = []
        for tensor in side:
            entry = next((e for e in left if e[0] == tensor), None)  # one tensor may be two outputs
            if entry:
                left.remove(entry)
            name = entry[1] if entry else graph.tensors[tensor].name
            names.append((name or b"").decode(errors="replace"))
        found.append(names)
    return found[0], found[1]


def made_for(data: bytes) -> str:
    """The runtime that a .tflite file is made for: "tflm" if its constants are coded for it, else "litert"."""
    return "tflm" if only_tflm(parse(data)) else "litert"


def refuse_coded(data: bytes, name: str) -> None:
    """Raises InputError for a .tflite file that only TensorFlow Lite Micro runs."""
    if only_tflm(parse(data)):
        raise InputError(
            f"{name} cannot run the file: its constants are coded for TensorFlow Lite Micro.",
            expected='a file whose constants are stored plainly, or runtime="tflm" for this one',
            fix='run it with runtime="tflm", or take the tflite_int8 file that it was made of: both compute the same',
        )


def start_interpreter(make: Callable[[], R], name: str) -> R:
    """What `make` gives; an interpreter's RuntimeError becomes an InputError of the runtime's name."""
    try:
        return make()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot run the file: {' '.join(str(error).split())[:500]}",
            expected="a dense .tflite file of operators it has",
            fix="for microcontrollers and exact comparisons export to tflite_int8",
        ) from error
