"""Training of teachers and students as the pipeline does it: Adam, a cosine, progress, resumable."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.datasets import Data, preprocessing
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.models.saving import save_model
from orbit_kd.models.strided_pointwise import strides_first
from orbit_kd.support.files import write_file
from orbit_kd.support.progress import duration
from orbit_kd.tasks import Task, choose
from orbit_kd.training.monitor import StopOnNonFinite
from orbit_kd.training.resume import Resume
from orbit_kd.training.variables import create_variables

log = logging.getLogger("orbit_kd")


class Progress(keras.callbacks.Callback):
    """Logs a line at most every few seconds: epoch, loss, metrics on validation data, time left."""

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
        shown = {k for k in logs or {} if k == "loss" or (k.startswith("val_") and not k.endswith("loss"))}
        said = {k: float(v) for k, v in (logs or {}).items() if k in shown}
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
    loss: Any,
    metrics: Any = ("accuracy",),
    loss_weights: Mapping[str, float] | None = None,
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
        loss: of the task, as `compile` takes it; None for a Distiller that learns from the teacher alone.
        metrics: to show, as `compile` takes them.
        loss_weights: of several outputs, by name.
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
    about = {} if loss_weights is None or loss is None else {"loss_weights": dict(loss_weights)}
    with model.distribute_strategy.scope():
        model.compile(optimizer=keras.optimizers.Adam(schedule), loss=loss, metrics=_metrics(metrics), **about)
        resume = Resume(folder / "training", seed=seed, callbacks=callbacks)
    create_variables(model, val, outputs=getattr(model, "outputs", None))
    with strides_first(model):
        history = model.fit(
            batches(resume.initial_epoch()),
            steps_per_epoch=steps,
            epochs=epochs,
            validation_data=val,
            callbacks=[StopOnNonFinite(), Progress(label), *callbacks, resume],
            verbose=0,
        )
    return {key: [float(v) for v in values] for key, values in history.history.items()}


def _metrics(given: Any) -> Any:
    return given if isinstance(given, dict) else list(given)


def train(
    model: keras.Model,
    data: Data,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    augment: Any = None,
    task: str | Task = "auto",
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
        task: what the network is for, see `orbit_kd.tasks.choose`.
        seed: of order, augmentation and dropout.
        path: .keras file to write; the state of the training lies beside it while it runs, the history after it.

    Returns:
        The trained model.

    Raises:
        InputError: data that do not fit the model, a loss that is not finite, an unwritable path.
    """
    path = Path(path)
    of = check_fit(model, data, task=task)
    history = fit(
        model,
        lambda start: data.epochs(seed=seed, augment=augment, start=start, batch_size=batch_size),
        steps=data.steps(batch_size),
        epochs=epochs,
        val=data.val,
        loss=of.loss(model, data),
        metrics=of.keras_metrics(model),
        loss_weights=of.weights,
        learning_rate=learning_rate,
        seed=seed,
        folder=path.with_suffix(".state"),
        label=f"training {model.name}",
    )
    save_model(model, path)
    write_file(path.with_suffix(".history.json"), json.dumps(history))
    return model


def check_fit(
    model: keras.Model, data: Data, *, task: str | Task = "auto", labels: bool = True
) -> Task:  # fmt: skip
    """Refuses data that do not fit a network: sizes, channels, labels of another task (unless `labels` is False).

    Also splits that lack classes, see `Data.check_classes`.

    Returns:
        The task.

    Raises:
        InputError: with the flag that resolves it.
    """
    of = choose(model, data, task=task)
    if len(model.inputs) == 1 and not isinstance(data.shape, (dict, list)) and None not in data.shape:
        preprocessing.check(Preprocess(), [int(n) for n in data.shape if n], model.input_shape[1:])
    if labels:
        of.check_data(data)
    return of
