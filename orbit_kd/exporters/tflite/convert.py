"""TensorFlow Lite files, always with a fixed batch of 1: float32, and full-integer int8 calibrated on data."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_images
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.requirements import check_finite, fixed_shape
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.mending import mend_scales
from orbit_kd.support.files import write_file
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse, read
from orbit_kd.tflite.writer import pack


@target("tflite_float32")
def export_float32(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> Artifact:
    """Float weights and activations; BatchNormalization folded. `calibration` is not used.

    Args:
        model: tf_keras model, one input (batch, ...) float32.
        path: the .tflite file to write.
        calibration: ignored, so that one call serves every target.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open.

    Raises:
        InputError: more than one input, open sizes, weights that are not finite, or an operator TFLite lacks.
    """
    refuse_quantization_aware(model, "its float file would round to 8 bits at every layer")
    data = convert(trace(model, fixed_shape(model, input_shape)))
    return save(data, "tflite_float32", path, metadata, {})


@target("tflite_int8", check=lambda model: check_integers(model, target="tflite_int8"))
def export_int8(
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
    """Full-integer int8: symmetric weights in -127..127, a scale per channel, zeros stay zero; int8 in and out.

    Scheme: Jacob et al. 2018 (https://arxiv.org/abs/1712.05877) as in TFLite's 8-bit specification.

    Args:
        model: tf_keras model, one input (batch, ...) float32.
        path: the .tflite file to write.
        calibration: inputs as the network sees them, see `export`. A seeded random sample of it sets the activations'
            ranges; at most the first 20,000 images are gone through. Not used, and not needed, for a model of
            `quantize_aware`, which has trained its ranges.
        metadata: stored in the file (see `metadata.py`).
        input_shape: without the batch, for models that leave sizes open.
        samples: number of calibration images to use.
        seed: which ones.
        float_io: float32 input and output instead of int8, with conversions inside the file.

    Raises:
        InputError: as `export_float32`; also no calibration data, an empty one, one of another shape, or NaN or Inf in
            it.
    """
    import tensorflow as tf

    shape = fixed_shape(model, input_shape)
    traced = trace_for_integers(model, shape, target="tflite_int8")
    # Trained with quantization, a model brings its ranges, and the converter would not look at calibration data.
    trained = is_quantization_aware(model)
    images = None if trained else whole_images(model, calibration, shape=shape, samples=samples, seed=seed)

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if images is not None:
            converter.representative_dataset = traced.calibration(images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if not float_io:
            converter.inference_output_type = tf.int8
            if traced.function.inputs[0].dtype.is_floating:  # indices stay what they are
                converter.inference_input_type = tf.int8

    if trained:
        _check_ranges(model)
    data = convert(traced, settings)
    if images is not None:
        details = {"calibration_images": len(images), "seed": seed}
    else:
        _check_all_int8(data, model)
        details = {"quantization_aware": True}
    return save(data, "tflite_int8", path, metadata, details)


def is_quantization_aware(model: Any) -> bool:
    """Whether tfmot's quantization wrappers are in the model, or those of `quantize_aware`."""
    return any(hasattr(module, "quantize_config") for module in getattr(model, "submodules", ()))


def refuse_quantization_aware(model: Any, why: str) -> None:
    """Raises InputError for a quantization-aware model; `why` says what would go wrong."""
    if is_quantization_aware(model):
        raise InputError(
            f"Model {model.name!r} is quantization-aware: {why}.",
            expected="a plain model",
            fix="export okd.strip_quantization(model), or the target 'tflite_int8'",
        )


def _check_ranges(model: Any) -> None:
    """Raises InputError where a quantization-aware model has not seen any data."""
    if blank := [m.name for m in model.submodules if hasattr(m, "quantize_config") and not getattr(m, "ready", True)]:
        raise InputError(
            f"The activations of layer {blank[0]!r} have no range yet.",
            expected="a quantization-aware model that was trained for a step at least",
            fix="fit it, or give quantize_aware(model, calibration=train)",
        )


def _check_all_int8(data: bytes, model: Any) -> None:
    """Raises InputError where an operator still computes in float, for want of a range."""
    if left := [op for op in read(data).ops if op.output_dtype.startswith("float")]:
        raise InputError(
            f"The int8 file of model {model.name!r} would compute {left[0].op} ({left[0].name[:80]!r}) in float.",
            expected="layers that TFLite runs as one operator each, so that every tensor has a trained range",
            fix="replace that layer, or quantize after training: export the plain model with calibration=train",
        )


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model's graph for a batch of 1, and what keeps its variables alive for the converter."""

    model: Any
    function: Any
    holder: Any

    def calibration(self, images: np.ndarray) -> Callable[[], Iterator[list[np.ndarray]]]:
        """What the converter takes for a representative data set."""
        batches = images[:, None].astype(self.function.inputs[0].dtype.as_numpy_dtype)
        return lambda: ([batch] for batch in batches)


def trace(model: Any, shape: tuple[int, ...], dtype: Any = "float32") -> Traced:
    """The graph of a model with finite weights, for one image of a shape.

    Raises:
        InputError: weights that are not finite, or a layer that cannot be traced.
    """
    import tensorflow as tf

    check_finite(model)
    function = tf.function(lambda image: model(image, training=False), autograph=False)
    # The holder keeps the variables alive for the converter, and nothing else: saving the whole Keras model would trace
    # every layer again.
    holder = tf.Module()
    holder.variables_ = list(model.variables)
    with _converting(model):
        signature = tf.TensorSpec((1, *shape), dtype, name="image")
        return Traced(model, function.get_concrete_function(signature), holder)


def trace_for_integers(model: Any, shape: tuple[int, ...], *, target: str) -> Traced:
    """`trace` of a model that is to be quantized; one that the converter would die of is refused.

    Raises:
        InputError: as `trace`; or a loop.
    """
    from orbit_kd.exporters.tflite.loops import has_loop, refuse_loops
    from orbit_kd.models.integer_inputs import ready_for_integers

    ready = ready_for_integers(model)
    traced = trace(ready, shape, ready.inputs[0].dtype)
    if has_loop(traced.function):
        refuse_loops(model, convert(traced), target=target)
    return traced


def whole_images(model: Any, calibration: Any, *, shape: tuple[int, ...], samples: int, seed: int) -> np.ndarray:
    """`calibration_images` that are whole numbers where the model's input is.

    Raises:
        InputError: as `calibration_images`; or numbers that an integer input would cut off.
    """
    from orbit_kd.models.integer_inputs import check_whole

    images = calibration_images(calibration, shape=shape, samples=samples, seed=seed)
    check_whole(images, model)
    return images


def check_integers(model: Any, *, target: str) -> None:
    """Raises InputError where a model cannot be quantized, whatever the calibration data."""
    trace_for_integers(model, fixed_shape(model), target=target)


def check_trained(model: Any, shape: tuple[int, ...]) -> None:
    """Raises InputError where the int8 file of a quantization-aware model would compute in float."""
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    traced = trace_for_integers(model, fixed_shape(model, shape), target="tflite_int8")
    _check_all_int8(convert(traced, settings), model)


def convert(traced: Traced, settings: Callable[[Any], None] = lambda converter: None) -> bytes:
    """Runs the converter, quietly, mends what it does wrong, and packs it closer; `settings` sets its options.

    Raises:
        InputError: as `export_float32`.
    """
    import tensorflow as tf

    with _converting(traced.model):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.function], traced.holder)
        settings(converter)
        data = converter.convert()
    file = parse(data)
    mend_scales(file)
    return pack(file)


@contextlib.contextmanager
def _converting(model: Any) -> Iterator[None]:
    """Quiet; what fails within it becomes an InputError."""
    with quiet(), native_stderr() as log:
        try:
            yield
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error))
            if "AssignVariable" in str(error):
                raise InputError(
                    f"Model {model.name!r} keeps state from one call to the next, in a variable that it assigns.",
                    expected="a network that sees each input by itself",
                    fix="build recurrent layers with stateful=False, and set the same weights; other state has to "
                    "come in as part of the input",
                ) from error
            raise InputError(
                f"TFLite cannot hold model {model.name!r}: {reason.strip()[:300]}",
                expected="layers made of TFLite's builtin operators, with shapes known for a batch of 1",
                fix="replace that layer; the converter's whole report is the `__cause__` of this error",
            ) from RuntimeError(f"{error}\n{log.text}")


def save(
    data: bytes, target: str, path: str | os.PathLike[str], metadata: dict[str, Any] | None, details: dict[str, Any]
) -> Artifact:
    """Writes a .tflite file, with its metadata."""
    if metadata is not None:
        data = add_metadata(data, metadata)
    return Artifact.of(data, target=target, files=(write_file(path, data),), details=details)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No Python warnings or log lines of the converter, for this block only."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
