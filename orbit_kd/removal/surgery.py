"""Removes filters: the network rebuilt without the channels that a plan removes. The original stays as it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.channels.ids import Channels, Ids, Kept, Layer
from orbit_kd.datasets.batches import as_batches, in_order, inputs_of
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.tracing import traced
from orbit_kd.models.unwrapping import refuse_wrapped
from orbit_kd.models.walk import arguments, replay, require_graph, walk
from orbit_kd.models.wrappers import LayerWrapper
from orbit_kd.removal.plan import RemovalPlan


def remove_filters(model: keras.Model, plan: RemovalPlan) -> keras.Model:
    """The smaller dense network that a plan describes; a new model, with its own variables.

    Args:
        model: the network the plan was made for (or one with the same layers and shapes).
        plan: what stays, from `plan_removal`.

    Returns:
        A model of the same class, layer names and weight order, not compiled.

    Raises:
        InputError: the plan was made for another network.
    """
    graph = ChannelGraph(as_tf_keras(model), unknown=plan.unknown)
    return rebuild(graph, plan.stays(graph))


def rebuild(graph: ChannelGraph, stays: np.ndarray) -> keras.Model:
    """The network of a traced graph with the units that stay; `stays`: bool per unit."""

    def kept(ids: Ids) -> np.ndarray:
        return np.flatnonzero(stays[graph.unit_of[ids]])

    return _Rebuild(graph, kept).model(graph.model)


class _Rebuild:
    """Replays the layer calls of a model on narrower clones of its layers."""

    def __init__(self, graph: ChannelGraph, kept: Kept) -> None:
        self.graph, self.kept = graph, kept
        self.clones: dict[int, keras.layers.Layer] = {}

    def model(self, model: keras.Model) -> keras.Model:
        inputs = [self.input(t, x) for t, x in zip(model.inputs, self.graph.entries[id(model)], strict=True)]
        if isinstance(model, keras.Sequential):
            new = keras.Sequential([*inputs, *(self.layer(la) for la in model.layers)], name=model.name)
        else:
            new = self.functional(model, inputs)
        for layer in model.layers:
            self.copy_weights(layer)
        new.trainable = True  # a network that lost channels is there to be retrained, however its teacher was frozen
        return new

    def input(self, tensor: Any, named: Channels) -> Any:
        """The input of a (nested) model, as wide as what will come in."""
        shape = list(tensor.shape)
        if len(shape) > 1 and shape[named.axis + 1] is not None:
            shape[named.axis + 1] = len(self.kept(named.ids))
        return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor._keras_history.layer.name)

    def functional(self, model: keras.Model, inputs: list[Any]) -> keras.Model:
        tensors: dict[int, Any] = dict(zip(map(id, model.inputs), inputs, strict=True))
        for node in walk(model):
            args, kwargs = self.arguments(node, tensors)
            outputs = self.layer(node.layer)(*args, **kwargs)
            tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), tf.nest.flatten(outputs), strict=True))
        nested_in = tf.nest.map_structure(lambda t: tensors[id(t)], model._nested_inputs)
        nested_out = tf.nest.map_structure(lambda t: tensors[id(t)], model._nested_outputs)
        try:
            return type(model)(nested_in, nested_out, name=model.name)
        except TypeError:  # a Functional subclass with a constructor of its own
            return keras.Model(nested_in, nested_out, name=model.name)

    def arguments(self, node: Any, tensors: dict[int, Any]) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = arguments(node, [tensors[id(t)] for t in node.keras_inputs])
        args, kwargs = list(args), dict(kwargs)
        for where, value in self.graph.arguments.get(id(node), {}).items():
            holder: Any = args if isinstance(where, int) else kwargs
            holder[where] = value(self.kept, holder[where])
        return args, kwargs

    def layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """The clone of a layer, made once, so that shared layers stay shared."""
        if id(layer) not in self.clones:
            if isinstance(layer, keras.Model):
                self.clones[id(layer)] = self.model(layer)
            else:
                config = layer.get_config()
                for name, value in self.graph.layers[id(layer)].config.items():
                    config[name] = value(self.kept) if callable(value) else len(self.kept(value))
                self.clones[id(layer)] = type(layer).from_config(config)
        return self.clones[id(layer)]

    def copy_weights(self, layer: keras.layers.Layer) -> None:
        if isinstance(layer, (keras.Model, keras.layers.InputLayer)):
            return  # a nested model copies its own
        record = self.graph.layers[id(layer)]
        named = {id(getattr(layer, name)): name for name in record.weights}
        new = [
            self.slice(np.asarray(variable.value()), record, named.get(id(variable)))  # a view: kernels are large
            for variable in layer.weights
        ]
        if new:
            self.clones[id(layer)].set_weights(new)

    def slice(self, value: np.ndarray, record: Layer, name: str | None) -> np.ndarray:
        if name is not None:
            for axis, ids in enumerate(record.weights[name].axes):
                if ids is not None:
                    value = np.take(value, self.kept(ids), axis)
        return value


def recalibrate_batchnorm(model: keras.Model, data: Any, *, batches: int = 50) -> None:
    """Re-estimates the BatchNormalization statistics of a model in place, from the mean over some batches.

    After filters are removed the running statistics no longer fit, and at momentum 0.99 a short training does not
    mend them. Dropout and other training-only layers stay off.

    Args:
        model: the model to change.
        data: batches of x, or (x, y, ...), as the model is trained on, in any form that `datasets.batches` takes;
            endless ones too.
        batches: how many to use at most.

    Raises:
        InputError: a model without a layer graph, no data, or such that do not fit the model.
    """
    model = as_tf_keras(model, in_place=True, refuse=())
    require_graph(model)
    inputs = inputs_of(model)
    given = as_batches(data, what="data for BatchNormalization", endless=True, inputs=inputs)
    layers = [la for la in model._flatten_layers() if isinstance(la, keras.layers.BatchNormalization)]
    _check_reachable(model)
    before = [(la.momentum, la.get_weights()) for la in layers]
    means: list[list[np.ndarray]] = [[] for _ in layers]
    variances: list[list[np.ndarray]] = [[] for _ in layers]

    @traced
    def forward(x: tf.Tensor) -> None:
        replay(model, in_order(x, inputs), training=_normalizes)

    try:
        for la in layers:
            la.momentum = 0.0  # each forward pass then leaves the statistics of its own batch
        for x, *_ in itertools.islice(given, batches) if layers else ():
            forward(x)
            for la, mean, variance in zip(layers, means, variances, strict=True):
                mean.append(la.moving_mean.numpy())
                variance.append(la.moving_variance.numpy())
    except BaseException:
        for la, (_, weights) in zip(layers, before, strict=True):
            la.set_weights(weights)
        raise
    finally:
        for la, (momentum, _) in zip(layers, before, strict=True):
            la.momentum = momentum
    for la, mean, variance in zip(layers, means, variances, strict=True):
        if mean:  # the variance of all images is that within the batches plus that of the batch means
            la.moving_mean.assign(np.mean(mean, 0))
            la.moving_variance.assign(np.mean(variance, 0) + np.var(mean, 0))


def _normalizes(layer: keras.layers.Layer) -> bool:
    inner = layer.layer if isinstance(layer, (keras.layers.TimeDistributed, LayerWrapper)) else layer
    return isinstance(inner, keras.layers.BatchNormalization)


def _check_reachable(model: keras.Model) -> None:
    """Raises InputError for a BatchNormalization within a layer, which no graph calls: it would silently stay."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model) or _normalizes(layer):
            continue
        if any(_normalizes(inner) for inner in layer._flatten_layers(include_self=False)):
            refuse_wrapped(model)
            raise InputError(
                f"A BatchNormalization is within the layer {layer.name!r}, which calls it.",
                expected="BatchNormalization as a layer of the model, whose mode can be set alone",
                fix="build the network without that layer, or let some epochs of training mend the statistics",
            )
