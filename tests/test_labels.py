"""Labels are read alike everywhere, and what is no class number is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.datasets.labels import are_rows, class_numbers
from orbit_kd.errors import InputError

ROWS = np.eye(3)[[0, 2, 1]]


@pytest.mark.parametrize(
    "labels", [[0, 2, 1], [[0], [2], [1]], [0.0, 2.0, 1.0], np.uint8([0, 2, 1]), ROWS, ROWS.astype(bool)]
)
def test_class_numbers_and_one_hot_rows_are_the_same_labels(labels):
    found = class_numbers(labels)
    assert found.tolist() == [0, 2, 1] and found.dtype == np.int64


@pytest.mark.parametrize(
    "labels",
    [[0.7, 1.9], [[1, 1, 0]], [[1, 0, 0], [1, 1, 0]], [[0, 1], [0, 0]], [[0.9, 0.1]], [["cat"]], 3, [[[1, 0]]]],
)
def test_other_labels_are_refused(labels):
    with pytest.raises(InputError, match="labels"):
        class_numbers(labels)


def test_rows_are_told_from_columns_by_their_shape():
    assert are_rows((None, 10)) and are_rows((8, 2)) and not are_rows((8, 1)) and not are_rows((8,))


def test_an_evaluation_refuses_labels_that_say_two_classes(tmp_path):
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3)(image))
    file = okd.export(model, "tflite_float32", path=tmp_path / "model.tflite")
    with pytest.raises(InputError, match="labels"):
        okd.evaluate([file], [(np.zeros((1, 4)), [[1, 1, 0]])])
