"""Image files to arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets import tiff
from orbit_kd.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
ARRAYS = (".npy",)
KERAS_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")  # what image_dataset_from_directory takes

Item = Path | bytes | np.ndarray | tuple[Any, ...]
"""One image: a file, an encoded file's bytes, pixels, or a tuple of these whose channels stand one after the other."""


def decode(
    item: Item,
    *,
    name: str = "",
    loader: str = "orbit_kd",
    channels: int | None = None,
    bands: Sequence[int] = (),
) -> np.ndarray:
    """One image as an array (height, width, channels) of uint8, uint16 or float32.

    Grey stays one channel, 16 bits stay 16 bits. Palettes, CMYK, YCbCr and Lab become RGB (a palette of greys becomes
    grey); an alpha channel is laid over black. Of several frames the first is taken. The bands of a TIFF file are kept,
    as many as there are, and so is the last axis of a .npy file. Signed integers of 8 and 16 bits become float32.

    The other loaders do what the Keras function of that name does. Both drop an alpha channel.
    "image_dataset_from_directory" cuts 16 bits down to their upper 8, and its JPEG decoder differs from Pillow's by one
    level on average and by up to 13 at edges. "load_img" clips 16 bits at 255 where colour is wanted. A rotation in
    EXIF data is followed by none of the three.

    Args:
        item: a file, an encoded file's bytes, an array that is decoded already, or a tuple of these: the bands of one
            image, in their order.
        name: for messages; a path names itself.
        loader: see `Preprocess`.
        channels: what a Keras loader makes of the file: 1, 3, or None for 1 of a grey file and 3 of all others. The
            loader "orbit_kd" leaves this to `preprocessing.apply`.
        bands: the channels to take, counted from 0, in this order; none takes all. Every channel and page of a TIFF
            file counts as a band then, also what would be taken for alpha.

    Raises:
        InputError: no image, a damaged one, pixels that no such array can hold, parts of unequal size, or a band that
            there is not.
    """
    if bands:
        return _chosen(_whole(item, name, loader, channels, raw=True), bands, name or str(item))
    return _whole(item, name, loader, channels, raw=False)


def _whole(item: Item, name: str, loader: str, channels: int | None, *, raw: bool) -> np.ndarray:
    """The image with all its channels."""
    if isinstance(item, np.ndarray):
        return item
    if isinstance(item, tuple):
        return _together([_whole(part, "", loader, channels, raw=raw) for part in item], item)
    name = name or str(item)
    try:
        if isinstance(item, Path) and item.suffix.lower() in ARRAYS:
            pixels = _array(item)
        elif loader == "orbit_kd" and tiff.is_tiff(item) and (read := tiff.read(item, name, raw=raw)) is not None:
            pixels = read
        else:
            pixels = _DECODERS[loader](item, channels)
    except InputError:
        raise
    # Pillow's plug-ins raise whatever their parser met: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as e:
        raise InputError(
            f"Cannot read the image {name}: {e}.",
            expected="a whole png, jpg, tif or bmp file",
            fix="replace the file, or take it out of the folder",
        ) from e
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = _checked(pixels, name)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _array(file: Path) -> np.ndarray:
    """The pixels of a .npy file, (height, width) or (height, width, channels)."""
    pixels = np.load(file, allow_pickle=False)
    if pixels.ndim not in (2, 3) or not (np.issubdtype(pixels.dtype, np.number) or pixels.dtype == bool):
        raise InputError(
            f"The array {file} has shape {pixels.shape} and dtype {pixels.dtype}.",
            expected="numbers of shape (height, width) or (height, width, channels)",
            fix="save one image a file in this shape",
        )
    if pixels.ndim == 3 and pixels.shape[0] < pixels.shape[1] == pixels.shape[2]:
        raise InputError(
            f"The array {file} of shape {pixels.shape} seems to have its channels first.",
            expected="(height, width, channels)",
            fix="save it so: np.save(file, np.moveaxis(array, 0, -1))",
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _together(parts: Sequence[np.ndarray], items: Sequence[Any]) -> np.ndarray:
    """The channels of several images of one size as those of one; of the widest of their types."""
    odd = next((i for i, part in enumerate(parts) if part.shape[:2] != parts[0].shape[:2]), None)
    if odd is not None:
        raise InputError(
            f"The bands of one image differ in size: {items[0]} is {parts[0].shape[0]}x{parts[0].shape[1]}, "
            f"{items[odd]} is {parts[odd].shape[0]}x{parts[odd].shape[1]}.",
            expected="bands on one grid of pixels (height x width)",
            fix="resample them to one size, or leave a band out (bands=..., --bands)",
        )
    return np.concatenate(parts, axis=-1)


def _chosen(image: np.ndarray, bands: Sequence[int], name: str) -> np.ndarray:
    if max(bands) >= image.shape[-1]:
        raise InputError(
            f"Band {max(bands)} is asked for, and {name} has {image.shape[-1]} channels.",
            expected=f"numbers from 0 to {image.shape[-1] - 1}",
            fix="choose others (bands=..., --bands); they are counted from 0",
        )
    return image[..., list(bands)]


def repeat_grey(image: np.ndarray, channels: int) -> np.ndarray:
    """A grey image repeated to `channels`; any other comes back as it is."""
    return np.repeat(image, channels, axis=-1) if image.shape[-1] == 1 < channels else image


def _pixels(image: Any) -> np.ndarray:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        pixels = _over_black(np.asarray(image.convert("RGBA")))
        return pixels[..., 0] if (palette == palette[:, :1]).all() else pixels
    if image.mode in ("LA", "La"):
        return _over_black(np.asarray(image.convert("LA")))
    if image.mode in ("RGBA", "RGBa", "PA"):
        return _over_black(np.asarray(image.convert("RGBA")))
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return np.asarray(image.convert("RGB"))
    return np.asarray(image.convert("L") if image.mode == "1" else image)


def _with_pillow(item: Path | bytes, channels: int | None) -> np.ndarray:
    from PIL import Image

    with Image.open(item if isinstance(item, Path) else io.BytesIO(item)) as image:
        return _deep_colour(image, item) if _bits(image) > 8 else _pixels(image)


def _as_load_img(item: Path | bytes, channels: int | None) -> np.ndarray:
    """What Keras' `load_img(color_mode="rgb" or "grayscale")` opens."""
    from PIL import Image

    with Image.open(item if isinstance(item, Path) else io.BytesIO(item)) as image:
        grey = image.mode in ("L", "I;16", "I")
        if channels == 1:
            return np.asarray(image if grey else image.convert("L"))
        return np.asarray(image if image.mode == "RGB" or (grey and channels is None) else image.convert("RGB"))


def _as_tensorflow(item: Path | bytes, channels: int | None) -> np.ndarray:
    """What Keras' `image_dataset_from_directory` reads."""
    import tensorflow as tf

    if isinstance(item, Path) and item.suffix.lower() not in KERAS_SUFFIXES:
        raise InputError(
            f"image_dataset_from_directory leaves out files like {item}.",
            expected=f"what it reads: {', '.join(KERAS_SUFFIXES)}",
            fix="take these files out of the folder too, or choose another loader (--loader)",
        )
    data = item.read_bytes() if isinstance(item, Path) else item
    pixels = tf.io.decode_image(data, channels=channels or 0, expand_animations=False).numpy()
    return pixels[..., : {2: 1, 4: 3}.get(pixels.shape[-1])]  # without alpha


_DECODERS: dict[str, Callable[[Path | bytes, int | None], np.ndarray]] = {
    "orbit_kd": _with_pillow,
    "image_dataset_from_directory": _as_tensorflow,
    "load_img": _as_load_img,
}


def _over_black(pixels: np.ndarray) -> np.ndarray:
    full = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:] / full
    return np.rint(colour * alpha).astype(pixels.dtype)


def _bits(image: Any) -> int:
    """Bits a channel of an image of several channels; Pillow would cut 16 down to 8 in silence."""
    if image.mode not in ("RGB", "RGBA", "LA", "RGBX"):
        return 8
    if hasattr(image, "tag_v2"):
        return max(image.tag_v2.get(258, (8,)))
    return 16 if any(";16" in str(tile[3]) for tile in image.tile) else 8


def _deep_colour(image: Any, item: Path | bytes) -> np.ndarray:
    if image.format != "PNG":
        raise InputError(
            f"The image {item if isinstance(item, Path) else ''} has 16 bits in each of several channels.",
            expected="such images as PNG, or as RGB or multi-band TIFF",
            fix="convert it to a 16-bit PNG",
        )
    import tensorflow as tf

    pixels = tf.io.decode_png(item.read_bytes() if isinstance(item, Path) else item, dtype=tf.uint16).numpy()
    return _over_black(pixels) if pixels.shape[-1] in (2, 4) else pixels


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """16-bit integers from wider or big-endian ones, float32 from small signed ones; float pixels must be finite."""
    if np.issubdtype(pixels.dtype, np.floating):
        if np.isfinite(pixels).all():
            return pixels.astype(np.float32)
        raise InputError(
            f"The image {name} has pixels that are NaN or infinite.",
            expected="finite values",
            fix="fill them in, or take the image out of the folder",
        )
    if pixels.dtype in (np.int8, np.int16):
        return pixels.astype(np.float32)  # whatever their sign, so that all files of a set have one type
    if pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    raise InputError(
        f"The image {name} has {pixels.dtype} pixels from {pixels.min()} to {pixels.max()}.",
        expected="pixels from 0 to 65535, or float32",
        fix="save it as a 16-bit or float32 image",
    )
