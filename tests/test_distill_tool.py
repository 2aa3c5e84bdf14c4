"""tools/distill.py: every kind of student and loss, schedules, resuming, and one message for bad input."""

from __future__ import annotations

import contextlib
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from small_networks import small_resnet
from test_multi_worker import make_place

from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.distillation import LogitsDistillation, Piecewise, job
from orbit_kd.distillation.losses import get_loss
from orbit_kd.distillation.schedules import read_schedule
from orbit_kd.errors import InputError
from orbit_kd.models import networks
from orbit_kd.pipeline import teaching
from orbit_kd.support.stages import Stages
from orbit_kd.training import fit as training


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = make_place(tmp_path_factory.mktemp("distill"))
    from orbit_kd.removal.planning import plan_removal

    for name in ("teacher", "five"):
        plan = plan_removal(keras.models.load_model(folder / f"{name}.keras"), ratio=0.5)
        (folder / f"{name}_plan.json").write_text(plan.to_json())
    (folder / "no_plan.json").write_text("[]")
    return folder


def flags_for(place, output, *flags):
    return [f"--teacher={place}/teacher.keras", f"--data_dir={place}/images", "--validation=0.25", "--batch_size=8",
            "--epochs=2", "--views=2", "--shift=2", f"--output={output}", *flags]  # fmt: skip


def events(folder):
    """tag -> value an epoch, as TensorBoard would read it."""
    found = {}
    for file in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(file)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


def test_plan_losses_schedules_and_tensorboard(place, tmp_path, tool):
    flags = flags_for(place, tmp_path / "s.keras", f"--plan={place}/teacher_plan.json", "--temperature=0:6,2:2",
                      "--losses=logits:1,attention:0.5,hints:0.1", "--alpha=0:0.9,2:0.5",
                      f"--tensorboard={tmp_path}/logs")  # fmt: skip
    result = tool("distill", *flags)
    assert result.returncode == 0 and "validation accuracy" in result.stdout, result.stderr
    assert "test accuracy" not in result.stdout
    student = keras.models.load_model(tmp_path / "s.keras", compile=False)
    assert student.get_layer("conv").filters == 4 and "hint" not in " ".join(w.name for w in student.weights)
    log = json.loads((tmp_path / "s.history.json").read_text())
    assert {"task_loss", "logits_distillation_loss", "attention_transfer_loss", "feature_hints_loss"} <= set(log)
    assert events(tmp_path / "logs/train")["epoch_loss"] == pytest.approx(log["loss"])
    assert events(tmp_path / "logs/validation")["epoch_accuracy"] == pytest.approx(log["val_accuracy"])
    alpha = (0.9, 0.7)
    for epoch in range(2):
        terms = log["logits_distillation_loss"][epoch] + 0.5 * log["attention_transfer_loss"][epoch]
        terms += 0.1 * log["feature_hints_loss"][epoch]
        expected = (1 - alpha[epoch]) * log["task_loss"][epoch] + alpha[epoch] * terms
        assert log["loss"][epoch] == pytest.approx(expected, rel=1e-4)


def test_interrupted_run_goes_on_to_the_same_figures_and_a_changed_one_starts_anew(
    place, tmp_path, tool, monkeypatch
):  # fmt: skip
    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    flags = [f"--student={place}/student.keras", "--epochs=3", "--test"]
    alone = tool("distill", *flags_for(place, tmp_path / "alone.keras", *flags))
    assert alone.returncode == 0 and "test accuracy" in alone.stdout, alone.stderr
    with monkeypatch.context() as patch:
        patch.setattr(training.Progress, "on_epoch_end", stop)
        result = tool("distill", *flags_for(place, tmp_path / "cut.keras", *flags))
    assert "the same command goes on" in result.stderr and not (tmp_path / "cut.keras").exists()
    result = tool("distill", *flags_for(place, tmp_path / "cut.keras", *flags))
    assert result.returncode == 0 and "lessons" not in result.stderr, result.stderr  # the teacher's work was kept
    histories = [json.loads((tmp_path / f"{name}.history.json").read_text()) for name in ("alone", "cut")]
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, rel=1e-5), name

    again = tool("distill", *flags_for(place, tmp_path / "cut.keras", *flags))  # it has ended: nothing is trained
    assert again.stdout == result.stdout and "training" not in again.stderr

    tool("distill", *flags_for(place, tmp_path / "cut.keras", *flags, "--alpha=0.1"))
    assert json.loads((tmp_path / "cut.history.json").read_text())["loss"][0] != histories[0]["loss"][0]


def test_label_free_with_fresh_augmentation_and_a_new_network(place, tmp_path, tool):
    flags = flags_for(place, tmp_path / "s.keras", "--network=small_resnet", "--width=0.25", "--label_free",
                      "--views=0", "--epochs=1", "--losses=decoupled", "--strategy=mirrored")  # fmt: skip
    with networks.networks.temporary("small_resnet", small_resnet):
        result = tool("distill", *flags)
    assert result.returncode == 0 and "validation accuracy" in result.stdout, result.stderr
    log = json.loads((tmp_path / "s.history.json").read_text())
    assert "task_loss" not in log and log["loss"] == pytest.approx(log["decoupled_distillation_loss"])


BAD = {
    "unknown loss": (["--losses=logits:1,magic:2"], "Unknown distillation loss 'magic'"),
    "weight of a loss": (["--losses=logits:much"], "no weight"),
    "negative weight": (["--losses=logits:-1"], "weight=-1.0"),
    "alpha": (["--alpha=2"], "alpha=2.0"),
    "schedule": (["--alpha=0:0.9,x"], "no schedule"),
    "schedule out of order": (["--temperature=5:1,0:2"], "not in order"),
    "class count": (["--student={p}/five.keras"], "5 outputs"),
    "class count without labels": (["--student={p}/five.keras", "--label_free"], "differ"),
    "missing teacher": (["--teacher={p}/none.keras"], "none.keras"),
    "no teacher": (["--teacher="], "--teacher is missing"),
    "missing student": (["--student={p}/none.keras"], "none.keras"),
    "no student": (["--student="], "not clear"),
    "two students": (["--network=resnet20"], "not clear"),
    "missing plan": (["--student=", "--plan={p}/none.json"], "none.json"),
    "plan of another network": (["--student=", "--plan={p}/five_plan.json"], "plan"),
    "no plan": (["--student=", "--plan={p}/no_plan.json"], "no removal plan"),
    "strategy": (["--strategy=magic"], "Unknown strategy 'magic'"),
    "no TF_CONFIG": (["--strategy=multi_worker"], "TF_CONFIG"),
    "output": (["--output=student.h5"], ".keras"),
    "unwritable output": (["--output=/proc/nowhere/s.keras"], "/proc/nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_nothing(case, place, tmp_path, tool, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    flags, said = BAD[case]
    flags = flags_for(place, tmp_path / "s.keras", f"--student={place}/student.keras",
                      *[f.format(p=place) for f in flags])  # fmt: skip
    result = tool("distill", *flags)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and said in result.stderr
    assert "expected:" in result.stderr and "to do:" in result.stderr
    assert not list(tmp_path.iterdir())


def test_losses_and_schedules_are_read_from_text():
    loss = get_loss("decoupled:0.5", temperature=3.0)
    assert (loss.weight, loss.temperature.value) == (0.5, 3.0)
    assert get_loss("attention", temperature=3.0).weight == 1.0  # it has no temperature
    assert read_schedule("0.8") == 0.8 and read_schedule("0:1,4:0") == Piecewise(((0, 1), (4, 0)))
    for text in ("", "high", "0:1:2", "0:1,", "5:1,0:2"):
        with pytest.raises(InputError):
            read_schedule(text)


def test_every_argument_runs_those_stages_again_that_use_it(tmp_path, monkeypatch):
    """Of data of one's own, too, which have no fingerprint."""
    ran = []

    class Seen(Stages):
        @contextlib.contextmanager
        def stage(self, name, **settings):
            with super().stage(name, **settings) as (folder, done):
                ran.extend([] if done else [name])
                yield folder, done

    lessons = SimpleNamespace(steps=lambda size: 1, nbytes=0, views=1)
    monkeypatch.setattr(teaching, "Stages", Seen)
    monkeypatch.setattr(teaching, "save_model", lambda *_: None)
    monkeypatch.setattr(job, "cache_teacher", lambda *_, **__: lessons)
    monkeypatch.setattr(job, "fit", lambda *_, **__: {})

    def network(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2, name="logits")])

    class Pictures(Data):
        def views(self, k, **_):
            return self.train

    x, y = np.arange(24, dtype="float32").reshape(6, 2, 2, 1), np.arange(6) % 2

    def data(labels):
        return Pictures((x, labels), (x, y), (x, y))

    one, two, three = network(1), network(2), network(3)
    base = {
        "student": one, "teacher": two, "data": data(y), "losses": [LogitsDistillation(2.0)], "alpha": 0.5, "seed": 0,
        "label_free": False, "epochs": 2, "learning_rate": 0.1, "batch_size": 4, "views": 2, "augment": None,
    }  # fmt: skip
    both, last = ["lessons", "training"], ["training"]
    changes = {
        "student": (three, both), "teacher": (three, both), "data": (data(1 - y), both), "seed": (1, both),
        "views": (3, both), "augment": (Augment(shift=1), both), "losses": ([LogitsDistillation(3.0)], last),
        "alpha": (0.6, last), "label_free": (True, last), "epochs": (3, last), "learning_rate": (0.2, last),
        "batch_size": (2, last),
    }  # fmt: skip
    named = set(inspect.signature(teaching.teach).parameters)
    # of the task counts what is found, not how it was named: two networks and their labels fit no second one
    assert named - {"path", "strategy", "tensorboard", "task"} == set(base) == set(changes)

    def go(folder, **changed):
        ran.clear()
        how = base | changed
        teaching.teach(how.pop("student"), how.pop("teacher"), path=folder / "s.keras", **how)
        return list(ran)

    assert go(tmp_path) == both and go(tmp_path) == []
    for name, (value, again) in changes.items():
        assert (name, go(tmp_path, **{name: value})) == (name, again)
        assert go(tmp_path) == again
