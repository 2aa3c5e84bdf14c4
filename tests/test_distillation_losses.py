"""The distillation losses against their papers' formulas, and how layers of student and teacher find each other."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.distillation import (
    AttentionTransfer,
    DecoupledDistillation,
    DistillationLoss,
    FeatureHints,
    LogitsDistillation,
    Piecewise,
    RelationalDistillation,
    SimilarityPreserving,
    distillation_losses,
)
from orbit_kd.distillation.features import feature_shapes, find_layer, match_deepest, match_layers, record_outputs
from orbit_kd.distillation.losses import Context
from orbit_kd.distillation.schedules import Scheduled
from orbit_kd.distillation.teachers import TeacherOutputs
from orbit_kd.distillation.terms import feature_term, logits_term
from orbit_kd.errors import InputError

L = keras.layers


def random(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p / q, 1.0)), 0.0), -1)


# logits


@given(st.floats(0.5, 20.0), st.floats(0.1, 30.0), st.integers(2, 12))
@settings(max_examples=25, deadline=None)
def test_logits_loss_is_the_divergence_of_softened_outputs(t, scale, classes):
    teacher, student = random(4, classes, scale=scale), random(4, classes, seed=1, scale=scale)
    got = LogitsDistillation(t).compute_loss(tf.constant(teacher), tf.constant(student)).numpy()
    expected = t**2 * kl(softmax(teacher.astype("d") / t), softmax(student.astype("d") / t))
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4)


def test_a_perfect_student_has_no_loss_and_no_gradient():
    logits = tf.constant(random(5, 7, scale=50.0))
    for loss in (LogitsDistillation(1.0), DecoupledDistillation(1.0)):
        student = tf.Variable(logits)
        with tf.GradientTape() as tape:
            value = loss.compute_loss(logits, student)
        np.testing.assert_allclose(value.numpy(), 0.0, atol=1e-5)
        np.testing.assert_allclose(tape.gradient(value, student).numpy(), 0.0, atol=1e-5)


@given(st.floats(1.0, 8.0), st.integers(3, 9))
@settings(max_examples=25, deadline=None)
def test_decoupled_loss_splits_the_divergence(t, classes):
    """Zhao et al. 2022, eq. 7: KL = TCKD + (1 - p_t) * NCKD with the teacher's target probability p_t."""
    teacher, student = random(6, classes, scale=2), random(6, classes, seed=1, scale=2)
    labels = np.random.default_rng(2).integers(0, classes, 6)
    parts = []
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        loss = DecoupledDistillation(t, target_weight=weights[0], nontarget_weight=weights[1])
        loss.context = Context(labels=tf.constant(labels))
        parts.append(loss.compute_loss(tf.constant(teacher), tf.constant(student)).numpy())
    p = softmax(teacher / t)
    whole = LogitsDistillation(t).compute_loss(tf.constant(teacher), tf.constant(student)).numpy()
    np.testing.assert_allclose(parts[0] + (1 - p[np.arange(6), labels]) * parts[1], whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("labels", [[2, 0], [[2], [0]], [[0, 0, 1, 0], [1, 0, 0, 0]], None])
def test_decoupled_loss_takes_labels_in_every_form(labels):
    teacher = tf.constant([[0.0, 1.0, 5.0, 2.0], [4.0, 1.0, 0.0, 3.0]])  # its strongest classes are the labels
    student = tf.constant(random(2, 4))
    loss = DecoupledDistillation()
    loss.context = Context(labels=tf.constant([2, 0]))
    expected = loss.compute_loss(teacher, student).numpy()
    loss.context = Context(labels=None if labels is None else tf.constant(labels))
    np.testing.assert_array_equal(loss.compute_loss(teacher, student).numpy(), expected)


def test_extreme_logits_stay_finite():
    teacher = tf.constant([[1e4, -1e4, 0.0]])
    for loss in (LogitsDistillation(1.0), DecoupledDistillation(1.0), LogitsDistillation(1.0, activation="sigmoid")):
        student = tf.Variable([[-1e4, 1e4, 0.0]])
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss.compute_loss(teacher, student))
        assert np.isfinite(value.numpy()) and np.isfinite(tape.gradient(value, student).numpy()).all()


# features


def test_attention_transfer_is_the_distance_of_normalized_maps():
    teacher, student = random(3, 4, 4, 8), random(3, 4, 4, 2, seed=1)
    maps = [(v.astype("d") ** 2).sum(-1).reshape(3, 16) for v in (teacher, student)]
    maps = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps]
    got = AttentionTransfer().compute_loss(tf.constant(teacher), tf.constant(student)).numpy()
    np.testing.assert_allclose(got, ((maps[0] - maps[1]) ** 2).sum(1), rtol=1e-4)


def test_similarity_preserving_is_the_mean_squared_difference_of_gram_rows():
    teacher, student = random(5, 2, 2, 8), random(5, 2, 2, 3, seed=1)
    grams = [v.reshape(5, -1).astype("d") @ v.reshape(5, -1).astype("d").T for v in (teacher, student)]
    grams = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams]
    got = SimilarityPreserving().compute_loss(tf.constant(teacher), tf.constant(student)).numpy()
    assert got == pytest.approx(((grams[0] - grams[1]) ** 2).sum() / 25, rel=1e-4)


def test_relational_distances_and_angles():
    teacher, student = random(5, 8), random(5, 3, seed=1)

    def huber(a, b):
        e = np.abs(a - b)
        return np.where(e < 1, e**2 / 2, e - 0.5).mean()

    def distances(v):
        d = np.linalg.norm(v[:, None] - v[None], axis=-1)
        return d / d[d > 0].mean()

    def angles(v):
        result = np.zeros((5, 5, 5))
        for j in range(5):
            for i in range(5):
                for k in range(5):
                    a, b = v[i] - v[j], v[k] - v[j]
                    if i != j and k != j:
                        result[j, i, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return result

    parts = {}
    for name, (d, a) in {"distance": (1.0, 0.0), "angle": (0.0, 1.0)}.items():
        loss = RelationalDistillation(distance_weight=d, angle_weight=a)
        parts[name] = float(loss.compute_loss(tf.constant(teacher), tf.constant(student)))
    assert parts["distance"] == pytest.approx(huber(distances(teacher), distances(student)), rel=1e-3)
    assert parts["angle"] == pytest.approx(huber(angles(teacher), angles(student)), rel=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_relations_have_finite_gradients_for_one_sample_and_for_equal_ones(batch):
    student = tf.Variable(np.ones((batch, 2, 2, 3), "float32"))
    for loss in (RelationalDistillation(), SimilarityPreserving(), AttentionTransfer()):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss.compute_loss(tf.constant(random(batch, 2, 2, 5)), student))
        assert np.isfinite(tape.gradient(value, student).numpy()).all(), type(loss).__name__


# the registry and configs


@pytest.mark.parametrize("name", list(distillation_losses))
def test_every_loss_round_trips_its_config(name):
    cls = distillation_losses.get(name)
    options = {
        "logits": {"temperature": Piecewise(((0, 8.0), (4, 2.0))), "activation": "sigmoid"},
        "decoupled": {"temperature": keras.optimizers.schedules.PolynomialDecay(8.0, 10, 2.0), "nontarget_weight": 2.0},
        "mse": {"outputs": ["boxes", 1]},
        "mae": {"outputs": "boxes"},
        "hints": {"match": {"a": "b"}},
        "attention": {"match": ["a", "b"]},
        "relational": {"distance_weight": 1.0, "angle_weight": 2.0},
        "similarity": {"match": ["a"]},
        "channel_wise": {"temperature": 2.0},
        "channel_wise_features": {"match": {"a": "b"}, "temperature": Piecewise(((0, 4.0), (4, 1.0)))},
        "detection": {"background": 0.2, "size_weight": 0.5, "offset_weight": 0.0},
    }[name]
    loss = cls(weight=0.25, name="mine", **options)
    loss.pairs = [("a", "b")] if loss.on_features else []
    saved = keras.saving.serialize_keras_object(loss)
    twin = keras.saving.deserialize_keras_object(saved)
    assert type(twin) is cls and keras.saving.serialize_keras_object(twin) == saved
    assert (twin.weight, twin.name, twin.pairs) == (0.25, "mine", loss.pairs)


def test_unknown_loss_lists_all():
    with pytest.raises(InputError, match=", ".join(sorted(distillation_losses))):
        distillation_losses.get("magic")


# schedules


def test_piecewise_is_linear_between_points_and_constant_outside():
    line = Piecewise(((2, 1.0), (4, 0.0)))
    assert [line(e) for e in (0, 2, 3, 4, 9)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert Piecewise.from_config(line.get_config()) == line
    with pytest.raises(InputError, match="not in order"):
        Piecewise(((4, 1.0), (2, 0.0)))


def test_value_of_a_schedule_out_of_range_is_refused():
    alpha = Scheduled(lambda epoch: epoch / 2, name="alpha", low=0.0, high=1.0)
    alpha.begin_epoch(2)
    assert float(alpha.at(0)) == 1.0
    with pytest.raises(InputError, match=r"alpha=1.5"):
        alpha.begin_epoch(3)


# pairing layers


def block(x, width, name):
    x = L.Conv2D(width, 3, padding="same", name=f"{name}_conv")(x)
    return L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))


def net(width, *, nested=False):
    inputs = L.Input((8, 8, 1))
    x = block(inputs, width, "a")
    x = L.MaxPool2D(name="a_pool")(x)
    if nested:
        inner = L.Input(x.shape[1:])
        x = keras.Model(inner, block(inner, 2 * width, "b"), name="backbone")(x)
    else:
        x = block(x, 2 * width, "b")
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D(name="gap")(x)))


@pytest.mark.parametrize("nested", [(False, False), (True, False), (False, True), (True, True)])
def test_auto_pairs_the_last_layer_of_each_resolution_also_within_nested_models(nested):
    student, teacher = net(2, nested=nested[0]), net(4, nested=nested[1])
    assert match_layers(student, teacher) == [("a_relu", "a_relu"), ("b_relu", "b_relu")]


def test_auto_finds_the_layer_inside_a_wrapper():
    class Wrapper(L.Wrapper):
        def call(self, x):
            return self.layer.call(x)

    inputs = L.Input((8, 8, 1))
    student = keras.Model(inputs, L.Flatten()(Wrapper(L.Conv2D(2, 3, name="a_conv"), name="sparse_a_conv")(inputs)))
    teacher_inputs = L.Input((8, 8, 1))
    teacher = keras.Model(teacher_inputs, L.Flatten()(L.Conv2D(4, 3, name="a_conv")(teacher_inputs)))
    assert match_layers(student, teacher) == [("a_conv", "a_conv")]


@pytest.mark.parametrize("nested", [(False, False), (True, False)])
def test_losses_on_whole_vectors_take_the_one_that_is_classified(nested):
    student, teacher = net(2, nested=nested[0]), net(4, nested=nested[1])
    assert match_deepest(student, teacher) == [("gap", "gap")]


def test_the_scores_and_dropout_are_no_representation():
    def head(width):
        inputs = L.Input((6,))
        x = L.Dropout(0.5, name="dropout")(L.Dense(width, activation="relu", name="hidden")(inputs))
        return keras.Model(inputs, L.Softmax(name="softmax")(L.Dense(3, name="head")(x)))

    assert match_deepest(head(4), head(8)) == [("hidden", "hidden")]
    loss = SimilarityPreserving()
    loss.build(head(4), head(8))
    assert loss.pairs == [("hidden", "hidden")]
    inputs = L.Input((6,))
    with pytest.raises(InputError, match="No feature layer"):
        match_deepest(keras.Model(inputs, L.Dense(3, name="head")(inputs)), head(8))


def test_nothing_to_match_is_an_error():
    inputs = L.Input((8, 8, 1))
    other = keras.Model(inputs, L.Flatten()(L.Conv2D(2, 3, name="z")(inputs)))
    with pytest.raises(InputError, match="No feature layer"):
        match_layers(other, net(2))


def test_recording_takes_every_depth_from_one_pass_and_leaves_nothing():
    model = net(2, nested=True)
    x = random(2, 8, 8, 1)
    layers = {name: find_layer(model, name) for name in ("a_conv", "b_relu")}
    with record_outputs(layers) as outer:
        with record_outputs({"b": layers["b_relu"]}) as inner:
            model(x)
        np.testing.assert_array_equal(outer["b_relu"].numpy(), inner["b"].numpy())
    assert list(outer) == ["a_conv", "b_relu"] and not any("call" in vars(layer) for layer in layers.values())
    np.testing.assert_allclose(outer["a_conv"].numpy(), model.get_layer("a_conv")(x).numpy(), rtol=1e-6)


def test_recording_is_taken_down_after_an_error():
    model = net(2)
    layer = find_layer(model, "a_conv")
    with pytest.raises(ValueError), record_outputs({"a": layer}):
        model(random(2, 8, 8, 3))
    assert "call" not in vars(layer)


def test_feature_shapes_come_in_the_order_of_execution():
    shapes = feature_shapes(net(2, nested=True))
    order = [n for n in shapes if n in ("a_conv", "a_pool", "b_conv", "b_relu", "head")]
    assert order == ["a_conv", "a_pool", "b_conv", "b_relu", "head"]
    assert shapes["b_relu"] == (None, 4, 4, 4)


def test_hints_project_only_unequal_widths():
    loss = FeatureHints()
    loss.build(net(2), net(4))
    assert [p.name for p in loss.projectors] == ["hint_a_relu", "hint_b_relu"]
    assert loss.project("a_relu", tf.zeros((1, 8, 8, 2))).shape == (1, 8, 8, 4)
    equal = FeatureHints()
    equal.build(net(4), net(4))
    assert equal.projectors == []


def test_a_term_is_the_mean_over_pairs_of_layers_and_the_sum_over_outputs_with_sample_weights():
    """Squared differences 1 and 4 in layer a, 9 and 16 in layer b."""
    hints = FeatureHints(match=["a", "b"])
    hints.pairs = [("a", "a"), ("b", "b")]
    ours = {name: tf.zeros((2, 3)) for name in "ab"}
    theirs = {"a": tf.constant([[1.0] * 3, [2.0] * 3]), "b": tf.constant([[3.0] * 3, [-4.0] * 3])}

    def of_features(weight):
        return float(feature_term(hints, ours, TeacherOutputs((), theirs), step=0, sample_weight=weight))

    assert of_features(None) == (2.5 + 12.5) / 2
    assert of_features(tf.constant([2.0, 0.0])) == (1.0 + 9.0) / 2
    assert of_features(tf.constant([[0.0], [1.0]])) == (2.0 + 8.0) / 2
    assert of_features((tf.ones(2), tf.ones(2))) == 7.5  # weights that differ between outputs are not of layers

    class Square(DistillationLoss):
        def compute_loss(self, teacher, student):
            return tf.reduce_sum((teacher - student) ** 2, -1)

    def of_logits(*weights):
        given = {"contexts": [Context(0)] * 2, "sample_weights": weights, "outputs": range(2)}
        taught = TeacherOutputs(tuple(theirs.values()), {})
        return float(logits_term(Square(), list(ours.values()), taught, **given))

    assert of_logits(None, None) == 3 * (2.5 + 12.5)
    assert of_logits(tf.constant([2.0, 0.0]), None) == 3 * (1.0 + 12.5)
