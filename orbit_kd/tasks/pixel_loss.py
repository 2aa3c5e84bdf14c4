"""The loss of a segmentation network: cross-entropy of the pixels that count."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.heads import logits_of


@keras.saving.register_keras_serializable("orbit_kd")
class PixelLoss(keras.losses.Loss):
    """Mean cross-entropy over the pixels of each image whose label is not `ignore`: (n,).

    A class of its own, as Keras takes a last axis of 1 away from what it hands to a plain function.

    Args:
        head: the last activation of the output, see `orbit_kd.models.heads`.
        ignore: the label of pixels that do not count.
        name: of the loss.
    """

    def __init__(self, head: str, *, ignore: int, name: str = "pixel_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.head, self.ignore = head, ignore

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        logits = logits_of(y_pred, [self.head])[0]
        y = tf.reshape(tf.cast(y_true, tf.int32), tf.shape(logits)[:3])
        counts = tf.cast(y != self.ignore, tf.float32)
        y = tf.where(y == self.ignore, 0, y)
        if logits.shape[-1] == 1:
            values = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(y, tf.float32), logits=logits[..., 0])
        else:
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        return tf.reduce_sum(values * counts, (1, 2)) / tf.maximum(tf.reduce_sum(counts, (1, 2)), 1.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "head": self.head, "ignore": self.ignore}
