"""The one walk over the layer calls of a graph model, through the models that are nested in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.node import Node

from orbit_kd.errors import InputError

Value = TypeVar("Value")
_layers = keras.layers
# random in training, and nothing at all afterwards
RANDOM = (
    _layers.Dropout, _layers.GaussianDropout, _layers.GaussianNoise, _layers.AlphaDropout,
    _layers.SpatialDropout1D, _layers.SpatialDropout2D, _layers.SpatialDropout3D,
)  # fmt: skip


def is_graph(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a Functional or Sequential model, whose layers can be reached."""
    return isinstance(layer, keras.Sequential) or has_graph(layer)


def has_graph(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a model whose calls of layers are known: not a Sequential that has no input shape yet."""
    return isinstance(layer, keras.Model) and layer._is_graph_network


def require_graph(model: keras.Model, path: str = "") -> None:
    """Raises InputError for a model, or one nested in it, without a layer graph (subclassed, or not built yet)."""
    if not has_graph(model):
        raise InputError(
            f"Model {path or getattr(model, 'name', model)!r} has no layer graph.",
            expected="a Functional model, or a Sequential one that knows its input shape",
            fix="build it with an Input layer; a subclassed model: okd.as_graph(model)",
        )
    for node in walk(model):
        if isinstance(node.layer, keras.Model):
            require_graph(node.layer, _join(path, node))


def walk(model: keras.Model) -> Iterator[Node]:
    """The layer calls from inputs to outputs, without the input layers; a nested model comes as one call.

    Only the calls that are part of this graph: what else its layers are used for does not count.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (n for n in model._nodes_by_depth[depth] if not isinstance(n.layer, keras.layers.InputLayer))


def carry(
    model: keras.Model,
    given: Sequence[Value],
    call: Callable[[Node, str, list[Value]], Sequence[Value]],
    *,
    enter: Callable[[Node, str, list[Value]], list[Value]] = lambda node, path, values: values,
    opaque: bool = False,
    path: str = "",
) -> list[Value]:
    """Carries a value for each tensor from a graph's inputs to its outputs, through nested models: the one way to walk.

    What stands for a tensor is the caller's: the tensor of a batch, a number, channel ids. A layer or nested model that
    is used twice is met twice.

    Args:
        model: a graph model.
        given: the values of `model.inputs`.
        call: (call of a layer, its path such as "block/conv", values of `node.keras_inputs`) -> values of its outputs.
        enter: (call of a nested model, its path, what it is given) -> values of its inputs: they may be of another type
            and have an axis of 1 more or less.
        opaque: a nested model without a graph is a layer like any other; else it is refused.
        path: of `model`.

    Returns:
        The values of `model.outputs`.

    Raises:
        InputError: a model, nested ones too, without a layer graph.
    """
    if not opaque:
        require_graph(model, path)
    values = dict(zip(map(id, model.inputs), given, strict=True))
    for node in walk(model):
        here = _join(path, node)
        if has_graph(node.layer):
            entered = enter(node, here, [values[id(t)] for t in fed(node)])
            made = carry(node.layer, entered, call, enter=enter, opaque=opaque, path=here)
        else:
            made = list(call(node, here, [values[id(t)] for t in node.keras_inputs]))
        values.update(zip(map(id, tf.nest.flatten(node.outputs)), made, strict=True))
    return [values[id(t)] for t in model.outputs]


def _join(path: str, node: Node) -> str:
    return f"{path}/{node.layer.name}" if path else node.layer.name


def fed(node: Node) -> list[Any]:
    """What a call of a nested model gives to each of its inputs: Keras takes them in order, or by their names."""
    given = node.call_args[0] if node.call_args else node.call_kwargs["inputs"]
    return node.layer._flatten_to_reference_inputs(given)


def arguments(node: Node, values: Sequence[Any]) -> tuple[Any, Any]:
    """(args, kwargs) of a layer call with `values` in place of its `keras_inputs`."""
    by_tensor = dict(zip(map(id, node.keras_inputs), values, strict=True))
    return tf.nest.map_structure(lambda t: by_tensor.get(id(t), t), (node.call_args, node.call_kwargs))


def conform(model: keras.Model, values: Sequence[Any]) -> list[Any]:
    """Tensors as a model makes them fit its inputs: cast (images are often uint8), with or without a last axis of 1."""
    return [model._conform_to_reference_input(v, ref_input=t) for v, t in zip(values, model.inputs, strict=True)]


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern names a layer: by its path, or by its own name in whatever nested model."""
    return fnmatchcase(path, pattern) or fnmatchcase(path.rsplit("/", 1)[-1], pattern)


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
        seen: is given each layer and its outputs, in the order of `carry`, those inside nested models too.

    Returns:
        The outputs, in the order of `model.outputs`.

    Raises:
        InputError: a model, nested ones too, without a layer graph.
    """

    def call(node: Node, path: str, values: list[Any]) -> list[Any]:
        args, kwargs = arguments(node, values)
        if node.layer._expects_training_arg:
            kwargs = {**kwargs, "training": training(node.layer)}
        outputs = tf.nest.flatten(node.layer(*args, **kwargs))
        seen(node.layer, outputs)
        return outputs

    require_graph(model)
    given = conform(model, [x if tf.is_tensor(x) else tf.constant(x) for x in tf.nest.flatten(inputs)])
    return carry(model, given, call, enter=lambda node, path, values: conform(node.layer, values))
