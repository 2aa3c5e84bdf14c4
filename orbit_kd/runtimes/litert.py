"""LiteRT: the kernels that a phone or Linux board runs, and its reference kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd.runtimes.ports import Port, as_tuple, check_batch, joined
from orbit_kd.runtimes.runner import Model, Runner, port_names, refuse_coded, runtimes, start_interpreter
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse, read_bytes
from orbit_kd.tflite.state import State, state_of

_BATCH = 32
_Arrays = list[np.ndarray]


class _Litert:
    """LiteRT. Batches where the graph permits, which is faster; else one image at a time. The results are the same.

    A file with variables (LSTM, streaming) runs one image at a time, each from the variables' first values.
    """

    def __init__(self, data: bytes, threads: int, *, reference: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
        self._make = lambda: Interpreter(model_content=data, num_threads=threads, experimental_op_resolver_type=kind)
        self._state = state_of(parse(data))
        self._one = self._ready(1)
        self._many: Any = None
        self._many_works = not reference and self._state is State.NONE
        names = port_names(data)
        self.inputs, self.outputs = (
            tuple(Port.of_details(d, name) for d, name in zip(side, called, strict=True))
            for side, called in zip((self._one.get_input_details(), self._one.get_output_details()), names, strict=True)
        )
        self.input, self.output = self.inputs[0], self.outputs[0]

    def raw(self, x: Any) -> Any:
        """See `Runner.raw`."""
        parts = as_tuple(x, self.inputs)
        count, done = len(parts[0]), list[_Arrays]()
        whole = count - count % _BATCH
        if whole and self._batches_work(_rows(parts, 0, _BATCH)):
            done = [self._invoke(self._many, _rows(parts, i, _BATCH)) for i in range(0, whole, _BATCH)]
        for i in range(len(done) * _BATCH, count):
            if self._state is State.RESOURCES:  # which `reset_all_variables` of LiteRT 2.3 leaves as they are
                self._one = self._ready(1)
            elif self._state is State.TENSORS:
                self._one.reset_all_variables()
            done.append(self._invoke(self._one, _rows(parts, i, 1)))
        return joined(done, self.outputs)

    def _batches_work(self, x: _Arrays) -> bool:
        """Tries a batch once: a graph with its batch of 1 written into a shape fails here, or gives other numbers."""
        if self._many_works and self._many is None:
            with native_stderr():
                try:
                    self._many = self._ready(len(x[0]))
                    together = self._invoke(self._many, x)
                    alone = [self._invoke(self._one, _rows(x, i, 1)) for i in range(len(x[0]))]
                    self._many_works = all(
                        _same(a, np.concatenate(b)) for a, b in zip(together, zip(*alone, strict=True), strict=True)
                    )
                except (RuntimeError, ValueError):
                    self._many_works = False
        return self._many_works

    def _ready(self, batch: int) -> Any:
        with native_stderr() as log:
            try:
                interpreter = self._make()
                for place in interpreter.get_input_details():
                    shape = (batch, *(int(n) for n in place["shape"][1:]))
                    if tuple(place["shape"]) != shape:
                        interpreter.resize_tensor_input(place["index"], shape)
                interpreter.allocate_tensors()
                return interpreter
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(f"{error}\n{log.text}") from error

    @staticmethod
    def _invoke(interpreter: Any, x: _Arrays) -> _Arrays:
        for place, part in zip(interpreter.get_input_details(), x, strict=True):
            interpreter.set_tensor(place["index"], part)
        interpreter.invoke()
        out = [interpreter.get_tensor(place["index"]) for place in interpreter.get_output_details()]
        check_batch(out, len(x[0]))
        return out


def _rows(x: Sequence[np.ndarray], first: int, count: int) -> _Arrays:
    return [part[first : first + count] for part in x]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal integers; floats up to the order of additions."""
    if a.shape != b.shape or np.issubdtype(a.dtype, np.integer):
        return np.array_equal(a, b)
    scale = float(np.nan_to_num(np.abs(b)).max(initial=0))
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True))


@runtimes.register("litert")
def _litert(model: Model, threads: int) -> Runner:
    data = read_bytes(model)
    refuse_coded(data, "LiteRT")
    return start_interpreter(lambda: _Litert(data, threads), "LiteRT")


@runtimes.register("litert_reference")
def _litert_reference(model: Model, threads: int) -> Runner:
    data = read_bytes(model)
    refuse_coded(data, "LiteRT")
    return start_interpreter(lambda: _Litert(data, threads, reference=True), "LiteRT")
