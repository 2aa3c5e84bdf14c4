"""Which layout a folder has: class folders, masks, boxes in one of three forms, or a table of labels."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from orbit_kd.datasets import coco, folders, label_tables, mask_folders, voc, yolo
from orbit_kd.datasets.part_folders import IMAGES, named_folder
from orbit_kd.datasets.splits import Source
from orbit_kd.datasets.truths import Numbers
from orbit_kd.errors import InputError

log = logging.getLogger("orbit_kd")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: for messages.
        told: what lies where.
        tasks: that it has labels for.
        fits: whether a folder has it.
        read: (folder, task, bands) -> what it holds.
    """

    name: str
    told: str
    tasks: tuple[str, ...]
    fits: Callable[[Path], bool]
    read: Callable[[Path, str, Sequence[str]], Source]


def _classes(folder: Path, task: str, bands: Sequence[str]) -> Source:
    found = folders.read(folder)
    if task != "binary":
        return found
    if len(found.class_names) != 2:
        raise InputError(
            f"There are {len(found.class_names)} class folders in {folder}, and the task is binary.",
            expected="two: the first in sorted order is 0, the second is 1",
            fix="choose classification (task=..., --task), or put the classes together",
        )
    values = found.labels[:, None].astype(np.float32)
    return dataclasses.replace(
        found, task="binary", truth=Numbers(values), identity="\n".join(["binary", found.identity])
    )


MASKS = Layout(
    "images and masks",
    mask_folders.LAYOUT,
    ("segmentation",),
    mask_folders.fits,
    lambda folder, task, bands: mask_folders.read(folder, bands),
)
CLASSES = Layout("class folders", folders.LAYOUT, ("classification", "binary"), folders.fits, _classes)
TABLE = Layout(
    "a table",
    label_tables.LAYOUT,
    label_tables.TABLE_TASKS,
    label_tables.fits,
    lambda folder, task, bands: label_tables.read(folder, task),
)
BOXES = tuple(
    Layout(name, module.LAYOUT, ("detection",), module.fits, lambda folder, task, bands, m=module: m.read(folder))  # type: ignore[misc]
    for name, module in (("YOLO boxes", yolo), ("COCO boxes", coco), ("Pascal VOC boxes", voc))
)
# In this order. Masks lie in folders that could be classes; what is in class folders is taken for classes before the
# others, as it was when there was nothing else.
LAYOUTS = (MASKS, CLASSES, *BOXES, TABLE)


def read(folder: Path, task: str = "auto", bands: Sequence[str] = ()) -> Source:
    """What a folder holds; nothing but labels is opened yet.

    Args:
        folder: of the data.
        task: "auto", or the one whose labels are wanted.
        bands: see `Preprocess.bands`.

    Raises:
        InputError: no layout fits, or none with labels for the task; or what the layout's reader refuses.
    """
    fitting = [layout for layout in LAYOUTS if layout.fits(folder)]
    if len(fitting) > 1 and MASKS not in fitting and named_folder(folder, IMAGES):
        fitting = [layout for layout in fitting if layout is not CLASSES]  # no class is called "images"
    wanted = [layout for layout in fitting if task == "auto" or task in layout.tasks]
    if not wanted:
        return _nothing(folder, task, fitting)
    layout = wanted[0]
    if layout is not CLASSES:
        log.info("data: %s: %s (%s)", folder, layout.name, "task=auto" if task == "auto" else f"task={task}")
    if others := [other.name for other in wanted[1:] if (layout, other) != (MASKS, CLASSES)]:
        log.warning("data: %s is taken as %s; there are %s too (task=..., --task)", folder, layout.name,
                    " and ".join(others))  # fmt: skip
    return layout.read(folder, task, bands)


def _nothing(folder: Path, task: str, fitting: list[Layout]) -> Source:
    asked = [layout for layout in LAYOUTS if task == "auto" or task in layout.tasks]
    told = "".join(f"\n    {layout.name}: {layout.told}" for layout in asked)
    if fitting:
        raise InputError(
            f"{folder} holds {' and '.join(layout.name for layout in fitting)}, and no labels for {task}.",
            expected=f"one of{told}",
            fix=f"leave out the task (--task), or choose {' or '.join(t for f in fitting for t in f.tasks)}",
        )
    if task not in ("auto", "classification"):
        raise InputError(f"{folder} holds no data for {task}.", expected=f"one of{told}", fix="check the path")
    try:
        return _classes(folder, task, ())
    except InputError as error:  # what is wrong with its class folders, if these were meant
        raise InputError(error.what, expected=f"{error.expected}; or one of{told}", fix=error.fix) from error
