"""Labels of TFDS sets: which features hold them, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from orbit_kd.datasets.kinds import IGNORE
from orbit_kd.datasets.mask_files import decode_mask
from orbit_kd.datasets.truths import Boxes, Masks, Numbers, Truth
from orbit_kd.errors import InputError

MASK_KEYS = ("segmentation_mask", "mask", "segmentation_label")


def kinds(features: Mapping[str, Any]) -> dict[str, str]:
    """Task -> the feature with its labels, for all tasks but classification."""
    found: dict[str, str] = {}
    for key in MASK_KEYS:
        mask = features[key] if key in features else None  # noqa: SIM401 - a FeaturesDict has no get
        if isinstance(mask, (tfds.features.Image, tfds.features.Tensor)) and len(mask.shape or ()) in (2, 3):
            found.setdefault("segmentation", key)
    if "objects" in features:
        inner = getattr(features["objects"], "feature", None)
        if inner is not None and hasattr(inner, "keys") and {"bbox", "label"} <= set(inner.keys()):
            found["detection"] = "objects"
    if "labels" in features and isinstance(getattr(features["labels"], "feature", None), tfds.features.ClassLabel):
        found["multi_label"] = "labels"
    return found


def of(task: str, feature: Any, labels: Sequence[Any], names: Sequence[str]) -> tuple[tuple[str, ...], Truth | None]:
    """The class names and the labels of all examples, as `Source` has them.

    Args:
        task: "classification", or a key of `kinds`.
        feature: of the labels.
        labels: as TFDS yields them.
        names: of the examples, for messages.

    Raises:
        InputError: masks that hold no class numbers.
    """
    if task == "classification":
        return _names(feature), None
    if task == "multi_label":
        class_names = _names(feature.feature)
        values = np.zeros((len(labels), len(class_names)), np.float32)
        for i, found in enumerate(labels):
            values[i, np.asarray(found, int)] = 1
        return class_names, Numbers(values)
    if task == "detection":
        boxes = [np.column_stack([e["label"], np.asarray(e["bbox"]).reshape(-1, 4)]).astype(float) for e in labels]
        most = max(1, *(len(b) for b in boxes))
        return _names(feature.feature["label"]), Boxes(boxes, True, [None] * len(boxes), most)
    masks = [decode_mask(np.asarray(mask), name=name) for mask, name in zip(labels, names, strict=True)]
    present = np.array([np.bincount(m.reshape(-1), minlength=IGNORE + 1) > 0 for m in masks])
    held = np.flatnonzero(present[:, :IGNORE].any(0))
    if held.tolist() in ([], [0]):
        raise InputError(
            f"The masks of {names[0]} and others hold no class but 0"
            + (f", and {IGNORE}, which stands for pixels that count for nothing." if present[:, IGNORE].any() else "."),
            expected="class numbers from 0",
            fix="export images and masks to train/image/* and train/mask/*, with 0 and 1 in the masks",
        )
    return tuple(map(str, range(1 + held[-1]))), Masks(masks, list(names), present, decode_mask)


def _names(label: Any) -> tuple[str, ...]:
    return tuple(label.names or map(str, range(label.num_classes)))
