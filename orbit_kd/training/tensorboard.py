"""Curves for TensorBoard, written without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras


class TensorBoardLogs(keras.callbacks.Callback):
    """Writes the metrics of each epoch, and the learning rate, as event files: view them with `tensorboard --logdir`.

    Keras' own callback needs the tensorboard package in the training environment; the files themselves do not.
    Training metrics go to `train/`, those of the validation to `validation/`, as Keras does it.

    Args:
        path: folder of the event files. A resumed run adds to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._writers = {name: tf.summary.create_file_writer(str(self.path / name)) for name in ("train", "validation")}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = {"learning_rate": float(keras.backend.get_value(self.model.optimizer.learning_rate)), **(logs or {})}
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        kind = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
        for name, value in values.items():
            part = "validation" if name.startswith("val_") else "train"
            with self._writers[part].as_default():
                tag = f"epoch_{name.removeprefix('val_')}"
                tf.summary.write(tag, tf.constant(float(value), tf.float32), step=epoch, metadata=kind)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
