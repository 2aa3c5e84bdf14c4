"""What scans say may go from a network, filters, weights and bits alike, in the order in which to take it."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.channels.ids import Weight
from orbit_kd.errors import InputError
from orbit_kd.models.wrappers import KernelRule, kernel_rule
from orbit_kd.search.changes import bits_left
from orbit_kd.search.scan import Curve, Scan

_LEVELS = 40  # steps from whole to the last ratio of a curve; narrower groups take one channel a step

Name = tuple[str, str]
"""What a move is about: "filters" and a group, "weights" or "bits" and a layer."""

State = Mapping[Name, float]
"""How much of each has gone: units of a group, the part of a kernel's weights that is zero, of its eight bits."""

Levels = list[tuple[float, float]]
"""(how much has gone, predicted rise of the loss), from what is so now on; neither ever falls."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """One step: of `name` so much has gone by then, at this predicted rise of the loss in all."""

    name: Name
    amount: float
    loss: float


class Moves:
    """The levels that scans allow in a network, and what a state of them leaves of it.

    Args:
        graph: the traced network.
        scans: of its filters, weights or bits, or some of these.
        round_to, min_channels: as in `plan_removal`.
        bits: layer -> bits that its kernel has already; 8 where not named.

    Raises:
        InputError: a scan of another network.
    """

    def __init__(
        self, graph: ChannelGraph, scans: Sequence[Scan], *, round_to: int = 1, min_channels: int = 1,
        bits: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.groups: dict[str, Group] = {}
        self.kernels = kernels_of(graph)
        self.levels: dict[Name, Levels] = {}
        for scan in scans:
            if scan.of == "filters":
                self.groups = _scanned_groups(graph, scan)
                for name, group in self.groups.items():
                    levels = _channel_levels(group, scan[name], scan.loss, round_to, min_channels)
                    self.levels["filters", name] = levels
                continue
            _check_layers(graph, scan)
            for curve in scan.curves:
                if curve.ratios and curve.name in self.kernels:
                    now = _now(scan.of, curve.name, self.kernels[curve.name], bits or {})
                    self.levels[scan.of, curve.name] = _kernel_levels(scan.of, curve, scan.loss, now)
        self.start: dict[Name, float] = {name: levels[0][0] for name, levels in self.levels.items()}

    def stays(self, gone: State) -> np.ndarray:
        """bool per unit of the graph: which and how many of a group counts, not which ones."""
        stays = self.graph.all_stay()
        for name, group in self.groups.items():
            stays[group.units[: int(gone.get(("filters", name), 0))]] = False
        return stays

    def keep_at_least(self, part: float) -> None:
        """Takes away the levels at which a group would keep less than a part of its channels."""
        for name, group in self.groups.items():
            most = group.width - math.ceil(part * group.width)
            levels = self.levels["filters", name]
            self.levels["filters", name] = [level for level in levels if level[0] <= most] or levels[:1]

    def ratios(self, gone: State) -> dict[str, float]:
        """Group -> part of its channels that goes, of every group that may shrink."""
        return {name: gone.get(("filters", name), 0) / group.width for name, group in self.groups.items()}

    def sparsities(self, gone: State) -> dict[str, float]:
        """Layer -> part of its remaining weights that is to be zero, where that is more than now."""
        return {layer: part for (of, layer), part in gone.items()
                if of == "weights" and part > self.start[of, layer]}  # fmt: skip

    def bits(self, gone: State) -> dict[str, int]:
        """Layer -> bits of its kernel, where they are fewer than eight."""
        return {layer: bits_left(part) for (of, layer), part in gone.items() if of == "bits" and part}

    def order(self, cost: Callable[[State], float]) -> list[Taken]:
        """All steps to the last levels: the one that saves most of the cost for its loss goes next.

        A step is to the next level that saves anything: seven bits may take no fewer bytes than eight. A step's worth
        falls as others are taken, and rarely rises, so that only the best of the queue is looked at anew.
        """
        gone, at, order, loss = dict(self.start), Counter[Name](), list[Taken](), 0.0
        now = cost(gone)

        def best(name: Name) -> tuple[float, int]:
            """Predicted loss for each part of the cost that the next step saves, and the level it leads to."""
            levels, place = self.levels[name], at[name]
            for level in range(place + 1, len(levels)):
                saved = now - cost({**gone, name: levels[level][0]})
                if saved > 0:
                    return (levels[level][1] - levels[place][1]) / saved, level
            return np.inf, place + 1

        queue = [(best(name)[0], name) for name, levels in self.levels.items() if len(levels) > 1]
        heapq.heapify(queue)
        while queue:
            _, name = heapq.heappop(queue)
            price, level = best(name)
            if queue and price > queue[0][0] * (1 + 1e-9) + 1e-15:
                heapq.heappush(queue, (price, name))
                continue
            loss += self.levels[name][level][1] - self.levels[name][at[name]][1]
            at[name], gone[name] = level, self.levels[name][level][0]
            order.append(Taken(name, gone[name], loss))
            now = cost(gone)
            if level + 1 < len(self.levels[name]):
                heapq.heappush(queue, (best(name)[0], name))
        return order

    def after(self, steps: Sequence[Taken]) -> dict[Name, float]:
        """The state after some steps."""
        return {**self.start, **{step.name: step.amount for step in steps}}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A layer's kernel in the graph: what `graph.size` counts, its values, and the layer."""

    weight: Weight
    value: np.ndarray
    layer: keras.layers.Layer


def kernels_of(graph: ChannelGraph) -> dict[str, Kernel]:
    """Layer -> its kernel, of every layer that has one over input channels."""
    found = {}
    for record in graph.layers.values():
        rule = None if isinstance(record.layer, keras.Model) else kernel_rule(record.layer)
        if isinstance(rule, KernelRule) and rule.kernel in record.weights:
            found[record.path] = Kernel(
                record.weights[rule.kernel], getattr(record.layer, rule.kernel).numpy(), record.layer
            )
    return found


def _scanned_groups(graph: ChannelGraph, scan: Scan) -> dict[str, Group]:
    """The groups that may shrink.

    Raises:
        InputError: a scan of another model.
    """
    fix = "run okd.sensitivity(model, data) on it"
    if {c.name for c in scan.curves} != {g.name for g in graph.groups}:
        raise InputError(
            f"The scan is of {scan.of} of {len(scan.curves)} groups, the model has {len(graph.groups)}.",
            expected="a scan of the filters of this model",
            fix=fix,
        )
    narrower = [g.name for g in graph.groups if scan[g.name].width != g.channels]
    if narrower:
        raise InputError(
            f"The scan is of another network: {', '.join(narrower[:5])} had other widths.",
            expected="a scan of the filters of this model",
            fix=fix,
        )
    return {g.name: g for g in graph.groups if scan[g.name].ratios}


def _check_layers(graph: ChannelGraph, scan: Scan) -> None:
    """Raises InputError for a scan of another model's weights or bits."""
    if not {c.name for c in scan.curves} <= {record.path for record in graph.layers.values()}:
        raise InputError(
            f"The scan of {scan.of} has layers that are not in the model.",
            expected=f'okd.sensitivity(model, data, of="{scan.of}") of this model',
            fix="run it on this model",
        )


def _channel_levels(group: Group, curve: Curve, whole: float, round_to: int, min_channels: int) -> Levels:
    step = group.step(round_to)
    most = max(min(round(group.width * curve.ratios[-1]), group.width - group.fewest_units(min_channels)), 0)
    steps = {(group.width - round(most * i / _LEVELS)) // step * step for i in range(_LEVELS + 1)}
    counts = sorted({0, *(group.width - width for width in steps if group.width - width <= most)})
    return [(count, _rise(curve, whole, count / group.width)) for count in counts]


def _now(of: str, layer: str, kernel: Kernel, bits: Mapping[str, int]) -> float:
    """How much has gone of a kernel already."""
    return 1 - bits.get(layer, 8) / 8 if of == "bits" else float(np.mean(kernel.value == 0))


def _kernel_levels(of: str, curve: Curve, whole: float, now: float) -> Levels:
    last = curve.ratios[-1]
    parts = [bits / 8 for bits in range(1, 7)] if of == "bits" else np.linspace(0, 1, _LEVELS + 1)[1:].tolist()
    free = _rise(curve, whole, now)
    return [(now, 0.0), *((p, max(_rise(curve, whole, p) - free, 0.0)) for p in parts if now < p <= last + 1e-9)]


def _rise(curve: Curve, whole: float, part: float) -> float:
    """How much the loss rises where a part goes, between points as on a line over the logarithm of what stays.

    The curve is read as rising. From its steepest stretch on it goes on as steeply, each halving of what stays costing
    as much as the one before: where a network has lost everything its loss rises no further, and the rest of a group
    would look free. What a weight costs in bytes depends on the widths on both of its sides; with a loss that is linear
    in widths, every other group would be left a few channels wide and the ones between whole.
    """
    if not curve.ratios:
        return 0.0
    halvings = -np.log(1 - np.array([0.0, *curve.ratios]))
    loss = np.maximum.accumulate(np.array([whole, *curve.loss])) - whole
    slopes = np.diff(loss) / np.diff(halvings)
    steepest = int(slopes.argmax())
    slopes[steepest:] = slopes[steepest]
    rises = np.append(0.0, np.cumsum(slopes * np.diff(halvings)))
    return float(np.interp(-np.log(1 - part), halvings, rises))
