"""What one measurement of a scan found, and how many images it takes to find out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from orbit_kd.tasks import Records, Task

_FEWEST = 64  # images before a loss may count as known


@dataclasses.dataclass(frozen=True)
class Point:
    """What a network reaches.

    Attributes:
        accuracy: the task's metric: of a classifier the share of right answers, in [0, 1].
        loss: mean over the images.
        images: how many were seen.
        each: (record, loss) of each image.
    """

    accuracy: float
    loss: float
    images: int
    each: tuple[np.ndarray, np.ndarray] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, task: Task, records: Records, loss: np.ndarray) -> Point:
        """Over all images."""
        return cls(task.value(records), float(loss.mean()), len(loss), (records, loss))


@dataclasses.dataclass(frozen=True)
class Question:
    """What a measurement is to find out about a changed network; a part of the images may tell.

    Attributes:
        task: whose metric it is.
        whole: the network before, on all images.
        lost: whether the accuracy is below this part of the whole one's, at 99.9% confidence; None does not ask. Only
            of metrics that are shares of right answers can a few images tell.
        tolerance: how much the loss rises, with a standard error of this or of a quarter of the rise; None asks for
            all images.
    """

    task: Task
    whole: Point
    lost: float | None = None
    tolerance: float | None = None

    def answered(self, records: Records, loss: np.ndarray) -> bool:
        """Whether the images so far tell."""
        seen = len(loss)
        right = None if self.lost is None else self.task.right(records)
        if right is not None and _surely_below(int(right.sum()), seen, (self.lost or 0) * self.whole.accuracy):
            return True
        if self.tolerance is None or seen < _FEWEST:
            return False
        rise = loss - self.whole.each[1][:seen]  # image by image: what is hard for both networks does not count
        return bool(rise.std() / math.sqrt(seen) <= max(self.tolerance, 0.25 * abs(rise.mean())))

    def point(self, records: Records, loss: np.ndarray) -> Point:
        """The whole network's point, moved by what the images seen have changed."""
        seen, (before, losses) = len(loss), self.whole.each
        value = self.task.value(records)
        if seen < len(losses):  # nothing is added where nothing is missing, not even by rounding
            value = self.whole.accuracy + value - self.task.value(before[:seen])
            value = float(np.clip(value, 0, 1)) if self.task.metric.unit == "%" else value
        return Point(value, float(self.whole.loss + (loss - losses[:seen]).mean()), seen, (records, loss))


def _surely_below(right: int, seen: int, floor: float, doubt: float = 1e-3) -> bool:
    """Whether so few right answers would come with probability below `doubt` from an accuracy of `floor` or more."""
    if right / seen >= floor or floor >= 1:
        return right / seen < floor
    logs = (
        math.lgamma(seen + 1) - math.lgamma(k + 1) - math.lgamma(seen - k + 1)
        + k * math.log(floor) + (seen - k) * math.log1p(-floor)
        for k in range(right + 1)
    )  # fmt: skip
    return sum(map(math.exp, logs)) < doubt
