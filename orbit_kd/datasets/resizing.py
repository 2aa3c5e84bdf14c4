"""The crop and the resize of images, each loader's in its own way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from orbit_kd.datasets.preprocessing import Preprocess


def resize(preprocess: Preprocess, size: tuple[int, int], images: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Float32 images (batch, height, width, channels), decoded as `dtype`, in the size of `preprocess` and its way."""
    import tensorflow as tf

    if preprocess.loader == "load_img":
        by_pillow = functools.partial(_pillow, preprocess, size, dtype.as_numpy_dtype)
        resized = tf.numpy_function(by_pillow, [images], tf.float32)
        return tf.ensure_shape(resized, [images.shape[0], *size, images.shape[3]])
    antialias = preprocess.loader == "orbit_kd"
    if preprocess.aspect == "pad":
        return tf.image.resize_with_pad(images, *size, method=preprocess.interpolation, antialias=antialias)
    if preprocess.aspect == "crop":
        shape = tf.shape(images)
        images = centre(images, inner(shape[1], shape[2], size, tf.minimum, tf.maximum))
    return tf.image.resize(images, size, method=preprocess.interpolation, antialias=antialias)


def inner(height: Any, width: Any, size: tuple[int, int], least: Any = min, most: Any = max) -> tuple[Any, Any]:
    """The largest frame inside an image that has the ratio of `size`, as Keras' crop_to_aspect_ratio has it."""
    fitting = width * size[0] // size[1], height * size[1] // size[0]
    return most(least(height, fitting[0]), 1), most(least(width, fitting[1]), 1)


def _pillow(preprocess: Preprocess, size: tuple[int, int], dtype: Any, images: np.ndarray) -> np.ndarray:
    """The same on arrays, by Pillow on the decoded pixel type, as Keras' load_img does it."""
    from PIL import Image

    rows, columns = images.shape[1:3]
    box = None
    if preprocess.aspect == "crop":
        height, width = inner(rows, columns, size)
        top, left = (rows - height) // 2, (columns - width) // 2
        box = (left, top, left + width, top + height)
    resample = Image.Resampling[str(preprocess.interpolation).upper()]
    planes = (images if dtype == np.float32 else np.rint(images)).astype(dtype).transpose(0, 3, 1, 2)
    resized = [[np.asarray(Image.fromarray(p).resize(size[::-1], resample, box)) for p in i] for i in planes]
    return np.array(resized, np.float32).transpose(0, 2, 3, 1)


def centre(images: tf.Tensor, size: Sequence[int | tf.Tensor] | None) -> tf.Tensor:
    """The centre crop (height, width) of images (batch, height, width, channels); None keeps all."""
    if size is None:
        return images
    import tensorflow as tf

    shape = tf.shape(images)
    row, column = (shape[1] - size[0]) // 2, (shape[2] - size[1]) // 2
    cropped = images[:, row : row + size[0], column : column + size[1]]
    known = [n if isinstance(n, int) else None for n in size]
    return tf.ensure_shape(cropped, [images.shape[0], *known, images.shape[3]])
