"""TensorFlow Lite files that compute in integers, calibrated on data: int8, and int16 activations with int8 weights.

Neither is combined with the converter's Optimize.EXPERIMENTAL_SPARSITY: with int16x8 it writes garbage and says
nothing, and with int8 it makes files larger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_images, calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.requirements import Shape, Shapes, fixed_shapes
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.biases import mend_equal_biases
from orbit_kd.exporters.tflite.convert import Traced, convert, save, trace
from orbit_kd.exporters.tflite.levels import widen_scales
from orbit_kd.exporters.tflite.order_check import check_order
from orbit_kd.exporters.tflite.quantization_aware import (
    check_all_int8,
    check_ranges,
    few_levels,
    is_quantization_aware,
    refuse_quantization_aware,
)
from orbit_kd.runtimes import port_names
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import to_bytes


@target("tflite_int8", check=lambda model: check_integers(model, target="tflite_int8"))
def export_int8(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: Shapes | None = None,
    samples: int = 256,
    seed: int = 0,
    float_io: bool = False,
) -> Artifact:
    """Full-integer int8: symmetric weights in -127..127, a scale per channel, zeros stay zero; int8 in and out.

    Scheme: Jacob et al. 2018 (https://arxiv.org/abs/1712.05877) as in TFLite's 8-bit specification.

    Args:
        model: tf_keras model, inputs (batch, ...) float32; int32 where they are indices of an Embedding.
        path: the .tflite file to write.
        calibration: inputs as the network sees them, see `export`; several as a tuple or a dict by name. A seeded
            random sample of it sets the activations' ranges; at most the first 20,000 images are gone through. Not
            used, and not needed, for a model of `quantize_aware`, which has trained its ranges.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open; of several inputs a shape each, in their order
            or by name.
        samples: number of calibration images to use.
        seed: which ones.
        float_io: float32 input and output instead of int8, with conversions inside the file.

    Raises:
        InputError: as `export_float32`; also no calibration data, an empty one, one of another shape, or NaN or Inf in
            it.
    """
    import tensorflow as tf

    shapes = fixed_shapes(model, input_shape)
    traced = trace_for_integers(model, shapes, target="tflite_int8")
    # Trained with quantization, a model brings its ranges, and the converter would not look at calibration data.
    trained = is_quantization_aware(model)
    images = None if trained else whole_images(model, calibration, shapes=shapes, samples=samples, seed=seed)

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if images is not None:
            converter.representative_dataset = traced.calibration(images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if not float_io:
            converter.inference_output_type = tf.int8
            if any(kind.is_floating for kind in traced.dtypes):  # indices stay what they are
                converter.inference_input_type = tf.int8

    if trained:
        check_ranges(model)
    data = convert(traced, settings)
    if images is not None:
        details = {"calibration_images": len(images[0]), "seed": seed}
    else:
        check_all_int8(data, model)
        details = {"quantization_aware": True}
        file = parse(data)
        changed = mend_equal_biases(file)
        if most := few_levels(model):
            widen_scales(file, most)
        if changed or most:
            data = to_bytes(file)
    if not float_io:
        _refuse_float_ports(data, traced, "tflite_int8")
    check_order(data, traced, images)
    return save(data, path, target="tflite_int8", metadata=metadata, details=details)


@target("tflite_int16x8", check=lambda model: check_integers(model, target="tflite_int16x8"))
def export_int16x8(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: Shapes | None = None,
    samples: int = 256,
    seed: int = 0,
    float_io: bool = False,
) -> Artifact:
    """Weights in int8, activations in int16 with zero point 0: nearer to float than int8, at twice the activation RAM.

    Scheme: TFLite's 16x8 quantization (https://ai.google.dev/edge/litert/models/quantization_spec).

    The arguments are those of `export_int8`, with int16 input and output in place of int8.

    Raises:
        InputError: as "tflite_int8"; also a quantization-aware model, whose trained ranges are of 8 bits.
    """
    import tensorflow as tf

    refuse_quantization_aware(model, "the ranges it has trained are of 8 bits, not of 16")
    shapes = fixed_shapes(model, input_shape)
    traced = trace_for_integers(model, shapes, target="tflite_int16x8")
    images = whole_images(model, calibration, shapes=shapes, samples=samples, seed=seed)

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = traced.calibration(images)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        if not float_io:
            converter.inference_input_type = converter.inference_output_type = tf.int16

    data = convert(traced, settings)
    if not float_io:
        _refuse_float_ports(data, traced, "tflite_int16x8")
    check_order(data, traced, images)
    details = {"calibration_images": len(images[0]), "seed": seed}
    return save(data, path, target="tflite_int16x8", metadata=metadata, details=details)


def trace_for_integers(model: Any, shapes: Sequence[Shape], *, target: str) -> Traced:
    """`trace` of a model that is to be quantized; one that the converter would die of is refused.

    Raises:
        InputError: as `trace`; or a loop.
    """
    from orbit_kd.exporters.tflite.loops import has_loop, refuse_loops
    from orbit_kd.models.integer_inputs import replace_integer_input

    ready = replace_integer_input(model)
    traced = trace(ready, shapes, dtypes=[tensor.dtype for tensor in ready.inputs])
    if has_loop(traced.function):
        refuse_loops(model, convert(traced), target=target)
    return traced


def whole_images(model: Any, calibration: Any, *, shapes: Sequence[Shape], samples: int, seed: int) -> list[np.ndarray]:
    """A calibration sample that is whole numbers where the model's input is: (n, ...) float32, one array an input.

    Raises:
        InputError: as `calibration_sample`; images of another shape; or numbers that an integer input would cut off.
    """
    from orbit_kd.models.integer_inputs import check_whole_numbers

    if len(shapes) == 1:
        images = [calibration_images(calibration, shape=shapes[0], samples=samples, seed=seed)]
    else:
        inputs = dict(zip(model.input_names, shapes, strict=True))
        images = calibration_sample(calibration, samples=samples, seed=seed, inputs=inputs)
    check_whole_numbers(images, model)
    return images


def _refuse_float_ports(data: bytes, traced: Traced, target: str) -> None:
    """Raises InputError where one of several inputs or outputs stays float, as the network computes nothing with it."""
    if (traced.inputs, traced.outputs) == (1, 1):
        return
    graph = Subgraph(parse(data))
    for side, tensors, names in zip(
        ("input", "output"), (graph.inputs_of_graph, graph.outputs_of_graph), port_names(data), strict=True
    ):
        for tensor, name in zip(tensors, names, strict=True):
            if graph.dtype(tensor).startswith("float"):
                raise InputError(
                    f"The {side} {name!r} of model {traced.model.name!r} would stay {graph.dtype(tensor)} in the "
                    f"{target} file: no layer computes with it.",
                    expected="inputs that layers read, and outputs that layers compute",
                    fix="build the network without it; or export tflite_float32, or with float_io=True",
                )


def check_integers(model: Any, *, target: str) -> None:
    """Raises InputError where a model cannot be quantized, whatever the calibration data."""
    trace_for_integers(model, fixed_shapes(model), target=target)


def check_trained(model: Any, shapes: Sequence[Shape]) -> None:
    """Raises InputError where the int8 file of a quantization-aware model would compute in float."""
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    traced = trace_for_integers(model, shapes, target="tflite_int8")
    check_all_int8(convert(traced, settings), model)
