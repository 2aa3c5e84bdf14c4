"""Figures of merit, and whether two networks differ by more than chance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

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


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Two networks on the same samples, drawn again and again with replacement (Efron 1979), in pairs.

    Attributes:
        difference: the metric of the second less that of the first.
        low, high: the 95% percentile interval of that.
        p: two-sided: twice the share of draws on the other side of zero, at least 1 / draws; 1 where they never differ.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap(
    value: Callable[[np.ndarray], float], first: np.ndarray, second: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> Bootstrap:
    """The paired bootstrap of a metric.

    Args:
        value: the metric over records (n, ...).
        first, second: records of two networks of the same samples in the same order, n > 0.
        draws: how many.
        seed: of the draws.
    """
    rng, size = np.random.default_rng(seed), len(first)
    difference = value(second) - value(first)
    places = (rng.integers(size, size=size) for _ in range(draws))
    drawn = np.array([value(second[i]) - value(first[i]) for i in places])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    if not drawn.any():
        return Bootstrap(float(difference), 0.0, 0.0, 1.0)
    beyond = min(float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0)))
    return Bootstrap(float(difference), float(low), float(high), float(min(1.0, max(2 * beyond, 1 / draws))))


def as_json(found: Bootstrap) -> dict[str, float]:
    """What reports have of a comparison."""
    return {"paired_p": found.p, "difference_low": found.low, "difference_high": found.high}


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall steps, as scikit-learn's `average_precision_score`; NaN without a positive.

    Args:
        truth: (n,) 0 or 1.
        scores: (n,), higher for 1. Equal scores count as one step.
    """
    positives = truth.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(truth[order]), scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the last of each run of equal scores
    precision, recall = hits[ends] / (ends + 1), hits[ends] / positives
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def intersection_over_union(matrix: np.ndarray) -> np.ndarray:
    """IoU of each class (classes,) from a confusion matrix; NaN for a class in neither the truth nor the answers."""
    both = np.diag(matrix).astype(float)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.divide(both, either, out=np.full(len(matrix), np.nan), where=either > 0)
