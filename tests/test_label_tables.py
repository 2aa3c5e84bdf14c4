"""Labels in a table (multi-label, binary, regression, classes), and TFDS sets of other kinds than classes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import orbit_kd as okd
from orbit_kd.datasets.augment import Augment
from orbit_kd.errors import InputError

ROWS = 12


def noise(seed: int, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def write(folder: Path, header: str, cells, *, images: str = "images", between: str = ",") -> Path:
    """A table with a row an image; `cells` gives the labels of row i."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    lines = [header]
    for i in range(ROWS):
        Image.fromarray(noise(i, 6, 7, 3)).save(folder / images / f"{i}.png")
        lines.append(between.join([f"{i}.png", *map(str, cells(i))]))
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def matches(data: okd.Data, cells) -> None:
    """Each image of each split has the labels of its row."""
    seen = set()
    for split in ("train", "val", "test"):
        for image, label in zip(*arrays(getattr(data, split)), strict=True):
            i = next(i for i in range(ROWS) if np.array_equal(noise(i, 6, 7, 3), image))
            np.testing.assert_allclose(label, np.float32(cells(i)))
            seen.add(i)
    assert len(seen) == ROWS


def refuses(folder, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        okd.load(folder, **options)
    for words in says:
        assert words in str(e.value), str(e.value)


def test_several_columns_of_0_and_1_are_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO, "orbit_kd")
    cells = lambda i: (i % 2, int(i % 3 == 0), 1 - i % 2)  # noqa: E731
    data = okd.load(write(tmp_path, "file,cloud,water,ship", cells))
    assert (data.task, data.class_names, data.shape) == ("multi_label", ("cloud", "water", "ship"), (6, 7, 3))
    assert data.train.element_spec[1] == tf.TensorSpec((None, 3), tf.float32)
    assert "0 and 1 in 3 columns: taken as multi_label" in caplog.text
    matches(data, cells)
    assert okd.load(tmp_path, task="regression").task == "regression"
    assert okd.load(tmp_path, task="regression").key != data.key
    refuses(tmp_path, "3 columns", "binary", task="binary")
    refuses(tmp_path, "no labels for segmentation", task="segmentation")


def test_one_column_of_0_and_1_is_binary(tmp_path):
    data = okd.load(write(tmp_path, "image,cloud", lambda i: [int(i < 4)]))
    assert (data.task, data.class_names) == ("binary", ("not cloud", "cloud"))
    assert data.train.element_spec[1] == tf.TensorSpec((None, 1), tf.float32)
    matches(data, lambda i: [int(i < 4)])
    for split in ("val", "test"):  # each class gives its share
        assert set(arrays(getattr(data, split))[1][:, 0]) == {0, 1}
    assert okd.load(tmp_path, task="multi_label").class_names == ("cloud",)


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_other_numbers_are_regression(tmp_path, between):
    header = between.join(["filename", "height (m)", "share"])
    cells = lambda i: (i * 10.5, -i / 7)  # noqa: E731
    data = okd.load(write(tmp_path, header, cells, between=between))
    assert (data.task, data.class_names) == ("regression", ("height (m)", "share"))
    matches(data, cells)
    _, y = arrays(data.views(1, seed=0, augment=Augment(flip="h", gain=0.1)))
    np.testing.assert_array_equal(y, arrays(data.train)[1])
    refuses(tmp_path, "the task is multi_label", "0 or 1", task="multi_label")


def test_a_column_of_names_is_classes_where_asked(tmp_path):
    names = ("ship", "car", "tree")
    write(tmp_path, "file,kind", lambda i: [names[i % 3]])
    refuses(tmp_path, "Line 2", "'ship'", 'task="classification"')
    data = okd.load(tmp_path, task="classification")
    assert (data.task, data.class_names) == ("classification", ("car", "ship", "tree"))
    matches(data, lambda i: sorted(names).index(names[i % 3]))


@pytest.mark.parametrize("images", [".", "images", "train", "pictures"])
def test_images_may_lie_in_several_places(tmp_path, images):
    name = lambda text: text if images != "pictures" else f"pictures/{text}"  # noqa: E731
    write(
        tmp_path,
        "file,split,a,b",
        lambda i: (("train", "val", "test")[i % 3] if images != "train" else "train", i, 1.5),
        images=images,
    )
    table = tmp_path / "labels.csv"
    first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([first, *map(name, rest)]))
    data = okd.load(tmp_path)
    assert sum(data.counts.values()) == ROWS
    if images != "train":
        assert data.counts == {"train": 4, "val": 4, "test": 4}


def test_folders_of_splits_in_the_file_names_are_followed(tmp_path):
    lines = ["file,a"]
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        (tmp_path / split).mkdir()
        for i in range(count):
            Image.fromarray(noise(i, 6, 7, 3)).save(tmp_path / split / f"{i}.png")
            lines.append(f"{split}/{i}.png,{i / 2}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert okd.load(tmp_path).counts == {"train": 5, "val": 2, "test": 3}


def test_class_folders_come_before_a_table_and_it_is_told(tmp_path, caplog):
    write(tmp_path, "file,a", lambda i: [i], images="train/boat")
    write(tmp_path, "file,a", lambda i: [i], images="train/car")
    assert okd.load(tmp_path).task == "classification"
    assert "class folders; there are a table too" in caplog.text


def test_two_class_folders_are_binary_where_asked(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.fromarray(noise(i, 6, 7, 3)).save(tmp_path / label / f"{i}.png")
    data = okd.load(tmp_path, task="binary")
    assert (data.task, data.class_names) == ("binary", ("a", "b"))
    assert data.train.element_spec[1] == tf.TensorSpec((None, 1), tf.float32)
    assert okd.load(tmp_path).key != data.key
    (tmp_path / "c").mkdir()
    Image.fromarray(noise(0, 6, 7, 3)).save(tmp_path / "c/0.png")
    Image.fromarray(noise(0, 6, 7, 3)).save(tmp_path / "c/1.png")
    refuses(tmp_path, "3 class folders", task="binary")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace("3.png", "x.png"), ("1 files", "'x.png' (line 5)")),
        (lambda t: t.replace("\n3.png,1.5,0", ""), ("1 images have no row", "3.png")),
        (lambda t: t.replace("3.png,1.5", "3.png,many"), ("Line 5", "'many'", "column a")),
        (lambda t: t.replace("3.png,1.5", "3.png,"), ("Line 5", "''", "column a")),
        (lambda t: t.replace("3.png,1.5", "3.png,nan"), ("Line 5", "'nan'")),
        (lambda t: t.replace("3.png,1.5", "3.png,1,5"), ("Line 5", "4 cells")),
        (lambda t: t.replace("3.png", "4.png"), ("two rows", "4.png")),
        (lambda t: t.replace("file,a,b", "0.png,1,2"), ("first line", "0.png")),
        (lambda t: t.replace("file,a,b", "file,a,a"), ("first line", "each once")),
        (lambda t: t.replace("file,a,b", "file,a,split"), ("Line 2", "column split")),
        (lambda t: t.splitlines()[0], ("no rows",)),
        (lambda t: "\n".join(line.split(",")[0] for line in t.splitlines()), ("no column of labels",)),
    ],
)
def test_a_bad_table_is_told_by_its_line(change, says, tmp_path):
    table = write(tmp_path, "file,a,b", lambda i: (i / 2, i % 3)) / "labels.csv"
    table.write_text(change(table.read_text()))
    refuses(tmp_path, "labels.csv", *says)


def test_columns_that_say_nothing(tmp_path, caplog):
    okd.load(write(tmp_path, "file,a,b", lambda i: (i / 2, 7)))
    assert "columns b of labels.csv hold one value only" in caplog.text
    refuses(write(tmp_path, "file,a,b", lambda i: (0, 1)), "the same labels in every row")


def test_a_label_without_examples_is_told(tmp_path, caplog):
    okd.load(
        write(
            tmp_path, "file,split,a,b", lambda i: ("train" if i < 8 else "val" if i < 10 else "test", i % 2, int(i < 4))
        )
    )
    assert "test has no example of class b" in caplog.text


def test_data_of_ones_own():
    x = np.zeros((4, 3, 3, 1), np.float32)
    y = np.array([[0, 1], [1, 1], [0, 0], [0, 1]], np.float32)
    data = okd.Data((x, y), (x, y), (x, y), task="multi_label")
    data.check_classes()
    assert data.contents["train"].classes == {0: 1, 1: 3}
    with pytest.raises(InputError, match="example 2 of the train data is neither 0 nor 1"):
        okd.Data(*[(x, y + np.eye(4)[:, [1]])] * 3, task="multi_label").check_classes()
    with pytest.raises(InputError, match="NaN"):
        okd.Data(*[(x, y * np.nan)] * 3, task="regression").check_classes()
    with pytest.raises(InputError, match="regression"):
        okd.Data(*[(x, y[:, 0])] * 3, task="regression")
    assert okd.Data(*[(x, y)] * 3, task="regression").contents["train"].classes is None
    assert okd.Data(*[(x, y[:, 0])] * 3, task="binary").contents["val"].classes == {0: 3, 1: 1}
    with pytest.raises(InputError, match="task='boxes'"):
        okd.Data(*[(x, y)] * 3, task="boxes")


# ---- TFDS


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Images with a class, labels, a mask and boxes."""

    VERSION = tfds.core.Version("1.0.0")
    SUPERVISED = True

    def _info(self):
        names = tfds.features.ClassLabel(names=["boat", "car"])
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 10, 3)),
                    "label": names,
                    "labels": tfds.features.Sequence(names),
                    "segmentation_mask": tfds.features.Image(shape=(8, 10, 1), encoding_format="png"),
                    "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": names}),
                }
            ),
            supervised_keys=("image", "label") if self.SUPERVISED else None,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 8), "test": self._generate_examples(8, 11)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield (
                i,
                {
                    "image": noise(i, 8, 10, 3),
                    "label": i % 2,
                    "labels": [0, 1][: i % 3],
                    "segmentation_mask": noise(i, 8, 10, 1, top=3),
                    "objects": [
                        {"bbox": tfds.features.BBox(0.25, 0.1, 0.5, 0.1 + 0.1 * (k + 1)), "label": k}
                        for k in range(i % 3)
                    ],
                },
            )


class Unsupervised(Scenes):
    SUPERVISED = False


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    names = okd.datasets.DATASETS
    with (
        names.temporary("scenes", lambda _: Scenes(data_dir=folder)),
        names.temporary("unsupervised", lambda _: Unsupervised(data_dir=folder)),
    ):
        yield


@pytest.mark.filterwarnings("ignore")
def test_tfds_sets_of_each_kind(registered, caplog):
    caplog.set_level(logging.INFO, "orbit_kd")
    assert okd.load("scenes").task == "classification"
    kinds = {"segmentation": ((8, 10), ("0", "1", "2")), "detection": ((2, 5), ("boat", "car")),
             "multi_label": ((2,), ("boat", "car"))}  # fmt: skip
    keys = {okd.load("scenes").key}
    for task, (shape, names) in kinds.items():
        data = okd.load("scenes", task=task)
        assert (data.task, data.class_names, data.train.element_spec[1].shape[1:]) == (task, names, shape)
        keys.add(data.key)
        for image, y in zip(*arrays(data.test), strict=True):
            i = next(i for i in range(8, 11) if np.array_equal(noise(i, 8, 10, 3), image))
            if task == "segmentation":
                np.testing.assert_array_equal(y, noise(i, 8, 10, 1, top=3)[..., 0])
            elif task == "multi_label":
                np.testing.assert_array_equal(y, [i % 3 > 0, i % 3 > 1])
            else:
                want = [[k, 0.25, 0.1, 0.5, 0.1 + 0.1 * (k + 1)] for k in range(i % 3)] + [[-1, 0, 0, 0, 0]] * (
                    2 - i % 3
                )
                np.testing.assert_allclose(y, want, atol=1e-6)
    assert len(keys) == 4
    caplog.clear()
    assert okd.load("unsupervised").task == "segmentation"
    assert "segmentation by its feature segmentation_mask" in caplog.text
    with pytest.raises(InputError, match="regression"):
        okd.load("scenes", task="regression")
