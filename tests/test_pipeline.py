"""The whole job on a tiny network: it composes, measures truly, resumes, and refuses bad input."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.errors import InputError
from orbit_kd.exporters import read_metadata
from orbit_kd.models import networks
from orbit_kd.models.saving import fingerprint
from orbit_kd.pipeline import compress as pipeline
from orbit_kd.pipeline import decisions, sections
from orbit_kd.pipeline.compress import compress
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import Retraining
from orbit_kd.support.digests import digest
from orbit_kd.support.stages import Stages
from orbit_kd.tasks import choose

RECIPE = Recipe(ratio=0.5, rounds=2, epochs=16, pattern="2:4", sparse_epochs=6, views=2, batch_size=16, calibration=32)


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three kinds of stripes, 16x16 grey, with noise: (n, 16, 16, 1) float32 0..255 and int labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    ramp = np.arange(16)
    patterns = [np.tile(ramp % 4 < 2, (16, 1)), np.tile(ramp % 4 < 2, (16, 1)).T, (ramp[:, None] + ramp) % 4 < 2]
    x = np.stack([patterns[k] for k in labels]) * 120 + rng.normal(64, 40, (n, 16, 16))
    return np.clip(x, 0, 255).astype("float32")[..., None], labels.astype("int32")


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(160, 0), stripes(48, 1), stripes(64, 2), class_names=("rows", "columns", "diagonals"))


@pytest.fixture(autouse=True, scope="module")
def reads():
    """Which fields of the recipe each running stage reads: all must be in its key, or in that of one it follows."""
    found: dict[str, set[str]] = {}
    running, follows = [], {}
    patch, fields = pytest.MonkeyPatch(), {f.name for f in dataclasses.fields(Recipe)}
    get, stage = Recipe.__getattribute__, Stages.stage

    def recorded(self, name):
        if running and name in fields:
            found.setdefault(running[-1], set()).add(name)
        return get(self, name)

    @contextlib.contextmanager
    def entered(self, name, *, after=(), **settings):
        follows[name] = set(settings).union(*(follows[n] for n in after))
        with stage(self, name, after=after, **settings) as given:
            running.append(name)
            try:
                yield given
            finally:
                running.pop()
        assert found.get(name, set()) <= follows[name], f"stage {name} reads what is not in its key"

    patch.setattr(Recipe, "__getattribute__", recorded)
    patch.setattr(Stages, "stage", entered)
    yield found
    patch.undo()


def make_teacher(last: str = "linear") -> keras.Model:
    """A residual block and a strided convolution behind it."""
    keras.utils.set_random_seed(1)
    layers = keras.layers

    def convolution(x, width, name, strides=1):
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False, name=name)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    image = keras.Input((16, 16, 1))
    x = layers.ReLU()(convolution(layers.Rescaling(1 / 255)(image), 32, "stem"))
    y = convolution(layers.ReLU()(convolution(x, 32, "a1")), 32, "a2")
    x = layers.ReLU()(convolution(layers.ReLU()(layers.Add()([y, x])), 128, "b", strides=2))
    body = keras.Model(image, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)), name="one_block")
    return (
        keras.Model(body.input, keras.layers.Activation(last, name="scores")(body.output)) if last != "linear" else body
    )


@pytest.fixture(scope="module")
def teacher(data) -> keras.Model:
    model = make_teacher()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.train, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def done(teacher, data, tmp_path_factory):
    before = fingerprint(teacher)
    result = compress(teacher, data, recipe=RECIPE, workdir=tmp_path_factory.mktemp("run"))
    assert fingerprint(teacher) == before, "the teacher changed"
    return result


def test_all_files_are_written_and_run(done):
    folder = done.artifacts[0].path.parent.parent
    assert {"student.keras", "report.json", "report.html"} <= {p.name for p in folder.iterdir()}
    assert [a.target for a in done.artifacts] == ["tflite_float32", "tflite_int8", "c_array"]
    assert all(p.stat().st_size > 0 for a in done.artifacts for p in a.files)
    said = read_metadata(done.artifacts[1].path)
    assert said["class_names"] == ["rows", "columns", "diagonals"] and said["recipe"] == digest(RECIPE.to_dict())
    assert set(said["versions"]) == {"orbit_kd", "tensorflow", "tf_keras"} and said["preprocess"] is None
    report = json.loads((folder / "report.json").read_text())
    assert {
        "teacher",
        "student",
        "artifacts",
        "layers",
        "history",
        "stages",
        "ratios",
        "recipe",
        "versions",
        "seed",
    } <= set(report)
    assert [h["stage"] for h in report["history"]] == ["distill_1", "distill_2", "sparsify"]
    assert [len(h["val_accuracy"]) for h in report["history"]] == [8, 8, 6]


def test_the_student_is_smaller_and_no_worse_than_chance(done, teacher):
    assert done.student.count_params() < 0.35 * teacher.count_params()
    assert done.report.artifacts[1]["accuracy"] > 0.5


def test_report_figures_equal_a_recount_from_the_int8_file(done, data):
    from ai_edge_litert.interpreter import Interpreter

    row = done.report.artifacts[1]
    interpreter = Interpreter(model_path=str(done.artifacts[0].path.parent.parent / row["path"]))
    interpreter.allocate_tensors()
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
    right = total = 0
    for x, y in data.test:
        for image, label in zip(x.numpy(), y.numpy(), strict=True):
            scale, zero = entry["quantization"]
            q = np.clip(np.round(image / scale) + zero, -128, 127).astype(np.int8)
            interpreter.set_tensor(entry["index"], q[None])
            interpreter.invoke()
            right += int(interpreter.get_tensor(exit_["index"])[0].argmax() == label)
            total += 1
    assert row["accuracy"] == pytest.approx(right / total)
    assert row["bytes"] == done.artifacts[1].path.stat().st_size
    assert done.report.ratios["bytes"] == pytest.approx(done.report.teacher["tflite_bytes"] / row["bytes"])


def test_masks_survive_to_the_files(done):
    for layer in done.student.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel.shape[2] >= 4 and layer.kernel.shape[2] % 4 == 0:
            groups = np.moveaxis(layer.kernel.numpy(), 2, -1).reshape(-1, 4)
            assert (np.count_nonzero(groups, axis=1) <= 2).all(), layer.name
    from orbit_kd.tflite.nm_check import check_n_m

    for artifact in done.artifacts[:2]:
        checks = check_n_m(artifact.path, n=2, m=4)
        assert sum(c.ok for c in checks) >= 3, "the convolutions of the exported file lost their 2:4"
        assert all(c.minus_128 == 0 for c in checks)
    assert done.report.student["nonzero_params"] < 0.7 * done.report.student["params"]


def test_the_same_call_again_trains_nothing_wherever_its_folder_is(done, teacher, data, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise AssertionError("trained or evaluated again")

    monkeypatch.setattr(Retraining, "distil", fail)
    monkeypatch.setattr(pipeline, "evaluate", fail)
    folder = done.artifacts[0].path.parent.parent
    again = compress(teacher, data, recipe=RECIPE, workdir=folder)
    assert again.report.artifacts == done.report.artifacts
    assert fingerprint(again.student) == fingerprint(done.student)
    moved = shutil.copytree(folder, tmp_path / "moved")
    there = compress(teacher, data, recipe=RECIPE, workdir=moved)
    assert there.report.artifacts == done.report.artifacts
    assert all(f.is_relative_to(moved) and f.is_file() for a in there.artifacts for f in a.files)


def test_a_killed_run_goes_on_and_a_changed_recipe_starts_where_it_differs(teacher, data, tmp_path, monkeypatch):
    recipe = Recipe(ratio=0.5, epochs=2, views=1, batch_size=32, calibration=16, targets=("tflite_int8",))
    trained = []
    real_distil, real_export = Retraining.distil, pipeline.export_all
    monkeypatch.setattr(Retraining, "distil", lambda *a, **k: trained.append(k["label"]) or real_distil(*a, **k))

    def killed(model, names, **kwargs):
        if kwargs["stem"] == "student":
            raise KeyboardInterrupt
        return real_export(model, names, **kwargs)

    monkeypatch.setattr(pipeline, "export_all", killed)
    with pytest.raises(KeyboardInterrupt):
        compress(teacher, data, recipe=recipe, workdir=tmp_path)
    monkeypatch.setattr(pipeline, "export_all", real_export)
    compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert trained == ["distill_1"]
    lessons = {p: p.stat().st_mtime_ns for p in (tmp_path / "lessons").rglob("*.npy")}
    compress(teacher, data, recipe=dataclasses.replace(recipe, ratio=0.25), workdir=tmp_path)
    assert trained == ["distill_1", "distill_1"]
    assert lessons == {p: p.stat().st_mtime_ns for p in (tmp_path / "lessons").rglob("*.npy")}


def test_losses_on_inner_layers_are_taught_through_filters_and_masks(teacher, data, tmp_path):
    recipe = Recipe(ratio=0.5, epochs=2, pattern="2:4", sparse_epochs=1, views=2, batch_size=16, calibration=32,
                    losses=("logits", "similarity:10", "hints"))  # fmt: skip
    result = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    trained = [stage for stage in result.report.history if stage["stage"] in ("distill_1", "sparsify")]
    assert len(trained) == 2
    for stage in trained:
        for name in ("similarity_preserving_loss", "feature_hints_loss"):
            assert all(0 < value < 100 for value in stage[name])
    assert not any("hint" in layer.name for layer in result.student.layers)  # the projectors are gone


def test_a_softmax_teacher_and_one_hot_labels(tmp_path):
    def one_hot(n, seed):
        x, y = stripes(n, seed)
        return x, np.eye(3, dtype="float32")[y]

    data = Data(one_hot(48, 0), one_hot(24, 1), one_hot(24, 2))
    recipe = Recipe(ratio=0.5, epochs=1, views=1, batch_size=16, calibration=16, targets=("tflite_int8",))
    result = compress(make_teacher("softmax"), data, recipe=recipe, workdir=tmp_path)
    np.testing.assert_allclose(result.student(one_hot(4, 3)[0]).numpy().sum(-1), 1, rtol=1e-5)


def test_a_teacher_that_only_guesses_is_told_of_at_once(teacher, data, caplog):
    with caplog.at_level("INFO", "orbit_kd"):
        pipeline._tell_of_chance(teacher, data, choose(teacher, data), 48)
    assert "of 48 validation images" in caplog.text and "commonest" not in caplog.text
    x, y = stripes(48, 1)
    pipeline._tell_of_chance(teacher, Data((x, y), (x * 0, y), (x, y)), choose(teacher, data), 48)
    assert "no better than the commonest class" in caplog.text and "--expected_accuracy" in caplog.text


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"criterion": "magic"}, "Unknown criterion"),
        ({"pattern": "9:4"}, "pattern"),
        ({"targets": ("paper",)}, "Unknown export target"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"alpha": 2.0}, "alpha=2.0"),
        ({"losses": ("wisdom",)}, "Unknown distillation loss"),
        ({"losses": ("logits:much",)}, "is no weight"),
        ({"losses": ()}, "losses="),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_written(recipe, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        compress(make_teacher(), data, recipe=Recipe(**recipe), workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_data_that_do_not_fit_the_teacher_are_refused(data, tmp_path):
    other = networks.build("resnet20", (32, 32, 1), classes=3, width=0.25)
    with pytest.raises(InputError, match="16x16"):
        compress(other, data, workdir=tmp_path / "new")
    other = networks.build("resnet20", (16, 16, 1), classes=7, width=0.25)
    with pytest.raises(InputError, match="3 classes"):
        compress(other, data, workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nan_in_training_stops_with_its_place(teacher, data, tmp_path):
    x, y = stripes(32, 0)
    x[5] = np.nan
    bad = Data((x, y), data.val, data.test)
    with pytest.raises(InputError, match=r"(?i)nan|finite"):
        compress(teacher, bad, recipe=Recipe(epochs=1, views=1), workdir=tmp_path)


def test_max_drop_searches_the_smallest_network_and_says_how(teacher, data, tmp_path):
    recipe = Recipe(
        max_drop=0.1,
        search_epochs=4,
        epochs=4,
        views=2,
        batch_size=16,
        calibration=32,
        min_channels=6,
        targets=("tflite_int8",),
    )
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    story = done.report.data["search"]
    assert any(t["accepted"] for t in story["trials"])
    assert done.student.count_params() == min(t["params"] for t in story["trials"] if t["accepted"])
    assert story["verdict"] == (
        "as asked"
        if story["reached"] >= story["target"]
        else "below what was asked, as the exported file reads other than the one of the search"
    )
    before = (tmp_path / "search" / "trials.json").stat().st_mtime_ns
    again = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert (tmp_path / "search" / "trials.json").stat().st_mtime_ns == before
    assert fingerprint(again.student) == fingerprint(done.student)


def test_a_byte_budget_is_met_by_the_file(teacher, data, tmp_path):
    recipe = Recipe(max_bytes=40_000, epochs=1, views=1, batch_size=32, calibration=32, targets=("tflite_int8",))
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert 0.9 * 40_000 <= done.artifacts[0].bytes <= 40_000
    assert set(done.report.data["chosen"]["ratios"]) and done.report.data["recipe"]["max_bytes"] == 40_000
    assert {"filters.json", "filters.csv", "filters.png"} <= {p.name for p in (tmp_path / "sensitivity").iterdir()}


def test_filters_and_weights_are_chosen_together(teacher, data, tmp_path):
    recipe = Recipe(keep_params=0.2, pattern="magnitude", epochs=1, sparse_epochs=1, views=1, batch_size=32,
                    calibration=32, targets=("tflite_float32",))  # fmt: skip
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    kept = sum(int(np.count_nonzero(w)) for w in done.student.get_weights()) / teacher.count_params()
    assert 0.17 <= kept <= 0.205
    assert done.report.data["chosen"]["ratios"] or done.report.data["chosen"]["sparsities"]


def test_a_time_budget_cuts_the_epochs(teacher, data, tmp_path):
    recipe = Recipe(epochs=1000, time_budget=4, views=1, batch_size=32, calibration=32, targets=("tflite_float32",))
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    epochs = len(done.report.history[0]["val_accuracy"])
    assert 1 <= epochs < 1000
    assert epochs == done.report.data["chosen"]["epochs"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 1.5}, "max_drop"),
        ({"keep_params": 0.0}, "keep_params"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"time_budget": 0}, "time_budget"),
        ({"max_drop": 0.01, "rounds": 2, "epochs": 4}, "rounds"),
        ({"sparsities": {"a": 0.5}}, "sparsities"),
        ({"max_drop": 0.01, "bits": 4}, "bits"),
        ({"max_drop": 0.01, "layer_bits": {"a": 4}}, "bits"),
    ],
)
def test_budgets_that_make_no_sense_are_refused_in_the_recipe(settings, message):
    with pytest.raises(InputError, match=message):
        Recipe(**settings)


def test_a_budget_out_of_reach_is_refused_and_says_what_can_be_reached(teacher, data, tmp_path):
    with pytest.raises(InputError, match=r"(?s)cannot be reached.*bytes more"):
        compress(teacher, data, recipe=Recipe(max_bytes=2_000, views=1), workdir=tmp_path)


@pytest.mark.slow
def test_the_bytes_that_a_refusal_names_can_be_reached(teacher, data, tmp_path):
    with pytest.raises(InputError, match="cannot be reached") as caught:
        compress(teacher, data, recipe=Recipe(max_bytes=2_000, views=1), workdir=tmp_path)
    least = sum(map(int, re.findall(r"at least (\d+), .* (\d+) bytes more", str(caught.value))[0]))
    recipe = Recipe(max_bytes=least, views=1, epochs=1, targets=("tflite_int8",))
    assert compress(teacher, data, recipe=recipe, workdir=tmp_path).artifacts[0].bytes <= least


@pytest.mark.slow
def test_a_criterion_that_learns_from_data_gets_the_training_images(teacher, data, tmp_path):
    recipe = Recipe(criterion="taylor", keep_macs=0.5, epochs=1, views=1, batch_size=32, targets=("tflite_float32",))
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert done.report.data["ratios"]["macs"] >= 2


@pytest.mark.slow
def test_widths_in_multiples_meet_a_budget(teacher, data, tmp_path):
    recipe = Recipe(keep_macs=0.5, round_to=4, epochs=1, views=1, batch_size=32, targets=("tflite_float32",))
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert done.report.data["ratios"]["macs"] >= 2
    assert all(layer["width_after"] % 4 == 0 for layer in done.report.data["layers"][:-1])


def test_every_kind_of_target_can_be_asked_for(teacher, data, tmp_path):
    targets = ("tflite_int8", "tflm", "vela:ethos-u55-128", "packed", "onnx")
    recipe = Recipe(ratio=0.5, epochs=1, views=1, batch_size=32, calibration=16, targets=targets)
    done = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    rows = {a["target"]: a for a in done.report.artifacts}
    assert tuple(rows) == targets
    assert rows["tflm"]["accuracy"] == rows["tflite_int8"]["accuracy"]
    assert rows["onnx"]["accuracy"] > 0.3 and "accuracy" not in rows["packed"]
    assert rows["vela:ethos-u55-128"]["details"]["cycles"] > 0
    assert all((tmp_path / a["path"]).exists() for a in rows.values())
    assert "ethos-u55-128" in (tmp_path / "report.html").read_text()
    again = compress(teacher, data, recipe=recipe, workdir=tmp_path)
    assert again.report.artifacts == done.report.artifacts


FEW = Recipe(ratio=0.25, epochs=1, pattern="magnitude", sparsity=0.6, sparsity_scope="lamp", sparse_epochs=1, bits=4,
             quantize_epochs=1, views=1, batch_size=32, calibration=16,
             targets=("tflite_float32", "tflite_int8", "tflite_micro_coded"))  # fmt: skip


@pytest.fixture(scope="module")
def few(teacher, data, tmp_path_factory):
    return compress(teacher, data, recipe=FEW, workdir=tmp_path_factory.mktemp("few"))


def test_zeros_and_few_levels_pay_in_a_coded_file(few):
    exact, plain, coded = few.report.artifacts
    assert coded["bytes"] < 0.75 * plain["bytes"] < exact["bytes"]
    for figure in ("accuracy", "params", "nonzero_params"):
        assert coded[figure] == plain[figure], figure
    assert coded["nonzero_params"] < 0.5 * coded["params"]
    assert [h["stage"] for h in few.report.history] == ["distill_1", "sparsify", "quantize"]


def test_the_student_of_few_levels_comes_back_plain(few):
    kernel = few.student.get_layer("b").kernel.numpy()
    assert type(few.student.get_layer("b")) is keras.layers.Conv2D
    assert max(len(np.unique(np.abs(kernel[..., i]))) for i in range(kernel.shape[-1])) <= 8
    folder = few.artifacts[0].path.parent.parent
    np.testing.assert_array_equal(keras.models.load_model(folder / "student.keras").get_layer("b").kernel, kernel)


def test_a_student_of_before_goes_on(few, teacher, data, tmp_path):
    recipe = dataclasses.replace(
        FEW, ratio=0.0, pattern="dense", sparsity_scope="layer", bits=8, targets=("tflite_int8",)
    )
    result = compress(teacher, data, student=few.student, recipe=recipe, workdir=tmp_path)
    assert result.report.teacher["params"] == few.report.teacher["params"]
    assert result.student.count_params() == few.student.count_params()
    assert result.student.get_layer("b").kernel.shape == few.student.get_layer("b").kernel.shape


def test_a_student_that_does_not_fit_is_refused(few, teacher, data, tmp_path):
    other = networks.build("resnet20", (16, 16, 1), classes=3, width=0.25)
    with pytest.raises(InputError, match="that the teacher has not"):
        compress(teacher, data, student=other, recipe=FEW, workdir=tmp_path)
    with pytest.raises(InputError, match="max_drop searches from the teacher on"):
        compress(teacher, data, student=few.student, recipe=Recipe(max_drop=0.1), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_byte_budget_is_about_the_file_that_counts(caplog):
    recipe = Recipe(max_bytes=1000, max_drop=0.1, targets=("tflite_int8", "tflite_micro_coded"))
    model = make_teacher()
    decisions._check_budgets(model, model, recipe, 100, 900)  # the int8 file is far larger
    with pytest.raises(InputError, match="max_bytes=1000"):
        decisions._check_budgets(model, model, recipe, 100, 901)
    files = [{"target": "tflite_int8", "bytes": 5000}, {"target": "tflite_micro_coded", "bytes": 999}]
    measured = {"artifacts": files, "ratios": {"macs": 1.0}}
    assert not sections._notes(measured, "dense", recipe)
    files[1]["bytes"] = 1001
    assert "tflite_micro_coded file has 1,001 bytes" in sections._notes(measured, "dense", recipe)[0]
    assert "more than max_bytes=1,000" in caplog.text
