"""Sensitivity: masks give what removal gives, prefixes are reused, curves go on after a kill."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from oracle import randomize
from PIL import Image
from small_networks import small_resnet
from tf_keras import layers

import orbit_kd as okd
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models.segments import Segments
from orbit_kd.quantization.rounding import rounded, to_levels
from orbit_kd.search import evaluator
from orbit_kd.search import sensitivity as scanning
from orbit_kd.search.scan import Curve

RATIOS = (0.25, 0.5, 0.75)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    return randomize(small_resnet((12, 12, 2), classes=4, stages=((8, 2), (16, 1))))


@pytest.fixture(scope="module")
def data(network) -> tf.data.Dataset:
    x = np.random.default_rng(0).uniform(0, 255, (48, 12, 12, 2)).astype("float32")
    y = network(x).numpy().argmax(-1)
    y[::7] = (y[::7] + 1) % 4  # some are wrong
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def slow_way(model: keras.Model, data: tf.data.Dataset, group: str, ratio: float) -> tuple[float, float]:
    """Removes the filters for real, and evaluates the network that is left."""
    width = next(g.width for g in ChannelGraph(model).groups if g.name == group)
    gone = min(round(width * ratio), width - 1)
    student = okd.remove_filters(model, okd.plan_removal(model, ratios={group: gone / width}, ratio=0.0))
    x, y = (np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True))
    outputs = student(x, training=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, outputs)
    return float((outputs.numpy().argmax(-1) == y).mean()), float(loss)


def test_each_point_is_what_real_removal_gives_and_tensorflow_does_not_warn(network, data, caplog):
    found = okd.sensitivity(network, data, ratios=RATIOS)
    assert "retracing" not in caplog.text
    measured = [c for c in found.curves if not c.reason]
    assert len(measured) == 5 and found.images == 48 and found.accuracy == pytest.approx(41 / 48)
    for curve in measured:
        for ratio, accuracy, loss in zip(curve.ratios, curve.accuracy, curve.loss, strict=True):
            expected = slow_way(network, data, curve.name, ratio)
            assert accuracy == pytest.approx(expected[0]) and loss == pytest.approx(expected[1], rel=1e-3)


def test_groups_that_layers_share_go_as_one_and_outputs_are_left_out(network, data):
    found = okd.sensitivity(network, data, ratios=(0.5,), images=16)
    assert {"stage1_block1_2_conv", "stage1_block2_2_conv"} <= set(found["stem_conv"].members)
    assert found["logits"].reason == "model output" and found.images == 16


def test_the_model_is_left_alone_and_only_what_lies_behind_is_computed_again(network, data, monkeypatch):
    before = [w.copy() for w in network.get_weights()]
    traced, computed, run, real = [], [], Segments.run, evaluator.traced

    def noted(self, start, stop, values):
        traced.append((start, stop))
        return run(self, start, stop, values)

    monkeypatch.setattr(Segments, "run", noted)

    def logged(function):
        piece, graph = object(), real(function)
        return lambda *values: computed.append(piece) or graph(*values)

    monkeypatch.setattr(evaluator, "traced", logged)

    def times() -> list[int]:
        """How often each piece of the network was computed, from the front to the end."""
        return [computed.count(piece) for piece in dict.fromkeys(computed)]

    kept = okd.sensitivity(network, data, ratios=(0.5, 0.75))
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    stops = [stop for _, stop in traced]
    assert [start for start, _ in traced] == [0, *stops[:-1]]  # no part of the network is traced twice
    assert len(traced) == 6 and stops[-1] == len(Segments(network).calls)
    # each batch once for the whole network, once to keep what a piece makes, and for both points of the curves before
    assert times() == [3 * (1 + 1 + 2 * jobs) for jobs in range(5)] + [3 * (1 + 2 * 5)]
    computed.clear()
    assert okd.sensitivity(network, data, ratios=(0.5, 0.75), memory=1) == kept  # nothing can be kept
    assert min(times()) >= 3 * (1 + 2 * 5)


def test_normalizations_over_channels_are_measured_on_the_rebuilt_network(data):
    image = keras.Input((12, 12, 2))
    x = layers.Conv2D(8, 3, name="first")(image)
    x = layers.ReLU()(layers.LayerNormalization()(x))
    x = layers.Conv2D(8, 3, name="second", activation="sigmoid")(x)
    model = randomize(keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x))))
    found = okd.sensitivity(model, data, ratios=(0.5,))
    for name in ("first", "second"):
        expected = slow_way(model, data, name, 0.5)
        assert (found[name].accuracy[0], found[name].loss[0]) == pytest.approx(expected, rel=1e-4)


def test_nested_models_and_several_uses_of_a_layer(data):
    inner = keras.Sequential([keras.Input((12, 12, 4)), layers.Conv2D(4, 3, padding="same", name="shared")])
    image = keras.Input((12, 12, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem", activation="relu")(image)
    x = layers.Concatenate()([inner(x), inner(layers.ReLU()(inner(x)))])
    model = randomize(keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x))))
    found = okd.sensitivity(model, data, ratios=(0.5,))
    for curve in found.curves:
        if not curve.reason:
            assert (curve.accuracy[0], curve.loss[0]) == pytest.approx(slow_way(model, data, curve.name, 0.5), rel=1e-3)


def test_weights_of_each_layer_by_themselves(network, data):
    found = okd.sensitivity(network, data, ratios=(0.5, 0.9), of="weights")
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    kernel = model.get_layer("stage2_block1_1_conv").kernel
    flat = kernel.numpy().ravel()
    flat[np.argsort(np.abs(flat), kind="stable")[: flat.size // 2]] = 0
    kernel.assign(flat.reshape(kernel.shape))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    loss, accuracy = model.evaluate(data, verbose=0)
    curve = found["stage2_block1_1_conv"]
    assert curve.accuracy[0] == pytest.approx(accuracy) and curve.loss[0] == pytest.approx(loss, rel=1e-3)
    assert "logits" in {c.name for c in found.curves if not c.reason}


def test_bits_of_each_kernel_are_rounded_channel_by_channel(network, data):
    found = okd.sensitivity(network, data, of="bits")
    curve = found["stage2_block1_1_conv"]
    assert curve.ratios == (0.25, 0.375, 0.5, 0.625, 0.75) and found.of == "bits"
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    kernel = model.get_layer("stage2_block1_1_conv").kernel
    kernel.assign(rounded(kernel.numpy(), 3))
    assert max(len(np.unique(kernel.numpy()[..., c])) for c in range(kernel.shape[-1])) == 2**3 - 1
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    loss, accuracy = model.evaluate(data, verbose=0)
    assert curve.accuracy[3] == pytest.approx(accuracy) and curve.loss[3] == pytest.approx(loss, rel=1e-3)
    for c in found.curves:
        assert abs(c.loss[0] - found.loss) < abs(c.loss[-1] - found.loss)


def test_kernels_of_eight_bits_are_what_a_file_holds_and_fewer_bits_are_as_near_as_clipping_allows():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 8, 5)).astype("float32")
    codes, scale = to_levels(kernel, 8)
    assert np.abs(codes).max(axis=(0, 1, 2)).tolist() == [127] * 5 and scale.shape == (1, 1, 1, 5)
    for bits in (2, 3, 4, 5, 6):
        codes, scale = to_levels(kernel, bits)
        largest = np.abs(kernel).max(axis=(0, 1, 2)) / (2 ** (bits - 1) - 1)
        plain = np.rint(kernel / largest) * largest
        assert np.abs(codes).max() <= 2 ** (bits - 1) - 1 and scale.shape == (1, 1, 1, 5)
        assert np.square(rounded(kernel, bits) - kernel).sum() <= 1.001 * np.square(plain - kernel).sum()
    zeros = np.zeros((2, 3), "float32")
    assert not rounded(zeros, 4).any()
    depthwise = rounded(kernel[..., :2], 2, axes=(-2, -1))
    assert all(len(np.unique(depthwise[..., i, j])) <= 3 for i in range(8) for j in range(2))


def test_a_tolerance_measures_the_last_point_first_and_the_others_where_the_curve_moves(network):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (320, 12, 12, 2)).astype("float32")
    many = tf.data.Dataset.from_tensor_slices((x, network(x).numpy().argmax(-1))).batch(320)
    ratios = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    full = okd.sensitivity(network, many, ratios=ratios)
    flat = okd.sensitivity(network, many, ratios=ratios, tolerance=1e3)
    assert all(c.ratios == (0.9,) and c.images == (64,) for c in flat.curves if not c.reason)
    rough = okd.sensitivity(network, many, ratios=ratios, tolerance=0.05)
    header, *lines = str(rough).splitlines()
    assert header.split() == ["group", *(f"{r:.0%}" for r in rough.ratios)]
    assert all(len(line.split()) - 1 <= len(rough.ratios) for line in lines[:-2])
    spent = {s: sum(sum(c.images) for c in scan.curves) for s, scan in (("full", full), ("rough", rough))}
    assert spent["rough"] < 0.7 * spent["full"]
    for a, b in zip(full.curves, rough.curves, strict=True):
        if not a.reason:
            read = np.interp(a.ratios, (0, *b.ratios), (rough.loss, *b.loss))
            assert np.all(np.abs(read - a.loss) <= 0.2 + 0.5 * np.abs(np.array(a.loss) - full.loss))


def test_lost_points_see_fewer_images_and_the_others_are_what_they_were(network):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (320, 12, 12, 2)).astype("float32")
    labels = network(x).numpy().argmax(-1)
    labels[::40] = (labels[::40] + 1) % 4  # not one class alone
    many = tf.data.Dataset.from_tensor_slices((x, labels)).batch(32)
    full = okd.sensitivity(network, many, ratios=RATIOS)
    quick = okd.sensitivity(network, many, ratios=RATIOS, lost=0.8)
    assert full.accuracy == 312 / 320
    saved = 0
    for a, b in zip(full.curves, quick.curves, strict=True):
        for accuracy, estimate, seen in zip(a.accuracy, b.accuracy, b.images, strict=True):
            if seen == 320:
                assert accuracy == estimate
            else:
                saved += 320 - seen
                assert estimate < 0.8
    assert saved > 0


def test_a_killed_scan_goes_on_and_another_one_starts_anew(network, data, tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    whole = okd.sensitivity(network, data, ratios=(0.5,))
    real, count = scanning._scan, []

    def killed(*args):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(scanning, "_scan", killed)
    with pytest.raises(KeyboardInterrupt):
        okd.sensitivity(network, data, ratios=(0.5,), path=path)
    monkeypatch.setattr(scanning, "_scan", lambda *args: count.append(1) or real(*args))
    count.clear()
    again = okd.sensitivity(network, data, ratios=(0.5,), path=path)
    left = len(count)
    assert 0 < left == len([c for c in whole.curves if not c.reason]) - 3
    assert [c.accuracy for c in again.curves] == [c.accuracy for c in whole.curves]
    count.clear()
    okd.sensitivity(network, data, ratios=(0.25,), path=path)
    assert len(count) == left + 3


def test_json_csv_table_and_picture(network, data, tmp_path):
    found = okd.sensitivity(network, data, ratios=RATIOS, images=16)
    assert okd.Scan.from_json(found.to_json(tmp_path / "s.json")) == found
    lines = found.to_csv(tmp_path / "s.csv").splitlines()
    assert lines[0] == "group,ratio,accuracy,loss,images" and lines[1].startswith("stem_conv,0.25,")
    assert "stem_conv" in str(found) and "16 images" in str(found)
    for kind in (found, okd.Scan("filters", 1.0, 0.1, 9, found.curves * 5)):
        with Image.open(kind.plot(tmp_path / "s.png")) as picture:
            assert picture.size[0] > 500
    with pytest.raises(InputError, match="no sensitivity scan"):
        okd.Scan.from_json(json.dumps({"a": 1}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"of": "bits", "ratios": (0.3,)}, "of bits"),
        ({"of": "bits", "ratios": (0.875,)}, "of bits"),
        ({"tolerance": 0.0}, "tolerance="),
        ({"of": "layers"}, "of='layers'"),
        ({"ratios": (0.0, 0.5)}, "ratios="),
        ({"criterion": "taylor"}, "needs data"),
        ({"criterion": "best"}, "best"),
        ({"images": 0}, "no images"),
    ],
)
def test_bad_settings_are_refused(network, data, how, words):
    with pytest.raises(InputError, match=words):
        okd.sensitivity(network, data, **how)


@pytest.mark.parametrize("turn", [lambda y: np.eye(4, dtype="float32")[y], lambda y: y.astype("float32"),
                                  lambda y: y[:, None]])  # fmt: skip
def test_labels_of_every_kind_that_compress_takes_give_the_same_scan(network, data, turn):
    x, y = (np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True))
    whole = okd.sensitivity(network, [(x, y)], ratios=(0.5,), exclude=["stage*"])
    assert okd.sensitivity(network, [(x, turn(y))], ratios=(0.5,), exclude=["stage*"]) == whole


@pytest.mark.parametrize("y", [np.full((2, 4), 0.25), np.array([0.5, 1.0]), np.array(["a", "b"])])
def test_labels_that_are_no_classes_are_refused(network, y):
    with pytest.raises(InputError, match="labels have shape"):
        okd.sensitivity(network, [(np.zeros((2, 12, 12, 2), "float32"), y)])


def test_a_label_that_the_network_has_no_output_for_is_refused(network):
    with pytest.raises(InputError, match="labels from 0 to 4, and the network knows 4 classes"):
        okd.sensitivity(network, [(np.zeros((2, 12, 12, 2), "float32"), np.array([0, 4]))])


def test_a_network_with_one_score_says_yes_or_no():
    image = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="conv")(image))
    model = randomize(keras.Model(image, layers.Dense(1, activation="sigmoid")(x)))
    x = np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype("float32")
    y = (model(x).numpy()[:, 0] > 0.5).astype(int)
    y[0] = 1 - y[0]
    scan = okd.sensitivity(model, [(x, y)], ratios=(0.5,))
    assert scan.accuracy == pytest.approx(11 / 12) and scan["conv"].images == (12,)
    with pytest.raises(InputError, match="labels from 0 to 2, and the network knows 2 classes"):
        okd.sensitivity(model, [(x, np.arange(12) % 3)])


def test_images_of_bytes_are_read_as_the_network_reads_them():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    model = randomize(keras.Model(image, layers.Dense(3)(layers.Flatten()(x))))
    x, y = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)), np.arange(12) % 3
    as_bytes, as_floats = (okd.sensitivity(model, [(x.astype(t), y)], ratios=(0.5,)) for t in ("uint8", "float32"))
    assert as_bytes == as_floats


def test_curves_of_other_training_images_are_not_gone_on_with(network, data, tmp_path):
    x, y = next(iter(data))
    how = {"ratios": (0.5,), "criterion": "taylor", "exclude": ["stage2*"]}
    scans = [
        okd.sensitivity(network, data, path=path, train=tf.data.Dataset.from_tensors((values, y)), **how)
        for values, path in ((x, tmp_path / "a"), (255 - x, tmp_path / "a"), (255 - x, None))
    ]
    assert scans[0] != scans[1] == scans[2]


def test_a_group_is_found_by_its_own_name_before_a_layer_of_another():
    a, b = Curve("a", ("a", "b"), 4), Curve("b", ("b", "c"), 4)
    found = okd.Scan("filters", 1.0, 0.0, 1, (a, b))
    assert found["b"] is b and found["c"] is b and found["a"] is a


@pytest.mark.parametrize("of", ["filters", "weights"])
def test_an_excluded_layer_that_is_not_there_is_refused(network, data, of):
    with pytest.raises(InputError, match=r"block9_\*"):
        okd.sensitivity(network, data, of=of, exclude=["stage*", "block9_*"])


def test_the_group_made_first_and_read_last_is_measured_as_the_others_are():
    """Jobs run from the front of the network to its end: what is kept of it must not be of behind their place."""
    image = keras.Input((6, 6, 2))
    a = layers.Conv2D(6, 3, padding="same", name="a")(image)
    b = layers.Conv2D(6, 3, padding="same", name="b")(layers.ReLU()(image))
    b = layers.Conv2D(6, 3, padding="same", name="reads_b", activation="relu")(b)
    b = layers.ReLU()(layers.ReLU()(b))
    a = layers.Conv2D(6, 3, padding="same", name="reads_a")(layers.ReLU()(layers.ReLU()(layers.ReLU()(a))))
    x = layers.GlobalAveragePooling2D()(layers.Add()([a, b]))
    model = randomize(keras.Model(image, layers.Dense(4, name="logits")(x)))
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    labels = model(x).numpy().argmax(-1)
    labels[::4] = (labels[::4] + 1) % 4  # some are wrong: examples of one class only are refused
    few = tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)
    found = okd.sensitivity(model, few, ratios=(0.67,))
    made = [c.name for c in found.curves if not c.reason]
    calls = [call.layer.name for call in Segments(model).calls]
    assert made.index("a") < made.index("b") and calls.index("reads_a") > calls.index("reads_b")
    for name in made:
        assert (found[name].accuracy[0], found[name].loss[0]) == pytest.approx(
            slow_way(model, few, name, 0.67), rel=1e-4
        )
    assert found["b"].loss[0] > 1.01 * found.loss


SCAN = {"ratios": (0.4,), "criterion": "l1_norm", "images": 16, "lost": None, "exclude": (), "seed": 0}
# argument -> (what the first scan has in place of SCAN, what the next one has; whether that is another scan)
CHANGES = {
    "model": ({}, {}, True),
    "data": ({}, {}, True),
    "ratios": ({}, {"ratios": (0.4, 0.8)}, True),
    "of": ({}, {"of": "weights"}, True),
    "criterion": ({}, {"criterion": "random"}, True),
    "train": ({"criterion": "taylor"}, {"criterion": "taylor"}, True),
    "loss": ({}, {"loss": "binary_crossentropy"}, True),  # of labels that do not exclude each other
    "images": ({}, {"images": 24}, True),
    "lost": ({"images": 24}, {"images": 24, "lost": 0.99}, True),
    "tolerance": ({"images": 24}, {"images": 24, "tolerance": 0.5}, True),
    "memory": ({}, {"memory": 1}, False),
    "exclude": ({"exclude": ("one",)}, {}, True),
    "unknown": ({}, {"unknown": "keep"}, False),  # every layer here has a rule
    "task": ({}, {"task": "classification"}, False),  # which "auto" finds
    "seed": ({"criterion": "random"}, {"criterion": "random", "seed": 1}, True),
}


def test_every_argument_of_a_scan_is_one_of_its_changes():
    assert set(CHANGES) == set(inspect.signature(okd.sensitivity).parameters) - {"path"}


@pytest.fixture(scope="module")
def small() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    image = keras.Input((4, 4, 2))
    x = layers.Conv2D(8, 1, name="two", activation="relu")(layers.Conv2D(8, 1, name="one", activation="relu")(image))
    model = keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x)))
    keras.utils.set_random_seed(7)
    x = np.random.default_rng(1).normal(size=(24, 4, 4, 2)).astype("float32")
    return randomize(model), x, np.arange(24) % 4


@pytest.mark.parametrize(("argument", "of"), [*((argument, "filters") for argument in CHANGES), ("exclude", "weights")])
def test_a_scan_never_goes_on_from_curves_of_another_question(small, argument, of, tmp_path, monkeypatch):
    (model, x, y), (first, then, differs) = small, CHANGES[argument]
    path, measured, real = tmp_path / "scan.json", [], scanning._scan
    monkeypatch.setattr(scanning, "_scan", lambda job, *args: measured.append(job) or real(job, *args))

    def go(path, changed):
        how = {"of": of} | SCAN | (then if changed else first)
        train = tf.data.Dataset.from_tensors((-x if changed and argument == "train" else x, y))
        asked = model
        if changed and argument == "model":
            asked = keras.models.clone_model(model)
            asked.set_weights([-w for w in model.get_weights()])
        data = [(x, np.roll(y, 1) if changed and argument == "data" else y)]
        measured.clear()
        return okd.sensitivity(asked, data, train=train, path=path, **how)

    before = go(path, False)
    assert measured
    assert go(path, False) == before and not measured
    after = go(path, True)
    assert bool(measured) == differs
    assert after == go(None, True)
    assert (after != before) == differs or argument in (
        "lost",
        "tolerance",
    )  # which stop at ends of batches: there is one
