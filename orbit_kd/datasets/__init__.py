"""Data sets: folders of images with classes, masks, boxes or a table of labels, TFDS sets, and the project's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orbit_kd.datasets import data as _data
from orbit_kd.datasets import layouts, splits
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.band_choice import channel_numbers, merged
from orbit_kd.datasets.data import Data
from orbit_kd.datasets.images import MEMORY_LIMIT, Images
from orbit_kd.datasets.kinds import IGNORE, TASKS, check_task
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.renderings import Renderings
from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.support.digests import digest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["DATASETS", "IGNORE", "TASKS", "Augment", "Data", "load", "renderings"]

DATASETS: Registry[Callable[[str], tfds.core.DatasetBuilder]] = Registry("data set")
"""Name -> a function from the folder for prepared data to a TFDS builder."""


@DATASETS.register("sar_sim")
def _sar_sim(data_dir: str) -> tfds.core.DatasetBuilder:
    from orbit_kd.datasets.sar_sim import SarSim

    return SarSim(data_dir=data_dir)


@DATASETS.register("mstar")
def _mstar(data_dir: str) -> tfds.core.DatasetBuilder:
    from orbit_kd.datasets.mstar import Mstar

    return Mstar(data_dir=data_dir)


@DATASETS.register("fusar_ship")
def _fusar_ship(data_dir: str) -> tfds.core.DatasetBuilder:
    from orbit_kd.datasets.fusar_ship import FusarShip

    return FusarShip(data_dir=data_dir)


def load(
    name_or_dir: str | os.PathLike[str],
    *,
    preprocess: Preprocess | None = None,
    validation: float = 0.1,
    seed: int = 0,
    batch_size: int = 64,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    task: str = "auto",
    bands: str | Sequence[str | int] = (),
) -> Data:
    """Loads a data set of images and what is in them: classes, masks, boxes or numbers.

    A folder of that name comes first, then the project's own sets (`DATASETS`), then TFDS. What lies where in a folder
    says what it holds; `docs/data.md` shows each layout. "Splits" are folders train, val (optional) and test:

    - classes: `train/<class>/*` and `test/<class>/*`, or `<class>/*`; y int32 (n,).
    - masks: `train/image/*` and `train/mask/*` of the same names; y int32 (n, height, width), 255 (`IGNORE`) for pixels
      that count for nothing. Other folders beside mask/ hold further bands of the same image. `classes.txt` may name
      the classes, a name a line.
    - boxes: COCO (`train.json` beside `train/`), Pascal VOC (`train/*.xml`), YOLO (`train/labels/*.txt`); y float32
      (n, most, 5): class, top, left, bottom, right as fractions of the network's input; class -1 fills up.
    - numbers: `labels.csv`; y float32 (n, columns).

    Where there is no test split, 20% (of classes: of each class) become it, the same ones whatever `seed` is; where
    there is no validation split, the fraction `validation` of the training images becomes it. Images are decoded once
    and kept in memory up to 1.5 GB, above that they are decoded at each use.

    Args:
        name_or_dir: a folder, or a name such as "sar_sim", "uc_merced" or "eurosat/rgb".
        preprocess: what happens to each decoded image; None leaves the pixel values as they are, as float32.
        validation: share of the training images for validation.
        seed: which of them.
        batch_size: of the datasets in the result.
        data_dir: where TFDS finds or prepares its data (for manual downloads, the folder that holds
            `downloads/manual`). None: TFDS' own default, or `~/.cache/orbit_kd` for the project's own sets.
        limit: at most so many examples of each split, of all classes alike, for quick trials.
        task: "auto" takes what the folder or data set has and says so in the log; or one of `TASKS`: classification,
            binary, multi_label, regression, segmentation, detection.
        bands: of images with several files or channels: names of folders, or numbers of channels counted from 0, in the
            order the network takes them; empty takes all. It is kept in the data's Preprocess.

    Returns:
        The data, see `Data`.

    Raises:
        InputError: no such folder or name, a folder of no known layout, a damaged image, labels that do not fit their
            images, images that `preprocess` does not bring to one size, a download that failed or has to be made by
            hand.
    """
    check_task(task, also=("auto",))
    preprocess = merged(preprocess or Preprocess(), bands)
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}.", expected="an integer >= 1", fix="use batch_size=64")
    source = _source(name_or_dir, data_dir, task, preprocess.bands)
    numbers = channel_numbers(preprocess.bands, source.bands)
    if source.bands and not numbers:
        preprocess = dataclasses.replace(preprocess, bands=source.bands)
    parts = splits.split(source, validation=validation, seed=seed, limit=limit)

    # Only what is used is decoded.
    used = np.concatenate(list(parts.values()))
    items, names = ([values[i] for i in used] for values in (source.items, source.names))
    images = Images(items, names, preprocess=preprocess, memory_limit=MEMORY_LIMIT, bands=numbers)
    ends = np.cumsum([len(index) for index in parts.values()])
    parts = dict(zip(parts, np.split(np.arange(len(used)), ends[:-1]), strict=True))

    how = {"preprocess": preprocess.to_dict(), "validation": validation, "seed": seed, "limit": limit}
    return _data.from_examples(
        images,
        source.labels[used] if source.truth is None else source.truth.take(used),
        splits=parts,
        preprocess=preprocess,
        batch_size=batch_size,
        names=names,
        class_names=source.class_names,
        fingerprint=digest(source.identity, how),
        task=source.task,
    )


def renderings(
    name_or_dir: str | os.PathLike[str],
    *,
    split: str = "",
    validation: float = 0.1,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Renderings:
    """One split of what `load` loads, to be read in more than one way.

    Args:
        name_or_dir: as for `load`, and so are the others.
        split: "train", "val", "test", "all", or "" for the test split where the data has one of its own and else for
            all images.
        validation: share of the training images for validation.
        seed: which of them.
        data_dir: where TFDS finds or prepares its data.
        limit: at most so many examples.

    Raises:
        InputError: see `load`; or no such split, or other labels than one class an image.
    """
    source = _source(name_or_dir, data_dir, "auto", ())
    if source.task != "classification":
        raise InputError(
            f"{name_or_dir} is data of {source.task}, and an accuracy is looked for.",
            expected="one class an image",
            fix="give class folders or an image classification set of TFDS",
        )
    split = split or ("test" if "test" in source.splits else "all")
    if split == "all":
        everything = np.arange(len(source.labels))
        return Renderings(source, everything[splits.subset(source.labels, limit, seed=splits.TEST_SEED)], split)
    parts = splits.split(source, validation=validation, seed=seed, limit=limit)
    if split not in parts:
        raise InputError(f"split={split!r}.", expected=f"{', '.join(parts)} or all", fix="name one of these (--split)")
    return Renderings(source, parts[split], split)


def _source(
    name_or_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None, task: str, bands: Sequence[str]
) -> splits.Source:
    folder = Path(name_or_dir).expanduser()
    return layouts.read(folder, task, bands) if folder.is_dir() else _named(os.fspath(name_or_dir), data_dir, task)


def _named(name: str, data_dir: str | os.PathLike[str] | None, task: str) -> splits.Source:
    from orbit_kd.datasets import catalog

    if name in DATASETS:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orbit_kd"
        return catalog.read(DATASETS.get(name)(os.fspath(data_dir or cache)), task)
    return catalog.read(catalog.find(name, data_dir, own=DATASETS.names()), task)
