"""Boxes in YOLO's text files: `train/images/*` and `train/labels/*.txt`, or `images/train/*` and `labels/train/*`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from orbit_kd.datasets.box_labels import Box, Labelled, source
from orbit_kd.datasets.part_folders import (
    IMAGES,
    by_stem,
    class_list,
    files_in,
    named_folder,
    some,
    split_folders,
)
from orbit_kd.datasets.splits import Source
from orbit_kd.errors import InputError

log = logging.getLogger("orbit_kd")
LAYOUT = "YOLO: train/images/* and train/labels/*.txt (lines: class, centre x, centre y, width, height in fractions)"
LABELS = ("labels", "label")


def fits(folder: Path) -> bool:
    """Whether there are such files."""
    return any(files_in(labels, (".txt",)) for _, labels in _parts(folder).values())


def read(folder: Path) -> Source:
    """The images and boxes. Class names are those of `classes.txt` or `data.yaml`, or else numbers.

    As with YOLO's own training, an image without a text file has no boxes; they are counted in a warning.

    Raises:
        InputError: a line that cannot be read, or labels without an image.
    """
    by_split: dict[str, list[Labelled]] = {}
    empty: list[str] = []
    for split, (images, labels) in _parts(folder).items():
        texts = by_stem([f for f in files_in(labels, (".txt",)) if f.name != "classes.txt"])
        files = by_stem(files_in(images))
        if alone := [str(texts[stem]) for stem in texts if stem not in files]:
            raise InputError(
                f"{len(alone)} labels without an image in {images}: {some(alone)}.",
                expected="for each text file an image of its name",
                fix="add the images, or take the labels out",
            )
        empty += [str(files[stem]) for stem in files if stem not in texts]
        by_split[split] = [Labelled(file, _parsed(texts[s]) if s in texts else []) for s, file in files.items()]
    if empty:
        log.warning("data: %d images have no label file and count as without boxes: %s", len(empty), some(empty))
    numbers = [int(box[0]) for part in by_split.values() for image in part for box in image.boxes]
    names = class_list(folder) or _yaml_names(folder / "data.yaml")
    count = max(numbers, default=0) + 1
    if names and count > len(names):
        raise InputError(
            f"There are boxes of class {count - 1}, and {len(names)} classes have a name.",
            expected=f"classes 0 to {len(names) - 1}: {some(names, 10)}",
            fix="name all classes in classes.txt, a name a line, or mend the labels",
        )
    names = names or tuple(map(str, range(count)))
    for part in by_split.values():
        part[:] = [Labelled(image.file, [(names[int(box[0])], *box[1:]) for box in image.boxes]) for image in part]
    return source(folder, by_split, names, fractions=True, listed="classes.txt")


def _parts(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> the folders of its images and labels."""
    found = {}
    for split, part in split_folders(folder).items():
        images, labels = named_folder(part, IMAGES), named_folder(part, LABELS)
        if images and labels:
            found[split] = images, labels
    if "train" in found and files_in(found["train"][0]):
        return found
    images, labels = named_folder(folder, IMAGES), named_folder(folder, LABELS)
    if images and labels:
        inner, texts = split_folders(images), split_folders(labels)
        return {split: (inner[split], texts[split]) for split in inner if split in texts}
    return {}


def _parsed(file: Path) -> list[Box]:
    boxes = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, x, y, width, height = line.split()
            cx, cy, w, h = (float(v) for v in (x, y, width, height))
            if int(kind) < 0 or max(cx, cy, w, h) > 2:
                raise ValueError("beyond fractions")
        except ValueError as error:
            raise InputError(
                f"Line {number} of {file} is no box: {line.strip()[:60]!r}.",
                expected="class, centre x, centre y, width, height; the class a whole number, the others fractions of "
                "the image from 0 to 1",
                fix="mend the line: divide pixels by the size of the image; outlines and key points are not taken",
            ) from error
        boxes.append((kind, cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2))
    return boxes


def _yaml_names(file: Path) -> tuple[str, ...]:
    """The entry `names` of Ultralytics' data.yaml: [a, b], or a line a name."""
    if not file.is_file():
        return ()
    text = file.read_text(encoding="utf-8")
    if listed := re.search(r"^names:\s*\[(.*?)\]", text, re.M | re.S):
        return tuple(name.strip().strip("'\"") for name in listed[1].split(",") if name.strip())
    lines = re.search(r"^names:\s*\n((?:[ \t]*(?:-|\d+:).*\n?)+)", text, re.M)
    return tuple(re.sub(r"^\s*(-|\d+:)\s*", "", n).strip().strip("'\"") for n in lines[1].splitlines()) if lines else ()
