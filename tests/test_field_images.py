"""Images reach the network as in its training: Keras pipelines to the bit, and the check against a known figure."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image

import orbit_kd as okd
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.decoding import decode
from orbit_kd.datasets.preprocessing import LOADERS, Preprocess, apply, check
from orbit_kd.errors import InputError
from orbit_kd.evaluation.preprocess_check import flags_of, parse_accuracy
from orbit_kd.exporters.metadata import add_metadata, note, read_metadata
from orbit_kd.tasks.metrics import wilson

ROOT = Path(__file__).parent.parent
SIZE = (37, 54)  # odd and even, not square
# Keras 3's saving
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KERAS = "image_dataset_from_directory"


def noise(*shape: int, top: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8 if top == 256 else np.uint16)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Class folders with every kind of file that all three loaders read."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    rgb = noise(*SIZE, 3)
    image = Image.fromarray(rgb)
    image.save(folder / "a/rgb.png")
    Image.fromarray(rgb[..., 0]).save(folder / "a/grey.png")
    Image.fromarray(np.dstack([rgb, noise(*SIZE, seed=1)])).save(folder / "a/alpha.png")
    Image.fromarray(np.dstack([rgb[..., 0], noise(*SIZE, seed=1)]), "LA").save(folder / "a/grey_alpha.png")
    image.quantize(9).save(folder / "b/palette.png")
    Image.fromarray(noise(*SIZE, top=65536)).save(folder / "b/deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn by 90 degrees"
    image.save(folder / "b/turned.jpg", quality=80, exif=turned)
    image.convert("L").save(folder / "b/grey.jpg")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Two classes of three colour images each."""
    folder = tmp_path_factory.mktemp("plain")
    for label in ("a", "b"):
        (folder / label).mkdir()
        for i in range(4):
            Image.fromarray(noise(*SIZE, 3, seed=i)).save(folder / label / f"{i}.png")
    return folder


def paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.*"))


def ours(preprocess: Preprocess, file: Path) -> np.ndarray:
    return apply(preprocess, decode(file, loader=preprocess.loader, channels=preprocess.channels)).numpy()


@pytest.mark.parametrize(
    ("package", "size", "interpolation", "aspect"),
    [(keras, (16, 16), name, "stretch") for name in LOADERS[KERAS]]
    + [(keras, (64, 80), name, "stretch") for name in ("bilinear", "bicubic", "area")]
    + [(keras, (24, 31), "bilinear", "crop"), (keras, (50, 41), "nearest", "crop"), (keras, SIZE, "bilinear", "crop")]
    + [(keras3, (24, 31), "bilinear", aspect) for aspect in ("stretch", "crop", "pad")]
    + [(keras3, (61, 40), "bicubic", "pad"), (keras3, (16, 16), "lanczos3", "stretch")],
)
def test_image_dataset_from_directory_to_the_bit(files, package, size, interpolation, aspect):
    more = {} if aspect == "stretch" else {f"{aspect}_to_aspect_ratio": True}
    for color, channels in (("rgb", 3), ("grayscale", 1)):
        preprocess = Preprocess(
            resize=size, channels=channels, loader=KERAS, interpolation=interpolation, aspect=aspect
        )
        theirs = package.utils.image_dataset_from_directory(
            files,
            image_size=size,
            interpolation=interpolation,
            color_mode=color,
            shuffle=False,
            batch_size=None,
            **more,
        )
        for (want, _), file in zip(theirs, paths(files), strict=True):
            np.testing.assert_array_equal(ours(preprocess, file), want, err_msg=file.name)


@pytest.mark.parametrize("interpolation", LOADERS["load_img"])
def test_load_img_to_the_bit(files, interpolation):
    for size, aspect in (((16, 16), "stretch"), ((64, 80), "crop"), ((24, 31), "crop"), (SIZE, "stretch")):
        for color, channels in (("rgb", 3), ("grayscale", 1)):
            preprocess = Preprocess(
                resize=size, channels=channels, loader="load_img", interpolation=interpolation, aspect=aspect
            )
            for file in paths(files):
                want = keras.utils.load_img(
                    file, color_mode=color, target_size=size, interpolation=interpolation,
                    keep_aspect_ratio=aspect == "crop",
                )  # fmt: skip
                want = keras.utils.img_to_array(want)
                np.testing.assert_array_equal(ours(preprocess, file), want, err_msg=f"{file.name} {size}")


def test_image_data_generator_to_the_bit_in_a_whole_data_set(files):
    preprocess = Preprocess(resize=(20, 30), channels=3, loader="load_img", scale=1 / 255)
    assert preprocess.interpolation == "nearest"
    read = okd.datasets.renderings(files, split="all")
    x, y = next(iter(read.dataset(preprocess)))
    for package in (keras, tf.keras):
        flow = package.preprocessing.image.ImageDataGenerator(rescale=1 / 255).flow_from_directory(
            files, target_size=(20, 30), shuffle=False, class_mode="sparse"
        )
        want, labels = next(flow)
        np.testing.assert_allclose(x, want, rtol=1e-6)
        np.testing.assert_array_equal(y, labels)
        assert tuple(flow.class_indices) == read.class_names == ("a", "b")


def test_images_of_any_size_and_pixels_that_are_not_files(files, tmp_path):
    """Sixteen bits, floats and batches too; and images of two sizes, which are rendered one by one."""
    deep = noise(3, *SIZE, 1, top=65536)
    for loader in LOADERS:
        batch = apply(Preprocess(resize=16, loader=loader), deep).numpy()
        one = apply(Preprocess(resize=16, loader=loader), deep[1]).numpy()
        np.testing.assert_array_equal(batch[1], one)
        assert batch.shape == (3, 16, 16, 1) and batch.max() > 40_000
    want = Image.fromarray(deep[0, ..., 0]).resize((16, 20), Image.Resampling.BICUBIC)
    got = apply(Preprocess(resize=(20, 16), loader="load_img", interpolation="bicubic"), deep[0])
    np.testing.assert_array_equal(got[..., 0], np.asarray(want, np.float32))
    smooth = deep[0].astype(np.float32) / 7
    want = Image.fromarray(smooth[..., 0]).resize((16, 20), Image.Resampling.BOX)
    got = apply(Preprocess(resize=(20, 16), loader="load_img", interpolation="box"), smooth)
    np.testing.assert_array_equal(got[..., 0], np.asarray(want))
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.fromarray(noise(20 + i, 30 - 2 * i, 3, seed=i)).save(tmp_path / label / f"{i}.png")
    preprocess = Preprocess(resize=16, loader="load_img", aspect="crop")
    data = okd.datasets.renderings(tmp_path, split="all").dataset(preprocess)
    want = [ours(preprocess, file) for file in paths(tmp_path)]
    np.testing.assert_array_equal(next(iter(data))[0], want)


def test_the_default_is_what_it_was():
    image = noise(*SIZE, 3)
    want = tf.image.resize(tf.cast(image, tf.float32), (16, 24), method="bilinear", antialias=True)
    np.testing.assert_array_equal(apply(Preprocess(resize=(16, 24)), image), want)
    old = read_metadata(ROOT / "models/mobilenet_mstar/student_tflite_int8.tflite")["preprocess"]
    assert "loader" not in old
    assert Preprocess(**old) == Preprocess(crop=64, resize=32)
    assert (Preprocess(**old).loader, Preprocess(**old).interpolation) == ("orbit_kd", "bilinear")


def test_decoders_differ_as_far_as_the_documentation_says(files):
    """Alpha, grey of a colour PNG and 16 bits; so that nobody takes the loaders for equal but for the resize."""
    rgb = noise(*SIZE, 3)
    alpha = files / "a/alpha.png"
    for loader in (KERAS, "load_img"):
        np.testing.assert_array_equal(decode(alpha, loader=loader), rgb)
    assert np.abs(decode(alpha).astype(float) - rgb).max() > 200  # over black
    for loader, within in ((KERAS, 1.01), ("load_img", 0.51)):
        grey = decode(files / "a/rgb.png", loader=loader, channels=1)[..., 0]
        assert np.abs(grey - rgb @ [0.299, 0.587, 0.114]).max() < within
    deep = noise(*SIZE, top=65536)
    np.testing.assert_array_equal(decode(files / "b/deep.png")[..., 0], deep)
    np.testing.assert_array_equal(decode(files / "b/deep.png", loader=KERAS)[..., 0], deep >> 8)
    clipped = decode(files / "b/deep.png", loader="load_img", channels=3)[..., 0]
    np.testing.assert_array_equal(clipped, np.minimum(deep, 255))
    jpeg = [decode(files / "b/turned.jpg", loader=loader).astype(float) for loader in LOADERS]
    assert all(pixels.shape == (*SIZE, 3) for pixels in jpeg)  # the rotation is nobody's
    np.testing.assert_array_equal(jpeg[0], jpeg[2])
    assert 0 < np.abs(jpeg[0] - jpeg[1]).max() <= 16 and np.abs(jpeg[0] - jpeg[1]).mean() < 2


@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        ("tf", {"mean": 127.5, "scale": 1 / 127.5}),
        ("caffe", {"mean": (103.939, 116.779, 123.68), "bgr": True}),
        ("torch", {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}),
    ],
)
def test_values_of_keras_applications(mode, fields):
    image = noise(5, 6, 3)
    want = keras.applications.imagenet_utils.preprocess_input(image.astype(np.float32), mode=mode)
    np.testing.assert_allclose(apply(Preprocess(**fields), image), want, atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"resize": 8, "loader": "pil"}, "one of orbit_kd, image_dataset_from_directory, load_img"),
        ({"resize": 8, "interpolation": "area"}, "a loader that has it: image_dataset_from_directory"),
        ({"resize": 8, "loader": "load_img", "aspect": "pad"}, "load_img pads nothing"),
        ({"aspect": "crop"}, "--resize"),
        ({"interpolation": "nearest", "loader": "load_img"}, "--resize"),
        ({"std": 0}, "--std"),
    ],
)
def test_what_no_pipeline_does_is_refused(fields, says):
    with pytest.raises(InputError, match=says):
        Preprocess(**fields)


def test_advice_to_resize_says_that_keras_does_it_otherwise():
    with pytest.raises(InputError, match=r"--resize=16\).*--loader=image_dataset_from_directory.*--loader=load_img"):
        check(Preprocess(), (*SIZE, 1), (None, 16, 16, 1))
    check(Preprocess(resize=16, loader="load_img"), (*SIZE, 1), (None, 16, 16, 1))


def test_reversed_colours_need_colours_and_other_kinds_of_files_are_refused(plain, tmp_path):
    with pytest.raises(InputError, match="--channels=3"):
        okd.load(plain, preprocess=Preprocess(bgr=True, channels=1, resize=8), validation=0.4)
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match="leaves out"):
        decode(tmp_path / "x.tif", loader=KERAS)


def test_every_field_changes_the_key_and_is_in_the_file(plain):
    base = Preprocess(resize=16, channels=3)
    others = [
        {"loader": KERAS}, {"interpolation": "bicubic"}, {"aspect": "crop"}, {"bgr": True}, {"std": (2.0,)},
    ]  # fmt: skip
    ways = [base, *(dataclasses.replace(base, **change) for change in others)]
    keys = {okd.load(plain, preprocess=way, validation=0.4).key for way in ways}
    assert len(keys) == len(ways)
    file = (ROOT / "models/mobilenet_mstar/student_tflite_int8.tflite").read_bytes()
    for way in ways:
        assert Preprocess(**read_metadata(add_metadata(file, note(["a", "b"], way)))["preprocess"]) == way


def test_a_loaded_data_set_holds_what_keras_would_have_given(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.fromarray(noise(*SIZE, 3, seed=i + len(label))).save(tmp_path / label / f"{i}.jpg")
    preprocess = Preprocess(resize=(20, 16), channels=3, loader=KERAS, aspect="crop")
    data = okd.load(tmp_path, preprocess=preprocess, validation=0.4)
    got = {x.numpy().tobytes() for split in (data.train, data.val, data.test) for x, _ in split.unbatch()}
    theirs = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(20, 16), crop_to_aspect_ratio=True, shuffle=False, batch_size=None
    )
    assert got == {x.numpy().tobytes() for x, _ in theirs}


def test_images_below_the_class_folders_are_told_and_gif_is_read(files, tmp_path, caplog):
    for label in ("a", "b"):
        (tmp_path / label / "more").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise(8, 8, seed=i)).save(tmp_path / label / f"{i}.gif")
    with caplog.at_level(logging.WARNING, logger="orbit_kd"):
        okd.load(tmp_path)
        assert not caplog.records
        Image.fromarray(noise(8, 8)).save(tmp_path / "b/more/x.png")
        data = okd.load(tmp_path)
    assert "1 images in folders below" in caplog.text and "x.png" in caplog.text
    assert sum(data.counts.values()) == 6


# The crop and the moved crop begin at the same row and column, whichever way the margins are odd.


@pytest.mark.parametrize(("size", "crop"), [((9, 12), (4, 6)), ((9, 12), (5, 5)), ((8, 7), (5, 4)), ((6, 6), (6, 5))])
def test_the_centre_of_odd_margins(size, crop):
    image = np.arange(size[0] * size[1], dtype=np.uint16).reshape(*size, 1)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    want = image[top : top + crop[0], left : left + crop[1]].astype(np.float32)
    np.testing.assert_array_equal(apply(Preprocess(crop=crop), image), want)
    np.testing.assert_array_equal(keras.layers.CenterCrop(*crop)(image.astype(np.float32)), want)
    seen = set()
    for i in range(20):
        seed = tf.constant([0, i], tf.int64)
        got = apply(Preprocess(crop=crop), image, augment=Augment(shift=0, flip="h"), seed=seed).numpy()
        assert (got == want).all() or (got == want[:, ::-1]).all()
        seen.add(got.tobytes())
    assert len(seen) == 2


# The check against one's own figure.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, keras3.Model, float]:
    """Images in classes, a Keras 3 network, and what Keras says of it on them."""
    folder = tmp_path_factory.mktemp("check")
    rng = np.random.default_rng(3)
    layers = keras3.layers
    model = keras3.Sequential(
        [
            keras3.Input((16, 16, 1)),
            layers.Conv2D(6, 3),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    kernel = rng.normal(size=(3, 3, 1, 6))
    model.set_weights([kernel - kernel.mean((0, 1)), np.zeros(6), rng.normal(size=(6, 3)), np.zeros(3)])
    images = [noise(40, 48, seed=i) * rng.uniform(0.2, 1) for i in range(90)]
    pixels = np.stack([tf.image.resize(image[..., None].astype(np.uint8), (16, 16)) for image in images])
    scores = model(pixels).numpy()
    middle = np.median(scores, 0)  # so that all classes come out
    model.layers[-1].set_weights([model.layers[-1].get_weights()[0], -middle])
    named = (scores - middle).argmax(-1)
    named = np.where(rng.uniform(size=90) < 0.3, (named + 1) % 3, named)
    for i, (image, label) in enumerate(zip(images, named, strict=True)):
        path = folder / "images" / "test" / "xyz"[label]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path / f"{i}.png")
        train = folder / "images" / "train" / "xyz"[label]
        train.mkdir(parents=True, exist_ok=True)
        if len(list(train.iterdir())) < 4:
            Image.fromarray(image.astype(np.uint8)).save(train / f"{i}.png")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    test = keras3.utils.image_dataset_from_directory(
        folder / "images/test", image_size=(16, 16), color_mode="grayscale", shuffle=False
    )
    return folder, model, model.evaluate(test, verbose=0)[1]


def test_the_way_of_the_training_is_found(place):
    folder, model, figure = place
    found = okd.check_preprocess(
        model, folder / "images", expected_accuracy=figure, preprocess=Preprocess(resize=16, channels=1)
    )
    assert (found.split, found.asked.images) == ("test", 90)
    assert not found.agrees and abs(found.asked.accuracy - figure) > 0.05
    assert found.found and found.found[0].preprocess == Preprocess(resize=16, channels=1, loader=KERAS)
    assert f"--loader={KERAS}  <- your figure" in str(found)
    again = okd.check_preprocess(
        model, folder / "images", expected_accuracy=f"{100 * figure:.1f}%", preprocess=found.found[0].preprocess
    )
    assert again.agrees and not again.others and "equal to the image" in str(again)
    assert "four digits tell more" in str(dataclasses.replace(again, within=0.01))


def test_a_figure_of_nobody_and_chance_are_said(place):
    folder, model, figure = place
    way = Preprocess(resize=16, channels=1, loader=KERAS)
    found = okd.check_preprocess(model, folder / "images", expected_accuracy=figure - 0.0371, preprocess=way)
    low, high = wilson(found.asked.right, 90)
    assert low < figure < high and found.by_chance
    assert "inside" in str(found) and f"{100 * low:.1f}% to {100 * high:.1f}%" in str(found)
    assert len(found.others) > 15 and all(trial.preprocess != way for trial in found.others)
    far = dataclasses.replace(found, expected=0.05123)
    assert not far.by_chance and not far.found and "None of" in str(far)


def test_another_order_of_classes_is_noticed(place, tmp_path):
    folder, model, figure = place
    for mine, name in zip("xyz", "yzx", strict=True):
        (tmp_path / name).symlink_to(folder / "images/test" / mine)
    test = keras3.utils.image_dataset_from_directory(
        tmp_path, image_size=(16, 16), color_mode="grayscale", shuffle=False, follow_links=True
    )
    figure = model.evaluate(test, verbose=0)[1]
    found = okd.check_preprocess(
        model, tmp_path, expected_accuracy=figure, preprocess=Preprocess(resize=16, channels=1, loader=KERAS)
    )
    assert found.split == "all" and found.agrees and figure < 0.4
    assert "another order: it names x as z, y as x, z as y" in found.note


@pytest.mark.parametrize(
    ("value", "accuracy", "within"),
    [
        (0.65, 0.65, 0.005),
        ("0.650", 0.65, 0.0005),
        ("65%", 0.65, 0.005),
        (65.0, 0.65, 0.0005),
        ("80.0%", 0.8, 0.0005),
        ("80.00", 0.8, 0.00005),
        (0.8, 0.8, 0.005),
        ("1.0", 1.0, 0.005),
        ("0", 0.0, 0.005),
    ],
)
def test_the_digits_of_a_figure_count(value, accuracy, within):
    assert parse_accuracy(value) == pytest.approx((accuracy, within))


def test_no_accuracy_is_refused():
    for value in ("many", -0.1, "130", float("nan")):
        with pytest.raises(InputError, match="expected_accuracy"):
            parse_accuracy(value)


def test_wilson_interval_has_the_published_values():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_one_command(place, tool):
    folder, model, figure = place
    model.save(folder / "teacher.keras")
    flags = [f"--teacher={folder}/teacher.keras", f"--data_dir={folder}/images", "--resize=16", "--channels=1"]
    found = tool("evaluate", *flags, f"--expected_accuracy={figure:.4f}")
    assert found.returncode == 1 and f"--loader={KERAS}  <- your figure" in found.stdout
    right = flags_of(Preprocess(resize=16, channels=1, loader=KERAS)).split()
    assert tool("evaluate", *flags[:2], *right, f"--expected_accuracy={figure:.4f}").returncode == 0


def test_a_file_knows_how_images_reach_it(place, tool, tmp_path):
    folder, model, figure = place
    way = Preprocess(resize=16, channels=1, loader=KERAS)
    about = note(["x", "y", "z"], way)
    file = okd.export(okd.load_model(model), "tflite_float32", path=tmp_path / "s.tflite", metadata=about)
    flags = [f"--models={file.path}", f"--data_dir={folder}/images"]
    got = tool("evaluate", *flags)
    assert got.returncode == 0 and f"{100 * figure:.2f}%" in got.stdout and "was made for" not in got.stderr
    got = tool("evaluate", *flags, "--resize=16", "--channels=1")
    assert f"{100 * figure:.2f}%" not in got.stdout and "was made for" in got.stderr


def test_no_warning_of_retracing_where_networks_come_and_go(monkeypatch):
    """`tf.function` takes one graph for each of several networks for one function that is traced too often."""
    said: list[str] = []
    monkeypatch.setattr(tf.get_logger(), "handle", lambda record: said.append(record.getMessage()))
    x = noise(12, 8, 8, 1).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((x, np.arange(12) % 2)).batch(5)
    for width in range(2, 8):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(width, 3),
                layers.BatchNormalization(),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
        okd.recalibrate_batchnorm(model, batches.take(1))
        okd.plan_removal(model, criterion="taylor", ratio=0.5, data=batches.take(1))
        okd.cache_teacher(model, [batches.take(1)])
    assert not [text for text in said if "retracing" in text]
