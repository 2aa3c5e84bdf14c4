"""Copies of models, layer by layer through nested models, and the names of their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.walk import is_graph, matches


def clone_with(
    model: keras.Model,
    convert: Callable[[keras.layers.Layer], keras.layers.Layer],
    *,
    input_dtypes: Mapping[tf.DType, tf.DType] | None = None,
) -> tuple[keras.Model, list[tuple[keras.layers.Layer, keras.layers.Layer]]]:
    """A new model of the same graph, through nested models, with `convert(layer)` in place of each layer.

    A layer used several times, in whatever nested models, is converted once. Weights are not copied. Inputs, those of
    nested models too, get the type that `input_dtypes` has for theirs.

    Returns:
        The new model, and the pairs (layer, converted layer).
    """
    done: dict[int, tuple[keras.layers.Layer, keras.layers.Layer]] = {}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in done:
            done[id(layer)] = layer, clone_graph(layer) if is_graph(layer) else convert(layer)
        return done[id(layer)][1]

    def clone_graph(graph: keras.Model) -> keras.Model:
        inputs = None
        if input_dtypes and any(t.dtype in input_dtypes for t in graph.inputs or ()):
            types = [input_dtypes.get(t.dtype, t.dtype) for t in graph.inputs]
            inputs = [
                keras.Input(batch_shape=t.shape, dtype=dtype, name=name)
                for t, dtype, name in zip(graph.inputs, types, graph.input_names, strict=True)
            ]
        new = keras.models.clone_model(graph, input_tensors=inputs, clone_function=clone)
        if not new.built:
            # A Sequential without an InputLayer.
            new.build(graph.input_shape)
        if not graph.trainable:
            new.trainable = False
        return new

    new_model = clone(model)
    return new_model, [pair for pair in done.values() if not is_graph(pair[0])]


def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """An unbuilt layer of the same class and configuration.

    Raises:
        InputError: the layer's configuration does not give it back.
    """
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise InputError(
            f"The layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error}",
            expected="a layer whose get_config and from_config give it back",
            fix="write its get_config, or register its custom functions with keras.utils.register_keras_serializable",
        ) from error


def named_layers(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """(path, layer) of every layer that is not itself a graph of layers, each layer once."""
    seen: set[int] = set()

    def inside(parent: keras.Model, prefix: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        for layer in parent.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if is_graph(layer):
                yield from inside(layer, f"{prefix}{layer.name}/")
            else:
                yield f"{prefix}{layer.name}", layer

    return inside(model, "")


def resolve(names: Iterable[str], layers: Mapping[str, keras.layers.Layer], option: str) -> set[str]:
    """Paths of the layers meant by names or shell patterns: of a full path, or of a name in whatever nested model."""
    names = [names] if isinstance(names, str) else list(names)
    found: set[str] = set()
    for name in names:
        hits = {path for path in layers if matches(path, name)}
        if not hits:
            raise InputError(
                f"{option}= names the layer {name!r}, which the model does not have.",
                expected=f"one of: {', '.join(n for n, layer in layers.items() if has_matrix(layer))}",
                fix="correct the name",
            )
        found |= hits
    return found


def has_matrix(layer: keras.layers.Layer) -> bool:
    """Whether a layer has weights that could be a kernel: of two axes or more."""
    return any(w.shape.rank >= 2 for w in layer.weights)
