"""k-means in one dimension: which of few values each weight takes."""

from __future__ import annotations

import numpy as np


def k_means(weights: np.ndarray, clusters: int, *, keep_zeros: bool = False) -> np.ndarray:
    """The cluster of each weight: Lloyd's k-means in one dimension, from evenly spaced centroids.

    Args:
        weights: (n,) float.
        clusters: how many at most.
        keep_zeros: zeros are cluster 0, and no other weight is in it.

    Returns:
        (n,) integers in [0, clusters).
    """
    if keep_zeros:
        indices = np.zeros(weights.shape, int)
        indices[weights != 0] = 1 + k_means(weights[weights != 0], clusters - 1)
        return indices
    values = np.sort(weights.astype(np.float64))
    if not len(values):
        return np.zeros(0, int)
    distinct = np.unique(values)
    # Evenly spaced, as in Deep Compression: by quantiles the few large weights would get no centroid.
    centroids = distinct if len(distinct) <= clusters else np.linspace(values[0], values[-1], clusters)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(50):
        # Sorted, a cluster is a run: its ends lie half way between the centroids.
        ends = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        first, last = np.concatenate([[0], ends]), np.concatenate([ends, [len(values)]])
        count = last - first
        means = np.where(count, (sums[last] - sums[first]) / np.maximum(count, 1), centroids)
        if empty := int((count == 0).sum()):
            # Where nothing is near, a centroid moves to the weights that are farthest from theirs.
            error = np.abs(values - np.repeat(means, count))
            means[count == 0] = values[np.argpartition(error, -empty)[-empty:]]
            means.sort()
        if np.allclose(means, centroids, rtol=0, atol=1e-7 * (values[-1] - values[0])):
            break
        centroids = means
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights)
