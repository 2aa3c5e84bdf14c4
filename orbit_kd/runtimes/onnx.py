"""Runs ONNX files with onnxruntime on the CPU: NHWC float32 in, float32 out (extra `fpga`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.ports import Port, as_tuple, check_batch, joined
from orbit_kd.runtimes.runner import Model, Runner, runtimes
from orbit_kd.support.extras import require
from orbit_kd.tflite.reader import read_bytes

_BATCH = 32


@runtimes.register("onnx")
def load_onnx(model: Model, threads: int) -> Runner:
    """Loads an ONNX file, given by its path or its bytes.

    Raises:
        InputError: onnxruntime is not installed, cannot read the file or lacks an operator of it, or an input
            of it is not float32 of fixed sizes (the batch may be open).
    """
    require("onnxruntime", extra="fpga")
    return OnnxRunner(read_bytes(model), threads)


class OnnxRunner:
    """An ONNX file; batches of 32 where its batch is open, else of the size written in it."""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what matters comes as an exception
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no other base
            raise InputError(
                f"onnxruntime cannot run the file: {' '.join(str(error).split())[:400]}",
                expected="an .onnx file of operators it has",
                fix="export the model again: okd.export(model, 'onnx', path=...)",
            ) from error
        sources = self._session.get_inputs()
        shapes = [entry.shape or [1] for entry in sources]
        closed = all(isinstance(n, int) for shape in shapes for n in shape[1:])
        batches = {n if isinstance(n, int) else 0 for n, *_ in shapes}  # 0 is open
        floats = all(entry.type == "tensor(float)" for entry in sources)
        if not sources or not floats or not closed or len(batches) > 1:
            ends = [f"{e.name}: {e.type} {e.shape}" for e in (*sources, *self._session.get_outputs())]
            raise InputError(
                f"The file has the inputs and outputs {'; '.join(ends)}.",
                expected="float inputs of fixed sizes (the batch may be open, and is the same for all)",
                fix="export a float32 model",
            )
        self._fixed = batches.pop()
        self.inputs = tuple(
            Port.of((1, *shape[1:]), np.float32, [], [], entry.name)
            for entry, shape in zip(sources, shapes, strict=True)
        )
        once = self._invoke([np.zeros((1, *port.shape), np.float32) for port in self.inputs])
        self.outputs = tuple(
            Port.of(array.shape, array.dtype, [], [], entry.name)
            for entry, array in zip(self._session.get_outputs(), once, strict=True)
        )
        self.input, self.output = self.inputs[0], self.outputs[0]

    def raw(self, x: Any) -> Any:
        """See `Runner.raw`."""
        parts, step = as_tuple(x, self.inputs), self._fixed or _BATCH
        starts = range(0, len(parts[0]), step)
        return joined([self._invoke([part[i : i + step] for part in parts]) for i in starts], self.outputs)

    def _invoke(self, x: list[np.ndarray]) -> list[np.ndarray]:
        count = len(x[0])
        missing = max(self._fixed - count, 0)  # of a batch larger than what is left
        filled = [np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in x]
        named = {port.name: part for port, part in zip(self.inputs, filled, strict=True)}
        out = self._session.run(None, named)
        check_batch(out, count + missing)
        return [array[:count] for array in out]
