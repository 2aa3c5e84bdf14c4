"""How ids pass through a change of shape and through a merge; for the rules of layers and of TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orbit_kd.channels.ids import Call, Channels, Ids, Kept


def element_ids(x: Channels) -> np.ndarray | None:
    """The ids of each element of a tensor, as an array of its shape; None where the shape is not known."""
    if None in x.shape:
        return None
    along = [1] * len(x.shape)
    along[x.axis] = -1
    return np.broadcast_to(x.ids.reshape(along), [n or 0 for n in x.shape])


def reshape_ids(call: Call, target: Callable[[Callable[[Kept], tuple[int, ...]]], None]) -> Channels | list[Channels]:
    """Names the output of a reshape, and hands `target` the function that gives the new shape after a removal.

    The output's channel axis is one along which all other elements share the id; where a reshape splits the channel
    axis (a channel shuffle), the channels at the same place of each part live or die together.
    """
    shape = call.output_shapes[0]
    ids = element_ids(call.x)
    if None in shape or ids is None:
        if shape and call.x.shape and shape[-1] == call.x.shape[-1] and call.x.axis == len(call.x.shape) - 1:
            return call.output(call.x.ids)
        return call.keep_all("reshapes a tensor of unknown size")
    ids = ids.reshape([n or 0 for n in shape])
    for axis in reversed(range(len(shape))):
        rows = np.moveaxis(ids, axis, 0).reshape(shape[axis], -1)
        if (rows == rows[:, :1]).all():
            break
    else:
        axis = len(shape) - 1
        rows = np.moveaxis(ids, axis, 0).reshape(shape[axis], -1)
        call.couple(rows, rows[:, :1])
    out = rows[:, 0]

    def follow(kept: Kept) -> tuple[int, ...]:
        return tuple(len(kept(out)) if i == axis else int(n or 0) for i, n in enumerate(shape))

    target(follow)
    return call.output(out, axis)


def merge_ids(call: Call) -> Channels:
    """Elementwise over all inputs: channels at the same index live or die together, broadcast ones stay."""
    shape = call.output_shapes[0]
    rank = len(shape)
    named = [(x.axis + rank - len(x.shape), x) for x in call.inputs if len(x.ids)]
    axis = max(
        (a for a, x in named if len(x.ids) > 1 or shape[a] == 1),
        default=rank - 1,
        key=lambda a: sum(len(x.ids) for b, x in named if a == b),
    )
    out: Ids | None = None
    for a, x in named:
        if a != axis or len(x.ids) != shape[axis]:
            call.keep(x.ids, "broadcast")
        elif out is None:
            out = x.ids
        else:
            call.couple(out, x.ids)
    if out is None:
        return call.keep_all("broadcast")[0]
    return call.output(out, axis)


def concatenate_ids(call: Call, axis: int) -> Channels:
    """Along the channel axis ids are joined; along another one, channels at the same index are coupled."""
    axis = axis - 1 if axis > 0 else axis % (len(call.x.shape))
    if any(x.axis != call.x.axis for x in call.inputs):
        return call.keep_all("joins tensors with different channel axes")[0]
    if axis == call.x.axis:
        return call.output(np.concatenate([x.ids for x in call.inputs]), axis)
    for x in call.inputs[1:]:
        call.couple(call.x.ids, x.ids)
    return call.output(call.x.ids, call.x.axis)
