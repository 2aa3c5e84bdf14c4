"""Each task from a model to the evaluated int8 file, its figures against ones counted by hand, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import losses_of
from orbit_kd.tasks import choose, from_config, tasks
from orbit_kd.tasks.metrics import average_precision, bootstrap, intersection_over_union
from orbit_kd.training.fit import train

layers = keras.layers
RECIPE = Recipe(
    ratio=0.5, epochs=2, views=1, batch_size=16, calibration=16, targets=("tflite_int8",), learning_rate=1e-2
)


def body(filters: int = 8, bands: int = 2):
    image = keras.Input((12, 12, bands))
    x = layers.Conv2D(filters, 3, padding="same", activation="relu", name="a")(image)
    return image, layers.Conv2D(filters, 3, padding="same", activation="relu", name="b")(x)


def network(width: int, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    image, x = body()
    return keras.Model(image, layers.Dense(width, activation, name="out")(layers.GlobalAveragePooling2D()(x)))


def map_network(classes: int, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    image, x = body()
    return keras.Model(image, layers.Conv2D(classes, 1, activation=activation, name="out")(x))


def images(count: int = 48) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 12, 12, 2)).astype("float32")
    return x + rng.normal(size=(count, 1, 1, 2)).astype("float32")


def data_of(y: np.ndarray) -> okd.Data:
    x = images(len(y))
    parts = np.split(np.arange(len(y)), [24, 36])
    return okd.Data(*((x[p], y[p]) for p in parts))


X = images()
LEVELS = X.mean((1, 2))
KINDS = {
    "binary": (lambda: network(1, "sigmoid"), (LEVELS[:, 0] > 0).astype("int32")),
    "multi_label": (lambda: network(3, "sigmoid"), np.stack([LEVELS[:, 0] > 0, LEVELS[:, 1] > 0, LEVELS.sum(1) > 0], 1)
                    .astype("float32")),
    "regression": (lambda: network(2), LEVELS.astype("float32")),
    "segmentation": (lambda: map_network(3), np.digitize(X[..., 0], (-0.5, 0.5)).astype("int32")),
    "segmentation, one sigmoid": (lambda: map_network(1, "sigmoid"), (X[..., 0] > 0).astype("int32")),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def done(request, tmp_path_factory):
    make, y = KINDS[request.param]
    model, data = make(), data_of(y)
    if request.param == "regression":
        model.compile(loss="mse")
    folder = tmp_path_factory.mktemp("task")
    train(model, data, epochs=12, learning_rate=2e-2, batch_size=12, path=folder / "t.keras")
    return request.param.split(",")[0], model, data, okd.compress(model, data, recipe=RECIPE, workdir=folder)


def test_a_task_goes_from_the_model_to_the_measured_int8_file(done):
    name, model, data, result = done
    report, row = result.report, result.report.artifacts[0]
    assert report.task["kind"] == name
    (x, y) = next(iter(data.test.unbatch().batch(100)))
    outputs = okd.predict(result.artifacts[0], x.numpy())
    task = choose(model, data)
    records = task.records(task.truth(y), (outputs,))
    assert row["metric"] == pytest.approx(task.value(records))
    assert row["metric"] > (task.chance(records) or 0.0), "it learned nothing"
    assert result.student.count_params() < model.count_params()
    assert str(report).count(task.metric.name) or task.metric.name in str(report).lower()
    page = (result.artifacts[0].path.parent.parent / "report.html").read_text()
    assert task.metric.name[1:] in page


def test_the_file_alone_says_what_it_is_for(done):
    name, _, data, result = done
    found = okd.evaluate(result.artifacts[0], data.test, latency_runs=1, tflm_images=1)
    assert found.task["kind"] == name
    assert found.artifacts[0]["metric"] == pytest.approx(result.report.artifacts[0]["metric"])


def test_scans_budgets_and_the_search_take_every_task(done, tmp_path):
    _, model, data, _ = done
    scan = okd.sensitivity(model, data.val, ratios=(0.5,))
    task = choose(model, data)
    (x, y) = next(iter(data.val.unbatch().batch(100)))
    assert scan.accuracy == pytest.approx(task.value(task.records(task.truth(y), (model(x).numpy(),))), rel=1e-3)
    recipe = Recipe(max_drop=0.5, epochs=1, search_epochs=1, views=1, batch_size=12, calibration=12, time_budget=2.0,
                    targets=("tflite_int8",))  # fmt: skip
    found = okd.compress(model, data, recipe=recipe, workdir=tmp_path).report
    assert found.search["reached"] >= found.search["target"] - 1e-9 or "below" in found.search["verdict"]


def test_figures_by_hand():
    task = from_config({"name": "segmentation", "classes": 3, "size": [1, 4], "threshold": None})
    truth = task.truth(np.array([[[0, 1, 1, 255]], [[0, 0, 1, 1]]]))
    answers = np.eye(3)[np.array([[[0, 1, 0, 2]], [[0, 1, 1, 1]]])]
    records = task.records(truth, (answers,))
    # class 0: 2 of both, union {2 right, 1 missed, 1 wrong}; class 1: 3 of both, one missed, one wrong; 2 not there
    assert task.value(records) == pytest.approx((2 / 4 + 3 / 5) / 2)
    assert task.details(records)["pixel_accuracy"] == pytest.approx(5 / 7)
    assert np.isnan(task.details(records)["per_class"]["IoU"][2])
    regression = from_config({"name": "regression", "numbers": 1})
    records = regression.records(np.array([[0.0], [1], [2]]), (np.array([[0.0], [1], [1]]),))
    assert regression.value(records) == pytest.approx(0.5)
    assert regression.details(records)["mae"] == pytest.approx(1 / 3)
    labels = from_config({"name": "multi_label", "labels": 2})
    records = labels.records(np.array([[1.0, 0], [0, 0], [1, 0]]), (np.array([[0.9, 0.1], [0.6, 0.2], [0.4, 0.1]]),))
    assert labels.value(records) == pytest.approx((1 + 2 / 3) / 2)  # the label that no image has is left out
    assert labels.details(records)["per_class"]["F1"][0] == pytest.approx(0.5)


def test_average_precision_counts_equal_scores_as_one_step():
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.5, 0.1])
    assert average_precision(truth, scores) == pytest.approx(2 / 3)
    assert np.isnan(average_precision(np.zeros(3), np.arange(3.0)))
    assert np.isnan(intersection_over_union(np.diag([3, 0]))[1])


def test_the_paired_bootstrap_tells_chance_from_difference():
    rng = np.random.default_rng(0)
    same, better = rng.integers(0, 2, 400).astype(float), np.ones(400)
    assert bootstrap(np.mean, same, same).p == 1.0
    found = bootstrap(np.mean, same, better)
    assert found.p < 0.01 and found.low <= found.difference <= found.high and found.low > 0
    noisy = np.where(rng.uniform(size=400) < 0.05, 1 - same, same)
    assert bootstrap(np.mean, same, noisy).p > 0.05


@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (lambda: map_network(3), np.full((48, 12, 12), 3), "labels from 3 to 3, and the network knows 3 classes"),
        (lambda: map_network(3), np.zeros((48, 6, 6), int), r"12x12 pixels[\s\S]*6x6"),
        (lambda: map_network(1, "sigmoid"), np.full((48, 12, 12), 200), "two classes: .mask > 0"),
        (lambda: network(3, "sigmoid"), np.eye(4)[np.arange(48) % 4], "3 numbers an image"),
        (lambda: network(1, "sigmoid"), np.arange(48) % 3, "The data has 3 classes and the network has 2 outputs"),
        (lambda: network(1, "sigmoid"), np.linspace(0, 1, 48), "not one class an image"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_trained(make, y, message, tmp_path):
    with pytest.raises(InputError, match=message):
        okd.compress(make(), data_of(y), recipe=RECIPE, workdir=tmp_path)
    assert not list(tmp_path.rglob("*.keras"))


def test_labels_that_are_no_numbers_are_refused(tmp_path):
    model = network(2)
    model.compile(loss="mse")
    y = LEVELS.astype("float32").copy()
    y[3, 1] = np.nan
    with pytest.raises(InputError, match="finite numbers an image"):
        okd.compress(model, data_of(y), recipe=RECIPE, workdir=tmp_path)


def test_a_head_that_fits_no_task_is_refused(tmp_path):
    image, x = body()
    odd = keras.Model(image, layers.Reshape((144, 8))(x))
    with pytest.raises(InputError, match="no task fits that"):
        okd.compress(odd, data_of(np.arange(48) % 2), recipe=RECIPE, workdir=tmp_path)
    for name in tasks:
        if name not in ("several", "detection"):
            with pytest.raises(InputError):
                choose(odd, task=name)


def test_one_output_has_no_tasks_of_outputs(tmp_path):
    with pytest.raises(InputError, match="several outputs"):
        okd.compress(network(1, "sigmoid"), data_of(np.arange(48) % 2),
                     recipe=Recipe(output_weights={"out": 2.0}), workdir=tmp_path)  # fmt: skip


def two_outputs() -> keras.Model:
    keras.utils.set_random_seed(0)
    image, x = body()
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, [layers.Dense(3, name="kind")(x), layers.Dense(1, "sigmoid", name="wet")(x)])


def two_inputs() -> keras.Model:
    keras.utils.set_random_seed(0)
    image, x = body()
    angle = keras.Input((2,), name="angle")
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.Dense(4, "relu", name="read")(angle)])
    return keras.Model([image, angle], layers.Dense(3, name="out")(x))


KIND, WET = np.digitize(LEVELS[:, 0], (-0.5, 0.5)).astype("int32"), (LEVELS[:, 1] > 0).astype("int32")


def splits_of(x, y) -> okd.Data:
    def part(values, places):
        if isinstance(values, dict):
            return {name: value[places] for name, value in values.items()}
        return tuple(v[places] for v in values) if isinstance(values, tuple) else values[places]

    parts = np.split(np.arange(48), [24, 36])
    return okd.Data(*(tf.data.Dataset.from_tensor_slices((part(x, p), part(y, p))).batch(12) for p in parts))


@pytest.mark.parametrize("labels", [{"kind": KIND, "wet": WET}, (KIND, WET)], ids=["by name", "in order"])
def test_two_outputs_have_a_task_each(labels, tmp_path):
    model, data = two_outputs(), splits_of(X, labels)
    task = choose(model, data, weights={"kind": 3.0})
    assert [part.name for part in task.parts.values()] == ["classification", "binary"]
    train(model, data, epochs=10, learning_rate=2e-2, batch_size=12, task=task, path=tmp_path / "t.keras")
    recipe = dataclasses.replace(RECIPE, output_weights={"kind": 3.0})
    result = okd.compress(model, data, recipe=recipe, workdir=tmp_path / "w")
    row = result.report.artifacts[0]
    kinds, wets = okd.predict(result.artifacts[0], X[36:])
    accuracies = np.mean(kinds.argmax(-1) == KIND[36:]), np.mean((wets[:, 0] > 0.5) == WET[36:])
    assert row["outputs"]["kind"]["accuracy"] == pytest.approx(accuracies[0])
    assert row["outputs"]["wet"]["accuracy"] == pytest.approx(accuracies[1])
    assert row["metric"] == pytest.approx(np.average(accuracies, weights=[3, 1])) and row["tflm"]["max_lsb"] <= 1
    assert okd.sensitivity(model, data.val, ratios=(0.5,), task=task).metric == task.metric.name


def test_a_temperature_that_several_outputs_would_not_get_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPE, temperature=3.0)
    with pytest.raises(InputError, match=r"temperature=3[\s\S]*--losses=logits:1"):
        okd.compress(two_outputs(), splits_of(X, (KIND, WET)), recipe=recipe, workdir=tmp_path)
    named = dataclasses.replace(recipe, losses=("logits:1",))
    (loss,) = losses_of(named, choose(two_outputs(), splits_of(X, (KIND, WET))))
    assert loss.temperature.at(0) == 3.0


def test_outputs_whose_labels_are_missing_are_refused(tmp_path):
    with pytest.raises(InputError, match="no labels for output 'wet'"):
        okd.compress(two_outputs(), splits_of(X, {"kind": KIND}), recipe=RECIPE, workdir=tmp_path)
    with pytest.raises(InputError, match="no such outputs"):
        choose(two_outputs(), splits_of(X, (KIND, WET)), weights={"dry": 1.0})


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_two_inputs_go_all_the_way(form, tmp_path):
    model, angle = two_inputs(), LEVELS.astype("float32")
    data = splits_of((X, angle) if form == "tuple" else {model.input_names[0]: X, "angle": angle}, KIND)
    train(model, data, epochs=10, learning_rate=2e-2, batch_size=12, path=tmp_path / "t.keras")
    result = okd.compress(model, data, recipe=RECIPE, workdir=tmp_path / "w")
    outputs = okd.predict(result.artifacts[0], (X[36:], angle[36:]))
    row = result.report.artifacts[0]
    assert row["accuracy"] == pytest.approx(np.mean(outputs.argmax(-1) == KIND[36:]))
    assert row["tflm"]["max_lsb"] <= 1 and result.student.count_params() < model.count_params()


def squares(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Images with one bright square each, and its box."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(scale=0.1, size=(count, 32, 32, 1)).astype("float32"), np.zeros((count, 2, 5), "float32")
    y[:, 1, 0] = -1
    for i in range(count):
        size, (top, left) = int(rng.integers(8, 14)), rng.integers(0, 18, 2)
        x[i, top : top + size, left : left + size] += 1
        y[i, 0, 1:] = np.array([top, left, top + size, left + size]) / 32
    return x, y


def detector() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 1))
    x = layers.Conv2D(16, 5, strides=2, padding="same", activation="relu", name="a")(image)
    x = layers.Conv2D(24, 5, strides=2, padding="same", activation="relu", name="b")(x)
    x = layers.Conv2D(24, 5, padding="same", activation="relu", name="c")(x)
    return keras.Model(image, layers.Conv2D(5, 1, activation="sigmoid", name="maps")(x))


def test_boxes_go_all_the_way(tmp_path):
    (x, y), model = squares(), detector()
    data = splits_of(x, y)
    train(model, data, epochs=60, learning_rate=1e-2, batch_size=12, path=tmp_path / "t.keras")
    recipe = dataclasses.replace(RECIPE, ratio=0.25, epochs=20)
    result = okd.compress(model, data, recipe=recipe, workdir=tmp_path / "w")
    report, row = result.report, result.report.artifacts[0]
    task = choose(model, data)
    records = task.records(task.truth(y[36:]), (okd.predict(result.artifacts[0], x[36:]),))
    assert report.task["kind"] == "detection" and row["metric"] == pytest.approx(task.value(records))
    assert report.teacher["metric"] > 0.5 and row["metric"] > 0.3 and 0 < row["paired_p"] <= 1
    assert len(report.pictures) == 8 and report.pictures[0]["metric"] <= report.pictures[-1]["metric"]
    page = (tmp_path / "w" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8 and "Precision against recall" in page
    scan = okd.sensitivity(model, data.val, ratios=(0.5,))
    assert scan.metric == "AP50" and scan.accuracy == pytest.approx(
        task.value(task.records(task.truth(y[24:36]), (model(x[24:36]).numpy(),))), abs=1e-3
    )
