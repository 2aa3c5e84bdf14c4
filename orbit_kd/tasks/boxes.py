"""Boxes as arrays: overlap, suppression, and how a detector's maps are read.

A box is (top, left, bottom, right) in any one unit; maps are those of a CenterNet (Zhou et al. 2019, Objects as Points,
arXiv:1904.07850): the heat of each class, the height and width of the box whose centre is in a cell, as fractions of
the image, and where in its cell the centre is, down and right.
"""

from __future__ import annotations

import numpy as np

GEOMETRY = 4
"""Channels behind the heat maps: height, width, offset down, offset right."""


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Common area of each pair of boxes.

    Args:
        first: (a, 4).
        second: (b, 4).

    Returns:
        (a, b).
    """
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Of (n, 4): (n,)."""
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=-1)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes (a, 4), (b, 4): (a, b); 0 where both are empty."""
    common = intersections(first, second)
    either = areas(first)[:, None] + areas(second)[None] - common
    return np.divide(common, either, out=np.zeros_like(common), where=either > 0)


def suppress(detections: np.ndarray, *, iou: float) -> np.ndarray:
    """Greedy non-maximum suppression within each class.

    Args:
        detections: (d, 6): class, score, box.
        iou: boxes of one class that overlap by more are one object, of which the highest score stays.

    Returns:
        The rows that stay, by falling score.
    """
    ordered = detections[np.argsort(-detections[:, 1], kind="stable")]
    same = overlaps(ordered[:, 2:], ordered[:, 2:]) > iou
    same &= ordered[:, None, 0] == ordered[None, :, 0]
    stays = np.ones(len(ordered), bool)
    for i in range(len(ordered)):
        if stays[i]:
            stays[i + 1 :] &= ~same[i, i + 1 :]
    return ordered[stays]


def peaks(heat: np.ndarray) -> np.ndarray:
    """Cells that no neighbour exceeds; of equal neighbours, the first in reading order.

    An int8 file often gives neighbours the same heat. Both would be boxes, and one of them a false alarm.

    Args:
        heat: (h, w, classes).

    Returns:
        bool (h, w, classes).
    """
    height, width = heat.shape[:2]
    padded = np.pad(heat, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    found = np.ones(heat.shape, bool)
    for down in range(3):
        for right in range(3):
            neighbour = padded[down : down + height, right : right + width]
            if (down, right) < (1, 1):
                found &= heat > neighbour
            elif (down, right) > (1, 1):
                found &= heat >= neighbour
    return found


def decode(maps: np.ndarray, *, most: int, least: float) -> np.ndarray:
    """The boxes that one image's maps speak of.

    Args:
        maps: float (h, w, classes + 4): see the module.
        most: boxes that are kept, those of the highest scores.
        least: scores up to this are dropped.

    Returns:
        float64 (d, 6) by falling score: class, score, top, left, bottom, right as fractions of the image, cut at its
        edges.
    """
    height, width = maps.shape[:2]
    heat = maps[..., :-GEOMETRY]
    row, column, class_ = np.nonzero(peaks(heat) & (heat > least))
    score = heat[row, column, class_]
    first = np.argsort(-score, kind="stable")[:most]
    row, column, class_, score = row[first], column[first], class_[first], score[first]
    tall, wide, down, right = maps[row, column, -GEOMETRY:].T.astype(np.float64)
    y, x = (row + down) / height, (column + right) / width
    box = np.stack([y - tall / 2, x - wide / 2, y + tall / 2, x + wide / 2], axis=-1)
    return np.concatenate([class_[:, None], score[:, None], np.clip(box, 0, 1)], axis=-1).astype(np.float64)
