"""Samples of images: for calibration, golden pairs and parity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd.errors import InputError

_SCAN_LIMIT = 20_000


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
