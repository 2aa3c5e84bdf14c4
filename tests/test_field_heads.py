"""What an output holds decides what is learned from it: classes, labels, numbers; in training, criteria and scans."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.distillation import get_loss
from orbit_kd.distillation.losses import Context
from orbit_kd.errors import InputError
from orbit_kd.models.heads import heads
from orbit_kd.models.label_losses import label_loss
from orbit_kd.models.outputs import kinds_of
from orbit_kd.removal.importance import Member, taylor
from orbit_kd.removal.scorer import Scorer
from orbit_kd.training.fit import check_fit

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype("float32")


def net(units=4, head=None, *, seed=0, scale=1.0):
    keras.utils.set_random_seed(seed)
    x = L.Input((5,))
    start = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    return keras.Model(x, L.Dense(units, activation=head, kernel_initializer=start, name="out")(x))


def detector(width, seed=0):
    """Boxes and scores."""
    keras.utils.set_random_seed(seed)
    x = L.Input((5,))
    body = L.Dense(width, activation="relu", name="body")(x)
    return keras.Model(x, [L.Dense(4, name="boxes")(body), L.Dense(3, activation="softmax", name="scores")(body)])


def log_of(student, teacher, *data, loss=None, rate=0.0, **options):
    """The first epoch's log of a Distiller that does not move."""
    distiller = okd.Distiller(student, teacher=teacher, **options)
    distiller.compile(keras.optimizers.SGD(rate), loss=loss, run_eagerly=True)
    x, y, weight = (*(data or (X,)), None, None)[:3]
    log = distiller.fit(x, y, batch_size=len(X), sample_weight=weight, verbose=0).history
    return {name: values[0] for name, values in log.items()}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(teacher, student, t=5.0):
    p, q = softmax(teacher / t), softmax(student / t)
    return t**2 * np.mean(np.sum(p * np.log(p / q), -1))


def bernoulli(teacher, student, t=5.0):
    p, q = (1 / (1 + np.exp(-v / t)) for v in (teacher, student))
    return t**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


# F: what fits is found


def test_regression_without_labels_brings_the_student_to_the_teachers_numbers():
    teacher, student = net(scale=10.0), net(seed=1)
    teacher.compile(loss="mse")
    distiller = okd.Distiller(student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.3), loss=None)
    before = np.mean((student(X) - teacher(X)) ** 2)
    log = distiller.fit(X, batch_size=12, epochs=60, verbose=0).history
    assert log["loss"][0] == pytest.approx(before, rel=1e-4) and set(log) == {"loss", "mse_distillation_loss"}
    assert np.mean((student(X) - teacher(X)) ** 2) < 0.01 * before


@pytest.mark.parametrize(
    ("units", "loss"), [(1, "mse"), (4, "huber"), (1, keras.losses.MeanAbsoluteError()), (1, keras.losses.mse)]
)
def test_the_loss_of_the_labels_says_that_a_linear_output_holds_numbers(units, loss):
    teacher, student, y = net(units), net(units, seed=1), np.ones((12, units), "float32")
    log = log_of(student, teacher, X, y, loss=loss, alpha=0.25)
    expected = np.mean((teacher(X).numpy() - student(X).numpy()) ** 2)
    assert log["mse_distillation_loss"] == pytest.approx(expected, rel=1e-4)
    assert log["loss"] == pytest.approx(0.75 * log["task_loss"] + 0.25 * expected, rel=1e-4)


def test_the_loss_of_the_labels_says_that_linear_outputs_are_independent():
    teacher, student, y = net(3), net(3, seed=1), RNG.integers(0, 2, (12, 3)).astype("float32")
    log = log_of(student, teacher, X, y, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    expected = bernoulli(teacher(X).numpy(), student(X).numpy())
    assert log["logits_distillation_loss"] == pytest.approx(expected, rel=1e-3)


def test_a_sigmoid_that_is_trained_on_numbers_holds_numbers():
    teacher, student = net(4, "sigmoid"), net(4, "sigmoid", seed=1)
    teacher.compile(loss="mse")
    expected = np.mean((teacher(X).numpy() - student(X).numpy()) ** 2)
    assert log_of(student, teacher)["mse_distillation_loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="sigmoid in the teacher and in linear in the student"):
        log_of(net(4), teacher)


def test_each_output_of_a_detector_gets_the_loss_that_fits():
    teacher, student = detector(8), detector(6, seed=1)
    (boxes, scores), (b, s) = ([v.numpy() for v in m(X)] for m in (teacher, student))
    box, score = np.mean((boxes - b) ** 2), kl(np.log(scores), np.log(s))
    y = {"boxes": np.ones((12, 4)), "scores": np.arange(12) % 3}
    loss = {"boxes": "mae", "scores": "sparse_categorical_crossentropy"}
    log = log_of(student, teacher, X, y, loss=loss)
    assert log["mse_distillation_loss"] == pytest.approx(box, rel=1e-4)
    assert log["logits_distillation_loss"] == pytest.approx(score, rel=1e-3)
    teacher.compile(loss=["mse", "categorical_crossentropy"])
    assert log_of(student, teacher)["loss"] == pytest.approx(box + score, rel=1e-3)
    # by name, by number, by name within the loss, beside a loss on features
    mae = np.mean(np.abs(boxes - b))
    for losses in (
        {"boxes": okd.MAEDistillation(weight=0.5), "scores": ["logits:2"]},
        {0: "mae:0.5", 1: "logits:2"},
        [okd.LogitsDistillation(weight=2, outputs="scores"), okd.MAEDistillation(weight=0.5, outputs=[0])],
    ):
        assert log_of(student, teacher, losses=losses)["loss"] == pytest.approx(0.5 * mae + 2 * score, rel=1e-3)
    hints = [okd.MSEDistillation(outputs="boxes"), okd.SimilarityPreserving(match=["body"])]
    log = log_of(student, teacher, losses=hints)
    assert log["loss"] == pytest.approx(box + log["similarity_preserving_loss"], rel=1e-4)


def test_outputs_given_as_a_mapping_are_known_by_its_keys():
    def mapped(seed):
        model = detector(6, seed)
        return keras.Model(model.input, {"place": model.outputs[0], "kind": model.outputs[1]})

    teacher, student = mapped(0), mapped(1)
    expected = np.mean((teacher(X)["place"].numpy() - student(X)["place"].numpy()) ** 2)
    assert log_of(student, teacher, losses={"place": "mse"})["loss"] == pytest.approx(expected, rel=1e-4)
    y = {"place": np.ones((12, 4)), "kind": np.arange(12) % 3}
    loss = {"place": "mse", "kind": "sparse_categorical_crossentropy"}
    assert log_of(student, teacher, X, y, loss=loss)["mse_distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_what_nothing_tells_is_refused_and_each_way_out_works():
    for units in (1, 4):
        with pytest.raises(InputError, match=r"no compiled loss[\s\S]*losses=\['logits'\][\s\S]*losses=\['mse'\]"):
            log_of(net(units, seed=1), net(units))
    teacher, student = net(4), net(4, seed=1)
    t, s = teacher(X).numpy(), student(X).numpy()
    assert log_of(student, teacher, losses=["logits"])["loss"] == pytest.approx(kl(t, s), rel=1e-3)
    assert log_of(student, teacher, losses=["mse"])["loss"] == pytest.approx(np.mean((t - s) ** 2), rel=1e-4)
    teacher.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert log_of(student, teacher)["loss"] == pytest.approx(kl(t, s), rel=1e-3)
    with pytest.raises(InputError, match=r"Output 'boxes' ends in linear[\s\S]*losses=\{'boxes': 'mse', ...\}"):
        log_of(detector(4), detector(4))


def boxes_as_classes():
    return log_of(detector(4), detector(6), X, [np.ones((12, 4)), np.arange(12) % 3], losses=["logits"],
                  loss=["mse", "sparse_categorical_crossentropy"])  # fmt: skip


def turned():
    model = detector(6)
    return keras.Model(model.input, model.outputs[::-1])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (boxes_as_classes, r"output 'boxes' holds numbers[\s\S]*losses=\{'boxes': 'mse'\}"),
        (lambda: log_of(net(3, "sigmoid"), net(3, "sigmoid"), losses=["decoupled"]), "'out' holds independent labels"),
        (lambda: log_of(net(3, "sigmoid"), net(3, "softmax")), "sigmoid in one network and in softmax"),
        (lambda: log_of(net(), net(), losses={"box": "mse"}), r"output 'box'[\s\S]*one of: out"),
        (lambda: log_of(net(), net(), losses={1: "mse"}), "output 1"),
        (lambda: okd.Distiller(net(), teacher=net(), losses={"out": "hints"}), "FeatureHints is given for output"),
        (lambda: okd.Distiller(detector(6), teacher=turned()), "same order"),
        (lambda: okd.Distiller(net(3), teacher=[net(3, "softmax"), net(3, "sigmoid")]), "in the other"),
    ],
)
def test_what_does_not_fit_is_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_losses_on_numbers_come_from_the_registry_and_compare_outputs_not_logits():
    mse, mae = get_loss("mse:0.5"), get_loss("mae")
    assert (mse.weight, mse.name, mae.name) == (0.5, "mse_distillation", "mae_distillation")
    t, s = RNG.normal(size=(2, 6, 3)).astype("float32")
    for head, outputs in (("linear", lambda v: v), ("relu", lambda v: v), ("softmax", softmax)):
        mse.context = mae.context = Context(head=head)
        difference = outputs(t) - outputs(s)
        np.testing.assert_allclose(
            mse.compute_loss(tf.constant(t), tf.constant(s)), (difference**2).mean(-1), rtol=1e-4
        )
        np.testing.assert_allclose(
            mae.compute_loss(tf.constant(t), tf.constant(s)), np.abs(difference).mean(-1), rtol=1e-4
        )
    assert mse.compute_loss(tf.constant(t[:, 0]), tf.constant(s[:, 0])).shape == (6,)


def test_several_teachers_of_numbers_teach_their_mean():
    one, two, student = net(2), net(2, seed=1), net(2, seed=2)
    one.compile(loss="mse")
    expected = np.mean((0.25 * one(X).numpy() + 0.75 * two(X).numpy() - student(X).numpy()) ** 2)
    assert log_of(student, [one, two], teacher_weights=[1, 3])["loss"] == pytest.approx(expected, rel=1e-4)


def test_dense_regression_and_masked_sequences():
    def depth(seed):
        keras.utils.set_random_seed(seed)
        x = L.Input((4, 4, 1))
        return keras.Model(x, L.Conv2D(1, 3, padding="same")(x))

    teacher, student, x = depth(0), depth(1), RNG.normal(size=(12, 4, 4, 1)).astype("float32")
    error, label_error = ((m(x).numpy() - student(x).numpy())[..., 0] ** 2 for m in (teacher, lambda x: tf.constant(x)))
    for weight in (RNG.uniform(size=(12, 4, 4)), RNG.uniform(size=12)):
        log = log_of(student, teacher, x, x, weight.astype("float32"), loss="mse")
        each = weight.reshape(12, *weight.shape[1:] or (1, 1))
        assert log["mse_distillation_loss"] == pytest.approx(np.mean(error * each), rel=1e-4)
        assert log["task_loss"] == pytest.approx(np.mean(label_error * each), rel=1e-4)

    def tagger(seed):
        keras.utils.set_random_seed(seed)
        x = L.Input((6,))
        return keras.Model(x, L.Dense(3)(L.Embedding(9, 4, mask_zero=True)(x)))

    teacher, student = tagger(0), tagger(1)
    words = RNG.integers(1, 9, (12, 6))
    words[:, 4:] = 0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    log = log_of(student, teacher, words, words % 3, loss=loss)
    expected = kl(*(m(words).numpy()[:, :4] for m in (teacher, student)))
    assert log["logits_distillation_loss"] == pytest.approx(expected, rel=1e-3)
    assert log["task_loss"] == pytest.approx(float(loss(words[:, :4] % 3, student(words)[:, :4])), rel=1e-4)


def test_dst_takes_a_loss_an_output():
    def model(seed):
        keras.utils.set_random_seed(seed)
        x = L.Input((8,))
        body = L.Dense(8, activation="relu")(x)
        return keras.Model(x, [L.Dense(4, name="boxes")(body), L.Dense(3, activation="softmax", name="scores")(body)])

    dst = okd.DST(model(0), model(1), pattern="2:4", losses={"boxes": "mse", "scores": "logits"})
    dst.compile(keras.optimizers.SGD(0.01), loss=None, run_eagerly=True)
    history = dst.fit(RNG.normal(size=(12, 8)).astype("float32"), epochs=0, sparse_epochs=1, verbose=0)["sparse"]
    total = history["mse_distillation_loss"][0] + history["logits_distillation_loss"][0]
    assert history["loss"][0] == pytest.approx(total, rel=1e-4)


# heads in every form


def three(x):
    return L.Dense(3)(x)


HEADS = {
    "softmax in a lambda": (lambda x: L.Lambda(lambda z: tf.nn.softmax(z))(three(x)), "softmax"),
    "sigmoid as a layer": (lambda x: L.Activation("sigmoid")(three(x)), "sigmoid"),
    "identity lambda behind softmax": (lambda x: L.Lambda(lambda z: z)(L.Softmax()(three(x))), "softmax"),
    "cast": (lambda x: tf.cast(L.Softmax()(three(x)), tf.float64), "softmax"),
    "labels side by side": (lambda x: L.Concatenate()([L.Dense(1, "sigmoid")(x) for _ in range(3)]), "sigmoid"),
    "two softmaxes side by side": (lambda x: L.Concatenate()([L.Softmax()(three(x)) for _ in range(2)]), "mixed"),
    "boxes and scores in one": (lambda x: L.Concatenate()([three(x), L.Dense(1, "sigmoid")(x)]), "mixed"),
    "mean of classifiers": (lambda x: L.Average()([L.Softmax()(three(x)) for _ in range(2)]), "softmax"),
    "steps": (lambda x: L.TimeDistributed(L.Dense(3, "softmax"))(L.Reshape((5, 1))(x)), "softmax"),
    "model at each step": (
        lambda x: L.TimeDistributed(keras.Sequential([L.Input((1,)), L.Dense(3, "softmax")]))(L.Reshape((5, 1))(x)),
        "softmax",
    ),
    "pixels in rows": (lambda x: L.Reshape((5, 3))(L.Dense(3, "softmax")(L.Reshape((5, 1, 1))(x))), "softmax"),
    "pixels run together": (lambda x: L.Flatten()(L.Dense(3, "softmax")(L.Reshape((5, 1))(x))), "mixed"),
    "softmax along another axis": (lambda x: L.Softmax(axis=1)(L.Dense(3)(L.Reshape((5, 1))(x))), "mixed"),
    "larger map": (lambda x: L.UpSampling2D()(L.Dense(3, "softmax")(L.Reshape((5, 1, 1))(x))), "softmax"),
    "nested model that hands on": (
        lambda x: keras.Sequential([L.Input((3,)), L.Dropout(0.5)])(L.Softmax()(three(x))),
        "softmax",
    ),
    "relu": (lambda x: L.ReLU()(three(x)), "relu"),
    "tanh": (lambda x: L.Dense(3, "tanh")(x), "tanh"),
    "twice the lambda": (lambda x: L.Lambda(lambda z: 2 * z)(three(x)), "linear"),
}


@pytest.mark.parametrize("form", list(HEADS))
def test_heads_are_found_in_every_form(form):
    x = L.Input((5,))
    build, expected = HEADS[form]
    assert heads(keras.Model(x, build(x))) == (expected,)


def test_the_kind_of_an_output_is_one_value():
    assert kinds_of([net(3, "softmax")]) == ["classes"] and kinds_of([net(3, "sigmoid")]) == ["labels"]
    assert kinds_of([net(3)]) == [""] and kinds_of([net(3, "softmax")], loss="mse") == ["classes"]
    assert kinds_of([detector(4)], loss={"boxes": "mse"}) == ["values", "classes"]
    assert kinds_of([net(3)], loss=keras.losses.Huber()) == ["values"]
    assert kinds_of([net(3)], loss=lambda y, z: tf.reduce_mean(y - z)) == [""]


# class weights and maps


@pytest.mark.parametrize("last", [(), (1,)])
@pytest.mark.parametrize("cached", [False, True])
def test_class_weights_of_class_maps_are_those_of_each_pixel(cached, last):
    """Keras takes a map of class numbers for one-hot rows, and so did the cache."""

    def segmenter(seed):
        keras.utils.set_random_seed(seed)
        x = L.Input((4, 3, 1))
        return keras.Model(x, L.Conv2D(3, 1, activation="softmax")(x))

    teacher, student, x = segmenter(0), segmenter(1), RNG.normal(size=(6, 4, 3, 1)).astype("float32")
    y, table = RNG.integers(0, 3, (6, 4, 3, *last)), {0: 1.0, 1: 3.0, 2: 0.5}
    own = RNG.uniform(size=6).astype("float32")
    distiller = okd.Distiller(student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), loss="sparse_categorical_crossentropy", run_eagerly=True)
    data = tf.data.Dataset.from_tensors((x, y, own))
    data = okd.cache_teacher(teacher, data) if cached else data
    log = distiller.fit(data, class_weight=table, verbose=0).history
    weights = np.vectorize(table.get)(y.reshape(6, 4, 3)) * own[:, None, None]
    p, q = teacher(x).numpy(), student(x).numpy()
    picked = np.take_along_axis(q, y.reshape(6, 4, 3, 1), -1)[..., 0]
    assert log["task_loss"][0] == pytest.approx(np.mean(-np.log(picked) * weights), rel=1e-3)
    each = 25 * np.sum(softmax(np.log(p) / 5) * np.log(softmax(np.log(p) / 5) / softmax(np.log(q) / 5)), -1)
    assert log["logits_distillation_loss"][0] == pytest.approx(np.mean(each * weights), rel=2e-3)
    plain = keras.models.clone_model(student)
    plain.set_weights(student.get_weights())
    plain.compile(keras.optimizers.SGD(0.0), loss="sparse_categorical_crossentropy", run_eagerly=True)
    keras_says = plain.fit(x, y, sample_weight=weights, batch_size=6, verbose=0).history["loss"][0]
    assert log["task_loss"][0] == pytest.approx(keras_says, rel=1e-3)
    assert distiller.fit(data, verbose=0).history["task_loss"][0] != pytest.approx(keras_says, rel=0.01)  # and no more


@pytest.mark.parametrize(
    ("model", "y", "loss"),
    [
        (lambda seed: net(4, seed=seed), np.ones((12, 4)), "mse"),
        (lambda seed: net(3, "sigmoid", seed=seed), np.ones((12, 3)), "binary_crossentropy"),
        (lambda seed: detector(4, seed), [np.ones((12, 4)), np.ones(12)], ["mse", "sparse_categorical_crossentropy"]),
    ],
)
def test_class_weights_of_what_has_no_classes_are_refused(model, y, loss):
    distiller = okd.Distiller(model(0), teacher=model(1))
    distiller.compile("sgd", loss=loss)
    with pytest.raises(InputError, match="class_weight is given"):
        distiller.fit(X, y, class_weight={0: 1.0, 1: 2.0, 2: 1.0}, verbose=0)


# K: criteria on gradients


def conv(units, head=None, *, loss=None, trainable=True):
    keras.utils.set_random_seed(0)
    x = L.Input((6, 6, 1))
    y = L.GlobalAveragePooling2D()(L.Conv2D(5, 3, activation="relu", name="c", trainable=trainable)(x))
    model = keras.Model(x, L.Dense(units, activation=head, name="out")(y))
    if loss is not None:
        model.compile(loss=loss)
    return model


IMAGES = np.abs(RNG.normal(size=(8, 6, 6, 1))).astype("float32")
BITS = RNG.integers(0, 2, 8)
LABELS = RNG.integers(0, 2, (8, 3)).astype("float32")
NUMBERS = RNG.normal(size=(8, 4)).astype("float32")
bce, mse = keras.losses.BinaryCrossentropy, keras.losses.MeanSquaredError
scce = keras.losses.SparseCategoricalCrossentropy


def scores(model, y, loss=None):
    data = tf.data.Dataset.from_tensor_slices((IMAGES, y)).batch(4)
    graph = ChannelGraph(model)
    return Scorer(graph, name="taylor", data=data, loss=loss)(graph.groups[0])


def scores_by_hand(model, y, loss):
    """(Sum of weight x gradient)^2 over a filter, the gradients summed over batches of four, scaled to mean 1."""
    kernel, total = model.get_layer("c").kernel, 0.0
    for part in (slice(4), slice(4, 8)):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            value = loss(y[part], model(IMAGES[part]))
        total = total + tape.gradient(value, kernel).numpy()
    found = (kernel.numpy() * total).sum((0, 1, 2)) ** 2
    return found / found.mean()


@pytest.mark.parametrize(
    ("model", "y", "loss", "same_as"),
    [
        (lambda: conv(1, "sigmoid"), BITS, None, lambda y, z: bce()(y[:, None], z)),
        (lambda: conv(1, "sigmoid"), BITS[:, None], "binary_crossentropy", bce()),
        (lambda: conv(1, loss=bce(from_logits=True)), BITS[:, None], None, bce(from_logits=True)),
        (lambda: conv(3, "sigmoid"), LABELS, None, bce()),
        (lambda: conv(3), LABELS, "binary_crossentropy", bce(from_logits=True)),
        (lambda: conv(4, loss="mae"), NUMBERS, None, keras.losses.MeanAbsoluteError()),
        (lambda: conv(4), NUMBERS, "mse", mse()),
        (lambda: conv(4), NUMBERS, mse(), mse()),
        (lambda: conv(4), NUMBERS, keras.losses.mse, mse()),
        (lambda: conv(3), BITS, None, scce(from_logits=True)),
        (lambda: conv(3), BITS, "sparse_categorical_crossentropy", scce(from_logits=True)),
        (lambda: conv(3, "softmax", loss="sparse_categorical_crossentropy"), np.eye(3)[BITS], None,
         keras.losses.CategoricalCrossentropy()),
        (lambda: conv(3, "softmax", trainable=False), BITS, None, scce()),
    ],
)  # fmt: skip
def test_taylor_takes_the_loss_that_fits(model, y, loss, same_as):
    network = model()
    np.testing.assert_allclose(scores(network, y, loss), scores_by_hand(network, y, same_as), rtol=1e-3, atol=1e-5)


def test_taylor_on_several_outputs_sums_their_losses():
    keras.utils.set_random_seed(0)
    x = L.Input((6, 6, 1))
    body = L.GlobalAveragePooling2D()(L.Conv2D(5, 3, activation="relu", name="c")(x))
    model = keras.Model(x, [L.Dense(4, name="boxes")(body), L.Dense(3, activation="softmax", name="scores")(body)])
    y = {"boxes": NUMBERS, "scores": BITS}
    got = scores(model, y, {"boxes": "mse"})

    def both(part, weight=1.0):
        return lambda _, z: weight * mse()(NUMBERS[part], z[0]) + scce()(BITS[part], z[1])

    kernel = model.get_layer("c").kernel
    for weight in (1.0, 7.0):
        total = 0.0
        for part in (slice(4), slice(4, 8)):
            with tf.GradientTape() as tape:
                value = both(part, weight)(None, model(IMAGES[part]))
            total = total + tape.gradient(value, kernel).numpy()
        by_hand = (kernel.numpy() * total).sum((0, 1, 2)) ** 2
        np.testing.assert_allclose(got, by_hand / by_hand.mean(), rtol=1e-3)
        model.compile(loss=["mse", "sparse_categorical_crossentropy"], loss_weights=[7.0, 1.0])
        got = scores(model, y)


@pytest.mark.parametrize(
    ("model", "y", "loss", "words"),
    [
        (lambda: conv(4), NUMBERS, None, r"nothing says which loss[\s\S]*loss=\"mse\""),
        (lambda: conv(1), BITS, None, "nothing says which loss"),
        (lambda: conv(3), LABELS, None, "nothing says which loss"),
        (lambda: conv(3, "sigmoid"), BITS, None, r"shape \(8,\)"),
        (lambda: conv(4), NUMBERS, "sme", "'sme' is no loss"),
        (lambda: conv(4, "softmax"), NUMBERS[:, :2], None, r"shape \(8, 2\)"),
    ],
)
def test_taylor_refuses_what_fits_nothing(model, y, loss, words):
    with pytest.raises(InputError, match=words):
        scores(model(), y, loss)
    with pytest.raises(InputError, match="no labels"):
        okd.plan_removal(conv(3), criterion="taylor", ratio=0.2, data=tf.data.Dataset.from_tensors((IMAGES,)))


def test_rounds_go_on_with_the_loss_that_the_model_is_compiled_with():
    """A student after a round is not compiled."""
    data = tf.data.Dataset.from_tensors((IMAGES, NUMBERS))
    model = conv(4, loss="mse")
    small = okd.remove_in_rounds(model, lambda m, n: None, rounds=2, ratio=0.6, criterion="taylor", data=data)
    first = okd.remove_filters(model, okd.plan_removal(model, ratio=1 - 0.4**0.5, criterion="taylor", data=data))
    plan = okd.plan_removal(first, ratio=1 - 0.4**0.5, criterion="taylor", data=data, loss="mse")
    np.testing.assert_array_equal(small.get_layer("c").kernel, okd.remove_filters(first, plan).get_layer("c").kernel)


def test_scans_use_the_loss_that_fits_or_refuse():
    y = np.arange(8) % 3
    model = conv(3, "sigmoid")
    scan = okd.sensitivity(model, [(IMAGES, y)], ratios=(0.5,))
    expected = float(bce()(np.eye(3)[y], model(IMAGES)))
    assert scan.loss == pytest.approx(expected, rel=1e-4)
    with_taylor = okd.sensitivity(
        conv(3), [(IMAGES, y)], ratios=(0.4,), criterion="taylor", loss=scce(from_logits=True),
        train=tf.data.Dataset.from_tensors((IMAGES, y)),
    )  # fmt: skip
    assert with_taylor.loss == pytest.approx(float(scce(from_logits=True)(y, conv(3)(IMAGES))), rel=1e-4)
    for call in (
        lambda m: okd.sensitivity(m, [(IMAGES, y)], ratios=(0.5,)),
        lambda m: okd.smallest(m, lambda student, epochs, rate: None, data=[(IMAGES, y)], max_drop=0.1),
    ):
        with pytest.raises(InputError, match="4 finite numbers an image"):
            call(conv(4, loss="mse"))


def test_what_compress_and_train_take_fits_its_labels():
    def data(y):
        return okd.Data((IMAGES, y), (IMAGES, y), (IMAGES, y))

    y = np.arange(8) % 3
    check_fit(conv(3, "softmax"), data(y))
    check_fit(conv(3), data(y))
    with pytest.raises(InputError, match=r"ends in sigmoid[\s\S]*activation=None"):
        check_fit(conv(3, "sigmoid"), data(y))
    with pytest.raises(InputError, match="3 finite numbers an image"):
        check_fit(conv(3, loss="mse"), data(y))
    assert check_fit(conv(3, loss="mse"), data(np.eye(3)[y])).name == "regression"
    assert check_fit(conv(3, "sigmoid"), data(np.eye(3)[y])).name == "multi_label"
    assert check_fit(conv(1, "sigmoid"), data(y % 2)).name == "binary"


def test_label_loss_gives_the_value_keras_gives():
    model = conv(3, "softmax")
    model.compile(loss="sparse_categorical_crossentropy")
    value = float(label_loss(model, BITS)(BITS, model(IMAGES)))
    assert value == pytest.approx(model.evaluate(IMAGES, BITS, verbose=0), rel=1e-4)


# direct values


def test_independent_labels_keep_the_factor_of_the_temperature():
    teacher, student = np.array([[3.0, -2.0]], "float32"), np.array([[-1.0, 0.5]], "float32")
    loss = okd.LogitsDistillation(4.0, activation="sigmoid")
    got = float(loss.compute_loss(tf.constant(teacher), tf.constant(student))[0])
    assert got == pytest.approx(bernoulli(teacher.astype("d"), student.astype("d"), 4.0), rel=1e-4)


def test_taylor_is_the_square_of_the_sum():
    values, gradients = np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -1.0], [1.0, 0.5]])
    member = Member("c", "kernel", True, tf.constant(values), gradients)
    # the sum of squares would be 2 and 1.25
    np.testing.assert_allclose(taylor([member]), np.array([0.0, 2.25]) / 1.125)
