"""`fusar_ship`: the FUSAR-Ship chips of Gaofen-3, in the folders they are published in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from orbit_kd.datasets import images
from orbit_kd.errors import InputError

CHIP = re.compile(r"Ship_C\d+S\d+N\d+\.tiff?", re.IGNORECASE)
CATEGORIES = (
    *("Cargo", "DiveVessel", "Dredger", "Fishing", "HighSpeedCraft", "LawEnforce", "Other", "Passenger"),
    *("PortTender", "Reserved", "SAR", "Tanker", "Tug", "Unspecified", "WingInGrnd"),
)
MANUAL = """\
Get FUSAR-Ship 1.0 from https://emwlab.fudan.edu.cn (Key Lab of Information Science of Electromagnetic Waves, Fudan
University) and unpack it into <data_dir>/downloads/manual/fusar_ship, so that there are files like
<category>/<subcategory>/Ship_C01S01N0001.tiff at any depth below it."""


class FusarShip(tfds.core.GeneratorBasedBuilder):
    """FUSAR-Ship 1.0: over 5,000 ships seen by Gaofen-3 (C band), 512x512x1 uint8, labelled by AIS category.

    The class is the category folder (Cargo, Tanker, ...), of which there are 15; the subcategory folder is kept as
    the text feature "subcategory". Some categories hold fewer than ten ships. The release has no test split. It shows
    some ships more than once, so that a random split is an optimistic one.

    Hou et al., "FUSAR-Ship: building a high-resolution SAR-AIS matchup dataset of Gaofen-3 for ship detection and
    recognition", Science China Information Sciences 63, 2020.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = MANUAL

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Gaofen-3 ship chips; see orbit_kd.datasets.fusar_ship.",
            homepage="https://emwlab.fudan.edu.cn/resources/list.htm",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CATEGORIES)),
                    "subcategory": tfds.features.Text(),
                    "file": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        root = root / "fusar_ship" if (root / "fusar_ship").is_dir() else root
        chips = sorted(path for path in root.rglob("*") if CHIP.fullmatch(path.name))
        if not chips:
            raise InputError(
                f"There are no FUSAR-Ship chips in {root}.",
                expected="<category>/<subcategory>/Ship_CxxSyyNzzzz.tiff",
                fix=MANUAL,
            )
        return {"train": self._generate_examples(root, chips)}

    def _generate_examples(self, root: Path, chips: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in chips:
            category, subcategory = _category(path, root)
            image = images.decode(path)
            if image.dtype != np.uint8 or image.shape[-1] != 1:
                raise InputError(
                    f"The image {path} has {image.shape[-1]} channels of {image.dtype}.",
                    expected="8-bit grey chips as released",
                    fix="unpack the release again",
                )
            file = path.relative_to(root).as_posix()
            yield file, {"image": image, "label": category, "subcategory": subcategory, "file": file}


def _category(path: Path, root: Path) -> tuple[str, str]:
    """The category a chip's folders name, and the folder below it ("" if there is none)."""
    parts = path.relative_to(root).parts[:-1]
    for depth, part in enumerate(parts):
        for category in CATEGORIES:
            if part.lower() == category.lower():
                return category, "/".join(parts[depth + 1 :])
    raise InputError(
        f"The chip {path} is in the folder of no category.",
        expected=f"one of: {', '.join(CATEGORIES)}",
        fix="unpack the release with its folders",
    )
