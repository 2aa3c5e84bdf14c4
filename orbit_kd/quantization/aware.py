"""Quantization-aware training: a copy of a model that computes as its int8 file will, and keeps its zeros.

    student = okd.strip(sparse)                    # or any other plain model
    qat = quantize_aware(student)                  # a copy; student is left alone
    qat.compile(...); qat.fit(...)                 # or inside a Distiller; no callback needed
    print(quantize_table(qat))
    okd.export(qat, "tflite_int8", path="student_int8.tflite")     # the trained ranges, no calibration

Every layer is wrapped where it stands, through nested models, by `layers.QuantizedLayer`. Scheme: Jacob et
al. 2018 (https://arxiv.org/abs/1712.05877) and TFLite's 8-bit specification.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import tf_keras as keras

from orbit_kd.datasets.batches import inputs_of
from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.exporters.tflite.integers import check_trained
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import clone_with, copy_layer, named_layers
from orbit_kd.models.integer_inputs import replace_integer_input
from orbit_kd.models.unwrapping import CLUSTERED, QUANTIZED, SPARSE, unwrapped_copy, wrappers_in
from orbit_kd.models.wrappers import inner_layer
from orbit_kd.quantization.layers import KERNELS, QuantizedLayer, observe_ranges
from orbit_kd.quantization.levels import FEWEST_BITS, MOST_BITS
from orbit_kd.quantization.placement import find_placements, is_one_operator
from orbit_kd.quantization.separable import split_separable
from orbit_kd.sparsity.sparsify import keep_zeros


def quantize_aware(
    model: keras.Model,
    *,
    bits: int | Mapping[str, int] = MOST_BITS,
    calibration: Any = None,
    samples: int = 256,
    seed: int = 0,
) -> keras.Model:
    """A copy of a model that trains with the rounding of its int8 file, under `fit` or inside a Distiller.

    Kernels of convolutions and dense layers are rounded to -127..127 with a scale per output channel, and activations
    to 256 steps of a range, but not between layers that the converter fuses: convolution, BatchNormalization, ReLU.
    Weights that are zero now stay zero, whatever the pattern: in the copy, in its files, and in the int8 file.

    With fewer `bits` a kernel has fewer levels: -7..7 with 4 bits, -1..1 with 2, in steps that are trained with it, one
    a channel (LSQ, see `levels.py`). The file stores them as int8 of a wider scale, which every runtime runs; a coded
    file for TFLite Micro (target "tflite_micro_coded") takes few bytes for few levels.

    Ranges of activations come from the first training batch and follow the batches from then on; `calibration` gives
    them before training. As long as there are none, activations are not rounded. Layers keep their names; a
    SeparableConv2D becomes its two convolutions. The copy shares nothing with `model` and is not compiled.

    A layer that TFLite computes in several operators (LayerNormalization, ELU, LSTM) would have its result rounded, but
    not what lies between: it is refused by name, before any training. Not for `use_ema=True`, see `okd.keep_zeros`.

    Args:
        model: a plain, built Functional or Sequential tf_keras model: stripped, filter-pruned, nested or any other. An
            integer input becomes float32 in the copy, which computes the same.
        bits: of every kernel, 2 to 8; or layer name (shell patterns, the first that fits) -> bits, 8 for others.
        calibration: inputs as the network sees them, as for `export`: a tf.data.Dataset of batches x or (x, y), arrays
            x or (x, y), a Sequence, TFLite's `representative_dataset`; ((x1, x2), y) for several inputs.
        samples: number of calibration inputs.
        seed: which ones.

    Returns:
        The copy: a `keras.Model` of the same class.

    Raises:
        InputError: a model that cannot be copied, is sparse-wrapped or quantized already, has no kernel to quantize, or
            has a layer that could not be exported after training; bits out of range, or of no layer; calibration data
            that do not fit.
    """
    model = as_tf_keras(model)
    layers = dict(named_layers(model))
    if not any(type(layer) in (*KERNELS, keras.layers.SeparableConv2D) for layer in layers.values()):
        raise InputError(
            f"The model {model.name!r} has no layer whose kernel int8 arithmetic knows.",
            expected=f"at least one of: {', '.join(sorted(kind.__name__ for kind in KERNELS))}",
            fix="quantize the model after training instead: okd.export(model, 'tflite_int8', calibration=train)",
        )
    plain = split_separable(replace_integer_input(model))
    if not all(tensor.dtype.is_floating for tensor in plain.inputs):
        raise InputError(
            f"The model {model.name!r} computes with whole numbers from its input on.",
            expected="an input that can have a range: amounts, not indices",
            fix="quantize the model after training instead: okd.export(model, 'tflite_int8', calibration=train)",
        )
    placements = find_placements(plain)
    bits_of = _bits_by_layer(plain, bits)

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        placement, copy = placements.get(id(layer)), copy_layer(layer)
        few = bits_of.get(id(layer), MOST_BITS)
        return copy if placement is None else QuantizedLayer(copy, **vars(placement), bits=few)

    quantized, pairs = clone_with(plain, wrap)
    for layer, new in pairs:
        inner_layer(new, QuantizedLayer).set_weights(layer.get_weights())
        if isinstance(new, QuantizedLayer):
            new.start()
    _refuse_unexportable(quantized)
    if calibration is not None:
        _calibrate(quantized, calibration, samples, seed)
    return quantized


def _bits_by_layer(model: keras.Model, bits: int | Mapping[str, int]) -> dict[int, int]:
    """Bits of each layer that has a kernel, by the layer's id.

    Raises:
        InputError: bits out of range, or of no layer.
    """
    wanted = dict(bits) if isinstance(bits, Mapping) else {"*": bits}
    for name, number in wanted.items():
        if number not in range(FEWEST_BITS, MOST_BITS + 1):
            raise InputError(
                f"bits={number!r} for {name!r}.",
                expected=f"a whole number from {FEWEST_BITS} to {MOST_BITS}",
                fix="correct it; 1 bit has no symmetric grid with a zero",
            )
    kernels = {name: layer for name, layer in named_layers(model) if type(layer) in KERNELS}
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in kernels):
            raise InputError(
                f"bits: no layer with a kernel is named {pattern!r}.",
                expected=f"names or shell patterns of: {', '.join(sorted(kernels))}",
                fix="correct the name",
            )
    return {
        id(layer): next((n for pattern, n in wanted.items() if fnmatch.fnmatchcase(name, pattern)), MOST_BITS)
        for name, layer in kernels.items()
    }


def strip_quantization(quantized: keras.Model) -> keras.Model:
    """The plain float model behind a quantization-aware one: the trained weights, no wrappers, no rounding.

    Kernels of fewer than 8 bits come as they were rounded: what was trained is the network of few levels.

    Models of tfmot's `quantize_model` are taken too; their input quantizer becomes a layer that does nothing. Zeros
    stay zero in further training, as after `okd.strip`. A SeparableConv2D stays split in two. Not compiled.

    Raises:
        InputError: the model is not of `quantize_aware`.
    """
    quantized = as_tf_keras(quantized, name="quantized", refuse=SPARSE + CLUSTERED)
    if not wrappers_in(quantized, QUANTIZED):
        raise InputError(
            f"The model {quantized.name!r} is not quantization-aware.",
            expected="a model of okd.quantize_aware",
            fix="use it as it is",
        )
    return keep_zeros(unwrapped_copy(quantized, QUANTIZED))


def plain_model(model: keras.Model) -> keras.Model:
    """The model itself, or the float one behind a quantization-aware one."""
    return strip_quantization(model) if wrappers_in(model, QUANTIZED) else model


def _calibrate(model: keras.Model, calibration: Any, samples: int, seed: int) -> None:
    """Sets the ranges from data: each batch moves them as a training step does, and no weight changes."""
    inputs = inputs_of(model)
    found = calibration_sample(calibration, samples=samples, seed=seed, inputs=inputs)
    images = [found] if len(model.inputs) == 1 else found
    layers = [layer for _, layer in named_layers(model) if isinstance(layer, QuantizedLayer)]
    with observe_ranges(layers):
        for first in range(0, len(images[0]), 32):
            some = [part[first : first + 32] for part in images]
            model(some[0] if len(some) == 1 else some, training=False)


def _refuse_unexportable(quantized: keras.Model) -> None:
    """Refuses now what the int8 export would after the training: tried with made-up ranges, where a layer is new to us.

    Raises:
        InputError: a layer that TFLite computes in several operators, of which only the last would have a range.
    """
    layers = [inner_layer(layer, QuantizedLayer) for _, layer in named_layers(quantized)]
    if all(is_one_operator(layer) for layer in layers):
        return
    trial, pairs = clone_with(quantized, copy_layer)
    for layer, new in pairs:
        new.set_weights(layer.get_weights())
        for low, high in new.ranges.values() if isinstance(new, QuantizedLayer) else ():
            low.assign(-1.0)
            high.assign(1.0)
    check_trained(trial, [tuple(n or 32 for n in tensor.shape[1:]) for tensor in quantized.inputs])
