"""The traced network: coupled groups, and every weight axis, tensor and constructor argument as channel ids."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from orbit_kd.channels.ids import Call, Channels, Ids, Kept, Layer, Rule, Weight, rule_for, supported_layers, symbol_of
from orbit_kd.errors import InputError
from orbit_kd.models.walk import Node, carry, has_graph, require_graph

_NONE = np.empty(0, np.int64)
_ACTIVATIONS_OVER_CHANNELS = {"softmax", "log_softmax"}


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

    @property
    def channels_per_unit(self) -> int:
        """Of the first member."""
        return next(iter(self.members.values()))

    @property
    def channels(self) -> int:
        """Of the first member: what a reader of the model calls the group's width."""
        return self.width * self.channels_per_unit

    def step(self, round_to: int) -> int:
        """Units that go or stay together, so that channels stay a multiple of `round_to`."""
        return round_to // math.gcd(round_to, self.channels_per_unit)

    def fewest_units(self, min_channels: int) -> int:
        """Units that stay at least: one, and what holds `min_channels`."""
        return max(1, -(-min_channels // self.channels_per_unit))


class ChannelGraph:
    """The traced network: `groups`, and every weight axis, tensor and constructor argument as ids.

    Args:
        model: a Functional or Sequential tf_keras model, nested to any depth.
        unknown: "error" refuses a layer without a rule; "keep" keeps every channel that touches one.
        shapes: of the inputs without the batch, where the model leaves sizes open.

    Raises:
        InputError: no layer graph, or a layer without a rule under "error".
    """

    def __init__(
        self, model: keras.Model, *, unknown: str = "error", shapes: Sequence[tuple[int | None, ...]] | None = None
    ) -> None:
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
        shapes = shapes or [tuple(t.shape[1:]) for t in model.inputs]
        inputs = [self._input(shape, i) for i, shape in enumerate(shapes)]
        self.entries[id(model)] = inputs
        outputs = carry(model, inputs, self._call, enter=self._enter)
        for i, x in enumerate(outputs):
            self.kept.append((x.ids, f"model output {i}" if len(outputs) > 1 else "model output"))
        self._finish()

    def new_ids(self, n: int, path: str) -> Ids:
        """n fresh ids made by the layer at `path` ("" for the model's inputs)."""
        self._blocks.append((path, n))
        self._count += n
        return np.arange(self._count - n, self._count, dtype=np.int64)

    def _input(self, shape: tuple[int | None, ...], index: int) -> Channels:
        ids = self.new_ids((shape[-1] or 1) if shape else 0, "")
        self.kept.append((ids, f"model input {index}"))
        return Channels(ids, max(len(shape) - 1, 0), shape)

    def _call(self, node: Node, path: str, given: list[Channels]) -> list[Channels]:
        layer = node.layer
        call = Call(self, self.layers.setdefault(id(layer), Layer(layer, path)), node, given)
        if given and not any(len(x.ids) for x in given):
            outputs = [Channels(_NONE, 0, ()) for _ in call.output_shapes]  # computed from shapes alone
        else:
            result = self._rule(layer, path)(call)
            outputs = [result] if isinstance(result, Channels) else list(result)
        if getattr(getattr(layer, "activation", None), "__name__", "") in _ACTIVATIONS_OVER_CHANNELS:
            call.keep(outputs[0].ids, "its activation mixes channels")
        self.steps.append((given, outputs, path))
        return outputs

    def _enter(self, node: Node, path: str, given: list[Channels]) -> list[Channels]:
        self.layers.setdefault(id(node.layer), Layer(node.layer, path))
        for i, (x, t) in enumerate(zip(given, node.layer.inputs, strict=True)):
            if len(x.shape) != len(t.shape) - 1 and len(x.ids):  # Keras adds or drops a last axis of 1
                self.kept.append((x.ids, f"{path}: takes another number of axes"))
                given[i] = self._input(tuple(t.shape[1:]), i)
        self.entries.setdefault(id(node.layer), given)
        return given

    def _rule(self, layer: keras.layers.Layer, path: str) -> Rule:
        rule = rule_for(layer)
        if rule is None and self.unknown == "error":
            kind = repr(symbol_of(layer)) if isinstance(layer, TFOpLambda) else type(layer).__name__
            raise InputError(
                f"No channel rule for layer {path!r} of class {kind}.",
                expected=f"a layer with a rule{_like(kind)} (all: orbit_kd.channels.ids.supported_layers())",
                fix='keep its channels with unknown="keep" (tools: --unknown=keep), or register a rule with '
                f"@okd.channel_rule({kind})",
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
        return self._unnamed + sum(size for _, size in self._sizes(stays))

    def macs(self, stays: np.ndarray) -> float:
        """Multiply-accumulates of one image after a removal; NaN where an image size is not known."""
        return sum(la.macs for la in self.layers.values()) + sum(
            weight.uses * size for weight, size in self._sizes(stays) if weight.uses
        )

    def macs_of(self, model: keras.Model, shape: tuple[int | None, ...]) -> float:
        """Multiply-accumulates of a model within a layer (TimeDistributed), for one input; NaN where not known."""
        if not has_graph(model) or len(model.inputs) != 1:
            return math.nan
        inner = ChannelGraph(model, unknown="keep", shapes=[shape])
        return inner.macs(inner.all_stay())

    def all_stay(self) -> np.ndarray:
        """bool per unit, all True: the network as it is."""
        return np.ones(int(self.unit_of.max(initial=-1)) + 1, bool)

    def size(self, weight: Weight, stays: np.ndarray) -> int:
        """Elements of one variable after a removal."""
        sizes = (
            n if ids is None else int(stays[self.unit_of[ids]].sum())
            for n, ids in zip(weight.shape, weight.axes, strict=True)
        )
        return math.prod(sizes)

    def _sizes(self, stays: np.ndarray) -> Iterator[tuple[Weight, int]]:
        """What `size` gives for each variable with channels; axes of the same channels are counted once."""
        units, weights = self._axes
        counts = [int(np.count_nonzero(stays[axis])) for axis in units]
        for weight, fixed, axes in weights:
            yield weight, fixed * math.prod([counts[axis] for axis in axes])

    @functools.cached_property
    def _axes(self) -> tuple[list[np.ndarray], list[tuple[Weight, int, list[int]]]]:
        """Units of each different axis; each variable with its fixed elements and the numbers of its axes.

        A search asks for thousands of sizes of one graph.
        """
        known: dict[bytes, int] = {}
        units, weights = list[np.ndarray](), list[tuple[Weight, int, list[int]]]()
        for weight in (w for layer in self.layers.values() for w in layer.weights.values()):
            axes, fixed = [], 1
            for n, ids in zip(weight.shape, weight.axes, strict=True):
                if ids is None:
                    fixed *= n
                    continue
                axis = self.unit_of[ids]
                if axis.tobytes() not in known:
                    known[axis.tobytes()] = len(units)
                    units.append(axis)
                axes.append(known[axis.tobytes()])
            weights.append((weight, fixed, axes))
        return units, weights

    @functools.cached_property
    def _unnamed(self) -> int:
        """Elements of the variables that no rule names, which no removal changes."""
        total = 0
        for record in self.layers.values():
            if not isinstance(record.layer, keras.Model):
                named = {id(getattr(record.layer, name)) for name in record.weights}
                total += sum(math.prod(v.shape) for v in record.layer.weights if id(v) not in named)
        return total


def _like(kind: str) -> str:
    """The names with a rule that come nearest to one without."""
    near = difflib.get_close_matches(kind.strip("'"), supported_layers(), n=3)
    return f", such as {', '.join(near)}" if near else ""


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
