"""Any number of labels an image, each yes or no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tasks.metrics import average_precision
from orbit_kd.tasks.network import heads
from orbit_kd.tasks.sigmoid import binary_accuracy, binary_loss, threshold_of
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, refuse, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data


@tasks.register("multi_label")
class MultiLabel(Task):
    """One sigmoid a label, or the logit before it. A record is (labels, outputs), (2, labels).

    The metric is the mean over labels of the average precision (mAP); labels that no image has are left out of it.

    Attributes:
        labels: how many.
        threshold: the output from which on a label is given.
    """

    name = "multi_label"
    metric = Metric("mean_average_precision", "mean AP")

    def __init__(self, labels: int, *, threshold: float = 0.5) -> None:
        self.labels, self.threshold = labels, threshold

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> MultiLabel:
        shape = model.outputs[0].shape
        if len(model.outputs) != 1 or len(shape) != 2 or heads(model)[0] == "softmax":
            told = f"it ends in {heads(model)[0]} of shape {tuple(shape)}"
            raise refuse(model, cls.name, told, expected="one sigmoid (or its logit) for each label",
                         fix="let it end in Dense(labels, 'sigmoid'); a softmax is for classification")  # fmt: skip
        return cls(int(shape[-1]), threshold=threshold_of(model))

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        return binary_loss(model)

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        return [binary_accuracy(self.threshold)]

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        import tensorflow as tf

        each = binary_loss(model, reduction="none")
        return lambda y, outputs: each(tf.cast(y, tf.float32), outputs[0])

    def truth(self, y: Any) -> np.ndarray:
        found = np.asarray(y, np.float32)
        if found.ndim != 2 or found.shape[1] != self.labels or not np.isin(found, (0, 1)).all():
            raise InputError(
                f"The labels have shape {found.shape[1:]} and values from {found.min():g} to {found.max():g}.",
                expected=f"{self.labels} numbers an image, each 0 or 1: one for each output of the network",
                fix="map them to such rows; one class number an image is the task classification (--task)",
            )
        return found

    def records(self, truth: Any, outputs: Outputs) -> Records:
        return np.stack([truth, outputs[0].reshape(truth.shape)], axis=1).astype(np.float32)

    def _precisions(self, records: Records) -> np.ndarray:
        return np.array([average_precision(records[:, 0, i], records[:, 1, i]) for i in range(records.shape[2])])

    def value(self, records: Records) -> float:
        found = self._precisions(records)
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

    def details(self, records: Records) -> dict[str, Any]:
        truth, given = records[:, 0] > 0.5, records[:, 1] > self.threshold
        both, sizes = (truth & given).sum(0), truth.sum(0) + given.sum(0)
        f1 = np.divide(2 * both, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
        return {
            "mean_average_precision": self.value(records),
            "per_class": {"average precision": self._precisions(records).tolist(), "F1": f1.tolist()},
            "mean_f1": float(np.nanmean(f1)) if not np.isnan(f1).all() else None,
            "labels_right": float((truth == given).mean()),
        }

    def arguments(self) -> dict[str, Any]:
        return {"labels": self.labels, "threshold": self.threshold}

    def chance(self, records: Records) -> float:
        shares = records[:, 0].mean(0)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
