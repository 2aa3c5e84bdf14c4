"""Operations of `keras.ops` that have options to translate; to add one, add a function.

Simple ones are in the tables of `operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.errors import InputError
from orbit_kd.models.keras3.extra_layers import Einsum
from orbit_kd.models.keras3.operations import alike, operation


def _plain(condition: bool, op: Any, option: str) -> None:
    if not condition:
        raise InputError(
            f"The Keras 3 operation {op.name!r} ({type(op).__name__}) has the option {option}, which has no twin.",
            expected="the operation without it",
            fix="put a layer in its place, or give orbit_kd.models.keras3.operations.OPERATIONS a function of your own",
        )


def _rank(x: Any) -> int:
    return len(x.shape)


@operation("Argmax")
def argmax(op: Any, x: Any) -> Any:
    """Keras 3 gives int32."""
    return _extreme(tf.argmax, op, x)


@operation("Argmin")
def argmin(op: Any, x: Any) -> Any:
    """Keras 3 gives int32."""
    return _extreme(tf.argmin, op, x)


def _extreme(function: Callable[..., Any], op: Any, x: Any) -> Any:
    _plain(op.axis is not None, op, "axis=None")
    found = function(x, op.axis, output_type=tf.int32)
    return tf.expand_dims(found, op.axis) if op.keepdims else found


@operation("GetItem")
def get_item(op: Any, x: Any, key: Any) -> Any:
    """A slice; an ellipsis is spelled out, for Keras cannot save one."""
    items = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    if at is not None:
        used = sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * (_rank(x) - used)
    return x[tuple(items)]


@operation("Clip")
def clip(op: Any, x: Any) -> Any:
    """Either bound may be None."""
    if op.x_min is None or op.x_max is None:
        x = x if op.x_min is None else tf.maximum(x, op.x_min)
        return x if op.x_max is None else tf.minimum(x, op.x_max)
    return tf.clip_by_value(x, op.x_min, op.x_max)


@operation("ExpandDims")
def expand_dims(op: Any, x: Any) -> Any:
    """One axis or several."""
    axes = np.atleast_1d(op.axis).tolist()
    rank = _rank(x) + len(axes)
    for axis in sorted(a % rank for a in axes) if len(axes) > 1 else axes:
        x = tf.expand_dims(x, axis)
    return x


@operation("Flip")
def flip(op: Any, x: Any) -> Any:
    """Along one axis, several or (None) all."""
    return tf.reverse(x, list(range(_rank(x))) if op.axis is None else np.atleast_1d(op.axis).tolist())


@operation("Roll")
def roll(op: Any, x: Any) -> Any:
    """Along named axes."""
    _plain(op.axis is not None, op, "axis=None")
    return tf.roll(x, op.shift, op.axis)


@operation("Moveaxis")
def moveaxis(op: Any, x: Any) -> Any:
    """As a transposition."""
    rank = _rank(x)
    source, target = ([a % rank for a in axes] for axes in (op.source, op.destination))
    order = [a for a in range(rank) if a not in source]
    for where, axis in sorted(zip(target, source, strict=True)):
        order.insert(where, axis)
    return tf.transpose(x, order)


@operation("Swapaxes")
def swapaxes(op: Any, x: Any) -> Any:
    """As a transposition."""
    order = list(range(_rank(x)))
    order[op.axis1], order[op.axis2] = order[op.axis2], order[op.axis1]
    return tf.transpose(x, order)


@operation("Split")
def split(op: Any, x: Any) -> Any:
    """Into equal parts, or at indices."""
    at = op.indices_or_sections
    return tf.split(x, at if isinstance(at, int) else [*np.diff([0, *at]).tolist(), -1], op.axis)


@operation("Tile")
def tile(op: Any, x: Any) -> Any:
    """Fewer repeats than axes count from the last axis."""
    repeats = np.atleast_1d(op.repeats).tolist()
    return tf.tile(x, [1] * (_rank(x) - len(repeats)) + repeats)


@operation("Where")
def where(op: Any, condition: Any, a: Any = None, b: Any = None) -> Any:
    """Both branches are needed: positions alone have no fixed number."""
    _plain(a is not None and b is not None, op, "a condition alone")
    if any(hasattr(v, "_keras_history") for v in (a, b)):
        a, b = alike(a, b)
    return tf.where(tf.cast(condition, tf.bool), a, b)


@operation("OneHot")
def one_hot(op: Any, x: Any) -> Any:
    """Dense rows."""
    return tf.one_hot(tf.cast(x, tf.int32), op.num_classes, axis=op.axis, dtype=op.dtype or tf.float32)


@operation("Round")
def round_half_even(op: Any, x: Any) -> Any:
    """To whole numbers."""
    _plain(op.decimals == 0, op, f"decimals={op.decimals}")
    return tf.round(x)


@operation("Pad")
def pad(op: Any, x: Any, constant_values: Any = None) -> Any:
    """One pair for all axes, or a pair an axis."""
    _plain(op.mode in ("constant", "reflect", "symmetric"), op, f"mode={op.mode!r}")
    pairs = [list(p) for p in op.pad_width]
    return tf.pad(x, pairs * _rank(x) if len(pairs) == 1 else pairs, op.mode, constant_values or 0)


@operation("Resize")
def resize(op: Any, x: Any) -> Any:
    """Of images, to a size in pixels; the dtype stays."""
    _plain(not op.crop_to_aspect_ratio, op, "crop_to_aspect_ratio")
    _plain(not op.pad_to_aspect_ratio, op, "pad_to_aspect_ratio")
    _plain(op.data_format != "channels_first", op, "data_format='channels_first'")
    found = tf.image.resize(x, list(op.size), method=op.interpolation, antialias=op.antialias)
    if found.dtype == x.dtype:
        return found
    return tf.cast(found if x.dtype.is_floating else tf.round(found), x.dtype)


@operation("MaxPool")
def max_pool(op: Any, x: Any) -> Any:
    """Strides are the window where not given."""
    return _pool(tf.nn.max_pool2d, op, x)


@operation("AveragePool")
def average_pool(op: Any, x: Any) -> Any:
    """Strides are the window where not given."""
    return _pool(tf.nn.avg_pool2d, op, x)


def _pool(function: Callable[..., Any], op: Any, x: Any) -> Any:
    _plain(_rank(x) == 4 and op.data_format != "channels_first", op, "anything but images with channels last")
    return function(x, op.pool_size, op.strides or op.pool_size, op.padding.upper())


@operation("Einsum")
def einsum(op: Any, *xs: Any) -> Any:
    """Of tensors; a constant among them is refused."""
    _plain(all(hasattr(x, "_keras_history") for x in xs), op, "a constant among its tensors")
    return Einsum(op.subscripts, name=op.name)(list(xs))


@operation("Norm")
def norm(op: Any, x: Any) -> Any:
    """Of vectors: Euclidean where no order is given, else the sum or the largest of the absolute values."""
    one_axis = op.axis is not None and len(op.axis) == 1
    _plain(op.ord is None or (one_axis and op.ord in (1, 2, np.inf)), op, f"ord={op.ord}")
    if op.ord == 1:
        return tf.reduce_sum(tf.abs(x), op.axis, op.keepdims)
    if op.ord == np.inf:
        return tf.reduce_max(tf.abs(x), op.axis, op.keepdims)
    return tf.sqrt(tf.reduce_sum(tf.square(x), op.axis, op.keepdims))


@operation("RMSNorm")
def rms_norm(op: Any, x: Any, scale: Any = None) -> Any:
    """By the root of the mean square."""
    epsilon = 1e-7 if op.epsilon is None else op.epsilon
    x = x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), op.axis, True) + epsilon)
    return x if scale is None else x * scale


@operation("Average")
def average(op: Any, x: Any, weights: Any = None) -> Any:
    """Without weights."""
    _plain(weights is None, op, "weights")
    return tf.reduce_mean(x, op.axis)


@operation("CropImages")
def crop_images(op: Any, x: Any) -> Any:
    """By a number of pixels at each side."""
    sides = (op.top_cropping, op.bottom_cropping, op.left_cropping, op.right_cropping)
    _plain(None not in sides and _rank(x) == 4 and op.data_format != "channels_first", op, "a target size")
    top, bottom, left, right = sides
    return x[:, top : -bottom or None, left : -right or None]


@operation("PadImages")
def pad_images(op: Any, x: Any) -> Any:
    """By a number of pixels at each side."""
    sides = (op.top_padding, op.bottom_padding, op.left_padding, op.right_padding)
    _plain(None not in sides and _rank(x) == 4 and op.data_format != "channels_first", op, "a target size")
    return tf.pad(x, [[0, 0], list(sides[:2]), list(sides[2:]), [0, 0]])


@operation("Normalize")
def normalize(op: Any, x: Any) -> Any:
    """To unit length."""
    _plain(op.order == 2, op, f"order={op.order}")
    epsilon = 1e-7 if op.epsilon is None else op.epsilon
    return x * tf.minimum(tf.math.rsqrt(tf.reduce_sum(tf.square(x), op.axis, True)), 1 / epsilon)


@operation("DotProductAttention")
def dot_product_attention(
    op: Any, query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, scale: Any = None
) -> Any:
    """Tensors of (batch, positions, heads, channels); fewer heads of key and value are repeated."""
    _plain(op.attn_logits_soft_cap is None, op, "attn_logits_soft_cap")
    repeats = query.shape[2] // key.shape[2]
    if repeats > 1:
        key, value = tf.repeat(key, repeats, 2), tf.repeat(value, repeats, 2)
    scores = attention_scores(query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = tf.where(tf.cast(mask, tf.bool), scores, -1e9)
    if op.is_causal:
        scores = scores + causal_bias(op, query, key)
    return attended(tf.nn.softmax(scores), value)


def attention_scores(query: Any, key: Any) -> Any:
    """Dot products of (batch, positions, heads, channels): (batch, heads, positions of query, positions of key)."""
    return tf.matmul(tf.transpose(query, [0, 2, 1, 3]), tf.transpose(key, [0, 2, 1, 3]), transpose_b=True)


def attended(weights: Any, value: Any) -> Any:
    """Values weighted: (batch, positions, heads, channels)."""
    return tf.transpose(tf.matmul(weights, tf.transpose(value, [0, 2, 1, 3])), [0, 2, 1, 3])


def causal_bias(op: Any, query: Any, key: Any) -> Any:
    """0 where a position may look, -1e9 at later ones; (positions of query, positions of key), float32."""
    _plain(query.shape[1] is not None and key.shape[1] is not None, op, "a causal mask and no fixed length")
    return np.triu(np.full((query.shape[1], key.shape[1]), -1e9, "float32"), 1)
