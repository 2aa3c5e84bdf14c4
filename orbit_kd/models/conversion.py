"""The one door for models: whatever a user hands over becomes a tf_keras network here, or is refused by name.

Every public function that takes a model calls `as_tf_keras` first.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models import subclassed
from orbit_kd.models.copies import clone_with
from orbit_kd.models.keras3.twin import from_keras3, is_keras3
from orbit_kd.models.unwrapping import EVERY, QUANTIZED, Kinds, refuse_wrapped, unwrapped_copy, wrappers_in
from orbit_kd.models.walk import is_graph


def as_tf_keras(
    model: Any, *, name: str = "model", graph: bool = True, in_place: bool = False, refuse: Kinds = EVERY
) -> keras.Model:
    """The tf_keras network behind what a caller gave as a model.

    A tf_keras model comes back as it is, a subclassed one as its graph, a Keras 3 model as its tf_keras twin. Twins are
    made anew in each call, with the weights of that moment: the caller may train the original on between two calls.

    Args:
        model: whatever was given.
        name: of the argument, for messages.
        graph: the layers are looked at: a subclassed model comes as its graph.
        in_place: the model itself is to be changed, so that nothing may stand in for it.
        refuse: wrappers of layers that the caller cannot take (see `wrapped_models`); () for none.

    Raises:
        InputError: no model of tf_keras or Keras 3, or one that cannot be used here; the message says what to give.
    """
    if in_place and (is_keras3(model) or (graph and isinstance(model, keras.Model) and not is_graph(model))):
        kind = "a Keras 3 model" if is_keras3(model) else "a subclassed model"
        _refuse_others(model, name)
        raise InputError(
            f"{name} is {kind}, and this function changes it in place, which its graph in tf_keras would not show.",
            expected="a tf_keras model with a layer graph" if graph else "a tf_keras model",
            fix=f"take the graph first, {name} = okd.as_graph({name}), and go on with that",
        )
    if graph or is_keras3(model):
        network = as_graph(model)
    else:
        _refuse_others(model, name)
        network = model
    refuse_wrapped(network, refuse)
    return network


def as_graph(model: keras.Model, *, input_shape: tuple[int | None, ...] | None = None) -> keras.Model:
    """A Functional tf_keras model that computes what a subclassed one, or a Keras 3 model, does.

    A tf_keras model with a layer graph is returned as it is. Of a subclassed one the `call` runs once on a symbolic
    input. Blocks of the user's own that only put layers together are opened, at any depth; a layer that holds weights
    itself stays a layer (and needs a channel rule). Layers of equal names are numbered. What `call` decides with
    Python's `if` is fixed as it is in inference; dropout and BatchNormalization keep both modes.

    Args:
        model: a subclassed model that takes one tensor, or a Keras 3 model with a layer graph.
        input_shape: of a subclassed model, without the batch; None takes the shape the model was called with.

    Returns:
        A new model with its own variables and equal outputs (checked on random inputs); not compiled.

    Raises:
        InputError: a model that was never called and no `input_shape`; a `call` that a graph cannot hold; what tf_keras
            has no equal of; no model at all.
    """
    if is_keras3(model):
        return from_keras3(model)
    _refuse_others(model, "model")
    network = subclassed.graph_of(model, input_shape=input_shape)
    if not network.built:
        raise InputError(
            f"The model {network.name!r} is not built.",
            expected="a model with weights",
            fix="call model.build((None, height, width, channels)), or begin it with an Input layer",
        )
    return network


def exported_form(model: Any, *, quantized: bool = True) -> keras.Model:
    """The network as a file holds it: no wrappers but those of quantization, which bring their ranges; one precision.

    Args:
        model: whatever was given.
        quantized: keep a quantization-aware model as it is.
    """
    network = as_tf_keras(model, refuse=() if quantized else QUANTIZED)
    if wrappers_in(network, QUANTIZED):
        return network
    return in_full_precision(unwrapped_copy(network) if wrappers_in(network) else network)


def in_full_precision(model: keras.Model) -> keras.Model:
    """The model itself, or, of one trained in mixed precision, a copy that computes as precisely as its weights are.

    TFLite takes no float16 arithmetic, and students compute as their teacher does.
    """
    if all(la.compute_dtype == la.variable_dtype for la in model._flatten_layers() if la.weights):
        return model

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        return type(layer).from_config({**config, "dtype": layer.variable_dtype} if "dtype" in config else config)

    copy, _ = clone_with(model, plain)
    copy.set_weights(model.get_weights())
    return copy


def _refuse_others(model: Any, name: str) -> None:
    """Raises InputError for what is no network of tf_keras or Keras 3."""
    kind = type(model)
    instead = getattr(kind, "network_behind", None)  # of classes that hold the network they work on
    if instead is not None:
        raise InputError(f"A {kind.__name__} was given as {name}.", expected="the network itself",
                         fix=f"give {instead}")  # fmt: skip
    if isinstance(model, keras.Model) or is_keras3(model):
        return
    if isinstance(model, (str, os.PathLike)):
        raise InputError(f"{name}={os.fspath(model)!r} is a path.", expected="a Keras model",
                         fix=f"load it: okd.load_model({os.fspath(model)!r})")  # fmt: skip
    what, fix = f"A {kind.__module__}.{kind.__name__}", "load it from its file: okd.load_model('model.keras')"
    if inspect.isclass(model) or inspect.isroutine(model):
        what = f"The {'class' if inspect.isclass(model) else 'function'} {getattr(model, '__name__', model)!r}"
        fix = "call it, and give the model that it builds"
    elif isinstance(model, (list, tuple)):
        fix = "give one model"
    elif any(base.__module__.split(".")[0] == "torch" for base in kind.__mro__):
        fix = "build the same network in tf_keras and copy the weights into it"
    elif isinstance(model, tf.Module) or hasattr(model, "signatures"):
        what += " (a tf.Module, a layer or a loaded SavedModel)"
        fix = "keep the model that it was saved from: model.save('model.keras'), okd.load_model('model.keras')"
    raise InputError(f"{what} was given as {name}.", expected="a model of tf_keras or Keras 3", fix=fix)
