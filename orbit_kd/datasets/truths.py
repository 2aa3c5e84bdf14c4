"""What is to be found in images, whatever its kind: numbers, masks, boxes. Each goes with its images, by place."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from orbit_kd.datasets import geometry
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.images import Images
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger("orbit_kd")


class Truth(Protocol):
    """Labels of examples."""

    @property
    def dtype(self) -> Any:
        """NumPy type of `render`'s."""

    def take(self, index: np.ndarray) -> Truth:
        """Those of the examples at these places."""

    def fit(self, images: Images, names: Sequence[str], preprocess: Preprocess) -> Truth:
        """Ready to be rendered beside these images.

        Raises:
            InputError: they do not fit the images.
        """

    def counts(self, index: np.ndarray, classes: int) -> np.ndarray | None:
        """Examples (of detection: boxes) of each class at these places; None where there are no classes."""

    def shape(self, image: tuple[int, int, int]) -> tuple[int, ...]:
        """Of one label, beside an image of this shape."""

    def tensor(self) -> np.ndarray | None:
        """What `render` is to get as a tensor, so that it is no part of each graph."""

    def render(
        self,
        index: tf.Tensor,
        shape: tf.Tensor,
        preprocess: Preprocess,
        augment: Augment | None,
        seeds: tf.Tensor,
        kept: tf.Tensor | None,
    ) -> tf.Tensor:
        """Labels of the examples at these places, whose decoded images have this (height, width)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Labels that no crop changes: a class, or a row of numbers.

    Attributes:
        values: int32 (n,) or float32 (n, k).
    """

    values: np.ndarray

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def take(self, index: np.ndarray) -> Numbers:
        return Numbers(self.values[index])

    def fit(self, images: Images, names: Sequence[str], preprocess: Preprocess) -> Numbers:
        return self

    def counts(self, index: np.ndarray, classes: int) -> np.ndarray | None:
        values = self.values[index]
        if values.ndim == 1:
            return np.bincount(values, minlength=classes)
        return (values > 0).sum(0) if np.array_equal(self.values, self.values.astype(bool)) else None

    def shape(self, image: tuple[int, int, int]) -> tuple[int, ...]:
        return self.values.shape[1:]

    def tensor(self) -> np.ndarray | None:
        return self.values

    def render(self, index: tf.Tensor, shape: Any, preprocess: Any, augment: Any, seeds: Any, kept: Any) -> tf.Tensor:
        import tensorflow as tf

        return tf.gather(kept, index)


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """A class number a pixel.

    Attributes:
        items: decoded masks uint8 (height, width, 1), or what `decoder` reads them from.
        names: of the files.
        present: bool (n, 256): whether a mask holds a class.
        decoder: (item, name=...) -> uint8 (height, width, 1).
    """

    items: Sequence[Any]
    names: Sequence[str]
    present: np.ndarray
    decoder: Any
    images: Images | None = None
    dtype: Any = np.int32

    def take(self, index: np.ndarray) -> Masks:
        items, names = ([values[i] for i in index] for values in (self.items, self.names))
        return dataclasses.replace(self, items=items, names=names, present=self.present[index])

    def fit(self, images: Images, names: Sequence[str], preprocess: Preprocess) -> Masks:
        masks = Images(self.items, self.names, decoder=self.decoder)
        for image, mask, image_name, mask_name in zip(images.shapes, masks.shapes, names, self.names, strict=True):
            if image[:2] != mask[:2]:
                raise InputError(
                    f"The mask {mask_name} is {mask[0]}x{mask[1]}, its image {image_name} is {image[0]}x{image[1]}.",
                    expected="a mask of its image's size (height x width)",
                    fix="scale the mask with the nearest pixel (never blend class numbers), or find the right file",
                )
        return dataclasses.replace(self, images=masks)

    def counts(self, index: np.ndarray, classes: int) -> np.ndarray | None:
        return self.present[index][:, :classes].sum(0)

    def shape(self, image: tuple[int, int, int]) -> tuple[int, ...]:
        return image[:2]

    def tensor(self) -> np.ndarray | None:
        return None

    def render(
        self,
        index: tf.Tensor,
        shape: tf.Tensor,
        preprocess: Preprocess,
        augment: Augment | None,
        seeds: tf.Tensor,
        kept: tf.Tensor | None,
    ) -> tf.Tensor:
        if self.images is None:
            raise RuntimeError("fit comes before render")
        return geometry.masks_after(preprocess, self.images.gather(index), augment=augment, seed=seeds)


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of each image.

    Attributes:
        boxes: one float64 (m, 5) an image: class, top, left, bottom, right.
        fractions: whether these are fractions of the image; else pixels from its top left corner.
        sizes: (height, width) that the labels say of the image; None where they do not.
        most: rows of each label: the largest number of boxes of any image.
        padded: float32 (n, most, 5) in fractions, once the images are known.
    """

    boxes: Sequence[np.ndarray]
    fractions: bool
    sizes: Sequence[tuple[int, int] | None]
    most: int
    padded: np.ndarray | None = None
    dtype: Any = np.float32

    def take(self, index: np.ndarray) -> Boxes:
        boxes, sizes = ([values[i] for i in index] for values in (self.boxes, self.sizes))
        return dataclasses.replace(self, boxes=boxes, sizes=sizes)

    def fit(self, images: Images, names: Sequence[str], preprocess: Preprocess) -> Boxes:
        padded = np.zeros((len(self.boxes), self.most, 5), np.float32)
        padded[..., 0] = -1
        for i, (boxes, shape, name) in enumerate(zip(self.boxes, images.shapes, names, strict=True)):
            said = self.sizes[i]
            if said is not None and said != shape[:2]:
                raise InputError(
                    f"The labels say that {name} is {said[0]}x{said[1]}, and it is {shape[0]}x{shape[1]}.",
                    expected="boxes in pixels of the image as it is stored (height x width)",
                    fix="label the image anew, or store it upright: a turn that EXIF data say is not followed",
                )
            padded[i, : len(boxes)] = self._checked(boxes, shape, name)
        done = dataclasses.replace(self, padded=padded)
        if preprocess.crop or preprocess.aspect == "crop":
            done._tell_dropped(images, preprocess)
        return done

    def _checked(self, boxes: np.ndarray, shape: tuple[int, int, int], name: str) -> np.ndarray:
        """In fractions; what lies up to a pixel outside, by rounding, is cut."""
        size = np.array([shape[0], shape[1]] * 2, np.float64)
        edges = boxes[:, 1:] if self.fractions else boxes[:, 1:] / size
        beyond = (edges < -1 / size) | (edges > 1 + 1 / size)
        flat = (edges[:, 2:] <= edges[:, :2]).any(1) | ~np.isfinite(edges).all(1)
        for bad, what in ((flat, "has no area"), (beyond.any(1), "lies outside its image")):
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                top, left, bottom, right = (round(float(v), 2) for v in edges[first] * size)
                raise InputError(
                    f"Box {first + 1} of {name} {what}: top {top:g}, left {left:g}, bottom {bottom:g}, right {right:g} "
                    f"pixels in an image of {shape[0]}x{shape[1]}"
                    + (f"; so do {bad.sum() - 1} more of its boxes." if bad.sum() > 1 else "."),
                    expected="boxes of some area inside the image (height x width)",
                    fix="mend the label, or take it out; check that it is of this file, and its order of numbers",
                )
        return np.concatenate([boxes[:, :1], np.clip(edges, 0, 1)], axis=1)

    def _tell_dropped(self, images: Images, preprocess: Preprocess) -> None:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, shape in enumerate(images.shapes):
            by_shape.setdefault(shape[:2], []).append(i)
        padded = np.asarray(self.padded)
        had = int((padded[..., 0] >= 0).sum())
        kept = sum(
            int((np.asarray(geometry.boxes_after(preprocess, padded[i], np.array(s, np.int32)))[..., 0] >= 0).sum())
            for s, i in by_shape.items()
        )
        if kept < had:
            log.warning("data: the crop drops %d of %d boxes, which keep less than a quarter in it", had - kept, had)

    def counts(self, index: np.ndarray, classes: int) -> np.ndarray | None:
        return sum(
            (np.bincount(self.boxes[i][:, 0].astype(int), minlength=classes) for i in index), np.zeros(classes, int)
        )

    def shape(self, image: tuple[int, int, int]) -> tuple[int, ...]:
        return self.most, 5

    def tensor(self) -> np.ndarray | None:
        return self.padded

    def render(
        self,
        index: tf.Tensor,
        shape: tf.Tensor,
        preprocess: Preprocess,
        augment: Augment | None,
        seeds: tf.Tensor,
        kept: tf.Tensor | None,
    ) -> tf.Tensor:
        import tensorflow as tf

        boxes = tf.gather(kept, index)
        return geometry.boxes_after(preprocess, boxes, shape, augment=augment, seed=seeds)


def tell_missing(
    truth: Truth, splits: Mapping[str, np.ndarray], class_names: Sequence[str], *, task: str, named: Any
) -> None:
    """Warns of classes that a split lacks: its figures say nothing of them.

    Args:
        truth: of all examples.
        splits: places of the examples of "train", "val" and "test".
        class_names: of all classes.
        task: a key of `kinds.TASKS`.
        named: `contents.name_classes`.
    """
    if task == "regression":
        return
    what = {"segmentation": "mask with", "detection": "box of"}.get(task, "example of")
    for name, index in splits.items():
        counts = truth.counts(index, len(class_names))
        if counts is not None and (missing := [c for c in range(len(counts)) if not counts[c]]):
            told = named(missing, class_names)
            log.warning("data: %s has no %s %s: its figures say nothing about them", name, what, told)
