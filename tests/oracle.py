"""The oracle of filter removal, "zero-then-remove": independent of the code that rebuilds networks.

In the original, every weight slice that carries a removed id is set to zero, in producers and in consumers, and
LayerNormalization takes its statistics over the kept channels. Its outputs and the small network's must agree.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.models.walk import replay
from orbit_kd.removal.plan import RemovalPlan


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every variable random values of a sane size, BatchNormalization statistics and biases too."""
    rng = np.random.default_rng(seed)
    values = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "variance" in variable.name:
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            inputs = np.prod(shape[:-2]) if "depthwise" in variable.name else np.prod(shape[:-1])
            value = rng.normal(0, 1.4 / max(inputs, 1) ** 0.5, shape)
        else:
            value = rng.normal(1.0 if "gamma" in variable.name else 0.0, 0.3, shape)
        values.append(value)
    model.set_weights(values)
    return model


def inputs_of(model: keras.Model, batch: int = 3, seed: int = 1) -> list[tf.Tensor]:
    """Random inputs, at the size of pixel values for a network that rescales them; unknown sizes become 16."""
    rng = np.random.default_rng(seed)
    size = 255.0 if any(isinstance(la, keras.layers.Rescaling) for la in model.layers) else 1.0
    shapes = [(batch, *(n or 16 for n in t.shape[1:])) for t in model.inputs]
    return [tf.constant(rng.normal(0, size, shape).astype("float32")) for shape in shapes]


def zeroed_outputs(model: keras.Model, plan: RemovalPlan, inputs: list[tf.Tensor]) -> list[np.ndarray]:
    """Outputs of the original with the removed channels set to zero; afterwards it is as it was."""
    before, normalizations = model.get_weights(), []
    graph = ChannelGraph(model, unknown=plan.unknown)
    stays = plan.stays(graph)
    for record in graph.layers.values():
        for name, weight in record.weights.items():
            variable = getattr(record.layer, name)
            value = variable.numpy()
            for axis, ids in enumerate(weight.axes):
                if ids is not None:
                    gone = np.flatnonzero(~stays[graph.unit_of[ids]])
                    value[(slice(None),) * axis + (gone,)] = 0
            variable.assign(value)
        if isinstance(record.layer, keras.layers.LayerNormalization) and record.weights:
            (ids,) = next(iter(record.weights.values())).axes
            _normalize_over(record.layer, stays[graph.unit_of[ids]])
            normalizations.append(record.layer)
    outputs = [np.asarray(y) for y in replay(model, inputs, training=lambda layer: False)]
    for layer in normalizations:
        del layer.call  # the one put over that of its class
    model.set_weights(before)
    return outputs


def _normalize_over(layer: keras.layers.LayerNormalization, kept: np.ndarray) -> None:
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]

    def call(x: tf.Tensor) -> tf.Tensor:
        shape = [1] * len(x.shape)
        shape[axis] = -1
        index = np.flatnonzero(kept)
        some = tf.gather(x, index, axis=axis)
        mean, variance = tf.nn.moments(some, [axis], keepdims=True)
        scale = tf.reshape(layer.gamma if layer.scale else tf.ones_like(layer.beta), shape)
        offset = tf.reshape(layer.beta, shape) if layer.center else 0.0
        return (x - mean) / tf.sqrt(variance + layer.epsilon) * scale + offset

    layer.call = call


class Constant(AssertionError):
    """A network that says the same whatever it is shown (dead activations), on which nothing can be checked."""


def difference(model: keras.Model, student: keras.Model, plan: RemovalPlan) -> float:
    """max|a - b| / max|a| over all outputs, a from the zeroed original and b from the small network.

    Raises `Constant` when the original's outputs do not vary over the inputs: equal constants would hide wrong slices.
    """
    inputs = inputs_of(model)
    expected = zeroed_outputs(model, plan, inputs)
    found = tf.nest.flatten(student(inputs if len(inputs) > 1 else inputs[0], training=False))
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise AssertionError("the outputs are not finite")
        if a.shape[0] > 1 and np.ptp(a, axis=0).max() <= 1e-6 * np.abs(a).max():
            raise Constant("the outputs do not vary over the inputs")
        worst = max(worst, float(np.abs(a - b.numpy()).max() / np.abs(a).max()))
    return worst
