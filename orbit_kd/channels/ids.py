"""Every channel has a name: integer ids on the channel axis of each tensor, and one rule a layer type for their flow.

From the ids follow the coupled groups and all counts (`graph.py`) and the rebuilt network (`surgery.py`); none
of them does index arithmetic of its own. Here is what a rule can say; the rules are in `rules.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.node import Node
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

if TYPE_CHECKING:
    from orbit_kd.channels.graph import ChannelGraph

Ids = np.ndarray
"""int64 vector of channel ids."""

Kept = Callable[[Ids], np.ndarray]
"""Positions (int vector) in an id vector whose channels stay."""


@dataclasses.dataclass(frozen=True)
class Channels:
    """The names on one tensor: `ids[i]` is the channel at index i of `axis`; `shape` has no batch axis."""

    ids: Ids
    axis: int
    shape: tuple[int | None, ...]


@dataclasses.dataclass
class Weight:
    """One variable of a layer: the ids on each of its axes, and how often an element multiplies per image (MACs)."""

    attribute: str
    shape: tuple[int, ...]
    axes: list[Ids | None]
    out_axis: int | None
    uses: float


@dataclasses.dataclass
class Layer:
    """What the trace learned of one layer object, over all its calls."""

    layer: keras.layers.Layer
    path: str
    weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    made: list[Ids] = dataclasses.field(default_factory=list)
    macs: float = 0  # of one image, beside those of `weights`


class Call:
    """One layer call, as a rule sees it. Rules read `layer` and `inputs`, name weights, and return `output(ids)`."""

    def __init__(self, graph: ChannelGraph, record: Layer, node: Node, inputs: list[Channels]) -> None:
        self.graph, self.record, self.node, self.inputs = graph, record, node, inputs
        self.layer = record.layer
        self._made = 0
        self.output_shapes = [tuple(t.shape[1:]) for t in tf.nest.flatten(node.outputs)]
        size_known = all(None not in x.shape for x in inputs) and not isinstance(self.layer, (keras.Model, TFOpLambda))
        if size_known and len(self.output_shapes) == 1 and None in self.output_shapes[0]:
            # in a nested model that was built for any image size, and is used at one
            shapes = [(None, *x.shape) for x in inputs]
            self.output_shapes = [tuple(self.layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes))[1:]]

    @property
    def x(self) -> Channels:
        """The first input."""
        return self.inputs[0]

    @property
    def channel_axis(self) -> int:
        """The layer's channel axis, batch not counted, from its `data_format`."""
        return 0 if getattr(self.layer, "data_format", None) == "channels_first" else len(self.x.shape) - 1

    def ids(self, axis: int | None = None) -> Ids:
        """Ids of the first input along `axis` (default: the channel axis); ids on any other axis must stay."""
        axis = self.channel_axis if axis is None else axis % max(len(self.x.shape), 1)
        if self.x.axis == axis:
            return self.x.ids
        self.keep(self.x.ids, "read along another axis")
        ids = self.new_ids(self.x.shape[axis] or 1)
        self.keep(ids, "read along another axis")
        return ids

    def new_ids(self, n: int) -> Ids:
        """n fresh ids, the layer's own output channels; a shared layer gets the same ones at each call."""
        if self._made == len(self.record.made):
            self.record.made.append(self.graph.new_ids(n, self.record.path))
        self._made += 1
        return self.record.made[self._made - 1]

    def couple(self, a: Ids, b: Ids) -> None:
        """Channels a[i] and b[i] must live or die together."""
        self.graph.pairs.append((np.ravel(a), np.ravel(np.broadcast_to(b, np.shape(a)))))

    def keep(self, ids: Ids, reason: str) -> None:
        """These channels must stay; the plan shows the reason."""
        self.graph.kept.append((np.ravel(ids), f"{self.record.path}: {reason}"))

    def weight(self, attribute: str, *axes: Ids | None, uses: float = 0) -> None:
        """Says which ids lie on each axis of the layer's variable `attribute`; a missing variable is passed over.

        Args:
            attribute: attribute name of the variable, such as "kernel".
            *axes: one id vector per axis, or None for an axis without channels.
            uses: times each element multiplies for one image (output positions of a convolution); 0 for no MACs.
        """
        variable = getattr(self.layer, attribute, None)
        if variable is None:
            return
        shape = tuple(int(n) for n in variable.shape)
        found = tuple(n if ids is None else len(ids) for n, ids in zip(shape, axes, strict=False))
        if len(axes) != len(shape) or found != shape:
            raise InputError(
                f"The channel rule of {type(self.layer).__name__} gives {found} ids to {attribute} of shape {shape} "
                f"(layer {self.record.path!r}).",
                expected="one id vector, or None, for each axis, as long as the axis",
                fix="mend the rule; see `call.weight` in orbit_kd/channels/ids.py",
            )
        known = self.record.weights.get(attribute)
        if known is None:
            made = {id(m) for m in self.record.made}
            out = next((i for i in reversed(range(len(axes))) if id(axes[i]) in made), None)
            self.record.weights[attribute] = Weight(attribute, shape, list(axes), out, uses)
            return
        known.uses += uses
        for before, now in zip(known.axes, axes, strict=True):
            if before is not None and now is not None:
                self.couple(before, now)

    def multiplies(self, macs: float) -> None:
        """Multiply-accumulates for one image of a layer whose channels stay, beside those of the weights it names."""
        self.record.macs += macs

    def config(self, **values: Any) -> None:
        """Constructor arguments that follow the channels: ids stand for "how many stay"; or a function of `Kept`."""
        self.record.config.update(values)

    def argument(self, index: int | str, value: Callable[[Kept, Any], Any]) -> None:
        """An argument of this call (position or name) that follows the channels: `value(kept, old)` is the new one."""
        self.graph.arguments.setdefault(id(self.node), {})[index] = value

    def output(self, ids: Ids, axis: int = -1, index: int = 0) -> Channels:
        """Names the output tensor: `ids` on `axis` (batch not counted)."""
        shape = self.output_shapes[index]
        axis = axis % max(len(shape), 1)
        if shape and shape[axis] not in (None, len(ids)):
            raise InputError(
                f"The channel rule of {type(self.layer).__name__} names {len(ids)} channels on axis {axis} of an "
                f"output of shape {shape} (layer {self.record.path!r}).",
                expected=f"{shape[axis]} ids",
                fix="mend the rule, or register one for this class with @okd.channel_rule",
            )
        return Channels(np.asarray(ids, np.int64), axis, shape)

    def same(self) -> list[Channels]:
        """Every output carries the ids of the first input, on the same axis."""
        return [self.output(self.x.ids, self.x.axis, i) for i in range(len(self.output_shapes))]

    def keep_all(self, reason: str) -> list[Channels]:
        """All channels that touch this call stay: for layers that mix or reorder channels in ways ids cannot follow."""
        for x in self.inputs:
            self.keep(x.ids, reason)
        outputs = []
        for i, shape in enumerate(self.output_shapes):
            ids = self.new_ids((shape[-1] or 1) if shape else 0)
            self.keep(ids, reason)
            outputs.append(self.output(ids, -1, i))
        return outputs


Rule = Callable[[Call], "Channels | Sequence[Channels]"]
channel_rules: Registry[Rule] = Registry("channel rule of")


def channel_rule(*kinds: type | str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Decorator: how channel ids flow through a layer type. Subclasses that keep its `call` use the rule too.

    Args:
        *kinds: layer classes; or a TensorFlow operation in a graph by its symbol without "tf.", such as "math.add".
        replace: take the place of the rule that one has.

    Raises:
        InputError: one has a rule already.

    Example:
        >>> @channel_rule(MyScale)                   # y = x * self.gamma, one gamma a channel
        ... def my_scale(call):
        ...     call.weight("gamma", call.ids())
        ...     return call.same()
    """

    return channel_rules.register(*kinds, replace=replace)


def rule_for(layer: keras.layers.Layer) -> Rule | None:
    """The rule of the layer's class, or of a parent class whose `call` it has kept; None where there is none."""
    if isinstance(layer, TFOpLambda):
        symbol = symbol_of(layer)
        return channel_rules.get(symbol) if symbol in channel_rules else None
    for cls in type(layer).__mro__:
        if cls in channel_rules:
            return channel_rules.get(cls)
        if "call" in vars(cls):
            return None
    return None


def symbol_of(layer: TFOpLambda) -> str:
    """The TensorFlow name of an operation in a graph, without "tf."."""
    return str(layer.symbol).removeprefix("compat.v1.")


def supported_layers() -> list[str]:
    """Class names of all layers, and symbols of all TensorFlow operations, with a rule; sorted."""
    return sorted({f"tf.{kind}" if isinstance(kind, str) else kind.__name__ for kind in channel_rules})
