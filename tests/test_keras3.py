"""Keras 3 models give tf_keras twins with equal outputs, or a clear refusal."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers, ops
from keras.src.ops.numpy import Argsort

from orbit_kd.errors import InputError
from orbit_kd.models.saving import load_model
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving


def randomize(model: keras.Model) -> keras.Model:
    """Random weights of a size that keeps signals alive through deep networks."""
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape)
            if w.ndim < 2
            else rng.normal(0, (1.4 / np.prod(w.shape[: 2 if w.shape[-1] == 1 else -1])) ** 0.5, w.shape)
            for w in model.get_weights()
        ]
    )
    return model


def check(model: keras.Model, size: tuple[int, ...]) -> tf_keras.Model:
    x = np.random.default_rng(1).uniform(0, 255, (3, *size)).astype("float32")
    expected = np.asarray(model(x, training=False))
    twin = load_model(model)
    assert isinstance(twin, tf_keras.Model)
    found = twin(x, training=False).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0
    return twin


def small() -> keras.Model:
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(layers.Rescaling(1 / 255)(image))
    x = layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization()(x))
    y = layers.Activation("hard_silu")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = ops.relu(x + y) * 0.5
    inside = keras.Input((8, 8, 8))
    block = keras.Model(inside, layers.SeparableConv2D(8, 3, padding="same", activation="gelu")(inside))
    x = layers.Concatenate()([block(x), block(y)])
    gate = ops.mean(x, axis=[1, 2], keepdims=True)
    x = layers.Multiply()([x, layers.Dense(16, activation="sigmoid")(gate)])
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    return randomize(keras.Model(image, layers.Dense(4)(layers.Dropout(0.5)(x))))


def test_layers_operations_and_shared_nested_models():
    twin = check(small(), (8, 8, 3))
    student = remove_filters(twin, plan_removal(twin, ratio=0.5))
    assert student.count_params() < 0.6 * twin.count_params()


def plain() -> keras.Model:
    conv = layers.Conv2D(4, 3, activation="relu")
    return randomize(keras.Sequential([keras.Input((8, 8, 3)), conv, layers.Flatten(), layers.Dense(2)]))


# Keras 3 itself cannot load operations such as ops.relu from HDF5
@pytest.mark.parametrize(("name", "build"), [("m.keras", small), ("m.keras", plain), ("m.h5", plain)])
def test_files_of_keras_3_load(name, build, tmp_path):
    model = build()
    model.save(tmp_path / name)
    x = np.random.default_rng(1).uniform(0, 255, (3, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(load_model(tmp_path / name)(x, training=False), model(x, training=False), rtol=1e-4)


def test_a_sequential_model():
    check(plain(), (8, 8, 3))


def test_augmentation_layers_rest_at_inference_and_stay_random_in_training():
    image = keras.Input((12, 12, 3))
    x = layers.RandomContrast(0.9)(layers.RandomFlip()(layers.RandomRotation(0.5)(layers.RandomBrightness(0.9)(image))))
    x = layers.Conv2D(4, 3)(layers.BatchNormalization()(x, training=False))
    twin = check(randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))), (12, 12, 3))
    images = np.random.default_rng(0).uniform(0, 255, (4, 12, 12, 3)).astype("float32")
    assert np.ptp([twin(images, training=True).numpy() for _ in range(3)], axis=0).max() > 0


def test_channels_that_are_turned_round_before_the_first_layer():
    image = keras.Input((8, 8, 3))
    x = ops.stack([image[..., 2], image[..., 1], image[..., 0]], axis=-1)
    check(randomize(keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(x))))), (8, 8, 3))


def test_a_lambda_in_a_keras_3_file_is_refused(tmp_path):
    image = keras.Input((4,))
    keras.Model(image, layers.Lambda(lambda t: t * 2)(image)).save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="Lambda"):
        load_model(tmp_path / "m.keras")


def test_what_has_no_twin_is_named():
    image = keras.Input((8, 8, 3))
    with pytest.raises(InputError, match=r"'order'.*no twin"):
        load_model(keras.Model(image, Argsort(axis=1, name="order")(image)))

    class Mine(layers.Layer):
        def call(self, x):
            return x

    with pytest.raises(InputError, match=r"'mine'.*no twin in tf_keras"):
        load_model(keras.Model(image, Mine(name="mine")(image)))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="no layer graph"):
        load_model(Subclassed())


QUICK = ["MobileNetV3Small", "EfficientNetV2B0"]
FAMILIES = {
    "VGG16": 32, "ResNet50": 64, "ResNet50V2": 64, "MobileNet": 64, "MobileNetV2": 64, "MobileNetV3Small": 64,
    "MobileNetV3Large": 64, "DenseNet121": 64, "EfficientNetB0": 64, "EfficientNetV2B0": 64, "Xception": 96,
    "InceptionV3": 96, "InceptionResNetV2": 96, "ConvNeXtTiny": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_applications(name):
    size = (FAMILIES[name], FAMILIES[name], 3)
    check(
        getattr(keras.applications, name)(weights=None, input_shape=size, classes=10, classifier_activation=None), size
    )


@pytest.mark.slow
def test_nasnet():
    model = keras.applications.NASNetMobile(
        weights=None, input_shape=(224, 224, 3), classes=10, include_top=False, pooling="avg"
    )
    check(model, (224, 224, 3))
