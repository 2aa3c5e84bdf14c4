"""Filter removal against its oracle, on random graphs and on the reference networks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from oracle import Constant, difference, randomize
from random_graphs import BLOCKS, random_model
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.models import networks
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware, strip_quantization
from orbit_kd.removal import importance
from orbit_kd.removal.plan import RemovalPlan
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters


def check(model: keras.Model, **how) -> keras.Model:
    """Removes filters, compares with the oracle, and returns the small network."""
    randomize(model)
    before = [w.copy() for w in model.get_weights()]
    plan = plan_removal(model, **how)
    student = remove_filters(model, plan)
    assert difference(model, student, plan) <= 1e-4
    assert student.count_params() == plan.params[1] < plan.params[0] == model.count_params()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    return student


GRAPHS = given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([0.3, 0.6])
)


def random_graph_matches(names, seed, ratio):
    keras.backend.clear_session()
    try:
        check(random_model(names, seed), ratio=ratio, criterion="l2_norm")
    except Constant:
        reject()  # another graph is drawn


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@GRAPHS
def test_random_graphs_match_the_oracle(names, seed, ratio):
    random_graph_matches(names, seed, ratio)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@GRAPHS
def test_many_random_graphs_match_the_oracle(names, seed, ratio):
    random_graph_matches(names, seed, ratio)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_each_block_matches_the_oracle(name):
    for seed in range(2):
        check(random_model([name, name], seed), ratio=0.5)


@pytest.mark.parametrize("name", networks.networks.names())
def test_reference_networks_match_the_oracle_and_halve(name):
    model = networks.build(name, (32, 32, 1), classes=5, width=0.25)
    student = check(model, ratio=0.5)
    assert student.count_params() < 0.35 * model.count_params()
    assert [la.name for la in student.layers] == [la.name for la in model.layers]


def test_the_small_network_saves_loads_and_stays_sequential(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(3)])
    student = check(model, ratio=0.5)
    assert isinstance(student, keras.Sequential)
    student.save(tmp_path / "s.keras")
    loaded = keras.models.load_model(tmp_path / "s.keras", compile=False)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(x), student(x))


def test_outputs_and_inputs_keep_their_channels():
    model = networks.build("resnet20", (16, 16, 3), classes=7)
    student = check(model, ratio=0.75)
    assert student.input_shape == model.input_shape and student.output_shape == model.output_shape


def test_the_least_important_filters_go():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(4, 1, name="c"), layers.Flatten(), layers.Dense(2)])
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([np.array([0.1, -5.0, 0.2, 3.0]).reshape(kernel.shape), bias])
    plan = plan_removal(model, ratio=0.5)
    assert plan.groups[0].keep == (1, 3)


def test_residual_streams_shrink_as_one_group():
    model = networks.build("resnet20", (16, 16, 3), classes=7)
    stream = next(g for g in plan_removal(model, ratio=0.5).groups if g.name == "stem_conv")
    assert {"stem_conv", "stage1_block1_2_conv", "stage1_block3_2_conv"} <= set(stream.members)


def test_ratios_by_layer_and_pattern_override_the_ratio():
    model = networks.build("vgg16", (32, 32, 1), classes=5, width=0.25)
    plan = plan_removal(model, ratio=0.5, ratios={"block1_*": 0.0, "fc1": 0.75}, exclude=["block5_conv3"])
    width = {g.name: g.after for g in plan.groups}
    assert (width["block1_conv1"], width["fc1"], width["block2_conv1"], width["block5_conv3"]) == (16, 32, 16, 128)


def test_widths_are_rounded_up_to_multiples():
    model = networks.build("vgg16", (32, 32, 1), classes=5, width=0.25)
    plan = plan_removal(model, ratio=0.7, round_to=8, min_channels=12)
    assert all(g.after % 8 == 0 and g.after >= 12 for g in plan.groups if not g.reason)


def test_a_plan_survives_json_and_refuses_other_networks():
    model = networks.build("vgg16", (32, 32, 1), classes=5, width=0.25)
    plan = plan_removal(model, ratio=0.5)
    assert RemovalPlan.from_json(plan.to_json()) == plan
    with pytest.raises(InputError, match="does not fit"):
        remove_filters(remove_filters(model, plan), plan)
    with pytest.raises(InputError, match="no removal plan"):
        RemovalPlan.from_json('{"groups": 3}')


def test_a_plan_prints_widths_and_reasons():
    text = str(plan_removal(networks.build("vgg16", (32, 32, 1), classes=5, width=0.25), ratio=0.5))
    assert "block1_conv1" in text and "16  ->   8" in text and "kept: model output" in text and "x fewer" in text


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"ratio": 1.0}, "no removal ratio"),
        ({"ratio": -0.1}, "no removal ratio"),
        ({"ratios": {"block1_conv1": 2}}, "no removal ratio"),
        ({"ratios": {"nothing": 0.5}}, "No group or layer"),
        ({"ratio": 0.5, "criterion": "magic"}, "Unknown criterion"),
        ({"ratio": 0.5, "exclude": ["nothing"]}, "No group or layer"),
    ],
)
def test_bad_requests_get_one_clear_message(how, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_removal(networks.build("vgg16", (32, 32, 1), classes=5, width=0.25), **how)
    assert "expected:" in str(caught.value) and "to do:" in str(caught.value)


class Reverse(layers.Layer):
    """A layer without a channel rule."""

    def call(self, x):
        return x[..., ::-1]


def test_an_unknown_layer_is_an_error_or_keeps_only_its_own_channels():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="before")(image)
    x = layers.Conv2D(8, 3, name="touching")(x)
    x = layers.Conv2D(8, 3, name="after")(Reverse(name="odd")(x))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    with pytest.raises(InputError, match="'odd' of class Reverse") as caught:
        plan_removal(model, ratio=0.5)
    assert "channel_rule" in str(caught.value) and "keep" in str(caught.value)
    plan = plan_removal(model, ratio=0.5, unknown="keep")
    assert {g.name: g.after for g in plan.groups if g.members} | {"odd": 8} == {
        "before": 4, "touching": 8, "odd": 8, "after": 4, model.layers[-1].name: 2,
    }  # fmt: skip
    assert difference(randomize(model), remove_filters(model, plan), plan) <= 1e-4


def test_a_subclass_that_replaces_call_is_unknown():
    class Odd(layers.Conv2D):
        def call(self, x):
            return super().call(x)[..., ::-1]

    model = keras.Sequential([keras.Input((8, 8, 3)), Odd(4, 3), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(InputError, match="class Odd"):
        plan_removal(model, ratio=0.5)


def test_a_subclassed_model_is_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="no layer graph"):
        plan_removal(Mine(), ratio=0.5)


def test_recalibration_gives_the_statistics_of_the_data_and_nothing_else_moves():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dropout(0.9), layers.BatchNormalization(momentum=0.99), layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(3.0, 2.0, (256, 6)).astype("float32")
    dense = model.layers[-1].get_weights()
    recalibrate_batchnorm(model, tf.data.Dataset.from_tensor_slices((x, x[:, 0])).batch(64))
    norm = model.layers[1]
    np.testing.assert_allclose(norm.moving_mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, x.var(0), rtol=0.02)
    assert norm.momentum == 0.99 and np.array_equal(dense[0], model.layers[-1].get_weights()[0])


def test_statistics_behind_the_wrappers_of_quantization_aware_training_are_those_of_the_data_too():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(momentum=0.99)])
    x = np.random.default_rng(0).normal(3.0, 2.0, (256, 6)).astype("float32")
    quantized = quantize_aware(model, bits=4, calibration=x)
    recalibrate_batchnorm(quantized, tf.data.Dataset.from_tensor_slices(x).batch(64))
    norm = quantized.layers[-1].layer
    rounded = strip_quantization(quantized).layers[0](x).numpy()
    np.testing.assert_allclose(norm.moving_mean, rounded.mean(0), atol=0.1)
    np.testing.assert_allclose(norm.moving_variance, rounded.var(0), rtol=0.1)
    assert norm.momentum == 0.99


def test_statistics_are_those_of_all_images_also_where_batches_differ():
    norm = layers.BatchNormalization(momentum=0.9)
    model = keras.Sequential([keras.Input((1,)), norm, layers.Dense(2)])
    data = tf.data.Dataset.from_tensor_slices(np.array([[0.0], [2.0], [10.0], [12.0]], "float32")).batch(2)
    recalibrate_batchnorm(model, data)
    assert (float(norm.moving_mean[0]), float(norm.moving_variance[0])) == (6.0, 26.0)  # 1 within, 25 between
    recalibrate_batchnorm(model, data, batches=1)
    assert (float(norm.moving_mean[0]), float(norm.moving_variance[0]), norm.momentum) == (1.0, 1.0, 0.9)


# ---------------------------------------------------------------- how much, and by which criterion


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    return randomize(networks.build("resnet20", (16, 16, 3), classes=5))


def test_no_group_loses_more_than_max_ratio_under_global_ranking(network):
    how = {"scope": "global", "keep_params": 0.4, "round_to": 2}
    free, plan = plan_removal(network, **how), plan_removal(network, max_ratio=0.45, **how)
    assert min(g.after / g.before for g in free.groups) < 0.55  # without it one would
    assert all(g.after >= 0.55 * g.before - 1e-9 and (g.after % 2 == 0 or g.after == g.before) for g in plan.groups)
    assert len({g.after / g.before for g in plan.groups if not g.reason}) > 3  # not uniform


def batches():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (32, 16, 16, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(5, size=32))).batch(8)


@pytest.mark.parametrize(
    "criterion", ["l1_norm", "l2_norm", "bn_scale", "geometric_median", "taylor", "apoz", "random"]
)
def test_every_criterion_ranks_every_group(network, criterion):
    from orbit_kd.channels.graph import ChannelGraph
    from orbit_kd.removal.scorer import Scorer

    graph = ChannelGraph(network)
    scorer = Scorer(graph, name=criterion, data=batches())
    for group in graph.groups:
        if not group.reason:
            scores = scorer(group)
            assert scores.shape == (group.width,) and np.isfinite(scores).all() and np.ptp(scores) > 0


@pytest.mark.parametrize("scores", [np.ones(3), np.ones((16, 1))])
def test_a_criterion_that_does_not_score_each_unit_is_refused(network, scores):
    wrong = importance.criteria.temporary("wrong", importance.Criterion(lambda members: scores))
    with wrong, pytest.raises(InputError, match="gives scores of shape"):
        plan_removal(network, criterion="wrong", ratio=0.5)


@pytest.mark.parametrize("criterion", ["taylor", "apoz"])
def test_a_criterion_that_needs_data_says_so(network, criterion):
    with pytest.raises(InputError, match="needs data"):
        plan_removal(network, criterion=criterion, ratio=0.5)


def two_filters(kernel: list, gamma: list | None = None) -> keras.Model:
    """A 1x1 convolution from one channel to filters of these weights, normalized, averaged, to two logits."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(len(kernel), 1, use_bias=False, name="c"),
            layers.BatchNormalization(name="n"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="o"),
        ]
    )
    model.get_layer("c").kernel.assign(np.array(kernel, "float32").T.reshape(1, 1, 2, -1))
    model.get_layer("n").gamma.assign(gamma or [1.0] * len(kernel))
    return model


def test_criteria_find_the_filter_that_they_are_made_to_find():
    def left(model, **how):
        return plan_removal(model, ratios={"c": 1 / 3}, **how).groups[0].keep

    norms = two_filters([[3, 0], [2, 2], [1, 1]])
    assert left(norms, criterion="l1_norm") == (0, 1) and left(norms, criterion="l2_norm") == (0, 1)
    assert left(two_filters([[1, 0], [9, 9], [1, 1]], [1, 0.1, 1]), criterion="bn_scale") == (0, 2)
    alike = two_filters([[5, 5], [-5, 5], [0.2, 3.4]])  # the last lies between the others
    assert left(alike, criterion="geometric_median") == (0, 1)

    import tensorflow as tf

    x = np.abs(np.random.default_rng(0).normal(size=(16, 4, 4, 2))).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(16) % 2)).batch(8)
    assert left(two_filters([[1, 1], [-1, -1], [2, 2]]), criterion="apoz", data=data) == (0, 2)  # one is never positive
    model = two_filters([[1, 1], [1, 1], [2, 2]])
    model.get_layer("o").kernel.assign([[1, -1], [0, 0], [1, -1]])  # nobody reads the second
    assert left(model, criterion="taylor", data=data) == (0, 2)
    drawn = {plan_removal(norms, criterion="random", ratios={"c": 1 / 3}, seed=s).groups[0].keep for s in range(12)}
    assert len(drawn) == 3


# ---------------------------------------------------------------- shapes of graphs


def test_several_inputs_and_outputs_and_a_siamese_branch():
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    inside = keras.Input((8, 8, 3))
    branch = keras.Model(inside, layers.Conv2D(8, 3, name="twin")(layers.Conv2D(8, 3, activation="softsign")(inside)))
    a, b = branch(left), branch(right)
    both = layers.Conv2D(8, 1, name="joined")(layers.Concatenate()([a, b, layers.Subtract()([a, b])]))
    outputs = [layers.Dense(3, name="o1")(layers.Flatten()(both)), layers.Conv2D(2, 1, name="o2")(a)]
    model = keras.Model([left, right], outputs)
    student = check(model, ratio=0.5)
    assert student.get_layer(branch.name).get_layer("twin").filters == 4
    assert [o.shape[-1] for o in student.outputs] == [3, 2]


def test_dictionaries_of_inputs_and_outputs_keep_their_names():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="softsign")(image))
    model = keras.Model({"image": image}, {"scores": layers.Dense(2)(x)})
    student = remove_filters(model, plan_removal(model, ratio=0.5))
    assert student({"image": np.ones((1, 8, 8, 3))})["scores"].shape == (1, 2)


def test_channels_first_networks_are_traced_along_their_axis():
    first = {"data_format": "channels_first"}
    model = keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            layers.Conv2D(8, 3, name="c", **first),
            layers.BatchNormalization(axis=1),
            layers.MaxPooling2D(**first),
            layers.Flatten(**first),
            layers.Dense(2, name="o"),
        ]
    )
    student = remove_filters(model, plan_removal(model, ratio=0.5))
    assert student.get_layer("c").kernel.shape == (3, 3, 3, 4) and student.get_layer("o").kernel.shape == (4 * 9, 2)


def test_attention_and_recurrent_layers_keep_their_channels_and_the_plan_says_so():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="free")(image)
    x = layers.Reshape((36, 8))(layers.Conv2D(8, 1, name="bound")(x))
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LSTM(4, name="memory")(x)
    model = keras.Model(image, layers.Dense(2)(x))
    plan = plan_removal(model, ratio=0.5)
    width = {g.name: g.after for g in plan.groups}
    assert (width["free"], width["bound"]) == (4, 8)
    assert "attention" in next(g.reason for g in plan.groups if g.name == "bound")
    assert difference(randomize(model), remove_filters(model, plan), plan) <= 1e-4


def test_a_teacher_that_was_frozen_gives_a_student_that_learns():
    inside = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(8, 3)])
    image = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(inside(layers.Conv2D(8, 3)(image)))
    model = keras.Model(image, layers.Dense(3)(x))
    model.trainable = False
    student = remove_filters(model, plan_removal(model, ratio=0.5))
    assert len(student.trainable_weights) == 6 and not model.trainable_weights


def test_what_is_sliced_with_an_ellipsis_is_saved_and_loaded(tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3)(layers.Conv2D(8, 3)(image[..., ::-1])[:, 1:, ..., :])
    model = randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    student = remove_filters(model, plan_removal(model, ratio=0.5))
    loaded = load_model(save_model(student, tmp_path / "student.keras"))
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(images), student(images))


def test_a_backbone_of_open_size_in_a_network_of_one_size_has_macs():
    def network(size):
        inside = keras.Input((size, size, 3))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(inside)))
        x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
        backbone = keras.Model(inside, layers.Conv2D(8, 3)(layers.ZeroPadding2D()(x)))
        image = keras.Input((16, 16, 3))
        return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(backbone(image))))

    fixed, loose = (plan_removal(network(size), keep_macs=0.5) for size in (16, None))
    assert fixed.macs == loose.macs and fixed.macs[1] < 0.5 * fixed.macs[0]


def test_statistics_are_estimated_from_whatever_a_model_takes():
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, layers.BatchNormalization()(layers.Conv2D(2, 3)(image)))
    x = np.random.default_rng(0).integers(0, 255, (32, 4, 4, 1))
    found = []
    for dtype in ("float32", "uint8", "int64"):
        recalibrate_batchnorm(model, tf.data.Dataset.from_tensor_slices(x.astype(dtype)).batch(8))
        found.append(model.layers[-1].moving_mean.numpy())
    assert np.ptp(found, axis=0).max() == 0 and np.abs(found[0]).min() > 1
