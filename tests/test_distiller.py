"""The Distiller: what it minimizes, what it leaves alone, and that it is a Keras model like any other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation import (
    DistillationLoss,
    Distiller,
    FeatureHints,
    LogitsDistillation,
    Piecewise,
    StopOnNonFinite,
    cache_teacher,
)
from orbit_kd.errors import InputError

L = keras.layers
CLASSES = 3


def network(width=4, *, head=None, name=None, batchnorm=True, dropout=0.0, **head_options):
    x = inputs = L.Input((8, 8, 1))
    x = L.Conv2D(width, 3, padding="same", name="conv1")(x)
    if batchnorm:
        x = L.BatchNormalization(name="bn1")(x)
    x = L.MaxPool2D(name="pool")(L.ReLU(name="relu1")(x))
    x = L.Conv2D(2 * width, 3, padding="same", activation="relu", name="conv2")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    if dropout:
        x = L.Dropout(dropout, name="drop")(x)
    return keras.Model(inputs, L.Dense(CLASSES, activation=head, name="head", **head_options)(x), name=name)


def arrays(n=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8, 8, 1)).astype("float32"), rng.integers(0, CLASSES, n)


def batches(n=24, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays(n)).batch(size)


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def compiled(
    student=None, teacher=None, *, loss="default", optimizer=None, metrics=("accuracy",), run_eagerly=True, **options
):
    distiller = Distiller(student or network(), teacher=teacher or network(6, head="softmax"), **options)
    loss = cross_entropy() if loss == "default" else loss
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.05), loss=loss, metrics=list(metrics or ()), run_eagerly=run_eagerly
    )
    return distiller


def kl(teacher, student, t):
    p, q = tf.nn.softmax(teacher / t), tf.nn.log_softmax(student / t)
    return t**2 * np.mean(np.sum(p * (np.log(p) - q), -1))


# what is minimized


def test_loss_is_the_weighted_sum_of_the_design():
    student, teacher = network(batchnorm=False), network(6, head="softmax", batchnorm=False)
    student.get_layer("conv1").kernel_regularizer = None
    distiller = compiled(
        student,
        teacher,
        alpha=0.7,
        losses=[LogitsDistillation(2.0, weight=3.0), LogitsDistillation(5.0, weight=0.5, name="soft")],
        optimizer=keras.optimizers.SGD(0.0),
    )
    x, y = arrays()
    logits = student(x).numpy()
    twin = network(6, batchnorm=False)
    twin.set_weights(teacher.get_weights())
    theirs = twin(x).numpy()
    history = distiller.fit(x, y, batch_size=24, verbose=0).history
    task = cross_entropy()(y, logits).numpy()
    sharp, soft = kl(theirs, logits, 2.0), kl(theirs, logits, 5.0)
    assert history["logits_distillation_loss"][0] == pytest.approx(sharp, rel=1e-4)
    assert history["soft_loss"][0] == pytest.approx(soft, rel=1e-4)
    assert history["task_loss"][0] == pytest.approx(task, rel=1e-5)
    assert history["loss"][0] == pytest.approx(0.3 * task + 0.7 * (3 * sharp + 0.5 * soft), rel=1e-4)


def test_gradient_of_softened_outputs_keeps_its_size_over_temperatures():
    teacher, student = tf.constant([[1.0, 0.0, -1.0]]), tf.Variable([[0.2, 0.1, 0.0]])
    sizes = []
    for t in (10.0, 40.0):
        with tf.GradientTape() as tape:
            value = LogitsDistillation(t).compute_loss(teacher, student)
        sizes.append(float(tf.norm(tape.gradient(value, student))))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_logged_terms_are_means_over_the_epoch_not_the_last_batch():
    student = network(batchnorm=False)
    distiller = compiled(student, optimizer=keras.optimizers.SGD(0.0))
    x, y = arrays(21)  # the last batch is smaller
    whole = distiller.fit(x, y, batch_size=21, verbose=0).history
    split = distiller.fit(x, y, batch_size=8, verbose=0, shuffle=False).history
    for name in ("loss", "task_loss", "logits_distillation_loss"):
        assert split[name][0] == pytest.approx(whole[name][0], rel=1e-5)


def test_without_task_loss_there_is_no_alpha_and_no_label():
    student, teacher = network(batchnorm=False), network(6, batchnorm=False)
    distiller = compiled(
        student, teacher, loss=None, metrics=None, alpha=0.2, optimizer=keras.optimizers.SGD(0.0), losses=["logits"]
    )
    x, _ = arrays()
    expected = kl(teacher(x).numpy(), student(x).numpy(), 5.0)
    history = distiller.fit(tf.data.Dataset.from_tensor_slices(x).batch(24), verbose=0).history
    assert set(history) == {"loss", "logits_distillation_loss"}
    assert history["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert distiller.evaluate(x, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-4)


def test_label_free_training_brings_the_student_to_the_teacher():
    distiller = compiled(loss=None, metrics=None, optimizer=keras.optimizers.Adam(0.01))
    x, _ = arrays(48)
    losses = distiller.fit(x, epochs=8, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_regularizers_count_once_and_outside_alpha():
    student = network(batchnorm=False)
    config = student.get_config()
    for layer in config["layers"]:
        if layer["config"]["name"] == "conv2":
            layer["config"]["kernel_regularizer"] = {"class_name": "L2", "config": {"l2": 0.1}}
    student = keras.Model.from_config(config)
    distiller = compiled(student, alpha=0.5, optimizer=keras.optimizers.SGD(0.0))
    x, y = arrays()
    log = distiller.fit(x, y, batch_size=24, verbose=0).history
    penalty = 0.1 * np.sum(student.get_layer("conv2").kernel.numpy() ** 2)
    expected = 0.5 * log["task_loss"][0] + 0.5 * log["logits_distillation_loss"][0] + penalty
    assert log["loss"][0] == pytest.approx(expected, rel=1e-5)


# heads


@pytest.mark.parametrize("head", ["softmax", "layer", "float32 at the end", "nested", "op"])
def test_logits_are_recovered_from_a_teacher_that_ends_in_softmax(head):
    teacher = network(6, batchnorm=False)
    x, y = arrays()
    teacher.get_layer("head").set_weights([30 * w for w in teacher.get_layer("head").get_weights()])
    logits = teacher(x).numpy()
    ends = {
        "softmax": lambda z: L.Activation("softmax")(z),
        "layer": lambda z: L.Softmax()(z),
        "float32 at the end": lambda z: L.Activation("linear", dtype="float32")(L.Activation("softmax")(z)),
        "op": lambda z: tf.nn.softmax(z),
    }
    if head == "nested":
        inner = keras.Model(teacher.input, L.Softmax()(teacher.output))
        outer = L.Input((8, 8, 1))
        probabilities = keras.Model(outer, inner(outer))
    else:
        probabilities = keras.Model(teacher.input, ends[head](teacher.output))
    student = network(batchnorm=False)
    expected = kl(logits, student(x).numpy(), 4.0)
    distiller = compiled(
        student,
        probabilities,
        losses=[LogitsDistillation(4.0)],
        optimizer=keras.optimizers.SGD(0.0),
        run_eagerly=head == "layer",
    )
    log = distiller.fit(x, y, batch_size=24, verbose=0).history
    assert log["logits_distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_student_that_ends_in_softmax_learns_the_same_as_one_that_gives_logits():
    teacher, logits = network(6), network()
    probabilities = network(head="softmax")
    probabilities.set_weights(logits.get_weights())
    x, y = arrays()
    logs = []
    for student, from_logits in ((logits, True), (probabilities, False)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        logs.append(compiled(student, teacher, loss=loss).fit(x, y, epochs=2, verbose=0, shuffle=False).history)
    for name in logs[0]:
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-4)


@pytest.mark.parametrize("units", [1, 2])
def test_sigmoid_heads_are_compared_as_independent_probabilities(units):
    def head(width):
        model = network(width, batchnorm=False)
        return keras.Model(model.input, L.Dense(units, activation="sigmoid")(model.layers[-2].output))

    teacher, student = head(6), head(4)
    x, _ = arrays()
    y = np.random.default_rng(0).integers(0, 2, (24, units)).astype("float32")
    p, q = teacher(x).numpy().astype("float64"), student(x).numpy().astype("float64")
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    distiller = compiled(
        student,
        teacher,
        loss="binary_crossentropy",
        losses=[LogitsDistillation(1.0)],
        optimizer=keras.optimizers.SGD(0.0),
    )
    log = distiller.fit(x, y, batch_size=24, verbose=0).history
    assert log["logits_distillation_loss"][0] == pytest.approx(expected, rel=1e-3)


def test_one_hot_and_integer_labels_give_the_same_training():
    teacher, first, second = network(6), network(), network()
    second.set_weights(first.get_weights())
    x, y = arrays()
    a = compiled(first, teacher, losses=["logits", "decoupled"]).fit(x, y, verbose=0, shuffle=False).history
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller = compiled(second, teacher, loss=loss, losses=["logits", "decoupled"])
    b = distiller.fit(x, np.eye(CLASSES)[y], verbose=0, shuffle=False).history
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-5), name


# the teacher


@pytest.mark.parametrize("losses", [["logits"], ["hints", "logits"]])
def test_teacher_is_bit_identical_afterwards_and_tracked_nowhere(losses, tmp_path):
    teacher = network(6, dropout=0.3)
    teacher.get_layer("conv1").trainable = False
    x, y = arrays()
    before = [w.copy() for w in teacher.get_weights()]
    said = teacher(x).numpy()
    distiller = compiled(teacher=teacher, losses=losses)
    distiller.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    assert teacher.trainable and not teacher.get_layer("conv1").trainable
    assert all(layer.trainable for layer in teacher.layers if layer.name != "conv1")
    np.testing.assert_array_equal(said, teacher(x).numpy())
    theirs = {id(v) for v in teacher.variables}
    assert not theirs & {id(v) for v in [*distiller.variables, *distiller.trainable_variables]}
    assert not {id(m) for m in distiller.submodules} & {id(m) for m in teacher.submodules}
    distiller.save_weights(str(tmp_path / "w"))
    kernels = [tuple(s) for _, s in tf.train.list_variables(str(tmp_path / "w"))]
    assert tuple(teacher.get_layer("conv2").kernel.shape) not in kernels
    assert "call" not in vars(teacher.get_layer("conv2"))  # no recording hook is left behind


def test_teacher_runs_in_inference_mode():
    teacher, student = network(6, dropout=0.9, batchnorm=False), network(batchnorm=False)
    x, y = arrays()
    expected = kl(teacher(x).numpy(), student(x).numpy(), 5.0)
    log = compiled(student, teacher, optimizer=keras.optimizers.SGD(0.0)).fit(x, y, batch_size=24, verbose=0).history
    assert log["logits_distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_several_teachers_teach_their_weighted_mean_logits():
    """In inference mode, each of them."""
    one, two = network(6, dropout=0.9, batchnorm=False), network(5, dropout=0.9, batchnorm=False)
    student = network(batchnorm=False)
    x, y = arrays()
    for weights, share in ((None, 0.5), ([3.0, 1.0], 0.75)):
        mixed = share * one(x).numpy() + (1 - share) * two(x).numpy()
        distiller = compiled(student, [one, two], teacher_weights=weights, optimizer=keras.optimizers.SGD(0.0))
        log = distiller.fit(x, y, batch_size=24, verbose=0).history
        assert log["logits_distillation_loss"][0] == pytest.approx(kl(mixed, student(x).numpy(), 5.0), rel=1e-4)


# one forward pass


class Counting(L.Layer):
    """Counts how often it runs in training and in inference mode."""

    def build(self, shape):
        self.trained = self.add_weight("trained", (), initializer="zeros", trainable=False)
        self.inferred = self.add_weight("inferred", (), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        (self.trained if training else self.inferred).assign_add(1.0)
        return x


@pytest.mark.parametrize("losses", [["logits"], ["hints", "logits", "attention"]])
def test_student_runs_once_a_step_and_evaluation_is_inference(losses):
    base = network()
    counter = Counting()
    student = keras.Model(base.input, counter(base.output))
    distiller = compiled(student, losses=losses)
    x, y = arrays()
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert (counter.trained.numpy(), counter.inferred.numpy()) == (6, 0)
    moving = student.get_layer("bn1").moving_mean.numpy().copy()
    distiller.evaluate(x, y, batch_size=8, verbose=0)
    assert (counter.trained.numpy(), counter.inferred.numpy()) == (6, 3)
    np.testing.assert_array_equal(moving, student.get_layer("bn1").moving_mean.numpy())


def test_batchnorm_moves_as_in_one_plain_step():
    plain, student = network(), network()
    student.set_weights(plain.get_weights())
    x, y = arrays(8)
    plain(x, training=True)
    compiled(student, losses=["hints", "logits"]).fit(x, y, batch_size=8, verbose=0)
    np.testing.assert_allclose(
        plain.get_layer("bn1").moving_mean.numpy(), student.get_layer("bn1").moving_mean.numpy(), rtol=1e-5
    )


# what fit knows


def test_sample_weight_weighs_task_and_distillation():
    student = network(batchnorm=False)
    distiller = compiled(student, losses=["logits", "hints"], optimizer=keras.optimizers.SGD(0.0))
    x, y = arrays(16)
    weight = np.repeat([1.0, 0.0], 8).astype("float32")
    weighted = distiller.fit(x, y, sample_weight=weight, batch_size=16, verbose=0).history
    half = distiller.fit(x[:8], y[:8], batch_size=8, verbose=0).history
    for name in ("loss", "task_loss", "logits_distillation_loss", "feature_hints_loss"):
        assert weighted[name][0] == pytest.approx(half[name][0] / 2, rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_class_weight_equals_the_sample_weights_it_stands_for(cached):
    student, teacher = network(batchnorm=False), network(6)
    distiller = compiled(student, teacher, optimizer=keras.optimizers.SGD(0.0))
    x, y = arrays()
    table = {0: 1.0, 1: 3.0, 2: 0.5}
    weights = np.array([table[c] for c in y], "float32")
    expected = distiller.fit(x, y, sample_weight=weights, batch_size=24, verbose=0).history
    data = cache_teacher(teacher, batches(24, 24)) if cached else batches(24, 24)
    got = distiller.fit(data, class_weight=table, verbose=0).history
    for name in expected:
        assert got[name] == pytest.approx(expected[name], rel=1e-3), name


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}])
def test_compile_options_do_not_change_the_result(options):
    teacher, first, second = network(6, head="softmax"), network(), network()
    second.set_weights(first.get_weights())
    every = ["logits", "hints", "attention", "relational", "similarity", "decoupled"]
    losses = lambda: every if "run_eagerly" in options else every[:2]  # noqa: E731
    a = compiled(first, teacher, losses=losses(), run_eagerly=False)
    b = Distiller(second, teacher=teacher, losses=losses())
    for loss_a, loss_b in zip(a.distillation_losses, b.distillation_losses, strict=True):
        for p, q in zip(loss_a.projectors, loss_b.projectors, strict=True):
            q.set_weights(p.get_weights())
    b.compile(keras.optimizers.SGD(0.05), loss=cross_entropy(), metrics=["accuracy"], **options)
    x, y = arrays()
    one = a.fit(x, y, batch_size=8, verbose=0, shuffle=False).history
    two = b.fit(x, y, batch_size=8, verbose=0, shuffle=False).history
    for name in one:
        assert one[name] == pytest.approx(two[name], rel=1e-3), name


def test_float16_student_of_a_float32_teacher_gets_loss_scaling():
    teacher = network(6)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student = network()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    distiller = compiled(student, teacher, losses=["logits", "hints"], optimizer=keras.optimizers.Adam(0.01))
    assert isinstance(distiller.optimizer, keras.mixed_precision.LossScaleOptimizer)
    x, y = arrays()
    losses = distiller.fit(x, y, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert all(v.dtype == tf.float32 for v in student.trainable_variables)


def test_bfloat16_student_trains():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        student = network()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = arrays()
    distiller = compiled(student, network(6), losses=["logits", "hints"], optimizer=keras.optimizers.Adam(0.01))
    losses = distiller.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_gradient_clipping_bounds_the_step():
    student = network(batchnorm=False)
    distiller = compiled(student, optimizer=keras.optimizers.SGD(1.0, global_clipnorm=1e-3))
    before = [w.copy() for w in student.get_weights()]
    x, y = arrays(8)
    distiller.fit(x, y, batch_size=8, verbose=0)
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, student.get_weights(), strict=True)))
    assert 0 < moved <= 1.01e-3


def test_steps_per_epoch_validation_callbacks_and_metric_names():
    distiller = compiled()
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, set(logs))))
    data = batches().repeat()
    history = distiller.fit(
        data, epochs=2, steps_per_epoch=2, validation_data=batches(), callbacks=[callback], verbose=0
    ).history
    names = {"loss", "task_loss", "logits_distillation_loss", "accuracy", "val_loss", "val_accuracy"}
    assert set(history) == names and seen == [(0, names), (1, names)]
    results = distiller.evaluate(batches(), verbose=0)
    assert distiller.metrics_names == ["loss", "accuracy"] and len(results) == 2


def test_evaluate_and_predict_are_those_of_the_student():
    student = network()
    distiller = compiled(student)
    x, y = arrays()
    distiller.fit(x, y, verbose=0)
    student.compile(loss=cross_entropy(), metrics=["accuracy"])
    assert distiller.evaluate(x, y, verbose=0) == pytest.approx(student.evaluate(x, y, verbose=0), rel=1e-5)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


@pytest.mark.parametrize("as_dict", [False, True])
def test_models_of_several_outputs(as_dict):
    def two_heads(width):
        base = network(width, batchnorm=False)
        features = base.layers[-2].output
        heads = [L.Dense(3, name="kind")(features), L.Dense(1, activation="sigmoid", name="moving")(features)]
        outputs = dict(zip(("kind", "moving"), heads, strict=True)) if as_dict else heads
        return keras.Model(base.input, outputs)

    teacher, student = two_heads(6), two_heads(4)
    x, y = arrays()
    labels = {"kind": y, "moving": (y > 0).astype("float32")[:, None]}
    distiller = Distiller(student, teacher=teacher, losses=["logits", "decoupled"][:1])
    distiller.compile(
        "sgd",
        loss={"kind": cross_entropy(), "moving": "binary_crossentropy"},
        metrics={"kind": "accuracy", "moving": "accuracy"},
    )
    log = distiller.fit(x, labels, batch_size=24, verbose=0).history
    assert {"kind_loss", "moving_loss", "kind_accuracy", "moving_accuracy"} <= set(log)
    assert log["task_loss"][0] == pytest.approx(log["kind_loss"][0] + log["moving_loss"][0], rel=1e-5)
    assert log["logits_distillation_loss"][0] > 0


def test_logits_of_any_rank():
    def segmenter(width):
        inputs = L.Input((8, 8, 1))
        return keras.Model(inputs, L.Conv2D(CLASSES, 1)(L.Conv2D(width, 3, padding="same", name="body")(inputs)))

    teacher, student = segmenter(6), segmenter(4)
    x, _ = arrays()
    y = np.random.default_rng(0).integers(0, CLASSES, (24, 8, 8))
    expected = kl(teacher(x).numpy(), student(x).numpy(), 5.0)
    distiller = compiled(student, teacher, losses=["logits", "decoupled"], optimizer=keras.optimizers.SGD(0.0))
    log = distiller.fit(x, y, batch_size=24, verbose=0, sample_weight=np.ones((24, 8, 8))).history
    assert log["logits_distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_student_frozen_in_part_stays_so():
    student = network()
    student.get_layer("conv1").trainable = False
    before = student.get_layer("conv1").kernel.numpy().copy()
    x, y = arrays()
    compiled(student).fit(x, y, verbose=0)
    np.testing.assert_array_equal(before, student.get_layer("conv1").kernel.numpy())


def test_subclassed_student_and_teacher():
    class Plain(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.first = L.Conv2D(width, 3, activation="relu", name="first")
            self.last = L.Dense(CLASSES, activation="softmax")

        def call(self, x):
            return self.last(tf.reduce_mean(self.first(x), (1, 2)))

    teacher, student = Plain(6), Plain(4)
    x, y = arrays()
    with pytest.raises(InputError, match="input shape"):
        compiled(student, teacher, losses=["hints"])
    said, _ = teacher(x), student(x)
    distiller = compiled(student, teacher, loss="sparse_categorical_crossentropy", losses=["logits", "hints"])
    expected = kl(said._keras_logits.numpy(), student(x)._keras_logits.numpy(), 5.0)
    log = distiller.fit(x, y, epochs=3, batch_size=24, verbose=0, shuffle=False).history
    assert log["logits_distillation_loss"][0] == pytest.approx(expected, rel=1e-4)
    assert log["loss"][-1] < log["loss"][0]


# schedules


def test_alpha_and_temperature_follow_the_epoch():
    student = network(batchnorm=False)
    seen = []

    def temperature(epoch):
        seen.append(epoch)
        return 1.0 + epoch

    distiller = compiled(
        student,
        alpha=Piecewise(((0, 1.0), (2, 0.0))),
        losses=[LogitsDistillation(temperature)],
        optimizer=keras.optimizers.SGD(0.0),
    )
    x, y = arrays()
    log = distiller.fit(x, y, batch_size=24, epochs=4, verbose=0).history
    for epoch, alpha in enumerate((1.0, 0.5, 0.0, 0.0)):
        expected = (1 - alpha) * log["task_loss"][epoch] + alpha * log["logits_distillation_loss"][epoch]
        assert log["loss"][epoch] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert {0, 1, 2, 3} <= set(seen)
    assert len(set(np.round(log["logits_distillation_loss"], 6))) == 4


def test_keras_schedules_follow_the_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.0])
    distiller = compiled(network(batchnorm=False), alpha=schedule, optimizer=keras.optimizers.SGD(0.0))
    x, y = arrays()
    logs = [distiller.train_on_batch(x, y, return_dict=True, reset_metrics=True) for _ in range(4)]
    for step, log in enumerate(logs):
        expected = log["logits_distillation_loss"] if step <= 2 else log["task_loss"]
        assert log["loss"] == pytest.approx(expected, rel=1e-5)


# saving


def test_saved_distiller_continues_with_the_teacher_given_again(tmp_path):
    teacher, student = network(6), network()
    make = lambda s: compiled(  # noqa: E731
        s,
        teacher,
        losses=[LogitsDistillation(Piecewise(((0, 4.0), (4, 2.0)))), FeatureHints(weight=2.0)],
        alpha=keras.optimizers.schedules.PolynomialDecay(0.9, 10, 0.5),
        optimizer=keras.optimizers.Adam(0.01),
    )
    distiller = make(student)
    x, y = arrays()
    distiller.fit(x, y, epochs=2, verbose=0, shuffle=False)
    distiller.save(tmp_path / "distiller.keras")
    expected = distiller.fit(x, y, initial_epoch=2, epochs=4, verbose=0, shuffle=False).history

    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    with pytest.raises(InputError, match="no teacher"):
        loaded.fit(x, y, verbose=0)
    assert loaded.evaluate(x, y, verbose=0)  # the student alone needs none
    loaded.set_teacher(teacher)
    got = loaded.fit(x, y, initial_epoch=2, epochs=4, verbose=0, shuffle=False).history
    for name in expected:
        assert got[name] == pytest.approx(expected[name], rel=1e-4), name


def test_saved_student_is_a_plain_model(tmp_path):
    distiller = compiled(losses=["hints", "logits"])
    x, y = arrays()
    distiller.fit(x, y, verbose=0)
    distiller.student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(loaded(x).numpy(), distiller.predict(x, verbose=0), rtol=1e-5)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in distiller.student.layers]
    assert len(loaded.weights) == len(distiller.student.weights) < len(distiller.weights)


def test_checkpoint_callbacks_keep_and_restore_the_best(tmp_path):
    distiller = compiled(optimizer=keras.optimizers.Adam(0.02))
    x, y = arrays()
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.keras"), monitor="val_loss", save_best_only=True, mode="min"
    )
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    history = distiller.fit(x, y, epochs=6, validation_data=arrays(24, 1), callbacks=[best, stop], verbose=0).history
    loaded = keras.models.load_model(tmp_path / "best.keras")
    result = loaded.evaluate(*arrays(24, 1), verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-4)


# a sparse student


def test_masked_student_keeps_its_zeros_and_its_names():
    from orbit_kd.sparsity.sparsify import sparsify, strip

    teacher = network(8)
    student = sparsify(network(8), "2:4")
    distiller = compiled(student, teacher, losses=["logits", "hints"], optimizer=keras.optimizers.Adam(0.01))
    assert [ours for ours, _ in distiller.distillation_losses[1].pairs] == ["relu1", "conv2"]
    x, y = arrays()
    distiller.fit(x, y, epochs=2, verbose=0)
    kernel = strip(student).get_layer("conv2").kernel.numpy()
    groups = kernel.reshape(3, 3, 2, 4, 16)
    assert (np.count_nonzero(groups, axis=3) <= 2).all() and np.count_nonzero(kernel)


# distribution


TWO_REPLICAS = """
import sys
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, "tests")
import test_distiller as t

t.keras.utils.set_random_seed(0)
teacher, start = t.network(6, batchnorm=False), t.network(batchnorm=False).get_weights()
x, y = t.arrays(16)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
logs, weights = [], []
for scope in (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()):
    with scope.scope():
        student = t.network(batchnorm=False)
        losses = ["logits", "attention", t.FeatureHints(match=["conv2"])]
        student.get_layer("conv2").add_loss(lambda layer=student.get_layer("conv2"): 0.01 * tf.nn.l2_loss(layer.kernel))
        distiller = t.compiled(student, teacher, losses=losses, alpha=t.Piecewise(((0, 0.9), (2, 0.1))))
    student.set_weights(start)
    distiller.projectors[0].set_weights([np.full(w.shape, 0.1) for w in distiller.projectors[0].get_weights()])
    logs.append(distiller.fit(data, epochs=2, verbose=0).history)
    weights.append(student.get_weights())
for name in logs[0]:
    np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
for one, two in zip(*weights):
    np.testing.assert_allclose(one, two, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_two_replicas_train_as_one_process_does():
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


# bad input


def test_nan_in_training_is_told_with_epoch_and_step():
    x, y = arrays()
    x[20] = np.nan
    with pytest.raises(InputError, match="epoch 1, step 3"):
        compiled().fit(x, y, batch_size=8, shuffle=False, verbose=0)
    plain = network()
    plain.compile("sgd", cross_entropy())
    with pytest.raises(InputError, match=r"epoch 1, step 3[\s\S]*NaN or infinite"):
        plain.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[StopOnNonFinite()])


def other_classes():
    base = network()
    return keras.Model(base.input, L.Dense(5)(base.layers[-2].output))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Distiller(network(), teacher=other_classes()), "differ"),
        (lambda: Distiller("student", teacher=network()), "is a path"),
        (lambda: Distiller(network(), teacher=3), r"builtins\.int was given as teacher"),
        (lambda: Distiller(network(), teacher=network(), losses=["logit"]), "logits"),
        (lambda: Distiller(network(), teacher=network(), losses=[3]), "no distillation loss"),
        (lambda: Distiller(network(), teacher=network(), alpha=1.5), r"\[0, 1\]"),
        (lambda: Distiller(network(), teacher=network(), alpha="high"), "alpha"),
        (lambda: Distiller(network(), teacher=[network()], teacher_weights=[1, 2]), "teacher_weights"),
        (lambda: LogitsDistillation(0.0), "temperature"),
        (lambda: LogitsDistillation(activation="tanh"), "softmax"),
        (lambda: LogitsDistillation(weight=-1), "weight"),
        (lambda: Distiller(network(), teacher=network(), losses=[FeatureHints(match=["conv9"])]), "conv2"),
        (
            lambda: Distiller(network(), teacher=network(), losses=[FeatureHints(match={"conv1": "conv2"})]),
            "equal height",
        ),
        (lambda: FeatureHints(match="conv1"), "match"),
    ],
)
def test_bad_arguments_are_told_clearly(build, words):
    with pytest.raises(InputError, match=words) as error:
        build()
    assert error.value.expected and error.value.fix


def test_a_loss_of_ones_own_is_one_class():
    class LogitsError(DistillationLoss):
        def compute_loss(self, teacher, student):
            return tf.reduce_mean((teacher - student) ** 2, -1)

    student, teacher = network(batchnorm=False), network(6, batchnorm=False)
    x, y = arrays()
    expected = np.mean((teacher(x).numpy() - student(x).numpy()) ** 2)
    distiller = compiled(student, teacher, losses=[LogitsError()], optimizer=keras.optimizers.SGD(0.0))
    log = distiller.fit(x, y, batch_size=24, verbose=0).history
    assert log["logits_error_loss"][0] == pytest.approx(expected, rel=1e-4)
