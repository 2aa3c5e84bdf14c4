"""Boxes: what the maps of a detector mean, how they are trained, and scores that were worked out by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.models import networks
from orbit_kd.tasks import box_losses, choose, coco, tasks
from orbit_kd.tasks.boxes import decode, overlaps, peaks, suppress
from orbit_kd.tasks.detection import Detection


def boxes(*rows: tuple[float, ...], most: int = 4) -> np.ndarray:
    """Labels of one image, filled up."""
    found = -np.ones((1, most, 5), np.float32)
    for i, row in enumerate(rows):
        found[0, i] = row
    return found


def maps_of(labels: np.ndarray, *, classes: int, size: int = 16, heat: float = 0.9) -> np.ndarray:
    """What a detector without fault says: (n, size, size, classes + 4)."""
    maps = np.zeros((len(labels), size, size, classes + 4), np.float32)
    for i, image in enumerate(labels):
        for class_, top, left, bottom, right in image[image[:, 0] >= 0]:
            y, x = (top + bottom) / 2 * size, (left + right) / 2 * size
            cell = (i, int(y), int(x))
            maps[(*cell, int(class_))] = heat
            maps[cell][-4:] = [bottom - top, right - left, y - int(y), x - int(x)]
    return maps


def records(*images: tuple[list, list]) -> np.ndarray:
    found = np.empty(len(images), object)
    for i, (truth, answers) in enumerate(images):
        found[i] = (np.array(truth, np.float32).reshape(-1, 5), np.array(answers, float).reshape(-1, 6))
    return found


def random_records(count: int, *, classes: int = 3, seed: int = 0) -> np.ndarray:
    """Some boxes found well, some badly, some twice, some not; many scores are equal, as in int8 files."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(count):
        truth, answers = [], []
        for _ in range(rng.integers(0, 5)):
            class_ = rng.integers(classes - 1)  # of the last class there is none
            top, left, height, width = rng.uniform(0.05, 0.5, 4)
            truth.append([class_, top, left, top + height, left + width])
            for _ in range(rng.integers(0, 3)):
                moved = np.array([top, left, top + height, left + width]) + rng.normal(0, 0.04, 4)
                answers.append([class_ if rng.random() < 0.8 else 2, rng.integers(1, 20) / 20, *moved])
        answers.sort(key=lambda row: -row[1])
        images.append((truth, answers))
    return records(*images)


def detector(classes: int = 2) -> keras.Model:
    return networks.build("centernet", (32, 32, 3), classes=classes, width=0.125)


def three_outputs(names: tuple[str, str, str] = ("heat", "size", "offset"), classes: int = 1) -> keras.Model:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=4, padding="same")(layers.Rescaling(1 / 255)(image))
    # not in the order of the task
    parts = dict(zip(names, (classes, 2, 2), strict=True))
    ends = {name: layers.Conv2D(n, 1, activation="sigmoid", name=name)(x) for name, n in parts.items()}
    return keras.Model(image, [ends[names[1]], ends[names[0]], ends[names[2]]])


# ---------------------------------------------------------------- maps


def test_maps_without_fault_give_the_boxes_back():
    labels = boxes((0, 0.1, 0.2, 0.3, 0.7), (1, 0.5, 0.5, 1.0, 0.75))
    found = decode(maps_of(labels, classes=2)[0], most=10, least=0.1)
    order = found[:, 0].argsort()
    np.testing.assert_allclose(found[order][:, [0, 2, 3, 4, 5]], labels[0, :2], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], 0.9)


def test_boxes_are_cut_at_the_edges_sorted_and_limited():
    maps = np.zeros((4, 4, 5), np.float32)
    maps[..., 1:3] = 0.5
    maps[0, 0, 0], maps[2, 2, 0], maps[0, 3, 0] = 0.5, 0.9, 0.05
    found = decode(maps, most=100, least=0.05)
    np.testing.assert_allclose(found, [[0, 0.9, 0.25, 0.25, 0.75, 0.75], [0, 0.5, 0, 0, 0.25, 0.25]])
    assert len(decode(maps, most=1, least=0.0)) == 1
    assert decode(np.zeros((4, 4, 5), np.float32), most=9, least=0.0).shape == (0, 6)


def test_of_equal_neighbours_one_is_a_peak():
    heat = np.zeros((5, 6, 2), np.float32)
    heat[1, 1:3, 0] = 0.5  # two equal cells, as int8 makes them
    heat[2:4, 4, 1] = 0.5
    heat[3, 0, 0], heat[4, 1, 0] = 0.5, 0.6
    found = np.argwhere(peaks(heat) & (heat > 0))
    assert found.tolist() == [[1, 1, 0], [2, 4, 1], [4, 1, 0]]


def test_suppression_keeps_the_best_of_each_class():
    rows = np.array([[0, 0.5, 0, 0, 1, 1], [0, 0.9, 0, 0, 1, 0.9], [1, 0.4, 0, 0, 1, 1], [0, 0.1, 0, 0.5, 1, 1.5]])
    assert suppress(rows, iou=0.5)[:, 1].tolist() == [0.9, 0.4, 0.1]
    assert suppress(np.zeros((0, 6)), iou=0.5).shape == (0, 6)
    task = Detection(1, iou=0.3, least=0.1)
    maps = maps_of(boxes((0, 0.2, 0.2, 0.6, 0.6), (0, 0.2, 0.35, 0.6, 0.75)), classes=1)
    assert len(Detection(1).found(maps[0])) == 2 and len(task.found(maps[0])) == 1


def test_overlap_of_boxes_without_area_is_none():
    assert overlaps(np.array([[0, 0, 1, 2.0]]), np.array([[0, 1, 1, 2.0], [3, 3, 3, 3]])).tolist() == [[0.5, 0]]


# ---------------------------------------------------------------- the loss


def published_radius(height: float, width: float, overlap: float = 0.7) -> float:
    """As in the code of CornerNet and CenterNet."""
    b1, c1 = height + width, width * height * (1 - overlap) / (1 + overlap)
    b2, c2 = 2 * (height + width), (1 - overlap) * width * height
    a3, b3, c3 = 4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height
    roots = [b + np.sqrt(b**2 - 4 * a * c) for a, b, c in ((1, b1, c1), (4, b2, c2), (a3, b3, c3))]
    return min(root / 2 for root in roots)


def test_the_radius_is_that_of_the_published_code():
    sizes = [(10.0, 6.0), (3.0, 20.0), (1.0, 1.0), (40.0, 40.0)]
    found = [float(box_losses.heat_radius(tf.constant(h), tf.constant(w))) for h, w in sizes]
    np.testing.assert_allclose(found, [published_radius(h, w) for h, w in sizes], rtol=1e-4)


def test_heat_is_one_at_centres_falls_around_and_keeps_classes_apart():
    labels = np.concatenate([boxes((0, 0.1, 0.1, 0.6, 0.6), (1, 0.5, 0.5, 1, 1)), boxes()])
    heat = box_losses.heat_targets(tf.constant(labels), 16, 16, classes=2).numpy()
    assert heat.shape == (2, 16, 16, 2)
    assert np.argwhere(heat == 1).tolist() == [[0, 5, 5, 0], [0, 12, 12, 1]]
    assert 0 < heat[0, 5, 7, 0] < heat[0, 5, 6, 0] < 1 and heat[0, 5, 6, 0] == heat[0, 4, 5, 0]
    assert heat[0, 5, 8, 0] == 0  # beyond the radius
    assert heat[0, 5, 5, 1] == 0 and not heat[1].any()


def test_the_loss_of_one_cell_by_hand():
    labels = boxes((0, 0.0, 0.0, 0.5, 0.25))  # centre (0.25, 0.125) of 4x4 cells: row 1, column 0.5
    task, logit = Detection(1), 0.3
    maps = np.full((1, 4, 4, 5), logit, np.float32)
    p = 1 / (1 + np.exp(-logit))
    target = box_losses.heat_targets(tf.constant(labels), 4, 4, classes=1).numpy()[0, ..., 0]
    assert target[1, 0] == 1 and target.sum() == 1
    heat = -((1 - p) ** 2) * np.log(p) - 15 * p**2 * np.log(1 - p)
    size = (abs(p - 0.5) + abs(p - 0.25)) * 4
    offset = abs(p - 0) + abs(p - 0.5)
    image = keras.Input((4, 4, 5))
    model = keras.Model(image, layers.Activation("sigmoid")(image))
    found = task.sample_loss(model)(tf.constant(labels), [model(maps)])
    np.testing.assert_allclose(found, [heat + size + offset], rtol=1e-5)
    loss = task.loss(model)
    both = np.concatenate([labels, boxes()])
    value = tf.reduce_mean(loss(tf.constant(both), model(np.repeat(maps, 2, axis=0))))
    nothing = -16 * p**2 * np.log(1 - p)
    np.testing.assert_allclose(value, heat + size + offset + nothing, rtol=1e-5)  # over one box, not two images


def test_the_loss_is_finite_with_gradients_where_the_network_is_sure():
    image = keras.Input((4, 4, 6))
    model = keras.Model(image, layers.Activation("sigmoid")(image))
    task = Detection.of(model)
    x = tf.Variable(np.random.default_rng(0).normal(0, 100, (2, 4, 4, 6)).astype("float32"))
    labels = np.concatenate([boxes((1, 0.9, 0.9, 1, 1)), boxes()])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(task.loss(model)(tf.constant(labels), model(x)))
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, x)).all()


def test_keras_trains_one_output_and_three():
    x = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    labels = np.repeat(boxes((1, 0.1, 0.1, 0.5, 0.6), (0, 0.5, 0.5, 0.9, 0.9)), 4, axis=0)
    one = detector()
    task = Detection.of(one)
    one.compile("adam", task.loss(one), metrics=task.keras_metrics(one))
    values = one.fit(x, labels, epochs=3, verbose=0).history["loss"]
    assert values[-1] < values[0]

    three, single = three_outputs(), np.where(labels > 0.99, 0, labels)
    task = choose(three, SimpleNamespace(task="", val=tf.data.Dataset.from_tensor_slices((x, single)).batch(2)))
    assert (task.name, task.parts) == ("detection", (1, 0, 2))
    three.compile("adam", task.loss(three))
    history = three.fit(x[:, :16, :16], single, epochs=1, batch_size=4, verbose=0).history
    outputs = three(x[:, :16, :16])
    assert {"heat_loss", "size_loss", "offset_loss"} <= set(history)
    again = three.evaluate(x[:, :16, :16], single, verbose=0, batch_size=4)[0]
    # per box and per image are the same here: two boxes each
    assert again == pytest.approx(float(tf.reduce_mean(task.sample_loss(three)(single, outputs))), rel=1e-4)


def test_three_outputs_are_scored_as_one():
    labels = boxes((0, 0.1, 0.2, 0.4, 0.7))
    maps = maps_of(labels, classes=1, size=4)
    task = Detection.of(three_outputs())
    found = task.records(task.truth({"heat": labels, "size": labels, "offset": labels}),
                         (maps[..., 1:3], maps[..., :1], maps[..., 3:]))  # fmt: skip
    assert task.value(found) == pytest.approx(1.0)


@pytest.mark.parametrize("end", [None, "softmax", "relu"])
def test_networks_without_a_sigmoid_are_refused(end):
    image = keras.Input((16, 16, 3))
    with pytest.raises(InputError, match="activation='sigmoid'"):
        Detection.of(keras.Model(image, layers.Conv2D(5, 1, activation=end)(image)))


def test_networks_of_other_shapes_are_refused():
    image = keras.Input((16, 16, 3))
    with pytest.raises(InputError, match="4 channels"):
        Detection.of(keras.Model(image, layers.Conv2D(4, 1, activation="sigmoid")(image)))
    with pytest.raises(InputError, match="shapes"):
        Detection.of(keras.Model(image, layers.Dense(5, activation="sigmoid")(layers.Flatten()(image))))
    with pytest.raises(InputError, match="nothing says"):
        Detection.of(three_outputs(("a", "b", "c")))
    masks = tf.data.Dataset.from_tensors((np.zeros((1, 16, 16, 3), "float32"), np.zeros((1, 16, 16), "int32")))
    with pytest.raises(InputError, match="labels have the shape"):
        Detection.of(detector(), SimpleNamespace(val=masks.map(lambda x, y: (x, y[..., 0]))))


@pytest.mark.parametrize(
    "row, says",
    [((2, 0, 0, 1, 1), "classes"), ((0.5, 0, 0, 1, 1), "classes"), ((0, 0.5, 0, 0.5, 1), "empty or outside"),
     ((0, 10, 10, 30, 40), "empty or outside"), ((0, 0.5, 0.5, 0.2, 0.9), "empty or outside"),
     ((0, np.nan, 0, 1, 1), "NaN"), ((-2, 0, 0, 1, 1), "classes")],
)  # fmt: skip
def test_bad_boxes_are_refused(row, says):
    with pytest.raises(InputError, match=says):
        Detection(2).truth(boxes(row))


def test_labels_that_are_no_boxes_are_refused():
    with pytest.raises(InputError, match="n, most, 5"):
        Detection(2).truth(np.zeros((3, 16, 16), "int32"))
    assert Detection(2).truth(np.zeros((3, 0, 5), "float32")).shape == (3, 0, 5)


def test_data_without_boxes_is_refused_and_a_missing_class_is_told(caplog):
    def data(*rows):
        return tf.data.Dataset.from_tensors((np.zeros((1, 32, 32, 3), "float32"), boxes(*rows)))

    good = data((0, 0, 0, 1, 1))
    with caplog.at_level("WARNING"):
        Detection(2).check_data(SimpleNamespace(train=good, val=good, test=good))
    assert "no box of class 1" in caplog.text
    with pytest.raises(InputError, match="no box in the val data"):
        Detection(2).check_data(SimpleNamespace(train=good, val=data(), test=good))


# ---------------------------------------------------------------- scores

A, B = [0, 0.0, 0.0, 0.4, 0.4], [0, 0.5, 0.5, 0.9, 0.9]


def found(box: list, score: float, *, class_: int = 0) -> list:
    return [class_, score, *box[1:]]


def test_average_precision_by_hand():
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3; 51 of the 101 recalls are up to 1/2."""
    task = Detection(1)
    miss = [0, 0.8, 0.0, 0.6, 0.3, 0.9]
    rows = records(([A, B], [found(A, 0.9), miss, found(B, 0.7)]))
    assert task.value(rows) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert task.value(records(([A, B], [found(A, 0.9)]))) == pytest.approx(51 / 101)
    assert task.value(records(([A, B], []))) == 0.0


def test_a_second_box_on_one_object_and_one_on_an_empty_image_are_wrong():
    task = Detection(1)
    assert task.value(records(([A], [found(A, 0.9), found(A, 0.8)]))) == pytest.approx(1.0)
    twice = records(([A, B], [found(A, 0.9), found(A, 0.8), found(B, 0.7)]))
    assert task.value(twice) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert task.value(records(([A], [found(A, 0.5)]), ([], [found(B, 0.9)]))) == pytest.approx(0.5)


def test_the_overlap_counts_and_so_do_ten_of_them():
    half = [0, 0.9, 0.0, 0.0, 0.4, 0.4 * 0.72]  # IoU 0.72
    details = Detection(1).details(records(([A], [half])))
    assert details["ap50"] == pytest.approx(1.0) and details["ap50_95"] == pytest.approx(0.5)  # 0.5, 0.55, ... 0.7


def test_a_class_without_boxes_is_left_out_of_the_mean():
    rows = records(([A], [found(A, 0.9), found(B, 0.95, class_=1)]), ([[2, *B[1:]]], []))
    task = Detection(3)
    assert task.value(rows) == pytest.approx(0.5)
    details = task.details(rows)
    assert [c["ap50"] for c in details["classes"]] == [pytest.approx(1.0), None, 0.0]
    assert details["classes"][1] == {"ap50": None, "boxes": 0, "found": 0, "false": 1}
    assert (details["images"], details["boxes"], details["detections"]) == (2, 2, 2)
    assert len(details["curve"]["precision"]) == len(details["curve"]["recall"]) == 101
    json.dumps(details, allow_nan=False)


def test_without_any_box_there_is_no_value():
    assert np.isnan(Detection(1).value(records(([], [found(A, 0.9)]), ([], []))))


def test_records_of_batches_join():
    labels = np.concatenate([boxes((0, 0.1, 0.1, 0.5, 0.5)), boxes()])
    task = Detection(2)
    rows = task.records(task.truth(labels), (maps_of(labels, classes=2),))
    joined = np.concatenate([rows, rows])
    assert rows.shape == (2,) and task.value(joined) == pytest.approx(1.0)
    assert task.chance(rows) is None
    with pytest.raises(InputError, match="7 channels"):
        task.records(labels, (np.zeros((2, 4, 4, 7), "float32"),))


def test_the_quick_accumulation_is_that_of_coco():
    rows, rng = random_records(12), np.random.default_rng(1)
    scores = coco.coco_scores(rows, classes=3)
    assert coco.accumulated_ap50(scores.matches, np.ones(12, int)) == pytest.approx(scores.ap50, abs=1e-12)
    for _ in range(20):
        drawn = np.sort(rng.integers(12, size=12))
        times = np.bincount(drawn, minlength=12)
        expected = coco.coco_scores(rows[drawn], classes=3).ap50
        assert coco.accumulated_ap50(scores.matches, times) == pytest.approx(expected, abs=1e-12)


def test_two_networks_are_compared_in_pairs():
    task, rows = Detection(3), random_records(30)
    same = task.compare(rows, rows)
    assert same == {"paired_p": 1.0, "difference_low": 0.0, "difference_high": 0.0}
    worse = records(*((truth, [] if i % 2 else answers) for i, (truth, answers) in enumerate(rows)))
    told = task.compare(rows, worse)
    assert told["difference_low"] < task.value(worse) - task.value(rows) < told["difference_high"] < 0
    assert told["paired_p"] < 0.01


def test_pictures_show_the_boxes_and_leave_the_rest():
    image = np.zeros((40, 40, 3), np.uint8)
    labels = boxes((0, 0.25, 0.25, 0.75, 0.75))
    task = Detection(1)
    truth = task.picture(image, labels[0], None)
    answer = task.picture(image, labels[0], (maps_of(labels, classes=1)[0],))
    nothing = task.picture(image, labels[0], (maps_of(labels, classes=1, heat=0.2)[0],))
    assert truth[10, 20].any() and not truth[20, 20].any() and not truth[5, 5].any()
    assert answer[10, 20].any() and (answer[10, 20] != truth[10, 20]).any() and not nothing.any()
    assert not image.any()


def test_the_registry_and_the_config_know_it():
    task = choose(detector(3), task="detection")
    assert tasks.get("detection") is Detection and task.config()["classes"] == 3
