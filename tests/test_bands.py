"""Images of many bands: several files an image, TIFF of any depth, arrays; and what Preprocess says of them."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

import orbit_kd as okd
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.decoding import decode
from orbit_kd.datasets.preprocessing import Preprocess, apply
from orbit_kd.errors import InputError
from orbit_kd.exporters.metadata import to_text

SIZE = (16, 18)


def noise(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def refuses(folder, *says: str, **options) -> None:
    with pytest.raises(InputError) as e:
        okd.load(folder, **options)
    for words in says:
        assert words in str(e.value), str(e.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in three files, and masks."""
    for part, count in (("train", 6), ("test", 2)):
        for band in ("rgb", "nir", "elevation", "mask"):
            (tmp_path / part / band).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(i, *SIZE, 3)).save(tmp_path / part / "rgb" / f"{i}.png")
            tifffile.imwrite(tmp_path / part / "nir" / f"{i}.tif", noise(i, *SIZE, dtype=np.uint16))
            np.save(tmp_path / part / "elevation" / f"{i}.npy", noise(i, *SIZE, dtype=np.float32))
            Image.fromarray(noise(i, *SIZE) % 2).save(tmp_path / part / "mask" / f"{i}.png")
    return tmp_path


def image(i: int) -> dict[str, np.ndarray]:
    return {
        "rgb": noise(i, *SIZE, 3).astype(np.float32),
        "nir": noise(i, *SIZE, dtype=np.uint16).astype(np.float32)[..., None],
        "elevation": noise(i, *SIZE, dtype=np.float32)[..., None],
    }


def holds(data: okd.Data, bands) -> None:
    got = {x.tobytes() for x in arrays(data.test)[0]}
    assert got == {np.concatenate([image(i)[b] for b in bands], -1).tobytes() for i in range(2)}


def test_folders_beside_the_masks_are_bands(folder, caplog):
    caplog.set_level(logging.INFO, "orbit_kd")
    data = okd.load(folder)
    assert data.shape == (*SIZE, 5)
    assert data.preprocess.bands == ("elevation", "nir", "rgb")
    assert "the bands of an image are elevation, nir, rgb, in this order" in caplog.text
    holds(data, ("elevation", "nir", "rgb"))


@pytest.mark.parametrize("bands", [("rgb", "nir"), "rgb,nir", ["rgb", "nir"]])
def test_the_order_may_be_said(folder, bands):
    data = okd.load(folder, bands=bands)
    assert data.preprocess.bands == ("rgb", "nir") and data.shape == (*SIZE, 4)
    holds(data, ("rgb", "nir"))
    assert okd.load(folder, preprocess=Preprocess(bands=("rgb", "nir"))).key == data.key
    assert okd.load(folder, bands=("nir", "rgb")).key != data.key


def test_channels_may_be_chosen_by_number(folder):
    data = okd.load(folder, bands=(4, 0))
    got = {x.tobytes() for x in arrays(data.test)[0]}
    want = [np.concatenate([image(i)[b] for b in ("elevation", "nir", "rgb")], -1)[..., [4, 0]] for i in range(2)]
    assert got == {w.tobytes() for w in want}
    assert data.preprocess.bands == ("4", "0")
    refuses(folder, "Band 5", "5 channels", "0 to 4", bands=(0, 5))


def test_bands_that_there_are_not(folder):
    refuses(folder, "no bands swir", "elevation, nir, rgb", bands=("rgb", "swir"))
    refuses(folder, "each band once", bands=("rgb", "rgb"))
    refuses(folder, "one choice", bands=("rgb",), preprocess=Preprocess(bands=("nir",)))


def test_bands_that_differ_between_files(folder):
    (folder / "train/nir/3.tif").unlink()
    refuses(folder, "1 mask without its image", "mask/3.png", "train/nir")
    assert okd.load(folder, bands=("rgb",)).shape == (*SIZE, 3)
    tifffile.imwrite(folder / "train/nir/3.tif", noise(0, 8, 9, dtype=np.uint16))
    refuses(folder, "differ in size", "nir/3.tif is 8x9", bands=("rgb", "nir"))
    for file in (folder / "test/nir").iterdir():
        file.unlink()
    refuses(folder, "no images in", "test/nir", bands=("nir",))


def test_preprocess_takes_a_mean_a_scale_and_a_deviation_a_band(folder):
    how = Preprocess(mean=(1, 2, 3, 4, 5), scale=(1, 2, 3, 4, 5), std=(5, 4, 3, 2, 1))
    plain, data = arrays(okd.load(folder).test)[0], okd.load(folder, preprocess=how)
    want = (plain - np.float32(how.mean)) * np.float32(how.scale) / np.float32(how.std)
    np.testing.assert_allclose(arrays(data.test)[0], want, rtol=1e-6)
    for field in ("mean", "scale", "std"):
        refuses(folder, f"{field}=...) has 3 values for 5 channels", preprocess=Preprocess(**{field: (1, 2, 3)}))


def test_a_preprocess_without_bands_is_written_as_before():
    old = {
        "crop": None, "resize": None, "scale": 1.0, "mean": (), "channels": None, "loader": "orbit_kd",
        "interpolation": None, "aspect": "stretch", "bgr": False, "std": (),
    }  # fmt: skip
    assert Preprocess().to_dict() == old
    how = Preprocess(bands=("nir", 3), scale=[0.5, 2])
    assert Preprocess(**how.to_dict()) == how and how.bands == ("nir", "3")
    assert Preprocess(scale=(2.0,)) == Preprocess(scale=2)
    assert '"bands"' not in to_text({"preprocess": Preprocess()})
    assert '"bands": ["nir", "3"]' in to_text({"preprocess": how})
    with pytest.raises(InputError, match="loader"):
        Preprocess(bands=(1,), loader="load_img")


def test_scale_by_band_is_that_of_one_for_all():
    images = noise(0, 3, *SIZE, 4)
    a, b = (apply(Preprocess(scale=s), images).numpy() for s in (1 / 255, (1 / 255,) * 4))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_many_bands(dtype, planar, order, tmp_path):
    pixels = noise(0, *SIZE, 12, dtype=dtype)
    written = np.moveaxis(pixels, -1, 0) if planar else pixels
    how = {"photometric": "minisblack", "planarconfig": "separate" if planar else "contig", "byteorder": order}
    tifffile.imwrite(tmp_path / "a.tif", written, **how)
    got = decode(tmp_path / "a.tif")
    assert got.dtype == (dtype if dtype in (np.uint8, np.uint16) else np.float32)
    np.testing.assert_array_equal(got, pixels.astype(got.dtype))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif", bands=(11, 0)), got[..., [11, 0]])
    np.testing.assert_array_equal(decode((tmp_path / "a.tif").read_bytes()), got)


@pytest.mark.parametrize("first", [False, True])
def test_an_array_saved_as_pages_is_told_by_its_shape(first, tmp_path):
    pixels = noise(0, *SIZE, 5, dtype=np.int16)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0) if first else pixels)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), pixels)
    tifffile.imwrite(tmp_path / "b.tif", noise(0, 17, 17, 17, dtype=np.int16))
    with pytest.raises(InputError, match=r"b\.tif.*\(17, 17, 17\)"):
        decode(tmp_path / "b.tif")


def test_four_bands_of_eight_bits_are_not_cut_to_three(tmp_path):
    pixels = noise(0, *SIZE, 4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), pixels)
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert decode(tmp_path / "b.tif").shape == (*SIZE, 3)  # alpha over black
    np.testing.assert_array_equal(decode(tmp_path / "b.tif", bands=(0, 1, 2, 3)), pixels)


def test_pages_and_alpha_that_are_left_out_are_told(tmp_path, caplog):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            frames = [Image.fromarray(noise(10 * i + k, *SIZE)) for k in range(3)]
            frames[0].save(tmp_path / label / f"{i}.tif", save_all=True, append_images=frames[1:])
    assert okd.load(tmp_path).shape == (*SIZE, 1)
    assert "of its 3 pages only the first is taken" in caplog.text
    data = okd.load(tmp_path, bands=(0, 1, 2))
    assert data.shape == (*SIZE, 3) and data.task == "classification"


def test_class_folders_of_many_bands(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            how = {"photometric": "minisblack", "planarconfig": "contig"}
            tifffile.imwrite(tmp_path / label / f"{i}.tif", noise(i, *SIZE, 7, dtype=np.uint16), **how)
    data = okd.load(tmp_path, bands="6,2")
    assert data.shape == (*SIZE, 2)
    x, _ = arrays(data.train)
    assert all(any(np.array_equal(noise(i, *SIZE, 7, dtype=np.uint16)[..., [6, 2]], e) for i in range(5)) for e in x)
    read = okd.datasets.renderings(tmp_path, split="all").dataset(data.preprocess)
    assert read.element_spec[0].shape[1:] == (*SIZE, 2)
    refuses(tmp_path, "no band 'nir'", "each image is one file", bands=("nir",))
    tifffile.imwrite(tmp_path / "a/9.tif", noise(0, *SIZE, 6, dtype=np.uint16), **how)
    refuses(tmp_path, "9.tif", "6", "7 channels")


def test_class_folders_of_arrays(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(5):
            np.save(tmp_path / label / f"{i}.npy", noise(i, *SIZE, 5, dtype=np.float32))
    assert okd.load(tmp_path).shape == (*SIZE, 5)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3, 4, 5)), "(2, 3, 4, 5)"),
        (np.array([["a"]]), "<U1"),
        (np.zeros((4, 16, 16)), "channels first"),
        (np.full((4, 4), np.nan), "NaN"),
    ],
)
def test_arrays_that_are_no_image(array, says, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError) as e:
        decode(tmp_path / "a.npy")
    assert says in str(e.value) and "a.npy" in str(e.value)
    np.save(tmp_path / "b.npy", np.array([{}], object))
    with pytest.raises(InputError, match=r"b\.npy.*[Oo]bject"):
        decode(tmp_path / "b.npy")


def test_nan_in_a_tiff_is_refused(tmp_path):
    pixels = noise(0, *SIZE, 5, dtype=np.float32)
    pixels[3, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=r"a\.tif.*NaN"):
        decode(tmp_path / "a.tif")


@pytest.mark.parametrize("cut", [3, 100, 2000])
def test_a_damaged_tiff_is_named(cut, tmp_path):
    file = io.BytesIO()
    tifffile.imwrite(file, noise(0, *SIZE, 12, dtype=np.int16), photometric="minisblack", planarconfig="contig")
    (tmp_path / "a.tif").write_bytes(file.getvalue()[:cut])
    with pytest.raises(InputError, match=r"a\.tif"):
        decode(tmp_path / "a.tif")


def test_a_compression_that_needs_the_extra_says_so(tmp_path, monkeypatch):
    def without(self, *_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")  # tifffile's own words

    how = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", noise(0, *SIZE, 5, dtype=np.int16), **how)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), noise(0, *SIZE, 5, dtype=np.int16))
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", without)
    with pytest.raises(InputError, match=r"a\.tif(?s:.*)LZW(?s:.*)orbit-kd\[geo\]"):
        decode(tmp_path / "a.tif")


def test_lzw_is_read_with_the_extra(tmp_path):
    pytest.importorskip("imagecodecs", reason="the extra geo is not installed")
    how = {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw"}
    tifffile.imwrite(tmp_path / "a.tif", noise(0, *SIZE, 5, dtype=np.int16), **how)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), noise(0, *SIZE, 5, dtype=np.int16))


def test_speckle_on_negative_values_is_refused_and_gain_is_not(folder):
    data = okd.load(folder)
    refuse = pytest.raises(InputError, match="decibels")
    with refuse:
        data.epochs(seed=0, augment=Augment(speckle=4))
    next(iter(data.epochs(seed=0, augment=Augment(gain=0.1))))


def test_gain_is_one_factor_for_all_bands(folder):
    data = okd.load(folder)
    plain, x = arrays(data.train)[0], arrays(data.views(1, seed=0, augment=Augment(gain=0.2)))[0]
    for a, b in zip(plain[..., 0], x[..., 0], strict=True):  # elevation: negative values too
        factor = b / a
        assert np.ptp(factor) < 1e-4 and 0.8 <= factor.mean() <= 1.2


def test_pixels_without_data_are_counted(tmp_path, caplog):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(4):
            pixels = noise(i, *SIZE, 5, dtype=np.float32)
            pixels[0, 0] = -9999 if i < 2 else 0
            how = {"photometric": "minisblack", "planarconfig": "contig", "extratags": [(42113, 2, 0, "-9999", True)]}
            tifffile.imwrite(tmp_path / label / f"{i}.tif", pixels, **how)
    okd.load(tmp_path)
    assert "4 of 8 images have pixels of -9999" in caplog.text
