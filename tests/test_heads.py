"""What a network's outputs are is read from its graph, wherever the softmax is."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.models.heads import heads, logits_of
from orbit_kd.models.label_losses import cross_entropy
from orbit_kd.tasks import choose

layers = keras.layers


def _plain(x):
    return layers.Dense(3)(x)


def _fused(x):
    return layers.Dense(3, activation="softmax")(x)


def _layer(x):
    return layers.Softmax()(layers.Dense(3)(x))


def _cast(x):
    return layers.Activation("linear", dtype="float32")(_fused(x))


def _nested(x):
    inner = keras.Input((4,))
    return keras.Model(inner, _fused(inner))(x)


def _operation(x):
    return tf.nn.softmax(layers.Dense(3)(x))


@pytest.mark.parametrize("head", [_plain, _fused, _layer, _cast, _nested, _operation])
def test_the_loss_fits_the_head(head):
    image = keras.Input((4,))
    model = keras.Model(image, head(image))
    kind = "linear" if head is _plain else "softmax"
    assert heads(model) == (kind,)
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.arange(8) % 3
    probabilities = model(x).numpy()
    if kind == "linear":
        probabilities = tf.nn.softmax(probabilities).numpy()
    expected = -np.log(probabilities[np.arange(8), y]).mean()
    outputs = model(x).numpy()  # arrays: no trace of how they were made
    assert float(cross_entropy(model)(y, outputs)) == pytest.approx(expected, rel=1e-5)
    assert float(cross_entropy(model, one_hot=True)(np.eye(3)[y], outputs)) == pytest.approx(expected, rel=1e-5)
    (logits,) = logits_of(model(x), heads(model))
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, atol=1e-6)


def test_a_softmax_in_a_nested_model_or_under_a_sparsity_wrapper_trains_on_the_right_loss():
    """Keras alone would take the probabilities of a nested head for logits."""
    image = keras.Input((4, 4, 4))
    features = layers.Flatten()(layers.Conv2D(8, 3, padding="same", activation="relu")(image))
    nested = keras.Model(
        image, keras.Sequential([keras.Input((128,)), layers.Dense(3, activation="softmax")])(features)
    )
    x, y = np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype("float32"), np.arange(8) % 3
    data = okd.Data((x, y), (x, y), (x, y))
    for model in (nested, okd.sparsify(nested, "2:4")):
        assert not choose(model, data).loss(model, data).get_config()["from_logits"]


def test_gradient_criteria_take_one_hot_labels():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, activation="relu")(layers.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    images, labels = np.random.default_rng(0).normal(size=(16, 6, 6, 1)).astype("float32"), np.arange(16) % 3
    plans = [
        okd.plan_removal(model, criterion="taylor", ratio=0.5, data=tf.data.Dataset.from_tensors((images, y)))
        for y in (labels, np.eye(3, dtype="float32")[labels])
    ]
    assert plans[0] == plans[1]
