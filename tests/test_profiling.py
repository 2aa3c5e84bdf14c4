"""The profile of a Keras model, against counts made by hand and by the TFLite file."""

from __future__ import annotations

import math

import pytest
import tf_keras as keras
from tf_keras import layers

from orbit_kd.channels.profiles import profile
from orbit_kd.models import networks


def test_counts_by_hand():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="c")(image)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="d")(x)
    x = layers.Conv2DTranspose(2, 2, strides=2, name="t")(x)
    model = keras.Model(image, layers.Dense(5, name="o")(layers.GlobalAveragePooling2D()(x)))
    p = profile(model)
    rows = {r.name: r for r in p.layers}
    assert rows["c"].macs == 64 * 9 * 3 * 4 and rows["d"].macs == 16 * 9 * 4
    assert rows["t"].macs == 16 * 4 * 4 * 2 and rows["o"].macs == 10
    assert (rows["c"].width, rows["t"].width, rows["o"].width) == (4, 2, 5)
    assert p.params == model.count_params() and p.bytes == 4 * p.params
    assert p.activation_bytes == 8 * 8 * 3 + 8 * 8 * 4  # the first convolution's input and output


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "mobilenet_v1"])
def test_macs_equal_those_of_the_tflite_file(name, tmp_path):
    from orbit_kd.exporters import export
    from orbit_kd.tflite.summary import read

    model = networks.build(name, (32, 32, 3), classes=5, width=0.25)
    artifact = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    assert profile(model).macs == read(artifact.path).macs


def test_an_unknown_image_size_gives_no_macs_and_no_error():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    assert math.isnan(profile(model).macs) and "?" in str(profile(model))


def test_the_table_names_every_layer_with_weights():
    model = networks.build("a_convnet", (32, 32, 1), classes=5)
    text = str(profile(model))
    assert all(la.name in text for la in model.layers if la.weights) and "total" in text
