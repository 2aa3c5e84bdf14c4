"""Detection: COCO, Pascal VOC and YOLO labels come to the same boxes; what is wrong with one is told by its file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import orbit_kd as okd
from orbit_kd.datasets import geometry
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError

SIZE = (40, 50)  # height, width
NAMES = ("boat", "car")
# Of each image: class, left, top, right, bottom in pixels.
BOXES = {
    "a": [(0, 5, 10, 20, 30), (1, 30, 0, 50, 8)],
    "b": [(1, 0, 0, 50, 40)],
    "c": [],
    "d": [(0, 10, 10, 12, 13)],
    "e": [(0, 1, 1, 9, 9), (0, 20, 20, 30, 30), (1, 40, 30, 50, 40)],
}


def pictures(folder: Path, boxes=BOXES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(boxes):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def coco(folder: Path, boxes=BOXES, *, train: str = "train.json", images: str = "train") -> Path:
    pictures(folder / images, boxes)
    told = {
        "images": [{"id": 10 + i, "file_name": f"{n}.png", "height": 40, "width": 50} for i, n in enumerate(boxes)],
        "categories": [{"id": 7, "name": "boat"}, {"id": 9, "name": "car"}],
        "annotations": [
            {"id": i, "image_id": 10 + i, "category_id": 7 + 2 * c, "bbox": [x, y, r - x, b - y], "iscrowd": 0}
            for i, found in enumerate(boxes.values())
            for c, x, y, r, b in found
        ],
    }
    (folder / train).parent.mkdir(exist_ok=True)
    (folder / train).write_text(json.dumps(told))
    return folder


def voc(folder: Path, boxes=BOXES, *, images: str = "train", labels: str = "train") -> Path:
    pictures(folder / images, boxes)
    (folder / labels).mkdir(parents=True, exist_ok=True)
    for name, found in boxes.items():
        objects = "".join(
            f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{r}</xmax><ymax>{b}</ymax>"
            "</bndbox></object>"
            for c, x, y, r, b in found
        )
        size = "<size><width>50</width><height>40</height><depth>3</depth></size>"
        (folder / labels / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return folder


def yolo(folder: Path, boxes=BOXES, *, images: str = "train/images", labels: str = "train/labels") -> Path:
    pictures(folder / images, boxes)
    (folder / labels).mkdir(parents=True, exist_ok=True)
    for name, found in boxes.items():
        lines = [f"{c} {(x + r) / 100} {(y + b) / 80} {(r - x) / 50} {(b - y) / 40}" for c, x, y, r, b in found]
        (folder / labels / f"{name}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("boat\ncar\n")
    return folder


LAYOUTS = {
    "coco": coco,
    "coco_annotations": lambda f: coco(f, train="annotations/instances_train2017.json", images="train2017"),
    "coco_images": lambda f: coco(f, train="annotations/train.json", images="images/train"),
    "coco_one_file": lambda f: coco(f, train="annotations/all.json", images="images"),
    "roboflow": lambda f: coco(f, train="train/_annotations.coco.json"),
    "voc": voc,
    "voc_folders": lambda f: voc(f, images="train/images", labels="train/annotations"),
    "voc_root": lambda f: voc(f, images="JPEGImages", labels="Annotations"),
    "yolo": yolo,
    "yolo_outside": lambda f: yolo(f, images="images/train", labels="labels/train"),
    "yolo_root": lambda f: yolo(f, images="images", labels="labels"),
}


def arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def everything(data: okd.Data) -> dict[bytes, np.ndarray]:
    """Image -> its boxes, of all splits."""
    parts = [arrays(getattr(data, split)) for split in ("train", "val", "test")]
    return {image.tobytes(): label for x, y in parts for image, label in zip(x, y, strict=True)}


def refuses(folder, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        okd.load(folder, **options)
    for words in says:
        assert words in str(e.value), str(e.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_boxes(layout, tmp_path, caplog):
    caplog.set_level(logging.INFO, "orbit_kd")
    data = okd.load(LAYOUTS[layout](tmp_path))
    assert (data.task, data.class_names, data.shape) == ("detection", NAMES, (*SIZE, 3))
    assert data.train.element_spec[1] == tf.TensorSpec((None, 3, 5), tf.float32)
    assert sum(data.counts.values()) == 5
    assert "boxes (task=auto)" in caplog.text
    found = everything(data)
    for i, boxes in enumerate(BOXES.values()):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8).astype(np.float32)
        want = np.zeros((3, 5))
        want[:, 0] = -1
        want[: len(boxes)] = [(c, y / 40, x / 50, b / 40, r / 50) for c, x, y, r, b in boxes] or want[:0]
        np.testing.assert_allclose(found[pixels.tobytes()], want, atol=1e-6)


def test_splits_of_their_own_are_used(tmp_path):
    coco(tmp_path)
    few = {"a": BOXES["a"]}
    for split in ("val", "test"):
        coco(tmp_path, few, train=f"{split}.json", images=split)
    assert okd.load(tmp_path).counts == {"train": 5, "val": 1, "test": 1}


def test_voc_lists_are_followed(tmp_path):
    voc(tmp_path, images="JPEGImages", labels="Annotations")
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    for split, names in (("train", "a\nb"), ("val", "d 1"), ("test", "e")):
        (lists / f"{split}.txt").write_text(names)
    assert okd.load(tmp_path).counts == {"train": 2, "val": 1, "test": 1}


def test_crowds_are_left_out_and_counted(tmp_path, caplog):
    file = coco(tmp_path) / "train.json"
    told = json.loads(file.read_text())
    told["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(told))
    data = okd.load(tmp_path)
    assert "1 crowd boxes" in caplog.text
    assert sum((y[:, 0] >= 0).sum() for y in everything(data).values()) == 6


def test_yolo_names_of_data_yaml_and_images_without_a_file(tmp_path, caplog):
    (yolo(tmp_path) / "classes.txt").unlink()
    assert okd.load(tmp_path).class_names == ("0", "1")
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: ['boat', \"car\"]\n")
    assert okd.load(tmp_path).class_names == NAMES
    (tmp_path / "data.yaml").write_text("names:\n  0: boat\n  1: car\nnc: 2\n")
    assert okd.load(tmp_path).class_names == NAMES
    (tmp_path / "train/labels/c.txt").unlink()
    okd.load(tmp_path)
    assert "1 images have no label file" in caplog.text


def test_a_category_without_boxes_is_told(tmp_path, caplog):
    coco(tmp_path, {name: [box for box in boxes if box[0] == 0] for name, boxes in BOXES.items()})
    okd.load(tmp_path)
    assert "train has no box of class car" in caplog.text


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((0, 5, 10, 60, 30), "outside its image"),
        ((0, 5, -3, 20, 30), "outside its image"),
        ((0, 5, 10, 5, 30), "no area"),
        ((0, 20, 30, 5, 10), "no area"),
    ],
)
@pytest.mark.parametrize("write", [coco, voc, yolo])
def test_a_bad_box_is_named_with_its_file(write, box, says, tmp_path):
    refuses(write(tmp_path, {**BOXES, "d": [(0, 1, 1, 3, 3), box]}), "Box 2 of", "d.png", says)


def test_a_box_is_cut_where_rounding_put_it_outside(tmp_path):
    found = everything(okd.load(coco(tmp_path, {**BOXES, "b": [(1, -0.4, 0, 50.5, 40)]})))
    assert any(np.allclose(y[0], [1, 0, 0, 1, 1]) for y in found.values())


def test_a_picture_of_another_size_than_its_label_says(tmp_path):
    for write in (coco, voc):
        folder = write(tmp_path / write.__name__)
        Image.new("RGB", (40, 50)).save(folder / "train/b.png")
        refuses(folder, "b.png is 40x50, and it is 50x40", preprocess=Preprocess(resize=32))


def test_a_picture_that_is_to_be_turned_is_refused(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 3
    yolo(tmp_path)
    Image.open(tmp_path / "train/images/b.png").save(tmp_path / "train/images/b.png", exif=turn)
    refuses(tmp_path, "b.png is to be turned (3)", "exif_transpose")


def test_files_that_lack_their_counterpart(tmp_path):
    folder = coco(tmp_path / "coco")
    (folder / "train/b.png").unlink()
    refuses(folder, "1 images of", "b.png")
    folder = voc(tmp_path / "voc")
    (folder / "train/b.png").unlink()
    refuses(folder, "1 labels without an image", "b.xml")
    folder = voc(tmp_path / "voc2")
    (folder / "train/b.xml").unlink()
    refuses(folder, "1 images without labels", "b.png")
    folder = yolo(tmp_path / "yolo")
    (folder / "train/images/b.png").unlink()
    refuses(folder, "1 labels without an image", "b.txt")


def test_labels_that_cannot_be_read(tmp_path):
    folder = coco(tmp_path / "coco")
    (folder / "train.json").write_text("{")
    refuses(folder, "Cannot read", "train.json")
    (folder / "train.json").write_text("{}")
    refuses(folder, "no COCO file", "train.json")
    folder = voc(tmp_path / "voc")
    (folder / "train/b.xml").write_text("<annotation><object></object></annotation>")
    refuses(folder, "b.xml")
    folder = yolo(tmp_path / "yolo")
    (folder / "train/labels/b.txt").write_text("0 120 30 20 10\n")
    refuses(folder, "Line 1 of", "b.txt", "0 120 30 20 10")
    (folder / "train/labels/b.txt").write_text("5 0.5 0.5 0.1 0.1\n")
    refuses(folder, "class 5", "2 classes")


def test_test_categories_that_training_lacks(tmp_path):
    coco(tmp_path)
    file = coco(tmp_path, train="test.json", images="test") / "test.json"
    file.write_text(file.read_text().replace('"car"', '"plane"'))
    refuses(tmp_path, "test.json", "plane")


def test_a_crop_drops_boxes_and_says_so(tmp_path, caplog):
    data = okd.load(coco(tmp_path), preprocess=Preprocess(crop=20))
    assert "the crop drops" in caplog.text
    kept = sum((y[:, 0] >= 0).sum() for y in everything(data).values())
    assert f"drops {7 - kept} of 7 boxes" in caplog.text
    for y in everything(data).values():
        real = y[y[:, 0] >= 0]
        assert (real[:, 1:] >= 0).all() and (real[:, 1:] <= 1).all() and (real[:, 3:] > real[:, 1:3]).all()
        assert (y[len(real) :] == [-1, 0, 0, 0, 0]).all()  # padding comes last


def test_a_quarter_of_a_box_is_enough():
    def after(right: float) -> np.ndarray:
        label = np.array([[[0, 0.0, 0.5, 1.0, right]]], np.float32)
        return geometry.boxes_after(Preprocess(crop=(16, 8)), label, np.array([16, 16], np.int32)).numpy()[0, 0]

    assert after(1.0).tolist() == [0, 0, 0.5, 1, 1]  # half of it is inside
    label = np.array([[[3, 0, 0.0, 1, 0.3125], [3, 0, 0.0, 1, 0.375]]], np.float32)  # 1/5 and 1/3 are inside
    found = geometry.boxes_after(Preprocess(crop=(16, 8)), label, np.array([16, 16], np.int32)).numpy()[0]
    np.testing.assert_allclose(found, [[3, 0, 0, 1, 0.25], [-1, 0, 0, 0, 0]])


def test_views_and_epochs_are_functions_of_the_seed(tmp_path):
    data = okd.load(coco(tmp_path), batch_size=2)
    augment = Augment(shift=6, flip="hv")
    steps = data.steps()
    a, b = (arrays(data.epochs(seed=1, augment=augment, start=k).take(steps))[1] for k in (1, 1))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(arrays(data.views(0, seed=1))[1], arrays(data.train)[1])
    assert not np.array_equal(arrays(data.views(1, seed=1, augment=augment))[1], arrays(data.train)[1])


def test_the_fingerprint_knows_the_boxes(tmp_path):
    before = okd.load(voc(tmp_path)).key
    assert okd.load(tmp_path).key == before
    file = tmp_path / "train/a.xml"
    file.write_text(file.read_text().replace("<xmin>5<", "<xmin>6<"))
    assert okd.load(tmp_path).key != before


def test_data_of_ones_own():
    y = np.full((4, 2, 5), (-1, 0, 0, 0, 0), np.float32)
    y[:, 0] = [1, 0.1, 0.2, 0.5, 0.6]
    x = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)

    def own(y):
        return okd.Data((x, y), (x + 1, y), (x + 2, y), task="detection")

    own(y).check_classes()
    assert own(y).contents["val"].classes == {1: 4}
    for place, value, says in (
        ((3, 0, 4), 1.2, "outside"),
        ((3, 0, 4), 0.1, "no area"),
        ((3, 0, 0), 0.5, "whole number"),
    ):
        bad = y.copy()
        bad[place] = value
        with pytest.raises(InputError, match=rf"Box 1 of example 4 of the train data .*{says}"):
            own(bad).check_classes()
    with pytest.raises(InputError, match="detection"):
        own(y[..., :4])


def test_boats_of_real_data(real_data):
    if not (real_data / "boats").is_dir():
        pytest.skip("no boats/ in ORBIT_KD_DATA: real-data test not run")
    data = okd.load(real_data / "boats", preprocess=Preprocess(resize=128, aspect="pad"))
    assert data.counts == {"train": 406, "val": 58, "test": 115}
    assert (data.task, data.class_names, data.shape) == ("detection", ("boat",), (128, 128, 3))
    for split, boxes in (("train", 1161), ("val", 317), ("test", 198)):
        y = arrays(getattr(data, split))[1]
        assert (y[..., 0] == 0).sum() == boxes
        assert y.dtype == np.float32 and y.shape[2] == 5
