"""A killed training goes on where its last whole epoch ended, to the same figures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest
from orbit_kd.training.workers import common_to_workers, index_and_count

_STATE = "state.json"


class Resume(keras.callbacks.Callback):
    """Saves model, optimizer, callbacks and history after each epoch, and restores them when the same call runs again.

    Keras' BackupAndRestore leaves out what makes a resumed run differ: the state of other callbacks (patience, best
    value and best weights of EarlyStopping, wait of ReduceLROnPlateau), the history, and the random numbers of dropout.
    Here dropout and Keras' other random layers draw from (seed, epoch, step), whatever their own seed. So with data
    whose order is such a function too (a `TeacherCache`, or a data set in fixed order) and deterministic ops on a CPU,
    a killed run ends with the very figures of one left alone.

    In `Distiller.fit` the other callbacks are found by themselves; in plain `fit` name those with state in `callbacks`
    and put Resume last.

    With several workers make it in `strategy.scope()`: each keeps its states in a folder `worker-<index>` of its own,
    the last two, and all go on from the newest epoch that every one of them has.

    Args:
        path: folder for the state; deleted by nobody, and a finished run that is called again trains no further.
        seed: of the random layers.
        callbacks: whose state is part of the run.

    Raises:
        InputError: from `fit`: an unwritable folder, a state that another model wrote, or several workers and no scope.

    Example:
        >>> stop = keras.callbacks.EarlyStopping(patience=3)
        >>> model.fit(data, epochs=30, callbacks=[stop, okd.Resume("out/run1", callbacks=[stop])])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seed: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        self._strategy = tf.distribute.get_strategy()
        worker, self._workers = index_and_count(self._strategy)
        self.path = Path(path) / f"worker-{worker}" if self._workers > 1 else Path(path)
        self.seed, self.callbacks = int(seed), list(callbacks)
        self._supports_tf_logs = True
        self._history: dict[str, list[float]] = {}
        self._epochs: list[int] = []
        self._generators: list[tf.random.Generator] = []
        self._replaced: list[tuple[Any, Any]] = []
        self._fresh: list[dict[str, Any]] = []

    def initial_epoch(self, otherwise: int = 0) -> int:
        """The epoch that `fit` will start with, counted from 0."""
        newest = self._newest()
        return otherwise if newest is None else int(_read(newest)["epoch"]) + 1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if index_and_count(self.model.distribute_strategy)[1] != self._workers:
            raise InputError(
                "Resume was made outside the strategy of the model.",
                expected="with several workers, a Resume that knows of the others",
                fix="make it inside `with strategy.scope():`, before `fit`",
            )
        self._own_randomness()
        self._fresh = [_plain_state(c) for c in self.callbacks]
        self._history, self._epochs = {}, []
        newest = self._newest()
        state = None if newest is None else _read(newest)
        start = None
        if newest is not None and state is not None:
            self._restore(newest, state)
            # a run that was stopped early has ended: there is no epoch left to begin
            start = self.params["epochs"] if state["stopped"] else state["epoch"] + 1
        # Keras asks this of BackupAndRestore after this hook, and begins with that epoch
        self.model._training_state = _Start(start)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for number, generator in enumerate(self._generators):
            generator.reset_from_seed(_mix(self.seed, epoch, number))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for key, value in (logs or {}).items():
            self._history.setdefault(key, []).append(float(value))
        self._epochs.append(epoch)
        self._save(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.model._training_state = None
        for layer, generator in self._replaced:
            layer.__dict__["_random_generator"] = generator
        self.model.history.history = {key: list(values) for key, values in self._history.items()}
        self.model.history.epoch = list(self._epochs)

    def _own_randomness(self) -> None:
        """Gives each random layer of Keras a generator whose state can be set; its own is put back afterwards."""
        self._generators, self._replaced = [], []
        with self.model.distribute_strategy.scope():
            for layer in self.model.submodules:
                former: Any = getattr(layer, "_random_generator", None)
                if isinstance(layer, keras.layers.Layer) and hasattr(former, "_maybe_init"):
                    ours = type(former)(self.seed, rng_type="stateful")
                    ours._maybe_init()
                    layer.__dict__["_random_generator"] = ours  # past Keras' tracking: it belongs to no checkpoint
                    self._generators.append(ours._generator)
                    self._replaced.append((layer, former))
        if self._generators:  # what an earlier `fit` compiled draws from the former ones
            self.model.make_train_function(force=True)

    def _newest(self) -> Path | None:
        """The newest state that all workers have."""
        folders = {int(p.name.removeprefix("epoch-")): p for p in self.path.glob("epoch-*") if (p / _STATE).is_file()}
        shared = common_to_workers(self._strategy, sorted(folders)[-2:] if self._workers > 1 else folders)
        return folders[max(shared)] if shared else None

    def _save(self, epoch: int) -> None:
        final = self.path / f"epoch-{epoch + 1:06d}"
        scratch = self.path / f".writing-{os.getpid()}"
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            self._checkpoint().write(str(scratch / "model"))
            arrays: dict[str, np.ndarray] = {}
            state = {
                "epoch": epoch,
                "stopped": bool(self.model.stop_training),
                "history": self._history,
                "epochs": self._epochs,
                "weights": _signature(self.model),
                "callbacks": [self._state_of(i, arrays) for i in range(len(self.callbacks))],
            }
            np.savez(scratch / "arrays.npz", **arrays)  # type: ignore[arg-type]
            (scratch / _STATE).write_text(json.dumps(state))
            # workers are at most one epoch apart when one is killed: with the former state they find a common one
            keep = {final, self.path / f"epoch-{epoch:06d}"} if self._workers > 1 else {final}
            former = [p for p in self.path.glob("epoch-*") if p not in keep]
            shutil.rmtree(final, ignore_errors=True)
            os.replace(scratch, final)
        except OSError as error:
            raise InputError(
                f"The training state cannot be written to {str(self.path)!r}: {error.strerror}.",
                expected="a folder that can be written, with room for model and optimizer",
                fix="give Resume another path; the states of earlier epochs are untouched",
            ) from error
        for folder in former:
            shutil.rmtree(folder, ignore_errors=True)

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        if state["weights"] != _signature(self.model):
            raise InputError(
                f"The training state in {str(self.path)!r} is that of another model.",
                expected="the state of a model with the same weights' shapes",
                fix="give Resume another path, or delete this folder to train from the start",
            )
        optimizer = self.model.optimizer
        if hasattr(optimizer, "build"):  # or its slots would be made after the restore, and zero
            optimizer.build(self.model.trainable_variables)
        self._checkpoint().read(str(folder / "model")).expect_partial()
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            for callback, saved in zip(self.callbacks, state["callbacks"], strict=False):
                if saved["type"] == type(callback).__name__:
                    vars(callback).update(saved["plain"])
                    for name, keys in saved["arrays"].items():
                        values = [arrays[key] for key in keys]
                        setattr(callback, name, values if saved["lists"][name] else values[0])
        self._history = {key: list(values) for key, values in state["history"].items()}
        self._epochs = list(state["epochs"])

    def _state_of(self, index: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """What training has changed in a callback; its arrays go to `arrays`. Settings stay those of the caller."""
        callback, fresh = self.callbacks[index], self._fresh[index]
        plain = {name: value for name, value in _plain_state(callback).items() if fresh.get(name, callback) != value}
        keys: dict[str, list[str]] = {}
        lists: dict[str, bool] = {}
        for name, value in vars(callback).items():
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            if values and all(isinstance(v, np.ndarray) for v in values):
                keys[name] = [f"{index}/{name}/{i}" for i in range(len(values))]
                lists[name] = not isinstance(value, np.ndarray)
                arrays.update(zip(keys[name], values, strict=True))
        return {"type": type(callback).__name__, "plain": plain, "arrays": keys, "lists": lists}

    def _checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)


class _Start:
    """Answers what Keras asks of a backup: (first epoch, first step)."""

    def __init__(self, epoch: int | None) -> None:
        self._epoch = epoch

    def maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int, mode: Any = None
    ) -> tuple[int, int]:
        return (initial_epoch if self._epoch is None else self._epoch), 0


def _plain_state(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Attributes that JSON can hold."""
    found = {}
    for name, value in vars(callback).items():
        value = value.item() if isinstance(value, np.generic) else value
        if name != "params" and (value is None or isinstance(value, (bool, int, float, str))):
            found[name] = value
    return found


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _STATE).read_text())


def _signature(model: keras.Model) -> str:
    shapes = [(tuple(w.shape), tf.as_dtype(w.dtype).name) for w in model.weights]
    return digest(shapes)


def _mix(seed: int, epoch: int, number: int) -> int:
    """One 63-bit seed from three numbers."""
    words = np.random.SeedSequence([seed, epoch, number]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
