"""The figures of a report, against a recount that shares no code with the library."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from test_tflite_reader import recount

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.evaluation import evaluate as evaluation
from orbit_kd.evaluation.evaluate import evaluate
from orbit_kd.evaluation.outputs import logits
from orbit_kd.evaluation.sections import zeros_added
from orbit_kd.exporters import export
from orbit_kd.tasks.metrics import accuracy, confusion_matrix, mcnemar
from orbit_kd.tflite.summary import read

layers = keras.layers
CLASSES = 4


def net(width: int, *, seed: int, softmax: bool = False) -> keras.Model:
    rng = np.random.default_rng(seed)
    image = layers.Input((10, 10, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, use_bias=False)(image)))
    x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3)(x))
    model = keras.Model(image, layers.Dense(CLASSES, activation="softmax" if softmax else None)(x))
    for v in model.variables:
        values = rng.uniform(0.5, 1.5, v.shape) if "variance" in v.name else rng.normal(0, 0.5, v.shape)
        v.assign(np.where(rng.random(v.shape) < 0.4, 0, values) if "kernel" in v.name else values)
    return model


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(83, 10, 10, 2)).astype(np.float32), rng.integers(0, CLASSES, 83)


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    """(folder, teacher, teacher's int8 file, the student's files)."""
    folder = tmp_path_factory.mktemp("evaluation")
    teacher, student = net(16, seed=0, softmax=True), net(6, seed=1)
    files = [
        export(student, t, path=folder / f"{t}.tflite", calibration=images[0])
        for t in ("tflite_float32", "tflite_int8")
    ]
    files.append(export(files[1], "c_array", path=folder / "student.cc"))
    return folder, teacher, export(teacher, "tflite_int8", path=folder / "t8.tflite", calibration=images[0]), files


@pytest.fixture(scope="module")
def report(made, images):
    folder, teacher, teacher_int8, files = made
    test = tf.data.Dataset.from_tensor_slices((images[0], tf.one_hot(images[1], CLASSES))).batch(20)
    return evaluate(
        files,
        test,
        teacher=teacher,
        teacher_artifacts=[teacher_int8],
        class_names=list("abcd"),
        workdir=folder / "work",
        latency_runs=5,
        tflm_images=12,
    )


def outputs_by_hand(path, x: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in x[:, None]:
        if source["dtype"] is np.int8:
            scale, zero = source["quantization"]
            image = np.clip(np.round(image / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], image)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(sink["index"])[0])
    return np.array(rows)


def test_report_equals_an_independent_recount(report, made, images):
    folder, _, _, files = made
    x, y = images
    data = report.data
    teacher_path = folder / "work" / "teacher_float32.tflite"
    paths = {"teacher": teacher_path, "float32": files[0].path, "int8": files[1].path}
    right = {name: outputs_by_hand(path, x).argmax(1) == y for name, path in paths.items()}
    sizes = {name: len(path.read_bytes()) for name, path in paths.items()}
    params, nonzero = recount(files[0].path)

    assert data["teacher"]["params"] == recount(teacher_path)[0]
    assert data["teacher"]["accuracy"] == right["teacher"].mean()
    assert data["teacher"]["tflite_bytes"] == sizes["teacher"]
    assert (data["student"]["params"], data["student"]["nonzero_params"]) == (params, nonzero)
    assert data["student"]["accuracy"] == right["float32"].mean()
    # 8x8 outputs of a 3x3x2 convolution, 6x6 of a depthwise 3x3, and the dense layer
    assert data["student"]["macs"] == 64 * 9 * 2 * 6 + 36 * 9 * 6 + 6 * CLASSES
    assert data["student"]["macs_nonzero"] < data["student"]["macs"]

    float32, int8, array = data["artifacts"]
    assert [a["target"] for a in data["artifacts"]] == ["tflite_float32", "tflite_int8", "c_array"]
    for row, name in ((float32, "float32"), (int8, "int8"), (array, "int8")):
        assert row["accuracy"] == right[name].mean()
        assert row["bytes"] == sizes[name]
        assert row["gzip_bytes"] == len(gzip.compress(paths[name].read_bytes(), 9, mtime=0))
        own = recount(paths[name])
        assert row["density"] == pytest.approx(own[1] / own[0])
        assert (row["params"], row["nonzero_params"]) == (params, nonzero)
        assert row["zeros_from_int8"] == nonzero - own[1] >= 0
        assert row["teacher_only_right"] == (right["teacher"] & ~right[name]).sum()
        assert row["student_only_right"] == (~right["teacher"] & right[name]).sum()
        assert np.sum(row["confusion"]) == len(y) and np.trace(row["confusion"]) == right[name].sum()

    ratios = data["ratios"]
    teacher_params = data["teacher"]["params"]
    assert ratios["params"] == teacher_params / params
    assert ratios["nonzero_params"] == teacher_params / nonzero
    assert ratios["parameters_gone"] == 1 - nonzero / teacher_params
    assert ratios["bytes"] == sizes["teacher"] / sizes["int8"]
    assert ratios["float32_bytes"] == sizes["teacher"] / sizes["float32"]
    assert ratios["macs"] == data["teacher"]["macs"] / data["student"]["macs"]


def test_latency_is_against_the_teachers_file_of_the_same_target(report):
    float32, int8, array = report.data["artifacts"]
    assert float32["latency"]["against"] == "teacher tflite_float32"
    assert int8["latency"]["against"] == "teacher tflite_int8"
    for row in (float32, int8):
        found = row["latency"]
        assert 0 < found["low"] <= found["ratio"] <= found["high"] and found["runs"] == 5
        assert row["latency_why"] is None
    assert array["latency"] is None and "no c_array file of the teacher" in array["latency_why"]


def test_int8_is_compared_with_tflm_and_float_is_not(report):
    float32, int8, array = (row["tflm"] for row in report.data["artifacts"])
    assert not float32["ran"] and float32["why"]
    assert int8["ran"] and int8["compared"] == 12 and int8["max_lsb"] <= 1 and int8["arena_bytes"] > 0
    assert array == int8


def test_report_saves_and_names_versions(report, tmp_path):
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["versions"]["tensorflow"] == tf.__version__
    assert saved["data"]["test"] == 83 and saved["class_names"] == list("abcd")


def test_without_a_teacher_and_without_a_float_file(made, images):
    _, _, _, files = made
    data = evaluate(str(files[1].path), [(images[0], images[1])], latency_runs=2, tflm_images=3).data
    assert data["teacher"] is None and data["ratios"] == {}
    assert data["student"]["measured_from"] == "tflite_int8"
    row = data["artifacts"][0]
    assert "mcnemar_p" not in row and row["zeros_from_int8"] is None and row["latency"] is None
    assert "no tflite_int8 file of the teacher" in row["latency_why"]


def test_a_teachers_file_serves_as_well_as_the_model(made, images, report):
    folder, _, _, files = made
    teacher = folder / "work" / "teacher_float32.tflite"
    data = evaluate(files[:1], [(images[0], images[1])], teacher=teacher, latency_runs=2).data
    assert data["teacher"] == report.data["teacher"]
    assert data["student"] == report.data["student"]


def test_files_see_the_same_images_though_the_test_set_is_shuffled(made, images):
    _, _, _, files = made
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(83, reshuffle_each_iteration=True).batch(9)
    labels, outputs = logits({"a": files[0].path, "b": files[0].path}, data)
    np.testing.assert_array_equal(outputs["a"], outputs["b"])
    assert accuracy(labels, outputs["a"]) == (outputs_by_hand(files[0].path, images[0]).argmax(1) == images[1]).mean()


def test_data_of_unknown_length_is_read_to_its_end(made, images):
    _, _, _, files = made
    data = tf.data.Dataset.from_tensor_slices(images).filter(lambda x, y: y < 3).batch(9)
    labels, _ = logits({"a": files[0].path}, data)
    assert len(labels) == (images[1] < 3).sum()


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), classes=3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (3, 5), (7, 7), (10, 2)])
def test_mcnemar_equals_the_enumeration_of_all_coin_flips(b, c):
    first = np.array([1] * b + [0] * c + [1, 0], bool)
    second = np.array([0] * b + [1] * c + [1, 0], bool)
    found = mcnemar(first, second)
    flips = [sum(f) for f in itertools.product((0, 1), repeat=b + c)]
    p = np.mean([abs(k - (b + c) / 2) >= abs(b - (b + c) / 2) for k in flips])
    assert (found.first_only, found.second_only) == (b, c)
    assert found.p == pytest.approx(p)


def test_mcnemar_of_a_large_test_set_does_not_overflow():
    first = np.arange(5000) < 2600
    p = mcnemar(first, ~first).p
    normal = math.erfc((200 - 1) / math.sqrt(5000) / math.sqrt(2))
    assert p == pytest.approx(normal, rel=0.05)


def test_zeros_that_rounding_adds_are_counted(tmp_path, images):
    model = net(6, seed=1)
    kernel = model.layers[-1].kernel.numpy()
    kernel[:, 0] = [1.0, 1e-3, -1e-3, 1e-3, 0.5, 0]  # with a step of 1/127, three of these become zero
    model.layers[-1].kernel.assign(kernel)
    kernel[:, 0] = [1.0, 0, 0, 0, 0.5, 0]
    before = read(export(model, "tflite_float32", path=tmp_path / "f.tflite").path)
    base = read(export(model, "tflite_int8", path=tmp_path / "q.tflite", calibration=images[0]).path)
    added = zeros_added(before, base)
    model.layers[-1].kernel.assign(kernel)
    less = read(export(model, "tflite_float32", path=tmp_path / "f2.tflite").path)
    assert zeros_added(less, base) == added - 3 >= 0
    assert zeros_added(before, before) == 0
    assert zeros_added(read(export(net(8, seed=0), "tflite_float32", path=tmp_path / "g.tflite").path), base) is None


def refused(message: str, made, test, **options) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(made[3][:1], test, **options)


def test_bad_test_data_is_refused(made, images):
    x, y = images
    refused("only once", made, iter([(x, y)]))
    for message, test in (
        ("empty", []),
        ("no labels", [x]),
        ("from 0 to 4", [(x, np.append(y[:-1], 4))]),
        (r"shape \(10, 10, 1\)", [(x[..., :1], y)]),
        ("83 images and 82 labels", [(x, y[:-1])]),
        ("NaN or Inf", [(np.full_like(x, np.nan), y)]),
    ):
        with pytest.raises(InputError, match=message):
            logits({"student": made[3][0].path}, test)


def test_bad_files_are_refused(made, images, tmp_path):
    test = [images]
    with pytest.raises(InputError, match="among 0 artifacts"):
        evaluate([], test)
    with pytest.raises(InputError, match="No such file"):
        evaluate([tmp_path / "none.tflite"], test)
    refused("target tflite_int8", made, test, teacher=made[2])
    refused("numbers of classes differ", made, test, class_names=["a"])
    other = keras.Sequential([layers.Input((10, 10, 2)), layers.Flatten(), layers.Dense(7)])
    refused("numbers of classes differ.*7", made, test, teacher=other)


def test_a_file_that_does_not_say_what_its_one_output_is_asks(tmp_path, images):
    model = keras.Sequential([layers.Input((10, 10, 2)), layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    file = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    test = [(images[0], images[1] % 2)]
    with pytest.raises(InputError, match=r"neither it nor the labels say what it is for[\s\S]*--task"):
        evaluate(file, test, latency_runs=1, tflm_images=1)
    expected = np.mean((model.predict(images[0], verbose=0)[:, 0] > 0.5) == images[1] % 2)
    for about in ({"task": "binary"}, {"teacher": model}):
        found = evaluate(file, test, latency_runs=1, tflm_images=1, **about)
        assert found.artifacts[0]["accuracy"] == expected and found.task["kind"] == "binary"


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("target", ["tflite_float32", "tflite_int8"])
def test_a_file_alone_is_asked_whether_its_yes_is_a_probability_or_a_logit(activation, target, tmp_path, images):
    keras.utils.set_random_seed(0)
    dense = layers.Dense(1, activation=activation, bias_initializer=keras.initializers.Constant(0.2))
    model = keras.Sequential([layers.Input((10, 10, 2)), layers.Flatten(), dense])
    file = export(model, target, path=tmp_path / "m.tflite", calibration=images[0])
    found = evaluate(file, [(images[0], images[1] % 2)], task="binary", latency_runs=1, tflm_images=1)
    yes = okd.predict(file.path, images[0])[:, 0] > (0.5 if activation else 0.0)
    assert found.artifacts[0]["accuracy"] == np.mean(yes == images[1] % 2)


def test_a_file_of_several_outputs_that_says_nothing_is_refused(tmp_path, images):
    image = layers.Input((10, 10, 2))
    x = layers.Flatten()(image)
    file = export(
        keras.Model(image, [layers.Dense(4)(x), layers.Dense(4)(x)]), "tflite_float32", path=tmp_path / "m.tflite"
    )
    with pytest.raises(InputError, match="has 2 outputs, and does not say"):
        evaluate(file, [images], latency_runs=1, tflm_images=1)


def test_a_runtime_that_aborts_is_told_before_anything_is_measured(made, images, monkeypatch):
    def aborts(model, **_):
        raise InputError("The runtime ends its process.", expected="", fix="")

    monkeypatch.setattr(evaluation.runtimes, "probe", aborts)
    refused("ends its process", made, [images])


def test_an_output_that_is_not_finite_is_refused(tmp_path, images):
    image = layers.Input((10, 10, 2))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(tf.math.log(image))))
    file = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    with pytest.raises(InputError, match="puts out NaN or Inf"):
        evaluate(file, [images])


def test_files_that_litert_does_not_run_stand_beside_those_it_does(made, images, tmp_path):
    files, student = made[3], net(6, seed=1)
    more = [export(student, "onnx", path=tmp_path / "s.onnx"), export(files[1], "packed", path=tmp_path / "packed")]
    test = tf.data.Dataset.from_tensor_slices(images).batch(20)
    report = evaluate([files[0], *more], test, latency_runs=1, tflm_images=2)
    flat, onnx, packed = report.artifacts
    assert onnx["accuracy"] == flat["accuracy"] and onnx["bytes"] == (tmp_path / "s.onnx").stat().st_size
    assert "accuracy" not in packed and packed["details"]["pattern"] == "2:4"
    page = report.save(tmp_path / "page").read_text(encoding="utf-8")
    assert "On the devices" in page and "packed layers" in page


def test_a_file_that_only_a_compiler_reads_is_no_evaluation(made, images, tmp_path):
    packed = export(made[3][1], "packed", path=tmp_path / "packed")
    with pytest.raises(InputError, match="No TensorFlow Lite file"):
        evaluate([packed], [images])
