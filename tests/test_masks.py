"""Segmentation: folders of images and masks, the user's own, and masks that move with their images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import orbit_kd as okd
from orbit_kd.datasets import IGNORE, geometry, preprocessing
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import ASPECTS, LOADERS, Preprocess
from orbit_kd.errors import InputError

SIZE = (8, 10)


def noise(seed: int, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def write(folder: Path, *, count: int = 5, image: str = "image", mask: str = "mask", classes: int = 3) -> Path:
    """Images of noise and masks of noise, numbered."""
    for kind in (image, mask):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(noise(i, *SIZE, 3)).save(folder / image / f"{i}.png")
        Image.fromarray(noise(i, *SIZE, top=classes)).save(folder / mask / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "train", count=10)
    write(tmp_path / "test", count=4)
    return tmp_path


def arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def refuses(folder, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        okd.load(folder, **options)
    for words in says:
        assert words in str(e.value)


def test_images_come_with_their_masks(folder, caplog):
    caplog.set_level(logging.INFO, "orbit_kd")
    data = okd.load(folder)
    assert (data.task, data.class_names, data.shape) == ("segmentation", ("0", "1", "2"), (*SIZE, 3))
    assert data.counts == {"train": 9, "val": 1, "test": 4}
    assert "images and masks (task=auto)" in caplog.text
    assert data.train.element_spec[1] == tf.TensorSpec((None, *SIZE), tf.int32)
    x, y = arrays(data.train)
    for image, mask in zip(x, y, strict=True):
        seed = next(i for i in range(10) if np.array_equal(noise(i, *SIZE, 3), image))
        np.testing.assert_array_equal(noise(seed, *SIZE, top=3), mask)


@pytest.mark.parametrize(("image", "mask"), [("images", "masks"), ("Image", "Labels"), ("rgb", "label")])
def test_the_folders_may_have_other_names_and_lie_without_splits(tmp_path, image, mask):
    data = okd.load(write(tmp_path, count=10, image=image, mask=mask))
    assert data.task == "segmentation"
    assert data.counts == {"train": 7, "val": 1, "test": 2}


def test_a_missing_split_is_chosen_as_for_classes(tmp_path):
    write(tmp_path / "train", count=20)
    a, b = okd.load(tmp_path, seed=0), okd.load(tmp_path, seed=1)
    np.testing.assert_array_equal(arrays(a.test)[0], arrays(b.test)[0])
    assert arrays(a.val)[0].tobytes() != arrays(b.val)[0].tobytes()


def test_of_an_indexed_png_the_index_counts_and_not_the_colour(folder):
    for file in (folder / "train/mask").iterdir():
        indexed = Image.fromarray(np.asarray(Image.open(file)), "P")
        indexed.putpalette([7, 7, 7, 200, 0, 0, 0, 0, 200])
        indexed.save(file)
    assert set(np.unique(arrays(okd.load(folder).train)[1])) == {0, 1, 2}


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_masks_may_be_arrays_and_tiff(folder, suffix, dtype):
    import tifffile

    want = arrays(okd.load(folder).train)[1]
    for file in (folder / "train/mask").iterdir():
        mask = np.asarray(Image.open(file)).astype(dtype)
        file.unlink()
        np.save(file.with_suffix(".npy"), mask) if suffix == ".npy" else tifffile.imwrite(
            file.with_suffix(suffix), mask
        )
    np.testing.assert_array_equal(arrays(okd.load(folder).train)[1], want)


def test_one_bit_masks_are_classes_0_and_1(folder):
    for part in ("train", "test"):
        for i, file in enumerate(sorted((folder / part / "mask").iterdir())):
            Image.fromarray(noise(i, *SIZE, top=2).astype(bool)).save(file)
    data = okd.load(folder)
    assert data.class_names == ("0", "1")
    assert set(np.unique(arrays(data.test)[1])) == {0, 1}


def test_classes_txt_names_the_classes_and_an_empty_one_is_told(folder, caplog):
    (folder / "classes.txt").write_text("land\nwater\ncloud\nship\n")
    assert okd.load(folder).class_names == ("land", "water", "cloud", "ship")
    assert "train has no mask with class ship" in caplog.text


def test_ignored_pixels_are_no_class(folder, caplog):
    file = folder / "train/mask/0.png"
    mask = np.array(Image.open(file))
    mask[0] = IGNORE
    Image.fromarray(mask).save(file)
    data = okd.load(folder)
    assert data.class_names == ("0", "1", "2")
    assert (arrays(data.train)[1] == IGNORE).sum() in (0, SIZE[1])  # unless the file went to val


def test_the_fingerprint_knows_the_masks_and_not_the_task_of_class_folders(folder):
    before = okd.load(folder).key
    assert okd.load(folder).key == before
    file = folder / "train/mask/0.png"
    Image.fromarray((np.asarray(Image.open(file)) + 1) % 3).save(file)
    assert okd.load(folder).key != before


def test_a_class_called_mask_is_a_class(tmp_path):
    for part, count in (("mask", 10), ("no_mask", 10)):
        (tmp_path / "train" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(i, 8, 8, 3)).save(tmp_path / "train" / part / f"{i}.png")
    data = okd.load(tmp_path)
    assert (data.task, data.class_names) == ("classification", ("mask", "no_mask"))


def test_a_mask_of_another_size_is_named(folder):
    Image.fromarray(noise(0, 8, 9, top=3)).save(folder / "train/mask/3.png")
    refuses(folder, "mask/3.png is 8x9", "image/3.png is 8x10")


def test_labels_beyond_the_names_are_named(folder):
    (folder / "classes.txt").write_text("land\nwater\n")
    refuses(folder, "class 2", "names 2", ".png")


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.full(SIZE, 300, np.int32), "300"),
        (np.full(SIZE, -1, np.int32), "-1"),
        (np.full(SIZE, 0.5, np.float32), "no whole numbers"),
        (np.full(SIZE, np.nan, np.float32), "no whole numbers"),
        (np.zeros((*SIZE, 3), np.uint8), "shape (8, 10, 3)"),
    ],
)
def test_values_that_are_no_class_numbers_are_refused(folder, mask, says):
    (folder / "train/mask/3.png").unlink()
    np.save(folder / "train/mask/3.npy", mask)
    refuses(folder, "mask/3.npy", says)


def test_colours_are_no_class_numbers(folder):
    Image.fromarray(noise(0, *SIZE, 3)).save(folder / "train/mask/3.png")
    refuses(folder, "mask/3.png has colours", "save class numbers")


def test_jpeg_masks_are_refused(folder):
    (folder / "train/mask/3.png").unlink()
    Image.fromarray(noise(0, *SIZE, top=3)).save(folder / "train/mask/3.jpg")
    refuses(folder, "mask/3.jpg", "blends")


def test_masks_of_0_and_255_would_be_ignored_where_they_matter(folder):
    for part in ("train", "test"):
        for file in (folder / part / "mask").iterdir():
            Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 255).save(file)
    refuses(folder, "0 and 255 only", "mask > 127")


def test_an_image_without_its_mask_and_a_mask_without_its_image(folder):
    (folder / "train/mask/3.png").unlink()
    refuses(folder, "1 image without its mask", "image/3.png")
    (folder / "train/image/3.png").unlink()
    (folder / "train/image/4.png").unlink()
    refuses(folder, "1 mask without its image", "mask/4.png")


def test_a_damaged_mask_is_named(folder):
    (folder / "train/mask/3.png").write_bytes(b"\x89PNG")
    refuses(folder, "Cannot read the mask", "mask/3.png")


def test_one_class_in_all_masks_is_refused(tmp_path):
    refuses(write(tmp_path, classes=1), "one class only")


def test_a_task_that_the_folder_has_no_labels_for(folder):
    refuses(folder, "no labels for detection", "COCO", task="detection")
    refuses(folder, "task='segment'", "segmentation", task="segment")


def test_the_check_of_a_preprocess_is_for_classes(folder):
    with pytest.raises(InputError, match="data of segmentation"):
        okd.datasets.renderings(folder)


def test_a_folder_of_no_layout_is_told_all_of_them(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    refuses(tmp_path, "train/<class>/*", "train/mask/*", "COCO", "VOC", "YOLO", "labels.csv")


# ---- geometry


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*size, 1), np.uint8)
    image[box[0] : box[2], box[1] : box[3]] = 1
    return image


@st.composite
def scenes(draw):
    height, width = draw(st.integers(12, 30)), draw(st.integers(12, 30))
    top, left = draw(st.integers(0, height - 3)), draw(st.integers(0, width - 3))
    box = top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    shift, turns = draw(st.integers(0, 3)), draw(st.booleans())
    frame = (height - 2 * shift, width - 2 * shift)
    frame = (min(frame),) * 2 if turns else frame
    augment = Augment(shift=shift, flip=draw(st.sampled_from(["", "h", "v", "hv"])), turns=turns)
    return (height, width), box, frame, augment, draw(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_image_mask_and_box_move_together(scene):
    size, box, frame, augment, seed = scene
    image, count = rectangle(box, size), 4
    batch, seeds = np.stack([image] * count), np.array([[seed, i] for i in range(count)], np.int64)
    preprocess = Preprocess(crop=frame)
    x = preprocessing.apply(preprocess, batch, augment=augment, seed=seeds).numpy()
    y = geometry.masks_after(preprocess, batch, augment=augment, seed=seeds).numpy()
    np.testing.assert_array_equal(x[..., 0], y)
    label = np.array([[[0, *(np.array(box) / np.array(size * 2))], [-1, 0, 0, 0, 0]]] * count, np.float32)
    found = geometry.boxes_after(preprocess, label, np.array(size, np.int32), augment=augment, seed=seeds).numpy()
    whole = (box[2] - box[0]) * (box[3] - box[1])
    for mask, boxes in zip(y, found, strict=True):
        assert boxes[1].tolist() == [-1, 0, 0, 0, 0]
        if mask.sum() * 4 < whole:  # less than a quarter is left
            assert boxes[0].tolist() == [-1, 0, 0, 0, 0]
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        want = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / np.array(frame * 2)
        np.testing.assert_allclose(boxes[0], [0, *want], atol=1e-5)


@pytest.mark.parametrize(
    ("loader", "aspect"),
    [(loader, aspect) for loader in LOADERS for aspect in ASPECTS if (loader, aspect) != ("load_img", "pad")],
)
@pytest.mark.parametrize("to", [(12, 20), (48, 30), (64, 64)])
def test_a_resize_keeps_image_mask_and_box_together(loader, aspect, to):
    size, box = (40, 60), (8, 12, 30, 48)
    image = rectangle(box, size)
    preprocess = Preprocess(resize=to, aspect=aspect, loader=loader, interpolation="bilinear")
    x = preprocessing.apply(preprocess, image * 100).numpy()[..., 0]
    y = geometry.masks_after(preprocess, image[None]).numpy()[0]
    assert y.shape == to
    inside = np.where(y == IGNORE, 0, y)
    assert np.abs(x / 100 - inside).mean() < 0.06
    assert (aspect == "pad") == (IGNORE in y) or to == (12, 20)
    label = np.array([[[1, *(np.array(box) / np.array(size * 2))]]], np.float32)
    found = geometry.boxes_after(preprocess, label, np.array(size, np.int32)).numpy()[0, 0]
    rows, columns = np.flatnonzero((inside == 1).any(1)), np.flatnonzero((inside == 1).any(0))
    want = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    assert np.abs(found[1:] * np.array(to * 2) - want).max() <= 1.0, (found, want)


def test_reflected_borders_are_reflected_in_the_mask_too():
    image = noise(0, 1, 12, 12, 1, top=4)
    augment, seeds = Augment(shift=6), np.array([[5, 7]], np.int64)
    x = preprocessing.apply(Preprocess(), image, augment=augment, seed=seeds).numpy()
    np.testing.assert_array_equal(x[..., 0], geometry.masks_after(Preprocess(), image, augment=augment, seed=seeds))


def test_gain_and_speckle_leave_the_mask_alone(folder):
    data = okd.load(folder)
    plain = arrays(data.train)
    x, y = arrays(data.views(1, seed=0, augment=Augment(gain=0.3, speckle=4)))
    np.testing.assert_array_equal(y, plain[1])
    assert np.abs(x - plain[0]).max() > 1


def test_epochs_of_images_of_several_sizes_are_repeated_to_the_bit(folder):
    for kind, shape in (("image", (13, 11, 3)), ("mask", (13, 11))):
        Image.fromarray(noise(1, *shape, top=3)).save(folder / f"train/{kind}/9.png")
    data = okd.load(folder, preprocess=Preprocess(resize=8), batch_size=4)
    augment = Augment(shift=2, flip="hv", gain=0.1)
    steps = data.steps()
    first = arrays(data.epochs(seed=3, augment=augment).skip(steps).take(steps))
    second = arrays(data.epochs(seed=3, augment=augment, start=1).take(steps))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[1].shape == (9, 8, 8)


def test_masks_that_do_not_fit_in_memory_give_the_same(folder, monkeypatch):
    kept = arrays(okd.load(folder).train)
    monkeypatch.setattr("orbit_kd.datasets.images.MEMORY_LIMIT", 100)
    monkeypatch.setattr("orbit_kd.datasets.MEMORY_LIMIT", 100)
    lazy = okd.load(folder)
    assert not lazy.examples.images.in_memory
    for a, b in zip(kept, arrays(lazy.train), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- the user's own


def own(y: np.ndarray, **options) -> okd.Data:
    x = noise(0, len(y), *SIZE, 3).astype(np.float32)
    return okd.Data((x, y), (x + 1, y), (x + 2, y), task="segmentation", **options)


def test_data_of_ones_own(caplog):
    y = noise(0, 6, *SIZE, top=3).astype(np.int32)
    y[0, 0] = IGNORE
    data = own(y, class_names=("a", "b", "c", "d"))
    data.check_classes()
    assert "train lacks class d" in caplog.text
    assert data.contents["train"].classes == {c: int((y == c).sum()) for c in range(3)}
    assert data.key == own(y).key != own((y + 1) % 3).key
    assert data.steps() == 1 and not data.contents["train"].varies


def test_labels_of_another_shape_are_refused_when_the_data_is_made():
    with pytest.raises(InputError, match=r"\(None, 8, 10, 1\).*segmentation"):
        own(np.zeros((6, *SIZE, 1), np.int32))
    with pytest.raises(InputError, match="float32"):
        own(np.zeros((6, *SIZE), np.float32))


def test_classes_beyond_the_names_are_refused():
    with pytest.raises(InputError, match="class 2, and 2 classes"):
        own(noise(0, 6, *SIZE, top=3).astype(np.int32), class_names=("a", "b")).check_classes()
    with pytest.raises(InputError, match="beyond 0 to 255"):
        own(np.full((6, *SIZE), 256, np.int32)).check_classes()


def test_several_inputs_and_outputs():
    x = {"image": noise(0, 6, *SIZE, 3).astype(np.float32), "angle": np.arange(6, dtype=np.float32)[:, None]}
    y = {"mask": noise(1, 6, *SIZE, top=2), "kind": np.arange(6) % 2}
    data = okd.Data((x, y), (x, y), tf.data.Dataset.from_tensor_slices((x, y)).batch(4))
    assert data.shape == {"image": (*SIZE, 3), "angle": (1,)}
    assert data.steps() == 1 and data.steps(4) == 2
    data.check_classes()
    changed = {**y, "kind": 1 - y["kind"]}
    assert data.key != okd.Data((x, y), (x, y), (x, changed)).key
    assert data.key == okd.Data((x, y), (x, y), (x, y)).key
    two = okd.Data(*[((x["image"], x["angle"]), y["kind"])] * 3)
    assert two.shape == ((*SIZE, 3), (1,))
    assert len(two.renderings(1, seed=0)) == 1
    with pytest.raises(InputError, match="other labels"):
        okd.Data((x, y), (x, y), (x, y["mask"]))
    with pytest.raises(InputError, match="several labels"):
        okd.Data(*[(x, y)] * 3, task="segmentation")


def test_water_of_real_data(real_data):
    if not (real_data / "water").is_dir():
        pytest.skip("no water/ in ORBIT_KD_DATA: real-data test not run")
    data = okd.load(real_data / "water", bands=("rgb", "nir_swir"))
    assert data.counts == {"train": 213, "val": 37, "test": 56}
    assert (data.task, data.shape, data.preprocess.bands) == ("segmentation", (128, 128, 6), ("rgb", "nir_swir"))
    for split, share in (("train", 0.259), ("val", 0.265), ("test", 0.261)):
        y = arrays(getattr(data, split))[1]
        assert set(np.unique(y)) == {0, 1}
        assert np.mean(y) == pytest.approx(share, abs=6e-4)
