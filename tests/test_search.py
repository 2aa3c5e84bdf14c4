"""The search for the smallest network within an accuracy budget: what it takes, takes back, resumes and refuses."""

from __future__ import annotations

import functools
import inspect
import itertools
import shutil
from types import SimpleNamespace

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
from orbit_kd.search import shrinking
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.search.shrinking import Shrinking
from orbit_kd.search.smallest import smallest as whole_search
from orbit_kd.search.trial import Judge, Reached
from orbit_kd.support.stages import Stages

smallest = functools.partial(whole_search, longest=6)


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    keras.utils.set_random_seed(2)
    layers = keras.layers
    x = image = keras.Input((16, 16, 1))
    for i, width in enumerate((8, 16, 16)):
        x = layers.Conv2D(width, 3, strides=1 + i % 2, padding="same", activation="relu", name=f"conv{i}")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(layers.Flatten()(layers.MaxPooling2D()(x)))
    return randomize(keras.Model(image, layers.Dense(4, name="logits")(x)))


@pytest.fixture(scope="module")
def val(teacher):
    """Images and the teacher's own answers, all of one class but the first: the teacher is right on the others."""
    x = np.random.default_rng(0).uniform(0, 255, (24, 16, 16, 1)).astype("float32")
    labels = teacher(x).numpy().argmax(-1)
    labels[0] = (labels[0] + 1) % 4
    return [(x, labels)]


class Graded:
    """Stands for training, and remembers what was to be trained: parameters, epochs, and the part of the rate."""

    def __init__(self) -> None:
        self.tried: list[tuple[int, int]] = []
        self.rates: list[float] = []

    def __call__(self, student: keras.Model, epochs: int, rate: float) -> None:
        self.tried.append((student.count_params(), epochs))
        self.rates.append(rate)


def scans_at_once(model: keras.Model, data, *, ratios, exclude, **_) -> list[Scan]:
    """Scans that cost no time: every group (or layer) loses the same for the same part."""
    return [a_scan(model, of, tuple(parts or (0.25, 0.5, 0.75))) for of, parts in ratios.items()]


def a_scan(model: keras.Model, of: str, parts: tuple[float, ...]) -> Scan:
    graph = ChannelGraph(model)
    points = {"ratios": parts, "accuracy": (0.5,) * len(parts), "loss": tuple(0.1 + p for p in parts),
              "images": (8,) * len(parts)}  # fmt: skip
    if of == "filters":
        curves = [Curve(g.name, tuple(g.members), g.channels, reason=g.reason, **({} if g.reason else points))
                  for g in graph.groups]  # fmt: skip
    else:
        curves = [Curve(la.name, (la.name,), 1, **points) for la in model.layers if hasattr(la, "kernel")]
    return Scan(of, 0.9, 0.1, 8, tuple(curves))


@pytest.fixture
def graded(monkeypatch):
    def make(least: float, accuracy=lambda model: 0.5) -> Graded:
        """From here on the file of a network is good as long as that keeps `least` parameters."""

        def judge(self, model: keras.Model) -> Reached:
            graph = ChannelGraph(model)
            params, macs = model.count_params(), graph.macs(graph.all_stay())
            cost = macs if self.shrink == "macs" else params
            return Reached(1.0 if params >= least else accuracy(model), cost, params, params, macs)

        monkeypatch.setattr(Judge, "__call__", judge)
        monkeypatch.setattr(shrinking, "_accuracy_and_pace", lambda model, batches: (1.0, 1e-6))
        monkeypatch.setattr(shrinking, "sensitivities", scans_at_once)
        return Graded()

    return make


def steps(found) -> list:
    """The trials that were to be smaller."""
    return [trial for trial in found.trials if trial.factor > 1]


def test_it_ends_close_above_the_smallest_network_that_is_good_enough(teacher, val, graded):
    least = teacher.count_params() // 12
    retrain = graded(least)
    found = smallest(teacher, retrain, data=val, max_drop=0.01)
    assert least <= found.student.count_params() < 1.5 * least
    assert retrain.tried == [(t.params, t.epochs) for t in found.trials if t.epochs]
    assert all(t.accepted == (t.params >= least) for t in steps(found))
    assert "taken" in str(found) and "too small" in str(found) and found.verdict == "as asked"
    assert found.reached.bytes == found.student.count_params() < found.whole.bytes == teacher.count_params()


def test_steps_grow_as_long_as_they_succeed_and_a_refused_one_is_halved(teacher, val, graded):
    found = smallest(teacher, graded(teacher.count_params() // 4), data=val, max_drop=0.01, longest=24)
    trials = steps(found)
    assert 1.2 <= trials[0].factor <= 16 and trials[0].accepted
    for one, next_one in itertools.pairwise(trials):
        if one.patience == next_one.patience:
            expected = min(one.factor**2, 16.0) if one.accepted else one.factor**0.5
            assert next_one.factor == pytest.approx(expected)
    assert {t.epochs for t in trials} == {6, 24}


def test_the_first_step_is_what_the_scan_predicts_to_be_safe(teacher, val, graded, monkeypatch):
    graded(0)
    first = {}
    for safe in (0.0, 1e3):
        monkeypatch.setattr(shrinking, "_SAFE", safe)
        first[safe] = smallest(teacher, graded(0), data=val, max_drop=0.01, min_channels=2).trials[0].factor
    assert first[0.0] == 1.25 and first[1e3] == 16


def test_macs_fall_with_the_parameters(teacher, val, graded):
    found = smallest(teacher, graded(0), data=val, max_drop=0.01, min_channels=2)
    before, last = okd.profile(teacher), steps(found)[-1]
    assert last.params < before.params / 6 and last.macs <= before.macs / 6**0.5


def test_what_is_to_be_small_is_the_callers(teacher, val, graded):
    cost = teacher.count_params()
    by_params = smallest(teacher, graded(cost / 2), data=val, max_drop=0.01).reached
    by_macs = smallest(teacher, graded(cost / 2), data=val, max_drop=0.01, shrink="macs").reached
    assert by_macs.macs < by_params.macs and by_macs.params >= cost / 2
    with pytest.raises(InputError, match="max_bananas"):
        smallest(teacher, graded(0), data=val, max_drop=0.01, shrink="bananas")


def test_the_teachers_own_file_comes_back_where_nothing_is_better(teacher, val, graded):
    known = fingerprint(teacher)
    found = smallest(teacher, graded(teacher.count_params()), data=val, max_drop=0.0)
    assert found.student is not teacher and fingerprint(found.student) == known == fingerprint(teacher)
    assert found.trials and not any(t.accepted for t in found.trials)
    assert "teacher's own int8 file" in found.verdict and found.verdict in str(found)
    assert found.reached == found.whole


def test_a_teacher_whose_file_is_too_inaccurate_itself_is_told_and_given_back(teacher, val, graded):
    found = smallest(teacher, graded(1e9), data=val, max_drop=0.0)
    assert found.verdict.startswith("below what was asked") and found.reached == found.whole
    whole = teacher.count_params()
    better = smallest(teacher, graded(1e9, lambda m: 1.0 if m.count_params() < whole else 0.5), data=val, max_drop=0.0)
    assert better.verdict == "as asked" and better.reached.accuracy == 1.0


def test_a_longer_training_counts_only_where_it_is_better(teacher, val, graded):
    least = teacher.count_params() / 8
    last = smallest(teacher, graded(least), data=val, max_drop=0.05).trials[-1]
    assert last.factor == 1 and last.epochs == 6 and not last.accepted


def test_what_came_near_is_trained_longer_and_taken_where_that_is_enough(teacher, val, graded):
    least, retrain = teacher.count_params() / 8, graded(0)

    def twice(model):
        return 0.97 if [p for p, _ in retrain.tried].count(model.count_params()) > 1 else 0.94

    retrain = graded(least, twice)
    found = smallest(teacher, retrain, data=val, max_drop=0.05)
    near = found.trials[-2]
    assert near.factor == 1 and near.accepted and near.params < least and found.reached.accuracy == 0.97
    assert found.student.count_params() == near.params


@pytest.mark.parametrize("kept", [True, False])
def test_what_came_near_does_not_take_the_place_of_the_teacher(teacher, val, graded, tmp_path, kept):
    retrain = graded(teacher.count_params(), lambda model: 0.94)
    found = smallest(teacher, retrain, data=val, max_drop=0.05, path=tmp_path if kept else None)
    assert found.reached.accuracy == 1.0 and not any(trial.accepted for trial in found.trials)
    assert found.student.count_params() == teacher.count_params()
    np.testing.assert_allclose(found.student(val[0][0]), teacher(val[0][0]), rtol=1e-5)


def test_rates_grow_with_what_has_gone(teacher, val, graded):
    retrain = graded(0)
    found = smallest(teacher, retrain, data=val, max_drop=0.1, min_channels=2)
    small = [1 - t.params / teacher.count_params() for t in found.trials if t.epochs]
    assert retrain.rates == pytest.approx([max(0.1, part) for part in small], abs=0.02)
    assert Shrinking._rate(SimpleNamespace(teacher=teacher), teacher, {}) == 0.1


def test_a_killed_search_goes_on_and_a_finished_one_trains_nothing(teacher, val, graded, tmp_path):
    least = teacher.count_params() // 12
    whole = smallest(teacher, graded(least), data=val, max_drop=0.01)
    for stop in (2, len(whole.trials) - 1):  # in the steps, and in the longer training
        _kill_and_go_on(teacher, val, graded(least), whole, stop, tmp_path / str(stop))


def _kill_and_go_on(teacher, val, retrain, whole, stop, folder):
    def killed(student, epochs, rate):
        if len(retrain.tried) == stop:
            raise KeyboardInterrupt
        retrain(student, epochs, rate)

    with pytest.raises(KeyboardInterrupt):
        smallest(teacher, killed, data=val, max_drop=0.01, path=folder)
    found = smallest(teacher, retrain, data=val, max_drop=0.01, path=folder)
    assert retrain.tried == [(t.params, t.epochs) for t in whole.trials]
    assert [t.params for t in found.trials] == [t.params for t in whole.trials]
    again = smallest(teacher, None, data=val, max_drop=0.01, path=folder)
    assert fingerprint(again.student) == fingerprint(found.student)
    assert len(list(folder.glob("*.keras"))) <= 2  # the best one, and one that came near


@pytest.mark.parametrize("how", [{"epochs": 0}, {"epochs": 30}])
def test_epochs_that_make_no_sense_are_refused(teacher, val, how):
    with pytest.raises(InputError, match="epochs"):
        smallest(teacher, None, data=val, max_drop=0.1, **how)


ASKED = {"max_drop": 0.1, "epochs": 6, "longest": 7, "images": 8, "criterion": "l1_norm", "round_to": 1,
         "min_channels": 1, "exclude": (), "sparse_exclude": (), "unknown": "error", "seed": 0, "shrink": "bytes",
         "target": "tflite_int8", "samples": 16, "pattern": "magnitude"}  # fmt: skip
OTHERS = {"max_drop": 0.2, "epochs": 7, "longest": 8, "images": 9, "criterion": "l2_norm", "round_to": 2,
          "min_channels": 2, "exclude": ("conv1",), "sparse_exclude": ("conv1",), "unknown": "keep", "seed": 1,
          "shrink": "macs", "target": "tflite_micro_coded", "samples": 17, "pattern": "2:4"}  # fmt: skip


def test_every_argument_of_the_search_makes_it_another_one(teacher, val, graded, tmp_path):
    """A search that has no time shows what it would go on from: the trials of the same question, or nothing."""
    named = set(inspect.signature(whole_search).parameters)
    assert named == {
        *ASKED,
        *OTHERS,
        "teacher",
        "retrain",
        "data",
        "train",
        "loss",
        "seconds",
        "examples",
        "path",
        "task",
    }
    (x, y), first = val[0], graded(0)

    def stopped(student, epochs, rate):
        if first.tried:
            raise KeyboardInterrupt
        first(student, epochs, rate)

    def known(path, network=teacher, data=val, train=None, **changed):
        how, copies = ASKED | changed, len(list(tmp_path.iterdir()))
        path = shutil.copytree(path, tmp_path / f"copy{copies}")  # another question takes the place of the old one
        return len(smallest(network, None, data=data, train=train, path=path, seconds=-1.0, **how).trials)

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


def test_without_time_there_is_the_teachers_own_file_and_no_trial(teacher, val, graded):
    retrain = graded(0)
    found = smallest(teacher, retrain, data=val, max_drop=0.1, seconds=0.0)
    assert found.trials == () and not retrain.tried
    assert found.student.count_params() == teacher.count_params() and found.reached == found.whole


def test_trainings_take_a_share_of_the_time_and_all_of_it_is_used(teacher, val, graded, monkeypatch):
    """A clock that moves with training alone, a second an epoch for each part of the teacher's MACs."""
    clock, before, least = [0.0], okd.profile(teacher).macs, teacher.count_params() / 10
    retrain = graded(least)

    def timed(student, epochs, rate):
        retrain(student, epochs, rate)
        clock[0] += epochs * okd.profile(student).macs / before

    monkeypatch.setattr(shrinking.time, "monotonic", lambda: clock[0])
    found = smallest(teacher, timed, data=val, max_drop=0.1, seconds=100.0, longest=1 << 20, epochs=4)
    trials = steps(found)
    assert sum(t.training for t in trials) <= 75
    assert max(t.training for t in trials) <= 0.12 * 75 + 1
    assert found.trials[-1].factor == 1 and found.trials[-1].epochs > 100
    assert 80 <= clock[0] <= 100


def test_a_network_whose_epochs_are_long_gets_a_few_and_not_one(teacher, val, graded, monkeypatch):
    """On rsscn7, single epochs of large networks were taken for failures, and ever smaller steps followed."""
    clock, retrain = [0.0], graded(teacher.count_params() / 2)

    def timed(student, epochs, rate):
        retrain(student, epochs, rate)
        clock[0] += 6 * epochs

    monkeypatch.setattr(shrinking.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Shrinking, "_pace", lambda self, model: 6.0)
    found = smallest(teacher, timed, data=val, max_drop=0.1, seconds=100.0)
    trials = steps(found)
    assert trials[0].epochs == 3  # of 75 seconds for steps, three tenths; a share would have given one
    assert clock[0] <= 100


def test_an_epoch_that_would_take_all_of_the_time_is_left_out(teacher, val, graded, monkeypatch):
    retrain = graded(teacher.count_params() / 2)
    monkeypatch.setattr(Shrinking, "_pace", lambda self, model: 1e6)
    found = smallest(teacher, retrain, data=val, max_drop=0.1, seconds=60.0)
    assert not retrain.tried and found.trials and found.reached.cost < found.whole.cost


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


def test_a_drop_of_just_what_was_allowed_is_within_it(teacher, val, graded, monkeypatch):
    retrain = graded(1e9, lambda model: 0.7)
    monkeypatch.setattr(shrinking, "_accuracy_and_pace", lambda model, batches: (0.8, 1e-6))
    assert smallest(teacher, retrain, data=val, max_drop=0.1).trials[0].accepted  # 0.8 - 0.1 > 0.7 in floats


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_an_impossible_drop_is_refused(teacher, val, drop):
    with pytest.raises(InputError, match="max_drop"):
        smallest(teacher, None, data=val, max_drop=drop)


def test_real_training_finds_a_smaller_network_that_still_answers(tmp_path, monkeypatch):
    """Stripes that a small network can tell apart; the student learns from the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=160)
    ramp = np.arange(16)
    stripes = [np.tile(ramp % 4 < 2, (16, 1)), np.tile(ramp % 4 < 2, (16, 1)).T]
    x = (np.stack([stripes[k] for k in labels]) * 120 + rng.normal(64, 20, (160, 16, 16))).astype("float32")[..., None]

    def fit(model: keras.Model, epochs: int, rate: float = 1.0) -> None:
        adam = keras.optimizers.Adam(3e-3 * rate)
        model.compile(adam, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x[:120], labels[:120], epochs=epochs, batch_size=16, verbose=0)

    keras.utils.set_random_seed(0)
    teacher = small_resnet((16, 16, 1), classes=2, width=2.0)
    fit(teacher, 4)
    okd.recalibrate_batchnorm(teacher, [(x[:120], labels[:120])])
    val = [(x[120:], labels[120:])]
    monkeypatch.setattr(shrinking, "_LEAST", 1.5)  # few steps are enough here
    found = smallest(
        teacher, fit, data=val, train=[(x[:120], labels[:120])], max_drop=0.05, epochs=3, longest=3, path=tmp_path
    )
    file = okd.export(found.model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x[:120])
    right = okd.predict(file, x[120:])
    assert found.reached.bytes == file.bytes < 0.7 * found.whole.bytes and found.trials[0].accepted
    assert found.reached.accuracy >= found.target
    assert np.mean(right.argmax(-1) == labels[120:]) == pytest.approx(found.reached.accuracy, abs=0.03)


def test_a_criterion_that_draws_takes_the_seed_of_the_search(teacher, val, graded):
    """The recipe's seed was ignored: every search drew alike."""
    drawn = set()

    def draws(members, *, seed):
        drawn.add(seed)
        return np.random.default_rng(seed).random(len(members[0].values))

    with importance.criteria.temporary("drawn_of_test", importance.Criterion(draws, draws=True)):
        smallest(teacher, graded(0), data=val, max_drop=0.5, criterion="drawn_of_test", seed=7, min_channels=4)
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
        job = Retraining(stages, None, None, None, recipe, None)
        return decisions.within_time(job, student, decisions.Decisions.from_recipe(recipe))

    assert fit().epochs == 4
    assert fit(pattern="2:4", sparse_epochs=100).sparse_epochs == 2
    assert fit(rounds=8).epochs == 8
    assert fit().epochs == 4 and len(asked) == 3  # rounds change no epoch's time
