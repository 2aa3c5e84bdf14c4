"""Masks and boxes go the way of their images: the same crop, moves and resize, without blending.

A box that keeps less than a quarter of its area is dropped; the others are cut at the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orbit_kd.datasets.augment import Augment, draw, move, move_boxes
from orbit_kd.datasets.kinds import IGNORE
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.resizing import centre, inner

if TYPE_CHECKING:
    import tensorflow as tf

LEAST = 0.25
"""Share of its area that a box must keep."""


def masks_after(
    preprocess: Preprocess, masks: tf.Tensor, *, augment: Augment | None = None, seed: tf.Tensor | None = None
) -> tf.Tensor:
    """Masks beside the images that `preprocessing.apply` makes with the same arguments.

    Args:
        preprocess: only its crop, resize and aspect matter; the resize takes the nearest pixel.
        masks: uint8 (n, height, width, 1), class numbers.
        augment: random changes.
        seed: with `augment`, int64 (n, 2).

    Returns:
        int32 (n, height, width). What `aspect="pad"` adds is IGNORE.
    """
    import tensorflow as tf

    if augment is None or augment == Augment():
        x = centre(masks, preprocess.crop)
    else:
        x = move(masks, preprocess.crop, augment, draw(seed))
    x = tf.cast(x, tf.int32)
    if size := preprocess.resize:
        if preprocess.aspect == "pad":
            x = tf.image.resize_with_pad(x - IGNORE, *size, method="nearest") + IGNORE
        else:
            if preprocess.aspect == "crop":
                shape = tf.shape(x)
                x = centre(x, inner(shape[1], shape[2], size, tf.minimum, tf.maximum))
            x = tf.image.resize(x, size, method="nearest")
    return tf.cast(x, tf.int32)[..., 0]


def boxes_after(
    preprocess: Preprocess,
    boxes: tf.Tensor,
    shape: tf.Tensor,
    *,
    augment: Augment | None = None,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Boxes on the images that `preprocessing.apply` makes with the same arguments.

    Args:
        preprocess: only its crop, resize and aspect matter.
        boxes: float32 (n, most, 5): class, top, left, bottom, right as fractions of the decoded image; class -1 is
            padding.
        shape: int32 (2,): height and width of the decoded images.
        augment: random changes.
        seed: with `augment`, int64 (n, 2).

    Returns:
        The same of the network's input; padding, class -1 and zeros, comes last.
    """
    import tensorflow as tf

    whole = tf.cast(tf.stack([shape[0], shape[1]] * 2), tf.float32)
    edges = boxes[..., 1:] * whole
    before = _area(edges)
    moving = augment is not None and augment != Augment()
    edges = move_boxes(edges, shape, preprocess.crop, augment or Augment(), draw(seed) if moving else None)
    frame = tf.constant(preprocess.crop, tf.int32) if preprocess.crop else shape
    if preprocess.resize and preprocess.aspect == "crop":
        kept = tf.stack(inner(frame[0], frame[1], preprocess.resize, tf.minimum, tf.maximum))
        start = tf.cast((frame - kept) // 2, tf.float32)
        edges -= tf.concat([start, start], axis=0)
        frame = kept
    ends = tf.cast(tf.concat([frame, frame], axis=0), tf.float32)
    edges = tf.clip_by_value(edges, 0.0, ends)
    after = _area(edges)
    gone = (boxes[..., 0] < 0) | (after <= 0) | (after < LEAST * (1 - 1e-5) * before)
    edges /= ends
    if preprocess.resize and preprocess.aspect == "pad":
        edges = _padded(edges, frame, preprocess.resize)
    found = tf.concat([boxes[..., :1], edges], axis=-1)
    found = tf.where(gone[..., None], tf.constant([-1.0, 0, 0, 0, 0]), found)
    order = tf.argsort(tf.cast(gone, tf.int32), axis=-1, stable=True)
    return tf.gather(found, order, axis=1, batch_dims=1)


def _padded(edges: tf.Tensor, frame: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Fractions of a frame as fractions of what `tf.image.resize_with_pad` makes of it, by its own rounding."""
    import tensorflow as tf

    have, want = tf.cast(frame, tf.float32), tf.constant(size, tf.float32)
    scaled = have / tf.reduce_max(have / want)
    start = tf.maximum(tf.floor((want - scaled) / 2), 0)
    length = tf.floor(scaled)
    return (tf.concat([start, start], 0) + edges * tf.concat([length, length], 0)) / tf.concat([want, want], 0)


def _area(edges: tf.Tensor) -> tf.Tensor:
    return (edges[..., 2] - edges[..., 0]) * (edges[..., 3] - edges[..., 1])
