"""The search for the smallest network within an accuracy budget: what it takes, takes back, resumes and refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from oracle import randomize

import orbit_kd as okd
from orbit_kd import automatic, networks
from orbit_kd.errors import InputError
from orbit_kd.model_io import fingerprint
from orbit_kd.search import smallest


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    keras.utils.set_random_seed(2)
    layers = keras.layers
    x = image = keras.Input((16, 16, 1))
    for i, width in enumerate((32, 64, 64)):
        x = layers.Conv2D(width, 3, strides=1 + i % 2, padding="same", activation="relu", name=f"conv{i}")(x)
    x = layers.Dense(48, activation="relu", name="hidden")(layers.Flatten()(layers.MaxPooling2D()(x)))
    return randomize(keras.Model(image, layers.Dense(4, name="logits")(x)))


@pytest.fixture(scope="module")
def val(teacher):
    """Images and the teacher's own answers: the teacher is right on all of them."""
    x = np.random.default_rng(0).uniform(0, 255, (24, 16, 16, 1)).astype("float32")
    return [(x, teacher(x).numpy().argmax(-1))]


class Graded:
    """Stands for training, and remembers what was to be trained."""

    def __init__(self) -> None:
        self.tried: list[tuple[int, int]] = []

    def __call__(self, student: keras.Model, number: int) -> None:
        self.tried.append((number, student.count_params()))


@pytest.fixture
def graded(monkeypatch):
    def make(least: int) -> Graded:
        """From here on a network is good as long as it keeps `least` parameters."""
        monkeypatch.setattr(
            "orbit_kd.search._accuracy", lambda model, batches: 1.0 if model.count_params() >= least else 0.5
        )
        return Graded()

    return make


def test_it_ends_close_above_the_smallest_network_that_is_good_enough(teacher, val, graded):
    least = teacher.count_params() // 40
    retrain = graded(least)
    found = smallest(teacher, retrain, data=val, max_drop=0.01)
    assert least <= found.student.count_params() < 1.4 * least
    assert [n for n, _ in retrain.tried] == list(range(len(found.trials)))
    assert all(t.accepted == (t.params >= least) for t in found.trials)
    assert "taken" in str(found) and "too small" in str(found)


def test_macs_fall_with_the_parameters(teacher, val, graded):
    found = smallest(teacher, graded(0), data=val, max_drop=0.01, min_channels=4)
    before = okd.profile(teacher)
    first = found.trials[0]
    assert first.params <= before.params / 8 and first.macs <= before.macs / 8**0.5


def test_no_group_shrinks_more_in_one_step_than_the_whole_network(teacher, val, graded):
    before = {la.name: la.kernel.shape[-1] for la in teacher.layers if hasattr(la, "kernel") and la.name != "logits"}
    kept = []

    def retrain(student, number):
        kept.append(min(student.get_layer(name).kernel.shape[-1] / width for name, width in before.items()))

    graded(0)
    smallest(teacher, retrain, data=val, max_drop=0.1)
    assert kept[0] >= 1 / 8 - 0.02


def test_the_teacher_stays_and_comes_back_as_a_copy_where_nothing_is_good_enough(teacher, val, graded):
    known = fingerprint(teacher)
    found = smallest(teacher, graded(teacher.count_params()), data=val, max_drop=0.0)
    assert found.student is not teacher and fingerprint(found.student) == known == fingerprint(teacher)
    assert found.trials and not any(t.accepted for t in found.trials)


def test_a_killed_search_goes_on_and_a_finished_one_trains_nothing(teacher, val, graded, tmp_path):
    least = teacher.count_params() // 20
    whole = smallest(teacher, graded(least), data=val, max_drop=0.01)
    retrain, stop = graded(least), 3

    def killed(student, number):
        if number == stop:
            raise KeyboardInterrupt
        retrain(student, number)

    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, killed, data=val, max_drop=0.01, path=tmp_path)
    found = smallest(teacher, retrain, data=val, max_drop=0.01, path=tmp_path)
    assert [n for n, _ in retrain.tried] == list(range(len(whole.trials)))
    assert [t.params for t in found.trials] == [t.params for t in whole.trials]
    again = smallest(teacher, killed, data=val, max_drop=0.01, path=tmp_path)
    assert fingerprint(again.student) == fingerprint(found.student)
    assert len(list(tmp_path.glob("*.keras"))) == 1  # only the last that was taken is kept


def test_another_question_does_not_go_on_from_the_old_answers(teacher, val, graded, tmp_path):
    smallest(teacher, graded(0), data=val, max_drop=0.5, path=tmp_path, seconds=1e9, min_channels=8)
    retrain = graded(teacher.count_params())
    smallest(teacher, retrain, data=val, max_drop=0.1, path=tmp_path, min_channels=8)
    assert retrain.tried[0][0] == 0


def test_no_trial_starts_that_would_end_too_late(teacher, val, graded):
    retrain = graded(0)
    assert smallest(teacher, retrain, data=val, max_drop=0.1, seconds=0.0).trials == () and not retrain.tried


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_an_impossible_drop_is_refused(teacher, val, drop):
    with pytest.raises(InputError, match="max_drop"):
        smallest(teacher, lambda student, number: None, data=val, max_drop=drop)


def test_real_training_finds_a_smaller_network_that_still_answers(tmp_path):
    """Stripes that a small network can tell apart; the student learns from the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=160)
    ramp = np.arange(16)
    stripes = [np.tile(ramp % 4 < 2, (16, 1)), np.tile(ramp % 4 < 2, (16, 1)).T]
    x = (np.stack([stripes[k] for k in labels]) * 120 + rng.normal(64, 20, (160, 16, 16))).astype("float32")[..., None]

    def fit(model: keras.Model, epochs: int) -> None:
        model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x[:120], labels[:120], epochs=epochs, batch_size=16, verbose=0)
        data = okd.Data((x[:120], labels[:120]), (x[120:], labels[120:]), (x[120:], labels[120:]))
        okd.recalibrate_batchnorm(model, data.train)

    keras.utils.set_random_seed(0)
    teacher = networks.build("resnet20", (16, 16, 1), classes=2, width=0.5)
    fit(teacher, 4)
    found = smallest(
        teacher, lambda m, _: fit(m, 3), data=[(x[120:], labels[120:])], max_drop=0.05, seconds=15.0, path=tmp_path
    )
    assert found.student.count_params() < teacher.count_params() / 4
    right = found.student.predict(x[120:], verbose=0).argmax(-1) == labels[120:]
    assert right.mean() >= found.target


def test_a_student_that_is_accurate_and_too_large_for_another_budget_is_refused(teacher):
    recipe = okd.Recipe(max_drop=0.1, keep_params=0.2)
    with pytest.raises(InputError, match=r"within max_drop=0.1 is too large for keep_params=0.2"):
        automatic._check_budgets(teacher, teacher, recipe)
    small = okd.remove_filters(teacher, okd.plan_removal(teacher, keep_params=0.19))
    automatic._check_budgets(small, teacher, recipe)
