"""Where a network is rounded to 8 bits: at which tensors between its layers, as the TFLite converter fuses them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from orbit_kd.models.walk import RANDOM, Node, carry
from orbit_kd.models.wrappers import KernelRule, kernel_rule
from orbit_kd.quantization.layers import AFFINE, FIXED_RANGE_ACTIVATIONS, FUSED_ACTIVATIONS, KERNELS, activation_name

_layers = keras.layers
# TFLite gives their outputs the scale of their inputs: they hold the same values, or means of them.
PASS_ON = (
    *RANDOM,
    _layers.ActivityRegularization,
    _layers.AveragePooling1D,
    _layers.AveragePooling2D,
    _layers.Cropping1D,
    _layers.Cropping2D,
    _layers.Flatten,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling2D,
    _layers.MaxPooling1D,
    _layers.MaxPooling2D,
    _layers.Permute,
    _layers.Reshape,
    SlicingOpLambda,
    _layers.UpSampling2D,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
)
_ONE_OPERATOR = ("__operators__.add", "math.add", "math.subtract", "math.multiply")  # of TensorFlow's functions
_SUMS = (_layers.Add, _layers.Subtract, _layers.Multiply)


@dataclasses.dataclass(frozen=True)
class Placement:
    """What `QuantizedLayer` does with one layer."""

    rule: KernelRule | None
    inputs: tuple[int, ...]
    output: bool
    folded: bool
    keep_zeros: bool


@dataclasses.dataclass(eq=False)
class _Tensor:
    """One tensor between layers, seen through nested models."""

    producer: keras.layers.Layer | None
    floating: bool
    consumers: list[keras.layers.Layer] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One use of a layer."""

    layer: keras.layers.Layer
    inputs: list[_Tensor]
    outputs: list[_Tensor]


def find_placements(model: keras.Model) -> dict[int, Placement]:
    """What each layer gets, by id. A layer used several times gets what any of its uses needs."""
    uses: dict[int, list[_Call]] = defaultdict(list)
    for call in _calls(model):
        uses[id(call.layer)].append(call)
    # Layers whose result goes into a layer that is fused into them, wherever they are used.
    fused = {key for key, calls in uses.items() if all(_is_fused(t) for call in calls for t in call.outputs)}
    plans = {}
    for key, calls in uses.items():
        layer = calls[0].layer
        taken = [t for call in calls for t in call.inputs]
        # A position that takes an input in one use and another tensor in the next would round that twice: the exporter
        # tells of the input that is left without a range.
        inputs = tuple(
            position
            for position, given in enumerate(zip(*(call.inputs for call in calls), strict=False))
            if all(t.producer is None and t.floating for t in given)
        )
        folded = isinstance(layer, _layers.BatchNormalization) and all(
            t.producer is not None and type(t.producer) in KERNELS and id(t.producer) in fused for t in taken
        )
        # Several results, or integers: a layer that moves values about, such as a split, a shape, a cast.
        moves = any(len(call.outputs) != 1 or not call.outputs[0].floating for call in calls)
        output = not (moves or key in fused or isinstance(layer, PASS_ON) or has_fixed_range(layer))
        rule, zeros = _kernel(layer)
        if rule or inputs or output or folded or key in fused:
            plans[key] = Placement(rule, inputs, output, folded, zeros)
    return plans


def _kernel(layer: keras.layers.Layer) -> tuple[KernelRule | None, bool]:
    """Where the kernel is that is rounded, or that has zeros to keep; and whether it has."""
    known = type(layer) in KERNELS
    rule = KERNELS[type(layer)][0] if known else kernel_rule(layer)
    if not isinstance(rule, KernelRule):
        return None, False
    zeros = not np.all(getattr(layer, rule.kernel).numpy())
    return (rule if known or zeros else None), zeros


def _calls(model: keras.Model) -> list[_Call]:
    """Every use of a layer, in order, those inside nested models too."""
    calls: list[_Call] = []

    def call(node: Node, path: str, inputs: list[_Tensor]) -> list[_Tensor]:
        outputs = [_Tensor(node.layer, t.dtype.is_floating) for t in tf.nest.flatten(node.outputs)]
        for tensor in inputs:
            tensor.consumers.append(node.layer)
        calls.append(_Call(node.layer, inputs, outputs))
        return outputs

    for tensor in carry(model, [_Tensor(None, t.dtype.is_floating) for t in model.inputs], call, opaque=True):
        tensor.consumers.append(model)  # who reads a result of the model reads it as it is
    return calls


def _is_fused(tensor: _Tensor) -> bool:
    """Whether the converter computes the one layer that takes this tensor together with the one that gives it."""
    if len(tensor.consumers) != 1 or tensor.producer is None:
        return False
    giver, taker = tensor.producer, tensor.consumers[0]
    if type(giver) in KERNELS and activation_name(giver) != "linear":
        return False
    if isinstance(taker, _layers.BatchNormalization):
        return type(giver) in KERNELS
    return _is_relu(taker) and (type(giver) in KERNELS or isinstance(giver, (*_SUMS, _layers.BatchNormalization)))


def _is_relu(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, _layers.ReLU):
        return layer.max_value in (None, 6.0) and not layer.negative_slope and not layer.threshold
    return type(layer) is _layers.Activation and activation_name(layer) in ("relu", "relu6")


def has_fixed_range(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, _layers.Softmax) or activation_name(layer) in FIXED_RANGE_ACTIVATIONS


def is_one_operator(layer: keras.layers.Layer) -> bool:
    """Whether TFLite is known to compute a layer in operators that `place` gives a range each."""
    known = (*KERNELS, *PASS_ON, *_SUMS, *AFFINE, _layers.InputLayer, _layers.ReLU, _layers.Softmax, _layers.Activation)
    known += (_layers.Concatenate, _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D)
    if isinstance(layer, TFOpLambda):
        return layer.symbol in _ONE_OPERATOR
    plain = (*FUSED_ACTIVATIONS, *FIXED_RANGE_ACTIVATIONS)
    return type(layer) in known and activation_name(layer) in plain
