"""Folders in a data set's folder: those of its splits, and the files in them by their stems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orbit_kd.datasets.decoding import ARRAYS, SUFFIXES
from orbit_kd.errors import InputError

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}
"""Split -> what its folder may be called."""

IMAGES = ("image", "images", "img", "imgs", "jpegimages")
"""What a folder of images may be called, in lower case."""


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds; None where it is no split's name."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder, where there is one for training; else the folder itself holds the training data.

    Raises:
        InputError: two folders for one split.
    """
    found: dict[str, Path] = {}
    for part in folders_in(folder):
        if split := split_of(part.name):
            if split in found:
                raise InputError(
                    f"{found[split]} and {part} are both folders of the {split} split.",
                    expected="one folder a split",
                    fix="put their files together, or take one out",
                )
            found[split] = part
    return {split: found[split] for split in SPLITS if split in found} if "train" in found else {"train": folder}


def named_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` that has one of these names (lower case)."""
    return next((d for d in folders_in(folder) if d.name.lower() in names), None)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but hidden ones and those that macOS puts into zip files."""
    if not folder.is_dir():
        return []
    return [d for d in sorted(folder.iterdir()) if d.is_dir() and not d.name.startswith((".", "__MACOSX"))]


def files_in(folder: Path, suffixes: Sequence[str] = (*SUFFIXES, *ARRAYS)) -> list[Path]:
    """The files in a folder that have one of these suffixes (lower case), sorted, but hidden ones."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith("."))
    return sorted(f for f in files if f.is_file())


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without suffix.

    Raises:
        InputError: two files of one stem.
    """
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise InputError(
                f"{found[file.stem]} and {file} have one name but for the suffix.",
                expected="one file for each image",
                fix="take one out, or rename it",
            )
        found[file.stem] = file
    return found


def some(names: Sequence[str], count: int = 3) -> str:
    """A few of many names: "a, b, c and 5 more"."""
    rest = len(names) - count
    return ", ".join(list(names)[:count]) + (f" and {rest} more" if rest > 0 else "")


def sizes_of(files: Sequence[Path], folder: Path) -> list[str]:
    """A line a file, its name and bytes: what tells a data set from another."""
    return [f"{f.relative_to(folder).as_posix()}\t{f.stat().st_size}" for f in files]


def class_list(folder: Path) -> tuple[str, ...]:
    """The names in `classes.txt`, one a line; empty where there is no such file.

    Raises:
        InputError: an empty line between names, or a name that comes twice.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return ()
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines())
    if "" in names or len(set(names)) != len(names):
        raise InputError(
            f"{file} has an empty line, or a name twice.",
            expected="a class a line, the first for class 0",
            fix="mend the file",
        )
    return names


def check_upright(files: Sequence[Path]) -> None:
    """Refuses images that EXIF data say are to be turned: labels may be of the turned picture or of the file.

    Raises:
        InputError: there is one.
    """
    from PIL import Image

    for file in files:
        if file.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        try:
            with Image.open(file) as image:
                turn = image.getexif().get(0x0112, 1)
        except Exception:
            continue
        if turn not in (0, 1):
            raise InputError(
                f"EXIF data say that {file} is to be turned ({turn}), and its masks or boxes may be of either.",
                expected="images stored upright",
                fix="turn them if their labels are: ImageOps.exif_transpose(Image.open(f)).save(f); else strip "
                "the EXIF data: Image.fromarray(np.asarray(Image.open(f))).save(f)",
            )
