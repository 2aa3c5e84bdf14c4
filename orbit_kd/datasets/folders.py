"""Class folders of images on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from orbit_kd.datasets.decoding import ARRAYS, SUFFIXES
from orbit_kd.datasets.part_folders import files_in, folders_in
from orbit_kd.datasets.splits import Source
from orbit_kd.errors import InputError
from orbit_kd.support.progress import log

LAYOUT = "train/<class>/* and test/<class>/* (optional val/<class>/*), or <class>/*"
KINDS = f"images ({', '.join(SUFFIXES)})"


def fits(folder: Path) -> bool:
    """Whether there are two class folders with images, at least."""
    base = folder / "train" if folders_in(folder / "train") else folder
    if base == folder and any(_images(folder / name) for name in ("train", "test") if (folder / name).is_dir()):
        return False
    return sum(bool(_images(c)) for c in folders_in(base)) > 1


def read(folder: Path) -> Source:
    """The class folders below `folder`, in sorted order; nothing is opened yet.

    Arrays (.npy) count where a folder has no other images.

    Raises:
        InputError: no folder, no classes, fewer than two images of a class, or splits whose classes differ.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", expected=f"a folder {LAYOUT}", fix="check the path")
    parts = {"train": folder / "train"}
    if folders_in(parts["train"]):
        for name, split in (("validation", "val"), ("valid", "val"), ("val", "val"), ("test", "test")):
            if (folder / name).is_dir():
                parts[split] = folder / name
    else:
        parts = {"train": folder}
        if any(_images(folder / name) for name in ("train", "test") if (folder / name).is_dir()):
            raise InputError(
                f"The images in {folder}/train or {folder}/test are not sorted into classes.",
                expected=LAYOUT,
                fix="sort the images into one folder a class",
            )
    found = {split: {c.name: _images(c) for c in folders_in(path)} for split, path in parts.items()}

    classes = sorted(found["train"])
    if not any(files for files in found["train"].values()):
        raise InputError(
            f"There are no class folders with images in {parts['train']}.",
            expected=f"{LAYOUT}, of {KINDS}",
            fix="check the path, or sort the images into one folder a class",
        )
    for split, by_class in found.items():
        if sorted(by_class) != classes:
            extra, missing = sorted(set(by_class) - set(classes)), sorted(set(classes) - set(by_class))
            raise InputError(
                f"The class folders of {parts['train']} and {parts[split]} differ: "
                f"{_list('only in train: ', missing)}{_list(f'only in {split}: ', extra)}".rstrip("; "),
                expected="the same class folders in each split",
                fix="rename, add or remove class folders",
            )
        least = 2 if split == "train" else 1
        few = next((c for c in classes if len(by_class[c]) < least), None)
        if few is not None:
            raise InputError(
                f"The class folder {parts[split] / few} holds {len(by_class[few])} {KINDS}.",
                expected=f"at least {least} a class",
                fix="add images, or take the class folder out",
            )
    if len(classes) < 2:
        raise InputError(
            f"There is one class folder in {parts['train']}: {classes[0]}.",
            expected=f"at least two classes: {LAYOUT}",
            fix="point to the folder above the class folders",
        )

    inner = [root for path in parts.values() for c in folders_in(path) for root, _, _ in os.walk(c) if Path(root) != c]
    if below := [file for root in inner for file in _images(Path(root))]:
        log.warning(
            "%d images in folders below the class folders are left out, such as %s; Keras takes them",
            len(below),
            below[0],
        )
    files: list[Path] = []
    labels: list[int] = []
    splits = {}
    for split, by_class in found.items():
        start = len(files)
        for label, name in enumerate(classes):
            files += by_class[name]
            labels += [label] * len(by_class[name])
        splits[split] = np.arange(start, len(files))
    return Source(
        items=files,
        names=[str(f) for f in files],
        labels=np.array(labels, np.int32),
        class_names=tuple(classes),
        splits=splits,
        identity="\n".join(f"{f.relative_to(folder).as_posix()}\t{f.stat().st_size}" for f in files),
    )


def _images(folder: Path) -> list[Path]:
    # macOS also leaves "._name.png" files that are no images.
    return files_in(folder, SUFFIXES) or files_in(folder, ARRAYS)


def _list(label: str, names: list[str]) -> str:
    return f"{label}{', '.join(names)}; " if names else ""
