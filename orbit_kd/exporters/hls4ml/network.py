"""The network as hls4ml takes it: few kinds of layers, with the same outputs.

BatchNormalization and Rescaling go into the kernel beside them where that is exact, activations become layers of their
own, Dropout is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.walk import RANDOM, require_graph, walk

layers = keras.layers

KERNELS = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
POOLS = (layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_AS_THEY_ARE = (*POOLS, layers.Flatten, layers.Add, layers.ZeroPadding2D)
_MADE_ANEW = (layers.Rescaling, layers.BatchNormalization, layers.ReLU, layers.Activation)
SUPPORTED = sorted(
    {c.__name__ for c in (*RANDOM, *KERNELS, *_AS_THEY_ARE, *_MADE_ANEW, layers.InputLayer)} | {"relu", "linear"}
)


def plain(model: keras.Model) -> keras.Model:
    """A network with the same outputs, of InputLayer, convolutions, Dense, BatchNormalization, relu, pooling, Add, ...

    Raises:
        InputError: a layer, or an option of one, that hls4ml does not take or computes otherwise; it is named.
    """
    require_graph(model)
    nodes = list(walk(model))
    for node in nodes:
        _check(node.layer)
    if again := [node.layer.name for node in nodes if sum(other.layer is node.layer for other in nodes) > 1]:
        raise _refused(again[0], "is used more than once", "a layer for each place", "copy it")
    readers: dict[int, list[Any]] = {}
    for node in nodes:
        for tensor in node.keras_inputs:
            readers.setdefault(id(tensor), []).append(node.layer)
    image = layers.Input(model.input_shape[1:], name=model.input_names[0])
    made = {id(model.input): image}
    skip: set[str] = set()  # normalizations that are in a kernel already
    factor: dict[int, float] = {}  # of a tensor: what it still is to be multiplied by
    for node in nodes:
        layer, sources = node.layer, [made[id(t)] for t in node.keras_inputs]
        scale = factor.pop(id(node.keras_inputs[0]), 1.0)
        after = readers.get(id(node.outputs), [])
        follower = after[0] if len(after) == 1 else None
        x = sources[0]
        if layer.name in skip or isinstance(layer, RANDOM):
            pass
        elif isinstance(layer, layers.Rescaling):
            if not np.any(layer.offset) and np.ndim(layer.scale) == 0 and isinstance(follower, KERNELS):
                factor[id(node.outputs)] = float(layer.scale)
            else:
                x = _affine(x, layer.name, layer.scale, layer.offset)
        elif isinstance(layer, KERNELS):
            linear = layer.activation is keras.activations.linear
            norm = follower if linear and isinstance(follower, layers.BatchNormalization) else None
            skip |= {norm.name} if norm else set()
            x = _kernel(x, layer, norm, scale)
            x = x if linear else layers.Activation("relu", name=f"{layer.name}_relu")(x)
        elif isinstance(layer, layers.BatchNormalization):
            x = _affine(x, layer.name, *scale_and_offset(layer))
        elif isinstance(layer, (layers.ReLU, layers.Activation)):
            x = _activation(x, layer)
        else:
            x = type(layer).from_config(layer.get_config())(sources if len(sources) > 1 else x)
        made[id(node.outputs)] = x
    return keras.Model(image, made[id(model.output)], name=model.name)


def _check(layer: Any) -> None:
    name, kind = layer.name, type(layer)
    if kind not in (*RANDOM, *KERNELS, *_AS_THEY_ARE, *_MADE_ANEW):
        raise _refused(name, f"is a {kind.__name__}", "one of: " + ", ".join(SUPPORTED), "replace it")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refused(name, "has its channels first", "channels last", "build the network with channels_last")
    function = getattr(layer, "activation", keras.activations.linear)
    if function not in (keras.activations.linear, keras.activations.relu):
        told = getattr(function, "__name__", str(function))
        raise _refused(name, f"has the activation {told!r}", "relu or linear", "let the network end in logits")
    dilated = set(np.atleast_1d(getattr(layer, "dilation_rate", 1)).tolist()) != {1}
    if dilated or getattr(layer, "groups", 1) != 1 or getattr(layer, "depth_multiplier", 1) != 1:
        raise _refused(name, "is dilated, grouped or has a depth multiplier", "plain convolutions", "replace it")
    if isinstance(layer, layers.ReLU) and (layer.negative_slope or layer.threshold):
        raise _refused(name, "has a negative slope or a threshold", "plain ReLU, or ReLU6", "use ReLU")
    if isinstance(layer, layers.BatchNormalization) and list(np.atleast_1d(layer.axis)) != [len(layer.input_shape) - 1]:
        raise _refused(name, "normalizes another axis than the last", "channels last", "use axis=-1")


def _refused(name: str, what: str, expected: str, fix: str) -> InputError:
    return InputError(f"hls4ml does not take layer {name!r}: it {what}.", expected=expected, fix=fix)


def scale_and_offset(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """BatchNormalization as x * scale + offset."""
    variance, mean = norm.moving_variance.numpy(), norm.moving_mean.numpy()
    scale = (1.0 if norm.gamma is None else norm.gamma.numpy()) / np.sqrt(variance + norm.epsilon)
    return scale, (0.0 if norm.beta is None else norm.beta.numpy()) - mean * scale


def _affine(x: Any, name: str, scale: Any, offset: Any) -> Any:
    """x * scale + offset for each channel, as the BatchNormalization that hls4ml knows."""
    norm = layers.BatchNormalization(epsilon=0.0, name=name)
    y, n = norm(x), x.shape[-1]
    norm.set_weights([np.broadcast_to(v, n) for v in (scale, offset, 0.0, 1.0)])
    return y


def _kernel(x: Any, layer: Any, norm: Any, factor: float) -> Any:
    """The convolution or dense layer with the normalization after it, and a factor on its input, in its kernel."""
    config = layer.get_config() | {"use_bias": True, "activation": "linear"}
    new = type(layer).from_config(config)
    y = new(x)
    kernel, *bias = layer.get_weights()
    total = bias[0] if bias else np.zeros(y.shape[-1])
    kernel = kernel * factor
    if norm is not None:
        scale, offset = scale_and_offset(norm)
        total = total * scale + offset
        kernel = kernel * (scale[:, None] if is_depthwise(layer) else scale)
    new.set_weights([kernel, total])
    return y


def _activation(x: Any, layer: Any) -> Any:
    """ReLU by itself; capped at c it is c - relu(c - relu(x)), as hls4ml has no cap."""
    if getattr(layer, "activation", None) is keras.activations.linear:
        return x
    x = layers.Activation("relu", name=layer.name)(x)
    cap = getattr(layer, "max_value", None)
    if cap is None:
        return x
    x = layers.Activation("relu", name=f"{layer.name}_below")(_affine(x, f"{layer.name}_turned", -1.0, cap))
    return _affine(x, f"{layer.name}_capped", -1.0, cap)


def fan_in(layer: Any) -> int:
    """Products that one output of a convolution or dense layer adds up."""
    shape = layer.get_weights()[0].shape
    return math.prod(shape[:2] if is_depthwise(layer) else shape[:-1])


def is_depthwise(layer: Any) -> bool:
    """Whether each output channel has one input channel only."""
    return isinstance(layer, layers.DepthwiseConv2D)


def kernels(network: keras.Model) -> Iterator[tuple[Any, np.ndarray]]:
    """(layer, kernel as a matrix (inputs, outputs)) of the convolutions and dense layers."""
    for layer in network.layers:
        if isinstance(layer, KERNELS):
            kernel = layer.get_weights()[0]
            yield layer, kernel.reshape(fan_in(layer), -1)
