"""Which stages `compress` goes through, what each is given, and that the same call finds all of them done.

The real pipeline runs on the real stages; what takes time in them is replaced by what returns at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.datasets import Data
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.exporters import Artifact, export
from orbit_kd.pipeline import compress as pipeline
from orbit_kd.pipeline import decisions, retraining, trainings
from orbit_kd.pipeline.compress import compress
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.search.trial import Reached
from orbit_kd.search.trials import Found
from orbit_kd.support.stages import Stages

SHARED = {"pattern": "magnitude", "epochs": 5, "sparse_epochs": 3, "targets": ("tflite_int8",)}
RECIPES = {
    "ratio": Recipe(rounds=2, **SHARED),
    "budget": Recipe(keep_params=0.4, keep_macs=0.7, **SHARED),
    "search": Recipe(max_drop=0.1, time_budget=1000.0, **SHARED),
    "coded": Recipe(max_bytes=1750.0, **{**SHARED, "targets": ("tflite_micro_coded",)}),
}
STAGES = {
    "ratio": "teacher lessons remove_1 distill_1 remove_2 distill_2 sparsify export report",
    "budget": "teacher sensitivity budget lessons remove_1 distill_1 sparsify export report",
    "search": "teacher lessons search export validation report",
    "coded": "teacher sensitivity budget lessons remove_1 distill_1 quantize export report",
}


def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    layers, image = keras.layers, keras.Input((4, 4, 1))
    x = layers.Conv2D(8, 3, name="two", activation="relu")(layers.Conv2D(8, 1, name="one", activation="relu")(image))
    return keras.Model(image, layers.Dense(2, name="logits")(layers.Flatten()(x)), name="teacher")


def a_scan(of: str, model: keras.Model) -> Scan:
    """Weights cost less than filters."""

    def curve(name: str, width: int, reason: str = "") -> Curve:
        loss = (0.4, 1.0) if of == "filters" else (0.12, 0.2)
        points = {
            "ratios": (0.5, 0.75 if of == "bits" else 0.9),
            "accuracy": (0.5,) * 2,
            "loss": loss,
            "images": (4,) * 2,
        }
        return Curve(name, (name,), width, reason=reason, **({} if reason else points))

    if of != "filters":
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

    def distil(self, student, *, epochs: int, label: str, folder, into=epochs):
        into[label] = epochs
        return {}

    own = Reached(0.9, 5000.0, 5000, 600, 1e4)
    found = Found(remove_filters(teacher, plan_removal(teacher, ratio=0.75)), 0.8, 4, own, own, ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Stages", Seen)
        patch.setattr(pipeline, "export_all", export_all)
        patch.setattr(pipeline, "write_manifest", lambda *_, **__: None)  # there are no files
        patch.setattr(pipeline, "model_bytes", lambda artifact: file)
        patch.setattr(
            "orbit_kd.distillation.job.cache_teacher",
            lambda *_, **__: SimpleNamespace(steps=lambda size: 4, nbytes=0, views=1),
        )
        patch.setattr(pipeline, "records_of", lambda *_, **k: {"student": np.array([[0, 0], [1, 1]])})
        patch.setattr(trainings, "recalibrate_batchnorm", lambda *_: None)
        for module in (pipeline, trainings):
            patch.setattr(module, "remove_filters", lambda model, plan: model)
        patch.setattr(trainings, "sparsify", lambda model, pattern, **how: sparse.update(how) or model)
        patch.setattr(trainings, "strip", lambda model, **_: model)
        patch.setattr(retraining.Retraining, "distil", distil)
        patch.setattr(retraining.Retraining, "seconds_an_epoch", lambda *_: 1e-3)
        patch.setattr(pipeline, "bytes_of", lambda *_: 0)
        patch.setattr(
            decisions, "sensitivities", lambda model, data, *, ratios, **_: [a_scan(of, model) for of in ratios]
        )
        patch.setattr(decisions, "smallest", lambda *_, **__: found)
        patch.setattr("orbit_kd.exporters.export", lambda *_, **__: SimpleNamespace(bytes=1000))
        patch.setattr(Scan, "plot", lambda self, path: path)
        for module in (pipeline, trainings, retraining, decisions):
            patch.setattr(module, "save_model", lambda model, path: None)
        for module in (retraining, decisions, pipeline, trainings):
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


def test_every_recipe_goes_through_its_stages_once(finished):
    assert set(finished) == set(RECIPES)


def test_another_teacher_or_other_data_run_every_stage_again(go, finished, teacher, data, tmp_path):
    other = keras.models.clone_model(teacher)
    other.set_weights([w + 0.01 for w in teacher.get_weights()])
    changes = {"teacher": {"network": other}, "data": {"images": dataclasses.replace(data, fingerprint="g")}}
    for kind, recipe in RECIPES.items():
        for name, changed in changes.items():
            folder = shutil.copytree(finished[kind], tmp_path / f"{kind}_{name}")
            assert go(folder, recipe, **changed) == Seen.every == STAGES[kind].split()


def test_title_and_command_measure_nothing_again(go, finished, tmp_path):
    for kind, recipe in RECIPES.items():
        folder = shutil.copytree(finished[kind], tmp_path / kind)
        assert go(folder, recipe, title="T", command="c") == ["report"]  # which never came to its end


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
    assert go.sparse == {"sparsity": 0.7, "scope": "layer", "schedule": schedule, "end_step": end, "exclude": ("one",)}
