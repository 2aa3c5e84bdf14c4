"""What goes wrong in `keras.distillation` (Keras 3.12 and later), shown there, and passing here.

Each test puts both Distillers into one situation. docs/distillation_faults.md is the table of them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from orbit_kd.distillation import Distiller, FeatureHints, LogitsDistillation

# Keras 3 variables do not know numpy 2's `copy` argument; that is no fault of its distillation
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CLASSES = 3


@pytest.fixture
def keras3():
    """Keras 3, with its distillation module."""
    keras = pytest.importorskip("keras")
    if tuple(int(n) for n in re.findall(r"\d+", keras.__version__)[:2]) < (3, 12):
        pytest.skip(f"keras.distillation came with Keras 3.12, and this is {keras.__version__}")
    keras.utils.set_random_seed(0)
    return keras


def network(keras, width=4, *, head=None, nested=False, dtype=None):
    """The same small network in either Keras."""
    layers = keras.layers
    inputs = layers.Input((6, 6, 1))
    x = layers.Conv2D(width, 3, name="conv", dtype=dtype)(inputs)
    x = layers.BatchNormalization(name="bn", dtype=dtype)(x)
    if nested:
        inner = layers.Input(tuple(x.shape[1:]))
        x = keras.Model(inner, layers.Conv2D(width, 1, name="inside")(inner), name="block")(x)
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation=head, name="head", dtype=dtype)(x))


def arrays(n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6, 6, 1)).astype("float32"), rng.integers(0, CLASSES, n)


def cross_entropy(keras):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def theirs(keras, student=None, teacher=None, losses=None, *, rate=0.0, **options):
    """`keras.distillation.Distiller`, compiled."""
    losses = losses or keras.distillation.LogitsDistillation(temperature=1.0)
    distiller = keras.distillation.Distiller(
        teacher or network(keras, 6), student or network(keras), losses, **options
    )  # fmt: skip
    distiller.compile(keras.optimizers.SGD(rate), loss=cross_entropy(keras))
    return distiller


def ours(student=None, teacher=None, losses=None, *, rate=0.0, loss="default", **options):
    """`orbit_kd.Distiller`, compiled alike."""
    distiller = Distiller(
        student or network(tf_keras),
        teacher=teacher or network(tf_keras, 6),
        losses=losses or [LogitsDistillation(1.0)],
        **options,
    )
    loss = cross_entropy(tf_keras) if loss == "default" else loss
    distiller.compile(tf_keras.optimizers.SGD(rate), loss=loss, run_eagerly=True)
    return distiller


def history(distiller, *data, **options):
    log = distiller.fit(*data, batch_size=8, shuffle=False, verbose=0, **options).history
    return {name: values[-1] for name, values in log.items()}


def hints(keras):
    return [keras.distillation.FeatureDistillation(teacher_layer_name="pool", student_layer_name="pool")]


def features_pair(keras):
    return network(keras), network(keras)  # equal widths, which its feature loss needs


def counted(model):
    """The `training` argument of each call of the layer "bn" from now on."""
    layer, calls = model.get_layer("bn"), []
    call = layer.call

    def recorded(x, training=None, **kwargs):
        calls.append(bool(training))
        return call(x, training=training, **kwargs)

    layer.call = recorded
    return calls


def test_evaluation_is_inference(keras3):
    x, y = arrays()
    student, teacher = features_pair(keras3)
    distiller = theirs(keras3, student, teacher, hints(keras3))
    before = np.array(student.get_layer("bn").moving_mean)
    distiller.evaluate(x, y, verbose=0)
    assert not np.array_equal(before, np.array(student.get_layer("bn").moving_mean))

    student = network(tf_keras)
    distiller = ours(student, losses=[FeatureHints(match=["conv"])])
    before = student.get_layer("bn").moving_mean.numpy()
    distiller.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(before, student.get_layer("bn").moving_mean.numpy())


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_student_runs_once_a_step(keras3, method):
    x, y = arrays()
    student, teacher = features_pair(keras3)
    calls = counted(student)
    distiller = theirs(keras3, student, teacher, hints(keras3))
    distiller.run_eagerly = True
    calls.clear()
    getattr(distiller, method)(x, y, batch_size=8, verbose=0)
    assert calls == [method == "fit", True]  # evaluation ends in training mode

    student = network(tf_keras)
    distiller = ours(student, losses=[FeatureHints(match=["conv"])])
    calls = counted(student)
    getattr(distiller, method)(x, y, batch_size=8, verbose=0)
    assert calls == [method == "fit"]


def test_sample_weight_counts(keras3):
    x, y = arrays()
    none = np.zeros(len(x), "float32")
    student = network(keras3)
    before = student.get_weights()
    history(theirs(keras3, student, rate=0.1), x, y, sample_weight=none)
    assert not np.array_equal(before[0], student.get_weights()[0])  # samples of weight 0 have trained it

    student = network(tf_keras)
    before = student.get_weights()
    log = history(ours(student, rate=0.1), x, y, sample_weight=none)
    assert log["loss"] == 0
    np.testing.assert_array_equal(before[0], student.get_weights()[0])


def test_weight_of_a_single_loss_counts(keras3):
    x, y = arrays()
    teacher, student = network(keras3, 6), network(keras3)
    logs = [
        history(theirs(keras3, student, teacher, distillation_loss_weights=weights), x, y)
        for weights in ([1.0], [10.0])
    ]
    assert logs[0]["distillation_loss"] == pytest.approx(logs[1]["distillation_loss"])

    teacher, student = network(tf_keras, 6), network(tf_keras)
    one, ten = (
        history(ours(student, teacher, [LogitsDistillation(1.0, weight=w)], alpha=1.0), x, y)["loss"]
        for w in (1.0, 10.0)
    )
    assert ten == pytest.approx(10 * one, rel=1e-4)


def test_learning_without_labels(keras3):
    distiller = keras3.distillation.Distiller(
        network(keras3, 6), network(keras3), keras3.distillation.LogitsDistillation()
    )
    with pytest.raises(ValueError, match="loss"):
        distiller.compile("sgd", loss=None)

    x, _ = arrays()
    assert history(ours(loss=None), x)["loss"] > 0


def test_half_precision_student_of_a_float32_teacher(keras3):
    with pytest.raises(ValueError, match="dtypes must match"):
        theirs(keras3, network(keras3, dtype="mixed_float16"))

    log = history(ours(network(tf_keras, dtype="mixed_float16")), *arrays())
    assert np.isfinite(log["loss"])


def test_features_of_a_narrower_student(keras3):
    x, y = arrays()
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        history(theirs(keras3, network(keras3, 4), network(keras3, 6), hints(keras3)), x, y)

    distiller = ours(network(tf_keras, 4), network(tf_keras, 6), [FeatureHints(match=["conv"])])
    assert history(distiller, x, y)["feature_hints_loss"] > 0


def test_layers_inside_nested_models_are_found(keras3):
    inside = keras3.distillation.FeatureDistillation(teacher_layer_name="inside", student_layer_name="inside")
    with pytest.raises(ValueError, match="inside"):
        theirs(keras3, network(keras3, nested=True), network(keras3, nested=True), [inside])

    models = (network(tf_keras, nested=True), network(tf_keras, 6, nested=True))
    assert history(ours(*models, [FeatureHints(match=["inside"])]), *arrays())["feature_hints_loss"] > 0


def test_teacher_is_left_as_it_was(keras3):
    teacher = network(keras3, 6)
    theirs(keras3, teacher=teacher)
    assert not teacher.trainable and not teacher.trainable_weights

    teacher = network(tf_keras, 6)
    history(ours(teacher=teacher), *arrays())
    assert teacher.trainable and len(teacher.trainable_weights) == 6


def test_teacher_is_in_no_checkpoint(keras3):
    teacher = network(keras3, 6)
    assert len(theirs(keras3, teacher=teacher).weights) >= len(teacher.weights) + len(network(keras3).weights)

    student = network(tf_keras)
    assert len(ours(student).weights) == len(student.weights)


def test_saved_distiller_goes_on(keras3, tmp_path):
    x, y = arrays()
    distiller = theirs(keras3)
    history(distiller, x, y)
    distiller.save(tmp_path / "theirs.keras")
    with pytest.warns(UserWarning, match="was not called as part of model loading"):
        loaded = keras3.models.load_model(tmp_path / "theirs.keras")
    with pytest.raises(AttributeError, match="_student_loss"):
        history(loaded, x, y)
    loaded.compile(keras3.optimizers.SGD(0.0), loss=cross_entropy(keras3))
    assert history(loaded, x, y)["loss"] > 0  # compiled anew it trains, but the optimizer starts from nothing
    assert (int(distiller.optimizer.iterations), int(loaded.optimizer.iterations)) == (1, 1)

    teacher = network(tf_keras, 6)
    distiller = ours(teacher=teacher)
    expected = history(distiller, x, y)
    distiller.save(tmp_path / "ours.keras")
    loaded = tf_keras.models.load_model(tmp_path / "ours.keras")
    loaded.set_teacher(teacher)
    assert history(loaded, x, y)["task_loss"] == pytest.approx(expected["task_loss"], rel=1e-4)
    assert (int(distiller.optimizer.iterations), int(loaded.optimizer.iterations)) == (1, 2)


def test_softmax_outputs_are_not_softened_twice(keras3):
    """A student that says exactly what the teacher says, but in logits, has nothing to learn."""
    x, y = arrays()

    def pair(keras):
        logits, probabilities = network(keras), network(keras, head="softmax")
        logits.get_layer("head").set_weights([20 * w for w in logits.get_layer("head").get_weights()])
        probabilities.set_weights(logits.get_weights())
        for model in (logits, probabilities):  # so that training mode changes nothing
            model.get_layer("bn").trainable = False
        return logits, probabilities

    assert history(theirs(keras3, *pair(keras3)), x, y)["distillation_loss"] > 0.01
    assert history(ours(*pair(tf_keras)), x, y)["logits_distillation_loss"] == pytest.approx(0, abs=1e-5)


class Example(tf_keras.Model):
    """The train step of the keras.io example of 2020, in its essence: no `call`, no T^2, the last batch's losses."""

    def __init__(self, student, teacher, temperature):
        super().__init__()
        self.student, self.teacher, self.temperature = student, teacher, temperature

    def train_step(self, data):
        x, _ = data
        soft = [tf.nn.softmax(z / self.temperature) for z in (self.teacher(x), self.student(x, training=True))]
        return {"distillation_loss": tf.reduce_mean(tf_keras.losses.kl_divergence(*soft))}


def test_older_example_has_no_call(keras3):
    x, _ = arrays()
    student = network(tf_keras)
    example = Example(student, network(tf_keras, 6), 5.0)
    with pytest.raises(NotImplementedError):
        example.predict(x, verbose=0)
    np.testing.assert_array_equal(ours(student).predict(x, verbose=0), student.predict(x, verbose=0))


def test_older_example_logs_the_last_batch_as_the_epoch():
    x, y = arrays(16)
    student, teacher = network(tf_keras), network(tf_keras, 6)
    for model in (student, teacher):
        model.get_layer("bn").trainable = False
    example, distiller = Example(student, teacher, 1.0), ours(student, teacher)
    example.compile()
    said = example.fit(x, y, batch_size=8, shuffle=False, verbose=0).history["distillation_loss"][0]
    first, last = (history(distiller, x[i : i + 8], y[i : i + 8])["logits_distillation_loss"] for i in (0, 8))
    assert said == pytest.approx(last, rel=1e-3) and abs(first - last) > 0.01 * last
    assert history(distiller, x, y)["logits_distillation_loss"] == pytest.approx((first + last) / 2, rel=1e-4)


def test_older_example_has_no_temperature_squared():
    x, y = arrays()
    student, teacher = network(tf_keras), network(tf_keras, 6)
    for model in (student, teacher):
        model.get_layer("bn").trainable = False
    at = {}
    for t in (10.0, 20.0):
        example = Example(student, teacher, t)
        example.compile()
        said = example.fit(x, y, batch_size=8, verbose=0).history["distillation_loss"][0]
        at[t] = said, history(ours(student, teacher, [LogitsDistillation(t)]), x, y)["logits_distillation_loss"]
    assert at[10.0][0] / at[20.0][0] == pytest.approx(4, rel=0.1)  # its share of the loss vanishes as T grows
    assert at[10.0][1] / at[20.0][1] == pytest.approx(1, rel=0.1)


def test_every_test_of_the_table_exists():
    text = (Path(__file__).parent.parent / "docs" / "distillation_faults.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_") and name != "test_every_test_of_the_table_exists"}
    assert named == here
