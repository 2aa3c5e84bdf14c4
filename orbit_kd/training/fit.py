"""Training of teachers and students as the pipeline does it: Adam, a cosine, progress, resumable."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets import Data, preprocessing
from orbit_kd.datasets.labels import are_rows
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.models.heads import heads
from orbit_kd.models.label_losses import check_classes, cross_entropy
from orbit_kd.models.saving import save_model
from orbit_kd.support.files import write_file
from orbit_kd.support.progress import duration
from orbit_kd.training.monitor import StopOnNonFinite
from orbit_kd.training.resume import Resume
from orbit_kd.training.variables import create_variables

log = logging.getLogger("orbit_kd")


def classification_loss(model: keras.Model, data: Data) -> keras.losses.Loss:
    """Cross-entropy that fits the model's output (logits or softmax) and the labels (integers or one-hot)."""
    return cross_entropy(model, one_hot=are_rows(data.val.element_spec[1].shape))


class Progress(keras.callbacks.Callback):
    """Logs a line at most every few seconds: epoch, loss, validation accuracy, time left."""

    def __init__(self, label: str, *, every: float = 10.0) -> None:
        super().__init__()
        self.label, self.every = label, every
        self._supports_tf_logs = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # a dict, which `Resume` does not put back: a clock goes on in no other process
        self._now = {"shown": time.monotonic()}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if "first" not in self._now:
            self._now |= {"first": epoch, "start": time.monotonic()}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        now, total = time.monotonic(), self.params["epochs"]
        if now - self._now["shown"] < self.every and epoch + 1 < total:
            return
        self._now["shown"] = now
        left = (now - self._now["start"]) / (epoch + 1 - self._now["first"]) * (total - epoch - 1)
        said = {k: float(v) for k, v in (logs or {}).items() if k in ("loss", "val_accuracy")}
        log.info(
            "%s: epoch %d/%d, %s, %s left",
            self.label,
            epoch + 1,
            total,
            ", ".join(f"{k} {v:.4f}" for k, v in said.items()),
            duration(left),
        )


def fit(
    model: keras.Model,
    batches: Callable[[int], Any],
    *,
    steps: int,
    epochs: int,
    val: tf.data.Dataset,
    loss: keras.losses.Loss | None,
    learning_rate: float,
    warmup: float = 0.0,
    seed: int,
    folder: Path,
    label: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
    """Trains a model (or a Distiller) with Adam and a cosine rate; goes on where a killed run in `folder` stopped.

    Args:
        model: compiled here, in the scope of its own strategy.
        batches: first epoch -> endless batches from that epoch on, as `fit` takes them.
        steps: steps an epoch.
        epochs: in all.
        val: validation batches.
        loss: of the task; None for a Distiller that learns from the teacher alone.
        learning_rate: at the start; 0 at the end.
        warmup: part of the steps in which the rate rises from 0 first.
        seed: of dropout.
        folder: for the state of the training.
        label: what is trained, for the progress lines.
        callbacks: more of them.

    Returns:
        One list of values a metric, one value an epoch.

    Raises:
        InputError: a loss that is not finite.
    """
    rising = int(warmup * epochs * steps)
    rate = {"initial_learning_rate": 0.0, "warmup_target": learning_rate} if rising else {
        "initial_learning_rate": learning_rate}  # fmt: skip
    schedule = keras.optimizers.schedules.CosineDecay(decay_steps=epochs * steps - rising, warmup_steps=rising, **rate)
    with model.distribute_strategy.scope():
        model.compile(optimizer=keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"])
        resume = Resume(folder / "training", seed=seed, callbacks=callbacks)
    create_variables(model, val, outputs=getattr(model, "outputs", None))
    history = model.fit(
        batches(resume.initial_epoch()),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=val,
        callbacks=[StopOnNonFinite(), Progress(label), *callbacks, resume],
        verbose=0,
    )
    return {key: [float(v) for v in values] for key, values in history.history.items()}


def train(
    model: keras.Model,
    data: Data,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    augment: Any = None,
    seed: int = 0,
    path: str | os.PathLike[str],
) -> keras.Model:
    """Trains a teacher on labels and saves it; a killed run goes on, a finished one is not run again.

    Args:
        model: a new network.
        data: from `datasets.load`.
        epochs: passes over the training split.
        learning_rate: of Adam at the start; it falls to zero on a cosine.
        batch_size: images a step.
        augment: an `Augment`, or None.
        seed: of order, augmentation and dropout.
        path: .keras file to write; the state of the training lies beside it while it runs, the history after it.

    Returns:
        The trained model.

    Raises:
        InputError: data that do not fit the model, a loss that is not finite, an unwritable path.
    """
    path = Path(path)
    check_fit(model, data)
    history = fit(
        model,
        lambda start: data.epochs(seed=seed, augment=augment, start=start, batch_size=batch_size),
        steps=data.steps(batch_size),
        epochs=epochs,
        val=data.val,
        loss=classification_loss(model, data),
        learning_rate=learning_rate,
        seed=seed,
        folder=path.with_suffix(".state"),
        label=f"training {model.name}",
    )
    save_model(model, path)
    write_file(path.with_suffix(".history.json"), json.dumps(history))
    return model


def check_fit(model: keras.Model, data: Data, *, labels: bool = True) -> None:
    """Refuses data that do not fit a classifier: image size, channels, number of classes (unless `labels` is False).

    Also splits that lack classes, see `Data.check_classes`.

    Raises:
        InputError: with the flag that resolves it.
    """

    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.output_shape) != 2:
        raise InputError(
            f"Model {model.name!r} has {len(model.inputs)} inputs and outputs of shape {model.output_shape}.",
            expected="one image in, one vector of class scores out",
            fix="compress another kind of network with the functions that `compress` is made of (see README)",
        )
    if model.output_shape[-1] == 1:
        raise InputError(
            f"Model {model.name!r} has one output.",
            expected="one output a class, two or more",
            fix="put a Dense(2, 'softmax') with kernel [0, w], bias [0, b] in place of Dense(1, 'sigmoid') with w, b",
        )
    if check_classes(model) == "labels":
        raise InputError(
            f"Model {model.name!r} ends in {heads(model)[0]}: independent labels, each yes or no.",
            expected="a classifier: one class an image, a softmax over the classes or the scores before it",
            fix="if one class an image is right, give the last layer activation=None in place of the sigmoid: the "
            "largest output stays the same; else use the functions that `compress` is made of (see README)",
        )
    shape = data.shape
    if None not in shape:
        preprocessing.check(Preprocess(), [int(n) for n in shape if n], model.input_shape[1:])
    classes = model.output_shape[-1]
    if not labels:
        return
    found = len(data.class_names) or 1 + max(_largest_label(data, split) for split in ("train", "val", "test"))
    if found > classes or (data.class_names and found != classes):
        raise InputError(
            f"The data has {found} classes and model {model.name!r} has {classes} outputs.",
            expected="one output a class",
            fix="use the data set the model was trained on, or train a teacher for this one (tools/train.py); "
            "labels that begin at 1: .map(lambda x, y: (x, y - 1))",
        )
    data.check_classes()


def _largest_label(data: Data, split: str) -> int:
    """Of class numbers, or rows (soft ones too, in training); -1 for an empty data set."""
    told = data.contents[split]
    if told.problem is not None:
        raise told.problem
    return told.width - 1 if told.width else max(told.classes or (), default=-1)
