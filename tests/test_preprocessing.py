"""Preprocess and Augment as functions on images."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess, apply, check, check_augment, output_shape
from orbit_kd.errors import InputError

SEED = tf.constant([3, 7], tf.int64)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def test_crop_takes_the_centre():
    image = noise(10, 12, 1)
    got = apply(Preprocess(crop=(4, 6)), image).numpy()
    np.testing.assert_array_equal(got, image[3:7, 3:9].astype(np.float32))
    assert got.dtype == np.float32


@pytest.mark.parametrize(("size", "to"), [((96, 80), (64, 48)), ((60, 60), (17, 33)), ((20, 24), (50, 41))])
def test_resize_agrees_with_pillow_to_its_rounding(size, to):
    # Smooth and rough content: Pillow rounds to whole levels after each of its two passes.
    for image in (noise(*size), np.asarray(Image.fromarray(noise(6, 6)).resize(size[::-1], Image.Resampling.BICUBIC))):
        want = np.asarray(Image.fromarray(image).resize(to[::-1], Image.Resampling.BILINEAR), float)
        got = apply(Preprocess(resize=to), image[..., None]).numpy()[..., 0]
        assert np.abs(got - want).max() <= 1.01


def test_crop_comes_before_resize():
    image = noise(32, 32, 1)
    both = apply(Preprocess(crop=16, resize=8), image)
    np.testing.assert_allclose(both, apply(Preprocess(resize=8), image[8:24, 8:24]), atol=1e-4)


def test_mean_is_taken_off_before_scaling_and_per_channel():
    image = noise(4, 4, 3)
    got = apply(Preprocess(mean=(10, 20, 30), scale=0.5), image).numpy()
    np.testing.assert_allclose(got, (image - np.array([10.0, 20, 30])) * 0.5, rtol=1e-6)


def test_luminance_agrees_with_pillow_and_grey_repeats():
    image = noise(16, 16, 3)
    want = np.asarray(Image.fromarray(image).convert("L"), float)
    assert np.abs(apply(Preprocess(channels=1), image).numpy()[..., 0] - want).max() <= 0.51
    grey = image[..., :1]
    np.testing.assert_array_equal(apply(Preprocess(channels=3), grey).numpy(), np.repeat(grey, 3, -1))


def test_sixteen_bits_are_kept():
    image = noise(4, 4, 1, dtype=np.uint16)
    np.testing.assert_array_equal(apply(Preprocess(), image).numpy(), image.astype(np.float32))


def test_a_batch_is_its_images_one_by_one():
    images, seeds = noise(5, 12, 12, 1), tf.constant([[1, i] for i in range(5)], tf.int64)
    augment = Augment(shift=3, flip="hv", turns=True, gain=0.2, speckle=3)
    preprocess = Preprocess(crop=8, resize=6, channels=3, mean=(1, 2, 3), scale=2)
    batch = apply(preprocess, images, augment=augment, seed=seeds)
    for i in range(5):
        np.testing.assert_allclose(
            apply(preprocess, images[i], augment=augment, seed=seeds[i]), batch[i], rtol=1e-5, atol=1e-3
        )


def coordinates(size: int) -> np.ndarray:
    """An image whose pixels say where they are."""
    return np.arange(size * size, dtype=np.uint16).reshape(size, size, 1)


def test_shift_moves_the_crop_over_real_pixels():
    image, offsets = coordinates(16), set()
    for i in range(200):
        got = apply(Preprocess(crop=8), image, augment=Augment(shift=3), seed=tf.constant([0, i], tf.int64)).numpy()
        row, column = divmod(int(got[0, 0, 0]), 16)
        np.testing.assert_array_equal(got, image[row : row + 8, column : column + 8])
        offsets.add((row - 4, column - 4))
    assert {r for r, _ in offsets} == {c for _, c in offsets} == set(range(-3, 4))


def test_shift_reflects_where_the_image_ends():
    image, padded = coordinates(8), np.pad(coordinates(8), ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = {padded[r : r + 8, c : c + 8].astype(np.float32).tobytes() for r in range(7) for c in range(7)}
    seen = set()
    for i in range(60):
        got = apply(Preprocess(), image, augment=Augment(shift=3), seed=tf.constant([0, i], tf.int64))
        seen.add(got.numpy().tobytes())
    assert seen <= windows
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("augment", "count"), [(Augment(flip="h"), 2), (Augment(flip="hv"), 4), (Augment(turns=True), 4)]
)
def test_flips_and_turns_give_each_orientation_and_no_other(augment, count):
    image = coordinates(4)
    turned = [np.rot90(image, k) for k in range(4)]
    allowed = {
        "h": [image, image[:, ::-1]],
        "hv": [image, image[:, ::-1], image[::-1], image[::-1, ::-1]],
        "": turned,
    }[augment.flip]
    seen = {
        apply(Preprocess(), image, augment=augment, seed=tf.constant([0, i], tf.int64)).numpy().tobytes()
        for i in range(60)
    }
    assert seen == {a.astype(np.float32).tobytes() for a in allowed}
    assert len(seen) == count


def test_gain_is_one_factor_an_image_within_its_range():
    image, factors = np.full((4, 4, 1), 100, np.uint8), []
    for i in range(100):
        got = apply(Preprocess(), image, augment=Augment(gain=0.2), seed=tf.constant([0, i], tf.int64)).numpy()
        assert got.min() == got.max()
        factors.append(got[0, 0, 0] / 100)
    assert 0.8 <= min(factors) < 0.85
    assert 1.15 < max(factors) <= 1.2


def test_speckle_has_mean_one_and_variance_one_over_looks():
    image = np.full((128, 128, 1), 1000, np.uint16)
    got = apply(Preprocess(), image, augment=Augment(speckle=4), seed=SEED).numpy() / 1000
    assert got.mean() == pytest.approx(1, abs=0.02)
    assert got.var() == pytest.approx(0.25, rel=0.05)


def test_augmented_values_stay_in_the_decoded_range():
    image = np.full((32, 32, 1), 250, np.uint8)
    assert apply(Preprocess(), image, augment=Augment(speckle=1), seed=SEED).numpy().max() == 255


def test_augmentation_is_a_function_of_the_seed():
    image, augment = noise(16, 16, 1), Augment(shift=4, flip="hv", turns=True, gain=0.3, speckle=2)
    one, again, other = (
        apply(Preprocess(crop=8), image, augment=augment, seed=tf.constant(s, tf.int64)).numpy()
        for s in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_apply_works_in_a_tf_data_map_with_unknown_sizes():
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([noise(9, 7, 1), noise(5, 12, 1)]), output_signature=tf.TensorSpec((None, None, 1), tf.uint8)
    )
    preprocess, augment = Preprocess(crop=4, resize=3), Augment(shift=2, flip="h", turns=True)
    mapped = dataset.map(lambda x: apply(preprocess, x, augment=augment, seed=SEED))
    assert [x.shape for x in mapped] == [(3, 3, 1), (3, 3, 1)]
    np.testing.assert_array_equal(
        next(iter(mapped)), apply(preprocess, noise(9, 7, 1), augment=augment, seed=SEED).numpy()
    )


@pytest.mark.parametrize(
    ("preprocess", "image", "model", "says"),
    [
        (Preprocess(), (128, 128, 1), (None, 64, 64, 1), ["128x128", "64x64", "crop=64", "--crop=64", "--resize=64"]),
        (Preprocess(), (32, 32, 1), (64, 64, 1), ["resize=64", "--resize=64"]),
        (Preprocess(crop=80), (128, 96, 1), (64, 48, 1), ["80x80", "crop=(64, 48)", "--crop=64x48"]),
        (Preprocess(), (64, 64, 3), (64, 64, 1), ["3 channels", "channels=1", "--channels=1"]),
        (Preprocess(), (64, 64, 13), (64, 64, 3), ["13 channels", "use images of 3 channels"]),
        (Preprocess(crop=200), (128, 96, 1), (64, 64, 1), ["200x200", "128x96", "--crop"]),
        (Preprocess(channels=3), (64, 64, 13), (64, 64, 3), ["13 channels", "--channels"]),
        (Preprocess(mean=(1, 2)), (64, 64, 3), (64, 64, 3), ["2 values", "--mean"]),
        (Preprocess(), (64, 64, 3), (None, 100), ["one image input"]),
    ],
)
def test_a_mismatch_with_the_model_names_what_resolves_it(preprocess, image, model, says):
    with pytest.raises(InputError) as e:
        check(preprocess, image, model)
    for words in says:
        assert words in str(e.value)


def test_the_named_ways_out_of_a_mismatch_do_resolve_it():
    check(Preprocess(crop=64), (128, 128, 1), (None, 64, 64, 1))
    check(Preprocess(resize=64), (128, 128, 1), (None, 64, 64, 1))
    check(Preprocess(channels=1), (64, 64, 3), (None, 64, 64, 1))
    check(Preprocess(), (50, 70, 3), (None, None, None, 3))
    assert output_shape(Preprocess(crop=(40, 30), resize=(8, 9), channels=3), (50, 60, 1)) == (8, 9, 3)


@pytest.mark.parametrize(
    "bad", [{"shift": -1}, {"flip": "x"}, {"gain": 1.0}, {"gain": -0.1}, {"speckle": 0}, {"shift": 1.5}]
)
def test_an_impossible_augment_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Augment(**bad)


def test_an_augment_that_does_not_fit_the_images_is_refused():
    with pytest.raises(InputError, match="crop=6"):
        check_augment(Preprocess(), (6, 8, 1), Augment(turns=True))
    with pytest.raises(InputError, match="shift=8"):
        check_augment(Preprocess(), (8, 8, 1), Augment(shift=8))
    check_augment(Preprocess(crop=4), (6, 8, 1), Augment(turns=True, shift=5))


def test_augment_comes_back_from_its_dict():
    augment = Augment(shift=2, flip="v", turns=True, gain=0.1, speckle=5)
    assert Augment(**augment.to_dict()) == augment
