"""Folders of images, splits, and the epochs of `Data`."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image

from orbit_kd import datasets
from orbit_kd.datasets import Augment, Data, load
from orbit_kd.datasets.decoding import decode
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError

CLASSES = ("boat", "car", "tree")


def picture(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def write(folder: Path, *, per_class: int, size=(8, 8), suffix: str = ".png", classes=CLASSES) -> Path:
    """Class folders of noise; every image is another one."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            seed = int(hashlib.sha256(f"{folder.name}{name}{i}".encode()).hexdigest()[:8], 16)
            Image.fromarray(picture(seed, *size)).save(folder / name / f"{i:03d}{suffix}")
    return folder


@pytest.fixture
def split_folder(tmp_path) -> Path:
    write(tmp_path / "train", per_class=10)
    write(tmp_path / "test", per_class=4)
    return tmp_path


def arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def keys(dataset: tf.data.Dataset) -> list[bytes]:
    return [image.tobytes() for image in arrays(dataset)[0]]


def refuses(folder, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        load(folder, **options)
    for words in says:
        assert words in str(e.value)


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_split_folder_gives_its_images_with_sorted_classes(split_folder):
    data = load(split_folder, validation=0.2, batch_size=7)
    assert data.class_names == CLASSES
    assert data.counts == {"train": 24, "val": 6, "test": 12}
    assert data.shape == (8, 8, 1)
    x, y = next(iter(data.train))
    assert (x.dtype, y.dtype, x.shape) == (tf.float32, tf.int32, (7, 8, 8, 1))
    pixels, labels = arrays(data.test)
    want = {
        np.asarray(Image.open(f), np.float32).tobytes(): CLASSES.index(f.parent.name)
        for f in (split_folder / "test").rglob("*.png")
    }
    assert {p.tobytes(): label for p, label in zip(pixels, labels, strict=True)} == want


def test_train_and_val_share_the_training_images_and_leave_none_out(split_folder):
    data = load(split_folder, validation=0.2)
    train, val, test = map(keys, (data.train, data.val, data.test))
    everything = {np.asarray(Image.open(f), np.float32).tobytes() for f in (split_folder / "train").rglob("*.png")}
    assert not set(train) & set(val)
    assert set(train) | set(val) == everything
    assert not everything & set(test)


def test_every_class_gives_its_share_to_validation(tmp_path):
    write(tmp_path / "train", per_class=10, classes=("a", "b"))
    write(tmp_path / "test", per_class=2, classes=("a", "b", "rare"))
    write(tmp_path / "more", per_class=2, classes=("rare",))
    (tmp_path / "more" / "rare").rename(tmp_path / "train" / "rare")
    labels = arrays(load(tmp_path, validation=0.3).val)[1]
    assert np.bincount(labels).tolist() == [3, 3, 1]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_used_as_it_is(split_folder, name):
    write(split_folder / name, per_class=3)
    assert load(split_folder, validation=0).counts == {"train": 30, "val": 9, "test": 12}


def test_one_level_of_class_folders_is_split_by_class(tmp_path):
    data = load(write(tmp_path / "all", per_class=20), validation=0.25)
    assert data.counts == {"train": 36, "val": 12, "test": 12}
    assert np.bincount(arrays(data.test)[1]).tolist() == [4, 4, 4]
    assert len(set(keys(data.train) + keys(data.val) + keys(data.test))) == 60


def test_the_seed_chooses_validation_and_never_the_test_images(tmp_path):
    write(tmp_path / "all", per_class=20)
    one, again, other = (load(tmp_path / "all", seed=s) for s in (1, 1, 2))
    assert keys(one.val) == keys(again.val)
    assert set(keys(one.val)) != set(keys(other.val))
    assert keys(one.test) == keys(other.test)


def test_the_first_batch_holds_all_classes_in_a_fixed_order(split_folder):
    data = load(split_folder, batch_size=12)
    assert set(next(iter(data.train))[1].numpy()) == {0, 1, 2}
    assert keys(data.train) == keys(data.train) == keys(load(split_folder).train)


def test_limit_keeps_the_shares_of_the_classes(split_folder):
    data = load(split_folder, limit=6)
    assert data.counts == {"train": 6, "val": 3, "test": 6}
    assert np.bincount(arrays(data.train)[1]).tolist() == [2, 2, 2]
    refuses(split_folder, "limit=0", limit=0)


def test_other_files_and_hidden_folders_are_passed_over(split_folder):
    (split_folder / "train" / "car" / "notes.txt").write_text("hello")
    (split_folder / "train" / "car" / "._000.png").write_bytes(b"\0")
    (split_folder / "train" / ".cache").mkdir()
    (split_folder / "train" / "__MACOSX").mkdir()
    assert load(split_folder).counts["test"] == 12


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp", ".jpg", ".JPEG", ".webp"])
def test_each_kind_of_file_is_read_in_any_case(tmp_path, suffix):
    write(tmp_path / "train", per_class=3, suffix=suffix)
    write(tmp_path / "test", per_class=1, suffix=suffix)
    assert load(tmp_path).counts == {"train": 6, "val": 3, "test": 3}


def test_odd_files_are_read_or_passed_over(split_folder):
    boats = split_folder / "train" / "boat"
    (boats / "000.png").rename(Path(os.fsdecode(bytes(boats) + b"/caf\xe9.png")))  # a name that is not UTF-8
    (boats / "away.png").symlink_to(boats / "nowhere.png")
    (boats / "folder.png").mkdir()
    assert load(split_folder).counts["train"] + load(split_folder).counts["val"] == 30


def test_too_few_images_for_three_splits_are_refused(tmp_path):
    refuses(write(tmp_path / "few", per_class=2), "No images are left for val")


def test_the_fingerprint_tells_data_and_options_apart(split_folder):
    first = load(split_folder).fingerprint
    assert load(split_folder, batch_size=3).fingerprint == first
    others = [load(split_folder, **o).fingerprint for o in ({"seed": 1}, {"preprocess": Preprocess(crop=4)})]
    Image.fromarray(picture(1, 8, 9)[:, :8]).save(split_folder / "test" / "car" / "new.png")
    others.append(load(split_folder).fingerprint)
    assert len({first, *others}) == 4


def test_a_folder_wins_over_a_data_set_of_that_name(tmp_path, monkeypatch):
    write(tmp_path / "sar_sim", per_class=5)
    monkeypatch.chdir(tmp_path)
    assert load("sar_sim").class_names == CLASSES


# --- bad folders -------------------------------------------------------------------------------------------------


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    refuses(tmp_path, "no class folders with images", "train/<class>")
    (tmp_path / "empty_class").mkdir()
    refuses(tmp_path, "no class folders with images")
    refuses(tmp_path / "nowhere", "nowhere", "neither a folder nor a data set")


def test_images_outside_class_folders_are_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(picture(0, 8, 8)).save(tmp_path / split / "a.png")
        Image.fromarray(picture(1, 8, 8)).save(tmp_path / split / "b.png")
    refuses(tmp_path, "not sorted into classes")


def test_one_class_is_refused(tmp_path):
    refuses(write(tmp_path / "one", per_class=3, classes=("car",)), "one class folder", "car")


def test_classes_that_differ_between_splits_are_refused(split_folder):
    (split_folder / "test" / "tree").rename(split_folder / "test" / "trees")
    refuses(split_folder, "only in train: tree", "only in test: trees")


def test_a_class_with_one_image_is_refused(split_folder):
    for i in range(1, 10):
        (split_folder / "train" / "car" / f"{i:03d}.png").unlink()
    refuses(split_folder, "train/car", "at least 2")


def test_a_validation_share_outside_0_to_1_is_refused(split_folder):
    for share in (0, 1.0, -0.2):
        refuses(split_folder, "--validation", validation=share)
    refuses(split_folder, "batch_size", batch_size=0)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_image_is_named(split_folder, damage):
    file = split_folder / "train" / "car" / "003.png"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"no image at all", "empty": b""}[damage])
    refuses(split_folder, "Cannot read the image", str(file))


# --- decoding ----------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png") -> np.ndarray:
    image.save(tmp_path / name)
    return decode(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_stays_sixteen_bit(tmp_path, name):
    pixels = picture(0, 6, 5, dtype=np.uint16)
    got = saved(tmp_path, Image.fromarray(pixels), name)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got[..., 0], pixels)


def test_big_endian_sixteen_bit_tiff_is_read(tmp_path):
    pixels = picture(0, 6, 5, dtype=np.uint16)
    got = saved(tmp_path, Image.frombytes("I;16B", (5, 6), pixels.astype(">u2").tobytes()), "a.tif")
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got[..., 0], pixels)


def test_sixteen_bit_colour_png_stays_sixteen_bit(tmp_path):
    pixels = picture(0, 6, 5, 3, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(pixels).numpy())
    got = decode(tmp_path / "a.png")
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, pixels)


def test_sixteen_bit_colour_tiff_stays_sixteen_bit(tmp_path):
    pixels = picture(0, 4, 4, 3, dtype=np.uint16)
    fields = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    fields += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, pixels.nbytes)]
    ifd = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *f) for f in fields) + struct.pack("<I", 0)
    file = tmp_path / "deep.tif"
    file.write_bytes(b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<HHH", 16, 16, 16) + pixels.tobytes())
    np.testing.assert_array_equal(decode(file), pixels)


def test_float_pixels_are_kept_and_must_be_finite(tmp_path):
    pixels = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(pixels), "a.tif")[..., 0], pixels)
    pixels[1, 1] = np.nan
    with pytest.raises(InputError, match="NaN"):
        saved(tmp_path, Image.fromarray(pixels), "b.tif")


def test_integers_beyond_sixteen_bits_are_refused(tmp_path):
    with pytest.raises(InputError, match="70000"):
        saved(tmp_path, Image.fromarray(np.array([[0, 70000]], np.int32)), "a.tif")


def test_palettes_become_rgb_or_grey(tmp_path):
    rgb = Image.fromarray(picture(0, 8, 8, 3) // 128 * 128)
    np.testing.assert_array_equal(saved(tmp_path, rgb.quantize(16)), np.asarray(rgb))
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    got = saved(tmp_path, grey)
    assert got.shape == (8, 8, 1)
    np.testing.assert_array_equal(got[..., 0], np.arange(64).reshape(8, 8))


def test_alpha_is_laid_over_black(tmp_path):
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[..., 3] = [[0, 255], [128, 255]]
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(pixels))[..., 0], [[0, 200], [100, 200]])
    grey = Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., 3])])
    np.testing.assert_array_equal(saved(tmp_path, grey)[..., 0], [[0, 200], [100, 200]])


def test_cmyk_and_one_bit_images_are_converted(tmp_path):
    rgb = Image.new("RGB", (8, 8), (200, 40, 90))
    got = saved(tmp_path, rgb.convert("CMYK"), "a.jpg")
    assert np.abs(got.astype(int) - np.asarray(rgb)).max() <= 4
    assert set(np.unique(saved(tmp_path, Image.fromarray(picture(0, 8, 8) > 99)))) == {0, 255}


def test_mixed_pixel_types_are_refused(split_folder):
    Image.fromarray(picture(0, 8, 8, dtype=np.uint16)).save(split_folder / "train" / "car" / "deep.png")
    refuses(split_folder, "uint8", "uint16", "deep.png")


def test_sixteen_bit_folders_load(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(i, 4, 4, dtype=np.uint16)).save(tmp_path / split / name / f"{i}.png")
    assert arrays(load(tmp_path).train)[0].max() > 255


# --- sizes and channels ------------------------------------------------------------------------------------------


@pytest.fixture
def mixed_sizes(tmp_path) -> Path:
    write(tmp_path / "train", per_class=4, size=(12, 10))
    write(tmp_path / "test", per_class=2, size=(9, 14))
    return tmp_path


def test_images_of_several_sizes_need_a_preprocess(mixed_sizes):
    refuses(mixed_sizes, "12x10", "9x14", ".png", "--resize", "--crop")
    refuses(mixed_sizes, "10x10", "9x14", "--crop", preprocess=Preprocess(crop=10))


@pytest.mark.parametrize("preprocess", [Preprocess(resize=6), Preprocess(crop=8), Preprocess(crop=9, resize=(4, 5))])
def test_a_preprocess_makes_several_sizes_one(mixed_sizes, preprocess):
    from orbit_kd.datasets.preprocessing import apply

    data = load(mixed_sizes, preprocess=preprocess)
    want = {apply(preprocess, decode(f)).numpy().tobytes() for f in (mixed_sizes / "test").rglob("*.png")}
    assert set(keys(data.test)) == want
    augment = Augment(shift=2, flip="hv", gain=0.1)
    assert arrays(data.views(1, seed=0, augment=augment))[0].shape == (data.counts["train"], *data.shape)


def test_grey_and_colour_together_need_channels(split_folder):
    Image.fromarray(picture(0, 8, 8, 3)).save(split_folder / "train" / "car" / "colour.png")
    refuses(split_folder, "colour.png", "--channels")
    assert load(split_folder, preprocess=Preprocess(channels=3)).shape == (8, 8, 3)
    grey = load(split_folder, preprocess=Preprocess(channels=1))
    plain = np.stack([decode(f) for f in (split_folder / "test").rglob("*.png")]).astype(float)
    assert grey.shape == (8, 8, 1)
    for image in arrays(grey.test)[0]:
        assert np.abs(plain - image).max(axis=(1, 2, 3)).min() < 1e-3


def test_a_crop_larger_than_an_image_names_it(split_folder):
    refuses(split_folder, "9x9", "8x8", ".png", "--crop", preprocess=Preprocess(crop=9))


# --- epochs and views --------------------------------------------------------------------------------------------

AUGMENT = Augment(shift=2, flip="hv", turns=True, gain=0.2, speckle=4)


def batches(dataset: tf.data.Dataset, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.take(count).as_numpy_iterator())


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(split_folder):
    data = load(split_folder, preprocess=Preprocess(crop=6), batch_size=8)
    steps = data.steps()
    whole = batches(data.epochs(seed=3, augment=AUGMENT), 5 * steps)
    resumed = load(split_folder, preprocess=Preprocess(crop=6), batch_size=8)
    assert equal(whole[3 * steps :], batches(resumed.epochs(seed=3, augment=AUGMENT, start=3), 2 * steps))


def test_each_epoch_shows_each_example_once_in_its_own_order(split_folder):
    data = load(split_folder, batch_size=8)
    assert data.steps() == 4
    assert data.counts["train"] == 27
    stream = batches(data.epochs(seed=0), 8)
    assert [len(y) for _, y in stream] == [8, 8, 8, 3] * 2
    first, second = (np.concatenate([x for x, _ in stream[i : i + 4]]) for i in (0, 4))
    assert {x.tobytes() for x in first} == {x.tobytes() for x in second} == set(keys(data.train))
    assert not np.array_equal(first, second)


def test_labels_stay_with_their_images_through_shuffling(split_folder):
    data = load(split_folder)
    label = dict(zip(keys(data.train), arrays(data.train)[1], strict=True))
    (x, y), *_ = batches(data.epochs(seed=5), 1)
    assert [label[image.tobytes()] for image in x] == y.tolist()


def test_the_seed_and_the_epoch_change_the_augmentation(split_folder):
    data = load(split_folder)
    streams = [batches(data.epochs(seed=s, augment=AUGMENT, start=e), 1) for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert equal(streams[0], streams[3])
    assert not equal(streams[0], streams[1])
    assert not equal(streams[0], streams[2])


def test_the_batch_size_does_not_change_what_is_seen(split_folder):
    data = load(split_folder)
    small, large = (data.epochs(seed=1, augment=AUGMENT, batch_size=b).take(data.steps(b)) for b in (5, 27))
    for a, b in zip(arrays(small), arrays(large), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_views_are_renderings_of_train_in_its_order(split_folder):
    data = load(split_folder)
    plain, labels = arrays(data.train)
    x0, y0 = arrays(data.views(0, seed=9, augment=AUGMENT))
    np.testing.assert_array_equal(x0, plain)
    x1, y1 = arrays(data.views(1, seed=9, augment=AUGMENT))
    again = arrays(data.views(1, seed=9, augment=AUGMENT, batch_size=4))[0]
    x2, _ = arrays(data.views(2, seed=9, augment=AUGMENT))
    np.testing.assert_array_equal(labels, y0)
    np.testing.assert_array_equal(labels, y1)
    np.testing.assert_allclose(x1, again, rtol=1e-6)
    assert not np.array_equal(x1, plain)
    assert not np.array_equal(x1, x2)


@pytest.mark.parametrize("sizes", [[(8, 8)], [(8, 8), (9, 10)]])
def test_images_decoded_at_each_use_give_the_same_batches(tmp_path, monkeypatch, sizes):
    for split, size in zip(("train", "test"), sizes * 2, strict=False):
        write(tmp_path / split, per_class=4, size=size)
    kept = load(tmp_path, preprocess=Preprocess(crop=6))
    monkeypatch.setattr(datasets, "MEMORY_LIMIT", 100)
    lazy = load(tmp_path, preprocess=Preprocess(crop=6))
    assert kept.examples.images.in_memory
    assert not lazy.examples.images.in_memory
    assert equal(batches(kept.test, 9), batches(lazy.test, 9))
    assert equal(*(batches(d.epochs(seed=2, augment=AUGMENT), 3) for d in (kept, lazy)))
    assert kept.fingerprint == lazy.fingerprint


def test_an_augment_that_does_not_fit_is_refused_before_training(tmp_path):
    data = load(write(tmp_path / "all", per_class=5, size=(8, 10)))
    with pytest.raises(InputError, match="turns"):
        data.epochs(seed=0, augment=Augment(turns=True))
    with pytest.raises(InputError, match="shift"):
        data.views(1, seed=0, augment=Augment(shift=8))


def test_fit_takes_the_epochs(split_folder):
    data = load(split_folder)
    model = keras.Sequential([keras.Input(data.shape), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(
        data.epochs(seed=0, augment=AUGMENT, batch_size=8),
        steps_per_epoch=data.steps(8),
        epochs=2,
        validation_data=data.val,
        verbose=0,
    )
    assert len(history.history["val_loss"]) == 2


# --- data of one's own -------------------------------------------------------------------------------------------

X, Y = np.arange(40, dtype=np.float32).reshape(10, 2, 2, 1), np.arange(10, dtype=np.int64) % 3


class Batches(keras.utils.Sequence):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int):
        return X[3 * i : 3 * i + 3], Y[3 * i : 3 * i + 3]


@pytest.mark.parametrize(
    "own", [(X, Y), Batches(), tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)], ids=["arrays", "sequence", "tf"]
)
def test_data_of_ones_own_is_what_fit_takes(own):
    data = Data(own, own, own)
    np.testing.assert_array_equal(arrays(data.train)[0], X)
    np.testing.assert_array_equal(arrays(data.test)[1], Y)
    assert data.shape == (2, 2, 1)
    assert data.steps(5) == 2
    assert data.steps() == sum(1 for _ in data.train)
    repeated = data.epochs(seed=0, batch_size=5).take(4)
    np.testing.assert_array_equal(arrays(repeated)[0], np.concatenate([X, X]))
    np.testing.assert_array_equal(arrays(data.views(0, seed=0))[0], X)
    for augmented in (data.epochs, lambda **o: data.views(1, **o)):
        with pytest.raises(InputError, match="ready batches"):
            augmented(seed=0, augment=Augment(shift=1))


def test_data_of_ones_own_is_known_by_all_that_it_yields():
    x, y = np.random.default_rng(0).normal(size=(40, 2, 2, 1)).astype("float32"), np.arange(40) % 3

    def data(x, y, change=lambda d: d):
        return Data(change(tf.data.Dataset.from_tensor_slices((x, y)).batch(4)), (x, y), (x, y))

    later, other = x.copy(), y.copy()
    later[39], other[39] = 0, 1
    assert data(x, y).key == data(x, y).key
    assert len({d.key for d in (data(x, y), data(later, y), data(x, other))}) == 3
    assert data(x, y, lambda d: d.unbatch().shuffle(40).batch(4)).key == data(x, y).key
    noisy = data(x, y, lambda d: d.map(lambda a, b: (a + tf.random.normal(tf.shape(a)), b)))
    assert noisy.key == noisy.key != data(x, y).key


def test_a_dataset_of_unknown_length_is_counted_and_an_endless_one_refused():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: y > 0).batch(4)
    assert Data(dataset, dataset, dataset).steps() == 2
    endless = dataset.repeat()
    with pytest.raises(InputError, match="repeats for ever"):
        Data(endless.apply(tf.data.experimental.assert_cardinality(-1)), dataset, dataset)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (tf.data.Dataset.from_tensor_slices((X, Y)), r"\.batch\(64\)"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2), "batched tf.data.Dataset"),
        (tf.data.Dataset.from_tensor_slices((tf.RaggedTensor.from_tensor(X), Y)).batch(2), "batched tf.data.Dataset"),
        (None, "NoneType cannot be used as train data"),
        (tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_types=(tf.float32, tf.int32)), "ensure_shape"),
        (tf.data.Dataset.from_tensor_slices((X, [str(y) for y in Y])).batch(2), "numbers as labels"),
        (X, "no labels"),
    ],
)
def test_what_fit_does_not_take_is_refused(own, says):
    with pytest.raises(InputError, match=says):
        Data(own, (X, Y), (X, Y))


# --- real data ---------------------------------------------------------------------------------------------------


def test_mstar_loads_in_seconds(real_data):
    start = time.perf_counter()
    data = load(real_data / "mstar10", preprocess=Preprocess(crop=64))
    assert time.perf_counter() - start < 60
    assert data.counts == {"train": 2472, "val": 275, "test": 2425}
    assert data.shape == (64, 64, 1)
    assert sum(len(y) for _, y in data.test) == 2425


def test_resizing_aid_agrees_with_pillow(real_data):
    data = load(real_data / "aid15a", preprocess=Preprocess(resize=64), limit=30)
    assert len(data.class_names) == 15
    files = list((real_data / "aid15a" / "test").rglob("*.jpg"))
    wanted = np.stack([np.asarray(Image.open(f).resize((64, 64), Image.Resampling.BILINEAR), float) for f in files])
    for image in arrays(data.test)[0][:5]:
        assert np.abs(wanted - image).max(axis=(1, 2, 3)).min() <= 1.01
