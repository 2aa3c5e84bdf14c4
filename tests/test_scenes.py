"""Scenes larger than the network's input: the same answer as on the whole, and each object once."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image
from tf_keras import layers

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.evaluation import scenes
from orbit_kd.evaluation.scenes import predict_scene
from orbit_kd.exporters import export
from orbit_kd.exporters.metadata import note
from orbit_kd.runtimes import Port
from orbit_kd.tasks import Task
from orbit_kd.tasks.classification import Classification
from orbit_kd.tasks.detection import Detection
from orbit_kd.tasks.segmentation import Segmentation

TILE = 32


class Runner:
    """Stands for a loaded file: a function of one tile, and how often it was called with how many."""

    def __init__(self, answer, *, bands: int = 1, shape: tuple[int, int] = (TILE, TILE)) -> None:
        self.answer, self.calls = answer, []
        self.input = Port((*shape, bands), np.dtype("float32"), 0.0, 0)
        self.output = Port((), np.dtype("float32"), 0.0, 0)
        self.inputs, self.outputs = (self.input,), (self.output,)

    def raw(self, x: np.ndarray) -> np.ndarray:
        self.calls.append(len(x))
        return np.stack([self.answer(image) for image in x])


def bright(size: int) -> keras.Model:
    """Is the mean of 5x5 pixels above 100? As two logits a pixel."""
    image = keras.Input((size, size, 1))
    mean = layers.AveragePooling2D(5, 1, padding="same")(image)
    head = layers.Conv2D(2, 1, name="head")
    model = keras.Model(image, head(mean))
    head.set_weights([np.array([[[[0.0, 1.0]]]], np.float32), np.array([0.0, -100.0], np.float32)])
    return model


def smooth_scene(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (100 + 80 * np.sin(y / 9) * np.cos(x / 7))[..., None].astype("float32")


def squares(image: np.ndarray) -> np.ndarray:
    """A detector of white squares that sees no further than its tile: one map of 8x8 cells a tile of 32."""
    maps = np.zeros((8, 8, 5), np.float32)
    seen = image[..., 0] > 0
    while seen.any():
        top, left = np.argwhere(seen)[0]
        bottom = top + int(np.argmin(np.append(seen[top:, left], False)))
        right = left + int(np.argmin(np.append(seen[top, left:], False)))
        seen[top:bottom, left:right] = False
        y, x = (top + bottom) / 2 / 4, (left + right) / 2 / 4
        cell = maps[int(y), int(x)]
        # a whole one is surer than a part
        cell[:] = [0.5 + (bottom - top) * (right - left) / 2000, (bottom - top) / 32, (right - left) / 32,
                   y - int(y), x - int(x)]  # fmt: skip
    return maps


def scene_of(boxes: list[tuple[int, int, int, int]], height: int, width: int) -> np.ndarray:
    scene = np.zeros((height, width, 1), np.float32)
    for top, left, bottom, right in boxes:
        scene[top:bottom, left:right] = 1
    return scene


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("size", [(90, 77), (32, 100), (64, 64)])
def test_a_map_of_a_scene_is_that_of_one_large_image(size, overlap, tmp_path):
    scene = smooth_scene(*size)
    file = export(bright(TILE), "tflite_float32", path=tmp_path / "m.tflite")
    found = predict_scene(file, scene, task=Segmentation(2, (TILE, TILE)), overlap=overlap)
    side = max(size)
    padded = np.pad(scene, ((0, side - size[0]), (0, side - size[1]), (0, 0)), mode="edge")
    whole = bright(side).predict(padded[None], verbose=0)[0].argmax(-1)[: size[0], : size[1]]
    assert (found.shape, found.dtype) == (size, np.uint8)
    # at the padded sides of one the other sees the true scene, or both see another padding
    assert np.array_equal(found[2:-2, 2:-2], whole[2:-2, 2:-2])
    assert 0.2 < found.mean() < 0.8


def test_without_overlap_each_pixel_is_that_of_its_tile():
    runner = Runner(lambda image: np.concatenate([np.full_like(image, 0.5), image], -1))
    scene = (np.random.default_rng(0).random((64, 96, 1)) > 0.5).astype("float32")
    found = predict_scene(runner, scene, task=Segmentation(2, (TILE, TILE)), overlap=0.0)
    assert np.array_equal(found, scene[..., 0])
    assert runner.calls == [1] * 6


@pytest.mark.parametrize("size", [(20, 40), (10, 9), (32, 32)])
def test_scenes_smaller_than_a_tile_are_continued(size):
    runner = Runner(lambda image: np.concatenate([np.full_like(image, 0.5), image], -1))
    scene = (np.random.default_rng(0).random((*size, 1)) > 0.5).astype("float32")
    found = predict_scene(runner, scene, task=Segmentation(2, (TILE, TILE)))
    assert np.array_equal(found, scene[..., 0])


def test_every_pixel_has_a_weight_whatever_the_size():
    for overlap in (0.0, 0.1, 0.25, 0.6, 0.95):
        for length in (1, 31, 32, 33, 57, 100):
            total = np.zeros((length, 40))
            for tile in scenes._tiles((length, 40), (32, 40), overlap):
                part = scenes._weights(tile, (32, 40), overlap)[..., 0]
                total[tile.top : tile.top + 32] += part[: length - tile.top]
            assert total.min() > 0.2


def test_the_edge_of_a_tile_has_no_say_where_another_sees_more():
    """A network that is wrong in the two outermost pixels of every tile."""

    def answer(image):
        scores = np.concatenate([np.ones_like(image), np.zeros_like(image)], -1)
        for edge in (scores[:2], scores[-2:], scores[:, :2], scores[:, -2:]):
            edge[...] = [0, 100]
        return scores

    found = predict_scene(Runner(answer), np.zeros((80, 80, 1)), task=Segmentation(2, (TILE, TILE)))
    assert not found[2:-2, 2:-2].any() and found[0].all()


def test_a_coarser_map_and_one_sigmoid_do_as_well():
    runner = Runner(lambda image: image[::4, ::4])
    scene = np.kron(np.random.default_rng(0).random((20, 20)) > 0.5, np.ones((4, 4)))[..., None].astype("float32")
    found = predict_scene(runner, scene, task=Segmentation(2, (8, 8), threshold=0.5), overlap=0.25)
    assert np.array_equal(found, scene[..., 0])


def test_tiles_are_prepared_one_by_one(tmp_path):
    runner = Runner(lambda image: np.concatenate([np.full_like(image, 0.5), image], -1))
    scene = np.memmap(tmp_path / "scene", np.uint16, "w+", shape=(48, 40, 3))
    scene[:] = np.random.default_rng(0).integers(0, 2, (48, 40, 1)) * 4000
    found = predict_scene(runner, scene, task=Segmentation(2, (TILE, TILE)), prepare=lambda x: x[..., :1] / 4000)
    assert np.array_equal(found, scene[..., 0] // 4000)


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("overlap", [0.3, 0.6])
def test_squares_across_edges_are_found_once_and_whole(overlap):
    boxes = [(2, 2, 10, 11), (28, 28, 36, 36), (20, 50, 28, 57), (60, 0, 67, 6), (70, 71, 80, 80), (44, 20, 51, 28)]
    found = predict_scene(Runner(squares), scene_of(boxes, 80, 80), task=Detection(1), overlap=overlap)
    assert found.shape == (len(boxes), 6)
    assert np.array_equal(np.sort(found[:, 2:].round(3), axis=0), np.sort(np.array(boxes, float), axis=0))
    assert (np.diff(found[:, 1]) <= 0).all()


def test_an_object_larger_than_the_overlap_is_not_lost():
    found = predict_scene(Runner(squares), scene_of([(5, 5, 9, 60)], 32, 64), task=Detection(1), overlap=0.1)
    assert len(found) >= 2 and found[:, 3].min() == pytest.approx(5) and found[:, 5].max() == pytest.approx(60)


def test_classes_are_merged_by_themselves_and_empty_scenes_are_empty():
    def two(image):
        one = squares(image)
        return np.concatenate([one[..., :1], one[..., :1] * 0.5, one[..., 1:]], -1)

    scene = scene_of([(28, 28, 36, 36)], 64, 64)
    assert sorted(predict_scene(Runner(two), scene, task=Detection(2), overlap=0.4)[:, 0]) == [0, 1]
    assert predict_scene(Runner(squares), 0 * scene, task=Detection(1)).shape == (0, 6)


def test_boxes_in_what_a_small_scene_is_continued_by_are_dropped():
    scene = scene_of([(3, 4, 9, 10)], 16, 20)
    scene[:, -1] = 1  # continued to the right: an object whose centre is outside
    found = predict_scene(Runner(squares), scene, task=Detection(1))
    assert found[:, 2:].round(3).tolist() == [[3, 4, 9, 10]]


# ---------------------------------------------------------------- refused


def test_what_cannot_be_cut_in_tiles_is_refused():
    runner, scene = Runner(squares), np.zeros((64, 64, 1))
    task: Task = Detection(1)
    with pytest.raises(InputError, match="whose answers have a place"):
        predict_scene(runner, scene, task=Classification(3))
    with pytest.raises(InputError, match="overlap=1"):
        predict_scene(runner, scene, task=task, overlap=1)
    with pytest.raises(InputError, match="3 bands, the network 1"):
        predict_scene(runner, np.zeros((64, 64, 3)), task=task)
    with pytest.raises(InputError, match="shape"):
        predict_scene(runner, np.zeros((64, 64)), task=task)
    with pytest.raises(InputError, match="no map"):
        predict_scene(Runner(lambda image: np.zeros(3)), scene, task=task)
    with pytest.raises(InputError, match="10x10 places"):
        predict_scene(Runner(lambda image: np.zeros((10, 10, 2))), scene, task=Segmentation(2, (10, 10)))
    with pytest.raises(InputError, match="finite"):
        predict_scene(Runner(lambda image: np.full((8, 8, 5), np.nan)), scene, task=task)


def test_the_tool_reads_what_the_file_says_and_measures(tool, tmp_path):
    task, scene = Segmentation(2, (16, 16)), smooth_scene(40, 50).astype("uint8")
    about = note(("dark", "bright"), Preprocess(mean=(20.0,), scale=1.2), task=task.config())
    file = export(bright(16), "tflite_float32", path=tmp_path / "m.tflite", metadata=about)
    truth = predict_scene(file, (scene - np.float32(20)) * np.float32(1.2), task=task)
    assert 0.2 < truth.mean() < 0.8
    Image.fromarray(scene[..., 0]).save(tmp_path / "scene.png")
    Image.fromarray(truth).save(tmp_path / "truth.png")
    flags = [f"--model={file.path}", f"--scene={tmp_path / 'scene.png'}", f"--output={tmp_path / 'out' / 'a'}"]
    done = tool("predict", *flags, f"--truth={tmp_path / 'truth.png'}")
    assert done.returncode == 0 and "mean IoU 1.0000" in done.stdout, done.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a_classes.png")), truth)
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).shape == (40, 50, 3)
    Image.fromarray(truth[:20]).save(tmp_path / "truth.png")
    done = tool("predict", *flags, f"--truth={tmp_path / 'truth.png'}")
    assert done.returncode == 1 and "20x50 pixels, the scene 40x50" in done.stderr
    plain = export(bright(16), "tflite_float32", path=tmp_path / "plain.tflite")
    done = tool("predict", f"--model={plain.path}", *flags[1:])
    assert done.returncode == 1 and "does not say that it is for masks or boxes" in done.stderr


def test_a_detector_of_three_outputs_is_run_as_one_of_one(tmp_path):
    keras.utils.set_random_seed(0)
    image, ends = keras.Input((32, 32, 1)), {"size": 2, "heat": 1, "reg": 2}
    x = layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(image)
    parts = [layers.Conv2D(n, 1, activation="sigmoid", name=name)(x) for name, n in ends.items()]
    joined = layers.Concatenate()([parts[1], parts[0], parts[2]])
    one, three = (
        export(keras.Model(image, out), "tflite_float32", path=tmp_path / f"{name}.tflite")
        for name, out in (("one", joined), ("three", parts))
    )
    scene = np.random.default_rng(0).normal(size=(50, 40, 1)).astype("float32")
    expected = predict_scene(one, scene, task=Detection(1, least=0.1))
    found = predict_scene(three, scene, task=Detection(1, least=0.1, parts=(1, 0, 2)))
    assert len(found) and np.allclose(found, expected, atol=1e-4)
    with pytest.raises(InputError, match="has 3 outputs"):
        predict_scene(three, scene, task=Detection(1))
