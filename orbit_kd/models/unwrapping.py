"""The one place that knows every wrapper of single layers, tfmot's and ours: which a model has, and how they come off.

Ours are subclasses of tfmot's, so that one row serves both.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.copies import clone_with, copy_layer
from orbit_kd.models.wrappers import ClusterWeights, LayerWrapper, PruneLowMagnitude, QuantizeWrapper

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_annotate import QuantizeAnnotate
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

Kinds = tuple[type, ...]
SPARSE: Kinds = (PruneLowMagnitude,)
CLUSTERED: Kinds = (ClusterWeights,)
QUANTIZED: Kinds = (QuantizeWrapper, QuantizeAnnotate, QuantizeLayer)
EVERY: Kinds = SPARSE + CLUSTERED + QUANTIZED

_TAKEN_OFF_BY = {SPARSE: "okd.strip", CLUSTERED: "okd.strip_clusters", QUANTIZED: "okd.strip_quantization"}


def wrappers_in(model: keras.Model, kinds: Kinds = EVERY) -> list[keras.layers.Layer]:
    """The wrappers of these kinds, wherever they are: in nested models, other wrappers, blocks, a Distiller."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


def refuse_wrapped(model: keras.Model, kinds: Kinds = EVERY) -> None:
    """Raises InputError where a model has wrappers of these kinds; it says what takes them off."""
    found = wrappers_in(model, kinds)
    if found:
        first, by = found[0], "" if isinstance(found[0], LayerWrapper) else "tfmot's "
        off = [f for kind, f in _TAKEN_OFF_BY.items() if any(isinstance(layer, kind) for layer in found)]
        raise InputError(
            f"The layer {first.name!r} is wrapped by {by}{type(first).__name__}.",
            expected="a plain model here",
            fix=f"strip it first: {' and '.join(f'{f}(model)' for f in off)}",
        )


def unwrapped_copy(model: keras.Model, kinds: Kinds = EVERY) -> keras.Model:
    """A copy of a model without the wrappers of these kinds; its weights are those that the model computes with.

    Of a quantization-aware model they are the weights before they are rounded to 8 bits, or on a grid of fewer.

    Raises:
        InputError: a layer that cannot be copied, or a wrapper within a layer of the user's own.
    """
    values: dict[int, list[np.ndarray] | dict[str, np.ndarray]] = {}

    def unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        values[id(layer)] = layer.get_weights()
        if isinstance(layer, kinds):
            copy, values[id(layer)] = _content(layer)
            return copy
        if isinstance(layer, keras.layers.TimeDistributed) and isinstance(layer.layer, kinds):
            copy, values[id(layer)] = _content(layer.layer)
            return keras.layers.TimeDistributed(copy, name=layer.name, dtype=layer.dtype_policy)
        return copy_layer(layer)

    plain, pairs = clone_with(model, unwrap)
    if left := wrappers_in(plain, kinds):
        raise InputError(
            f"The wrapper {left[0].name!r} is within a layer of your own, and cannot be taken off there.",
            expected="wrappers of the layers of a Functional or Sequential model",
            fix="take it off in the code of that layer, and copy the weights",
        )
    for layer, new in pairs:
        found = values[id(layer)]
        new.set_weights([found[_short(w)] for w in new.weights] if isinstance(found, dict) else found)
    return plain


def _content(wrapper: keras.layers.Layer) -> tuple[keras.layers.Layer, list[np.ndarray] | dict[str, np.ndarray]]:
    """An unbuilt copy of the layer in a wrapper, and the weights that it computes with, in order or by name."""
    if isinstance(wrapper, LayerWrapper):
        return copy_layer(wrapper.layer), wrapper.plain_weights()
    if isinstance(wrapper, QuantizeLayer):
        return keras.layers.Activation("linear", name=wrapper.name), []
    inner = wrapper.layer
    if isinstance(wrapper, PruneLowMagnitude):
        masks = {id(weight): mask.numpy() for weight, mask, _ in wrapper.pruning_vars}
        return copy_layer(inner), [w.numpy() * masks.get(id(w), 1) for w in inner.weights]
    if isinstance(wrapper, QuantizeWrapper):
        # tfmot takes the kernels off the layer and keeps them in the wrapper, in an order of its own
        weights = [*inner.weights, *(w for w, _, _ in wrapper._weight_vars)]
        return _copy_quantized(inner), {_short(w): w.numpy() for w in weights}
    if isinstance(wrapper, ClusterWeights):
        if isinstance(inner, keras.layers.MultiHeadAttention):
            raise InputError(
                f"The layer {wrapper.name!r} is an attention layer clustered by tfmot.",
                expected="a clustered convolution, dense or recurrent layer",
                fix="take it off with tfmot.clustering.keras.strip_clustering(model)",
            )
        wrapper.update_clustered_weights_associations()  # as each of its calls does
        found = inner.get_weights()
        for position, name in sorted(wrapper.position_original_weights.items()):
            found.insert(position, np.asarray(wrapper.get_weight_from_layer(name)))
        return copy_layer(inner), found
    return copy_layer(inner), inner.get_weights()


def _copy_quantized(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A copy with the activation that tfmot put others around, or took away because the next layer is fused."""
    activation: Any = getattr(layer, "activation", None)
    while hasattr(activation, "quantizer"):
        activation = activation.activation
    config = layer.get_config()
    if "activation" in config:
        fused = type(activation).__name__ == "NoOpActivation"
        config["activation"] = "linear" if fused else keras.activations.serialize(activation)
    return type(layer).from_config(config)


def _short(weight: Any) -> str:
    return weight.name.rsplit("/", 1)[-1]
