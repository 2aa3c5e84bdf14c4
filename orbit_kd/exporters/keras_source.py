"""What targets ask of a Keras model, and of the images it is calibrated with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError

_SCAN_LIMIT = 20_000


def fixed_shape(model: Any, given: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of a tf_keras model's one input, without the batch.

    Args:
        model: to be exported.
        given: the sizes to fix, where the model leaves them open.

    Raises:
        InputError: no tf_keras model; several inputs, an open size, or another shape than the model's.
    """
    if not hasattr(model, "inputs") or not hasattr(model, "get_weights"):
        raise InputError(
            f"A {type(model).__name__} cannot be exported here.",
            expected="a tf_keras model; this target is not made of a .tflite file",
            fix="load it with okd.load_model(path)",
        )
    if not model.inputs or len(model.inputs) != 1:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs or [])} inputs.",
            expected="exactly one: an image batch",
            fix="a subclassed model: okd.as_graph(model); several inputs: wrap them in one that is cut apart inside",
        )
    own = tuple(model.inputs[0].shape)[1:]
    shape = own if given is None else tuple(given)
    if None in shape or len(shape) != len(own) or any(a not in (None, b) for a, b in zip(own, shape, strict=True)):
        asked = "" if given is None else f"; the shape asked for is {given}"
        raise InputError(
            f"The input of model {model.name!r} is {own} without the batch{asked}.",
            expected="one fixed size for every axis, as devices plan memory before they run",
            fix="build the network for the size it will see, with the same weights; or, for a TFLite target, pass "
            "input_shape=(height, width, channels) that fits the model",
        )
    return shape


def input_shape(model: Any) -> tuple[int, ...]:
    """`fixed_shape` of a model with one output and finite weights.

    Raises:
        InputError: as `fixed_shape`; several outputs, or weights that are not finite.
    """
    shape = fixed_shape(model)
    if len(model.outputs) != 1:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs.",
            expected="one of each: an image batch in, logits out",
            fix="wrap it in a model with a single output",
        )
    check_finite(model)
    return shape


def check_finite(model: Any) -> None:
    """Raises InputError where a weight of a tf_keras model is NaN or infinite."""
    bad = next((v.name for v in model.weights if not np.isfinite(v.numpy()).all()), None)
    if bad is not None:
        raise InputError(
            f"Weight {bad!r} of model {model.name!r} holds NaN or Inf.",
            expected="finite weights",
            fix="training diverged: go back to an earlier checkpoint, or lower the learning rate",
        )


def calibration_sample(
    calibration: Any, *, samples: int = 256, seed: int = 0, inputs: Mapping[str, Any] | None = None
) -> Any:
    """A uniform random sample of the images, in one pass (reservoir sampling, Vitter 1985).

    Args:
        calibration: whatever `datasets.batches` takes: a tf.data.Dataset of batches x or (x, y), arrays x or (x, y),
            a Sequence, TFLite's `representative_dataset`. At most 20,000 images are gone through.
        samples: how many to take; all where there are fewer.
        seed: which ones; the order of `calibration` matters too.
        inputs: name -> shape of each of several inputs, without the batch.

    Returns:
        float32 array (at most `samples`, ...); of several inputs a list of them, in the order of `inputs`.

    Raises:
        InputError: none given, none in it, or one that is not finite.
    """
    from orbit_kd.datasets.batches import as_batches, in_order  # loads TensorFlow

    if calibration is None:
        raise InputError(
            "No calibration data was given.",
            expected="some hundred training images: a tf.data.Dataset of batches x or (x, y), arrays, a Sequence, "
            "or a function like TFLite's representative_dataset",
            fix="pass calibration=train",
        )
    if samples < 1:
        raise InputError(f"samples={samples}.", expected="at least 1", fix="200 to 300 are usual")
    rng = np.random.default_rng(seed)
    chosen: list[tuple[np.ndarray, ...]] = []
    seen = 0
    for x, *_ in as_batches(calibration, what="calibration data", endless=True, inputs=inputs):
        batch = [np.asarray(part, np.float32) for part in in_order(x, inputs)]
        if not all(np.isfinite(part).all() for part in batch):
            raise InputError(
                f"The calibration data holds NaN or Inf, within images {seen} to {seen + len(batch[0]) - 1}.",
                expected="finite numbers, as in training",
                fix="remove the damaged images, or mend the preprocessing",
            )
        for image in zip(*batch, strict=True):
            place = seen if seen < samples else int(rng.integers(seen + 1))
            if place < samples:
                chosen[place : place + 1] = [image]
            seen += 1
        if seen >= _SCAN_LIMIT:
            break
    if not chosen:
        raise InputError("The calibration data is empty.", expected="at least one image", fix="pass calibration=train")
    parts = [np.stack(part) for part in zip(*chosen, strict=True)]
    return parts[0] if len(parts) == 1 else parts


def calibration_images(calibration: Any, *, shape: tuple[int, ...], samples: int, seed: int) -> np.ndarray:
    """`calibration_sample` of images that have the shape of the model's input.

    Raises:
        InputError: as `calibration_sample`; or images of another shape.
    """
    return calibration_sample(calibration, samples=samples, seed=seed, inputs={"image": shape})
