"""Accuracy, confusion, and whether two classifiers differ by more than chance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images (McNemar 1947, exact): do they differ by more than chance?

    Attributes:
        first_only: images only the first got right.
        second_only: images only the second got right.
        p: two-sided p-value of that split under a fair coin; 1 where they never differ.
    """

    first_only: int
    second_only: int
    p: float


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Share of images whose largest output is the label's.

    Args:
        labels: (n,) integers, n > 0.
        logits: (n, classes); probabilities do as well.
    """
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def wilson(right: int, images: int, *, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share `right / images` (Wilson 1927): 95% of them hold the true share at z = 1.96."""
    share, spread = right / images, z * z / images
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / images + spread / (4 * images))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted class."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """The exact McNemar test.

    Args:
        first_right: (n,) booleans, whether the first classifier got each image right.
        second_right: the same of the second, in the same order.
    """
    first, second = np.asarray(first_right, bool), np.asarray(second_right, bool)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, min(1.0, 2 * tail / 2 ** (b + c)))  # whole numbers, so that no size overflows
