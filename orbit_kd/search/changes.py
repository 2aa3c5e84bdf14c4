"""What a sensitivity scan does to a network: filters that go, weights that become zero, kernels with fewer bits.

Nothing is rebuilt where it can be helped: the weights that read removed channels are set to zero in a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.channels.ids import Layer
from orbit_kd.models.copies import resolve
from orbit_kd.models.segments import Segments
from orbit_kd.models.wrappers import KernelRule, kernel_rule
from orbit_kd.quantization.rounding import channel_axes, rounded
from orbit_kd.removal.planning import check_names, named
from orbit_kd.removal.scorer import Scorer
from orbit_kd.removal.surgery import rebuild
from orbit_kd.search.scan import Curve

_STATISTICS_OVER_CHANNELS = (
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
)


@dataclasses.dataclass(frozen=True)
class Change:
    """What one curve is about.

    Attributes:
        curve: without its points.
        position: where the network changes first.
        make: takes a part away, in [0, 1); the network itself changes, or another one is returned.
        undo: gives it back.
        about: what else decides its points, as digestible values.
    """

    curve: Curve
    position: int = 0
    make: Callable[[float], keras.Model | None] = lambda part: None
    undo: Callable[[], None] = lambda: None
    about: Any = None


def filter_changes(
    graph: ChannelGraph, segments: Segments, *, criterion: str, train: Any, loss: Any, exclude: Sequence[str], seed: int
) -> Iterator[Change]:  # fmt: skip
    """The least important channels of each group."""
    check_names(graph, exclude)
    scorer = Scorer(graph, name=criterion, data=train, loss=loss, seed=seed)
    kinds = {record.path: record.layer for record in graph.layers.values()}
    for group in graph.groups:
        curve = Curve(group.name, tuple(group.members), group.channels,
                      reason=group.reason or ("excluded" if named(group, exclude) else ""))  # fmt: skip
        if curve.reason:
            yield Change(curve)
            continue
        order = np.argsort(scorer(group), kind="stable")
        statistics = any(
            isinstance(kinds[path], _STATISTICS_OVER_CHANNELS) and _touches(graph, group, x.ids).any()
            for inputs, _, path in graph.steps
            for x in inputs
        )
        yield (_rebuilt if statistics else _masked)(graph, group, curve, order, segments)


def weight_changes(graph: ChannelGraph, segments: Segments, *, exclude: Sequence[str]) -> Iterator[Change]:
    """The smallest weights of each kernel."""

    def zeros(value: np.ndarray, record: Layer) -> Callable[[float], np.ndarray]:
        order = np.argsort(np.abs(value), axis=None, kind="stable")

        def with_zeros(part: float) -> np.ndarray:
            mask = np.ones(value.size, value.dtype)
            mask[_first(order, part)] = 0
            return value * mask.reshape(value.shape)

        return with_zeros

    return _kernel_changes(graph, segments, exclude, zeros)


def bit_changes(graph: ChannelGraph, segments: Segments, *, exclude: Sequence[str]) -> Iterator[Change]:
    """The bits of each kernel: a part p that goes leaves 8 * (1 - p)."""

    def coarse(value: np.ndarray, record: Layer) -> Callable[[float], np.ndarray]:
        axes = channel_axes(record.layer)
        return lambda part: rounded(value, bits_left(part), axes=axes)

    return _kernel_changes(graph, segments, exclude, coarse)


def bits_left(part: float) -> int:
    """Bits of a weight that stay where a part of its 8 goes."""
    return round(8 * (1 - part))


def _kernel_changes(
    graph: ChannelGraph, segments: Segments, exclude: Sequence[str],
    changed: Callable[[np.ndarray, Layer], Callable[[float], np.ndarray]],
) -> Iterator[Change]:  # fmt: skip
    excluded = resolve(exclude, {record.path: record.layer for record in graph.layers.values()}, "exclude")
    for record in graph.layers.values():
        rule = None if isinstance(record.layer, keras.Model) else kernel_rule(record.layer)
        if not isinstance(rule, KernelRule):
            continue
        kernel = getattr(record.layer, rule.kernel)
        value = kernel.numpy()
        curve = Curve(record.path, (record.path,), value.size, reason="excluded" if record.path in excluded else "")
        if curve.reason:
            yield Change(curve)
            continue

        without = changed(value, record)

        def make(part: float, kernel: Any = kernel, without: Any = without) -> None:
            kernel.assign(without(part))

        def undo(kernel: Any = kernel, value: Any = value) -> None:
            kernel.assign(value)

        yield Change(curve, segments.first_call([record.layer]), make, undo)


def _touches(graph: ChannelGraph, group: Group, ids: np.ndarray) -> np.ndarray:
    return np.isin(graph.unit_of[ids], group.units)


def _first(order: np.ndarray, part: float) -> np.ndarray:
    """The places of a part that goes; at least one stays."""
    return order[: min(round(len(order) * part), len(order) - 1)]


def _masked(graph: ChannelGraph, group: Group, curve: Curve, order: np.ndarray, segments: Segments) -> Change:
    """Sets to zero the weights that read removed channels; whatever else computes on these is not read any more."""
    readers = []
    for record in graph.layers.values():
        for name, weight in record.weights.items():
            for axis, ids in enumerate(weight.axes):
                if weight.uses and ids is not None and axis != weight.out_axis and _touches(graph, group, ids).any():
                    variable = getattr(record.layer, name)
                    readers.append((record.layer, variable, variable.numpy(), axis, graph.unit_of[ids]))

    def make(part: float) -> None:
        gone = group.units[_first(order, part)]
        values: dict[int, np.ndarray] = {}
        for _, variable, value, axis, units in readers:
            shape = [-1 if a == axis else 1 for a in range(value.ndim)]
            kept = (~np.isin(units, gone)).astype(value.dtype).reshape(shape)
            values[id(variable)] = values.get(id(variable), value) * kept
        for _, variable, *_ in readers:
            variable.assign(values[id(variable)])

    def undo() -> None:
        for _, variable, value, *_ in readers:
            variable.assign(value)

    return Change(curve, segments.first_call(r[0] for r in readers), make, undo, about=order)


def _rebuilt(graph: ChannelGraph, group: Group, curve: Curve, order: np.ndarray, segments: Segments) -> Change:
    """Removes the channels, where masks would change statistics over channels."""

    def make(part: float) -> keras.Model:
        stays = graph.all_stay()
        stays[group.units[_first(order, part)]] = False
        return rebuild(graph, stays)

    return Change(curve, 0, make, about=order)
