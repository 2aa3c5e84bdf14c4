"""Walks the layer calls of a Keras graph model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.node import Node

from orbit_kd.errors import InputError

_layers = keras.layers
# random in training, and nothing at all afterwards
RANDOM = (
    _layers.Dropout, _layers.GaussianDropout, _layers.GaussianNoise, _layers.AlphaDropout,
    _layers.SpatialDropout1D, _layers.SpatialDropout2D, _layers.SpatialDropout3D,
)  # fmt: skip


def walk(model: keras.Model) -> Iterator[Node]:
    """The layer calls from inputs to outputs, without the input layers; a nested model comes as one call."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (n for n in model._nodes_by_depth[depth] if not isinstance(n.layer, keras.layers.InputLayer))


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern names a layer: by its path, or by its own name in whatever nested model."""
    return fnmatchcase(path, pattern) or fnmatchcase(path.rsplit("/", 1)[-1], pattern)


def require_graph(model: keras.Model, path: str = "") -> None:
    """Raises InputError for a model without a layer graph (subclassed, or not built yet)."""
    if not getattr(model, "_is_graph_network", False):
        raise InputError(
            f"Model {path or getattr(model, 'name', model)!r} has no layer graph.",
            expected="a Functional model, or a Sequential one that knows its input shape",
            fix="build it with an Input layer; a subclassed model: okd.as_graph(model)",
        )


def replay(
    model: keras.Model,
    inputs: Any,
    *,
    training: Callable[[keras.layers.Layer], bool] = lambda layer: False,
    seen: Callable[[keras.layers.Layer, list[Any]], None] = lambda layer, outputs: None,
) -> list[Any]:
    """Runs a graph model layer by layer, each in the mode that `training(layer)` says.

    Args:
        model: a graph model.
        inputs: a tensor or a list of tensors, in the order of `model.inputs`.
        training: whether a layer runs as in training.
        seen: is given each layer and its outputs, in the order of `walk`, those inside nested models too.

    Returns:
        The outputs, in the order of `model.outputs`.
    """
    # cast as a model casts what it is called with: images are often uint8
    tensors = {id(t): tf.cast(x, t.dtype) for t, x in zip(model.inputs, tf.nest.flatten(inputs), strict=True)}
    for node in walk(model):
        layer = node.layer
        args, kwargs = tf.nest.map_structure(lambda t: tensors.get(id(t), t), (node.call_args, node.call_kwargs))
        if isinstance(layer, keras.Model):
            outputs = replay(layer, list(args), training=training, seen=seen)
        else:
            if layer._expects_training_arg:
                kwargs = {**kwargs, "training": training(layer)}
            outputs = layer(*args, **kwargs)
            seen(layer, tf.nest.flatten(outputs))
        tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), tf.nest.flatten(outputs), strict=True))
    return [tensors[id(t)] for t in model.outputs]
