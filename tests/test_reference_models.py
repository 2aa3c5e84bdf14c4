"""The trained students in models/ on real chips: every target is built, run and compared with Keras."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.datasets import load
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.exporters import Artifact, export, find, read_metadata
from orbit_kd.exporters.hls4ml.project import run_project
from orbit_kd.exporters.packed.reading import read_packed
from orbit_kd.models.saving import load_model
from orbit_kd.tflite.layers import int8_layers

FOLDERS = sorted(p.parent for p in Path(__file__).parent.with_name("models").glob("*mstar*/student.keras"))
# largest difference from Keras as a part of its largest output
NEAR = {"tflite_float32": 1e-5, "tflite_float16": 1e-2, "tflite_dynamic": 0.05, "tflite_int8": 0.15,
        "tflite_int16x8": 0.15, "onnx": 1e-5}  # fmt: skip


class Student(NamedTuple):
    model: keras.Model
    images: np.ndarray
    labels: np.ndarray
    outputs: np.ndarray
    calibration: np.ndarray


@pytest.fixture(scope="module")
def chips(real_data):
    """What a network's preprocessing makes of the data: 500 test chips, their labels, and 200 training chips."""
    known = {}

    def of(told: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if repr(told) not in known:
            data = load(real_data / "mstar10", preprocess=Preprocess(**told), batch_size=100)
            images, labels = (np.concatenate(part) for part in zip(*data.test.as_numpy_iterator(), strict=True))
            chosen = np.random.default_rng(0).choice(len(images), 500, replace=False)
            some = np.concatenate([x for x, _ in data.train.take(2).as_numpy_iterator()])
            known[repr(told)] = images[chosen], labels[chosen], some
        return known[repr(told)]

    return of


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def student(request, chips) -> Student:
    """A network, 500 test chips, and 200 training chips."""
    images, labels, some = chips(read_metadata(request.param / "student_tflite_int8.tflite")["preprocess"])
    model = load_model(request.param / "student.keras")
    return Student(model, images, labels, model.predict(images, verbose=0), some)


@pytest.fixture(scope="module")
def int8(student, tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("int8") / "student.tflite"
    return export(student.model, "tflite_int8", path=path, calibration=student.calibration)


def right(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(-1) == labels))


def test_there_are_three_kinds_of_network():
    kinds = {folder.name.split("_")[0] for folder in FOLDERS}
    assert kinds >= {"vgg16", "resnet20", "mobilenet"}


@pytest.mark.parametrize("target", sorted(NEAR))
def test_a_file_says_what_keras_says(student, int8, target, tmp_path):
    path = tmp_path / f"student{find(target)[0].suffix}"
    if target == "tflite_int8":
        path = int8.path
    else:
        export(student.model, target, path=path, calibration=student.calibration)
    outputs = runtimes.predict(path, student.images[:200], runtime=find(target)[0].runtime)
    expected = student.outputs[:200]
    assert np.abs(outputs - expected).max() <= NEAR[target] * np.abs(expected).max()
    assert abs(right(outputs, student.labels[:200]) - right(expected, student.labels[:200])) <= 0.02
    assert right(expected, student.labels[:200]) > 0.9


def test_packed_kernels_are_those_of_the_int8_file(student, int8, tmp_path):
    made = export(student.model, "packed", path=tmp_path / "packed", calibration=student.calibration)
    for ours, theirs in zip(read_packed(made.path), int8_layers(int8.path.read_bytes()), strict=True):
        np.testing.assert_array_equal(ours.kernel, theirs.kernel)
        np.testing.assert_array_equal(ours.bias, theirs.bias)


@pytest.mark.slow
def test_vela_takes_every_operator_with_weights(student, tmp_path):
    made = export(student.model, "vela:ethos-u85-256", path=tmp_path / "v.tflite", calibration=student.calibration)
    assert all(row["runs_on"] == "NPU" for row in made.details["operators"] if row["macs"])
    assert all(row["runs_2_4"] or row["why_not_2_4"] for row in made.details["operators"] if row["macs"])
    assert 0 < made.details["npu_cycles"] <= made.details["cycles"]


@pytest.mark.slow
def test_hls4ml_is_within_a_point_of_keras_on_500_chips(student, tmp_path):
    export(student.model, "hls4ml", path=tmp_path / "p", calibration=student.calibration, compare=1, adder_limit=0)
    outputs = run_project(tmp_path / "p", student.images)
    assert len(outputs) == 500
    assert abs(right(outputs, student.labels) - right(student.outputs, student.labels)) <= 0.01
