"""The ways in which tfmot loses sparsity: each shown on plain tfmot, and closed by orbit_kd.

Where a test has a `tfmot` part, it fails as soon as tfmot itself no longer has the trap.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.copies import named_layers
from orbit_kd.sparsity.layers import SparseLayer
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.sparsity.table import sparsity_table

L = keras.layers


@pytest.fixture
def tfmot():
    """tfmot's own API, imported with its deprecation warnings off (the library does the same)."""
    import tensorflow_model_optimization

    return tensorflow_model_optimization.sparsity.keras


def network() -> keras.Model:
    return keras.Sequential(
        [
            L.Input((6, 6, 4)),
            L.Conv2D(8, 3, name="conv"),
            L.ReLU(),
            L.Conv2D(8, 3, name="conv2"),
            L.Flatten(),
            L.Dense(5, name="logits"),
        ]
    )


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 6, 6, 4)).astype("float32"), rng.integers(0, 5, 32)


def compiled(model, optimizer="adam", graph=False):
    """Eager unless the test is about graphs: tracing tfmot's wrappers takes most of the time."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=not graph)
    return model


def train(model, epochs=1, **kwargs):
    """4 steps an epoch, always the same batches."""
    return model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0, **kwargs)


def wrapped(model):
    return {name: layer for name, layer in named_layers(model) if isinstance(layer, SparseLayer)}


def steps(model):
    return {int(layer.sparsity_step) for layer in wrapped(model).values()}


def stored_density(model):
    """Of the kernels as stored, without any mask."""
    kernels = [w for w in model.trainable_variables if w.shape.rank >= 2]
    return sum(np.count_nonzero(k.numpy()) for k in kernels) / sum(int(tf.size(k)) for k in kernels)


def assert_same(a, b):
    """Two models hold the same numbers, to the bit."""
    assert len(a.weights) == len(b.weights)
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_layer_that_tfmot_does_not_know_does_not_stop_the_rest(tfmot):
    class OwnConv(L.Conv2D):
        pass

    for odd in (
        L.Rescaling(0.5),
        L.PReLU(),
        L.GroupNormalization(2),
        L.Normalization(mean=0.0, variance=1.0),
        OwnConv(8, 1),
    ):
        model = keras.Sequential([L.Input((6, 6, 4)), L.Conv2D(8, 3, name="conv"), odd])
        with pytest.raises(ValueError, match="supported"):
            tfmot.prune_low_magnitude(model)
        assert sparsity_table(sparsify(model, "2:4"))["conv"].density == 0.5
    assert len(wrapped(sparsify(model, "2:4"))) == 2  # the subclass too

    inputs = L.Input((6, 6, 4))
    x = L.Conv2D(4, 1, name="conv")(inputs)
    model = keras.Model(inputs, (x + inputs) * 2.0)
    with pytest.raises(ValueError, match="supported"):
        tfmot.prune_low_magnitude(model)
    assert len(wrapped(sparsify(model, "2:4"))) == 1


def test_depthwise_layers_are_reported_not_forgotten(tfmot):
    model = keras.Sequential([L.Input((6, 6, 4)), L.DepthwiseConv2D(3, name="dw"), L.Conv2D(8, 1, name="conv")])
    assert tfmot.prune_low_magnitude(model).layers[0].pruning_vars == []
    assert "depthwise" in sparsity_table(sparsify(model, "2:4"))["dw"].dense_because


def test_n_counts_non_zeros(tfmot):
    theirs = compiled(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(1, 4)))
    train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    assert stored_density(theirs) == 0.75
    ours = compiled(sparsify(network(), "1:4"))
    train(ours)
    assert stored_density(ours) == 0.25


def test_the_group_axis_of_transposed_and_1d_convolutions(tfmot):
    def groups_of(kernel, axis):
        rows = np.moveaxis(kernel, axis, -1)
        return np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1)

    model = keras.Sequential([L.Input((6, 6, 4)), L.Conv2DTranspose(8, 3, name="up"), L.GlobalAveragePooling2D()])
    theirs = compiled(tfmot.prune_low_magnitude(keras.models.clone_model(model), sparsity_m_by_n=(2, 4)))
    train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    assert groups_of(theirs.layers[0].layer.kernel.numpy(), -1).max() > 2  # (kh, kw, out, in): input channels last
    ours = compiled(sparsify(model, "2:4"))
    train(ours)
    assert groups_of(ours.get_layer("up").kernel.numpy(), -1).max() == 2

    model = keras.Sequential(
        [L.Input((6, 6, 4)), L.Reshape((36, 4)), L.Conv1D(8, 3, name="one"), L.GlobalMaxPooling1D()]
    )
    theirs = compiled(tfmot.prune_low_magnitude(keras.models.clone_model(model), sparsity_m_by_n=(2, 4)))
    with pytest.raises(ValueError, match="not supported"):
        train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    ours = compiled(sparsify(model, "2:4"))
    train(ours)
    assert groups_of(ours.get_layer("one").kernel.numpy(), -2).max() == 2


@pytest.mark.parametrize(
    ("channels", "tfmots", "ours"), [(1, 1.0, 1.0), (3, 2 / 3, 1.0), (6, 2 / 3, 0.5), (7, 4 / 7, 4 / 7)]
)
def test_input_channels_that_are_no_multiple_of_4_follow_a_policy(tfmot, channels, tfmots, ours):
    model = keras.Sequential([L.Input((5, 5, channels)), L.Conv2D(6, 3, name="odd"), L.Conv2D(4, 1, name="next")])
    model.add(L.GlobalAveragePooling2D())
    x, y = np.ones((8, 5, 5, channels), "float32"), np.zeros(8)
    theirs = compiled(tfmot.prune_low_magnitude(keras.models.clone_model(model), sparsity_m_by_n=(2, 4)))
    theirs.fit(x, y, verbose=0, callbacks=[tfmot.UpdatePruningStep()])
    kernel = theirs.layers[0].layer.kernel.numpy()
    assert np.count_nonzero(kernel) / kernel.size == pytest.approx(tfmots)
    row = sparsity_table(sparsify(model, "2:4"))["odd"]
    assert row.density == pytest.approx(ours)
    assert row.dense_because == (
        f"{channels} input channel{'s' * (channels > 1)}, fewer than a group of 4" if ours == 1 else ""
    )


def test_no_callback_is_needed_and_a_stray_one_is_harmless(tfmot):
    theirs = compiled(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="UpdatePruningStep"):
        train(theirs)
    model = network()
    ours, with_callback = compiled(sparsify(model, "2:4")), compiled(sparsify(model, "2:4"))
    train(ours)
    train(with_callback, callbacks=[tfmot.UpdatePruningStep()])
    assert stored_density(ours) == 0.5
    assert_same(ours, with_callback)


def test_the_mask_of_an_n_of_m_pattern_follows_its_schedule(tfmot):
    """tfmot computes it once at step 1; SR-STE needs it at each step, the gradual schedule several times."""
    schedule = tfmot.PolynomialDecay(0.0, 0.5, begin_step=2, end_step=6, frequency=1)
    theirs = compiled(tfmot.prune_low_magnitude(network(), schedule, sparsity_m_by_n=(2, 4)))
    train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    after_4 = [layer.pruning_vars[0][1].numpy().mean() for layer in theirs.layers if getattr(layer, "pruning_vars", ())]
    assert after_4 == [0.5, 0.5, 0.5]  # by its schedule it would be half way
    ours = compiled(sparsify(network(), "2:4", schedule="gradual", end_step=8))
    train(ours)
    assert stored_density(ours) == 0.75


def test_the_last_refresh_falls_on_the_end_of_the_schedule(tfmot):
    schedule = tfmot.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=6, frequency=4)
    theirs = compiled(tfmot.prune_low_magnitude(network(), schedule))
    train(theirs, 2, callbacks=[tfmot.UpdatePruningStep()])
    assert stored_density(theirs) > 0.21
    ours = compiled(sparsify(network(), "magnitude", sparsity=0.8, schedule="polynomial", end_step=6))
    train(ours, 2)
    assert stored_density(ours) == pytest.approx(0.2, abs=0.001)


def test_the_source_model_is_left_alone(tfmot):
    model = network()
    before = model.get_weights()
    theirs = compiled(tfmot.prune_low_magnitude(model, sparsity_m_by_n=(2, 4)))
    train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))

    model = network()
    before = model.get_weights()
    sparse = compiled(sparsify(model, "2:4"))
    train(sparse)
    plain = compiled(strip(sparse))
    trained = sparse.get_weights()
    train(plain)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(sparse.get_weights(), trained, strict=True):
        np.testing.assert_array_equal(a, b)


class Distilling(keras.Model):
    """The shape of a Distiller: a student within a training model, called once or more a step."""

    def __init__(self, student, forwards=1):
        super().__init__()
        self.student, self.forwards = student, forwards

    def call(self, x, training=None):
        return self.student(x, training=training)

    def train_step(self, batch):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            outputs = [self.student(x, training=True) for _ in range(self.forwards)]
            loss = self.compiled_loss(y, tf.add_n(outputs) / self.forwards, regularization_losses=self.student.losses)
        variables = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


def test_a_second_forward_pass_does_not_advance_the_schedule(tfmot):
    theirs = tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4))
    for layer in theirs.layers:
        if hasattr(layer, "pruning_step"):
            layer.pruning_step.assign(0)
    distiller = compiled(Distilling(theirs, forwards=2))
    train(distiller)
    assert int(theirs.layers[0].pruning_step) == 8  # in 4 steps

    model, results = network(), []
    for forwards in (1, 2):
        ours = sparsify(model, "1:4", schedule="gradual", end_step=4)
        train(compiled(Distilling(ours, forwards), "sgd"))
        assert steps(ours) == {4} and stored_density(ours) == 0.25
        results.append(ours)
    for a, b in zip(results[0].get_weights(), results[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "sr_ste"])
def test_training_inside_a_distiller_is_training_under_fit(schedule):
    model = network()
    alone, inside = sparsify(model, "2:4", schedule=schedule), sparsify(model, "2:4", schedule=schedule)
    train(compiled(alone, "sgd", graph=True))
    train(compiled(Distilling(inside), "sgd", graph=True))
    for a, b in zip(alone.get_weights(), inside.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_shared_layer_counts_a_step_once(tfmot):
    def siamese(convolution):
        one, two = L.Input((6, 6, 4)), L.Input((6, 6, 4))
        x = L.Add()([convolution(one), convolution(two)])
        return keras.Model([one, two], L.GlobalAveragePooling2D()(x))

    x, y = data()
    theirs = tfmot.prune_low_magnitude(L.Conv2D(8, 3), sparsity_m_by_n=(2, 4))
    model = compiled(siamese(theirs))
    model.fit([x, x], y, batch_size=8, verbose=0, callbacks=[tfmot.UpdatePruningStep()])
    assert int(theirs.pruning_step) == 8  # in 4 steps

    sparse = compiled(sparsify(siamese(L.Conv2D(8, 3)), "2:4"))
    sparse.fit([x, x], y, batch_size=8, verbose=0)
    assert steps(sparse) == {4} and len(wrapped(sparse)) == 1
    assert len(strip(sparse).trainable_variables) == 2  # still shared


def test_a_layer_shared_across_nested_models_stays_one_layer():
    shared = L.Dense(8, name="shared")
    inner = keras.Sequential([L.Input((8,)), shared, L.ReLU()], name="inner")
    inputs = L.Input((8,))
    model = keras.Model(inputs, inner(shared(inputs)))
    sparse = compiled(sparsify(model, "2:4"), "sgd")
    sparse.fit(np.ones((8, 8), "float32"), np.zeros(8), batch_size=4, verbose=0)
    assert len(sparse.trainable_variables) == 2 and steps(sparse) == {2}


class Holder(L.Layer):
    """A plain layer around a student, which tfmot's callback does not look into."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def call(self, x, training=None):
        return self.student(x, training=training)


def test_a_student_inside_a_plain_layer_is_trained_sparse(tfmot):
    inputs = L.Input((6, 6, 4))
    theirs = compiled(keras.Model(inputs, Holder(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4)))(inputs)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="UpdatePruningStep"):
        train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    student = sparsify(network(), "1:4", schedule="gradual", end_step=4)
    ours = compiled(keras.Model(inputs, Holder(student)(inputs)))
    train(ours)
    assert steps(student) == {4} and stored_density(student) == 0.25


class Rising(keras.callbacks.Callback):
    """Makes every epoch look worse than the first, so that EarlyStopping goes back to it."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = float(epoch)


def early_stopping():
    return keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)


def test_early_stopping_restores_sparse_weights_in_any_callback_order(tfmot):
    theirs, stop = compiled(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4))), early_stopping()
    train(theirs, 4, callbacks=[Rising(), stop, tfmot.UpdatePruningStep()])
    conv = next(w for w in stop.best_weights if w.shape == (3, 3, 4, 8))
    assert np.mean(conv != 0) > 0.9

    for schedule in ("constant", "sr_ste"):
        ours = compiled(sparsify(network(), "2:4", schedule=schedule))
        stop = early_stopping()
        train(ours, 4, callbacks=[Rising(), stop])
        assert steps(ours) == {4}  # weights, masks and step of the first epoch
        assert {r.density for r in sparsity_table(strip(ours))} == {0.5}
        for now, then in zip(ours.get_weights(), stop.best_weights, strict=True):
            np.testing.assert_array_equal(now, then)


def test_a_checkpoint_is_sparse_in_any_callback_order(tfmot, tmp_path):
    def checkpoint(name):
        return keras.callbacks.ModelCheckpoint(str(tmp_path / name), save_weights_only=True)

    theirs = compiled(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4)))
    train(theirs, callbacks=[checkpoint("theirs.weights.h5"), tfmot.UpdatePruningStep()])
    reader = tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4))
    reader.load_weights(tmp_path / "theirs.weights.h5")
    assert stored_density(reader) > 0.9

    ours = compiled(sparsify(network(), "2:4"))
    train(ours, callbacks=[checkpoint("ours.weights.h5")])
    reader = sparsify(network(), "2:4")
    reader.load_weights(tmp_path / "ours.weights.h5")
    assert stored_density(reader) == 0.5
    assert_same(reader, ours)


@pytest.mark.parametrize(
    ("pattern", "options", "density"),
    [
        ("1:4", {}, 0.25),
        ("uhp", {"group_size": 4, "schedule": "gradual", "end_step": 6}, 0.5),
        ("magnitude", {"sparsity": 0.8, "schedule": "polynomial", "end_step": 6}, 0.2),
        ("2:4", {"schedule": "sr_ste"}, 0.5),
    ],
)
def test_the_config_round_trip_keeps_pattern_and_schedule(pattern, options, density):
    sparse = sparsify(network(), pattern, **options)
    for copy in (
        keras.Sequential.from_config(sparse.get_config()),
        keras.models.clone_model(sparse),
        keras.models.model_from_json(sparse.to_json()),
    ):
        for name, layer in wrapped(sparse).items():
            same = wrapped(copy)[name]
            assert (same.pattern, same.schedule, same.rule) == (layer.pattern, layer.schedule, layer.rule)
        # Fresh weights: the pattern starts with their first training step.
        train(compiled(copy, "sgd"), 2)
        assert sparsity_table(copy).density == pytest.approx(density, abs=0.001)


def test_tfmots_config_forgets_n_of_m(tfmot):
    layer = tfmot.prune_low_magnitude(L.Dense(4), sparsity_m_by_n=(2, 4))
    assert type(layer).from_config(layer.get_config()).sparsity_m_by_n is None


@pytest.mark.parametrize("schedule", ["polynomial", "sr_ste"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("form", ["m.keras", "m.h5", "savedmodel"])
def test_a_half_trained_model_resumes_to_the_bit(schedule, form, tmp_path):
    pattern = ("2:4", {}) if schedule == "sr_ste" else ("magnitude", {"sparsity": 0.8, "end_step": 7})
    # Keras itself does not restore the slots of an optimizer from a SavedModel.
    optimizer = "sgd" if form == "savedmodel" else "adam"
    graph = form == "m.keras"
    half = compiled(sparsify(network(), pattern[0], schedule=schedule, **pattern[1]), optimizer, graph=graph)
    train(half)  # 4 of 8 steps
    half.save(tmp_path / form, save_format="tf" if form == "savedmodel" else None)
    loaded = keras.models.load_model(tmp_path / form)
    loaded.run_eagerly = not graph
    assert steps(loaded) == {4}
    assert_same(loaded, half)
    train(half)
    train(loaded)
    assert_same(loaded, half)
    assert_same(strip(loaded), strip(half))


def test_a_checkpoint_of_weights_resumes_the_schedule(tmp_path):
    options = {"sparsity": 0.8, "schedule": "polynomial", "end_step": 7}
    half = compiled(sparsify(network(), "magnitude", **options), "sgd")
    train(half)
    half.save_weights(tmp_path / "checkpoint")
    fresh = compiled(sparsify(network(), "magnitude", **options), "sgd")
    fresh.load_weights(tmp_path / "checkpoint").assert_existing_objects_matched()
    train(half), train(fresh)
    assert_same(fresh, half)
    assert stored_density(fresh) == pytest.approx(0.2, abs=0.001)


def test_one_more_epoch_of_plain_fit_after_strip_keeps_the_density(tfmot):
    theirs = compiled(tfmot.prune_low_magnitude(network(), sparsity_m_by_n=(2, 4)))
    train(theirs, callbacks=[tfmot.UpdatePruningStep()])
    plain = compiled(tfmot.strip_pruning(theirs))
    train(plain)
    assert stored_density(plain) > 0.9

    ours = compiled(sparsify(network(), "2:4"))
    train(ours)
    for optimizer in ("adam", keras.optimizers.legacy.SGD(0.1, momentum=0.9), keras.optimizers.AdamW(weight_decay=0.1)):
        plain = compiled(strip(ours), optimizer, graph=True)
        before = plain.get_weights()
        train(plain)
        assert stored_density(plain) == 0.5
        assert {r.pattern for r in sparsity_table(plain)} == {"2:4"}
        assert any((a != b).any() for a, b in zip(plain.get_weights(), before, strict=True))


def test_averaged_weights_do_not_bring_pruned_ones_back():
    ours = compiled(sparsify(network(), "2:4"), keras.optimizers.Adam(use_ema=True))
    train(ours, 2)  # at the end, Keras writes the averages over the weights, past every constraint
    x, _ = data()
    assert {r.density for r in sparsity_table(ours)} == {0.5}
    np.testing.assert_array_equal(strip(ours)(x), ours(x))
    ours = compiled(sparsify(network(), "2:4", schedule="sr_ste"), keras.optimizers.Adam(use_ema=True))
    train(ours, 2)
    np.testing.assert_array_equal(strip(ours)(x), ours(x))


def test_dense_weights_set_from_outside_are_masked_in_the_forward_pass():
    sparse = sparsify(network(), "2:4")
    layer = sparse.get_layer("conv")
    x, _ = data()
    before = layer(x).numpy()
    layer.kernel.assign(tf.where(layer.mask == 0, 7.0, layer.kernel))
    np.testing.assert_array_equal(layer(x), before)
