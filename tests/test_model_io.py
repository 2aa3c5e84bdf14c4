"""Model files: loaded as they were, refused when they could run code, never half-written."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.models.safety import code_in
from orbit_kd.models.saving import fingerprint, load_model, save_model
from orbit_kd.support.files import writable_folder


@pytest.fixture
def plain() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), layers.Dense(3, activation="relu"), layers.Dense(2)])


@pytest.fixture
def with_lambda() -> keras.Model:
    image = keras.Input((8,))
    inside = keras.Input((8,))
    nested = keras.Model(inside, layers.Lambda(lambda t: t * 2)(inside))
    return keras.Model(image, layers.Dense(2)(nested(image)))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_plain_models_load_in_every_format(plain, name, tmp_path):
    plain.save(tmp_path / name)
    x = np.ones((2, 8), "float32")
    np.testing.assert_array_equal(load_model(tmp_path / name)(x), plain(x))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_a_lambda_is_refused_unless_trusted(with_lambda, name, tmp_path):
    with_lambda.save(tmp_path / name)
    with pytest.raises(InputError, match="Lambda") as caught:
        load_model(tmp_path / name)
    assert "trust_model_code" in str(caught.value)
    x = np.ones((2, 8), "float32")
    np.testing.assert_allclose(load_model(tmp_path / name, trust_code=True)(x), with_lambda(x))


def test_a_saved_model_without_keras_metadata_is_refused(plain, tmp_path):
    import tensorflow as tf

    tf.saved_model.save(plain, str(tmp_path / "saved"))
    (tmp_path / "saved/keras_metadata.pb").unlink(missing_ok=True)
    with pytest.raises(InputError, match="without Keras metadata"):
        load_model(tmp_path / "saved")


def test_a_class_from_another_module_is_refused_and_not_imported(plain, tmp_path):
    plain.save(tmp_path / "m.keras")
    evil = tmp_path / "evil.keras"
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "config.json":
                config = json.loads(text)
                config["config"]["layers"][1]["module"] = "antigravity"
                text = json.dumps(config).encode()
            new.writestr(name, text)
    with pytest.raises(InputError, match="antigravity"):
        load_model(evil)
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ({"class_name": "function", "module": "builtins", "config": "eval"}, True),
        ({"class_name": "function", "module": "builtins", "config": "relu"}, False),
        ({"class_name": "TFOpLambda", "module": "keras.layers", "config": {"function": "io.write_file"}}, True),
        ({"class_name": "TFOpLambda", "module": "keras.layers", "config": {"function": "math.add"}}, False),
        ({"class_name": "Dense", "module": "keras.layers", "config": {"kernel_initializer": {"module": "os"}}}, True),
    ],
)
def test_what_counts_as_code(node, found):
    assert bool(code_in({"layers": [node]})) is found


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no Keras model file"):
        load_model(path)


def test_missing_paths_and_odd_objects_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no model"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(InputError, match=r"A builtins\.int was given as model"):
        load_model(3)


def test_saving_replaces_whole_files_only(plain, tmp_path, monkeypatch):
    path = save_model(plain, tmp_path / "deep" / "m.keras")
    before = path.read_bytes()

    def broken(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", broken)
    with pytest.raises(InputError, match="No space left"):
        save_model(plain, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["m.keras"]


def test_an_unwritable_folder_is_refused():
    with pytest.raises(InputError, match="cannot be written"):
        writable_folder("/proc/nowhere")


def test_the_fingerprint_follows_weights_and_architecture(plain):
    before = fingerprint(plain)
    assert fingerprint(keras.models.clone_model(plain)) != before
    kernel, bias = plain.layers[0].get_weights()
    plain.layers[0].set_weights([kernel + 1, bias])
    changed = fingerprint(plain)
    plain.layers[0].set_weights([kernel, bias])
    assert changed != before == fingerprint(plain)


def test_a_network_trained_in_mixed_precision_comes_as_one_that_tflite_takes(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        inside = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3), layers.BatchNormalization()])
        image = keras.Input((8, 8, 1))
        x = layers.GlobalAveragePooling2D()(inside(layers.Conv2D(4, 3)(image)))
        mixed = keras.Model(image, layers.Activation("softmax", dtype="float32")(layers.Dense(3)(x)))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    mixed.save(tmp_path / "mixed.keras")
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    for given in (mixed, tmp_path / "mixed.keras"):
        loaded = load_model(given)
        assert {la.compute_dtype for la in loaded._flatten_layers()} == {"float32"}
        np.testing.assert_allclose(loaded(images), mixed(images), atol=2e-3)
        assert okd.export(loaded, "tflite_float32", path=tmp_path / "plain.tflite").bytes > 0
    assert load_model(loaded) is loaded
