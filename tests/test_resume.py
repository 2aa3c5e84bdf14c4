"""Resume: a killed training ends with the figures of one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation import Resume
from orbit_kd.errors import InputError
from orbit_kd.training import fit as training
from orbit_kd.training.fit import Progress

L = keras.layers
EPOCHS = 6


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 3, 32)


def model(*, width=8, optimizer=None):
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [
            L.Input((6,)),
            L.GaussianNoise(0.1),
            L.Dense(width, activation="relu"),
            L.BatchNormalization(),
            L.Dropout(0.3),
            L.Dense(3),
        ]
    )
    net.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return net


class Killed(Exception):
    pass


class KillAfter(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed


def fit(net, path, *, callbacks=(), kill=None, epochs=EPOCHS, seed=0):
    x, y = arrays()
    callbacks = list(callbacks)
    every = [*callbacks, *([KillAfter(*kill)] if kill else []), Resume(path, seed=seed, callbacks=callbacks)]
    return net.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, validation_data=arrays(1), callbacks=every, verbose=0
    )


def test_killed_run_ends_with_the_figures_of_one_left_alone(tmp_path):
    whole = model()
    expected = fit(whole, tmp_path / "whole").history
    for kill in ((2, 1), (4, 3)):
        with pytest.raises(Killed):
            fit(model(), tmp_path / "killed", kill=kill)
    keras.utils.set_random_seed(99)  # another process has another random state
    last = model()
    history = fit(last, tmp_path / "killed")
    assert history.history == expected and history.epoch == list(range(EPOCHS))
    for a, b in zip(whole.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_is_a_function_of_the_seed_and_differs_between_epochs(tmp_path):
    still = lambda: model(optimizer=keras.optimizers.SGD(0.0))  # noqa: E731
    first = fit(still(), tmp_path / "a", epochs=3, seed=1).history["loss"]
    again = fit(still(), tmp_path / "b", epochs=3, seed=1).history["loss"]
    other = fit(still(), tmp_path / "c", epochs=3, seed=2).history["loss"]
    assert first == again and first != other and len(set(first)) == 3


def test_second_fit_of_one_model_draws_from_the_seed_too(tmp_path):
    net = model(optimizer=keras.optimizers.SGD(0.0))
    net.layers[2].trainable = False  # nothing but the moving averages changes, and training does not read them
    one = fit(net, tmp_path / "a", epochs=2).history["loss"]
    two = fit(net, tmp_path / "b", epochs=2).history["loss"]
    assert one == two


def test_model_is_left_as_it_was(tmp_path):
    net = model()
    before = json.dumps(net.get_config(), default=str)
    generators = [layer._random_generator for layer in net.layers if hasattr(layer, "_random_generator")]
    fit(net, tmp_path / "a", epochs=1)
    assert json.dumps(net.get_config(), default=str) == before
    assert generators == [layer._random_generator for layer in net.layers if hasattr(layer, "_random_generator")]
    x, y = arrays()
    assert len(net.fit(x, y, epochs=3, verbose=0).history["loss"]) == 3  # a plain fit starts at 0 again


def stateful():
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=3, min_delta=0.05, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.05),
    ]


def test_callbacks_continue_with_their_patience_best_and_best_weights(tmp_path):
    whole = model()
    callbacks = stateful()
    expected = fit(whole, tmp_path / "whole", callbacks=callbacks, epochs=20).history
    stopped = len(expected["loss"])
    assert 3 < stopped < 20 and expected["lr"][-1] < expected["lr"][0]
    for kill in ((stopped - 2, 0), (stopped - 1, 2)):
        with pytest.raises(Killed):
            fit(model(), tmp_path / "killed", callbacks=stateful(), kill=kill, epochs=20)
    last, again = model(), stateful()
    assert fit(last, tmp_path / "killed", callbacks=again, epochs=20).history == expected
    assert (again[0].best, again[0].best_epoch) == (callbacks[0].best, callbacks[0].best_epoch)
    for a, b in zip(whole.get_weights(), last.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_run_that_has_ended_is_not_continued_but_gives_its_history_and_weights(tmp_path):
    ended = model()
    expected = fit(ended, tmp_path / "a", callbacks=stateful(), epochs=20).history
    net = model()
    assert fit(net, tmp_path / "a", callbacks=stateful(), epochs=20).history == expected
    np.testing.assert_array_equal(ended.get_weights()[0], net.get_weights()[0])


def test_more_epochs_go_on(tmp_path):
    expected = fit(model(), tmp_path / "a").history
    fit(model(), tmp_path / "b", epochs=2)
    assert fit(model(), tmp_path / "b").history == expected


def test_settings_of_callbacks_are_those_of_the_caller(tmp_path):
    fit(model(), tmp_path / "a", callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=3)], epochs=2)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=7)
    fit(model(), tmp_path / "a", callbacks=[stop], epochs=3)
    assert stop.patience == 7


def test_time_left_counts_this_process_alone(tmp_path, caplog, monkeypatch):
    """After a restart of the machine its clock begins anew, and the epochs of the killed run took none of this time."""
    clock = iter(range(1_000_000, 2_000_000, 10))
    monkeypatch.setattr("orbit_kd.training.fit.time", SimpleNamespace(monotonic=lambda: next(clock)))

    def fit(epochs):
        progress = Progress("run")
        resume = Resume(tmp_path, callbacks=[progress])
        model().fit(*arrays(), epochs=epochs, verbose=0, callbacks=[progress, resume])

    fit(4)
    clock = iter(range(0, 1_000_000, 10))
    caplog.clear()
    with caplog.at_level("INFO", "orbit_kd"):
        fit(10)
    # begun at 10 s, one reading of the clock an epoch: epoch 5 ends at 20 s, and five are to come
    assert [r.getMessage().split(", ")[-1] for r in caplog.records] == [f"{n}s left" for n in (50, 40, 30, 20, 10, 0)]


def test_only_the_newest_state_is_kept_and_a_half_written_one_is_ignored(tmp_path):
    fit(model(), tmp_path, epochs=3)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-000003"]
    (tmp_path / "epoch-000009").mkdir()  # no state.json in it
    (tmp_path / ".writing-1").mkdir()
    assert Resume(tmp_path).initial_epoch() == 3
    assert Resume(tmp_path / "none").initial_epoch(2) == 2


def test_state_of_another_model_and_unwritable_folder_are_told(tmp_path):
    fit(model(), tmp_path / "a", epochs=1)
    with pytest.raises(InputError, match="another model"):
        fit(model(width=5), tmp_path / "a")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        fit(model(), tmp_path / "file")


def test_the_learning_rate_falls_to_zero_on_a_cosine_over_all_epochs(tmp_path):
    x, y = arrays()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            optimizer = self.model.optimizer
            rates.append(float(optimizer._learning_rate(optimizer.iterations)))

    how = {"val": batches, "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "seed": 0}
    history = training.fit(
        model(),
        lambda start: batches.repeat(),
        steps=4,
        epochs=2,
        learning_rate=0.2,
        folder=tmp_path,
        label="run",
        callbacks=[Rates()],
        **how,
    )
    assert rates == pytest.approx([0.1 * (1 + np.cos(np.pi * step / 8)) for step in range(8)], abs=1e-6)
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"} and len(history["loss"]) == 2


SCRIPT = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf, tf_keras as keras
tf.config.experimental.enable_op_determinism()
keras.utils.set_random_seed(0)
from orbit_kd.distillation import Distiller, FeatureHints, LogitsDistillation, Piecewise, Resume, cache_teacher

L = keras.layers
def net(width, dropout):
    inputs = L.Input((8, 8, 1))
    x = L.Conv2D(width, 3, activation="relu", name="conv")(inputs)
    x = L.Dropout(dropout)(L.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, L.Dense(3, name="head")(L.Flatten()(x)))

rng = np.random.default_rng(0)
x, y = rng.normal(size=(60, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 60)
teacher = net(6, 0.0)
views = [tf.data.Dataset.from_tensor_slices((x + 0.1 * k, y)).batch(16) for k in range(3)]
cache = cache_teacher(teacher, views, path=sys.argv[1] + "/cache", layers=["conv"])
losses = [LogitsDistillation(Piecewise(((0, 8.0), (8, 2.0)))), FeatureHints(match=["conv"], weight=0.5)]
distiller = Distiller(net(4, 0.4), teacher=teacher, losses=losses, alpha=Piecewise(((0, 0.9), (9, 0.5))))
distiller.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
callbacks = [
    keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=0.1),
    keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.02)),
    Resume(sys.argv[1] + "/run"),
]
history = distiller.fit(cache, epochs=10, validation_data=views[0], callbacks=callbacks, verbose=0).history
weights = [w.astype("float64").sum() for w in distiller.get_weights()]
with open(sys.argv[1] + "/result.json", "w") as file:
    json.dump([history, weights], file)
"""


def run(folder: Path, *, kill_after: float | None = None) -> bool:
    """True when the run came to its end."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stderr=subprocess.PIPE)
    if kill_after is not None:
        state = folder / "run"
        start = time.monotonic()
        while not state.exists() and process.poll() is None and time.monotonic() - start < 60:
            time.sleep(0.02)
        time.sleep(kill_after)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()[-2000:]
    return process.returncode == 0


@pytest.mark.slow
def test_distillation_killed_at_random_points_ends_with_the_same_figures(tmp_path):
    assert run(tmp_path / "alone")
    moments = random.Random(0)
    kills = 0
    while not run(tmp_path / "killed", kill_after=moments.uniform(0.0, 0.6) if kills < 4 else None):
        kills += 1
    assert kills >= 3
    alone, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("alone", "killed"))
    assert alone == killed


def test_a_rate_may_rise_before_it_falls(tmp_path):
    """A network that has changed little is thrown far by the first steps of Adam at the whole rate."""
    x, y = arrays()
    val = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    rates = {}
    for warmup in (0.0, 0.25):
        net = model()
        training.fit(
            net, lambda start: val.repeat(), steps=2, epochs=4, val=val, learning_rate=0.01, warmup=warmup, seed=0,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), folder=tmp_path / str(warmup), label="t",
        )  # fmt: skip
        rates[warmup] = [float(net.optimizer._learning_rate(step)) for step in range(9)]
    assert rates[0.0][0] == pytest.approx(0.01) and rates[0.25][0] == 0
    assert rates[0.25][2] == pytest.approx(0.01) and rates[0.25][8] == pytest.approx(rates[0.0][8]) == pytest.approx(0)
