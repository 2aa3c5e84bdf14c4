"""What a network is for, as a value: the checks, the losses, the metric and the comparison that a job needs of it.

The rest of `compress` knows a task only by the members of `Task`. Of each sample a task keeps a record (a row of an
array): the label and what the network said about it, as far as the metric needs them. Every figure is made of records,
so that outputs of any size pass by batch by batch and nothing larger than the records stays.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.tasks.metrics import as_json, bootstrap

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data

Outputs = tuple[np.ndarray, ...]
"""What a network gives for a batch: float32 (n, ...), one array an output."""

Records = np.ndarray
"""(n, ...): what the metric needs of each sample. Records of batches are joined by `np.concatenate`."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of merit; higher is better.

    Attributes:
        key: in reports and histories, such as "accuracy".
        name: for people, such as "mean IoU".
        unit: "%" for shares, which are in [0, 1] and told in percent and points; "" for numbers told as they are.
    """

    key: str
    name: str
    unit: str = "%"

    def text(self, value: float) -> str:
        """A value for people."""
        return f"{100 * value:.2f}%" if self.unit == "%" else f"{value:.4f}{self.unit}"


class Task(abc.ABC):
    """One kind of problem, and what is known of the network and the data at hand.

    Attributes:
        name: in the registry.
        metric: what is measured, searched by, and reported first.
        losses: names of the distillation losses that fit, where the caller gives none; empty to choose by output.
        weights: of the outputs in the loss, by name; None for one output.
    """

    name: ClassVar[str]
    metric: Metric
    losses: tuple[str, ...] = ("logits",)
    weights: Mapping[str, float] | None = None

    @classmethod
    @abc.abstractmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Task:
        """The task for a network and its data.

        Raises:
            InputError: a network or labels that this task does not fit, with what would.
        """

    def check_data(self, data: Data) -> None:
        """Refuses labels that the task cannot take, and splits that cannot tell how well a network does.

        Raises:
            InputError: with what to do.
        """
        for split in (data.train, data.val, data.test):
            for _, y, *_ in split.as_numpy_iterator():
                self.truth(y)

    @abc.abstractmethod
    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        """The loss on labels, as `keras.Model.compile` takes it."""

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        """Metrics that a training shows, as `keras.Model.compile` takes them; none where only the loss is cheap."""
        return []

    @abc.abstractmethod
    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        """(labels, outputs) -> the loss of each sample (n,), as TensorFlow computes it: what a scan compares.

        Args:
            model: whose outputs they are.
            loss: that it was trained with, where the model does not tell.
        """

    @abc.abstractmethod
    def truth(self, y: Any) -> Any:
        """The labels of a batch, checked, in the form that `records` and `sample_loss` take.

        Raises:
            InputError: labels of another kind, or out of range.
        """

    @abc.abstractmethod
    def records(self, truth: Any, outputs: Outputs) -> Records:
        """What is kept of each sample."""

    @abc.abstractmethod
    def value(self, records: Records) -> float:
        """The metric over some records."""

    def right(self, records: Records) -> np.ndarray | None:
        """1.0 or 0.0 for each sample where the metric is a share of right answers: (n,); None for other metrics."""
        return None

    @abc.abstractmethod
    def details(self, records: Records) -> dict[str, Any]:
        """Further figures for the report, as plain JSON values.

        `confusion` (a square matrix of counts) and `per_class` (name of a figure -> one value a class) are shown as
        such.
        """

    def compare(self, first: Records, second: Records) -> dict[str, Any]:
        """Whether two networks differ on the same samples by more than chance, as plain JSON values.

        Here the paired bootstrap of `value`: its p, and the 95% interval of the second's metric less the first's.
        """
        return as_json(bootstrap(self.value, first, second))

    def chance(self, records: Records) -> float | None:
        """What an answer that never looks at the image would reach; None where nothing is known."""
        return None

    draws: ClassVar[bool] = False

    def picture(self, image: np.ndarray, truth: Any, outputs: Outputs | None) -> np.ndarray:
        """The truth (`outputs` None) or an answer drawn on one image, of a task that `draws`.

        Args:
            image: uint8 (h, w, 3).
            truth: the sample's label, without the batch axis.
            outputs: of this sample, without the batch axis.

        Returns:
            uint8 (h, w, 3).
        """
        return image

    def check_labels(self, truth: Any, *, what: str) -> None:  # noqa: B027 (not every task has something to refuse)
        """Refuses labels of a whole split on which the metric would say nothing.

        Args:
            truth: all of them, as `truth` gives them.
            what: the split's name in messages.

        Raises:
            InputError: such labels.
        """

    def truth_in(self, records: Records) -> Any:
        """The truth within records, where `check_labels` looks at it."""
        return None

    @abc.abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Plain values of the constructor, for the files that a network is exported to: see `from_config`."""

    def config(self) -> dict[str, Any]:
        """Plain values that tell this task from others."""
        return {"name": self.name, **self.arguments()}


tasks: Registry[type[Task]] = Registry("task")


def from_config(config: Mapping[str, Any]) -> Task:
    """The task that `Task.config` described."""
    arguments = dict(config)
    return tasks.get(arguments.pop("name"))(**arguments)


def refuse(model: keras.Model, task: str, what: str, *, expected: str, fix: str) -> InputError:
    """The error for a network that a task does not fit."""
    return InputError(f"Model {model.name!r} does not fit the task {task!r}: {what}.", expected=expected, fix=fix)
