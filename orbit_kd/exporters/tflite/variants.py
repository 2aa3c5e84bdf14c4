"""Further TensorFlow Lite files: float16 weights, dynamic-range int8, and int16 activations with int8 weights.

None of them is combined with the converter's Optimize.EXPERIMENTAL_SPARSITY: with int16x8 it writes garbage and says
nothing, and with int8 it makes files larger.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.requirements import fixed_shape
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.convert import (
    check_integers,
    convert,
    refuse_quantization_aware,
    save,
    trace,
    trace_for_integers,
    whole_images,
)
from orbit_kd.tflite.reader import parse


@target("tflite_float16")
def export_float16(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Artifact:
    """Weights in float16, half the bytes; computed in float32. Not for TFLite Micro. `calibration` is not used.

    Args:
        model: tf_keras model, one input (batch, ...) float32.
        path: the .tflite file to write.
        calibration: ignored, so that one call serves every target.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open.

    Raises:
        InputError: as "tflite_float32"; also a weight beyond float16's 65,504.
    """
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    refuse_quantization_aware(model, "its float file would round to 8 bits at every layer")
    data = convert(trace(model, fixed_shape(model, input_shape)), settings)
    _check_float16(data, model)
    return save(data, "tflite_float16", path, metadata, {})


def _check_float16(data: bytes, model: Any) -> None:
    """Raises InputError where the converter has cut a constant off at float16's largest number, which it does silently.

    It is looked for in the file, as folding BatchNormalization changes the weights.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = parse(data)
    for tensor in graph.subgraphs[0].tensors:
        content = graph.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT16 or content is None:
            continue
        values = np.asarray(content, np.uint8).view(np.float16)
        if not (np.abs(values) < np.finfo(np.float16).max).all():
            raise InputError(
                f"Constant {tensor.name.decode()!r} of model {model.name!r} does not fit into float16.",
                expected="weights, with BatchNormalization folded into them, within -65,504 to 65,504",
                fix="export tflite_float32 or tflite_int8, or train with weight decay",
            )


@target("tflite_dynamic")
def export_dynamic(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Artifact:
    """Weights in int8, activations in float32, quantized as they come. Not for TFLite Micro. No calibration.

    The converter leaves kernels of fewer than 1,024 weights in float32.

    Args:
        model: tf_keras model, one input (batch, ...) float32.
        path: the .tflite file to write.
        calibration: ignored, so that one call serves every target.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open.

    Raises:
        InputError: as "tflite_float32".
    """
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    refuse_quantization_aware(model, "its activations would be rounded twice")
    return save(convert(trace(model, fixed_shape(model, input_shape)), settings), "tflite_dynamic", path, metadata, {})


@target("tflite_int16x8", check=lambda model: check_integers(model, target="tflite_int16x8"))
def export_int16x8(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    samples: int = 256,
    seed: int = 0,
    float_io: bool = False,
) -> Artifact:
    """Weights in int8, activations in int16 with zero point 0: nearer to float than int8, at twice the activation RAM.

    Scheme: TFLite's 16x8 quantization (https://ai.google.dev/edge/litert/models/quantization_spec).

    Args:
        model: tf_keras model, one input (batch, ...) float32.
        path: the .tflite file to write.
        calibration: inputs as the network sees them, see `export`; as for "tflite_int8".
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open.
        samples: number of calibration images to use.
        seed: which ones.
        float_io: float32 input and output instead of int16, with conversions inside the file.

    Raises:
        InputError: as "tflite_int8"; also a quantization-aware model, whose trained ranges are of 8 bits.
    """
    import tensorflow as tf

    refuse_quantization_aware(model, "the ranges it has trained are of 8 bits, not of 16")
    shape = fixed_shape(model, input_shape)
    traced = trace_for_integers(model, shape, target="tflite_int16x8")
    images = whole_images(model, calibration, shape=shape, samples=samples, seed=seed)

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = traced.calibration(images)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        if not float_io:
            converter.inference_input_type = converter.inference_output_type = tf.int16

    data = convert(traced, settings)
    return save(data, "tflite_int16x8", path, metadata, {"calibration_images": len(images), "seed": seed})
