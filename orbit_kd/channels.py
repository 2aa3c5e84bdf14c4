"""Every channel has a name: integer ids on the channel axis of each tensor, traced through a Keras graph.

A rule per layer type (`channel_rules.py`) says how ids flow. From the ids follow the coupled groups, the weight slices
that belong to each channel, parameter and MAC counts after any removal, and the rebuilt network (`surgery.py`); none of
them does index arithmetic of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.node import Node
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from orbit_kd.errors import InputError
from orbit_kd.graph import require_graph, walk

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


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that are scored together: units made by the same layers, each unit a set of ids that live or die as one.

    Attributes:
        name: the first layer that makes the channels.
        members: path of each layer that makes channels of this group -> its channels in one unit.
        units: (n,) int64, the labels of the units, in channel order.
        reason: why the group is kept whole; empty when it may shrink.
    """

    name: str
    members: dict[str, int]
    units: np.ndarray
    reason: str = ""

    @property
    def width(self) -> int:
        """Number of units: the channels of the first member, divided by its channels in one unit."""
        return len(self.units)


class Call:
    """One layer call, as a rule sees it. Rules read `layer` and `inputs`, name weights, and return `output(ids)`."""

    def __init__(self, graph: ChannelGraph, record: Layer, node: Node, inputs: list[Channels]) -> None:
        self.graph, self.record, self.node, self.inputs = graph, record, node, inputs
        self.layer = record.layer
        self._made = 0
        self.output_shapes = [tuple(t.shape[1:]) for t in tf.nest.flatten(node.outputs)]

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
                fix="mend the rule; see `call.weight` in orbit_kd/channels.py",
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


_NONE = np.empty(0, np.int64)
_ACTIVATIONS_OVER_CHANNELS = {"softmax", "log_softmax"}

Rule = Callable[[Call], "Channels | Sequence[Channels]"]
_RULES: dict[type | str, Rule] = {}


def channel_rule(*kinds: type | str) -> Callable[[Rule], Rule]:
    """Decorator: how channel ids flow through a layer type. Subclasses that keep its `call` use the rule too.

    A TensorFlow operation in a graph is named by its symbol without "tf.", such as "math.add".

    Example:
        >>> @channel_rule(MyScale)                   # y = x * self.gamma, one gamma a channel
        ... def my_scale(call):
        ...     call.weight("gamma", call.ids())
        ...     return call.same()
    """

    def file(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return file


def rule_for(layer: keras.layers.Layer) -> Rule | None:
    """The rule of the layer's class, or of a parent class whose `call` it has kept; None where there is none."""
    if isinstance(layer, TFOpLambda):
        return _RULES.get(_symbol(layer))
    for cls in type(layer).__mro__:
        if cls in _RULES:
            return _RULES[cls]
        if "call" in vars(cls):
            return None
    return None


def _symbol(layer: TFOpLambda) -> str:
    return str(layer.symbol).removeprefix("compat.v1.")


def supported_layers() -> list[str]:
    """Class names of all layers, and symbols of all TensorFlow operations, with a rule; sorted."""
    return sorted({f"tf.{kind}" if isinstance(kind, str) else kind.__name__ for kind in _RULES})


class ChannelGraph:
    """The traced network: `groups`, and every weight axis, tensor and constructor argument as ids.

    Args:
        model: a Functional or Sequential tf_keras model, nested to any depth.
        unknown: "error" refuses a layer without a rule; "keep" keeps every channel that touches one.

    Raises:
        InputError: no layer graph, or a layer without a rule under "error".
    """

    def __init__(self, model: keras.Model, *, unknown: str = "error") -> None:
        import orbit_kd.channel_ops  # noqa: F401  (files the rules, of layers and of TensorFlow operations)

        if unknown not in ("error", "keep"):
            raise InputError(f"unknown={unknown!r}.", expected='"error" or "keep"', fix="choose one of the two")
        require_graph(model)
        self.model, self.unknown = model, unknown
        self.layers: dict[int, Layer] = {}
        self.arguments: dict[int, dict[int | str, Callable[[Kept, Any], Any]]] = {}
        self.pairs: list[tuple[Ids, Ids]] = []
        self.kept: list[tuple[Ids, str]] = []
        self.entries: dict[int, list[Channels]] = {}  # id of a (nested) model -> the channels of its inputs
        self.steps: list[tuple[list[Channels], list[Channels], str]] = []
        self._blocks: list[tuple[str, int]] = []
        self._count = 0
        inputs = [self._input(t, i) for i, t in enumerate(model.inputs)]
        outputs = self._trace(model, inputs, "")
        for i, x in enumerate(outputs):
            self.kept.append((x.ids, f"model output {i}" if len(outputs) > 1 else "model output"))
        self._finish()

    def new_ids(self, n: int, path: str) -> Ids:
        """n fresh ids made by the layer at `path` ("" for the model's inputs)."""
        self._blocks.append((path, n))
        self._count += n
        return np.arange(self._count - n, self._count, dtype=np.int64)

    def _input(self, tensor: Any, index: int) -> Channels:
        shape = tuple(tensor.shape[1:])
        ids = self.new_ids((shape[-1] or 1) if shape else 0, "")
        self.kept.append((ids, f"model input {index}"))
        return Channels(ids, max(len(shape) - 1, 0), shape)

    def _trace(self, model: keras.Model, inputs: list[Channels], prefix: str) -> list[Channels]:
        self.entries.setdefault(id(model), inputs)
        tensors: dict[int, Channels] = {id(t): c for t, c in zip(model.inputs, inputs, strict=True)}
        for node in walk(model):
            if isinstance(node.layer, keras.layers.InputLayer):
                continue
            layer, path = node.layer, prefix + node.layer.name
            record = self.layers.setdefault(id(layer), Layer(layer, path))
            given = [tensors[id(t)] for t in node.keras_inputs]
            if isinstance(layer, keras.Model):
                require_graph(layer, path)
                outputs = self._trace(layer, given, path + "/")
            else:
                call = Call(self, record, node, given)
                if given and not any(len(x.ids) for x in given):
                    outputs = [Channels(_NONE, 0, ()) for _ in call.output_shapes]  # computed from shapes alone
                else:
                    result = self._rule(layer, path)(call)
                    outputs = [result] if isinstance(result, Channels) else list(result)
                if getattr(getattr(layer, "activation", None), "__name__", "") in _ACTIVATIONS_OVER_CHANNELS:
                    call.keep(outputs[0].ids, "its activation mixes channels")
                self.steps.append((given, outputs, path))
            tensors.update({id(t): c for t, c in zip(tf.nest.flatten(node.outputs), outputs, strict=True)})
        return [tensors[id(t)] for t in model.outputs]

    def _rule(self, layer: keras.layers.Layer, path: str) -> Rule:
        rule = rule_for(layer)
        if rule is None and self.unknown == "error":
            kind = repr(_symbol(layer)) if isinstance(layer, TFOpLambda) else type(layer).__name__
            raise InputError(
                f"No channel rule for layer {path!r} of class {kind}.",
                expected="a layer of: " + ", ".join(supported_layers()),
                fix=f'register a rule with @okd.channel_rule({kind}), or keep its channels with unknown="keep" '
                "(tools: --unknown=keep)",
            )
        return rule or (lambda call: call.keep_all(f"no channel rule for {type(layer).__name__}"))

    def _finish(self) -> None:
        """From couplings to units (connected components), and from units to groups."""
        self.unit_of = _components(self._count, self.pairs)
        reasons: dict[int, str] = {}
        for ids, reason in self.kept:
            for unit in self.unit_of[ids]:
                reasons.setdefault(int(unit), reason)
        block_of = np.repeat(np.arange(len(self._blocks)), [n for _, n in self._blocks])
        signature: dict[int, dict[int, int]] = {}
        for block, unit in zip(block_of.tolist(), self.unit_of.tolist(), strict=True):
            blocks = signature.setdefault(unit, {})
            blocks[block] = blocks.get(block, 0) + 1
        alike: dict[tuple[Any, ...], list[int]] = {}
        for unit, blocks in signature.items():
            alike.setdefault((*blocks.items(), reasons.get(unit, "")), []).append(unit)
        self.groups: list[Group] = []
        names: dict[str, int] = {}
        for (*blocks_of_unit, reason), units in alike.items():
            members = {self._blocks[block][0]: n for block, n in blocks_of_unit if self._blocks[block][0]}
            if not members:
                continue  # the channels of a model input are nobody's to remove
            name = next(iter(members))
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name}#{names[name]}"
            self.groups.append(Group(name, members, np.array(units), reason))

    def parameters(self, stays: np.ndarray) -> int:
        """Elements of all variables after a removal; `stays`: bool per unit."""
        return sum(self._size(w, stays) for layer in self.layers.values() for w in layer.weights.values()) + sum(
            self._unnamed(layer) for layer in self.layers.values()
        )

    def macs(self, stays: np.ndarray) -> float:
        """Multiply-accumulates of one image after a removal; NaN where an image size is not known."""
        return sum(w.uses * self._size(w, stays) for la in self.layers.values() for w in la.weights.values() if w.uses)

    def all_stay(self) -> np.ndarray:
        """bool per unit, all True: the network as it is."""
        return np.ones(int(self.unit_of.max(initial=-1)) + 1, bool)

    def _size(self, weight: Weight, stays: np.ndarray) -> int:
        sizes = (
            n if ids is None else int(stays[self.unit_of[ids]].sum())
            for n, ids in zip(weight.shape, weight.axes, strict=True)
        )
        return math.prod(sizes)

    def _unnamed(self, record: Layer) -> int:
        if isinstance(record.layer, keras.Model):
            return 0
        named = {id(getattr(record.layer, name)) for name in record.weights}
        return sum(math.prod(v.shape) for v in record.layer.weights if id(v) not in named)


def _components(n: int, pairs: Iterable[tuple[Ids, Ids]]) -> np.ndarray:
    """Union-find over ids 0..n-1: (n,) labels 0..k-1, numbered by the smallest id of each set."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            i, j = root(i), root(j)
            parent[max(i, j)] = min(i, j)
    roots = np.fromiter((root(i) for i in range(n)), np.int64, n)
    return np.unique(roots, return_inverse=True)[1]
