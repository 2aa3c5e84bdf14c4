"""Boxes in COCO's JSON: `train.json` beside `train/`, `annotations/instances_train2017.json`, and the like."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from orbit_kd.datasets.box_labels import Box, Labelled, source
from orbit_kd.datasets.part_folders import SPLITS, files_in, folders_in, some, split_folders
from orbit_kd.datasets.splits import Source
from orbit_kd.errors import InputError

log = logging.getLogger("orbit_kd")
LAYOUT = "COCO: train.json (val.json, test.json) beside train/, or annotations/*.json beside images/ or train/"


def fits(folder: Path) -> bool:
    """Whether there are such files."""
    return "train" in _files(folder)


def read(folder: Path) -> Source:
    """The images and boxes. Crowd boxes are left out.

    Raises:
        InputError: a file that is no COCO JSON, an image that is not there, or categories that differ.
    """
    by_split: dict[str, list[Labelled]] = {}
    names: list[str] = []
    crowds = 0
    for split, file in _files(folder).items():
        told = _parsed(file)
        categories = {c["id"]: str(c["name"]) for c in sorted(told.get("categories", ()), key=lambda c: c["id"])}
        if split == "train":
            names = list(categories.values())
            if len(set(names)) != len(names):
                raise InputError(f"{file} has a category name twice.", expected="each once", fix="rename one")
        elif more := sorted(set(categories.values()) - set(names)):
            raise InputError(
                f"{file} has categories that the training data lacks: {some(more)}.",
                expected=f"those of train: {some(names, 10)}",
                fix="name the same categories in each file",
            )
        by_split[split], left_out = _labelled(folder, split, file, told, categories)
        crowds += left_out
    if crowds:
        log.warning("data: %d crowd boxes of %s are left out", crowds, folder)
    return source(folder, by_split, names, fractions=False, listed="the list of categories")


def _files(folder: Path) -> dict[str, Path]:
    """Split -> its JSON file."""
    found = {}
    places = [folder, *(d for d in folders_in(folder) if d.name.lower() in ("annotations", "annotation", "labels"))]
    files = [f for place in places for f in files_in(place, (".json",))]
    files = [f for f in files if "instances" in f.stem] or files
    for split, names in SPLITS.items():
        exact = [f for f in files if f.stem.lower() in names]
        near = [f for f in files if any(name in f.stem.lower() for name in names)]
        if match := exact or near:
            found[split] = match[0]
    if len(files) == 1 and files[0].parent != folder:
        found = {"train": files[0]}
    for split, part in split_folders(folder).items():  # Roboflow
        if (part / "_annotations.coco.json").is_file():
            found[split] = part / "_annotations.coco.json"
    return {split: found[split] for split in SPLITS if split in found}


def _parsed(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"Cannot read {file}: {error}.", expected="JSON", fix="replace the file") from error
    if not isinstance(told, dict) or not {"images", "annotations", "categories"} <= set(told):
        raise InputError(
            f"{file} is no COCO file with boxes.",
            expected="the entries images, annotations and categories",
            fix="take the file out, or export the labels as COCO instances",
        )
    return told


def _labelled(
    folder: Path, split: str, file: Path, told: dict[str, Any], categories: dict[Any, str]
) -> tuple[list[Labelled], int]:
    """The images of one file, and how many crowd boxes are left out."""
    parts = [d for d in folders_in(folder) if any(n in d.name.lower() for n in SPLITS[split])]
    images = [d for d in folders_in(folder) if d.name.lower() in ("images", "image")]
    inner = [d / "images" for d in parts] + [
        e for d in images for e in folders_in(d) if any(n in e.name.lower() for n in SPLITS[split])
    ]
    places = [*parts, *inner, *images, folder, file.parent]
    boxes: dict[Any, list[Box]] = {image["id"]: [] for image in told["images"]}
    crowds = 0
    for note in told["annotations"]:
        if note.get("iscrowd"):
            crowds += 1
            continue
        try:
            left, top, width, height = (float(v) for v in note["bbox"])
            boxes[note["image_id"]].append((categories[note["category_id"]], top, left, top + height, left + width))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The annotation {note.get('id', note)} of {file} cannot be read: {error!r}.",
                expected="bbox [left, top, width, height], and image_id and category_id of this file",
                fix="mend it, or take it out",
            ) from error
    found, missing = [], []
    for image in told["images"]:
        path = next((p / image["file_name"] for p in places if (p / image["file_name"]).is_file()), None)
        if path is None:
            missing.append(image["file_name"])
            continue
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        found.append(Labelled(path, boxes[image["id"]], size))
    if missing:
        raise InputError(
            f"{len(missing)} images of {file} are not there: {some(missing)}.",
            expected=f"them in {', '.join(str(p) for p in places[:3])}",
            fix="add them, or take their entries out",
        )
    listed = {image.file for image in found}
    alone = [f for d in sorted({f.parent for f in listed} - {folder, *images}) for f in files_in(d) if f not in listed]
    if alone:
        log.warning("data: %d images without an entry in %s are left out, such as %s", len(alone), file.name, alone[0])
    return found, crowds
