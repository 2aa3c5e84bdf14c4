"""Folders of images and masks: `train/image/*` and `train/mask/*`, and images whose bands lie in several folders."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets import images
from orbit_kd.datasets.kinds import IGNORE
from orbit_kd.datasets.mask_files import decode_mask
from orbit_kd.datasets.part_folders import (
    IMAGES,
    by_stem,
    check_upright,
    class_list,
    files_in,
    folders_in,
    named_folder,
    sizes_of,
    some,
    split_folders,
)
from orbit_kd.datasets.splits import Source
from orbit_kd.datasets.truths import Masks
from orbit_kd.errors import InputError
from orbit_kd.support.progress import track

log = logging.getLogger("orbit_kd")
LAYOUT = "train/image/* and train/mask/* of the same names (optional val/, test/), or image/* and mask/*"
MASKS = ("mask", "masks", "label", "labels")


def fits(folder: Path) -> bool:
    """Whether the folder holds images and masks, and is no folder of classes of which one is called "mask"."""
    try:
        base = split_folders(folder)["train"]
    except InputError:
        return False
    masks = named_folder(base, MASKS)
    if masks is None or not (stems := {f.stem for f in files_in(masks)}):
        return False
    others = [d for d in folders_in(base) if d != masks and files_in(d)]
    if any(d.name.lower() in IMAGES for d in others):
        return True
    shared = max((len(stems & {f.stem for f in files_in(d)}) for d in others), default=0)
    if shared * 2 < len(stems):
        return False
    try:
        decode_mask(files_in(masks)[0])
    except InputError:
        return False
    return True


def read(folder: Path, bands: Sequence[str] = ()) -> Source:
    """The images and masks below `folder`. Every mask is read once.

    Args:
        folder: see `LAYOUT`.
        bands: folders beside the masks, in the order in which their channels are to stand; or numbers of channels;
            none takes all folders in the order of their names.

    Raises:
        InputError: an image without its mask or a mask without its image, bands that there are not, or masks that
            are none.
    """
    parts = split_folders(folder)
    items: list[Any] = []
    files: list[Path] = []
    masks: list[Path] = []
    splits: dict[str, np.ndarray] = {}
    names: tuple[str, ...] = ()
    for split, part in parts.items():
        where = named_folder(part, MASKS)
        if where is None:
            raise InputError(f"There are no masks in {part}.", expected=LAYOUT, fix="add the folder mask")
        present = [d for d in folders_in(part) if d != where and files_in(d)]
        if split == "train":
            names = _order(bands, [d.name for d in present], part)
        found = by_stem(files_in(where))
        columns = [_band(part, name, present, found, where) for name in names]
        start = len(masks)
        for stem, mask in found.items():
            row = [column[stem] for column in columns]
            items.append(row[0] if len(row) == 1 else tuple(row))
            files += row
            masks.append(mask)
        splits[split] = np.arange(start, len(masks))
    check_upright(files)
    listed = class_list(folder)
    kept, present_in, told = _read_all(masks, listed)
    class_names = listed or tuple(map(str, range(1 + max(np.flatnonzero(present_in[:, :IGNORE].any(0))))))
    if len(class_names) < 2:
        raise InputError(
            f"All masks of {folder} hold one class only.", expected="two classes or more", fix="check the masks"
        )
    return Source(
        items=items,
        names=[" and ".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in items],
        labels=np.zeros(len(items), np.int32),
        class_names=class_names,
        splits=splits,
        identity="\n".join(["segmentation", *names, *class_names, told, *sizes_of([*files, *masks], folder)]),
        task="segmentation",
        truth=Masks(kept, [str(m) for m in masks], present_in, decode_mask),
        bands=names if len(names) > 1 or tuple(bands) == names else (),
    )


def _order(bands: Sequence[str], present: list[str], part: Path) -> tuple[str, ...]:
    """The folders of the bands, in the order of their channels."""
    if not present:
        raise InputError(
            f"There are no images beside the masks in {part}.", expected=LAYOUT, fix="add the folder image"
        )
    if bands and not set(bands) & set(present) and all(band.isdigit() for band in bands):
        bands = ()
    if unknown := [band for band in bands if band not in present]:
        raise InputError(
            f"There are no bands {some(unknown)} in {part}.",
            expected=f"folders of it: {', '.join(present)}; or numbers of channels, counted from 0",
            fix="name those (bands=..., --bands)",
        )
    if not bands and len(present) > 1:
        log.info("data: the bands of an image are %s, in this order (bands=..., --bands)", ", ".join(present))
    return tuple(bands or present)


def _band(part: Path, name: str, present: list[Path], masks: dict[str, Path], where: Path) -> dict[str, Path]:
    """The files of a band by their stems, which are those of the masks."""
    folder = next((d for d in present if d.name == name), None)
    if folder is None:
        raise InputError(
            f"There are no images in {part / name}, and the training data has this band.",
            expected="the same bands in every split",
            fix="add them, or leave this band out (bands=..., --bands)",
        )
    files = by_stem(files_in(folder))
    for have, want, what in ((masks, files, "mask without its image"), (files, masks, "image without its mask")):
        if alone := [str(have[stem]) for stem in have if stem not in want]:
            other = where if want is masks else folder
            raise InputError(
                f"{len(alone)} {what} of the same name in {other}: {some(alone)}.",
                expected=f"for each image one mask of its name ({folder.name}/7.tif, {where.name}/7.png)",
                fix="add what is missing, take the others out, or rename them",
            )
    return files


def _read_all(masks: Sequence[Path], listed: Sequence[str]) -> tuple[list[Any], np.ndarray, str]:
    """The masks (decoded where they fit in memory), which classes each holds, and a hash of them all."""
    kept: list[Any] = []
    present = np.zeros((len(masks), IGNORE + 1), bool)
    size, whole = 0, hashlib.blake2b(digest_size=16)
    for i, file in enumerate(track(masks, "reading masks")):
        mask = decode_mask(file)
        present[i] = np.bincount(mask.reshape(-1), minlength=IGNORE + 1) > 0
        beyond = [c for c in np.flatnonzero(present[i]) if c != IGNORE and listed and c >= len(listed)]
        if beyond:
            raise InputError(
                f"The mask {file} has class {some([str(c) for c in beyond])}, and classes.txt names {len(listed)}.",
                expected=f"class numbers from 0 to {len(listed) - 1}, or {IGNORE} for pixels that count for nothing",
                fix="number the classes anew, or name all of them in classes.txt",
            )
        size += mask.nbytes
        kept.append(mask if size <= images.MEMORY_LIMIT else file)
        whole.update(repr(mask.shape).encode() + mask.tobytes())
    classes = np.flatnonzero(present.any(0)).tolist()
    if classes in ([0, IGNORE], [IGNORE]):
        raise InputError(
            f"The masks hold 0 and {IGNORE} only, and {IGNORE} stands for pixels that count for nothing.",
            expected="class numbers: 0 and 1 of two classes",
            fix="save them so: Image.fromarray((mask > 127).astype(np.uint8))",
        )
    return kept, present, whole.hexdigest()
