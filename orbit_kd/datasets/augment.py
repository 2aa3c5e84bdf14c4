"""Random changes to training images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from orbit_kd.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes to training images, each a stateless function of the example's seed pair.

    Shift, flip and turns move masks and boxes with the image: the border of a mask is reflected as the image's is, a
    box is cut there, and is dropped where less than a quarter of it is left. Gain and speckle touch the image alone.

    All of it happens on the decoded pixel values inside the crop, before the resize. Values stay within the range of
    the decoded type (uint8, uint16).

    Attributes:
        shift: the crop moves by up to this many pixels each way. Real pixels come in where the image is larger than
            the crop; beyond its border the image is reflected.
        flip: "" for none, "h" mirrors left-right, "v" top-bottom, "hv" both, each with probability 1/2.
        turns: turn by 0, 90, 180 or 270 degrees; needs a square crop.
        gain: all pixels of an image are multiplied by one factor from [1 - gain, 1 + gain]; of all its bands alike.
        speckle: number of looks L; each pixel is multiplied by a gamma variate of mean 1 and variance 1/L. None: off.
            Not for images with negative values.
    """

    shift: int = 0
    flip: str = ""
    turns: bool = False
    gain: float = 0.0
    speckle: float | None = None

    def __post_init__(self) -> None:
        def need(good: bool, name: str, expected: str, example: str) -> None:
            if not good:
                value = getattr(self, name)
                raise InputError(f"Augment({name}={value!r}).", expected=expected, fix=f"give for example {example}")

        need(isinstance(self.shift, int) and self.shift >= 0, "shift", "pixels, an integer >= 0", "shift=4")
        need(self.flip in ("", "h", "v", "hv"), "flip", '"", "h", "v" or "hv"', 'flip="h"')
        need(0 <= self.gain < 1, "gain", "a fraction in [0, 1)", "gain=0.1")
        need(self.speckle is None or self.speckle > 0, "speckle", "a number of looks > 0, or None", "speckle=10")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Augment(**d)` gives it back."""
        return dataclasses.asdict(self)


def apply_augment(images: tf.Tensor, size: tuple[int, int] | None, augment: Augment, seed: tf.Tensor) -> tf.Tensor:
    """The moved, flipped and turned crop, as float32, with gain and speckle on it."""
    import tensorflow as tf

    draws = draw(seed)
    x = tf.cast(move(images, size, augment, draws), tf.float32)
    if augment.gain:
        x *= (1.0 + augment.gain * (2.0 * draws[:, 5] - 1.0))[:, None, None, None]
    if augment.speckle:
        looks = float(augment.speckle)

        def gamma(s: tf.Tensor) -> tf.Tensor:
            # The words swapped are another seed than the draws above have, which keeps the two independent.
            return tf.random.stateless_gamma(tf.shape(x)[1:], tf.stack([s[1], s[0]]), alpha=looks, beta=looks)

        x *= tf.map_fn(gamma, seed, fn_output_signature=tf.TensorSpec(x.shape[1:], tf.float32))
    return x


def draw(seed: tf.Tensor) -> tf.Tensor:
    """The random numbers of each example: (n, 6) in [0, 1), from int64 seed pairs (n, 2)."""
    import tensorflow as tf

    return tf.map_fn(lambda s: tf.random.stateless_uniform([6], s), seed, fn_output_signature=tf.float32)


def move(images: tf.Tensor, size: tuple[int, int] | None, augment: Augment, draws: tf.Tensor) -> tf.Tensor:
    """Images or masks (n, height, width, channels) of any dtype, shifted, flipped and turned, cut to `size`."""
    import tensorflow as tf

    shape = tf.shape(images)
    frame = size or (images.shape[1] or shape[1], images.shape[2] or shape[2])

    def pick(axis: int, draw: tf.Tensor, mirror: tf.Tensor | None) -> tf.Tensor:
        # A crop is a choice of rows and columns; reflecting the index is reflect padding without the padding.
        line = tf.range(frame[axis])[None]
        if mirror is not None:
            line = tf.where(mirror[:, None] < 0.5, line, frame[axis] - 1 - line)
        index = tf.abs((shape[axis + 1] - frame[axis]) // 2 + _offset(draw, augment)[:, None] + line)
        last = shape[axis + 1] - 1
        return last - tf.abs(last - index)

    rows = pick(0, draws[:, 0], draws[:, 2] if "v" in augment.flip else None)
    columns = pick(1, draws[:, 1], draws[:, 3] if "h" in augment.flip else None)
    x = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    if augment.turns:
        quarter = _quarter(draws)[:, None, None, None]
        x = tf.where(quarter >= 2, tf.reverse(x, [1, 2]), x)
        x = tf.where(quarter % 2 == 1, tf.reverse(tf.transpose(x, [0, 2, 1, 3]), [1]), x)
    return x


def move_boxes(
    edges: tf.Tensor, shape: tf.Tensor, size: tuple[int, int] | None, augment: Augment, draws: tf.Tensor | None
) -> tf.Tensor:
    """What `move` does to the images of `shape`, on boxes; nothing is cut.

    Args:
        edges: float32 (n, boxes, 4): top, left, bottom, right in pixels of the image.
        shape: int32 (2,): height and width of the images.
        size: of the crop; None keeps all.
        augment: the changes.
        draws: see `draw`; None leaves the centre crop as it is.

    Returns:
        The same, in pixels of the crop.
    """
    import tensorflow as tf

    frame = shape if size is None else tf.constant(size, tf.int32)
    start = ((shape - frame) // 2)[None]
    if draws is not None:
        start += tf.stack([_offset(draws[:, axis], augment) for axis in (0, 1)], axis=-1)
    moved = edges - tf.cast(tf.concat([start, start], axis=-1), tf.float32)[:, None]
    if draws is None:
        return moved
    height, width = (tf.cast(frame[axis], tf.float32) for axis in (0, 1))
    top, left, bottom, right = tf.unstack(moved, axis=-1)
    if "v" in augment.flip:
        kept = (draws[:, 2] < 0.5)[:, None]
        top, bottom = tf.where(kept, top, height - bottom), tf.where(kept, bottom, height - top)
    if "h" in augment.flip:
        kept = (draws[:, 3] < 0.5)[:, None]
        left, right = tf.where(kept, left, width - right), tf.where(kept, right, width - left)
    if augment.turns:
        half, odd = (_quarter(draws) >= 2)[:, None], (_quarter(draws) % 2 == 1)[:, None]
        top, bottom = tf.where(half, height - bottom, top), tf.where(half, height - top, bottom)
        left, right = tf.where(half, width - right, left), tf.where(half, width - left, right)
        top, left, bottom, right = (
            tf.where(odd, turned, kept)
            for turned, kept in ((width - right, top), (top, left), (width - left, bottom), (bottom, right))
        )
    return tf.stack([top, left, bottom, right], axis=-1)


def _offset(draw: tf.Tensor, augment: Augment) -> tf.Tensor:
    """Pixels by which the crop moves, one an example."""
    import tensorflow as tf

    return tf.cast(tf.floor(draw * (2 * augment.shift + 1)), tf.int32) - augment.shift


def _quarter(draws: tf.Tensor) -> tf.Tensor:
    """Quarter turns, one an example."""
    import tensorflow as tf

    return tf.cast(tf.floor(draws[:, 4] * 4), tf.int32)
