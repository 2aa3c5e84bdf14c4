"""How sure a mean over trials is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DRAWS = 1000


def mean_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean by the percentile bootstrap.

    It knows what was seen: an event of a probability up to 3 / n stays unseen in n trials with a chance of 5% (the rule
    of three).

    Args:
        values: one a trial.
        seed: of the draws.

    Returns:
        (low, high) of the mean.
    """
    array = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(len(array), size=(_DRAWS, len(array)))
    low, high = np.percentile(array[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
