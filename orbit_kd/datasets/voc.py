"""Boxes in Pascal VOC's XML: `train/*.xml` beside the images, or `annotations/*.xml` and `images/*`.

Coordinates are taken as they are: files that count pixels from 1 have boxes that begin a pixel late.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from orbit_kd.datasets.box_labels import Box, Labelled, source
from orbit_kd.datasets.part_folders import IMAGES, by_stem, class_list, files_in, named_folder, some, split_folders
from orbit_kd.datasets.splits import Source
from orbit_kd.errors import InputError

LAYOUT = "Pascal VOC: train/*.xml beside train/*.jpg, or (train/)annotations/*.xml and (train/)images/*"
ANNOTATIONS = ("annotations", "annotation", "xml", "xmls", "labels")


def fits(folder: Path) -> bool:
    """Whether there are such files."""
    return bool(_labels(split_folders(folder)["train"]))


def read(folder: Path) -> Source:
    """The images and boxes. Classes are those of `classes.txt`, or all that boxes have, sorted.

    Lists of a split (`ImageSets/Main/train.txt`, `val.txt`, `test.txt`) are followed where there are any.

    Raises:
        InputError: a file that cannot be read, an image without labels or labels without an image.
    """
    by_split: dict[str, list[Labelled]] = {}
    for split, part in split_folders(folder).items():
        where = named_folder(part, IMAGES) or part
        images, labels = by_stem(files_in(where)), by_stem(_labels(part))
        for have, want, what in (
            (images, labels, "images without labels"),
            (labels, images, "labels without an image"),
        ):
            if alone := [str(have[stem]) for stem in have if stem not in want]:
                raise InputError(
                    f"{len(alone)} {what}: {some(alone)}.",
                    expected="for each image an XML file of its name; one of an image without objects has no <object>",
                    fix="add what is missing, or take the others out",
                )
        by_split[split] = [_parsed(labels[stem], images[stem]) for stem in images]
    if list(by_split) == ["train"]:
        by_split = _listed(folder, by_split["train"])
    listed = class_list(folder)
    found = {box[0] for part in by_split.values() for image in part for box in image.boxes}
    return source(folder, by_split, listed or sorted(found), fractions=False, listed="classes.txt")


def _labels(part: Path) -> list[Path]:
    """The XML files of a split."""
    where = named_folder(part, ANNOTATIONS)
    return (files_in(where, (".xml",)) if where else []) or files_in(part, (".xml",))


def _listed(folder: Path, images: list[Labelled]) -> dict[str, list[Labelled]]:
    """The images by the lists of their splits, where there is one for training."""
    lists = {split: folder / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val", "test")}
    if not lists["train"].is_file():
        return {"train": images}
    by_name = {image.file.stem: image for image in images}
    found = {}
    for split, file in lists.items():
        if file.is_file():
            names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
            if missing := [name for name in names if name not in by_name]:
                raise InputError(
                    f"{file} names {len(missing)} images that are not there: {some(missing)}.",
                    expected="names of images without their suffix",
                    fix="add them, or take the lines out",
                )
            found[split] = [by_name[name] for name in names]
    return found


def _parsed(file: Path, image: Path) -> Labelled:
    try:
        root = ElementTree.parse(file).getroot()
        size = tuple(int(float(root.findtext(f"size/{name}", "0"))) for name in ("height", "width"))
        boxes = [_box(note) for note in root.iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"Cannot read the labels {file}: {error}.",
            expected="Pascal VOC: <object> with <name> and <bndbox> of xmin, ymin, xmax, ymax in pixels",
            fix="mend the file, or take it out with its image",
        ) from error
    return Labelled(image, boxes, (size[0], size[1]) if min(size) > 0 else None)


def _box(note: ElementTree.Element) -> Box:
    top, left, bottom, right = (float(note.findtext(f"bndbox/{e}", "")) for e in ("ymin", "xmin", "ymax", "xmax"))
    return (note.findtext("name") or "").strip(), top, left, bottom, right
