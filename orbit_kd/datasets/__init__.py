"""Data sets: any folder of class folders, any TFDS image classification set, and the project's own builders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orbit_kd.datasets import data as _data
from orbit_kd.datasets import folders, splits
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.data import Data
from orbit_kd.datasets.images import MEMORY_LIMIT, Images
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.renderings import Renderings
from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.support.digests import digest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

__all__ = ["DATASETS", "Augment", "Data", "load", "renderings"]

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
) -> Data:
    """Loads a data set of images and their classes.

    A folder of that name comes first, then the project's own sets (`DATASETS`), then TFDS. In a folder the images lie
    in `train/<class>/*` and `test/<class>/*` (optional `val/<class>/*`), or in `<class>/*`. Where there is no test
    split, 20% of each class become it, the same ones whatever `seed` is; where there is no validation split, the
    fraction `validation` of the training images becomes it. Images are decoded once and kept in memory up to 1.5 GB,
    above that they are decoded at each use.

    Args:
        name_or_dir: a folder, or a name such as "sar_sim", "uc_merced" or "eurosat/rgb".
        preprocess: what happens to each decoded image; None leaves the pixel values as they are, as float32.
        validation: share of the training images for validation.
        seed: which of them.
        batch_size: of the datasets in the result.
        data_dir: where TFDS finds or prepares its data (for manual downloads, the folder that holds
            `downloads/manual`). None: TFDS' own default, or `~/.cache/orbit_kd` for the project's own sets.
        limit: at most so many examples of each split, of all classes alike, for quick trials.

    Returns:
        The data, see `Data`.

    Raises:
        InputError: no such folder or name, a folder without classes, a damaged image, images that `preprocess` does
            not bring to one size, a download that failed or has to be made by hand.
    """
    preprocess = preprocess or Preprocess()
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}.", expected="an integer >= 1", fix="use batch_size=64")
    source = _source(name_or_dir, data_dir)
    parts = splits.split(source, validation=validation, seed=seed, limit=limit)

    # Only what is used is decoded.
    used = np.concatenate(list(parts.values()))
    items, names = ([values[i] for i in used] for values in (source.items, source.names))
    images = Images(items, names, preprocess=preprocess, memory_limit=MEMORY_LIMIT)
    ends = np.cumsum([len(index) for index in parts.values()])
    parts = dict(zip(parts, np.split(np.arange(len(used)), ends[:-1]), strict=True))

    how = {"preprocess": preprocess.to_dict(), "validation": validation, "seed": seed, "limit": limit}
    return _data.from_examples(
        images,
        source.labels[used],
        splits=parts,
        preprocess=preprocess,
        batch_size=batch_size,
        class_names=source.class_names,
        fingerprint=digest(source.identity, how),
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
        InputError: see `load`; or no such split.
    """
    source = _source(name_or_dir, data_dir)
    split = split or ("test" if "test" in source.splits else "all")
    if split == "all":
        everything = np.arange(len(source.labels))
        return Renderings(source, everything[splits.subset(source.labels, limit, seed=splits.TEST_SEED)], split)
    parts = splits.split(source, validation=validation, seed=seed, limit=limit)
    if split not in parts:
        raise InputError(f"split={split!r}.", expected=f"{', '.join(parts)} or all", fix="name one of these (--split)")
    return Renderings(source, parts[split], split)


def _source(name_or_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None) -> splits.Source:
    folder = Path(name_or_dir).expanduser()
    return folders.read(folder) if folder.is_dir() else _named(os.fspath(name_or_dir), data_dir)


def _named(name: str, data_dir: str | os.PathLike[str] | None) -> splits.Source:
    from orbit_kd.datasets import catalog

    if name in DATASETS:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orbit_kd"
        return catalog.read(DATASETS.get(name)(os.fspath(data_dir or cache)))
    return catalog.read(catalog.find(name, data_dir, own=DATASETS.names()))
