"""What every form of box labels comes to: files, boxes and class names, put together as a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orbit_kd.datasets.part_folders import check_upright, sizes_of, some
from orbit_kd.datasets.splits import Source
from orbit_kd.datasets.truths import Boxes
from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest

Box = tuple[str, float, float, float, float]
"""Class name, top, left, bottom, right."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One image and its boxes.

    Attributes:
        file: the image.
        boxes: of it.
        size: (height, width) that the label says; None where it does not.
    """

    file: Path
    boxes: Sequence[Box]
    size: tuple[int, int] | None = None


def source(
    folder: Path, by_split: dict[str, list[Labelled]], class_names: Sequence[str], *, fractions: bool, listed: str
) -> Source:
    """The data set of these images.

    Args:
        folder: holds them.
        by_split: "train", and where there are any "val" and "test".
        class_names: in the order of their numbers.
        fractions: whether boxes are given as fractions of the image, else in pixels.
        listed: where the names come from, for messages.

    Raises:
        InputError: a box of a class that has no name, no boxes at all, an image that comes twice,
            or one that is to be turned.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    images = [image for part in by_split.values() for image in part]
    for image in images:
        if unknown := sorted({box[0] for box in image.boxes} - set(numbers)):
            raise InputError(
                f"{image.file} has boxes of class {some(unknown)}, which {listed} does not name.",
                expected=some(list(class_names), 10),
                fix="mend the label, or the list of classes",
            )
    boxes = [
        np.array([(numbers[c], *edges) for c, *edges in image.boxes], np.float64).reshape(-1, 5) for image in images
    ]
    most = max((len(b) for b in boxes), default=0)
    if not most:
        raise InputError(f"There are no boxes in {folder}.", expected="labels with boxes", fix="check the labels")
    files = [image.file for image in images]
    if len(set(files)) != len(files):
        twice = next(f for i, f in enumerate(files) if f in files[:i])
        raise InputError(f"{twice} has labels twice.", expected="one label an image", fix="take one out")
    check_upright(files)
    ends = np.cumsum([len(part) for part in by_split.values()])
    told = digest(list(class_names), fractions, np.concatenate(boxes), [len(b) for b in boxes])
    return Source(
        items=files,
        names=[str(f) for f in files],
        labels=np.zeros(len(files), np.int32),
        class_names=tuple(class_names),
        splits=dict(zip(by_split, np.split(np.arange(len(files)), ends[:-1]), strict=True)),
        identity="\n".join(["detection", told, *sizes_of(files, folder)]),
        task="detection",
        truth=Boxes(boxes, fractions, [image.size for image in images], most),
    )
