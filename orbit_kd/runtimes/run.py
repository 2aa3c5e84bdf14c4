"""Runs exported .tflite files on the real runtimes: LiteRT, its reference kernels, and TensorFlow Lite Micro."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.support.extras import require
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import Graph, State, parse, read_bytes, state_of

Model = str | os.PathLike[str] | bytes
MCU_HINT = 'pip install "orbit-kd[mcu]"'
_BATCH = 32
_PROBE_SECONDS = 600  # of one inference, and of loading the libraries on a busy machine
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a file: its shape without the batch, its type, and how integers there stand for numbers.

    real = (integer - zero_point) * scale; scale is 0 for float ports.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float
    zero_point: int

    @classmethod
    def of(cls, shape: Any, dtype: Any, scales: Any, zero_points: Any) -> Port:
        """From what the interpreters tell."""
        scale, zero = (float(scales[0]), int(zero_points[0])) if len(scales) else (0.0, 0)
        return cls(tuple(int(n) for n in shape[1:]), np.dtype(dtype), scale, zero)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real numbers -> this port's type, rounded half to even and saturated.

        Raises:
            InputError: integers without a scale (pixels as they are, word numbers) are asked for, and `x` holds others.
        """
        if not self.scale:
            return np.ascontiguousarray(x if self.dtype.kind == "f" else self._whole(x), self.dtype)
        limits = np.iinfo(self.dtype)
        steps = np.rint(np.asarray(x, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.clip(steps, limits.min, limits.max).astype(self.dtype)

    def _whole(self, x: np.ndarray) -> np.ndarray:
        low, high = (0, 1) if self.dtype == bool else (np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
        if x.size and not (low <= x.min() and x.max() <= high and (x == np.rint(x)).all()):
            raise InputError(
                f"The file's input is {self.dtype.name} with no scale, and the images run from {x.min()} to {x.max()}"
                f"{'' if (x == np.rint(x)).all() else ' with fractions'}.",
                expected=f"whole numbers from {low} to {high}",
                fix="pass them as the network reads them, for example pixels from 0 to 255",
            )
        return x

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """This port's type -> float32."""
        if not self.scale:
            return q.astype(np.float32)
        return (q.astype(np.float32) - self.zero_point) * np.float32(self.scale)


class Runner(Protocol):
    """A loaded file with one input and one output, without memory: no image leaves anything behind for the next."""

    input: Port
    output: Port

    def raw(self, x: np.ndarray) -> np.ndarray:
        """Values of the input port's type (n, ...) -> values of the output port's type (n, ...)."""


runtimes: Registry[Callable[[bytes, int], Runner]] = Registry("runtime")


def load(model: Model, *, runtime: str = "litert", threads: int = 1) -> Runner:
    """Loads a .tflite file (an .onnx file for "onnx"), given by its path or its bytes.

    Args:
        model: the file.
        runtime: "litert" (the kernels a phone or Linux board runs), "litert_reference" (plain kernels, the yardstick
            for bit-exactness), "tflm" (TensorFlow Lite Micro; extra `mcu`) or "onnx" (onnxruntime; extra `fpga`).
        threads: for LiteRT; TFLM always has one.

    Raises:
        InputError: no .tflite file, several inputs or outputs, an unknown runtime or one that is not installed, or a
            file that this runtime cannot run.
    """
    if threads < 1:
        raise InputError(f"threads={threads}.", expected="at least 1", fix="1 is a single core")
    return runtimes.get(runtime)(read_bytes(model), threads)


def _one_in_one_out(data: bytes) -> bytes:
    graph = parse(data).subgraphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InputError(
            f"The file has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs.",
            expected="one of each: images in, logits out",
            fix="export a model with a single input and output",
        )
    return data


def predict(model: Model, x: Any, *, runtime: str = "litert", threads: int = 1, raw: bool = False) -> np.ndarray:
    """Runs a file on images.

    Args:
        model: path or bytes of a .tflite file.
        x: (n, ...) real numbers as the network saw them in training; they are quantized as the file says.
        runtime: see `load`.
        threads: see `load`.
        raw: return what the file puts out, e.g. int8, instead of real numbers.

    Returns:
        (n, classes), float32 unless `raw`.

    Raises:
        InputError: as `load`; or images of another shape.
    """
    return run(load(model, runtime=runtime, threads=threads), x, raw=raw)


def run(runner: Runner, x: Any, *, raw: bool = False) -> np.ndarray:
    """`predict` for a file that is loaded already."""
    # numbers of words, in an integer without a scale, may be larger than float32 holds exactly
    x = np.asarray(x) if runner.input.dtype.kind in "iu" and not runner.input.scale else np.asarray(x, np.float32)
    if x.shape[1:] != runner.input.shape:
        raise InputError(
            f"The images have shape {x.shape[1:]}.",
            expected=f"{runner.input.shape}, the file's input without the batch",
            fix="apply the Preprocess the network was trained with",
        )
    if not np.isfinite(x).all():
        raise InputError(
            "The images hold NaN or Inf.",
            expected="finite numbers, as in training",
            fix="remove the damaged images, or mend the preprocessing",
        )
    out = runner.raw(runner.input.quantize(x))
    return out if raw else runner.output.dequantize(out)


def probe(model: Model, *, runtime: str = "litert") -> None:
    """Runs a file once on zeros in a process of its own: native code that aborts must not take the caller with it.

    Nor must it go on for ever. LiteRT 2.3 aborts, for example, on int8 files of normalization layers that were
    calibrated on constant images.

    Raises:
        InputError: the file does not run there.
    """
    code = "import sys; from orbit_kd import runtimes; runtimes._probe_here(sys.stdin.buffer.read(), sys.argv[1])"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, runtime],
            input=read_bytes(model),
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"The runtime {runtime!r} does not finish one inference of this file in {_PROBE_SECONDS} seconds.",
            expected="a file that runs",
            fix="look for a loop in it; recurrent layers built with unroll=True have none",
        ) from error
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        ending = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise InputError(
            f"The runtime {runtime!r} ends its process on this file ({ending}: {last[0][:200]}).",
            expected="a file that runs",
            fix="calibrate with real, varied images; or replace layers that have no direct int8 form",
        )


def _probe_here(data: bytes, runtime: str) -> None:
    try:
        runner = load(data, runtime=runtime)
        run(runner, np.zeros((1, *runner.input.shape), np.float32))
    except InputError:
        pass  # told properly, the caller will see it when it runs the file itself


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
        self.input, self.output = (
            Port.of(
                d["shape"],
                d["dtype"],
                d["quantization_parameters"]["scales"],
                d["quantization_parameters"]["zero_points"],
            )
            for d in (self._one.get_input_details()[0], self._one.get_output_details()[0])
        )

    def raw(self, x: np.ndarray) -> np.ndarray:
        """See `Runner.raw`."""
        done: list[np.ndarray] = []
        whole = len(x) - len(x) % _BATCH
        if whole and self._batches_work(x[:_BATCH]):
            done = [self._invoke(self._many, x[i : i + _BATCH]) for i in range(0, whole, _BATCH)]
        rest = x[len(done) * _BATCH :]
        for i in range(len(rest)):
            if self._state is State.RESOURCES:  # which `reset_all_variables` of LiteRT 2.3 leaves as they are
                self._one = self._ready(1)
            elif self._state is State.TENSORS:
                self._one.reset_all_variables()
            done.append(self._invoke(self._one, rest[i : i + 1]))
        return np.concatenate(done) if done else np.zeros((0, *self.output.shape), self.output.dtype)

    def _batches_work(self, x: np.ndarray) -> bool:
        """Tries a batch once: a graph with its batch of 1 written into a shape fails here, or gives other numbers."""
        if self._many_works and self._many is None:
            with native_stderr():
                try:
                    self._many = self._ready(len(x))
                    together = self._invoke(self._many, x)
                    alone = np.concatenate([self._invoke(self._one, x[i : i + 1]) for i in range(len(x))])
                    self._many_works = _same(together, alone)
                except (RuntimeError, ValueError):
                    self._many_works = False
        return self._many_works

    def _ready(self, batch: int) -> Any:
        with native_stderr() as log:
            try:
                interpreter = self._make()
                place = interpreter.get_input_details()[0]
                shape = (batch, *(int(n) for n in place["shape"][1:]))
                if tuple(place["shape"]) != shape:
                    interpreter.resize_tensor_input(place["index"], shape)
                interpreter.allocate_tensors()
                return interpreter
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(f"{error}\n{log.text}") from error

    @staticmethod
    def _invoke(interpreter: Any, x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal integers; floats up to the order of additions."""
    if a.shape != b.shape or np.issubdtype(a.dtype, np.integer):
        return np.array_equal(a, b)
    scale = float(np.nan_to_num(np.abs(b)).max(initial=0))
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True))


@runtimes.register("litert")
def _litert(data: bytes, threads: int) -> Runner:
    data = _one_in_one_out(data)
    return _runnable(lambda: _Litert(data, threads), "LiteRT")


@runtimes.register("litert_reference")
def _litert_reference(data: bytes, threads: int) -> Runner:
    data = _one_in_one_out(data)
    return _runnable(lambda: _Litert(data, threads, reference=True), "LiteRT")


@runtimes.register("tflm")
def _tflm(data: bytes, threads: int) -> Runner:
    require("tflite_micro", extra="mcu")
    data = _one_in_one_out(data)
    _require_known_sizes(data)
    return _runnable(lambda: _Tflm(data), "TensorFlow Lite Micro")


def _require_known_sizes(data: bytes) -> None:
    """Raises InputError for slices whose size is computed on the way, as a loop makes that collects its outputs.

    TFLM gives every tensor the size written in the file, and writes beyond it: it computes nonsense or never ends.
    """
    model = parse(data)
    for graph in (Graph(model, index) for index in range(len(model.subgraphs))):
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


def has_tflm() -> bool:
    """Whether TensorFlow Lite Micro is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


def _runnable(make: Callable[[], R], name: str) -> R:
    try:
        return make()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot run the file: {' '.join(str(error).split())[:500]}",
            expected="a dense .tflite file of operators it has",
            fix="for microcontrollers and exact comparisons export to tflite_int8",
        ) from error


class _Tflm:
    """TensorFlow Lite Micro, one image at a time, as on the device. `arena_bytes` is what it takes of its arena."""

    def __init__(self, data: bytes) -> None:
        self._data, self._state = data, state_of(parse(data))
        self._interpreter = self._fresh()
        with native_stderr() as log:
            self._interpreter.print_allocations()
        found = re.search(r"Arena allocation total (\d+) bytes", log.text)
        self.arena_bytes = int(found[1]) if found else None
        self.input, self.output = (
            Port.of(
                d["shape"],
                d["dtype"],
                d["quantization_parameters"]["scales"],
                d["quantization_parameters"]["zero_points"],
            )
            for d in (self._interpreter.get_input_details(0), self._interpreter.get_output_details(0))
        )

    def _fresh(self) -> Any:
        from tflite_micro.python.tflite_micro import runtime

        with native_stderr() as log:
            try:
                return runtime.Interpreter.from_bytes(self._data, arena_size=_ample_arena(self._data))
            except Exception as error:
                raise RuntimeError(f"{error}. {log.text}") from error

    def raw(self, x: np.ndarray) -> np.ndarray:
        """See `Runner.raw`."""
        done = np.zeros((len(x), *self.output.shape), self.output.dtype)
        for i in range(len(x)):
            if self._state is State.RESOURCES:  # whose first values `reset` does not bring back: it makes them 0
                self._interpreter = self._fresh()
            elif self._state is State.TENSORS:
                self._interpreter.reset()
            self._interpreter.set_input(x[i : i + 1], 0)
            self._interpreter.invoke()
            done[i] = self._interpreter.get_output(0)[0]
        return done


def _ample_arena(data: bytes) -> int:
    """More than any plan needs: all activations side by side twice, and per-channel data of each weight axis."""
    model = parse(data)
    total = 1 << 20
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        elements = math.prod(int(n) for n in ([] if tensor.shape is None else tensor.shape))
        constant = model.buffers[tensor.buffer].data is not None
        total += 64 * (0 if tensor.shape is None else int(max([1, *tensor.shape]))) if constant else 16 * elements
    return total


import orbit_kd.runtimes.onnx  # noqa: E402, F401  files the runtime "onnx"
