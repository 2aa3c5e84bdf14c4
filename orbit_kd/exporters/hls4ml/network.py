"""The network as hls4ml takes it, and the fixed-point type of every number in it.

`plain` rebuilds a Keras graph from few kinds of layers, with the same outputs: BatchNormalization and Rescaling go into
the kernel beside them where that is exact, activations become layers of their own, Dropout is gone. `precisions` then
gives each layer types just wide enough for what was observed over calibration images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.walk import RANDOM, require_graph, walk

layers = keras.layers

_KERNELS = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
_POOLS = (layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_AS_THEY_ARE = (*_POOLS, layers.Flatten, layers.Add, layers.ZeroPadding2D)
_MADE_ANEW = (layers.Rescaling, layers.BatchNormalization, layers.ReLU, layers.Activation)
SUPPORTED = sorted(
    {c.__name__ for c in (*RANDOM, *_KERNELS, *_AS_THEY_ARE, *_MADE_ANEW, layers.InputLayer)} | {"relu", "linear"}
)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A type of Xilinx' ap_fixed library: `width` bits, `integer` of them (the sign too) before the point.

    Rounds to nearest and saturates; an accumulator truncates and wraps, as only its end value must fit.
    """

    width: int
    integer: int
    signed: bool = True
    accumulator: bool = False

    @property
    def fraction(self) -> int:
        """Bits after the point."""
        return self.width - self.integer

    def __str__(self) -> str:
        modes = "" if self.accumulator else ",AP_RND,AP_SAT"
        return f"ap_{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{modes}>"

    @classmethod
    def holding(cls, low: float, high: float, *, width: int) -> Fixed:
        """The type of that width with the finest steps that reaches from `low` to `high`."""
        signed, largest = low < 0, max(-low, high)
        return cls(width, (math.frexp(largest)[1] if largest else 0) + signed, signed)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real numbers -> int64 steps of 2**-fraction, as ap_fixed does it."""
        top = 1 << (self.width - self.signed)
        steps = np.floor(np.asarray(x, np.float64) * 2.0**self.fraction + 0.5)
        return np.clip(steps, -top if self.signed else 0, top - 1).astype(np.int64)


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
            if not np.any(layer.offset) and np.ndim(layer.scale) == 0 and isinstance(follower, _KERNELS):
                factor[id(node.outputs)] = float(layer.scale)
            else:
                x = _affine(x, layer.name, layer.scale, layer.offset)
        elif isinstance(layer, _KERNELS):
            linear = layer.activation is keras.activations.linear
            norm = follower if linear and isinstance(follower, layers.BatchNormalization) else None
            skip |= {norm.name} if norm else set()
            x = _kernel(x, layer, norm, scale)
            x = x if linear else layers.Activation("relu", name=f"{layer.name}_relu")(x)
        elif isinstance(layer, layers.BatchNormalization):
            x = _affine(x, layer.name, *_scale_and_offset(layer))
        elif isinstance(layer, (layers.ReLU, layers.Activation)):
            x = _activation(x, layer)
        else:
            x = type(layer).from_config(layer.get_config())(sources if len(sources) > 1 else x)
        made[id(node.outputs)] = x
    return keras.Model(image, made[id(model.output)], name=model.name)


def _check(layer: Any) -> None:
    name, kind = layer.name, type(layer)
    if kind not in (*RANDOM, *_KERNELS, *_AS_THEY_ARE, *_MADE_ANEW):
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


def _scale_and_offset(norm: Any) -> tuple[np.ndarray, np.ndarray]:
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
        scale, offset = _scale_and_offset(norm)
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


def ranges(network: keras.Model, images: np.ndarray, *, batch: int = 32) -> dict[str, tuple[float, float]]:
    """(lowest, highest) value of each layer's output over the images."""
    probe = keras.Model(network.input, [layer.output for layer in network.layers])
    found = {layer.name: (math.inf, -math.inf) for layer in network.layers}
    for start in range(0, len(images), batch):
        outputs = probe(images[start : start + batch], training=False)
        for layer, out in zip(network.layers, outputs if isinstance(outputs, list) else [outputs], strict=True):
            low, high = found[layer.name]
            found[layer.name] = min(low, float(np.min(out))), max(high, float(np.max(out)))
    return found


def precisions(
    network: keras.Model, observed: dict[str, tuple[float, float]], *, bits: int, weight_bits: int
) -> dict[str, dict[str, Fixed]]:
    """The types of each layer: "result", and where it has them "weight" (or "scale"), "bias" and "accum".

    Args:
        network: of `plain`.
        observed: of `ranges`.
        bits: width of results and biases.
        weight_bits: width of kernels.
    """
    types: dict[str, dict[str, Fixed]] = {}
    for layer in network.layers:
        low, high = observed[layer.name]
        own = types[layer.name] = {"result": Fixed.holding(low, high, width=bits)}
        if isinstance(layer, layers.InputLayer):
            continue
        source = types[_source(layer)]["result"]
        if weights := layer.get_weights():
            first = weights[0] if isinstance(layer, _KERNELS) else _scale_and_offset(layer)[0]
            second = weights[1] if isinstance(layer, _KERNELS) else _scale_and_offset(layer)[1]
            kernel = Fixed.holding(float(first.min()), float(first.max()), width=weight_bits)
            own["weight" if isinstance(layer, _KERNELS) else "scale"] = kernel
            own["bias"] = Fixed.holding(float(second.min()), float(second.max()), width=bits)
            if isinstance(layer, _KERNELS):
                own["accum"] = _accumulator(source, kernel, own["result"], terms=fan_in(layer))
        elif isinstance(layer, _POOLS):
            shape = layer.input_shape[1:3] if isinstance(layer, (layers.GlobalAveragePooling2D,)) else ()
            grow = math.ceil(math.log2(math.prod(shape or getattr(layer, "pool_size", (1,))))) + 1
            own["accum"] = Fixed(source.width + grow + 2, source.integer + grow, source.signed, accumulator=True)
    return types


def _source(layer: Any) -> str:
    inbound = layer.inbound_nodes[0].inbound_layers
    return (inbound[0] if isinstance(inbound, list) else inbound).name


def _accumulator(source: Fixed, kernel: Fixed, result: Fixed, *, terms: int) -> Fixed:
    """Two bits of room above the result; each product is truncated, so together they lose half a step of the result."""
    integer = result.integer + (not result.signed) + 2
    fraction = min(source.fraction + kernel.fraction, result.fraction + math.ceil(math.log2(max(terms, 2))) + 1)
    return Fixed(integer + max(fraction, 1 - integer), integer, accumulator=True)


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
        if isinstance(layer, _KERNELS):
            kernel = layer.get_weights()[0]
            yield layer, kernel.reshape(fan_in(layer), -1)
