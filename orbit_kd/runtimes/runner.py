"""What a runtime is: it loads what a target wrote, and that then takes and gives arrays. Each is filed in `runtimes`.

A runtime is a function from the file or folder that its target writes (its path; of a .tflite or .onnx file the bytes
will do) and a number of threads to a `Runner`. The target names it (`Target.runtime`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.tflite.reader import only_tflm, parse, read_bytes

R = TypeVar("R")
Model = str | os.PathLike[str] | bytes


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

    @classmethod
    def of_details(cls, details: Mapping[str, Any]) -> Port:
        """From an entry of an interpreter's `get_input_details` or `get_output_details`."""
        parameters = details["quantization_parameters"]
        return cls.of(details["shape"], details["dtype"], parameters["scales"], parameters["zero_points"])

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


runtimes: Registry[Callable[[Model, int], Runner]] = Registry("runtime")


def check_ports(model: Model) -> bytes:
    """The content of a .tflite file, or InputError where it cannot be read or has not one input and one output."""
    data = read_bytes(model)
    graph = parse(data).subgraphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InputError(
            f"The file has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs.",
            expected="one of each: images in, logits out",
            fix="export a model with a single input and output",
        )
    return data


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
