"""Scores of boxes by pycocotools, and the same accumulation in numpy where it is asked for thousands of times.

COCO's rules (Lin et al. 2014, arXiv:1405.0312): a box is right where it overlaps a true one that no better box has
taken; average precision is the mean of the precision at 101 recalls; classes that no image has are left out. Sizes play
no part here: fractions of an image have no pixels to be small by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError

RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True)
class Matches:
    """What boxes of one class are worth at IoU 0.5, by falling score over all images.

    Attributes:
        image: (d,) of which image each is.
        right: (d,) bool.
        boxes: (n,) true boxes of each image.
    """

    image: np.ndarray
    right: np.ndarray
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class CocoScores:
    """What pycocotools says of the boxes of some images.

    Attributes:
        precision: (10 IoUs from 0.5 to 0.95, 101 recalls, classes); -1 for a class that no image has.
        score: of the box at which the precision is reached, likewise.
        matches: of each class.
    """

    precision: np.ndarray
    score: np.ndarray
    matches: tuple[Matches, ...]

    @property
    def ap50(self) -> float:
        """Mean over the classes at IoU 0.5; NaN without any true box."""
        return _mean(self.precision[:1])

    @property
    def ap50_95(self) -> float:
        """Mean over the classes and ten IoUs from 0.5 to 0.95."""
        return _mean(self.precision)


def coco_scores(records: Iterable[Any], *, classes: int, most: int = 100) -> CocoScores:
    """Scores the boxes of some images.

    Args:
        records: of each image (true boxes (t, 5), found boxes (d, 6)), see `tasks.detection`.
        classes: how many there are.
        most: found boxes of an image and a class that count.

    Raises:
        InputError: pycocotools is not installed.
    """
    records = list(records)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how far it is
        evaluation = _evaluation(records, classes=classes, most=most)
        evaluation.evaluate()
        evaluation.accumulate()
    size = len(records)
    found = evaluation.evalImgs
    matches = tuple(_matches(found[c * size : (c + 1) * size]) for c in range(classes))
    return CocoScores(evaluation.eval["precision"][..., 0, 0], evaluation.eval["scores"][..., 0, 0], matches)


def _evaluation(records: Sequence[Any], *, classes: int, most: int) -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError(
            "pycocotools is not installed, and average precision is counted by it.",
            expected="pycocotools 2.0.8 or later",
            fix="pip install pycocotools",
        ) from error
    sides = []
    for side in (0, 1):
        boxes = [(i, box) for i, record in enumerate(records) for box in record[side]]
        # numbers from 1: pycocotools takes 0 for "no match"
        annotations = [_annotation(n, i, box) for n, (i, box) in enumerate(boxes, 1)]
        side_ = COCO()
        side_.dataset = {
            "images": [{"id": i} for i in range(len(records))],
            "categories": [{"id": c} for c in range(classes)],
            "annotations": annotations,
        }
        side_.createIndex()
        sides.append(side_)
    evaluation = COCOeval(*sides, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [most]
    return evaluation


def _annotation(number: int, image: int, box: np.ndarray) -> dict[str, Any]:
    """One box, (class, top, left, bottom, right) or with the score after the class."""
    top, left, bottom, right = map(float, box[-4:])
    score = {"score": float(box[1])} if len(box) == 6 else {}
    return {
        "id": number, "image_id": image, "category_id": int(box[0]), "iscrowd": 0,
        "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top), **score,
    }  # fmt: skip


def _matches(found: Sequence[dict[str, Any] | None]) -> Matches:
    """Of one class, from what pycocotools says of each image (None: neither true nor found boxes)."""
    images = [np.full(len(e["dtScores"]), i) if e else np.zeros(0) for i, e in enumerate(found)]
    image = np.concatenate(images).astype(np.int64)
    score = np.concatenate([e["dtScores"] if e else [] for e in found])
    right = np.concatenate([e["dtMatches"][0] if e else [] for e in found]) > 0
    order = np.argsort(-score, kind="stable")
    boxes = np.array([len(e["gtIds"]) if e else 0 for e in found])
    return Matches(image[order], right[order], boxes)


def accumulated_ap50(matches: Sequence[Matches], times: np.ndarray) -> float:
    """AP50 of a draw of images with replacement: what COCOeval accumulates for these images.

    Args:
        matches: of each class.
        times: (n,) how often each image is drawn.
    """
    found = []
    for of in matches:
        total = int((times * of.boxes).sum())
        if total:
            found.append(_average_precision(times[of.image] * of.right, times[of.image] * ~of.right, total))
    return float(np.mean(found)) if found else float("nan")


def _average_precision(right: np.ndarray, wrong: np.ndarray, total: int) -> float:
    """From how many right and wrong boxes each place of the ranking holds, (d,), and the number of true boxes."""
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    if not len(hits):
        return 0.0
    precision = hits / np.maximum(hits + misses, 1)
    best_to_come = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / total, RECALLS, side="left")
    return float(np.where(places < len(hits), best_to_come[np.minimum(places, len(hits) - 1)], 0.0).mean())


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
