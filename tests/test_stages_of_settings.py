"""Which stages of `compress` a changed setting runs anew: no more and no fewer, written to docs/recipe_stages.md."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.exporters import export_all
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.pipeline import checks, decisions, retraining, trainings
from orbit_kd.pipeline import compress as pipeline
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.search.scan import Scan
from orbit_kd.support.files import write_file
from orbit_kd.support.stages import Stages
from orbit_kd.tasks import choose

PAGE = Path(__file__).parent.parent / "docs" / "recipe_stages.md"

KINDS = {
    "ratios as given, two rounds, zeros, few levels": Recipe(
        ratio=0.5, ratios={"a": 0.25}, rounds=2, epochs=4, pattern="magnitude", bits=4
    ),
    "budgets, filters and weights together": Recipe(
        keep_params=0.5, max_bytes=1e6, pattern="magnitude", time_budget=60.0, epochs=4
    ),
    "bytes of a coded file": Recipe(max_bytes=1e6, targets=("tflite_micro_coded", "tflite_int8"), epochs=4),
    "max_drop": Recipe(max_drop=0.1, time_budget=60.0, epochs=4, pattern="2:4"),
}
OTHER = {
    "task": "classification",
    "output_tasks": {"a": "binary"},
    "output_weights": {"a": 2.0},
    "criterion": "l2_norm",
    "ratio": 0.25,
    "ratios": {"a": 0.5},
    "keep_params": 0.75,
    "keep_macs": 0.9,
    "max_macs": 1e9,
    "max_bytes": 2e6,
    "limits": {"max_params": 500},
    "max_drop": 0.2,
    "shrink": "macs",
    "search_epochs": 7,
    "scan_images": 9,
    "time_budget": 30.0,
    "rounds": 3,
    "round_to": 2,
    "min_channels": 2,
    "exclude": ("a",),
    "unknown": "keep",
    "epochs": 8,
    "pattern": "1:4",
    "sparsity": 0.6,
    "sparsities": {"a": 0.6},
    "schedule": "constant",
    "sparse_exclude": ("a",),
    "sparse_epochs": 21,
    "sparsity_scope": "lamp",
    "bits": 3,
    "layer_bits": {"a": 5},
    "quantize_epochs": 19,
    "losses": ("logits", "similarity"),
    "alpha": 0.5,
    "temperature": 4.0,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "views": 3,
    "targets": ("tflite_int8",),
    "calibration": 8,
    "seed": 1,
}


def network(width: int = 8) -> keras.Model:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(width, 3, activation="relu", name="a")(image)
    x = keras.layers.Conv2D(width, 3, activation="relu", name="b")(x)
    return keras.Model(image, keras.layers.Dense(3, name="c")(keras.layers.GlobalAveragePooling2D()(x)), name="tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with what each kind of stage leaves, so that every stage can be taken for done."""
    folder, teacher = tmp_path_factory.mktemp("made"), network()
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype("float32")
    files = export_all(teacher, ("tflite_float32", "tflite_int8"), folder=folder, stem="m", calibration=images)
    scan = Scan("filters", 0.9, 0.1, 4, ())
    left = {
        "artifacts.json": json.dumps([a.to_dict(folder) for a in files]),
        "filters.json": json.dumps(dataclasses.asdict(scan)),
        "weights.json": json.dumps(dataclasses.asdict(dataclasses.replace(scan, of="weights"))),
        "bits.json": json.dumps(dataclasses.asdict(dataclasses.replace(scan, of="bits"))),
        "decisions.json": json.dumps({"ratios": {"a": 0.5}, "pattern": "magnitude", "sparsities": {"b": 0.5}}),
        "history.json": "{}",
        "part.json": json.dumps({"part": 1.0}),
        "search.json": json.dumps({"target": 0.5, "file": "tflite_int8", "verdict": "as asked", "bytes": 1}),
        "validation.json": json.dumps({"accuracy": 0.9}),
        "measured.json": "{}",
    }
    for name, text in left.items():
        write_file(folder / name, text)
    save_model(network(4), folder / "student.keras")
    return folder


@pytest.fixture(scope="module")
def keys(made, tmp_path_factory):
    """(recipe, more) -> the key of each stage that `compress` goes through."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (12, 8, 8, 1)).astype("float32"), np.arange(12) % 3
    teacher, seen, datas = network(), {}, {}
    real = Stages.stage
    patch = pytest.MonkeyPatch()

    @contextlib.contextmanager
    def stage(self, name, **settings):
        with real(self, name, **settings):
            seen[name] = self.keys[name]
            yield made, True

    patch.setattr(Stages, "stage", stage)
    patch.setattr(Data, "renderings", lambda *a, **k: None)
    patch.setattr(
        "orbit_kd.distillation.job.cache_teacher", lambda *a, **k: SimpleNamespace(steps=lambda n: 1, nbytes=0, views=1)
    )
    for module, name in ((pipeline, "save_model"), (trainings, "save_model"), (pipeline, "report_sections"),
                         (trainings, "sparse_student"), (checks, "sparse_student")):  # fmt: skip
        patch.setattr(module, name, lambda *a, **k: {})
    for module in (pipeline, trainings, checks):
        patch.setattr(module, "remove_filters", lambda model, plan: model)
    patch.setattr(checks, "choose", lambda model, data, **_: choose(model, data))
    small = load_model(made / "student.keras")
    for module in (pipeline, decisions, retraining, trainings):
        patch.setattr(module, "load_model", lambda model: model if isinstance(model, keras.Model) else small)
    patch.setattr(pipeline, "Report", lambda data: SimpleNamespace(data=data, save=lambda folder: None))

    def of(recipe: Recipe, *, augment=None, class_names=(), preprocess=None, **more) -> dict[str, str]:
        seen.clear()
        about = {"class_names": class_names, "preprocess": preprocess}
        # one for each kind: it reads its images but once
        data = datas.setdefault(repr(about), Data((x, y), (x, y), (x, y), fingerprint="f", **about))
        pipeline.compress(teacher, data, recipe=recipe, augment=augment, workdir=tmp_path_factory.mktemp("w"), **more)
        return dict(seen)

    yield of
    patch.undo()


def kinds(names) -> list[str]:
    """Stages in the order they run in, those of all rounds as one."""
    return list(dict.fromkeys(re.sub(r"_\d+$", "", name) for name in names))


def anew(before: dict[str, str], after: dict[str, str]) -> str:
    """The stages whose keys changed."""
    changed = {re.sub(r"_\d+$", "", name) for name in after if after[name] != before.get(name)}
    return ", ".join(kind for kind in kinds(after) if kind in changed) or "nothing"


def test_a_changed_setting_reruns_exactly_its_stages(keys):
    fields = [f.name for f in dataclasses.fields(Recipe)]
    assert set(OTHER) == set(fields), "a new field needs another value here"
    rows = []
    for title, recipe in KINDS.items():
        before = keys(recipe)
        assert keys(recipe) == before
        rows += [f"\n## {title}\n", f"Stages: {', '.join(kinds(before))}.\n", "| changed | runs anew |", "|---|---|"]
        for field in fields:
            other = OTHER[field]
            assert getattr(recipe, field) != other
            try:
                changed = dataclasses.replace(recipe, **{field: other})
            except InputError:
                continue  # no recipe: rounds with a budget, sparsities of another pattern
            after = keys(changed)
            rows.append(f"| {field} | {anew(before, after)} |")
        more = {
            "augment": {"augment": Augment(flip="h")},
            "class_names": {"class_names": ("x", "y", "z")},
            "preprocess": {"preprocess": Preprocess(scale=0.5)},
            "title, command": {"title": "other", "command": "other"},
        }
        for name, given in more.items():
            after = keys(recipe, **given)
            rows.append(f"| {name} | {anew(before, after)} |")
    text = (
        "# Which stages a changed setting runs anew\n\n"
        "Written by `ORBIT_KD_WRITE=1 python -m pytest tests/test_stages_of_settings.py`, which also checks it. Each "
        "field of `Recipe` says which stages it changes (`orbit_kd/pipeline/recipe.py`), a stage says which ones it "
        "follows. Every exported file names its recipe, so that each change writes and measures the files again. "
        "Ratios, sparsities and epochs that a budget or the clock decides are held here: where a decision comes out "
        "otherwise, "
        "what follows from it runs anew too.\n"
        + "\n".join(rows) + "\n"
    )  # fmt: skip
    if os.environ.get("ORBIT_KD_WRITE"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text
