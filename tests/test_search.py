"""The search for the smallest network within an accuracy budget: what it takes, takes back, resumes and refuses."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from oracle import randomize
from small_networks import small_resnet

import orbit_kd as okd
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models.saving import fingerprint
from orbit_kd.pipeline import decisions
from orbit_kd.pipeline.retraining import Retraining
from orbit_kd.removal import budgets, importance
from orbit_kd.search.smallest import smallest
from orbit_kd.support.stages import Stages


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
    """Images and the teacher's own answers, all of one class but the first: the teacher is right on the others."""
    x = np.random.default_rng(0).uniform(0, 255, (24, 16, 16, 1)).astype("float32")
    labels = teacher(x).numpy().argmax(-1)
    labels[0] = (labels[0] + 1) % 4
    return [(x, labels)]


class Graded:
    """Stands for training, and remembers what was to be trained: parameters and epochs."""

    def __init__(self) -> None:
        self.tried: list[tuple[int, int]] = []

    def __call__(self, student: keras.Model, epochs: int) -> None:
        self.tried.append((student.count_params(), epochs))


@pytest.fixture
def graded(monkeypatch):
    def make(least: int) -> Graded:
        """From here on a network is good as long as it keeps `least` parameters."""
        monkeypatch.setattr(
            "orbit_kd.search.smallest.accuracy_of", lambda model, batches: 1.0 if model.count_params() >= least else 0.5
        )
        return Graded()

    return make


def test_it_ends_close_above_the_smallest_network_that_is_good_enough(teacher, val, graded):
    least = teacher.count_params() // 40
    retrain = graded(least)
    found = smallest(teacher, retrain, data=val, max_drop=0.01)
    assert least <= found.student.count_params() < 1.4 * least
    assert retrain.tried == [(t.params, t.epochs) for t in found.trials]
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

    def retrain(student, epochs):
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
    assert {t.epochs for t in whole.trials} == {6, 24}
    for stop in (3, len(whole.trials) - 1):  # in the brief trainings, and in the patient ones
        _kill_and_go_on(teacher, val, graded(least), whole, stop, tmp_path / str(stop))


def _kill_and_go_on(teacher, val, retrain, whole, stop, folder):
    def killed(student, epochs):
        if len(retrain.tried) == stop:
            raise KeyboardInterrupt
        retrain(student, epochs)

    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, killed, data=val, max_drop=0.01, path=folder)
    found = smallest(teacher, retrain, data=val, max_drop=0.01, path=folder)
    assert retrain.tried == [(t.params, t.epochs) for t in whole.trials]
    assert [t.params for t in found.trials] == [t.params for t in whole.trials]
    again = smallest(teacher, None, data=val, max_drop=0.01, path=folder)
    assert fingerprint(again.student) == fingerprint(found.student)
    assert len(list(folder.glob("*.keras"))) == 1  # only the last that was taken is kept


def test_where_brief_trainings_end_longer_ones_go_on(teacher, val, monkeypatch):
    """What has had twenty epochs is good enough at any size; what had six, only above half of the teacher's."""
    had = {}
    monkeypatch.setattr(
        "orbit_kd.search.smallest.accuracy_of",
        lambda model, batches: 1.0 if had.get(id(model), 99) >= 20 or model.count_params() > half else 0.5,
    )
    half = teacher.count_params() / 2

    def retrain(student, epochs):
        had[id(student)] = epochs

    found = smallest(teacher, retrain, data=val, max_drop=0.01, epochs=(6, 24), min_channels=4)
    brief = [t for t in found.trials if t.epochs == 6]
    assert list(found.trials) == brief + [t for t in found.trials if t.epochs == 24]
    assert min(t.params for t in brief if t.accepted) > half > 8 * found.student.count_params()
    only = smallest(teacher, retrain, data=val, max_drop=0.01, epochs=(6,), min_channels=4)
    assert [t.params for t in only.trials] == [t.params for t in brief]


@pytest.mark.parametrize("epochs", [(), (0, 3), (6, 6), (24, 6)])
def test_epochs_that_do_not_grow_are_refused(teacher, val, epochs):
    with pytest.raises(InputError, match="epochs"):
        smallest(teacher, None, data=val, max_drop=0.1, epochs=epochs)


def test_another_question_does_not_go_on_from_the_old_answers(teacher, val, graded, tmp_path):
    smallest(teacher, graded(0), data=val, max_drop=0.5, path=tmp_path, seconds=1e9, min_channels=8)
    retrain = graded(teacher.count_params())
    smallest(teacher, retrain, data=val, max_drop=0.1, path=tmp_path, min_channels=8)
    assert len(retrain.tried) > 1


ASKED = {"max_drop": 0.1, "epochs": (6, 24), "images": 8, "criterion": "l1_norm", "round_to": 1, "min_channels": 1,
         "exclude": (), "unknown": "error", "seed": 0}  # fmt: skip
OTHERS = {"max_drop": 0.2, "epochs": (6, 25), "images": 9, "criterion": "l2_norm", "round_to": 2, "min_channels": 2,
          "exclude": ("conv1",), "unknown": "keep", "seed": 1}  # fmt: skip


def test_every_argument_of_the_search_makes_it_another_one(teacher, val, graded, tmp_path):
    """A search that has no time shows what it would go on from: the trials of the same question, or nothing."""
    named = set(inspect.signature(smallest).parameters)
    assert named == {*ASKED, *OTHERS, "teacher", "retrain", "data", "train", "loss", "seconds", "path"}
    (x, y), first = val[0], graded(0)

    def stopped(student, epochs):
        if first.tried:
            raise KeyboardInterrupt
        first(student, epochs)

    def known(path, network=teacher, data=val, train=None, **changed):
        how = ASKED | changed
        return len(smallest(network, None, data=data, train=train, path=path, seconds=0.0, **how).trials)

    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, stopped, data=val, path=tmp_path / "l1", **ASKED)
    assert known(tmp_path / "l1") == 1
    assert {name: known(tmp_path / "l1", **{name: value}) for name, value in OTHERS.items()} == dict.fromkeys(OTHERS, 0)
    assert known(tmp_path / "l1", data=[(x[::-1], y)]) == known(tmp_path / "l1", data=[(x, (y + 1) % 4)]) == 0
    other = keras.models.clone_model(teacher)
    other.set_weights([w + 1e-3 for w in teacher.get_weights()])
    assert known(tmp_path / "l1", other) == 0
    batches = tf.data.Dataset.from_tensors((x, y))
    assert known(tmp_path / "l1", train=batches) == 1  # which a criterion on weights does not read
    first.tried.clear()
    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, stopped, data=val, train=batches, path=tmp_path / "t", **ASKED | {"criterion": "taylor"})
    assert known(tmp_path / "t", train=batches, criterion="taylor") == 1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="other")
    assert known(tmp_path / "t", train=batches, criterion="taylor", loss=loss) == 0
    assert known(tmp_path / "t", train=tf.data.Dataset.from_tensors((x[::-1], y)), criterion="taylor") == 0


def test_no_trial_starts_that_would_end_too_late(teacher, val, graded):
    retrain = graded(0)
    assert smallest(teacher, retrain, data=val, max_drop=0.1, seconds=0.0).trials == () and not retrain.tried


def test_a_killed_search_whose_first_steps_did_not_exist_goes_on_where_it_was(teacher, val, graded, tmp_path):
    how = {"data": val, "max_drop": 0.01, "min_channels": 24}
    least = teacher.count_params() * 2 // 5  # nor is the second step good enough
    smallest_widths = okd.plan_removal(teacher, ratio=0.99, min_channels=24)
    assert (
        smallest_widths.params[1] > teacher.count_params() / 8
    )  # whatever the scan says, the first step has no network
    whole = smallest(teacher, graded(least), **how).trials
    assert whole[0].factor < 8 and len(whole) > 2
    retrain = graded(least)

    def killed(student, epochs):
        if retrain.tried:
            raise KeyboardInterrupt
        retrain(student, epochs)

    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, killed, path=tmp_path, **how)
    smallest(teacher, retrain, path=tmp_path, **how)
    assert retrain.tried == [(t.params, t.epochs) for t in whole]
    again = graded(least)
    smallest(teacher, again, path=tmp_path, **how)
    assert again.tried == []


def test_widths_stay_multiples(teacher, val, graded):
    found = smallest(teacher, graded(0), data=val, max_drop=0.1, round_to=8)
    widths = [la.kernel.shape[-1] for la in found.student.layers if hasattr(la, "kernel") and la.name != "logits"]
    assert found.trials and all(w % 8 == 0 for w in widths)


def test_a_network_of_open_image_size_shrinks_too(graded):
    layers, image = keras.layers, keras.Input((None, None, 1))
    x = layers.Conv2D(16, 3, activation="relu")(layers.Conv2D(16, 3, activation="relu")(image))
    model = randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    x = np.random.default_rng(0).uniform(0, 1, (8, 12, 12, 1)).astype("float32")
    found = smallest(model, graded(0), data=[(x, np.arange(8) % 3)], max_drop=0.1)
    assert found.student.count_params() < model.count_params() / 8


def test_a_drop_of_just_what_was_allowed_is_within_it(teacher, val, monkeypatch):
    answers = iter([0.8, *[0.7] * 50])
    monkeypatch.setattr("orbit_kd.search.smallest.accuracy_of", lambda model, batches: next(answers))
    assert smallest(teacher, lambda *_: None, data=val, max_drop=0.1).trials[0].accepted  # 0.8 - 0.1 > 0.7 in floats


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_an_impossible_drop_is_refused(teacher, val, drop):
    with pytest.raises(InputError, match="max_drop"):
        smallest(teacher, None, data=val, max_drop=drop)


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
    teacher = small_resnet((16, 16, 1), classes=2, width=2.0)
    fit(teacher, 4)
    found = smallest(
        teacher, fit, data=[(x[120:], labels[120:])], max_drop=0.05, epochs=(3,), seconds=15.0, path=tmp_path
    )
    assert found.student.count_params() < teacher.count_params() / 4
    right = found.student(x[120:]).numpy().argmax(-1) == labels[120:]
    assert right.mean() >= found.target


def test_a_criterion_that_draws_takes_the_seed_of_the_search(teacher, val, graded):
    """The recipe's seed was ignored: every search drew alike."""
    drawn = set()

    def draws(members, *, seed):
        drawn.add(seed)
        return np.random.default_rng(seed).random(len(members[0].values))

    with importance.criteria.temporary("drawn_of_test", importance.Criterion(draws, draws=True)):
        smallest(teacher, graded(0), data=val, max_drop=0.5, criterion="drawn_of_test", seed=7, min_channels=16)
    assert drawn == {7}


def test_a_student_that_is_accurate_and_too_large_for_another_budget_is_refused(teacher):
    recipe = okd.Recipe(max_drop=0.1, keep_params=0.2)
    with pytest.raises(InputError, match=r"within max_drop=0.1 is too large for keep_params=0.2"):
        decisions._check_budgets(teacher, teacher, recipe, 0)
    small = okd.remove_filters(teacher, okd.plan_removal(teacher, keep_params=0.19))
    decisions._check_budgets(small, teacher, recipe, 0)
    tight = okd.Recipe(max_drop=0.1, max_bytes=budgets.int8_bytes(ChannelGraph(small), ChannelGraph(small).all_stay()))
    decisions._check_budgets(small, teacher, tight, 0)
    with pytest.raises(InputError, match="max_bytes"):
        decisions._check_budgets(small, teacher, tight, 400)


def test_the_time_for_training_is_measured_for_each_recipe_and_leaves_an_epoch_a_round(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Retraining, "seconds_an_epoch", lambda self, student: asked.append(self.recipe) or 10.0)
    student = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])

    def fit(**settings):
        recipe, stages = okd.Recipe(epochs=100, time_budget=50, **settings), Stages(tmp_path, "k")
        with stages.stage("lessons"):
            pass
        job = Retraining(stages, None, None, None, recipe)
        return decisions.within_time(job, student, decisions.Decisions.from_recipe(recipe))

    assert fit().epochs == 4
    assert fit(pattern="2:4", sparse_epochs=100).sparse_epochs == 2
    assert fit(rounds=8).epochs == 8
    assert fit().epochs == 4 and len(asked) == 3  # rounds change no epoch's time
