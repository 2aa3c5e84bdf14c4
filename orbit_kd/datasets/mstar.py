"""`mstar`: the public MSTAR vehicle chips, from the raw files or from class folders of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from orbit_kd.datasets import folders, images
from orbit_kd.errors import InputError

MAGIC = b"[PhoenixHeaderVer"
SIZE = 128
# A header's TargetType, or a folder's name, in capitals without punctuation, begins with one of these.
NAMES = ("2S1", "BMP2", "BRDM2", "BTR60", "BTR70", "D7", "T62", "T72", "ZIL131", "ZSU234")
# Of these two vehicles the release holds several copies; the standard ten-class split takes one of each.
SERIALS = {"BMP2": "9563", "T72": "132"}
SPLITS = {17: "train", 15: "test"}
MANUAL = """\
Get the MSTAR public targets and mixed targets from https://www.sdms.afrl.af.mil/index.php?collection=mstar and unpack
them, in whatever folders they come, into <data_dir>/downloads/manual/mstar. Or put 8-bit images there, in
train/<class>/* and test/<class>/*."""


class Mstar(tfds.core.GeneratorBasedBuilder):
    """MSTAR-10: ten vehicles, X-band spotlight SAR, HH, 0.3 m resolution; grey uint8, 128x128 from the raw files.

    Chips of 17 degrees depression are for training, those of 15 degrees for testing: the standard operating condition
    (Ross et al., SPIE 3370, 1998), with BMP2 9563 and T72 132, which is 2,747 and 2,425 chips of the full release.
    The raw magnitude of each chip is stretched linearly from its [min, max] to 0..255 and rounded, which is what the
    release's own mstar2jpeg does; then the centre 128x128 is cut out. Class folders of images keep size and values.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = MANUAL

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Public MSTAR vehicle chips; see orbit_kd.datasets.mstar.",
            homepage="https://www.sdms.afrl.af.mil/index.php?collection=mstar",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(NAMES)),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        root = root / "mstar" if (root / "mstar").is_dir() else root
        raw = find_chips(root)
        if raw:
            return {split: self._generate_examples(root, chips) for split, chips in raw.items()}
        if not (root / "train").is_dir() or not (root / "test").is_dir():
            raise InputError(f"There are no MSTAR chips in {root}.", expected="raw chips or class folders", fix=MANUAL)
        source = folders.read(root)
        chosen = {}
        for split in ("train", "test"):
            chosen[split] = {
                source.items[i]: _class(source.class_names[source.labels[i]], source.names[i])
                for i in source.splits[split]
            }
        return {split: self._generate_examples(root, chips) for split, chips in chosen.items()}

    def _generate_examples(self, root: Path, chips: dict[Path, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, name in chips.items():
            image = read_chip(path) if _is_raw(path) else images.decode(path)
            if image.dtype != np.uint8 or image.shape[-1] != 1:
                raise InputError(
                    f"The image {path} has {image.shape[-1]} channels of {image.dtype}.",
                    expected="8-bit grey images",
                    fix=f"give the folder itself, {root}, in place of the name mstar",
                )
            file = path.relative_to(root).as_posix()
            yield file, {"image": image, "label": name, "file": file}


def find_chips(root: Path) -> dict[str, dict[Path, str]]:
    """The raw chips below `root` that belong to the standard split: "train" and "test" -> file -> class.

    Other depressions, other vehicles (SLICY) and other serial numbers are left out, and so is a second copy of a file
    that is there twice. Empty when `root` holds no raw file at all.

    Raises:
        InputError: one of the two splits is empty, or a header says neither depression nor vehicle.
    """
    chips: dict[str, dict[Path, str]] = {"train": {}, "test": {}}
    seen, depressions = set(), set()
    for path in sorted(root.rglob("*")):
        if not (path.is_file() and _is_raw(path)):
            continue
        header = read_header(path)
        depression = _depression(header, path)
        depressions.add(depression)
        name = _match(header.get("TargetType", ""))
        serial = _plain(header.get("TargetSerNum", "")).removeprefix("SN")
        split = SPLITS.get(depression)
        if name and split and SERIALS.get(name, serial) == serial and (name, path.name, split) not in seen:
            seen.add((name, path.name, split))
            chips[split][path] = name
    if not depressions:
        return {}
    if not chips["train"] or not chips["test"]:
        raise InputError(
            f"Of the MSTAR chips in {root} {len(chips['train'])} are for training, {len(chips['test'])} for testing.",
            expected="chips of 17 and of 15 degrees depression; found: " + ", ".join(map(str, sorted(depressions))),
            fix=MANUAL,
        )
    return chips


def read_header(path: Path) -> dict[str, str]:
    """The text header of a raw ("Phoenix") file: lines of "key= value" up to [EndofPhoenixHeader]."""
    with path.open("rb") as f:
        text, mark, _ = f.read(65536).partition(b"[EndofPhoenixHeader]")
    if not mark:
        raise _damaged(path, "its header has no end")
    lines = (line.partition("=") for line in text.decode("latin-1").splitlines())
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def read_chip(path: Path) -> np.ndarray:
    """The magnitude of a raw chip, stretched to 8 bits: uint8 (128, 128, 1).

    After the header come NumberOfRows x NumberOfColumns big-endian float32 magnitudes, then as many phases.

    Raises:
        InputError: the file is cut short, is a full scene, or the chip is smaller than 128x128.
    """
    header = read_header(path)
    try:
        start = int(header["PhoenixHeaderLength"])
        rows, columns = int(header["NumberOfRows"]), int(header["NumberOfColumns"])
        native = int(header.get("native_header_length", "0") or 0)
    except (KeyError, ValueError) as e:
        raise _damaged(path, f"its header lacks {e}") from e
    if native:
        raise _damaged(path, "it is a full scene, no target chip")
    if min(rows, columns) < SIZE:
        raise _damaged(path, f"the chip is {rows}x{columns}")
    data = path.read_bytes()[start : start + 4 * rows * columns]
    if len(data) < 4 * rows * columns:
        raise _damaged(path, f"it ends before its {rows}x{columns} magnitudes do")
    magnitude = np.frombuffer(data, ">f4").reshape(rows, columns).astype(np.float64)
    low, high = magnitude.min(), magnitude.max()
    if not (np.isfinite([low, high]).all() and high > low):
        raise _damaged(path, f"its magnitudes run from {low} to {high}")
    image = np.floor((magnitude - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
    top, left = (rows - SIZE) // 2, (columns - SIZE) // 2
    return image[top : top + SIZE, left : left + SIZE, None]


def _is_raw(path: Path) -> bool:
    with path.open("rb") as f:
        return MAGIC in f.read(64)


def _depression(header: dict[str, str], path: Path) -> int:
    for text in (header.get("DesiredDepression", ""), header.get("MeasuredDepression", "")):
        if number := re.match(r"\d+(\.\d+)?", text):
            return round(float(number[0]))
    if folder := re.search(r"(\d\d)_DEG", path.as_posix()):
        return int(folder[1])
    raise _damaged(path, "its header gives no depression angle")


def _class(folder: str, file: str) -> str:
    if name := _match(folder):
        return name
    raise InputError(f"{file} is in the folder of no MSTAR class.", expected=", ".join(NAMES), fix="rename the folder")


def _match(name: str) -> str | None:
    return next((n for n in NAMES if _plain(name).startswith(n)), None)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"Cannot read the MSTAR file {path}: {what}.",
        expected="a target chip as released: text header, float32 magnitude, float32 phase, at least 128x128",
        fix="unpack it again, or take it out of the folder",
    )
