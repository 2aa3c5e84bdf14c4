"""TensorFlow Lite Micro, from its wheel (extra `mcu`)."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.execution import probe
from orbit_kd.runtimes.ports import Port, as_tuple, one_or_all
from orbit_kd.runtimes.runner import Model, Runner, port_names, runtimes, start_interpreter
from orbit_kd.runtimes.trusted import trust, trusted
from orbit_kd.support.extras import require
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.coded_model import plain_file
from orbit_kd.tflite.reader import only_tflm, parse, read_bytes, told_if_damaged
from orbit_kd.tflite.state import State, state_of
from orbit_kd.tflite.subgraph import Subgraph

_NAME = "TensorFlow Lite Micro"
MCU_HINT = 'pip install "orbit-kd[mcu]"'


@runtimes.register("tflm")
def _tflm(model: Model, threads: int) -> Runner:
    require("tflite_micro", extra="mcu")
    with told_if_damaged():
        data = read_bytes(model)
        port_names(data)  # refuses a file without inputs or outputs
        _require_known_sizes(data)
        _require_single_images(data)
        if only_tflm(parse(data)):
            _require_sound_constants(data)
    return start_interpreter(lambda: _Tflm(data), _NAME)


def _require_single_images(data: bytes) -> None:
    """Raises InputError for a file whose ports have another batch than 1: TFLM takes no other shape than the file's."""
    graph = Subgraph(parse(data))
    sides = ("input", graph.inputs_of_graph), ("output", graph.outputs_of_graph)
    for side, shape in ((side, graph.shape(tensor)) for side, tensors in sides for tensor in tensors):
        if shape[:1] != (1,):
            raise InputError(
                f"An {side} of the file has the shape {shape}.",
                expected="a batch of 1, as a device has one image at a time",
                fix="export the model again: the targets here write a batch of 1",
            )


def _require_known_sizes(data: bytes) -> None:
    """Raises InputError for slices whose size is computed on the way, as a loop makes that collects its outputs.

    TFLM gives every tensor the size written in the file, and writes beyond it: it computes nonsense or never ends.
    """
    model = parse(data)
    for graph in (Subgraph(model, index) for index in range(len(model.subgraphs))):
        for op in graph.operators:
            if graph.name(op) != "SLICE" or 2 in dict(graph.inputs(op)):
                continue
            signature = graph.tensors[graph.outputs(op)[0]].shapeSignature
            if signature is not None and -1 in signature:
                raise InputError(
                    f"TensorFlow Lite Micro cannot run the file: the size of {graph.output_name(op)[:80]!r} (SLICE) "
                    "is known only while it runs.",
                    expected="tensors of fixed sizes",
                    fix="build recurrent layers that return sequences with unroll=True, and export again",
                )


def _require_sound_constants(data: bytes) -> None:
    """Raises InputError for a damaged coded file: TFLM's decoders follow tables and streams wherever these lead.

    The constants are decoded here, where nothing can go wrong; then the file runs in a process of its own, once.
    """
    if trusted(data):
        return
    plain_file(data)
    probe(data, runtime="tflm")
    trust(data)


def has_tflm() -> bool:
    """Whether TensorFlow Lite Micro is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


class _Tflm:
    """TensorFlow Lite Micro, one image at a time, as on the device. `arena_bytes` is what it takes of its arena."""

    def __init__(self, data: bytes) -> None:
        self._data, self._state = data, state_of(parse(data))
        self._interpreter = self._fresh()
        with native_stderr() as log:
            self._interpreter.print_allocations()
        found = re.search(r"Arena allocation total (\d+) bytes", log.text)
        self.arena_bytes = int(found[1]) if found else None
        took, gave = port_names(data)
        self.inputs = tuple(Port.of_details(self._interpreter.get_input_details(i), n) for i, n in enumerate(took))
        self.outputs = tuple(Port.of_details(self._interpreter.get_output_details(i), n) for i, n in enumerate(gave))
        self.input, self.output = self.inputs[0], self.outputs[0]

    def _fresh(self) -> Any:
        from tflite_micro.python.tflite_micro import runtime

        with native_stderr() as log:
            try:
                return runtime.Interpreter.from_bytes(self._data, arena_size=ample_arena(self._data))
            except Exception as error:
                raise RuntimeError(f"{error}. {log.text}") from error

    def raw(self, x: Any) -> Any:
        """See `Runner.raw`."""
        parts = as_tuple(x, self.inputs)
        return start_interpreter(lambda: self._run(parts), _NAME)

    def _run(self, parts: tuple[np.ndarray, ...]) -> Any:
        done = [np.zeros((len(parts[0]), *port.shape), port.dtype) for port in self.outputs]
        with native_stderr() as log:
            for i in range(len(parts[0])):
                # `reset` makes resources 0, whatever they were at first (tensorflow/tflite-micro pull 948)
                if self._state is State.RESOURCES:
                    self._interpreter = self._fresh()
                elif self._state is State.TENSORS:
                    self._interpreter.reset()
                for place, part in enumerate(parts):
                    self._interpreter.set_input(part[i : i + 1], place)
                try:
                    self._interpreter.invoke()
                except RuntimeError as error:  # an operator that lacks a type, which it sees only now
                    raise RuntimeError(f"{error} {log.text}") from error
                for place, array in enumerate(done):
                    array[i] = self._interpreter.get_output(place)[0]
        return one_or_all(done)


def ample_arena(data: bytes) -> int:
    """More than any plan needs: all activations side by side twice, and per-channel data of each weight axis."""
    model = parse(data)
    total = 1 << 20
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        elements = math.prod(int(n) for n in ([] if tensor.shape is None else tensor.shape))
        constant = model.buffers[tensor.buffer].data is not None
        total += 64 * (0 if tensor.shape is None else int(max([1, *tensor.shape]))) if constant else 16 * elements
    return total
