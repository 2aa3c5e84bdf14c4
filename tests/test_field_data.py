"""Cases from the field, data: what people hand over, and what it used to do (D, E, G, L, P of issue 15)."""

from __future__ import annotations

import logging

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image
from tf_keras import layers as L

import orbit_kd as okd
from orbit_kd.datasets.batches import as_batches, in_order, inputs_of
from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.search.evaluator import batches_of, digest_of
from orbit_kd.training.fit import check_fit

N, SHAPE = 60, (6, 6, 1)
X = np.random.default_rng(0).normal(size=(N, *SHAPE)).astype("float32")
Y = np.arange(N) % 3


def network(classes: int = 3) -> keras.Model:
    x = L.Input(SHAPE)
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x))
    return keras.Model(x, L.Dense(classes, name="head")(L.GlobalAveragePooling2D()(y)))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    return network()


def batched(x=X, y=Y, size=8):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def joined(dataset):
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True)]


class Counted(keras3.utils.PyDataset):
    """Says how many batches were asked for; goes on for ever when it is iterated over past its length."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        self.asked += 1
        return X[15 * (i % 4) :][:15], Y[15 * (i % 4) :][:15]


# D: what never ends


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.preprocessing.image.ImageDataGenerator().flow(X, Y, batch_size=7, shuffle=True, seed=3),
        lambda: __import__("keras").src.legacy.preprocessing.image.ImageDataGenerator().flow(X, Y, batch_size=7),
        Counted,
    ],
    ids=["tf_keras flow", "keras 3 flow", "PyDataset"],
)
def test_a_sequence_ends_at_its_length_in_cache_scan_and_calibration(make, model):
    cache = okd.cache_teacher(model, make())
    assert len(cache) == N
    x, said = zip(*((x, y["teacher"]["logits"][0]) for x, y in cache.dataset.as_numpy_iterator()), strict=True)
    np.testing.assert_allclose(np.concatenate(said), model(np.concatenate(x)), atol=5e-3)
    assert sorted(np.concatenate(x).sum((1, 2, 3))) == pytest.approx(sorted(X.sum((1, 2, 3))))
    assert sum(len(y) for _, y in batches_of(make(), None)) == N
    sample = calibration_sample(make(), samples=500)
    assert sorted(sample.sum((1, 2, 3))) == pytest.approx(sorted(X.sum((1, 2, 3))))


def test_a_directory_iterator_ends_too(tmp_path, model):
    for label, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((6, 6), 60 * label + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    generator = keras.preprocessing.image.ImageDataGenerator()
    found = generator.flow_from_directory(
        tmp_path, target_size=(6, 6), color_mode="grayscale", class_mode="sparse", batch_size=5, shuffle=False
    )
    batches = batches_of(found, None)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), np.repeat([0, 1, 2], 4))
    assert np.concatenate([x for x, _ in batches])[4:8].mean() == pytest.approx(61.5)


def test_only_as_many_batches_are_read_as_are_needed(model):
    data = Counted()
    okd.recalibrate_batchnorm(network(), data, batches=2)
    assert data.asked == 2
    list(as_batches(data))
    assert data.asked == 6


def test_data_without_an_end_are_refused():
    class Endless(Counted):
        def __len__(self):
            raise NotImplementedError

    def goes_round():
        while True:
            yield X, Y

    for data, says in [
        (batched().repeat(), "repeats for ever"),
        (batched().repeat().filter(lambda x, y: True), f"{N} examples come again and again"),
        (Endless(), "no length"),
        (goes_round(), f"{N} examples come again and again"),
    ]:
        with pytest.raises(InputError, match=says):
            list(as_batches(data))
    long = tf.data.Dataset.from_tensors((X, Y)).repeat(40)  # oversampled, and its length is known
    assert sum(1 for _ in as_batches(long)) == 40
    assert next(iter(as_batches(batched().repeat(), endless=True)))[0].shape == (8, *SHAPE)


def test_endless_augmented_data_stop_at_the_memory(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # a machine of 1 MB

    generator = np.random.default_rng(0)

    def augmented():
        while True:
            yield generator.normal(size=(16, *SHAPE)), np.zeros(16, int)

    with pytest.raises(InputError, match="more than the memory holds"):
        list(as_batches(augmented()))


# E: arrays where views were expected, and what else does not fit the model


def test_a_list_of_batches_is_one_data_set_and_a_list_of_data_sets_are_views(model):
    one = okd.cache_teacher(model, [(X, Y)])
    two = okd.cache_teacher(model, [(X[:40], Y[:40]), (X[40:], Y[40:])])
    for cache in (one, two, okd.cache_teacher(model, (X, Y))):
        assert (cache.views, len(cache)) == (1, N)
        x, y = zip(*cache.dataset.as_numpy_iterator(), strict=True)
        np.testing.assert_array_equal(np.concatenate(x), X)
        np.testing.assert_array_equal(np.concatenate([part["labels"] for part in y]), Y)
        said = np.concatenate([part["teacher"]["logits"][0] for part in y])
        np.testing.assert_allclose(said, model(X), atol=5e-3)
    assert okd.cache_teacher(model, [batched(), batched(X + 1)]).views == 2
    assert okd.cache_teacher(model, [[(X, Y)], [(X + 1, Y)]]).views == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([(X[0], Y[0])], "single examples"),
        (X[0], "single examples"),
        (batched().unbatch(), "single examples"),
        ([(X, Y[:7])], "one label an image"),
        ((X, Y[:7]), "60 and 7 examples"),
        ([(X[:, :5], Y)], r"\(5, 6, 1\)[\s\S]*\(6, 6, 1\)"),
        ([(X, Y, Y, Y)], "4 parts"),
        (batched().map(lambda x, y: {"image": x, "label": y}), r"keys image, label[\s\S]*as_supervised"),
        ([((X, X), Y)], r"\(6, 6, 1\) and \(6, 6, 1\) without the batch"),
        ("images/", r"okd\.load\(folder\)"),
        (None, "NoneType cannot be used"),
        (iter([]), "is empty"),
        (np.zeros((0, *SHAPE), "float32"), "is empty"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused_before_it_runs(data, says, model):
    with pytest.raises(InputError, match=says):
        okd.cache_teacher(model, data)


def test_one_of_three_splits_has_to_be_named(model):
    with pytest.raises(InputError, match=r"three splits[\s\S]*data\.val"):
        okd.sensitivity(model, okd.Data((X, Y), (X, Y), (X, Y)))


# G: shuffled data, and splits that lack classes


def shuffled(x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(N, reshuffle_each_iteration=True).batch(8)


def test_shuffled_data_have_the_key_of_their_content():
    plain, mixed = (okd.Data(d, (X, Y), (X, Y)) for d in (batched(), shuffled()))
    assert mixed.key == plain.key == mixed.key
    assert mixed.contents["train"].shuffled and not plain.contents["train"].shuffled
    later, twice = X.copy(), np.concatenate([X, X[:1]])
    later[17, 2, 2] += 1
    exchanged = Y.copy()
    exchanged[[0, 1]] = Y[[1, 0]]
    others = [shuffled(later), shuffled(y=exchanged), batched(twice, np.append(Y, Y[0])), batched(X[1:], Y[1:])]
    keys = {okd.Data(d, (X, Y), (X, Y)).key for d in others}
    assert len(keys | {plain.key}) == 5
    assert okd.Data((X, Y), (later, Y), (X, Y)).key != okd.Data((later, Y), (X, Y), (X, Y)).key


def test_a_key_of_shuffled_and_augmented_data_is_that_of_their_labels(caplog):
    def noisy(y=Y):
        return shuffled(y=y).map(lambda a, b: (a + tf.random.normal(tf.shape(a)), b))

    data = okd.Data(noisy(), (X, Y), (X, Y))
    assert data.key == okd.Data(noisy(), (X, Y), (X, Y)).key != okd.Data(noisy(2 - Y % 2), (X, Y), (X, Y)).key
    assert data.contents["train"].varies and data.contents["train"].shuffled
    with caplog.at_level(logging.WARNING, "orbit_kd"):
        assert len(data.renderings(4, seed=0)) == 1
    assert "augmented and shuffled" in caplog.text
    assert len(okd.Data(shuffled(), (X, Y), (X, Y)).renderings(4, seed=0)) == 1
    generator = np.random.default_rng(0)

    def noise(a, b):
        n = tf.numpy_function(lambda v: v + generator.normal(size=v.shape).astype("float32"), [a], tf.float32)
        return tf.ensure_shape(n, (None, *SHAPE)), b

    steady = okd.Data(batched().map(noise), (X, Y), (X, Y))
    assert len(steady.renderings(4, seed=0)) == 4


def test_examples_that_move_between_splits_are_found():
    every = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(N, seed=1)
    data = okd.Data(every.take(40).batch(8), every.skip(40).take(10).batch(8), every.skip(50).batch(8))
    with pytest.raises(InputError, match=r"The splits change[\s\S]*reshuffle_each_iteration=False"):
        _ = data.key
    kept = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(N, seed=1, reshuffle_each_iteration=False)
    data = okd.Data(kept.take(40).batch(8), kept.skip(40).take(10).batch(8), kept.skip(50).batch(8))  # as it says
    assert len(data.key) == 64


def test_a_cache_of_shuffled_data_is_right_and_found_again(model, tmp_path):
    first = okd.cache_teacher(model, [shuffled(), shuffled()], path=tmp_path, data_key="mine", seed=5)
    assert first.views == 1  # the second view is the first in another order
    again = okd.cache_teacher(model, [shuffled(), shuffled()], path=tmp_path, data_key="mine", seed=5)
    assert again.hit
    for start in (0, 2):  # a run that is resumed sees what the first would have seen
        for (x, y), (u, v) in zip(first.epochs(start=start).take(8), again.epochs(start=start).take(8), strict=True):
            np.testing.assert_array_equal(x, u)
            np.testing.assert_array_equal(y["labels"], v["labels"])
            np.testing.assert_allclose(y["teacher"]["logits"][0], model(x), atol=5e-3)
    with pytest.raises(InputError, match="another order"):
        okd.cache_teacher(model, [batched(), batched(X + 1, np.roll(Y, 1))])


def test_workers_do_not_share_out_shuffled_data(model):
    with pytest.raises(InputError, match="another order at each pass"):
        for _ in range(4):
            okd.cache_teacher(model, shuffled(), shard=(0, 2))
    assert len(okd.cache_teacher(model, batched(), shard=(1, 2))) == N // 2


def test_a_scan_of_shuffled_data_is_known_by_its_examples(model):
    assert digest_of(batches_of(shuffled(), None)) == digest_of(batches_of(batched(), None))
    assert digest_of(batches_of(batched(), 20)) != digest_of(batches_of(batched(), 21))
    scans = [okd.sensitivity(model, d, ratios=(0.5,)) for d in (batched(), shuffled())]
    assert scans[0].accuracy == scans[1].accuracy and scans[0].loss == pytest.approx(scans[1].loss, rel=1e-5)
    for a, b in zip(scans[0].curves, scans[1].curves, strict=True):
        assert a.accuracy == b.accuracy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes")
    for label, name in enumerate("abc"):
        (path / name).mkdir()
        for i in range(10):
            pixels = np.random.default_rng((label, i)).integers(0, 255, (6, 6), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def splits_of(folder, **how):
    """What people write: a validation_split, here with the same images as the test split."""
    options = {"image_size": (6, 6), "color_mode": "grayscale", "batch_size": 4, "validation_split": 0.3, "verbose": 0}
    train, rest = keras3.utils.image_dataset_from_directory(folder, subset="both", seed=4, **options, **how)
    return train, rest, rest


def test_the_last_classes_for_validation_are_refused_and_the_advice_holds(folder, model, caplog):
    with pytest.raises(InputError, match=r"one class only[\s\S]*okd\.load\(folder\)"):
        check_fit(model, okd.Data(*splits_of(folder, shuffle=False)))
    train, rest, _ = splits_of(folder, shuffle=True)
    check_fit(model, okd.Data(train, rest, rest))  # as the message says
    check_fit(model, okd.load(folder))
    with pytest.raises(InputError, match="train data lacks class 2"):
        check_fit(model, okd.Data(batched(X[Y < 2], Y[Y < 2]), batched(), batched()))
    with caplog.at_level(logging.WARNING, "orbit_kd"):
        check_fit(model, okd.Data(batched(), batched(X[Y < 2] + 1, Y[Y < 2]), batched(X + 2)))
    assert "val lacks class 2" in caplog.text and "training images too" not in caplog.text
    with caplog.at_level(logging.WARNING, "orbit_kd"):
        check_fit(model, okd.Data(batched(), batched(X + 1), batched()))
    assert f"{N} of {N} test images are training images too" in caplog.text


# L: labels of different kinds


@pytest.mark.parametrize("place", [0, 1, 2])
def test_numbers_in_one_split_and_rows_in_another_are_refused_at_once(place):
    rows = np.eye(3, dtype="float32")[Y]
    parts = [(X, Y), (X, Y), (X, Y)]
    parts[place] = (X, rows)
    with pytest.raises(InputError, match=r"labels of different kinds[\s\S]*rows of 3 values"):
        okd.Data(*parts)
    mended = [tf.data.Dataset.from_tensor_slices(p).batch(8) for p in parts]  # as the message says
    mended[place] = mended[place].map(lambda x, y: (x, tf.argmax(y, -1)))
    assert okd.Data(*mended).contents["test"].classes == {0: 20, 1: 20, 2: 20}
    with pytest.raises(InputError, match="rows of 3 values, val rows of 4 values"):
        okd.Data((X, rows), (X, np.eye(4)[Y]), (X, rows))
    okd.Data((X, Y), (X, Y[:, None]), (X, Y.astype("float32")))  # all of them class numbers


def test_a_distiller_refuses_other_labels_for_validation(model):
    distiller = okd.Distiller(network(), model)
    distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(InputError, match="train class numbers, validation rows of 3 values"):
        distiller.fit(batched(), validation_data=batched(X, np.eye(3)[Y]), verbose=0)


# P: forms of data that were refused or crashed


def test_calibration_by_representative_dataset_arrays_and_sequences_is_one():
    def representative_dataset():
        for image in X:
            yield [image[None]]

    def by_name():
        for image in X:
            yield {"image": image[None]}

    wanted = calibration_sample(batched(), samples=20, seed=3)
    for data in ((X, Y), X, tf.constant(X), [X, Y], [X[:30], X[30:]], Counted(), representative_dataset):
        np.testing.assert_array_equal(calibration_sample(data, samples=20, seed=3), wanted)
    np.testing.assert_array_equal(calibration_sample(by_name, samples=20, seed=3, inputs={"image": SHAPE}), wanted)
    with pytest.raises(InputError, match="single examples"):
        calibration_sample(batched().unbatch(), inputs={"image": SHAPE})


def test_criteria_and_statistics_of_two_inputs_by_name():
    a, b = L.Input((4,), name="b_first"), L.Input((4,), name="a_second")
    y = L.BatchNormalization(name="norm")(L.Subtract()([L.Dense(3)(a), b[:, :3]]))
    model = keras.Model([a, b], L.Dense(2)(y))
    one, two = X[:, 0, :4, 0], X[:, 1, :4, 0] * 3
    found = []
    for data in ({"b_first": one, "a_second": two}, ((one, two), Y), [((one, two), Y)]):
        model.get_layer("norm").set_weights([np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)])
        okd.recalibrate_batchnorm(model, data)
        found.append(model.get_layer("norm").moving_variance.numpy())
    hidden = model.layers[[la.name for la in model.layers].index("norm")].input
    values = keras.Model(model.inputs, hidden)([one, two]).numpy()
    np.testing.assert_allclose(found[1], values.var(0), rtol=1e-4)
    np.testing.assert_allclose(found[2], values.var(0), rtol=1e-4)
    np.testing.assert_allclose(found[0], values.var(0), rtol=1e-4)
    assert in_order({"a_second": 2, "b_first": 1}, inputs_of(model)) == [1, 2]


def test_quantization_of_two_inputs_is_calibrated():
    a, b = L.Input((4,), name="b_first"), L.Input((3,), name="a_second")
    model = keras.Model([a, b], L.Dense(2)(L.Concatenate()([L.Dense(3, name="one")(a), b])))
    one, two = X[:, 0, :4, 0], X[:, 1, :3, 0] * 3

    def representative_dataset():
        for i in range(N):
            yield [one[i : i + 1], two[i : i + 1]]

    made = [okd.quantize_aware(model, calibration=c, samples=N) for c in (
        {"b_first": one, "a_second": two}, ((one, two), Y), representative_dataset)]  # fmt: skip
    for other in made[1:]:
        for u, v in zip(made[0].get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(u, v, rtol=0.2, atol=0.05)
    assert all(row.note != "no ranges yet" for row in okd.quantize_table(made[0]))


def test_class_weight_of_pixels_is_what_weights_in_the_data_are():
    x = L.Input(SHAPE)
    model = keras.Model(x, L.Conv2D(3, 1)(x))
    labels = np.random.default_rng(0).integers(0, 3, (N, 6, 6))
    weights = np.array([1.0, 2.0, 5.0], "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller = okd.Distiller(keras.models.clone_model(model), model, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), loss=loss, run_eagerly=True)
    losses = keras.losses.sparse_categorical_crossentropy(labels, distiller.student(X), from_logits=True).numpy()
    expected = pytest.approx((losses * weights[labels]).mean(), rel=1e-3)
    lessons = okd.cache_teacher(model, batched(y=labels))
    log = distiller.fit(lessons, class_weight={0: 1.0, 1: 2.0, 2: 5.0}, verbose=0).history
    assert log["loss"][-1] == expected
    weighed = batched(y=labels).map(lambda x, y: (x, y, tf.gather(weights, tf.cast(y, tf.int32))))
    log = distiller.fit(okd.cache_teacher(model, weighed), verbose=0).history
    assert log["loss"][-1] == expected


@pytest.mark.parametrize("kind", ["list", "pydataset", "pair"])
def test_a_distiller_takes_batches_of_any_kind(kind, model):
    data = {"list": [(X[:30], Y[:30]), (X[30:], Y[30:])], "pydataset": Counted(), "pair": (X, Y)}[kind]
    distiller = okd.Distiller(network(), model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.0), loss=loss, run_eagerly=kind != "list")
    log = distiller.fit(data, epochs=2, validation_data=data, verbose=0).history
    loss = loss(Y, distiller.student(X)).numpy()
    assert len(log["loss"]) == 2 and log["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert distiller.evaluate(data, verbose=0) == pytest.approx(loss, rel=1e-5)
