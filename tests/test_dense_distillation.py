"""Losses on maps: what they are by hand, and that a student of a dense teacher learns by them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from orbit_kd.distillation import (
    ChannelWiseDistillation,
    ChannelWiseFeatures,
    DetectionDistillation,
    Distiller,
    cache_teacher,
    get_loss,
)
from orbit_kd.errors import InputError
from orbit_kd.models.dense_networks import unet
from orbit_kd.tasks import tasks
from orbit_kd.tasks.box_losses import heat_targets


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, shape).astype("float32")


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def segmenter(width: float = 0.0625) -> keras.Model:
    return unet((16, 16, 3), classes=3, width=width, depth=1)


def detector(filters: int = 8) -> keras.Model:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(filters, 3, strides=4, padding="same", activation="relu", name="body")(image)
    return keras.Model(image, layers.Conv2D(6, 1, activation="sigmoid", name="maps")(x))


# ---------------------------------------------------------------- by hand


def test_channel_wise_is_the_divergence_over_places_of_each_channel():
    teacher, student, t = normal(2, 3, 4, 5, size=3.0), normal(2, 3, 4, 5, seed=1), 4.0
    p, q = (softmax(x.reshape(2, 12, 5) / t, 1) for x in (teacher, student))
    expected = t**2 * (p * np.log(p / q)).sum(1).mean(-1)
    found = ChannelWiseDistillation(t).compute_loss(tf.constant(teacher), tf.constant(student))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("loss", [ChannelWiseDistillation(), DetectionDistillation()])
def test_a_perfect_student_has_no_loss_and_no_gradient_and_strong_logits_stay_finite(loss):
    teacher = tf.constant(normal(2, 4, 4, 6, size=50.0))
    same, other = tf.Variable(teacher), tf.Variable(-teacher)
    with tf.GradientTape(persistent=True) as tape:
        none, much = (tf.reduce_sum(loss.compute_loss(teacher, x)) for x in (same, other))
    assert abs(none) < 1e-4 < much
    assert np.abs(tape.gradient(none, same)).max() < 1e-4
    assert np.isfinite(tape.gradient(much, other)).all()


def test_a_shift_of_a_channel_is_nothing_to_channel_wise_and_much_to_logits():
    teacher = tf.constant(normal(1, 4, 4, 3))
    shifted = teacher + tf.constant([0.0, 0.0, 5.0])
    assert abs(float(ChannelWiseDistillation().compute_loss(teacher, shifted)[0])) < 1e-4
    assert float(tf.reduce_mean(get_loss("logits").compute_loss(teacher, shifted))) > 0.1


def test_the_detection_loss_by_hand():
    teacher, student = normal(2, 3, 4, 6, size=2.0), normal(2, 3, 4, 6, seed=1)
    p, q = sigmoid(teacher), sigmoid(student)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    heat = (kl * (p + 0.2))[..., :2].sum((1, 2, 3))
    apart = np.abs(p - q)[..., 2:] * [3 * 0.5, 4 * 0.5, 2.0, 2.0] * p[..., :2].max(-1, keepdims=True)
    expected = (heat + apart.sum((1, 2, 3))) / np.maximum(p[..., :2].sum((1, 2, 3)), 1)
    loss = DetectionDistillation(background=0.2, size_weight=0.5, offset_weight=2.0)
    np.testing.assert_allclose(loss.compute_loss(tf.constant(teacher), tf.constant(student)), expected, rtol=1e-4)


def test_sizes_where_the_teacher_sees_nothing_teach_nothing():
    teacher = np.full((1, 4, 4, 5), -30.0, np.float32)
    student = teacher.copy()
    student[..., 1:] = 5.0
    assert float(DetectionDistillation().compute_loss(tf.constant(teacher), tf.constant(student))[0]) < 1e-6
    teacher[0, 1, 1, 0] = student[0, 1, 1, 0] = 5.0
    assert float(DetectionDistillation().compute_loss(tf.constant(teacher), tf.constant(student))[0]) > 1


# ---------------------------------------------------------------- in a Distiller


@pytest.mark.parametrize("losses", [["logits"], ["channel_wise"], ["channel_wise_features:0.1", "logits"]])
def test_a_segmenter_learns_from_a_wider_one(losses):
    teacher, student = segmenter(0.125), segmenter()
    x = np.random.default_rng(0).uniform(0, 255, (16, 16, 16, 3)).astype("float32")
    masks = np.random.default_rng(1).integers(0, 3, (16, 16, 16)).astype("int32")
    masks[:, :4] = 255
    distiller = Distiller(student, teacher, losses=losses, alpha=0.9)
    distiller.compile(keras.optimizers.Adam(5e-3), tasks.get("segmentation").of(student).loss(student))
    history = distiller.fit(x, masks, epochs=6, batch_size=8, verbose=0).history
    for loss in distiller.distillation_losses:
        assert history[f"{loss.name}_loss"][-1] < 0.8 * history[f"{loss.name}_loss"][0]


def test_the_logits_loss_of_a_map_is_the_mean_over_its_pixels():
    teacher, student = segmenter(), segmenter()
    x = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype("float32")
    distiller = Distiller(student, teacher, losses=["logits"])
    distiller.compile("adam", loss=None)
    found = distiller.evaluate(x, verbose=0)
    p, q = (softmax(m(x).numpy() / 5, -1) for m in (teacher, student))
    value = 25 * (p * np.log(p / q)).sum(-1).mean()
    assert (found if np.ndim(found) == 0 else found[0]) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("cached", [False, True])
def test_a_detector_learns_from_another(cached, tmp_path):
    teacher, student = detector(16), detector()
    x = np.random.default_rng(0).uniform(0, 1, (16, 16, 16, 3)).astype("float32")
    boxes = -np.ones((16, 2, 5), np.float32)
    boxes[:, 0] = [1, 0.1, 0.1, 0.6, 0.6]
    task = tasks.get("detection").of(student)
    assert task.losses == ("detection",)
    distiller = Distiller(student, teacher, losses=list(task.losses), alpha=0.9)
    distiller.compile(keras.optimizers.Adam(1e-2), task.loss(student))
    data = tf.data.Dataset.from_tensor_slices((x, boxes)).batch(8)
    given = cache_teacher(distiller.teachers[0], data, path=tmp_path / "cache") if cached else data
    history = distiller.fit(given, epochs=12, verbose=0).history
    name = f"{distiller.distillation_losses[0].name}_loss"
    assert history[name][-1] < 0.7 * history[name][0]


def test_what_has_no_places_is_refused():
    image = keras.Input((8, 8, 3))
    vector = keras.Model(image, layers.Dense(6, activation="sigmoid", name="d")(layers.Flatten()(image)))
    for loss in (ChannelWiseDistillation(), ChannelWiseFeatures(match=["d"])):
        with pytest.raises(InputError, match="without places"):
            Distiller(vector, keras.models.clone_model(vector), losses=[loss])
    with pytest.raises(InputError, match="one map"):
        Distiller(vector, keras.models.clone_model(vector), losses=["detection"])


def test_networks_of_logits_and_bad_weights_are_refused():
    student = segmenter()
    with pytest.raises(InputError, match="one map"):
        Distiller(student, segmenter(), losses=["detection"])
    with pytest.raises(InputError, match="weights >= 0"):
        DetectionDistillation(background=-1.0)


def test_a_teacher_that_knows_the_boxes_is_worth_as_much_as_they_are():
    """Its heat is the targets', and the student's loss then falls with the distance from them."""
    boxes = np.array([[[0, 0.2, 0.2, 0.7, 0.8]]], np.float32)
    heat = heat_targets(tf.constant(boxes), 8, 8, classes=1).numpy().clip(1e-4, 1 - 1e-4)
    teacher = np.concatenate([np.log(heat / (1 - heat)), np.zeros((1, 8, 8, 4), np.float32)], -1).astype("float32")
    values = [float(DetectionDistillation().compute_loss(tf.constant(teacher), tf.constant(teacher * s))[0])
              for s in (1.0, 0.7, 0.3)]  # fmt: skip
    assert values == sorted(values)
