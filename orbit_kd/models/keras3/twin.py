"""The tf_keras twin of a Keras 3 model: the same layers and weights, in the Keras that tfmot and TFLite take.

Layers are made anew (`layers`) and called along the Keras 3 graph; operations of `keras.ops` become the
TensorFlow operations they stand for (`operations`). Both models then run on random inputs (`check`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import orbit_kd.models.keras3.array_operations
import orbit_kd.models.keras3.builders  # noqa: F401  registers its layers
from orbit_kd.errors import InputError
from orbit_kd.models.keras3.check import OutputCheck, Triple
from orbit_kd.models.keras3.layers import build_layer, copy_weights
from orbit_kd.models.keras3.operations import OPERATIONS

log = logging.getLogger("orbit_kd")


def is_keras3(model: Any) -> bool:
    """Whether an object is a model of Keras 3, told without importing it."""
    return any(cls.__module__.startswith("keras.src.models") for cls in type(model).__mro__)


def from_keras3(model: Any) -> tf_keras.Model:
    """The tf_keras twin of a Functional or Sequential Keras 3 model, with the same names and weights.

    Both run once on random inputs, and neither is changed by that. Augmentation layers that tf_keras lacks rest in
    inference and are left out, which is logged as a warning.

    Raises:
        InputError: a layer, an operation or an option that tf_keras has no equal of; a twin whose outputs differ; a
            model without a graph.
    """
    twin = _Twin()
    found = twin.model(model)
    check = OutputCheck(_graph(model))
    for theirs, ours in twin.pairs:
        copy_weights(theirs, ours)
    check.compare(found, twin.tensors)
    if twin.left_out:
        log.warning(
            "The augmentation in %r is left out of its tf_keras twin, for tf_keras has none such: %s. What is trained "
            "from the twin needs augmentation in its data.",
            model.name,
            ", ".join(twin.left_out),
        )
    return found


def load_keras3(path: str, *, trust_code: bool = False, custom_objects: dict[str, Any] | None = None) -> tf_keras.Model:
    """Reads a file that Keras 3 wrote, and returns its twin."""
    import keras

    return from_keras3(
        keras.models.load_model(path, compile=False, safe_mode=not trust_code, custom_objects=custom_objects)
    )


def _graph(model: Any) -> Any:
    graph = getattr(model, "_functional", None) or model  # a Sequential keeps its graph there
    if not getattr(graph, "_nodes_by_depth", None):
        raise InputError(
            f"The Keras 3 model {model.name!r} has no layer graph.",
            expected="a Functional model, or a Sequential one that knows its input shape",
            fix="build it with keras.Input; a subclassed model: keras.Model(inputs, model.call(inputs))",
        )
    return graph


class _Twin:
    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.pairs: list[tuple[Any, tf_keras.layers.Layer]] = []
        self.left_out: list[str] = []
        self.tensors: list[Triple] = []  # of the model that was walked last, which is the outermost

    def model(self, model: Any) -> tf_keras.Model:
        graph = _graph(model)
        tensors: dict[int, Any] = {}
        triples: list[Triple] = []
        inputs = []
        for t in graph.inputs:
            operation = t._keras_history.operation
            inputs.append(tf_keras.Input(batch_shape=t.shape, dtype=t.dtype, name=operation.name))
            tensors[id(t)] = inputs[-1]
            triples.append((operation, t, inputs[-1]))
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if type(node.operation).__name__ == "InputLayer":
                    continue
                outputs = tf.nest.flatten(self.call(node, tensors))
                theirs = tf.nest.flatten(node.outputs)
                tensors.update(zip(map(id, theirs), outputs, strict=True))
                triples += [(node.operation, a, b) for a, b in zip(theirs, outputs, strict=True)]
        outputs = [tensors[id(t)] for t in graph.outputs]
        self.tensors = triples
        return tf_keras.Model(_alone(inputs), _alone(outputs), name=model.name)

    def call(self, node: Any, tensors: dict[int, Any]) -> Any:
        """Does in the twin what one call did in the Keras 3 graph."""
        operation = node.operation
        args, kwargs = tf.nest.map_structure(
            lambda v: tensors[id(v)] if id(v) in tensors else _constant(v),
            (node.arguments.args, node.arguments.kwargs),
        )
        ours = self.operation(operation)
        try:
            if is_keras3(operation):
                return ours(_alone(tf.nest.flatten(args)), **_given(operation, ours, args, kwargs))
            return ours(*args, **_given(operation, ours, args, kwargs))
        except InputError:
            raise
        except Exception as e:  # TensorFlow and tf_keras raise nearly anything
            raise InputError(
                f"{operation.name!r} ({type(operation).__name__}) of the Keras 3 model cannot be called in tf_keras: "
                f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}",
                expected="a layer or operation that tf_keras can run on the same tensors",
                fix="put a layer in its place that both have, or build the network in tf_keras and copy the weights",
            ) from e

    def operation(self, operation: Any) -> Callable[..., Any]:
        """What stands for a Keras 3 layer or operation; made once, so that shared layers stay shared."""
        if id(operation) not in self.made:
            self.made[id(operation)] = self.make(operation)
        return self.made[id(operation)]

    def make(self, operation: Any) -> Callable[..., Any]:
        name = type(operation).__name__
        if is_keras3(operation):
            return self.model(operation)
        if hasattr(operation, "get_config") and hasattr(operation, "weights"):
            return build_layer(operation, self)
        if name not in OPERATIONS:
            raise InputError(
                f"The Keras 3 operation {operation.name!r} ({name}) has no twin.",
                expected="an operation of: " + ", ".join(OPERATIONS),
                fix="use a layer in its place, or register a function for it in "
                "orbit_kd.models.keras3.operations.OPERATIONS",
            )
        return lambda *args, **kwargs: OPERATIONS.get(name)(operation, *args, **kwargs)


def _constant(value: Any) -> Any:
    """A constant in a call, as numpy where it is a tensor of the Keras 3 backend."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value) if hasattr(value, "__array__") and hasattr(value, "shape") else value


def _given(operation: Any, ours: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that its author gave: Keras 3 writes down defaults and the masks of its inputs with them.

    training=True is left out: in Keras 3 `predict` and `fit` overrule it, in tf_keras it would hold for ever.
    """
    parameters = inspect.signature(operation.call).parameters
    masked = any(getattr(t, "_keras_mask", None) is not None for t in tf.nest.flatten(args))
    given = {}
    for key, value in kwargs.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        if all(v is None for v in tf.nest.flatten(value)) or (
            value is default and value is not inspect.Parameter.empty
        ):
            continue
        if key == "training" and value is True:
            continue
        if key in ("mask", "query_mask", "value_mask", "key_mask") and masked:
            continue  # tf_keras passes it on by itself
        given[key] = value
    if isinstance(ours, tf_keras.layers.Layer):
        known = inspect.signature(ours.call).parameters
        for key in [] if any(p.kind is p.VAR_KEYWORD for p in known.values()) else given:
            if key not in known:
                raise InputError(
                    f"Layer {operation.name!r} ({type(operation).__name__}) is called with {key}, unknown to tf_keras.",
                    expected=f"a call without {key}",
                    fix="give a mask with Masking or Embedding(mask_zero=True), or as attention_mask",
                )
    return given


def _alone(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
