"""sparsify, strip, keep_zeros, sparsity_table: what patterns and schedules promise."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.errors import InputError
from orbit_kd.models.copies import named_layers
from orbit_kd.models.wrappers import KernelRule, kernel_rules
from orbit_kd.sparsity.layers import SparseLayer
from orbit_kd.sparsity.patterns import Magnitude, NofM, SharedNofM, get_pattern, uhp
from orbit_kd.sparsity.schedules import SRSTE, Polynomial, get_schedule
from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
from orbit_kd.sparsity.table import sparsity_table

L = keras.layers


# ---------------------------------------------------------------- patterns


kernels = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 19), st.integers(1, 5), st.integers(0, 2**16), st.booleans()
)


def draw_kernel(spec):
    """A kernel (a, b, in, out), sometimes with many equal magnitudes."""
    *shape, seed, ties = spec
    kernel = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return np.round(kernel) if ties else kernel


@settings(max_examples=60, deadline=None)
@given(kernels, st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from([-1, -2]), st.floats(0, 1))
def test_every_group_keeps_the_right_count_and_the_largest(spec, nm, axis, progress):
    kernel, (n, more) = draw_kernel(spec), nm
    m = n + more
    mask = NofM(n, m).mask(tf.abs(kernel), axis=axis, progress=tf.constant(progress, tf.float32)).numpy()
    keep = m - int(np.floor(np.float32(progress) * (m - n) + 1e-4))
    size, kept = np.abs(np.moveaxis(kernel, axis, -1)), np.moveaxis(mask, axis, -1)
    assert mask.shape == kernel.shape and set(np.unique(mask)) <= {0.0, 1.0}
    for first in range(0, size.shape[-1], m):
        group, chosen = size[..., first : first + m], kept[..., first : first + m] == 1
        assert (chosen.sum(-1) == -(-group.shape[-1] * keep // m)).all()
        smallest_kept = np.where(chosen, group, np.inf).min(-1)
        largest_pruned = np.where(chosen, -np.inf, group).max(-1)
        assert (largest_pruned <= smallest_kept).all()


@settings(max_examples=60, deadline=None)
@given(kernels, st.floats(0, 0.99), st.floats(0, 1))
def test_magnitude_keeps_exactly_the_largest(spec, sparsity, progress):
    kernel = draw_kernel(spec)
    mask = Magnitude(sparsity).mask(tf.abs(kernel), axis=-2, progress=tf.constant(progress, tf.float32)).numpy() == 1
    wanted = kernel.size * (1 - progress * sparsity)
    assert abs(mask.sum() - max(wanted, 1)) <= 0.5 + 1e-3
    assert np.abs(kernel[~mask]).max(initial=0) <= np.abs(kernel[mask]).min()


@settings(max_examples=40, deadline=None)
@given(kernels, st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from([-1, -2]))
def test_a_masked_kernel_passes_the_check_and_one_more_weight_fails_it(spec, nm, axis):
    kernel = draw_kernel(spec) + 0.25  # no exact zeros
    pattern = NofM(nm[0], sum(nm))
    mask = pattern.mask(tf.abs(kernel), axis=axis, progress=tf.constant(1.0)).numpy()
    assert pattern.violation(kernel * mask, axis=axis) is None
    if (mask == 0).any():
        mask[tuple(np.argwhere(mask == 0)[0])] = 1
        assert "allows" in pattern.violation(kernel * mask, axis=axis)


@pytest.mark.parametrize(
    ("group", "kept"),
    [
        ([1, 1, 1, 1], [1, 1, 0, 0]), ([3, 1, 1, 1], [1, 1, 0, 0]), ([1, 1, 1, 3], [1, 0, 0, 1]),
        ([0, 0, 0, 0], [1, 1, 0, 0]), ([2, 2, 5, 2], [1, 0, 1, 0]), ([1, 2, 2, 2], [0, 1, 1, 0]),
        ([5, 5, 5, 5, 1, 4, 1, 4, 7, 7], [1, 1, 0, 0, 0, 1, 0, 1, 1, 0]),  # the short last group keeps one of two
    ],
)  # fmt: skip
def test_of_equal_weights_the_lower_channels_stay(group, kept):
    for axis, shape in ((-2, (1, 1, -1, 1)), (-1, (1, -1)), (-2, (-1, 1))):
        values = tf.reshape(tf.constant(group, tf.float32), shape)
        mask = NofM(2, 4).mask(values, axis=axis, progress=tf.constant(1.0))
        assert mask.shape == values.shape and tf.reshape(mask, [-1]).numpy().tolist() == kept
    half = Magnitude(0.5).mask(tf.ones((2, 3)), axis=-2, progress=tf.constant(1.0))
    assert half.numpy().tolist() == [[1, 1, 1], [0, 0, 0]]


def test_schedules_stay_within_dense_and_full_before_their_first_and_after_their_last_step():
    def progress(schedule, *steps):
        return [float(schedule.progress(tf.constant(s, tf.int64))) for s in steps]

    cubic = Polynomial(10, begin_step=4, refreshes=3)
    assert progress(cubic, 0, 3, 4, 7, 10, 11, 99) == pytest.approx([0, 0, 0, 1 - 0.5**3, 1, 1, 1])
    assert progress(Polynomial(10, begin_step=4, power=1.0), 2, 5, 7, 13) == pytest.approx([0, 1 / 6, 0.5, 1])
    assert [s for s in range(14) if cubic.updates(tf.constant(s, tf.int64))] == [4, 6, 8, 10]
    constant = get_schedule("constant", pattern=NofM(2, 4), begin_step=3)
    assert progress(constant, 0, 2, 3, 4, 99) == [0, 0, 1, 1, 1]
    assert [s for s in range(9) if constant.updates(tf.constant(s, tf.int64))] == [3]
    assert (cubic.last_step, constant.last_step, SRSTE().last_step) == (10, 3, 0)


def test_the_check_says_where():
    kernel = np.zeros((3, 3, 8, 2), "float32")
    kernel[1, 2, 4:7, 1] = 1
    where = NofM(2, 4).violation(kernel, axis=-2)
    assert "input channels 4..7" in where and "3 non-zeros" in where and "allows 2" in where and "1 of 36" in where
    assert "(1, 2, 1)" in where  # (kernel row, kernel column, output channel)


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_shared_pattern_keeps_the_channels_whose_taps_add_up_to_most(axis):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 10, 10)).astype("float32")
    mask = SharedNofM(2, 4).mask(tf.constant(np.abs(kernel)), axis=axis, progress=tf.constant(1.0)).numpy()
    sums = np.moveaxis(np.abs(kernel).sum((0, 1)), axis, -1)  # (the other channels, input channels)
    for row, total in zip(np.moveaxis(mask[0, 0], axis, -1), sums, strict=True):
        for first in (0, 4, 8):
            group = total[first : first + 4]
            kept = np.flatnonzero(row[first : first + 4])
            assert sorted(kept) == sorted(np.argsort(group)[::-1][: -(-len(group) // 2)])
    assert (mask == mask[:1, :1]).all()
    assert SharedNofM(2, 4).violation(kernel * mask, axis=axis) is None
    assert NofM(2, 4).violation(kernel * mask, axis=axis) is None
    plain = NofM(2, 4).mask(tf.constant(np.abs(kernel)), axis=axis, progress=tf.constant(1.0)).numpy()
    assert "of all taps together" in SharedNofM(2, 4).violation(kernel * plain, axis=axis)


def test_a_shared_pattern_of_one_tap_is_the_plain_one():
    kernel = tf.constant(np.abs(np.random.default_rng(0).normal(size=(12, 5)).astype("float32")))
    one = tf.constant(1.0)
    masks = [pattern.mask(kernel, axis=-2, progress=one).numpy() for pattern in (SharedNofM(2, 4), NofM(2, 4))]
    np.testing.assert_array_equal(*masks)
    assert get_pattern("uhp:shared") == SharedNofM(4, 8) and get_pattern("1:4:shared").label == "1:4:shared"


def test_uhp_keeps_half_of_each_group_and_4_is_2_of_4():
    assert (uhp(4).n, uhp(4).m) == (2, 4)
    assert uhp().m == 8
    with pytest.raises(InputError, match="even"):
        uhp(5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("3:4:5", {}, "Unknown sparsity pattern"),
        ("4:4", {}, "no N:M pattern"),
        ("0:4", {}, "no N:M pattern"),
        ("N:M", {}, "two numbers"),
        ("N:M:shared", {}, "for example '2:4:shared'"),
        ("4:4:shared", {}, "no N:M pattern"),
        ("magnitude:shared", {}, "Unknown sparsity pattern"),
        ("2:4:shared", {"sparsity": 0.9}, "no option 'sparsity'"),
        ("2:4", {"sparsity": 0.9}, "no option 'sparsity'"),
        ("magnitude", {"group_size": 8}, "no option 'group_size'"),
        ("magnitude", {"sparsity": 1.0}, r"\[0, 1\)"),
        ("magnitude", {"sparsity": -0.1}, r"\[0, 1\)"),
    ],
)
def test_impossible_patterns_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        get_pattern(name, **options)


def test_unknown_names_list_the_options():
    with pytest.raises(InputError, match=r"magnitude, (quarter, )?uhp"):  # the README's own, where its test has run
        get_pattern("nope")
    with pytest.raises(InputError, match="constant, gradual, one_shot, polynomial, sr_ste"):
        get_schedule("nope", pattern=NofM(2, 4))


# ---------------------------------------------------------------- schedules


def steps_and_progress(schedule, last):
    steps = [s for s in range(last + 1) if bool(schedule.updates(tf.constant(s, tf.int64)))]
    return steps, [float(schedule.progress(tf.constant(s, tf.int64))) for s in steps]


def test_polynomial_is_cubic_and_ends_on_its_last_step_whatever_the_span():
    for begin, end, refreshes in ((0, 100, 50), (3, 100, 7), (0, 3, 50), (10, 11, 1)):
        steps, progress = steps_and_progress(Polynomial(end, begin, refreshes=refreshes), end + 10)
        assert steps[0] == begin and progress[0] == 0
        assert steps[-1] == end and progress[-1] == 1
        assert progress == pytest.approx([1 - (1 - (s - begin) / (end - begin)) ** 3 for s in steps], abs=1e-5)


def test_gradual_goes_dense_3_of_4_2_of_4():
    pattern = NofM(2, 4)
    schedule = get_schedule("gradual", pattern=pattern, end_step=11)
    kernel = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    densities = {}
    for s in range(15):
        step = tf.constant(s, tf.int64)
        if schedule.updates(step):
            densities[s] = float(
                tf.reduce_mean(pattern.mask(tf.abs(kernel), axis=-2, progress=schedule.progress(step)))
            )
    assert densities == {0: 1.0, 6: 0.75, 11: 0.5}


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("polynomial", {}, "needs end_step"),
        ("gradual", {}, "needs end_step"),
        ("polynomial", {"begin_step": 9, "end_step": 9}, "begin_step < end_step"),
        ("constant", {"end_step": 9}, "takes no end_step"),
        ("one_shot", {"begin_step": 9}, "takes no begin_step"),
        ("sr_ste", {"end_step": 9}, "takes no end_step"),
        ("constant", {"begin_step": -1}, "begin_step"),
        (SRSTE(), {"end_step": 3}, "takes no end_step"),
    ],
)
def test_impossible_schedules_are_refused(schedule, options, message):
    with pytest.raises(InputError, match=message):
        get_schedule(schedule, pattern=NofM(2, 4), **options)


# ---------------------------------------------------------------- models


@keras.utils.register_keras_serializable(package="test")
class ScaledConv(L.Conv2D):
    """A subclass of Conv2D, as users write them."""

    def call(self, inputs):
        return 0.5 * super().call(inputs)


@keras.utils.register_keras_serializable(package="test")
class OwnBuild(L.Dense):
    """A Dense whose build forgets the constraint."""

    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", (input_shape[-1], self.units))
        self.bias = self.add_weight("bias", (self.units,))
        self.built = True


def everything() -> keras.Model:
    """All sorts of layers: nested twice, shared, transposed, unknown to tfmot; two inputs and two outputs."""
    image, extra = L.Input((8, 8, 3), name="image"), L.Input((8, 6), name="extra")
    norm = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0], name="norm")
    x = L.Rescaling(0.5, name="rescale")(norm(image))
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = L.GroupNormalization(2, name="groups")(L.PReLU(name="prelu")(x))
    deep = keras.Sequential([L.Conv2D(8, 1, name="deep_conv"), L.ReLU(name="deep_relu")], name="deep")
    block = keras.Sequential([ScaledConv(8, 3, padding="same", name="scaled"), deep], name="block")
    x = block(block(x)) + x
    x = L.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.BatchNormalization(name="bn")(L.Conv2DTranspose(10, 3, padding="same", name="up")(x))
    x = L.Conv2D(8, 1, name="ragged")(x)
    y = L.Conv1D(4, 3, name="one_d")(extra)
    flat = L.Concatenate(name="join")([L.Flatten(name="fx")(x), L.Flatten(name="fy")(y)])
    return keras.Model([image, extra], [L.Dense(5, name="logits")(flat), OwnBuild(2, name="own")(flat)], name="all")


def small(**kwargs) -> keras.Model:
    return keras.Sequential(
        [
            L.Input((6, 6, 4)),
            L.Conv2D(8, 3, name="conv", **kwargs),
            L.ReLU(),
            L.Conv2D(8, 3, name="conv2"),
            L.Flatten(),
            L.Dense(5, name="logits"),
        ],
        name="small",
    )


def data(n: int = 32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6, 6, 4)).astype("float32"), rng.integers(0, 5, n)


def compiled(model, optimizer="sgd", **kwargs):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)
    return model


def train(model, epochs=1, **kwargs):
    x, y = data()
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **kwargs)


def sparse_layers(model):
    return {name: layer for name, layer in named_layers(model) if isinstance(layer, SparseLayer)}


def violations(model):
    """Layers whose STORED kernel breaks the full pattern."""
    layers = sparse_layers(model).items()
    return [n for n, layer in layers if layer.pattern.violation(layer.kernel.numpy(), axis=layer.rule.axis)]


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def test_every_layer_is_wrapped_or_has_a_reason():
    sparse = sparsify(everything(), "2:4", exclude=["block/scaled"])
    table = sparsity_table(sparse)
    assert {row.layer: row.density for row in table if row.pattern} == {
        "block/deep/deep_conv": 0.5,
        "separable": 0.5,
        "up": 0.5,
        "ragged": 0.5,  # 10 channels: groups of 4, 4 and 2, which keep 2, 2 and 1
        "one_d": 0.5,
        "logits": 0.5,
    }
    reasons = {row.layer: row.dense_because for row in table if not row.pattern}
    assert reasons == {
        "stem": "3 input channels, fewer than a group of 4",
        "prelu": "PReLU has no kernel over input channels",
        "block/scaled": "excluded, or given no sparsity",
        "depthwise": "depthwise: a filter sees one input channel",
        "own": "OwnBuild.build does not give kernel_constraint to its kernel",
    }
    assert "one_d" in str(table) and "fewer than a group of 4" in str(table)
    assert table["one_d"].weights == 72
    assert table.density == pytest.approx(sum(r.density * r.weights for r in table) / sum(r.weights for r in table))


def test_the_copy_computes_the_same_until_the_schedule_begins():
    model = randomize(everything())
    sparse = sparsify(model, "magnitude", schedule="constant", begin_step=5)
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(3, 8, 8, 3)).astype("float32"), rng.normal(size=(3, 8, 6)).astype("float32")]
    for a, b in zip(model(inputs), sparse(inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in model.layers]
    assert sparse.output_names == model.output_names and sparse.name == model.name


def test_an_adapted_normalization_keeps_its_statistics():
    norm = L.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).normal(3.0, 2.0, (64, 8)).astype("float32"))
    model = keras.Sequential([L.Input((8,)), norm, L.Dense(4, name="d")])
    x = np.ones((2, 8), "float32")
    np.testing.assert_array_equal(sparsify(model, "2:4", schedule="constant", begin_step=1)(x), model(x))


def test_strip_gives_the_original_classes_and_the_same_outputs():
    model = randomize(everything())
    sparse = sparsify(model, "2:4")
    plain = strip(sparse)
    assert [(n, type(layer)) for n, layer in named_layers(plain)] == [
        (n, type(layer)) for n, layer in named_layers(model)
    ]
    assert [w.shape for w in plain.weights] == [w.shape for w in model.weights]
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(3, 8, 8, 3)).astype("float32"), rng.normal(size=(3, 8, 6)).astype("float32")]
    for a, b in zip(plain(inputs), sparse(inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {r.layer: r.pattern for r in sparsity_table(plain)}["up"] == "2:4"


@pytest.mark.parametrize(
    "layer",
    [
        L.Conv1D(6, 2, name="k"),
        L.Conv2D(6, 2, name="k"),
        L.Conv2D(8, 2, groups=2, name="k"),
        L.Conv3D(6, 2, name="k"),
        L.Dense(6, name="k"),
        L.Conv1DTranspose(6, 2, name="k"),
        L.Conv2DTranspose(6, 2, name="k"),
        L.Conv3DTranspose(6, 2, name="k"),
        L.SeparableConv1D(6, 2, name="k"),
        L.SeparableConv2D(6, 2, name="k"),
    ],
    ids=lambda layer: type(layer).__name__ + (" groups" if getattr(layer, "groups", 1) > 1 else ""),
)
def test_groups_run_along_input_channels(layer):
    """Counted here straight from the kernel layouts that Keras documents, not through the library's own rules."""
    name = type(layer).__name__
    rank = 1 + next((int(c) for c in name if c.isdigit()), 0)
    model = keras.Sequential([L.Input([4] * (rank - 1) + [8]), layer])
    kernel = sparsify(model, "1:4").layers[-1].kernel.numpy()
    axis = kernel.ndim - 1 if "Transpose" in name else kernel.ndim - 2
    assert kernel.shape[axis] == (4 if getattr(layer, "groups", 1) > 1 else 8)
    rows = np.moveaxis(kernel, axis, -1)
    assert (np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1) == 1).all()


def test_magnitude_takes_a_sparsity_for_each_layer():
    table = sparsity_table(sparsify(small(), "magnitude", sparsity={"conv": 0.75, "logits": 0.0}))
    assert {r.layer: (r.density, bool(r.dense_because)) for r in table} == {
        "conv": (0.25, False),
        "conv2": (1.0, True),
        "logits": (1.0, True),
    }


def test_global_scope_keeps_the_largest_weights_of_the_network():
    model = small()
    model.get_layer("conv").kernel.assign(model.get_layer("conv").kernel * 100)
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 1e-4)
    sparse = sparsify(model, "magnitude", sparsity=0.6, scope="global")
    assert sparsity_table(sparse).density == pytest.approx(0.4, abs=0.01)
    names = ["conv", "conv2", "logits"]
    before = np.concatenate([np.abs(model.get_layer(n).kernel.numpy()).ravel() for n in names])
    after = np.concatenate([sparse.get_layer(n).masked_kernel().ravel() for n in names]) != 0
    assert np.sort(before[after])[1] >= before[~after].max()  # but for the one weight that logits keeps
    assert sparsity_table(sparse)["conv"].density > 0.9 > sparsity_table(sparse)["conv2"].density
    assert np.count_nonzero(sparse.get_layer("logits").masked_kernel()) == 1  # never an empty layer


def test_layers_are_excluded_by_shell_patterns():
    assert list(sparse_layers(sparsify(small(), "2:4", exclude=["conv*"]))) == ["logits"]
    names = list(sparse_layers(sparsify(everything(), "2:4", exclude=["block/deep/*", "logits"])))
    assert names == ["block/scaled", "separable", "up", "ragged", "one_d"]


def test_frozen_layers_stay_dense():
    model = small()
    model.get_layer("conv").trainable = False
    table = sparsity_table(sparsify(model, "2:4"))
    assert table["conv"].dense_because == "frozen (trainable=False)" and table["conv2"].pattern == "2:4"


def test_a_registered_layer_class_is_pruned():
    @keras.utils.register_keras_serializable(package="test")
    class Mixer(L.Layer):
        def __init__(self, mix_constraint=None, **kwargs):
            super().__init__(**kwargs)
            self.mix_constraint = mix_constraint

        def build(self, shape):
            self.mix = self.add_weight("mix", (5, shape[-1]), constraint=self.mix_constraint)

        def call(self, x):
            return tf.matmul(x, self.mix, transpose_b=True)

    model = keras.Sequential([L.Input((8,)), Mixer(name="mixer")])
    with pytest.raises(InputError, match="Mixer has no kernel"):
        sparsify(model, "2:4")
    with kernel_rules.temporary(Mixer, KernelRule("mix", "mix_constraint", axis=-1)):
        sparse = compiled(sparsify(model, "2:4"), run_eagerly=True)
        sparse.fit(np.ones((8, 8), "float32"), np.zeros(8), verbose=0)
        assert not violations(sparse) and sparsity_table(sparse)["mixer"].density == 0.5


# ---------------------------------------------------------------- training


TRAINED = [
    ("2:4", {}),
    ("1:4", {"schedule": "gradual", "end_step": 6}),
    ("uhp", {"group_size": 4}),
    ("magnitude", {"sparsity": 0.9, "schedule": "polynomial", "end_step": 7}),
    ("magnitude", {"sparsity": 0.8, "schedule": "one_shot"}),
    ("2:4", {"schedule": "constant", "begin_step": 3}),
    ("2:4", {"schedule": "sr_ste"}),
    ("2:4:shared", {"schedule": "gradual", "end_step": 6}),
]


@pytest.mark.parametrize(("pattern", "options"), TRAINED, ids=lambda v: v if isinstance(v, str) else v.get("schedule"))
def test_after_fit_the_pattern_holds_exactly_and_strip_computes_the_same(pattern, options):
    sparse = compiled(sparsify(small(), pattern, **options), "adam")
    train(sparse, epochs=2)  # 8 steps
    assert {int(layer.sparsity_step) for layer in sparse_layers(sparse).values()} == {8}
    wanted = {"2:4": 0.5, "2:4:shared": 0.5, "1:4": 0.25, "uhp": 0.5, "magnitude": 1 - options.get("sparsity", 0)}[
        pattern
    ]
    for row in sparsity_table(sparse):
        assert row.density == pytest.approx(wanted, abs=0.6 / row.weights)
    assert bool(violations(sparse)) == (options.get("schedule") == "sr_ste")  # which alone stores dense weights
    plain = strip(sparse)
    np.testing.assert_array_equal(plain(data()[0]), sparse(data()[0]))
    assert [r.density for r in sparsity_table(plain)] == [r.density for r in sparsity_table(sparse)]


def test_fixed_masks_stay_and_gradual_ones_only_grow():
    sparse = compiled(sparsify(small(), "magnitude", sparsity=0.8, schedule="polynomial", end_step=6), run_eagerly=True)
    layer, masks = sparse.get_layer("conv"), []
    x, y = data()
    for _ in range(10):
        sparse.train_on_batch(x, y)
        masks.append(layer.mask.numpy())
    for before, after in itertools.pairwise(masks):
        assert (after <= before).all()
    assert masks[0].mean() > masks[3].mean() > masks[5].mean()
    for after in masks[6:]:
        np.testing.assert_array_equal(after, masks[5])


def test_sr_ste_follows_the_paper_step_by_step():
    """Zhou et al. 2021: w <- w - lr * (grad(masked w) + 2e-4 * pruned w), mask from the dense w."""
    model = keras.Sequential([L.Input((8,)), L.Dense(3, use_bias=False, name="d")])
    sparse = sparsify(model, "2:4", schedule="sr_ste")
    sparse.compile(keras.optimizers.SGD(0.1), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8)).astype("float32"), rng.normal(size=(16, 3)).astype("float32")
    w = model.layers[-1].kernel.numpy().astype("float64")
    swapped = 0
    mask_before = None
    for _ in range(30):
        order = np.argsort(-np.abs(w).reshape(2, 4, 3), axis=1)
        mask = np.zeros((2, 4, 3))
        np.put_along_axis(mask, order[:, :2], 1, axis=1)
        mask = mask.reshape(8, 3)
        swapped += 0 if mask_before is None else int((mask != mask_before).sum())
        mask_before = mask
        gradient = 2 * x.T @ (x @ (w * mask) - y) / y.size
        w = w - 0.1 * (gradient + 2e-4 * (1 - mask) * w)
        sparse.train_on_batch(x, y)
    np.testing.assert_allclose(sparse.layers[-1].kernel.numpy(), w, atol=1e-5)
    assert swapped > 0  # the mask did move


def test_sr_ste_decay_is_a_loss_once_however_many_forwards():
    sparse = sparsify(small(), "2:4", schedule=SRSTE(decay=0.1))
    x, _ = data()
    sparse(x), sparse(x)
    pruned = [layer.kernel.numpy() * (1 - layer.mask.numpy()) for layer in sparse_layers(sparse).values()]
    assert len(sparse.losses) == 3
    np.testing.assert_allclose(sum(sparse.losses), 0.05 * sum((p**2).sum() for p in pruned), rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5),
        lambda: keras.optimizers.AdamW(weight_decay=0.1),
        lambda: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=2),
        lambda: keras.optimizers.legacy.Adam(),
        lambda: keras.optimizers.legacy.SGD(0.1, momentum=0.9),
    ],
    ids=["clipping", "weight decay", "averaging", "legacy adam", "legacy momentum"],
)
def test_any_optimizer_keeps_the_pattern(optimizer):
    sparse = compiled(sparsify(small(), "2:4"), optimizer())
    train(sparse, sample_weight=np.linspace(0.5, 1, 32))
    assert not violations(sparse)
    assert {int(layer.sparsity_step) for layer in sparse_layers(sparse).values()} == {4}


@pytest.mark.parametrize(
    ("mode", "schedule"),
    [
        ("run_eagerly", "constant"),
        ("run_eagerly", "sr_ste"),
        ("jit_compile", "gradual"),
        ("jit_compile", "sr_ste"),
        ("steps_per_execution", "gradual"),
    ],
)
def test_eager_compiled_and_batched_steps_agree_with_plain_fit(schedule, mode):
    model, options = small(), {"end_step": 4} if schedule == "gradual" else {}
    results = []
    for kwargs in ({}, {mode: 2 if mode == "steps_per_execution" else True}):
        sparse = compiled(sparsify(model, "2:4", schedule=schedule, **options), **kwargs)
        train(sparse)
        results.append(strip(sparse).get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "sr_ste"])
def test_mixed_precision_trains_with_float32_masks(schedule, tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = keras.Sequential([L.Input((6, 6, 4)), L.Conv2D(8, 3, name="conv"), L.Flatten()])
        model.add(L.Dense(5, dtype="float32", name="logits"))
        sparse = compiled(sparsify(model, "2:4", schedule=schedule))
        assert (sparse.get_layer("conv").compute_dtype, sparse.get_layer("logits").compute_dtype) == (
            "float16",
            "float32",
        )
        train(sparse)
        assert sparse.get_layer("conv").mask.numpy().dtype == np.float32
        sparse.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(loaded(data()[0]), sparse(data()[0]))
        assert {r.density for r in sparsity_table(strip(loaded))} == {0.5}
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_the_users_constraint_and_regularizers_still_work():
    model = small(
        kernel_constraint=keras.constraints.MaxNorm(0.3, axis=[0, 1, 2]),
        kernel_regularizer=keras.regularizers.L2(0.1),
        activity_regularizer=keras.regularizers.L2(0.1),
    )
    x, y = data()
    late = compiled(sparsify(model, "2:4", schedule="constant", begin_step=3), run_eagerly=True)
    kernel = late.get_layer("conv").kernel
    kernel.assign(model.get_layer("conv").kernel)  # the constraint was applied once on the way
    assert late.evaluate(x, y, verbose=0) == pytest.approx(compiled(model, run_eagerly=True).evaluate(x, y, verbose=0))
    sparse = compiled(sparsify(model, "2:4"), run_eagerly=True)
    train(sparse)
    assert np.sqrt((sparse.get_layer("conv").kernel.numpy() ** 2).sum((0, 1, 2))).max() <= 0.3001
    assert not violations(sparse)
    constraint = strip(sparse).get_layer("conv").get_config()["kernel_constraint"]
    assert constraint["class_name"] == "MaxNorm"


def test_masking_passes_through():
    model = keras.Sequential([L.Input((5, 8)), L.Masking(), L.Dense(4, name="d"), L.GlobalAveragePooling1D()])
    x = np.ones((2, 5, 8), "float32")
    x[:, 3:] = 0
    sparse = sparsify(model, "2:4", schedule="constant", begin_step=1)
    np.testing.assert_allclose(sparse(x), model(x))


# ---------------------------------------------------------------- strip and after


def test_strip_refuses_an_unfinished_schedule_unless_told_to_finish():
    sparse = compiled(sparsify(small(), "2:4", schedule="gradual", end_step=8), run_eagerly=True)
    train(sparse)  # 4 of 8 steps: 3:4
    with pytest.raises(InputError, match=r"'conv' is not 2:4 yet: step 4, density 0.750") as error:
        strip(sparse)
    assert "step 8" in str(error.value)
    plain = strip(sparse, finish=True)
    assert {r.pattern for r in sparsity_table(plain)} == {"2:4"}
    kept = sparse.get_layer("conv").masked_kernel()
    finished = plain.get_layer("conv").kernel.numpy()
    np.testing.assert_array_equal(finished[finished != 0], kept[finished != 0])


def test_strip_names_layer_and_group_where_the_mask_was_overwritten():
    sparse = sparsify(small(), "2:4")
    layer = sparse.get_layer("conv2")
    layer.kernel.assign(tf.ones_like(layer.kernel))
    mask = layer.mask.numpy()
    mask[0, 1, 4:8, 2] = 1
    layer.mask.assign(mask)
    with pytest.raises(
        InputError, match=r"'conv2' breaks its pattern: input channels 4..7 at kernel position \(0, 1, 2\)"
    ):
        strip(sparse)
    assert {r.pattern for r in sparsity_table(strip(sparse, finish=True))} == {"2:4"}


def test_strip_of_a_plain_model_is_a_copy():
    model = small()
    copy = strip(model)
    assert copy is not model and not {id(v) for v in copy.weights} & {id(v) for v in model.weights}
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {r.dense_because for r in sparsity_table(model)} == {"not sparsified"}


def test_a_stripped_file_is_plain_keras_and_keep_zeros_holds_it(tmp_path):
    plain = strip(sparsify(small(), "2:4"))
    plain.save(tmp_path / "plain.keras")
    assert "orbit_kd" not in plain.to_json()
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    train(compiled(loaded, run_eagerly=True))
    assert sparsity_table(loaded).density > 0.99
    kept = keep_zeros(keras.models.load_model(tmp_path / "plain.keras"))
    train(compiled(kept, "adam", run_eagerly=True))
    assert {r.pattern for r in sparsity_table(kept)} == {"2:4"}


# ---------------------------------------------------------------- bad input


def test_bad_models_are_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(InputError, match="subclassed"):
        sparsify(Subclassed(), "2:4")
    with pytest.raises(InputError, match="not built"):
        sparsify(keras.Sequential([L.Dense(4)]), "2:4")
    with pytest.raises(InputError, match=r"strip it first: okd\.strip\(model\)"):
        sparsify(sparsify(small(), "2:4"), "1:4")
    with pytest.raises(InputError, match="3 input channels, fewer than a group"):
        sparsify(keras.Sequential([L.Input((3,)), L.Dense(4)]), "2:4")


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"exclude= names the layer 'typo'(.|\n)*conv, conv2, logits"):
        sparsify(small(), "2:4", exclude=["typo"])
    with pytest.raises(InputError, match="sparsity= names the layer 'typo'"):
        sparsify(small(), "magnitude", sparsity={"typo": 0.5})
    with pytest.raises(InputError, match="scope='model'"):
        sparsify(small(), "magnitude", scope="model")
    with pytest.raises(InputError, match="fixes the sparsity"):
        sparsify(small(), "2:4", scope="global")
    with pytest.raises(InputError, match="fixes the sparsity"):
        sparsify(small(), "2:4", sparsity={"conv": 0.5})
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        sparsify(small(), "magnitude", sparsity={"conv": 1.5})


def test_a_layer_that_cannot_be_copied_is_named():
    class NoConfig(L.Layer):
        def __init__(self, size):
            super().__init__(name="odd")

        def call(self, x):
            return x

    model = keras.Sequential([L.Input((8,)), NoConfig(np.ones(3)), L.Dense(4)])
    with pytest.raises(InputError, match=r"'odd' .NoConfig. cannot be copied"):
        sparsify(model, "2:4")


def test_a_wrapper_refuses_a_built_layer():
    layer = L.Dense(4)
    layer.build((None, 8))
    wrapper = SparseLayer(layer, pattern=NofM(2, 4), schedule=SRSTE(), rule=KernelRule())
    with pytest.raises(InputError, match="no constraint can reach"):
        wrapper.build((None, 8))


def test_a_pattern_of_ones_own_is_saved_with_the_model(tmp_path):
    @keras.utils.register_keras_serializable(package="test")
    @dataclasses.dataclass(frozen=True)
    class EveryOther:
        offset: int = 1
        label = "every other"
        steps = 1

        def reason_dense(self, input_channels):
            return None

        def mask(self, magnitudes, *, axis, progress):
            keep = tf.cast(tf.range(magnitudes.shape[-1]) % 2 == self.offset, magnitudes.dtype)
            return tf.ones_like(magnitudes) * keep

        def violation(self, kernel, *, axis):
            return None if not kernel[..., 1 - self.offset :: 2].any() else "an odd channel is not zero"

        def get_config(self):
            return {"offset": self.offset}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    sparse = sparsify(small(), EveryOther(0))
    sparse.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")
    assert loaded.get_layer("conv").pattern == EveryOther(0)
    assert not strip(loaded).get_layer("conv").kernel.numpy()[..., 1::2].any()


@pytest.mark.parametrize("wrap", ["quantize_aware", "cluster"])
def test_models_of_later_stages_are_refused_with_the_function_that_unwraps_them(wrap):
    import orbit_kd as okd

    image = keras.Input((8, 8, 4))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Conv2D(8, 3)(image))))
    later = getattr(okd, wrap)(model)
    for function in (okd.strip, lambda m: okd.sparsify(m, "2:4")):
        with pytest.raises(InputError, match="strip_quantization" if wrap == "quantize_aware" else "strip_clusters"):
            function(later)
