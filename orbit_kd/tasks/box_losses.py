"""What a detector's maps are trained with: targets drawn from the boxes, focal loss, and L1 at the centres.

After CenterNet (Zhou et al. 2019, Objects as Points, arXiv:1904.07850), which takes the radius of the drawn heat from
CornerNet (Law and Deng 2018, arXiv:1808.01244).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_OVERLAP = 0.7  # the IoU that the radius of the heat is made for, as in both papers


def heat_radius(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """How far, in cells, the heat of a box reaches.

    CornerNet asks how far both corners may move outwards until the IoU falls to 0.7; its published code, and
    CenterNet's, divide the root by 2 in place of 2a, which makes that 2.8 times as far. Their results are with that,
    and with the true root a box of less than twelve cells would heat its centre alone. So here it is the same.

    Args:
        height: float32, of boxes in cells, of any shape.
        width: the same.
    """
    around, area = height + width, height * width
    return _OVERLAP * (tf.sqrt(around**2 + 4 * (1 - _OVERLAP) / _OVERLAP * area) - around)


def centres(boxes: tf.Tensor, cells: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Where boxes are on the grid of a map.

    Args:
        boxes: float32 (n, most, 5): class, top, left, bottom, right as fractions; class -1 fills up.
        cells: float32 (2,): height and width of the map.

    Returns:
        is a box (n, most) float32; the cell of its centre (n, most, 2) int32; its centre in cells (n, most, 2) float32.
    """
    real = tf.cast(boxes[..., 0] > -0.5, tf.float32)
    centre = (boxes[..., 1:3] + boxes[..., 3:5]) / 2 * cells * real[..., None]
    cell = tf.cast(tf.clip_by_value(tf.floor(centre), 0.0, cells - 1), tf.int32)
    return real, cell, centre


def heat_targets(boxes: tf.Tensor, height: Any, width: Any, *, classes: int) -> tf.Tensor:
    """The heat that boxes draw: 1 in the cell of a centre, a Gaussian around it, the largest where they meet.

    Args:
        boxes: as of `centres`.
        height: of the map, in cells.
        width: of the map, in cells.
        classes: how many.

    Returns:
        float32 (n, height, width, classes).
    """
    cells = tf.cast(tf.stack([height, width]), tf.float32)
    real, cell, _ = centres(boxes, cells)
    size = tf.maximum((boxes[..., 3:5] - boxes[..., 1:3]) * cells, 1e-6)
    radius = tf.floor(heat_radius(tf.math.ceil(size[..., 0]), tf.math.ceil(size[..., 1])))
    spread = (2 * radius + 1) / 6
    kind = tf.one_hot(tf.cast(boxes[..., 0], tf.int32), classes) * real[..., None]

    def along(places: Any, axis: int) -> tf.Tensor:  # the Gaussian is a product of two
        away = tf.range(tf.cast(places, tf.float32))[None, None] - tf.cast(cell[..., axis], tf.float32)[..., None]
        drawn = tf.exp(-(away**2) / (2 * spread[..., None] ** 2))
        return tf.where(tf.abs(away) <= radius[..., None], drawn, 0.0)

    # box by box: all at once would take boxes * height * width * classes numbers an image
    def draw(heat: tf.Tensor, box: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        down, right, of = box
        return tf.maximum(heat, (down[:, :, None] * right[:, None])[..., None] * of[:, None, None])

    swapped = [tf.transpose(t, (1, 0, 2)) for t in (along(height, 0), along(width, 1), kind)]
    empty = tf.zeros((tf.shape(boxes)[0], height, width, classes))
    return tf.stop_gradient(tf.foldl(draw, tuple(swapped), initializer=empty))


def heat_loss(boxes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Penalty-reduced focal loss of the heat maps, summed over an image (CenterNet, equation 1; alpha 2, beta 4).

    Args:
        boxes: as of `centres`.
        logits: float32 (n, h, w, classes), before the sigmoid.

    Returns:
        (n,).
    """
    shape = tf.shape(logits)
    target = heat_targets(boxes, shape[1], shape[2], classes=logits.shape[-1])
    p = tf.sigmoid(logits)
    centre = -((1 - p) ** 2) * tf.math.log_sigmoid(logits)
    elsewhere = -((1 - target) ** 4) * p**2 * tf.math.log_sigmoid(-logits)
    return tf.reduce_sum(tf.where(target > 0.9999, centre, elsewhere), (1, 2, 3))


def size_loss(boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Distance of heights and widths in the cells of centres, in cells, summed over the boxes of an image.

    Args:
        boxes: as of `centres`.
        sizes: float32 (n, h, w, 2), fractions of the image.

    Returns:
        (n,).
    """
    cells = _cells(sizes)
    real, cell, _ = centres(boxes, cells)
    wrong = tf.abs(tf.gather_nd(sizes, cell, batch_dims=1) - (boxes[..., 3:5] - boxes[..., 1:3])) * cells
    return tf.reduce_sum(tf.reduce_sum(wrong, -1) * real, -1)


def offset_loss(boxes: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Distance of the centres' places within their cells, in cells, summed over the boxes of an image.

    Args:
        boxes: as of `centres`.
        offsets: float32 (n, h, w, 2), from 0 to 1: down, right.

    Returns:
        (n,).
    """
    real, cell, centre = centres(boxes, _cells(offsets))
    wrong = tf.abs(tf.gather_nd(offsets, cell, batch_dims=1) - (centre - tf.cast(cell, tf.float32)))
    return tf.reduce_sum(tf.reduce_sum(wrong, -1) * real, -1)


def count(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes of each image (n,), float32."""
    return tf.reduce_sum(tf.cast(boxes[..., 0] > -0.5, tf.float32), -1)


def _cells(maps: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(maps)[1:3], tf.float32)
