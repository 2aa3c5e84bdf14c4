"""The project's own TFDS builders, and TFDS sets in general, from small files that the tests make."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from orbit_kd.datasets import DATASETS, fusar_ship, load, mstar, sar_sim
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError


def arrays(dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def refuses(name: str, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        load(name, **options)
    for words in says:
        assert words in str(e.value)


# --- sar_sim -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_sim(monkeypatch):
    monkeypatch.setattr(sar_sim, "TRAIN", 60)
    monkeypatch.setattr(sar_sim, "TEST", 20)


def test_simulated_chips_are_seeded_balanced_and_all_different():
    images, labels = sar_sim.simulate(60, seed=1)
    assert (images.dtype, images.shape) == (np.uint8, (60, 64, 64, 1))
    assert np.bincount(labels).tolist() == [6] * 10
    assert len({image.tobytes() for image in images}) == 60
    np.testing.assert_array_equal(sar_sim.simulate(60, seed=1)[0], images)
    assert (sar_sim.simulate(60, seed=2)[0] != images).any()


def test_a_chip_has_a_bright_target_before_a_dark_shadow_in_clutter():
    chips = sar_sim.simulate(300, seed=1)[0][..., 0].astype(float)
    border = np.concatenate([chips[:, :4].ravel(), chips[:, -4:].ravel()])
    # Away from the radar (down) the shadow follows the target, so the columns at the centre dip below the clutter.
    profile = chips[:, :, 28:36].mean(axis=(0, 2))
    assert profile.max() > 1.5 * border.mean()
    assert profile[32:52].min() < 0.6 * border.mean()
    assert profile.argmax() < profile[32:].argmin() + 32


def test_a_point_scatterer_answers_with_a_sinc(monkeypatch):
    point = (np.zeros((1, 3)), np.ones(1), np.zeros(1), np.zeros(1))
    monkeypatch.setattr(sar_sim, "_scatterers", lambda vehicle: point)
    monkeypatch.setattr(sar_sim, "SCATTERERS", 1)
    for name, value in {"CLUTTER": 0, "NOISE": 0, "MISSING": 0, "LOOKS": 1e6, "JITTER": 0, "GAIN": 200}.items():
        monkeypatch.setattr(sar_sim, name, value)
    chip = sar_sim._chips(next(iter(sar_sim.VEHICLES.values())), 1, np.random.default_rng(0))[0].astype(float)
    along = (np.arange(64) - 31.5) * sar_sim.SPACING
    line = np.abs(np.sinc(along / sar_sim.RESOLUTION))
    np.testing.assert_allclose(chip / chip.max(), np.outer(line, line) / line.max() ** 2, atol=0.01)


def test_a_shadow_is_as_long_as_the_vehicle_is_high():
    box = sar_sim.Vehicle(4, 2, 2, 1, 1, 0, 0, 1)
    grid = np.arange(-10, 10.01, 0.1)
    slope, still = np.full((1, 1), 0.25), np.zeros((1, 2, 1))
    across = sar_sim._shadow(box, np.zeros((1, 1)), slope, still, grid)[0]
    turned = sar_sim._shadow(box, np.full((1, 1), np.pi / 2), slope, still, grid)[0]
    for shadow, width, depth in ((across, 4, 2), (turned, 2, 4)):
        rows, columns = np.nonzero(shadow)
        # From the near edge of the hull to its far edge plus height / tan(depression) = 8 m.
        assert np.ptp(columns) * 0.1 == pytest.approx(width, abs=0.2)
        assert grid[rows.min()] == pytest.approx(-depth / 2, abs=0.15)
        assert grid[rows.max()] == pytest.approx(depth / 2 + 8, abs=0.15)


def test_sar_sim_is_made_once_and_then_read(tmp_path, small_sim, monkeypatch):
    first = load("sar_sim", data_dir=tmp_path)
    assert first.counts == {"train": 50, "val": 10, "test": 20}
    assert first.shape == (64, 64, 1)
    assert first.class_names == tuple(sar_sim.VEHICLES)
    want = {image.astype(np.float32).tobytes() for image in sar_sim.simulate(20, seed=2)[0]}
    assert {x.tobytes() for x in arrays(first.test)[0]} == want

    monkeypatch.setattr(sar_sim, "simulate", None)
    again = load("sar_sim", data_dir=tmp_path)
    np.testing.assert_array_equal(arrays(again.train)[0], arrays(first.train)[0])
    assert again.fingerprint == first.fingerprint


def test_own_sets_go_to_the_cache_folder_without_a_data_dir(tmp_path, small_sim, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load("sar_sim")
    assert (tmp_path / "orbit_kd" / "sar_sim").is_dir()
    assert capsys.readouterr().out == ""


def test_a_data_dir_that_cannot_be_written_is_told(tmp_path, small_sim):
    (tmp_path / "file").write_text("")
    refuses("sar_sim", "could not be prepared", "--data_dir", data_dir=tmp_path / "file")


# --- mstar -------------------------------------------------------------------------------------------------------


def phoenix(path: Path, magnitude: np.ndarray, **fields: object) -> Path:
    """A raw MSTAR file: text header, big-endian float32 magnitude, then phase."""
    rows, columns = magnitude.shape
    header = {"NumberOfColumns": columns, "NumberOfRows": rows, "TargetType": "t72_tank", "TargetSerNum": "132"}
    header |= {"DesiredDepression": 17, **fields}
    lines = "".join(f"{k}= {v}\n" for k, v in header.items() if v is not None)

    def text(length: int) -> str:
        return (
            f"[PhoenixHeaderVer01.04]\nPhoenixHeaderLength= {length:05d}\nPhoenixSigSize= 0000000\n"
            f"native_header_length= {fields.get('native_header_length', 0)}\n{lines}[EndofPhoenixHeader]\n"
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [magnitude.astype(">f4").tobytes(), np.zeros_like(magnitude, ">f4").tobytes()]
    path.write_bytes(text(len(text(0))).encode() + b"".join(blocks))
    return path


def chip(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 0.1, shape or (128, 128))


def test_a_raw_chip_is_stretched_to_eight_bits_and_its_centre_cut_out(tmp_path):
    magnitude = chip(0, 130, 133)
    got = mstar.read_chip(phoenix(tmp_path / "HB1.015", magnitude))
    low, high = magnitude.astype(np.float32).min(), magnitude.astype(np.float32).max()
    want = np.floor((magnitude - low) / (high - low) * 255 + 0.5)[1:129, 2:130]
    assert (got.dtype, got.shape) == (np.uint8, (128, 128, 1))
    assert np.abs(got[..., 0] - want).max() <= 1
    assert (got[..., 0] == want).mean() > 0.999


def test_a_header_is_read_as_keys_and_values(tmp_path):
    header = mstar.read_header(phoenix(tmp_path / "a", chip(0), TargetAz=12.5))
    assert header["TargetType"] == "t72_tank"
    assert header["TargetAz"] == "12.5"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b[: len(b) // 3], "ends before"),
        (lambda b: b.replace(b"[EndofPhoenixHeader]", b"[End]"), "no end"),
        (lambda b: b.replace(b"NumberOfRows", b"NumberOfPigs"), "NumberOfRows"),
    ],
)
def test_a_damaged_raw_file_is_named(tmp_path, change, says):
    path = phoenix(tmp_path / "HB1.015", chip(0))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=rf"HB1\.015.*{says}"):
        mstar.read_chip(path)


@pytest.mark.parametrize(
    ("magnitude", "fields", "says"),
    [
        (chip(0, 64, 64), {}, "64x64"),
        (np.zeros((128, 128)), {}, "run from"),
        (np.full((128, 128), np.nan), {}, "run from"),
        (chip(0), {"native_header_length": 512}, "full scene"),
    ],
)
def test_what_is_no_target_chip_is_refused(tmp_path, magnitude, fields, says):
    with pytest.raises(InputError, match=says):
        mstar.read_chip(phoenix(tmp_path / "a", magnitude, **fields))


def release(root: Path) -> Path:
    """A small release: two vehicles at both depressions, and chips that the standard split leaves out."""
    for depression, folder in ((17, "TRAIN/17_DEG"), (15, "TEST/15_DEG")):
        for i in range(4):
            phoenix(root / folder / "T72/SN_132" / f"HB{i}.015", chip(i), DesiredDepression=depression)
            phoenix(
                root / folder / "ZSU_23_4" / f"HB{i}.026",
                chip(10 + i, 140, 140),
                TargetType="zsu23-4_gun",
                TargetSerNum="d08",
                DesiredDepression=f"{depression}.000",
            )
        phoenix(root / folder / "T72/SN_812/HB9.016", chip(20), TargetSerNum="812", DesiredDepression=depression)
    phoenix(root / "30_DEG/HB1.015", chip(21), DesiredDepression=30)
    phoenix(root / "SLICY/HB1.015", chip(22), TargetType="slicey")
    phoenix(root / "second_copy/HB0.015", chip(0))
    (root / "README.txt").write_text("not a chip")
    return root


def test_mstar_takes_the_standard_split_from_the_headers(tmp_path):
    release(tmp_path / "downloads/manual/mstar")
    data = load("mstar", data_dir=tmp_path, preprocess=Preprocess(crop=64), validation=0.25)
    assert data.counts == {"train": 6, "val": 2, "test": 8}
    assert data.class_names == mstar.NAMES
    assert set(arrays(data.test)[1]) == {mstar.NAMES.index("T72"), mstar.NAMES.index("ZSU234")}
    want = mstar.read_chip(tmp_path / "downloads/manual/mstar/TEST/15_DEG/T72/SN_132/HB2.015")[32:96, 32:96]
    assert want.astype(np.float32).tobytes() in {x.tobytes() for x in arrays(data.test)[0]}


def test_the_depression_comes_from_the_folder_where_no_header_has_it(tmp_path):
    for folder in ("17_DEG", "15_DEG"):
        phoenix(tmp_path / folder / "HB1.015", chip(0), DesiredDepression=None)
    chips = mstar.find_chips(tmp_path)
    assert {split: [p.parent.name for p in found] for split, found in chips.items()} == {
        "train": ["17_DEG"],
        "test": ["15_DEG"],
    }
    phoenix(tmp_path / "elsewhere/HB1.015", chip(0), DesiredDepression=None)
    with pytest.raises(InputError, match="no depression angle"):
        mstar.find_chips(tmp_path)


def test_mstar_takes_class_folders_of_images(tmp_path):
    for split, count in (("train", 5), ("test", 2)):
        for name in ("BRDM_2", "d7"):
            (tmp_path / "downloads/manual/mstar" / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)
                Image.fromarray(image).save(tmp_path / "downloads/manual/mstar" / split / name / f"{i}.png")
    data = load("mstar", data_dir=tmp_path)
    assert data.counts == {"train": 8, "val": 2, "test": 4}
    assert set(arrays(data.test)[1]) == {mstar.NAMES.index("BRDM2"), mstar.NAMES.index("D7")}


def test_mstar_says_what_is_missing(tmp_path):
    refuses("mstar", "downloads/manual", "sdms.afrl.af.mil", data_dir=tmp_path)
    root = tmp_path / "downloads/manual/mstar"
    root.mkdir(parents=True)
    (root / "notes.txt").write_text("")
    refuses("mstar", "no MSTAR chips", data_dir=tmp_path)
    phoenix(root / "HB1.015", chip(0))
    refuses("mstar", "1 are for training, 0 for testing", "found: 17", data_dir=tmp_path)


def test_a_damaged_chip_in_a_release_is_named_and_leaves_nothing_half_made(tmp_path):
    root = release(tmp_path / "downloads/manual/mstar")
    broken = root / "TEST/15_DEG/ZSU_23_4/HB2.026"
    broken.write_bytes(broken.read_bytes()[:5000])
    refuses("mstar", str(broken), "ends before", data_dir=tmp_path)
    assert not (tmp_path / "mstar/1.0.0").exists()
    broken.unlink()
    assert load("mstar", data_dir=tmp_path).counts["test"] == 7


class MstarBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks of the builder."""

    DATASET_CLASS = mstar.Mstar
    SPLITS = {"train": 8, "test": 8}  # noqa: RUF012 (unittest's way)

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.EXAMPLE_DIR = release(Path(folder.name))
        super().setUpClass()


# --- fusar_ship --------------------------------------------------------------------------------------------------


def ships(root: Path) -> Path:
    for category, subcategory, code in (("Cargo", "BulkCarrier", "C01S02"), ("Tanker", "", "C12S01")):
        for i in range(6):
            path = root / category / subcategory / f"Ship_{code}N{i:04d}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)).save(path)
    (root / "meta.csv").write_text("id,mmsi\n")
    return root


def test_fusar_ship_takes_the_category_folders_as_classes(tmp_path):
    ships(tmp_path / "downloads/manual/fusar_ship/FUSAR_Ship1.0")
    data = load("fusar_ship", data_dir=tmp_path)
    assert data.counts == {"train": 8, "val": 2, "test": 2}
    assert data.class_names == fusar_ship.CATEGORIES
    found = {fusar_ship.CATEGORIES[label] for label in arrays(data.train)[1]}
    assert found == {"Cargo", "Tanker"}


def test_fusar_ship_keeps_the_subcategory(tmp_path):
    root = ships(tmp_path)
    assert fusar_ship._category(root / "Cargo/BulkCarrier/Ship_C01S02N0001.tiff", root) == ("Cargo", "BulkCarrier")
    assert fusar_ship._category(root / "Tanker/Ship_C12S01N0001.tiff", root) == ("Tanker", "")


def test_fusar_ship_says_what_is_wrong(tmp_path):
    root = tmp_path / "downloads/manual/fusar_ship"
    root.mkdir(parents=True)
    (root / "readme.txt").write_text("")
    refuses("fusar_ship", "no FUSAR-Ship chips", "emwlab.fudan.edu.cn", data_dir=tmp_path)
    path = ships(root) / "Yachts" / "Ship_C99S01N0001.tiff"
    path.parent.mkdir()
    Image.new("L", (16, 16)).save(path)
    refuses("fusar_ship", "Yachts", "no category", data_dir=tmp_path)
    path.rename(root / "Cargo" / path.name)
    Image.new("RGB", (16, 16)).save(root / "Cargo" / path.name)
    refuses("fusar_ship", "3 channels", data_dir=tmp_path)


class FusarShipBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks of the builder."""

    DATASET_CLASS = fusar_ship.FusarShip
    SPLITS = {"train": 12}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.EXAMPLE_DIR = ships(Path(folder.name))
        super().setUpClass()


# --- any TFDS set ------------------------------------------------------------------------------------------------


def builder(name: str, features: dict, examples: dict, *, keys=("image", "label")) -> None:
    """Registers a TFDS builder class; TFDS finds it by its snake_case name."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys)

    def split_generators(self, dl_manager):
        return {split: iter(enumerate(rows)) for split, rows in examples.items()}

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": None,
        "__module__": __name__,
    }
    setattr(sys.modules[__name__], name, type(name, (tfds.core.GeneratorBasedBuilder,), body))


def rows(count: int, *shape: int, classes: int = 2) -> list[dict]:
    return [
        {"image": np.random.default_rng(i).integers(0, 256, shape, np.uint8), "label": i % classes}
        for i in range(count)
    ]


LABEL = tfds.features.ClassLabel(names=["yes", "no"])
builder("TinyScenes", {"image": tfds.features.Image(shape=(8, 8, 3)), "label": LABEL}, {"train": rows(40, 8, 8, 3)})
builder(
    "TinyThreeSplits",
    {"image": tfds.features.Image(shape=(None, None, 3)), "label": LABEL},
    {"train": rows(10, 8, 9, 3), "validation": rows(4, 9, 8, 3), "test": rows(6, 10, 10, 3)},
)
builder(
    "TinyBands",
    {"image": tfds.features.Tensor(shape=(4, 4, 13), dtype=np.float64), "label": LABEL},
    {"train": [{**r, "image": r["image"].astype(np.float64)} for r in rows(20, 4, 4, 13)]},
)
builder("TinyNoTrain", {"image": tfds.features.Image(shape=(8, 8, 3)), "label": LABEL}, {"test": rows(4, 8, 8, 3)})
builder(
    "TinyUnlabelled",
    {"image": tfds.features.Image(shape=(8, 8, 3)), "label": LABEL},
    {"train": rows(10, 8, 8, 3), "test": [{**r, "label": -1} for r in rows(4, 8, 8, 3)]},
)
builder(
    "TinyWords",
    {"text": tfds.features.Text(), "label": LABEL},
    {"train": [{"text": "a", "label": 0}]},
    keys=("text", "label"),
)
builder("TinyPlain", {"image": tfds.features.Image(shape=(8, 8, 3))}, {"train": [{"image": rows(1, 8, 8, 3)[0]["image"]}]}, keys=None)  # fmt: skip  # noqa: E501


def test_a_tfds_set_without_a_test_split_is_split_by_class(tmp_path):
    data = load("tiny_scenes", data_dir=tmp_path, validation=0.25)
    assert data.counts == {"train": 24, "val": 8, "test": 8}
    assert data.class_names == ("yes", "no")
    assert np.bincount(arrays(data.test)[1]).tolist() == [4, 4]
    assert load("tiny_scenes", data_dir=tmp_path).fingerprint != data.fingerprint


def test_a_tfds_set_keeps_its_own_splits_and_resizes(tmp_path):
    refuses("tiny_three_splits", "8x9", "--resize", data_dir=tmp_path)
    data = load("tiny_three_splits", data_dir=tmp_path, preprocess=Preprocess(crop=8, resize=4, channels=1))
    assert data.counts == {"train": 10, "val": 4, "test": 6}
    assert data.shape == (4, 4, 1)


def test_a_large_tfds_set_is_kept_encoded_and_gives_the_same(tmp_path, monkeypatch):
    from orbit_kd import datasets
    from orbit_kd.datasets import catalog

    whole = load("tiny_scenes", data_dir=tmp_path)
    for module in (datasets, catalog):
        monkeypatch.setattr(module, "MEMORY_LIMIT", 1000)
    lazy = load("tiny_scenes", data_dir=tmp_path)
    assert not lazy.examples.images.in_memory
    for one, other in zip(arrays(whole.train), arrays(lazy.train), strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_bands_are_kept(tmp_path):
    data = load("tiny_bands", data_dir=tmp_path)
    assert data.shape == (4, 4, 13)
    refuses("tiny_bands", "13 channels", data_dir=tmp_path, preprocess=Preprocess(channels=3))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny_no_train", "no train split"),
        ("tiny_unlabelled", "without a label"),
        ("tiny_words", "no image classification"),
        ("tiny_plain", "no image classification"),
        ("sar_simm", "did you mean sar_sim"),
        ("tiny_scenes/no_such_config", "tiny_scenes/no_such_config"),
    ],
)
def test_a_tfds_set_that_cannot_be_used_is_refused(tmp_path, name, says):
    refuses(name, says, data_dir=tmp_path)


def test_a_registered_set_of_ones_own_is_found_by_name(tmp_path):
    def my_scenes(data_dir):
        return tfds.builder("tiny_scenes", data_dir=data_dir)

    with DATASETS.temporary("my_scenes", my_scenes):
        assert load("my_scenes", data_dir=tmp_path).shape == (8, 8, 3)
