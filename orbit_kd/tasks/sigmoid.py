"""What tasks share whose outputs say yes or no: sigmoids, or the logits before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orbit_kd.tasks.network import head_type, heads

if TYPE_CHECKING:
    import tf_keras as keras


def is_probability(model: keras.Model) -> bool:
    """Whether the output is behind a sigmoid; a logit otherwise."""
    return head_type(heads(model)[0]).kind == "labels"


def threshold_of(model: keras.Model) -> float:
    """The output from which on the answer is yes: 0.5 of a probability, 0 of a logit."""
    return 0.5 if is_probability(model) else 0.0


def binary_loss(model: keras.Model, *, reduction: str = "auto") -> keras.losses.Loss:
    """The cross-entropy that fits the output."""
    import tf_keras as keras

    return keras.losses.BinaryCrossentropy(from_logits=not is_probability(model), reduction=reduction)


def binary_accuracy(threshold: float) -> Any:
    """Share of right answers, for Keras."""
    import tf_keras as keras

    return keras.metrics.BinaryAccuracy(name="accuracy", threshold=threshold)
