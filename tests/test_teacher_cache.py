"""The teacher cache: what comes out is what went in, the teacher runs once, and a stale cache is never used."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation import Distiller, cache_teacher
from orbit_kd.errors import InputError

L = keras.layers
N = 20


class Counting(keras.Model):
    """A teacher that counts the batches it has seen."""

    def __init__(self, *, head=None):
        super().__init__()
        self.body = L.Dense(4, activation="relu", name="body")
        self.last = L.Dense(3, activation=head, name="last")
        # outside what Keras tracks: a weight that moves would be another teacher
        self._count = SimpleNamespace(seen=tf.Variable(0, trainable=False))
        self(tf.zeros((1, 5)))
        self.seen.assign(0)

    @property
    def seen(self):
        return self._count.seen

    def call(self, x):
        self.seen.assign_add(1)
        return self.last(self.body(x))


def teacher(*, head=None, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = L.Input((5,))
    return keras.Model(inputs, L.Dense(3, activation=head, name="last")(L.Dense(4, name="body")(inputs)))


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, 5)).astype("float32"), np.arange(N) % 3


def dataset(*parts, size=8):
    return tf.data.Dataset.from_tensor_slices(parts or samples()).batch(size)


def gather(data, steps=None):
    """(x, labels, logits) of the batches, concatenated."""
    rows = [(x.numpy(), y["labels"].numpy(), y["teacher"]["logits"][0].numpy()) for x, y in data.take(steps or -1)]
    return [np.concatenate(v) for v in zip(*rows, strict=True)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_gives_back_samples_exactly_and_logits_to_half_precision(on_disk, tmp_path):
    model = teacher(head="softmax")
    x, y = samples()
    cache = cache_teacher(model, dataset(), path=tmp_path if on_disk else None)
    got = gather(cache.dataset)
    np.testing.assert_array_equal(got[0], x)
    np.testing.assert_array_equal(got[1], y)
    logits = model.get_layer("last")(model.get_layer("body")(x))._keras_logits.numpy()
    np.testing.assert_allclose(got[2], logits, rtol=1e-3, atol=1e-3)
    assert (cache.samples, cache.views, cache.batch_size, cache.steps(), cache.steps(5)) == (N, 1, 8, 3, 4)
    assert cache.dataset.element_spec[1]["teacher"]["logits"][0].dtype == tf.float32


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("values", "dtype", "bytes_each"),
    [
        (np.arange(100) % 256, "float32", 1),  # images that were decoded to float
        (np.arange(100) % 256, "int64", 1),
        (np.arange(100) / 4, "float32", 2),
        (np.arange(100) / 3, "float32", 4),
        (np.arange(100) * 1000, "int64", 8),
        (np.where(np.arange(100) == 40, -0.0, np.arange(100)), "float32", 2),
    ],
)
def test_each_value_is_kept_in_the_smallest_exact_type(values, dtype, bytes_each, on_disk, tmp_path):
    x = values.reshape(N, 5).astype(dtype)
    cache = cache_teacher(teacher(), dataset(x), path=tmp_path if on_disk else None)
    back = np.concatenate([e[0].numpy() for e in cache.dataset])
    assert back.dtype == dtype and back.tobytes() == x.tobytes()
    outputs = 3 * 2
    assert cache.nbytes <= N * (5 * bytes_each + outputs)


def test_batches_of_different_types_still_come_back_exactly(tmp_path):
    x, _ = samples()
    x[:8] = 3.0  # the first chunk fits uint8, the others do not
    for path in (None, tmp_path):
        back = np.concatenate([e[0].numpy() for e in cache_teacher(teacher(), dataset(x), path=path).dataset])
        assert back.tobytes() == x.tobytes()


def test_sample_weights_and_structured_labels_travel_along():
    x, y = samples()
    weight = np.linspace(0, 1, N).astype("float32")
    cache = cache_teacher(teacher(), dataset(x, {"a": y, "b": np.eye(3)[y]}, weight))
    _, targets, weights = next(iter(cache.dataset))
    np.testing.assert_array_equal(weights.numpy(), weight[:8])
    np.testing.assert_array_equal(targets["labels"]["a"].numpy(), y[:8])
    np.testing.assert_array_equal(targets["labels"]["b"].numpy(), np.eye(3)[y[:8]])


# the teacher runs once


def test_second_time_the_teacher_does_not_run(tmp_path):
    model = Counting()
    first = cache_teacher(model, dataset(), path=tmp_path)
    second = cache_teacher(model, dataset(), path=tmp_path)
    assert (first.hit, second.hit) == (False, True) and int(model.seen) == 3
    for a, b in zip(gather(first.dataset), gather(second.dataset), strict=True):
        np.testing.assert_array_equal(a, b)


def test_killed_run_continues_with_the_batches_that_are_missing(tmp_path):
    model = Counting()

    def killed():
        yield from list(dataset())[:2]
        raise KeyboardInterrupt

    class Once:
        def __iter__(self):
            return killed()

    with pytest.raises(KeyboardInterrupt):
        cache_teacher(model, Once(), path=tmp_path)
    assert int(model.seen) == 2
    cache = cache_teacher(model, dataset(), path=tmp_path)
    assert int(model.seen) == 3 and cache.samples == N


def test_damaged_chunk_is_made_again(tmp_path):
    model = Counting()
    cache_teacher(model, dataset(), path=tmp_path)
    chunk = sorted(tmp_path.glob("*/*.npy"))[0]
    chunk.write_bytes(chunk.read_bytes()[:40])
    cache = cache_teacher(model, dataset(), path=tmp_path)
    assert int(model.seen) == 4 and not cache.hit
    np.testing.assert_array_equal(gather(cache.dataset)[0], samples()[0])


@pytest.mark.parametrize("change", ["weights", "architecture", "pixel", "label", "order"])
def test_stale_cache_is_never_used(change, tmp_path):
    model = teacher()
    x, y = samples()
    before = cache_teacher(model, dataset(x, y), path=tmp_path)
    if change == "weights":
        model.get_layer("last").bias.assign_add([0.0, 1e-6, 0.0])
    elif change == "architecture":  # the same weights, another function
        weights, model = model.get_weights(), teacher(head="softmax")
        model.set_weights(weights)
        model.get_layer("body").activation = keras.activations.relu
    elif change == "pixel":
        x[7, 2] = np.nextafter(x[7, 2], 9)
    elif change == "label":
        y[19] += 1
    else:
        x, y = x[::-1].copy(), y[::-1].copy()
    after = cache_teacher(model, dataset(x, y), path=tmp_path)
    assert not after.hit
    assert (after.teacher, after.data) != (before.teacher, before.data)
    got = gather(after.dataset)
    np.testing.assert_array_equal(got[0], x)
    np.testing.assert_array_equal(got[1], y)


@pytest.mark.parametrize("data_key", [None, "known"])
def test_layers_and_mixing_weights_make_another_cache(data_key, tmp_path):
    one, two, (x, _) = teacher(seed=1), teacher(seed=2), samples()

    def cache(models=one, **how):
        return cache_teacher(models, dataset(), path=tmp_path, data_key=data_key, **how)

    def features(of):
        return np.concatenate([y["teacher"]["features"]["body"].numpy() for _, y in of.dataset])

    assert not cache().hit and cache().hit
    with_body = cache(layers=["body"])  # where what lies there has none
    assert not with_body.hit
    np.testing.assert_allclose(features(with_body), one.get_layer("body")(x), rtol=2e-3, atol=1e-3)
    assert cache(layers=["body"]).hit and cache(layers=["body", "body"]).hit and cache().hit
    assert not cache(layers=["last"]).hit  # as many, of the same names but one
    both = cache(layers=["last", "body"])
    assert not both.hit and cache(layers=["body", "last"]).hit  # in any order
    np.testing.assert_allclose(features(both), one.get_layer("body")(x), rtol=2e-3, atol=1e-3)

    for weights in ((1, 3), (3, 1), None):
        a, b = (1, 1) if weights is None else weights
        mixed = cache([one, two], weights=weights)
        assert not mixed.hit
        np.testing.assert_allclose(gather(mixed.dataset)[2], (a * one(x) + b * two(x)) / (a + b), rtol=2e-3, atol=1e-3)
    assert cache([one, two], weights=(2, 6)).hit  # the same shares
    assert not cache([two, one], weights=(1, 3)).hit


def test_a_data_key_vouches_for_one_view_and_one_shard_alone(tmp_path):
    (x, y), how = samples(), {"path": tmp_path, "data_key": "known"}
    views = [dataset(x, y), dataset(x + 1, y)]
    two = cache_teacher(teacher(), views, **how)
    again = cache_teacher(teacher(), views, **how)
    assert again.hit and two.data == again.data
    rows = gather(again.epochs(shuffle=False), 6)[0]  # two epochs: each view of each sample
    assert {tuple(r) for r in rows} == {tuple(r) for r in np.concatenate([x, x + 1])}
    np.testing.assert_array_equal(gather(cache_teacher(teacher(), dataset(), **how).dataset)[0], x)
    for index in (0, 1):
        part = cache_teacher(teacher(), dataset(), shard=(index, 2), **how)
        np.testing.assert_array_equal(gather(part.dataset)[0], x[index::2])


def test_cache_is_found_whatever_names_keras_gave_the_layers(tmp_path):
    def unnamed():
        inputs = L.Input((5,))
        return keras.Model(inputs, L.Dense(3)(L.ReLU()(L.Dense(4)(inputs))))

    one, two = unnamed(), unnamed()
    two.set_weights(one.get_weights())
    assert [layer.name for layer in one.layers] != [layer.name for layer in two.layers]
    cache_teacher(one, dataset(), path=tmp_path)
    assert cache_teacher(two, dataset(), path=tmp_path).hit


def test_data_key_vouches_for_the_data_and_saves_the_pass(tmp_path):
    class Reads:
        def __init__(self):
            self.batches = 0

        def __iter__(self):
            for batch in dataset():
                self.batches += 1
                yield batch

    model, source = Counting(), Reads()
    first = cache_teacher(model, source, path=tmp_path, data_key="mstar-v1")
    source.batches = 0
    second = cache_teacher(model, source, path=tmp_path, data_key="mstar-v1")
    assert second.hit and source.batches == 1 and int(model.seen) == 3
    assert (first.teacher, first.data) == (second.teacher, second.data)
    other = cache_teacher(model, dataset(samples(1)[0], samples(1)[1]), path=tmp_path, data_key="mstar-v2")
    assert not other.hit


# order and views


def test_every_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    cache = cache_teacher(teacher(), dataset())
    ids = lambda data, steps: gather(data, steps)[0][:, 0]  # noqa: E731
    run = ids(cache.epochs(seed=3), 9)
    epochs = run.reshape(3, N)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(samples()[0][:, 0]))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(ids(cache.epochs(seed=3, start=2), 3), epochs[2])
    np.testing.assert_array_equal(ids(cache.epochs(seed=3, batch_size=5), 4), epochs[0])
    assert not np.array_equal(ids(cache.epochs(seed=4), 3), epochs[0])


@pytest.mark.parametrize("on_disk", [False, True])
def test_views_are_mixed_in_an_epoch_and_each_is_seen_in_turn(on_disk, tmp_path):
    x, y = samples()
    model, k = teacher(), 4
    views = [dataset(x + 10 * v, y) for v in range(k)]
    cache = cache_teacher(model, views, path=tmp_path if on_disk else None)
    assert (cache.views, cache.samples, cache.steps()) == (k, N, 3)
    seen = np.zeros((k, N), int)
    for epoch in range(k):
        got = gather(cache.epochs(start=epoch), 3)
        view = np.round(got[0].mean(1) / 10).astype(int)
        sample = np.abs(got[0][:, None] - 10 * view[:, None, None] - x).max(-1).argmin(1)
        assert len(set(view)) > 1
        seen[view, sample] += 1
        np.testing.assert_array_equal(got[1], y[sample])
        expected = model(x[sample] + 10 * view[:, None].astype("float32")).numpy()
        np.testing.assert_allclose(got[2], expected, rtol=2e-3, atol=5e-2)  # the teacher saw the same rendering
    assert (seen == 1).all()

    def first_views(seed):
        x = gather(cache.epochs(seed=seed, shuffle=False), 3)[0]
        return np.round(x.mean(1) / 10).astype(int).tolist()

    assert first_views(1) == first_views(1) != first_views(2)


def test_views_that_are_not_the_same_samples_are_refused():
    x, y = samples()
    with pytest.raises(InputError, match="View 2 has other labels"):
        cache_teacher(teacher(), [dataset(x, y), dataset(x, np.roll(y, 1))])
    with pytest.raises(InputError, match="View 2 has other labels"):
        cache_teacher(teacher(), [dataset(x, y), dataset(x[:8], y[:8])])


# in fit


def student():
    return keras.Sequential([L.Input((5,)), L.Dense(4, name="body"), L.Dense(3, name="last")])


def distiller(model, **options):
    result = Distiller(student(), teacher=model, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    result.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"], run_eagerly=True)
    return result


@pytest.mark.parametrize("on_disk", [False, True])
def test_training_from_the_cache_is_training_with_the_teacher(on_disk, tmp_path):
    model = teacher()
    live, cached = distiller(model), distiller(model)
    cached.student.set_weights(live.student.get_weights())
    cache = cache_teacher(model, dataset(), path=tmp_path if on_disk else None)
    a = live.fit(dataset(), epochs=2, verbose=0).history
    b = cached.fit(cache.dataset, epochs=2, verbose=0).history
    for name in a:
        assert b[name] == pytest.approx(a[name], rel=2e-3), name


def test_fit_evaluate_and_validate_on_a_cache():
    model = teacher()
    cache = cache_teacher(model, dataset())
    trained = distiller(model)
    log = trained.fit(cache, epochs=3, validation_data=cache, verbose=0).history
    assert len(log["loss"]) == 3
    result = trained.evaluate(cache, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(log["val_loss"][-1], rel=1e-5)
    assert result["accuracy"] == pytest.approx(trained.evaluate(dataset(), verbose=0, return_dict=True)["accuracy"])


def test_label_free_cache():
    model = teacher()
    cache = cache_teacher(model, dataset(samples()[0]))
    trained = Distiller(student(), teacher=model, losses=["logits"])
    trained.compile(keras.optimizers.Adam(0.05), loss=None)
    losses = trained.fit(cache, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_features_come_from_the_cache_too():
    inputs = L.Input((5, 5, 1))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Conv2D(4, 3, name="conv")(inputs))))
    other = L.Input((5, 5, 1))
    small = keras.Model(other, L.Dense(3)(L.Flatten()(L.Conv2D(2, 3, name="conv")(other))))
    x = np.random.default_rng(0).normal(size=(N, 5, 5, 1)).astype("float32")
    data = dataset(x, samples()[1])
    trained = Distiller(small, teacher=model, losses=["hints", "logits"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained.compile(keras.optimizers.SGD(0.0), loss=loss, run_eagerly=True)
    with pytest.raises(InputError, match=r"no features of conv[\s\S]*layers=\['conv'\]"):
        trained.fit(cache_teacher(model, data), verbose=0)
    live = trained.fit(data, verbose=0).history
    cached = trained.fit(cache_teacher(model, data, layers=["conv"]), verbose=0).history
    for name in live:
        assert cached[name] == pytest.approx(live[name], rel=2e-3), name


def test_cache_of_another_teacher_is_refused():
    cache = cache_teacher(teacher(), dataset())
    with pytest.raises(InputError, match="another teacher"):
        distiller(teacher(seed=1)).fit(cache, verbose=0)


# bad input


@pytest.mark.parametrize("bias", [1e6, -1e6])
def test_outputs_too_large_for_half_precision_are_kept_in_single(bias):
    model = teacher()
    model.get_layer("last").bias.assign([bias, 0.0, 0.0])
    got = gather(cache_teacher(model, dataset()).dataset)
    np.testing.assert_allclose(got[2], model(samples()[0]).numpy(), rtol=1e-6)


def test_empty_data_nan_and_unwritable_folder_are_told(tmp_path):
    with pytest.raises(InputError, match="data is empty"):
        cache_teacher(teacher(), dataset().take(0))
    x, y = samples()
    x[3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        cache_teacher(teacher(), dataset(x, y), path=tmp_path / "nan")
    assert not list((tmp_path / "nan").glob("*/*.npy"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        cache_teacher(teacher(), dataset(), path=tmp_path / "file")


def test_a_generator_loses_no_batch():
    x, y = samples()
    cache = cache_teacher(teacher(), ((x[i : i + 8], y[i : i + 8]) for i in range(0, N, 8)))
    np.testing.assert_array_equal(gather(cache.dataset)[0], x)


def test_class_weights_with_a_gap_are_refused():
    model = teacher()
    with pytest.raises(InputError, match="class_weight"):
        distiller(model).fit(cache_teacher(model, dataset()), class_weight={0: 1.0, 2: 1.0}, verbose=0)
