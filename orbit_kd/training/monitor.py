"""A loss that is no number ends the training, with a message."""

from __future__ import annotations

import math
from typing import Any

import tf_keras as keras

from orbit_kd.errors import InputError


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises as soon as the training loss is NaN or infinite, naming epoch and step; for any Keras model.

    Reads one scalar a step and no more. A `Distiller` brings its own.

    Raises:
        InputError: from `fit`, at the first step whose loss is not finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self._supports_tf_logs = True  # Keras would otherwise convert every metric at every step
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(logs, f"epoch {self._epoch + 1}, step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(logs, f"epoch {epoch + 1}")

    def _check(self, logs: dict[str, Any] | None, where: str) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise InputError(
                f"The training loss became {loss} in {where}.",
                expected="a finite loss at every step",
                fix="look for NaN or infinite values in the data and labels; else lower the learning rate or set "
                "clipnorm=1.0 in the optimizer",
            )
