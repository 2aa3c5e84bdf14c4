"""Which stages of `compress` run again after which change: exactly those that use what changed, and those after them.

The real pipeline runs on the real stages; what takes time in them is replaced by what returns at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd import automatic, pipeline, retraining
from orbit_kd.channel_graph import ChannelGraph
from orbit_kd.datasets import Data
from orbit_kd.exporters import Artifact, export
from orbit_kd.pipeline import compress
from orbit_kd.planning import plan_removal
from orbit_kd.preprocessing import Augment
from orbit_kd.recipe import Preprocess, Recipe
from orbit_kd.scan import Curve, Scan
from orbit_kd.search import Found
from orbit_kd.stages import Stages
from orbit_kd.surgery import remove_filters

SHARED = {"pattern": "magnitude", "epochs": 5, "sparse_epochs": 3, "targets": ("tflite_int8",)}
RECIPES = {
    "ratio": Recipe(rounds=2, **SHARED),
    "budget": Recipe(keep_params=0.4, keep_macs=0.7, **SHARED),
    "search": Recipe(max_drop=0.1, time_budget=1000.0, **SHARED),
}
STAGES = {
    "ratio": "teacher lessons remove_1 distill_1 remove_2 distill_2 sparsify export report",
    "budget": "teacher sensitivity lessons remove_1 distill_1 sparsify export report",
    "search": "teacher lessons search timing distill sparsify export validation report",
}
REMOVAL = ("remove_1", "sensitivity", "search")
TRAINING = ("distill_1", "distill_1", "search")
PATTERN = ("sparsify", "sparsify", "timing")
NOT_USED = "export"  # the file says by which recipe it was made
# field -> (another value, the first stage that it changes in each of RECIPES; None: no such recipe)
FIELDS = {
    "criterion": ("l2_norm", *REMOVAL),
    "ratio": (0.25, "remove_1", NOT_USED, "timing"),
    "ratios": ({"one": 0.75}, "remove_1", NOT_USED, "timing"),
    "keep_params": (0.3, None, "sparsify", "timing"),
    "keep_macs": (0.4, None, "remove_1", "timing"),
    "max_macs": (500.0, None, "remove_1", "timing"),
    "max_bytes": (1e6, None, NOT_USED, "timing"),  # met already
    "max_drop": (0.2, None, None, "search"),
    "search_epochs": (7, NOT_USED, NOT_USED, "search"),
    "scan_images": (4, NOT_USED, "sensitivity", "search"),
    "time_budget": (900.0, None, None, "search"),
    "rounds": (3, "remove_1", None, None),
    "round_to": (2, "remove_1", "remove_1", "search"),
    "min_channels": (2, "remove_1", "remove_1", "search"),
    "exclude": (("two",), *REMOVAL),
    "unknown": ("keep", *REMOVAL),
    "epochs": (8, "distill_1", "distill_1", "timing"),
    "pattern": ("2:4", "sparsify", "sensitivity", "timing"),
    "sparsity": (0.6, *PATTERN),
    "sparsities": ({"two": 0.6}, "sparsify", NOT_USED, "timing"),  # the budget chooses them
    "schedule": ("one_shot", *PATTERN),
    "sparse_exclude": (("two",), "sparsify", "sensitivity", "timing"),
    "sparse_epochs": (4, *PATTERN),
    "losses": (("decoupled",), *TRAINING),
    "alpha": (0.7, *TRAINING),
    "temperature": (4.0, *TRAINING),
    "batch_size": (32, *TRAINING),
    "learning_rate": (1e-3, *TRAINING),
    "views": (3, "lessons", "lessons", "lessons"),
    "targets": (("tflite_float32",), "export", "export", "export"),
    "calibration": (99, "export", "export", "export"),
    "seed": (1, "lessons", "sensitivity", "lessons"),
}


def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    layers, image = keras.layers, keras.Input((4, 4, 1))
    x = layers.Conv2D(8, 3, name="two", activation="relu")(layers.Conv2D(8, 1, name="one", activation="relu")(image))
    return keras.Model(image, layers.Dense(2, name="logits")(layers.Flatten()(x)), name="teacher")


def a_scan(of: str, model: keras.Model) -> Scan:
    """Weights cost less than filters."""

    def curve(name: str, width: int, reason: str = "") -> Curve:
        loss = (0.12, 0.2) if of == "weights" else (0.4, 1.0)
        points = {"ratios": (0.5, 0.9), "accuracy": (0.5,) * 2, "loss": loss, "images": (4,) * 2}
        return Curve(name, (name,), width, reason=reason, **({} if reason else points))

    if of == "weights":
        return Scan(of, 0.9, 0.1, 4, (curve("one", 8), curve("two", 576)))
    return Scan(of, 0.9, 0.1, 4, tuple(curve(g.name, g.width, g.reason) for g in ChannelGraph(model).groups))


class Enough(Exception):
    """Everything before the report has been seen."""


class Seen(Stages):
    """Stages that tell which of them do their work."""

    ran: list[str]
    every: list[str]

    @contextlib.contextmanager
    def stage(self, name, **settings):
        with super().stage(name, **settings) as (folder, done):
            Seen.every.append(name)
            if not done:
                Seen.ran.append(name)
            if name == "report":
                raise Enough
            yield folder, done


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def data() -> Data:
    x, y = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype("float32"), np.arange(8) % 2
    return Data((x, y), (x, y), (x, y), class_names=("a", "b"), fingerprint="f", preprocess=Preprocess(scale=0.5))


@pytest.fixture(scope="module")
def go(teacher, data, tmp_path_factory):
    file = export(teacher, "tflite_float32", path=tmp_path_factory.mktemp("file") / "m.tflite").path.read_bytes()
    epochs: dict[str, int] = {}
    sparse: dict[str, object] = {}

    def export_all(model, names, *, folder, stem, **_):
        return [Artifact.of(file, target=n, files=(folder / f"{stem}.tflite",), details={}) for n in names]

    def distil(self, student, recipe, *, epochs: int, label: str, folder, into=epochs):
        into[label] = epochs
        return {}

    found = Found(remove_filters(teacher, plan_removal(teacher, ratio=0.75)), 0.8, 4, ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Stages", Seen)
        patch.setattr(pipeline, "export_all", export_all)
        patch.setattr(pipeline, "model_bytes", lambda artifact: file)
        patch.setattr(pipeline, "cache_teacher", lambda *_, **__: SimpleNamespace(steps=lambda size: 4))
        patch.setattr(pipeline, "logits", lambda *_: (np.arange(2), {"student": np.eye(2)}))
        patch.setattr(pipeline, "recalibrate_batchnorm", lambda *_: None)
        patch.setattr(pipeline, "remove_filters", lambda model, plan: model)
        patch.setattr(pipeline, "sparsify", lambda model, pattern, **how: sparse.update(how) or model)
        patch.setattr(pipeline, "strip", lambda model, **_: model)
        patch.setattr(retraining.Retraining, "distil", distil)
        patch.setattr(retraining.Retraining, "seconds_an_epoch", lambda *_: 1e-3)
        patch.setattr(automatic, "sensitivity", lambda model, data, *, of, **_: a_scan(of, model))
        patch.setattr(automatic, "smallest", lambda *_, **__: found)
        patch.setattr("orbit_kd.exporters.export", lambda *_, **__: SimpleNamespace(bytes=1000))
        patch.setattr(Scan, "plot", lambda self, path: path)
        for module in (pipeline, retraining, automatic):
            patch.setattr(module, "save_model", lambda model, path: None)
        for module in (retraining, automatic, pipeline):
            patch.setattr(module, "load_model", lambda m: m if isinstance(m, keras.Model) else found.student)

        def run(workdir, recipe, *, network=teacher, images=data, **how) -> list[str]:
            Seen.ran, Seen.every = [], []
            with pytest.raises(Enough):
                compress(network, images, recipe=recipe, workdir=workdir, **how)
            return Seen.ran

        run.epochs, run.sparse = epochs, sparse
        yield run


@pytest.fixture(scope="module")
def finished(go, tmp_path_factory):
    """A folder for each recipe, in which all but the report is done."""
    folders = {}
    for kind, recipe in RECIPES.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        assert go(folders[kind], recipe) == STAGES[kind].split()
        assert go(folders[kind], recipe) == ["report"]  # which never came to its end
    return folders


def from_stage(kind: str, first: str, every: list[str]) -> list[str]:
    return every[every.index(first) :]


def test_every_field_of_the_recipe_is_here():
    assert set(FIELDS) == {f.name for f in dataclasses.fields(Recipe)}
    assert all(getattr(RECIPES[kind], name) != FIELDS[name][0] for name in FIELDS for kind in RECIPES)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_runs_those_stages_again_that_use_it(go, finished, name, tmp_path):
    value, *first = FIELDS[name]
    for (kind, recipe), stage in zip(RECIPES.items(), first, strict=True):
        if stage is None:
            continue
        folder = shutil.copytree(finished[kind], tmp_path / kind)
        ran = go(folder, dataclasses.replace(recipe, **{name: value}))
        expected = from_stage(kind, stage, Seen.every)
        if name == "calibration":  # of the teacher's files too, which no later stage uses
            expected = ["teacher", *expected]
        assert ran == expected, (kind, name)


def test_a_budget_in_time_is_a_stage_before_the_first_removal(go, finished, tmp_path):
    folder = shutil.copytree(finished["ratio"], tmp_path / "run")
    ran = go(folder, dataclasses.replace(RECIPES["ratio"], time_budget=500.0))
    assert ran == from_stage("ratio", "timing", Seen.every) and ran[:2] == ["timing", "remove_1"]


CALL = {
    "teacher": "teacher", "data": "teacher", "augment": "lessons", "class_names": "export", "preprocess": "export",
    "title": "report", "command": "report",
}  # fmt: skip


def test_every_argument_of_compress_is_here():
    assert set(inspect.signature(compress).parameters) - {"recipe", "workdir"} == set(CALL) - {
        "class_names", "preprocess"
    }  # fmt: skip


@pytest.mark.parametrize("name", CALL)
def test_an_argument_runs_those_stages_again_that_use_it(go, finished, teacher, data, name, tmp_path):
    other = keras.models.clone_model(teacher)
    other.set_weights([w + 0.01 for w in teacher.get_weights()])
    changed = {
        "teacher": {"network": other},
        "data": {"images": dataclasses.replace(data, fingerprint="g")},
        "augment": {"augment": Augment(shift=1)},
        "class_names": {"images": dataclasses.replace(data, class_names=("b", "a"))},
        "preprocess": {"images": dataclasses.replace(data, preprocess=Preprocess(scale=0.25))},
        "title": {"title": "T"},
        "command": {"command": "c"},
    }[name]
    for kind, recipe in RECIPES.items():
        if name == "augment":  # of data that hold their images
            changed["images"] = Pictures(**{f.name: getattr(data, f.name) for f in dataclasses.fields(data)})
        ran = go(shutil.copytree(finished[kind], tmp_path / kind), recipe, **changed)
        assert ran == (Seen.every if CALL[name] == "teacher" else from_stage(kind, CALL[name], Seen.every)), kind
        if name == "augment":
            assert "sensitivity" not in ran


class Pictures(Data):
    """Data that can be augmented."""

    def views(self, k, **_):
        return self.train


@pytest.mark.parametrize(("epochs", "rounds", "each"), [(5, 2, [2, 3]), (7, 3, [2, 2, 3]), (8, 3, [2, 3, 3]),
                                                        (3, 3, [1, 1, 1]), (6, 1, [6])])  # fmt: skip
def test_all_epochs_are_trained_also_where_the_rounds_do_not_divide_them(go, tmp_path, epochs, rounds, each):
    go.epochs.clear()
    go(tmp_path, Recipe(epochs=epochs, rounds=rounds, targets=("tflite_int8",)))
    assert go.epochs == {f"distill_{n}": e for n, e in enumerate(each, 1)}


@pytest.mark.parametrize(
    ("schedule", "epochs", "end"),
    [("polynomial", 3, 6), ("gradual", 5, 10), ("polynomial", 0, 1), ("one_shot", 3, None), ("sr_ste", 3, None)],
)
def test_a_gradual_pattern_is_whole_after_half_of_the_steps(go, tmp_path, schedule, epochs, end):
    """Four steps an epoch here."""
    how = {"sparsity": 0.7, "sparse_exclude": ("one",)}
    go(tmp_path, Recipe(pattern="magnitude", schedule=schedule, sparse_epochs=epochs, **how))
    assert go.sparse == {"sparsity": 0.7, "schedule": schedule, "end_step": end, "exclude": ("one",)}
