"""What goes into a file and comes out of it: the ports, and arrays in their order.

A file with one port takes or gives an array; with several, a tuple of arrays, one a port.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a file: its shape without the batch, its type, and how integers there stand for numbers.

    real = (integer - zero_point) * scale; scale is 0 for float ports. `name` is the file's; "" where it has none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float
    zero_point: int
    name: str = ""

    @classmethod
    def of(cls, shape: Any, dtype: Any, scales: Any, zero_points: Any, name: str = "") -> Port:
        """From what the interpreters tell."""
        scale, zero = (float(scales[0]), int(zero_points[0])) if len(scales) else (0.0, 0)
        return cls(tuple(int(n) for n in shape[1:]), np.dtype(dtype), scale, zero, name)

    @classmethod
    def of_details(cls, details: Mapping[str, Any], name: str = "") -> Port:
        """From an entry of an interpreter's `get_input_details` or `get_output_details`."""
        parameters = details["quantization_parameters"]
        return cls.of(details["shape"], details["dtype"], parameters["scales"], parameters["zero_points"], name)

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


def in_order(x: Any, ports: Sequence[Port]) -> tuple[np.ndarray, ...]:
    """Real numbers for each port, in the order of the ports, as float32 or as whole numbers.

    Args:
        x: (n, ...) for one port; for several a tuple or list in their order, or a dict by their names.
        ports: of a file.

    Raises:
        InputError: another number of arrays, other names, an array that does not fit its port, or unequal lengths.
    """
    parts = [_numbers(part, port) for part, port in zip(parts_of(x, ports), ports, strict=True)]
    for part, port in zip(parts, ports, strict=True):
        if part.shape[1:] != port.shape or not part.ndim:
            raise InputError(
                f"The images{_of(port, ports)} have shape {part.shape[1:]}.",
                expected=f"{port.shape}, the file's input without the batch",
                fix="apply the Preprocess the network was trained with"
                + ("" if len(ports) == 1 else f"; the inputs come in the order {told(ports)}"),
            )
        if not np.isfinite(part).all():
            raise InputError(
                f"The images{_of(port, ports)} hold NaN or Inf.",
                expected="finite numbers, as in training",
                fix="remove the damaged images, or mend the preprocessing",
            )
    _check_lengths(parts, ports)
    return tuple(parts)


def parts_of(x: Any, ports: Sequence[Port]) -> list[np.ndarray]:
    """The arrays for each port as they were given: of a tuple or list in the ports' order, of a dict by their names.

    Raises:
        InputError: another number of arrays, or other names.
    """
    if isinstance(x, Mapping):
        names = [port.name for port in ports]
        if set(x) != set(names) or len(set(names)) < len(names):
            raise InputError(
                f"The inputs are a dict with the keys {', '.join(map(repr, x))}.",
                expected=f"the file's inputs: {told(ports)}",
                fix="correct the names" if all(names) else "the file has no names: pass a tuple in this order",
            )
        return [np.asarray(x[name]) for name in names]
    if len(ports) == 1:
        return [np.asarray(x)]
    if not isinstance(x, (tuple, list)) or len(x) != len(ports):
        raise _wrong_number(x, ports)
    return [np.asarray(part) for part in x]


def as_tuple(x: Any, ports: Sequence[Port]) -> tuple[np.ndarray, ...]:
    """Raw arrays, as `Runner.raw` takes them, one a port.

    Raises:
        InputError: another number of arrays, or unequal lengths.
    """
    parts = (x,) if len(ports) == 1 and not isinstance(x, tuple) else x
    if not isinstance(parts, (tuple, list)) or len(parts) != len(ports):
        raise _wrong_number(parts, ports)
    _check_lengths(parts, ports)
    return tuple(parts)


def one_or_all(arrays: Sequence[np.ndarray]) -> Any:
    """The array of one port; a tuple of those of several."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def named_shapes(ports: Sequence[Port]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each port, in their order, for `datasets.as_batches`; numbered where a file has no names."""
    names = [port.name for port in ports]
    if not all(names) or len(set(names)) < len(names):
        names = [f"input_{place}" for place in range(len(ports))]
    return {name: port.shape for name, port in zip(names, ports, strict=True)}


def joined(parts: Sequence[Sequence[np.ndarray]], ports: Sequence[Port]) -> Any:
    """Batches of arrays, one a port each, put together: `one_or_all` of them; of no batch, arrays of length 0."""
    if not parts:
        return one_or_all([np.zeros((0, *port.shape), port.dtype) for port in ports])
    return one_or_all([np.concatenate(batches) for batches in zip(*parts, strict=True)])


def check_batch(arrays: Sequence[np.ndarray], count: int) -> None:
    """Raises InputError where an output has not one entry for each of `count` images."""
    for place, array in enumerate(arrays):
        if array.shape[:1] != (count,):
            raise InputError(
                f"Output {place + 1} of {len(arrays)} has the shape {array.shape} for {count} images.",
                expected="the batch as the first axis of every output",
                fix="let the network give one result an image",
            )


def told(ports: Sequence[Port]) -> str:
    """The ports in words, for messages."""
    return ", ".join(f"{port.name!r} {port.shape}" if port.name else str(port.shape) for port in ports)


def _wrong_number(x: Any, ports: Sequence[Port]) -> InputError:
    given = f"{len(x)} arrays" if isinstance(x, (tuple, list)) else f"one {type(x).__name__}"
    return InputError(
        f"The file has {len(ports)} input{'s' * (len(ports) > 1)}, and {given} came.",
        expected=f"an array for each of: {told(ports)}",
        fix="pass them as a tuple in this order, or as a dict by these names" if len(ports) > 1 else "pass one array",
    )


def _numbers(x: Any, port: Port) -> np.ndarray:
    # numbers of words, in an integer without a scale, may be larger than float32 holds exactly
    return np.asarray(x) if port.dtype.kind in "iu" and not port.scale else np.asarray(x, np.float32)


def _check_lengths(parts: Sequence[np.ndarray], ports: Sequence[Port]) -> None:
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise InputError(
            f"The inputs hold {' and '.join(map(str, lengths))} examples.",
            expected=f"as many of each: {told(ports)}",
            fix="pass arrays of the same examples, the batch first",
        )


def _of(port: Port, ports: Sequence[Port]) -> str:
    if len(ports) == 1:
        return ""
    return f" of input {ports.index(port) + 1}" + (f", {port.name!r}," if port.name else "")
