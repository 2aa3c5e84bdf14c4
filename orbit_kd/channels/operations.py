"""How channel ids flow through TensorFlow operations in a Keras graph (`x + y`, `tf.nn.relu(x)`, slicing).

An operation is filed under its TensorFlow name, a layer under its class; otherwise the rules are of one kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.channels.ids import Call, Channels, channel_rule
from orbit_kd.channels.shapes import concatenate_ids, merge_ids, reshape_ids


def argument(call: Call, index: int, name: str, default: Any = None) -> Any:
    """A constant argument of the operation, by position or by name."""
    args, kwargs = call.node.call_args, call.node.call_kwargs
    return args[index] if index < len(args) else kwargs.get(name, default)


def batchless(axis: int, rank: int) -> int:
    """An axis of a tensor with its batch axis -> the same, batch not counted; -1 for the batch axis itself."""
    return axis % rank - 1


@channel_rule(
    "nn.relu", "nn.relu6", "nn.silu", "nn.gelu", "nn.elu", "nn.selu", "nn.leaky_relu", "nn.softsign",
    "math.sigmoid", "math.tanh", "math.softplus", "math.exp", "math.log", "math.sqrt", "math.rsqrt", "math.square",
    "math.abs", "math.negative", "math.sign", "math.erf", "math.reciprocal", "math.round", "math.floor", "math.ceil",
    "cast", "identity", "stop_gradient", "clip_by_value", "nn.dropout", "image.resize",
    "nn.max_pool2d", "nn.avg_pool2d", "nn.avg_pool",
)  # fmt: skip
def elementwise(call: Call) -> list[Channels]:
    """One channel in, the same channel out."""
    return call.same()


@channel_rule(
    "__operators__.add", "math.add", "math.subtract", "math.multiply", "math.truediv", "math.divide_no_nan",
    "math.pow", "math.maximum", "math.minimum", "math.squared_difference", "math.add_n", "nn.bias_add",
)  # fmt: skip
def arithmetic(call: Call) -> Channels | list[Channels]:
    """Two tensors are merged; a constant of one value a channel is sliced with the channels."""
    if len(call.inputs) > 1:
        return merge_ids(call)
    rank = len(call.output_shapes[0])
    arguments = [*enumerate(call.node.call_args), *call.node.call_kwargs.items()]
    for where, value in arguments:
        if value is None or isinstance(value, str) or hasattr(value, "_keras_history"):
            continue
        shape = np.shape(value)
        if not shape or all(n == 1 for n in shape):
            continue
        if call.x.axis != rank - 1 or shape[-1] != len(call.x.ids) or len(call.x.shape) != rank:
            return call.keep_all("meets a constant of another shape")
        call.argument(where, lambda kept, constant: tf.gather(constant, kept(call.x.ids), axis=-1))
    if len(call.x.shape) != rank:
        return call.keep_all("meets a constant of higher rank")
    return call.same()


@channel_rule("concat")
def concat(call: Call) -> Channels:
    """As the Concatenate layer."""
    return concatenate_ids(call, argument(call, 1, "axis"))


@channel_rule(
    "math.reduce_mean", "math.reduce_sum", "math.reduce_max", "math.reduce_min", "math.reduce_std",
    "math.reduce_variance",
)  # fmt: skip
def reduction(call: Call) -> Channels | list[Channels]:
    """Over space the channels stay; over the channels they are mixed."""
    rank = len(call.x.shape) + 1
    axes = argument(call, 1, "axis")
    axes = range(rank) if axes is None else np.ravel(axes)
    reduced = {batchless(int(a), rank) for a in axes}
    if call.x.axis in reduced or -1 in reduced:
        return call.keep_all("reduces over the channels")
    gone = 0 if argument(call, 2, "keepdims", False) else sum(a < call.x.axis for a in reduced)
    return call.output(call.x.ids, call.x.axis - gone)


@channel_rule("__operators__.getitem")
def slicing(call: Call) -> Channels | list[Channels]:
    """Slices off the channel axis; a slice of the channels themselves keeps them all."""
    spec = _spelled_out(argument(call, 1, "slice_spec"), len(call.x.shape) + 1)
    where: int | str = 1 if len(call.node.call_args) > 1 else "slice_spec"
    call.argument(where, lambda kept, old: tuple(spec))  # Keras cannot save an ellipsis
    source, target = 0, 0
    for item in spec:
        if item is None:
            target += 1
            continue
        if source in (0, call.x.axis + 1) and not _whole(item):
            return call.keep_all("takes some of the channels")
        if source == call.x.axis + 1:
            return call.output(call.x.ids, target - 1)
        source, target = source + 1, target + (not isinstance(item, int))
    return call.keep_all("slices in a way ids cannot follow")


def _spelled_out(spec: Any, rank: int) -> list[Any]:
    """A slice of a tensor with an item for each axis, and none for an ellipsis."""
    items = list(spec) if isinstance(spec, (tuple, list)) else [spec]
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    used = sum(item is not None and item is not Ellipsis for item in items)
    items[at : at + 1] = [{"start": None, "stop": None, "step": None}] * (rank - used)  # as Keras writes a slice
    return items


def _whole(item: Any) -> bool:
    if isinstance(item, slice):
        item = {"start": item.start, "stop": item.stop, "step": item.step}
    return isinstance(item, dict) and all(v is None for v in item.values())


@channel_rule("reshape")
def reshape(call: Call) -> Channels | list[Channels]:
    """As the Reshape layer; the batch entry of the target shape stays as it is."""

    def follow(target: Any) -> None:
        where: int | str = 1 if len(call.node.call_args) > 1 else "shape"
        call.argument(where, lambda kept, shape: [shape[0], *target(kept)])

    return reshape_ids(call, follow)


@channel_rule("transpose")
def transpose(call: Call) -> Channels | list[Channels]:
    """The channel axis moves with its ids; the batch axis must stay the first."""
    perm = argument(call, 1, "perm")
    if perm is None or int(np.ravel(perm)[0]) != 0:
        return call.keep_all("moves the batch axis")
    return call.output(call.x.ids, [int(p) - 1 for p in np.ravel(perm)[1:]].index(call.x.axis))


@channel_rule("pad")
def pad(call: Call) -> list[Channels]:
    """Padding of space."""
    paddings = np.asarray(argument(call, 1, "paddings"))
    return call.same() if not paddings[call.x.axis + 1].any() else call.keep_all("pads the channels")


@channel_rule("expand_dims")
def expand_dims(call: Call) -> Channels | list[Channels]:
    """A new axis before or after the channels."""
    new = batchless(int(argument(call, 1, "axis")), len(call.x.shape) + 2)
    return call.output(call.x.ids, call.x.axis + (new <= call.x.axis))


@channel_rule("squeeze")
def squeeze(call: Call) -> Channels | list[Channels]:
    """Axes of size 1 go."""
    axes = argument(call, 1, "axis")
    if axes is None or call.x.axis in (gone := {batchless(int(a), len(call.x.shape) + 1) for a in np.ravel(axes)}):
        return call.keep_all("squeezes the channels")
    return call.output(call.x.ids, call.x.axis - sum(a < call.x.axis for a in gone))


@channel_rule("split")
def split(call: Call) -> list[Channels]:
    """Parts along space carry the same channels each."""
    if batchless(int(argument(call, 2, "axis", 0)), len(call.x.shape) + 1) in (-1, call.x.axis):
        return call.keep_all("splits the channels")
    return call.same()


@channel_rule("shape")
def shape_of(call: Call) -> Channels:
    """A shape carries no channels; it follows the tensor by itself."""
    return Channels(call.x.ids[:0], 0, ())
