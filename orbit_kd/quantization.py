"""Quantization-aware training: a copy of a model that computes as its int8 file will, and keeps its zeros.

    student = okd.strip(sparse)                    # or any other plain model
    qat = quantize_aware(student)                  # a copy; student is left alone
    qat.compile(...); qat.fit(...)                 # or inside a Distiller; no callback needed
    print(quantize_table(qat))
    okd.export(qat, "tflite_int8", path="student_int8.tflite")     # the trained ranges, no calibration

Every layer is wrapped where it stands, through nested models, by `quantization_layers.QuantizedLayer`. Scheme: Jacob et
al. 2018 (https://arxiv.org/abs/1712.05877) and TFLite's 8-bit specification.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.exporters.tflite import calibration_sample
from orbit_kd.graph import walk
from orbit_kd.quantization_layers import (
    FIXED_RANGE_ACTIVATIONS,
    KERNELS,
    QuantizedLayer,
    QuantizeWrapper,
    activation_name,
    observing,
)
from orbit_kd.sparsity_layers import SparseLayer
from orbit_kd.sparsity_models import check_model, copy_layer, is_graph, named_layers, rebuild

__all__ = ["QuantizationRow", "QuantizationTable", "quantize_aware", "quantize_table"]

_layers = keras.layers
# Their outputs hold values of their inputs and nothing else: TFLite gives both one scale.
_PASS_ON = (
    _layers.ActivityRegularization,
    _layers.Cropping1D,
    _layers.Cropping2D,
    _layers.Dropout,
    _layers.Flatten,
    _layers.GaussianDropout,
    _layers.GaussianNoise,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling2D,
    _layers.MaxPooling1D,
    _layers.MaxPooling2D,
    _layers.Permute,
    _layers.Reshape,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout2D,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
)
_SUMS = (_layers.Add, _layers.Subtract, _layers.Multiply)


def quantize_aware(model: keras.Model, *, calibration: Any = None, samples: int = 256, seed: int = 0) -> keras.Model:
    """A copy of a model that trains with the rounding of its int8 file, under `fit` or inside a Distiller.

    Kernels of convolutions and dense layers are rounded to -127..127 with a scale per output channel, and activations
    to 256 steps of a range, but not between layers that the converter fuses: convolution, BatchNormalization, ReLU.
    Weights that are zero now stay zero, whatever the pattern: in the copy, in its files, and in the int8 file.

    Ranges of activations come from the first training batch and follow the batches from then on; `calibration` gives
    them before training. As long as there are none, activations are not rounded. Layers keep their names. The copy
    shares nothing with `model` and is not compiled.

    Args:
        model: a plain, built Functional or Sequential tf_keras model: stripped, filter-pruned, nested or any other.
        calibration: inputs as the network sees them, as for `export`: a tf.data.Dataset of batches x or (x, y), or an
            array (n, ...).
        samples: number of calibration inputs.
        seed: which ones.

    Returns:
        The copy: a `keras.Model` of the same class.

    Raises:
        InputError: a model that cannot be copied, is sparse-wrapped or quantized already, or has no kernel to quantize.
    """
    check_model(model)
    layers = dict(named_layers(model))
    _refuse_wrapped(layers)
    if not any(type(layer) in KERNELS for layer in layers.values()):
        raise InputError(
            f"The model {model.name!r} has no layer whose kernel int8 arithmetic knows.",
            expected=f"at least one of: {', '.join(sorted(kind.__name__ for kind in KERNELS))}",
            fix="quantize the model after training instead: okd.export(model, 'tflite_int8', calibration=train)",
        )
    plans = _plan(model)

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        plan, copy = plans.get(id(layer)), copy_layer(layer)
        return copy if plan is None else QuantizedLayer(copy, **dataclasses.asdict(plan))

    quantized, pairs = rebuild(model, wrap)
    for layer, new in pairs:
        (new.layer if isinstance(new, QuantizedLayer) else new).set_weights(layer.get_weights())
        if isinstance(new, QuantizedLayer):
            new.start()
    if calibration is not None:
        _calibrate(quantized, calibration, samples, seed)
    return quantized


@dataclasses.dataclass(frozen=True)
class QuantizationRow:
    """One layer of a `QuantizationTable`.

    Attributes:
        layer: its name, "outer/inner" within a nested model.
        kind: its class.
        quantized: what of it is rounded to 8 bits: some of "inputs", "kernel", "preactivation", "output".
        density: fraction of kernel weights that are not zero; None for layers without a quantized kernel.
        note: why nothing of it is rounded, or why its output is not.
    """

    layer: str
    kind: str
    quantized: tuple[str, ...]
    density: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class QuantizationTable:
    """What of each layer is computed in 8 bits. Prints as a table; iterates over its rows."""

    rows: tuple[QuantizationRow, ...]

    def __iter__(self) -> Iterator[QuantizationRow]:
        return iter(self.rows)

    def __getitem__(self, layer: str) -> QuantizationRow:
        return next(row for row in self.rows if row.layer == layer)

    def __str__(self) -> str:
        cells = [("layer", "class", "density", "8 bits", "note")]
        for r in self.rows:
            density = "" if r.density is None else f"{r.density:.3f}"
            cells.append((r.layer, r.kind, density, ", ".join(r.quantized) or "-", r.note))
        w = [max(len(c[i]) for c in cells) for i in range(5)]
        return "\n".join(
            f"{a:<{w[0]}}  {b:<{w[1]}}  {c:>{w[2]}}  {d:<{w[3]}}  {e}".rstrip() for a, b, c, d, e in cells
        )


def quantize_table(model: keras.Model) -> QuantizationTable:
    """What each layer of a model of `quantize_aware` computes in 8 bits.

    Raises:
        InputError: the model has no layers that can be looked at.
    """
    check_model(model)
    return QuantizationTable(
        tuple(_row(name, layer) for name, layer in named_layers(model) if not isinstance(layer, _layers.InputLayer))
    )


def _row(name: str, layer: keras.layers.Layer) -> QuantizationRow:
    if not isinstance(layer, QuantizedLayer):
        note = "takes and gives the same values" if isinstance(layer, _PASS_ON) else "has a fixed range, or no floats"
        return QuantizationRow(name, type(layer).__name__, (), None, note)
    kernel = None if layer.kernel is None else layer.kernel.numpy()
    density = None if kernel is None else np.count_nonzero(kernel) / kernel.size
    note = "" if layer.ready else "ranges not known yet"
    if layer.folded:
        note = "folded into the layer before"
    elif not layer.output_quantized:
        note = "the next layer is fused into it"
    return QuantizationRow(name, type(layer.layer).__name__, (*(("kernel",) if kernel is not None else ()), *layer.ranges), density, note)


def _refuse_wrapped(layers: dict[str, keras.layers.Layer]) -> None:
    for name, layer in layers.items():
        if isinstance(layer, QuantizeWrapper):
            raise InputError(
                f"The model is quantization-aware already (layer {name!r}).",
                expected="a plain model",
                fix="train it as it is, or start from the model it was made of",
            )
        if isinstance(layer, keras.layers.Wrapper) and hasattr(layer, "layer") and _is_optimization(layer):
            raise InputError(
                f"The layer {name!r} is wrapped by {type(layer).__name__}.",
                expected="a plain model",
                fix="strip it first: quantize_aware(okd.strip(sparse)), or okd.strip_clusters(clustered)",
            )


def _is_optimization(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, SparseLayer) or any(
        kind.__module__.startswith("tensorflow_model_optimization") for kind in type(layer).__mro__
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `QuantizedLayer` does with one layer."""

    inputs: bool
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


def _plan(model: keras.Model) -> dict[int, _Plan]:
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
        inputs = any(t.producer is None and t.floating for t in taken)
        folded = isinstance(layer, _layers.BatchNormalization) and all(
            t.producer is not None and type(t.producer) in KERNELS and id(t.producer) in fused for t in taken
        )
        # Several results, or integers: a layer that moves values about, such as a split, a shape, a cast.
        moves = any(len(call.outputs) != 1 or not call.outputs[0].floating for call in calls)
        output = not (moves or key in fused or isinstance(layer, _PASS_ON) or _has_fixed_range(layer))
        zeros = type(layer) in KERNELS and not np.all(getattr(layer, KERNELS[type(layer)][0].kernel).numpy())
        if inputs or output or folded or type(layer) in KERNELS or key in fused:
            plans[key] = _Plan(inputs, output, folded, zeros)
    return plans


def _calls(model: keras.Model) -> list[_Call]:
    """Every use of a layer, in order, those inside nested models too."""
    calls: list[_Call] = []

    def run(graph: keras.Model, given: list[_Tensor]) -> list[_Tensor]:
        tensors = {id(t): tensor for t, tensor in zip(graph.inputs, given, strict=True)}
        for node in walk(graph):
            layer = node.layer
            if isinstance(layer, _layers.InputLayer):
                continue
            inputs = [tensors[id(t)] for t in node.keras_inputs]
            if is_graph(layer):
                outputs = run(layer, inputs)
            else:
                outputs = [_Tensor(layer, t.dtype.is_floating) for t in tf.nest.flatten(node.outputs)]
                for tensor in inputs:
                    tensor.consumers.append(layer)
                calls.append(_Call(layer, inputs, outputs))
            tensors.update(zip(map(id, tf.nest.flatten(node.outputs)), outputs, strict=True))
        return [tensors[id(t)] for t in graph.outputs]

    for tensor in run(model, [_Tensor(None, t.dtype.is_floating) for t in model.inputs]):
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


def _has_fixed_range(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, _layers.Softmax) or activation_name(layer) in FIXED_RANGE_ACTIVATIONS


def _calibrate(model: keras.Model, calibration: Any, samples: int, seed: int) -> None:
    """Sets the ranges from data: each batch moves them as a training step does, and no weight changes."""
    images = calibration_sample(calibration, samples=samples, seed=seed)
    expected = tuple(model.inputs[0].shape)[1:]
    if len(model.inputs) != 1 or not model.inputs[0].shape[1:].is_compatible_with(images.shape[1:]):
        raise InputError(
            f"The calibration images have shape {images.shape[1:]}.",
            expected=f"{expected}, the one input of the model without the batch",
            fix="calibrate with the training data after its Preprocess, or leave calibration out",
        )
    layers = [layer for _, layer in named_layers(model) if isinstance(layer, QuantizedLayer)]
    with observing(layers):
        for first in range(0, len(images), 32):
            model(images[first : first + 32], training=False)
