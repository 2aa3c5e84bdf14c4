"""Runs ONNX files with onnxruntime on the CPU: NHWC float32 in, float32 out (extra `fpga`)."""

from __future__ import annotations

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.runner import Model, Port, Runner, runtimes
from orbit_kd.support.extras import require
from orbit_kd.tflite.reader import read_bytes

_BATCH = 32


@runtimes.register("onnx")
def load_onnx(model: Model, threads: int) -> Runner:
    """Loads an ONNX file, given by its path or its bytes.

    Raises:
        InputError: onnxruntime is not installed, cannot read the file or lacks an operator of it, or the file has not
            one float32 input of fixed sizes (the batch may be open) and one output.
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
        sources, sinks = self._session.get_inputs(), self._session.get_outputs()
        batch, *sizes = sources[0].shape if sources and sources[0].shape else [1]
        closed = all(isinstance(n, int) for n in sizes)
        if (len(sources), len(sinks)) != (1, 1) or sources[0].type != "tensor(float)" or not closed:
            ends = [f"{e.name}: {e.type} {e.shape}" for e in (*sources, *sinks)]
            raise InputError(
                f"The file has the inputs and outputs {'; '.join(ends)}.",
                expected="one float input of fixed sizes (the batch may be open) and one output",
                fix="export a float32 model with a single input and output",
            )
        self._name, self._fixed = sources[0].name, batch if isinstance(batch, int) else 0
        self.input = Port.of((1, *sizes), np.float32, [], [])
        once = self._invoke(np.zeros((1, *sizes), np.float32))
        self.output = Port.of(once.shape, once.dtype, [], [])

    def raw(self, x: np.ndarray) -> np.ndarray:
        """See `Runner.raw`."""
        step = self._fixed or _BATCH
        done = [self._invoke(x[i : i + step]) for i in range(0, len(x), step)]
        return np.concatenate(done) if done else np.zeros((0, *self.output.shape), self.output.dtype)

    def _invoke(self, x: np.ndarray) -> np.ndarray:
        missing = max(self._fixed - len(x), 0)  # of a batch larger than what is left
        filled = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x
        return self._session.run(None, {self._name: filled})[0][: len(x)]
