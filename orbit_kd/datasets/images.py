"""Image files to arrays, and the images of a data set as one indexable thing."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets.preprocessing import Preprocess, output_shape
from orbit_kd.errors import InputError
from orbit_kd.support.progress import track

if TYPE_CHECKING:
    import tensorflow as tf

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
KERAS_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")  # what image_dataset_from_directory takes
# Above this many bytes of decoded images they are decoded again at each use.
MEMORY_LIMIT = 1_500_000_000

Item = Path | bytes | np.ndarray


def decode(item: Item, *, name: str = "", loader: str = "orbit_kd", channels: int | None = None) -> np.ndarray:
    """One image as an array (height, width, channels) of uint8, uint16 or float32.

    Grey stays one channel, 16 bits stay 16 bits. Palettes, CMYK, YCbCr and Lab become RGB (a palette of greys becomes
    grey); an alpha channel is laid over black. Of several frames the first is taken.

    The other loaders do what the Keras function of that name does. Both drop an alpha channel.
    "image_dataset_from_directory" cuts 16 bits down to their upper 8, and its JPEG decoder differs from Pillow's by one
    level on average and by up to 13 at edges. "load_img" clips 16 bits at 255 where colour is wanted. A rotation in
    EXIF data is followed by none of the three.

    Args:
        item: a file, an encoded file's bytes, or an array that is decoded already.
        name: for messages; a path names itself.
        loader: see `Preprocess`.
        channels: what a Keras loader makes of the file: 1, 3, or None for 1 of a grey file and 3 of all others. The
            loader "orbit_kd" leaves this to `preprocessing.apply`.

    Raises:
        InputError: no image, a damaged one, or pixels that no such array can hold.
    """
    if isinstance(item, np.ndarray):
        return item
    name = name or str(item)
    try:
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
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = _checked(pixels, name)
    return pixels[..., None] if pixels.ndim == 2 else pixels


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
            expected="such images as PNG; Pillow reads 16-bit TIFF only in grey",
            fix="convert it to a 16-bit PNG",
        )
    import tensorflow as tf

    pixels = tf.io.decode_png(item.read_bytes() if isinstance(item, Path) else item, dtype=tf.uint16).numpy()
    return _over_black(pixels) if pixels.shape[-1] in (2, 4) else pixels


def _checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """16-bit integers from wider or big-endian ones; float pixels must be finite."""
    if np.issubdtype(pixels.dtype, np.floating):
        if np.isfinite(pixels).all():
            return pixels.astype(np.float32)
        raise InputError(
            f"The image {name} has pixels that are NaN or infinite.",
            expected="finite values",
            fix="fill them in, or take the image out of the folder",
        )
    if pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    raise InputError(
        f"The image {name} has {pixels.dtype} pixels from {pixels.min()} to {pixels.max()}.",
        expected="pixels from 0 to 65535, or float32",
        fix="save it as a 16-bit or float32 image",
    )


class Images:
    """The images of a data set, by index. Decoded once where they fit in memory, else at each use.

    Attributes:
        shapes: (height, width, channels) of each image; where grey and RGB are mixed, all count as RGB.
        dtype: the pixel type they all have.
        in_memory: whether the decoded pixels are kept.
    """

    def __init__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        *,
        preprocess: Preprocess | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        """Decodes every image once, which also finds the damaged ones.

        Args:
            items: files, encoded bytes or arrays.
            names: what to call each in messages.
            preprocess: whose loader and channels `decode` works with.
            memory_limit: bytes of decoded pixels to keep at most.

        Raises:
            InputError: see `decode`; or the pixel types differ.
        """
        self._items: Sequence[Item] = items
        how = preprocess or Preprocess()
        self._decode = functools.partial(decode, loader=how.loader, channels=how.channels)
        self._names = names
        kept: list[np.ndarray] = []
        self.in_memory, total, shapes, dtypes = True, 0, [], []
        for image in _decode_all(self._decode, items, names):
            shapes.append(image.shape)
            dtypes.append(image.dtype)
            total += image.nbytes
            if self.in_memory and total > memory_limit:
                self.in_memory = False
                kept.clear()
            if self.in_memory:
                kept.append(image)

        self.dtype = dtypes[0]
        odd = next((i for i, d in enumerate(dtypes) if d != self.dtype), None)
        if odd is not None:
            raise InputError(
                f"{names[0]} has {self.dtype} pixels, {names[odd]} has {dtypes[odd]}.",
                expected="images of one pixel type",
                fix="convert them all to 8 bits or all to 16 bits",
            )
        self._bands = [shape[-1] for shape in shapes]
        self.mixed_channels = len(set(self._bands)) > 1
        self.channels = max(self._bands)
        self.shapes = [(h, w, self.channels if c == 1 else c) for h, w, c in shapes]
        self.uniform = len(set(self.shapes)) == 1
        self._pixels: tf.Tensor | None = None
        if self.in_memory:
            self._items = kept
            if self.uniform:
                self._pixels, self._items = _on_host(np.stack([repeat_grey(k, self.channels) for k in kept])), []

    def __len__(self) -> int:
        return len(self.shapes)

    def shape_after(self, preprocess: Preprocess) -> tuple[int, int, int]:
        """The one shape (height, width, channels) that all images have after `preprocess`.

        Raises:
            InputError: they differ, or one cannot be cropped; the message names a file.
        """
        if self.mixed_channels and preprocess.channels is None:
            grey = self._bands.index(1) if 1 in self._bands else 0
            other = next(i for i, bands in enumerate(self._bands) if bands != self._bands[grey])
            raise InputError(
                f"{self._names[grey]} has {self._bands[grey]} channels, {self._names[other]} has {self._bands[other]}.",
                expected="images of as many channels each, or Preprocess(channels=1 or 3)",
                fix="use Preprocess(channels=3) or Preprocess(channels=1) (--channels)",
            )
        first: dict[tuple[int, ...], int] = {}
        for i, shape in enumerate(self.shapes):
            first.setdefault(shape, i)
        made = {shape: output_shape(preprocess, shape, name=self._names[i]) for shape, i in first.items()}
        (a, here), *others = made.items()
        for b, there in others:
            if there != here:
                fits = min(min(shape[:2]) for shape in made)
                raise InputError(
                    f"{self._names[first[a]]} is {a[0]}x{a[1]}, {self._names[first[b]]} is {b[0]}x{b[1]}.",
                    expected="images of one size, or a Preprocess that makes them so",
                    fix=f"use Preprocess(resize={fits}) (--resize={fits}) or Preprocess(crop={fits}) (--crop={fits})",
                )
        return here

    def gather(self, index: tf.Tensor) -> tf.Tensor:
        """Images as a batch (n, height, width, channels), in a `tf.data` map; n > 1 needs images of one size."""
        import tensorflow as tf

        if self._pixels is not None:
            return tf.gather(self._pixels, index)
        batch = tf.numpy_function(self._load, [index], tf.as_dtype(self.dtype))
        height, width, channels = self.shapes[0] if self.uniform else (None, None, self.channels)
        batch.set_shape([index.shape[0], height, width, channels])
        return batch

    def _load(self, index: np.ndarray) -> np.ndarray:
        return np.stack([repeat_grey(self._decode(self._items[i], name=self._names[i]), self.channels) for i in index])


def _decode_all(decode: Callable[..., np.ndarray], items: Sequence[Item], names: Sequence[str]) -> Iterator[np.ndarray]:
    def one(i: int) -> np.ndarray:
        return decode(items[i], name=names[i])

    # Pillow's decoders release the GIL. A bounded window keeps large sets from piling up behind a slow consumer.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        window = 256
        for start in track(range(0, len(items), window), "reading images, block"):
            yield from pool.map(one, range(start, min(start + window, len(items))))


def _on_host(array: np.ndarray) -> tf.Tensor:
    import tensorflow as tf

    # tf.data runs on the host; a GPU's memory is for the network.
    with tf.device("CPU:0"):
        return tf.convert_to_tensor(array)
