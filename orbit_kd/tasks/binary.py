"""Yes or no: one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.tasks.classification import ClassScores
from orbit_kd.tasks.metrics import average_precision
from orbit_kd.tasks.sigmoid import binary_accuracy, binary_loss, threshold_of
from orbit_kd.tasks.task import Outputs, Records, refuse, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data


@tasks.register("binary")
class Binary(ClassScores):
    """One sigmoid, or the logit before it. A record is (label, answer, the output): yes is 1.

    Attributes:
        threshold: the output from which on the answer is yes: 0.5 of a probability, 0 of a logit.
    """

    name = "binary"

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__(classes=2)
        self.threshold = threshold

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Binary:
        shape = model.outputs[0].shape
        if len(model.outputs) != 1 or shape[-1] != 1 or len(shape) != 2:
            told = ", ".join(str(tuple(t.shape)) for t in model.outputs)
            raise refuse(model, cls.name, f"its outputs have the shapes {told}", expected="one number an image",
                         fix="let it end in Dense(1, 'sigmoid'); two scores are the task classification")  # fmt: skip
        return cls(threshold=threshold_of(model))

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        return binary_loss(model)

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        return [binary_accuracy(self.threshold)]

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        import tensorflow as tf

        each = binary_loss(model, reduction="none")
        return lambda y, outputs: each(tf.cast(y, tf.float32)[:, None], tf.reshape(outputs[0], (-1, 1)))

    def predicted(self, outputs: Outputs) -> np.ndarray:
        return (outputs[0].reshape(-1) > self.threshold).astype(np.int64)

    def records(self, truth: Any, outputs: Outputs) -> Records:
        return np.stack([truth, self.predicted(outputs), outputs[0].reshape(-1)], axis=1).astype(float)

    def details(self, records: Records) -> dict[str, Any]:
        found = super().details(records[:, :2].astype(np.int64))
        return {**found, "average_precision": average_precision(records[:, 0], records[:, 2])}

    def arguments(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def chance(self, records: Records) -> float:
        share = float(records[:, 0].mean())
        return max(share, 1 - share)
