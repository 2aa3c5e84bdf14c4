"""TensorFlow Lite files that compute in float: float32, float16 weights, and dynamic-range int8 weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.requirements import Shapes, fixed_shapes
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.convert import convert, save, trace
from orbit_kd.exporters.tflite.order_check import check_order
from orbit_kd.exporters.tflite.quantization_aware import refuse_quantization_aware
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph


@target("tflite_float32")
def export_float32(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: Shapes | None = None,
) -> Artifact:
    """Float weights and activations; BatchNormalization folded. `calibration` is not used.

    Args:
        model: tf_keras model, inputs (batch, ...) float32.
        path: the .tflite file to write.
        calibration: ignored, so that one call serves every target.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open; of several inputs a shape each, in their order
            or by name.

    Raises:
        InputError: open sizes, an input that nothing reads beside others, weights that are not finite, or an operator
            TFLite lacks.
    """
    refuse_quantization_aware(model, "its float file would round to 8 bits at every layer")
    data = _converted(model, input_shape)
    return save(data, path, target="tflite_float32", metadata=metadata)


@target("tflite_float16")
def export_float16(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: Shapes | None = None,
) -> Artifact:
    """Weights in float16, half the bytes; computed in float32. Not for TFLite Micro. `calibration` is not used.

    The arguments are those of `export_float32`.

    Raises:
        InputError: as "tflite_float32"; also a weight beyond float16's 65,504.
    """
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    refuse_quantization_aware(model, "its float file would round to 8 bits at every layer")
    data = _converted(model, input_shape, settings)
    _check_float16(data, model)
    return save(data, path, target="tflite_float16", metadata=metadata)


def _converted(model: Any, given: Shapes | None, settings: Callable[[Any], None] = lambda converter: None) -> bytes:
    traced = trace(model, fixed_shapes(model, given))
    data = convert(traced, settings)
    check_order(data, traced)
    return data


def _check_float16(data: bytes, model: Any) -> None:
    """Raises InputError where the converter has cut a constant off at float16's largest number, which it does silently.

    It is looked for in the file, as folding BatchNormalization changes the weights.
    """
    graph = Subgraph(parse(data))
    for index, tensor in enumerate(graph.tensors):
        if graph.dtype(index) != "float16" or graph.data(index) is None:
            continue
        values = graph.dense(index)
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
    input_shape: Shapes | None = None,
) -> Artifact:
    """Weights in int8, activations in float32, quantized as they come. Not for TFLite Micro. No calibration.

    The converter leaves kernels of fewer than 1,024 weights in float32.

    The arguments are those of `export_float32`.

    Raises:
        InputError: as "tflite_float32".
    """
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    refuse_quantization_aware(model, "its activations would be rounded twice")
    data = _converted(model, input_shape, settings)
    return save(data, path, target="tflite_dynamic", metadata=metadata)
