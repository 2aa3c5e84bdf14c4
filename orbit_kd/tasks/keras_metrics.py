"""What a training shows of tasks that Keras has no metric for."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("orbit_kd")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union over the classes seen, as `Segmentation` counts it.

    Args:
        classes: how many.
        threshold: of a single output, from which on it says class 1; None of one score a class.
        ignore: the label of pixels that do not count.
        name: of the metric.
    """

    def __init__(
        self, classes: int, *, threshold: float | None, ignore: int, name: str = "mean_iou", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.classes, self.threshold, self.ignore = classes, threshold, ignore
        self._counts = self.add_weight(name="counts", shape=(classes, classes), initializer="zeros", dtype=tf.float64)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        if self.threshold is None:
            answers = tf.reshape(tf.argmax(y_pred, -1, tf.int32), [-1])
        else:
            answers = tf.reshape(tf.cast(y_pred > self.threshold, tf.int32), [-1])
        counts = labels != self.ignore
        pairs = tf.boolean_mask(labels * self.classes + answers, counts)
        found = tf.math.bincount(pairs, minlength=self.classes**2, maxlength=self.classes**2, dtype=tf.int32)
        self._counts.assign_add(tf.cast(tf.reshape(found, (self.classes, self.classes)), tf.float64))

    def result(self) -> tf.Tensor:
        both = tf.linalg.diag_part(self._counts)
        either = tf.reduce_sum(self._counts, 0) + tf.reduce_sum(self._counts, 1) - both
        seen = tf.cast(either > 0, tf.float64)
        return tf.reduce_sum(tf.math.divide_no_nan(both, either)) / tf.maximum(tf.reduce_sum(seen), 1.0)

    def reset_state(self) -> None:
        self._counts.assign(tf.zeros_like(self._counts))

    def get_config(self) -> dict[str, Any]:
        own = {"classes": self.classes, "threshold": self.threshold, "ignore": self.ignore}
        return {**super().get_config(), **own}
