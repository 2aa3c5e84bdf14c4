"""The images of a data set as one indexable thing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from orbit_kd.datasets import tiff
from orbit_kd.datasets.decoding import Item, decode, repeat_grey
from orbit_kd.datasets.preprocessing import Preprocess, output_shape
from orbit_kd.errors import InputError
from orbit_kd.support.progress import log, track

if TYPE_CHECKING:
    import tensorflow as tf

# Above this many bytes of decoded images they are decoded again at each use.
MEMORY_LIMIT = 1_500_000_000


class Images:
    """The images of a data set, by index. Decoded once where they fit in memory, else at each use.

    Attributes:
        shapes: (height, width, channels) of each image; where grey and RGB are mixed, all count as RGB.
        dtype: the pixel type they all have.
        lowest: the lowest value of float pixels; 0.0 for other types.
        in_memory: whether the decoded pixels are kept.
    """

    def __init__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        *,
        preprocess: Preprocess | None = None,
        memory_limit: int = MEMORY_LIMIT,
        bands: Sequence[int] = (),
        decoder: Callable[..., np.ndarray] | None = None,
    ) -> None:
        """Decodes every image once, which also finds the damaged ones.

        Args:
            items: files, encoded bytes or arrays.
            names: what to call each in messages.
            preprocess: whose loader and channels `decode` works with.
            memory_limit: bytes of decoded pixels to keep at most.
            bands: the channels to take, see `decode`.
            decoder: in place of `decode`: (item, name=...) -> (height, width, channels).

        Raises:
            InputError: see `decode`; or the pixel types differ.
        """
        self._items: Sequence[Item] = items
        how = preprocess or Preprocess()
        self._decode = decoder or functools.partial(decode, loader=how.loader, channels=how.channels, bands=bands)
        self._names = names
        kept: list[np.ndarray] = []
        self.in_memory, total, shapes, dtypes, self.lowest = True, 0, [], [], 0.0
        nodata, without = tiff.nodata(items[0]) if len(items) else None, 0
        for image in _decode_all(self._decode, items, names):
            without += nodata is not None and bool((image == nodata).any())
            shapes.append(image.shape)
            dtypes.append(image.dtype)
            if image.dtype == np.float32:
                self.lowest = min(self.lowest, float(image.min()))
            total += image.nbytes
            if self.in_memory and total > memory_limit:
                self.in_memory = False
                kept.clear()
            if self.in_memory:
                kept.append(image)

        if how.loader == "orbit_kd" and not bands and (told := tiff.hidden(items[0])):
            log.warning("data: %s: %s; bands=0,1,... (--bands) takes each as a band", names[0], told)
        if without:
            log.warning("data: %d of %d images have pixels of %g, which %s gives as its no-data value; they count as "
                        "values", without, len(items), nodata, names[0])  # fmt: skip
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
                self._pixels, self._items = on_host(np.stack([repeat_grey(k, self.channels) for k in kept])), []

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
                fix="use Preprocess(channels=3) or Preprocess(channels=1) (--channels)"
                if set(self._bands) <= {1, 3}
                else "name the bands that all have (bands=0,1,2, --bands), or take the others out",
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


def on_host(array: np.ndarray) -> tf.Tensor:
    """The array as a tensor in the host's memory."""
    import tensorflow as tf

    # tf.data runs on the host; a GPU's memory is for the network.
    with tf.device("CPU:0"):
        return tf.convert_to_tensor(array)
