"""Whether a Keras 3 model and its tf_keras twin give equal outputs, tried on random inputs."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from orbit_kd.errors import InputError

_SIZES = (32, 64, 128, 256, 512, 1024)  # tried in turn for the axes of unknown size
_LONG = 64  # steps of a recurrent layer
_TOLERANCE = 1e-4  # of the largest value of each sample
_HALF_TOLERANCE = 3e-2  # layers that compute in half precision

Triple = tuple[Any, Any, Any]
"""An operation of Keras 3, one of its output tensors, and the tensor that stands for it."""


class OutputCheck:
    """What a Keras 3 model gives on a batch of two, and whether its twin gives the same.

    No weight, statistic or random state of either model is changed.

    Args:
        model: Keras 3 Functional model.

    Raises:
        InputError: no input was found that the model runs on.
    """

    def __init__(self, model: Any) -> None:
        import keras  # only where a Keras 3 model is at hand

        self.model = model
        self._plain = keras.Model(model.inputs, model.outputs)
        half = any(getattr(la, "compute_dtype", "") in ("float16", "bfloat16") for la in model._flatten_layers())
        self._tolerance = _HALF_TOLERANCE if half else _TOLERANCE
        self._examples = _examples(model)
        self._next()

    def _next(self) -> None:
        """Goes on to an input that the Keras 3 model takes, and its outputs."""
        error: Exception | None = None
        for x in self._examples:
            try:
                self._x, self._expected = x, _outputs(self._plain, x)
                return
            except Exception as e:  # too small for the network, an index out of range: the next one may do
                error = e
        raise InputError(
            f"The Keras 3 model {self.model.name!r} could not be run: {_first_line(error)}",
            expected=f"a model that runs on its inputs (where a size is not fixed: {', '.join(map(str, _SIZES))})",
            fix="call it on a batch of your own; if it runs there, fix its sizes with keras.Input(shape)",
        )

    def compare(self, twin: tf_keras.Model, tensors: Sequence[Triple]) -> None:
        """Runs the twin.

        Args:
            twin: inputs and outputs in the order of the Keras 3 model's.
            tensors: those inside, in the order of computation, to name the layer that differs first.

        Raises:
            InputError: other outputs, or outputs that are random in inference.
        """
        while True:
            try:
                found = _outputs(twin, self._x)
                break
            except Exception as e:  # tf_keras checks some inputs that Keras 3 does not
                twin_error = e
            try:
                self._next()
            except InputError as error:
                raise _refusal(self.model, f"does not run: {_first_line(twin_error)}") from error
        if _worst(self._expected, found) <= self._tolerance:
            return
        if _worst(self._expected, _outputs(self._plain, self._x)) > self._tolerance:
            raise InputError(
                f"The Keras 3 model {self.model.name!r} gives other outputs at each call, in inference too.",
                expected="outputs that depend on the inputs alone",
                fix="take the random part out of the network, or make it rest where training is False",
            )
        raise _refusal(self.model, f"gives other outputs{self._first_difference(tensors)}")

    def _first_difference(self, tensors: Sequence[Triple]) -> str:
        import keras

        theirs = _outputs(keras.Model(self.model.inputs, [t for _, t, _ in tensors]), self._x)
        inputs = [ours for _, t, ours in tensors if any(t is m for m in self.model.inputs)]
        ours = _outputs(tf_keras.Model(inputs, [t for _, _, t in tensors]), self._x)
        for (operation, _, _), a, b in zip(tensors, theirs, ours, strict=True):
            if (distance := _distance(a, b)) > self._tolerance:
                much = (
                    f"in its shape ({a.shape}, {b.shape})"
                    if a.shape != b.shape
                    else f"by {distance:.2g} of its largest"
                )
                return f": {operation.name!r} ({type(operation).__name__}) is the first that differs, {much}"
        return ""


def _refusal(model: Any, why: str) -> InputError:
    return InputError(
        f"The tf_keras twin of {model.name!r} {why}.",
        expected=f"outputs that differ by at most {_TOLERANCE:g} of the largest value, on random inputs",
        fix="build the network without that layer, or build it in tf_keras and copy the weights",
    )


def _first_line(error: Exception | None) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


@contextlib.contextmanager
def unchanged(variables: Sequence[Any]) -> Iterator[None]:
    """Within it, statistics and random states may move; afterwards they are as before."""
    values = [(v, v.numpy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in values:
            variable.assign(value)


def _examples(model: Any) -> Iterator[list[np.ndarray]]:
    tables = [la.input_dim for la in model._flatten_layers() if type(la).__name__ == "Embedding"]
    unknown = any(n is None for t in model.inputs for n in t.shape[1:])
    for size, high in itertools.product(_SIZES if unknown else _SIZES[:1], [min(tables)] if tables else [256, 10, 2]):
        yield [_example(t, size, high, whole=bool(tables)) for t in model.inputs]


def _example(tensor: Any, size: int, high: int, *, whole: bool) -> np.ndarray:
    """Values of 0 to 1 in one sample and of 0 to 255 in the next, as images come; whole numbers for indices."""
    rng = np.random.default_rng(0)
    shape = (tensor.shape[0] or 2, *(n or size for n in tensor.shape[1:]))
    if tensor.dtype == "bool":
        mask = rng.integers(0, 2, shape).astype(bool)
        mask[..., 0] = True  # what attention gives where all is masked is nobody's promise
        return mask
    if whole or "int" in tensor.dtype:
        return rng.integers(0, min(high, 127 if tensor.dtype == "int8" else high), shape).astype(tensor.dtype)
    values = rng.uniform(0, 1, shape)
    values[1::2] *= 255
    return values.astype(tf.as_dtype(tensor.dtype).as_numpy_dtype)


def _outputs(model: Any, x: list[np.ndarray]) -> list[np.ndarray]:
    single = isinstance(model, tf_keras.Model) and len(x) == 1

    def run() -> Any:
        return model(x[0] if single else x, training=False)

    with warnings.catch_warnings(), unchanged(model.non_trainable_variables):
        warnings.simplefilter("ignore")  # what the model warns of, it has said to its author
        outputs = tf.function(run, autograph=False).get_concrete_function()() if _compiled(model, x) else run()
        return [_array(t) for t in tf.nest.flatten(outputs)]


def _compiled(model: Any, x: list[np.ndarray]) -> bool:
    """Whether to compile it first: recurrent layers on long sequences take seconds step by step."""
    if not any(hasattr(la, "cell") for la in model._flatten_layers()):
        return False
    if isinstance(model, tf_keras.Model):
        on_tensorflow = True
    else:
        import keras

        on_tensorflow = keras.backend.backend() == "tensorflow"
    return on_tensorflow and max(v.shape[1] for v in x if v.ndim > 1) > _LONG


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):  # of the torch backend
        tensor = tensor.detach().cpu()
    return np.asarray(tensor).astype("float64")


def _worst(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference, as a share of the largest value of the sample; inf where shapes differ."""
    return max((_distance(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, b = (np.where(np.isfinite(v), v, 0.0).reshape(len(v) if v.ndim else 1, -1) for v in (a, b))
    scale = np.maximum(np.abs(a).max(axis=1, initial=0.0), 1e-6)
    return float((np.abs(a - b).max(axis=1, initial=0.0) / scale).max(initial=0.0))
