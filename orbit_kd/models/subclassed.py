"""Subclassed models as layer graphs, so that their channels can be traced."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.walk import is_graph


def graph_of(model: keras.Model, *, input_shape: tuple[int | None, ...] | None = None) -> keras.Model:
    """What `okd.as_graph` gives of a tf_keras model."""
    if is_graph(model):
        return model
    shape = _input_shape(model) if input_shape is None else (None, *input_shape)
    image = keras.Input(batch_shape=shape)
    with _opened(model):
        try:
            outputs = model.call(image)
        except Exception as e:  # the user's own code, which may raise anything
            raise _refusal(model, f"its call does not run on a symbolic input: {type(e).__name__}: {e}") from e
    with _unique_names(image, outputs):
        try:
            shared = keras.Model(image, outputs, name=model.name)
            graph = keras.models.clone_model(shared)
        except Exception as e:
            raise _refusal(model, f"its layers cannot be copied: {type(e).__name__}: {e}") from e
    graph.set_weights(shared.get_weights())
    example = np.random.default_rng(0).uniform(0, 1, [2, *(n or 32 for n in shape[1:])]).astype("float32")
    pairs = zip(tf.nest.flatten(model(example, training=False)), tf.nest.flatten(graph(example)), strict=True)
    if not all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs):
        raise _refusal(model, "the graph of its call gives other outputs (weights used outside of layers?)")
    return graph


def _input_shape(model: keras.Model) -> tuple[int | None, ...]:
    spec = model.save_spec()
    shapes = [] if spec is None else tf.nest.flatten(spec[0])
    if len(shapes) != 1:
        raise InputError(
            f"The model {model.name!r} has no layer graph, and no single known input.",
            expected="a subclassed model that was called on one tensor",
            fix="call it once on a batch, or give as_graph(model, input_shape=(height, width, channels))",
        )
    return (None, *shapes[0].shape[1:])


@contextlib.contextmanager
def _opened(model: keras.Model) -> Iterator[None]:
    """Within it, calling a block of the user's own runs its `call`, so that its layers appear one by one."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs) if _is_block(self) else keras.layers.Layer.__call__(self, *args, **kwargs)

    kinds = {type(m) for m in model.submodules if _is_block(m) and "__call__" not in vars(type(m))}
    for kind in kinds:
        kind.__call__ = call
    try:
        yield
    finally:
        for kind in kinds:
            del kind.__call__


def _is_block(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.Layer) or type(layer).__module__.startswith("tf_keras.") or is_graph(layer):
        return False
    own = [*layer._trainable_weights, *layer._non_trainable_weights]
    return not own and any(True for _ in layer._flatten_layers(include_self=False))


@contextlib.contextmanager
def _unique_names(image: Any, outputs: Any) -> Iterator[None]:
    """Within it, layers on the way from input to outputs have names of their own; afterwards their old ones."""
    layers: dict[int, keras.layers.Layer] = {}
    todo = [t for t in tf.nest.flatten(outputs) if hasattr(t, "_keras_history")]
    seen = set()
    while todo:
        tensor = todo.pop()
        node = tensor.node
        if id(node) not in seen:
            seen.add(id(node))
            layers.setdefault(id(node.layer), node.layer)
            todo += node.keras_inputs
    names = {key: layer.name for key, layer in layers.items()}
    count = Counter(names.values())
    used: Counter[str] = Counter()
    for layer in reversed(layers.values()):  # from the input on
        used[layer.name] += 1
        if count[layer.name] > 1:
            layer._name = f"{layer.name}_{used[layer.name]}"
    try:
        yield
    finally:
        for key, layer in layers.items():
            layer._name = names[key]


def _refusal(model: keras.Model, why: str) -> InputError:
    return InputError(
        f"The subclassed model {model.name!r} cannot be turned into a layer graph: {why}.",
        expected="a call that only applies Keras layers and TensorFlow functions to its input",
        fix="build the network with the functional API and copy the weights",
    )
