"""Numbers with a scale of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tasks.network import compiled_loss
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, refuse, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data


@tasks.register("regression")
class Regression(Task):
    """One number or more an image. A record is (labels, outputs), (2, numbers).

    The metric is R2, the mean over the numbers of 1 - (squared errors) / (squared deviations from the mean label).

    Attributes:
        numbers: how many.
    """

    name = "regression"
    metric = Metric("r2", "R2", "")
    losses = ("mse",)

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Regression:
        shape = model.outputs[0].shape
        if len(model.outputs) != 1 or len(shape) != 2 or shape[-1] is None:
            told = ", ".join(str(tuple(t.shape)) for t in model.outputs)
            raise refuse(model, cls.name, f"its outputs have the shapes {told}", expected="one vector of numbers",
                         fix="let it end in Dense(numbers)")  # fmt: skip
        return cls(int(shape[-1]))

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        return compiled_loss(model) or "mse"

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        return ["mae"]

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        import tensorflow as tf

        def squared(y: Any, outputs: Sequence[Any]) -> Any:
            return tf.reduce_mean(tf.math.squared_difference(tf.cast(y, tf.float32), outputs[0]), -1)

        return squared

    def truth(self, y: Any) -> np.ndarray:
        found = np.asarray(y, np.float32)
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != self.numbers or not np.isfinite(found).all():
            raise InputError(
                f"The labels have shape {found.shape[1:]}"
                f"{'' if np.isfinite(found).all() else ' and hold NaN or infinite values'}.",
                expected=f"{self.numbers} finite numbers an image, one for each output of the network",
                fix="give the data this network was trained on, without rows that lack a value",
            )
        return found

    def records(self, truth: Any, outputs: Outputs) -> Records:
        return np.stack([truth, outputs[0].reshape(truth.shape)], axis=1).astype(np.float64)

    def value(self, records: Records) -> float:
        truth, given = records[:, 0], records[:, 1]
        errors = np.square(truth - given).sum(0)
        spread = np.square(truth - truth.mean(0)).sum(0)
        found = np.where(spread > 0, 1 - errors / np.where(spread > 0, spread, 1), np.where(errors > 0, 0.0, 1.0))
        return float(found.mean())

    def details(self, records: Records) -> dict[str, Any]:
        errors = records[:, 1] - records[:, 0]
        return {
            "r2": self.value(records),
            "mae": float(np.abs(errors).mean()),
            "rmse": float(np.sqrt(np.square(errors).mean())),
            "maes": np.abs(errors).mean(0).tolist(),
        }

    def arguments(self) -> dict[str, Any]:
        return {"numbers": self.numbers}

    def chance(self, records: Records) -> float:
        return 0.0
