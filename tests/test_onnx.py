"""ONNX files: the same results as Keras, names and metadata kept, and what is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.exporters import onnx as onnx_file
from orbit_kd.exporters.onnx import read_onnx_metadata
from orbit_kd.models.networks import build
from orbit_kd.runtimes.onnx import OnnxRunner

layers = keras.layers


def net() -> keras.Model:
    """Convolution, BatchNormalization, depthwise, residual add, pooling, dense; every variable random."""
    rng = np.random.default_rng(3)
    image = layers.Input((12, 10, 3), name="chip")
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(image)))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    x = layers.Flatten()(layers.AveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(5, name="logits")(x))
    for v in model.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "variance" in v.name else rng.normal(0, 0.3, v.shape))
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, 12, 10, 3)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, None, 16])
def test_the_file_gives_what_keras_gives_for_any_number_of_images(tmp_path, images, batch):
    model = net()
    artifact = export(model, "onnx", path=tmp_path / "m.onnx", calibration=images, batch=batch)
    runner = OnnxRunner(artifact.path.read_bytes())
    assert (runner.input.shape, runner.output.shape) == ((12, 10, 3), (5,))
    out, expected = runner.raw(images), model(images).numpy()
    assert out.dtype == np.float32 and out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
    assert runner.raw(images[:0]).shape == (0, 5)
    assert artifact.bytes == artifact.path.stat().st_size
    assert artifact.details["compared"] == 16 and artifact.details["relative_difference"] <= 1e-5


@pytest.mark.parametrize(("batch", "first"), [(1, 1), (None, "batch")])
def test_names_layout_and_batch_are_in_the_file(tmp_path, batch, first):
    import onnx

    artifact = export(net(), "onnx", path=tmp_path / "m.onnx", batch=batch, opset=15)
    graph = onnx.load(artifact.path).graph
    ends = [(e.name, [d.dim_param or d.dim_value for d in e.type.tensor_type.shape.dim])
            for e in (*graph.input, *graph.output)]  # fmt: skip
    assert ends == [("chip", [first, 12, 10, 3]), ("logits", [first, 5])]
    assert [o.version for o in onnx.load(artifact.path).opset_import if not o.domain] == [15]
    assert artifact.details["operators"]["Conv"] == 2


def test_metadata_comes_back(tmp_path):
    note = {"class_names": ["2S1", "T72"], "preprocess": Preprocess(crop=64), "recipe": "abc"}
    path = export(net(), "onnx", path=tmp_path / "m.onnx", metadata=note).path
    found = read_onnx_metadata(path)
    assert found["class_names"] == ["2S1", "T72"] and found["recipe"] == "abc"
    assert Preprocess(**found["preprocess"]) == Preprocess(crop=64)
    with pytest.raises(InputError, match="metadata cannot be stored"):
        export(net(), "onnx", path=path, metadata={"a": np.zeros(3)})


@pytest.mark.parametrize("make", [net, lambda: build("resnet20", (32, 32, 1), classes=4, width=0.25)])
def test_the_model_is_left_alone_and_the_bytes_are_the_same_each_time(tmp_path, make):
    model = make()
    before = [w.copy() for w in model.get_weights()]
    a, b = (export(model, "onnx", path=tmp_path / f"{i}.onnx").path.read_bytes() for i in range(2))
    assert a == b
    assert all(np.array_equal(x, y) for x, y in zip(before, model.get_weights(), strict=True))


def test_other_results_than_keras_are_refused(tmp_path, images, monkeypatch):
    monkeypatch.setattr(OnnxRunner, "raw", lambda self, x, real=OnnxRunner.raw: real(self, x) * np.float32(1.001))
    with pytest.raises(InputError, match="other results than Keras"):
        export(net(), "onnx", path=tmp_path / "m.onnx", calibration=images)
    assert not list(tmp_path.iterdir())


def test_an_operator_onnx_lacks_is_told(tmp_path):
    class Odd(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.math.igamma(tf.abs(x) + 1.0, tf.abs(x))

    image = layers.Input((4,))
    with pytest.raises(InputError, match="Igamma"):
        export(keras.Model(image, Odd()(image)), "onnx", path=tmp_path / "m.onnx")


def test_bad_input_is_refused(tmp_path, images):
    path, model = tmp_path / "m.onnx", net()
    with pytest.raises(InputError, match=r"shape \(12, 10, 1\)"):
        export(model, "onnx", path=path, calibration=images[..., :1])
    with pytest.raises(InputError, match="opset=9"):
        export(model, "onnx", path=path, opset=9)
    with pytest.raises(InputError, match="is a path"):
        export(tmp_path / "m.tflite", "onnx", path=path)
    open_size = layers.Input((None, None, 3))
    with pytest.raises(InputError, match="one fixed size"):
        export(keras.Model(open_size, layers.GlobalMaxPooling2D()(open_size)), "onnx", path=path)
    model.layers[1].set_weights([w * np.nan for w in model.layers[1].get_weights()])
    with pytest.raises(InputError, match="NaN or Inf"):
        export(model, "onnx", path=path)
    with pytest.raises(InputError, match="onnxruntime cannot run"):
        OnnxRunner(b"no onnx file")
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputError, match="is no ONNX file"):
        read_onnx_metadata(path)


@pytest.mark.parametrize("package", ["tf2onnx", "onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(InputError, match=rf'{package} is not installed[\s\S]*pip install "orbit-kd\[fpga\]"'):
        export(net(), "onnx", path=tmp_path / "m.onnx")


def test_importing_the_target_imports_none_of_its_packages():
    code = (
        f"import sys, {onnx_file.__name__}; "
        "sys.exit(any(m in sys.modules for m in ('onnx', 'onnxruntime', 'tf2onnx', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("network", ["vgg16", "resnet20", "mobilenet_v1", "a_convnet"])
def test_the_reference_networks_stay_within_1e_5(tmp_path, network):
    model = build(network, (32, 32, 3), classes=10, width=0.25)
    artifact = export(model, "onnx", path=tmp_path / "m.onnx", samples=32)
    assert artifact.details["relative_difference"] <= 1e-5
