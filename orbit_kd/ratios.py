"""Ratios from a sensitivity scan: which groups to shrink, and how far, for a budget at the least predicted loss."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import tf_keras as keras

from orbit_kd import budgets
from orbit_kd.channel_graph import ChannelGraph, Group
from orbit_kd.errors import InputError
from orbit_kd.scan import Curve, Scan

_LEVELS = 40  # steps from whole to the last ratio of the scan; narrower groups take one channel a step


def ratios_for(
    scan: Scan, model: keras.Model, *, unknown: str = "error", min_channels: int = 1, **budget: float | None
) -> dict[str, float]:
    """Ratios for `plan_removal` that meet a budget at the least loss that the curves of a scan predict.

    The loss of a network is taken to be the sum of what each group costs alone. Step by step the group goes on
    shrinking that pays most (saved cost for predicted loss); the curves are read as rising, and between their points
    as straight lines. The source paper picks the ratios by eye from the same curves (its Fig. 6).

        ratios = okd.ratios_for(scan, teacher, keep_macs=0.2)
        plan = okd.plan_removal(teacher, ratios=ratios, ratio=0.0)

    Args:
        scan: of the filters of this model.
        model: the model.
        unknown: as in the scan.
        min_channels: no group shrinks below this many channels.
        **budget: one or more budgets of `plan_removal`; the first one says what a step saves.

    Returns:
        Group -> part of its channels that goes, for the groups that shrink.

    Raises:
        InputError: a scan of weights or of another model, no budget, one that no ratio within the scan meets.
    """
    graph = ChannelGraph(model, unknown=unknown)
    limits = budgets.limits(graph, budget)
    if scan.of != "filters" or {c.name for c in scan.curves} != {g.name for g in graph.groups}:
        raise InputError(
            f"The scan is of {scan.of} of {len(scan.curves)} groups, the model has {len(graph.groups)}.",
            expected="a scan of the filters of this model",
            fix="run okd.sensitivity(model, data) on it",
        )
    if not limits:
        raise InputError(
            "There is no budget.", expected="one such as keep_macs=0.2 or max_bytes=200_000", fix="give one"
        )
    groups = {g.name: g for g in graph.groups if scan[g.name].ratios}
    order = _order(graph, scan, groups, limits[0], min_channels)

    def stays(n: int) -> np.ndarray:
        return _stays(graph, groups, dict(order[:n]))

    gone = dict(order[: budgets.fewest(len(order), stays, limits)])
    return {name: count / groups[name].width for name, count in gone.items()}


def _order(
    graph: ChannelGraph, scan: Scan, groups: dict[str, Group], limit: budgets.Limit, min_channels: int
) -> list[tuple[str, int]]:
    """(group, units gone by then) in the order in which to shrink, as far as the scan goes.

    A step's worth falls as others are taken, and rarely rises, so that only the best of the queue is looked at anew.
    """
    cost = limit.guide or limit.cost
    levels = {name: _levels(group, scan[name], scan.loss, min_channels) for name, group in groups.items()}
    gone: dict[str, int] = dict.fromkeys(groups, 0)
    taken: Counter[str] = Counter()
    order: list[tuple[str, int]] = []
    now = cost(graph.all_stay())

    def price(name: str) -> float:
        """Predicted loss for each part of the cost that the next step of a group saves."""
        (_, before), (count, loss) = levels[name][taken[name] : taken[name] + 2]
        saved = now - cost(_stays(graph, groups, {**gone, name: count}))
        return (loss - before) / saved if saved > 0 else np.inf

    queue = [(price(name), name) for name in groups if len(levels[name]) > 1]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        current = price(name)
        if queue and current > queue[0][0] * (1 + 1e-9) + 1e-15:
            heapq.heappush(queue, (current, name))
            continue
        taken[name] += 1
        gone[name] = levels[name][taken[name]][0]
        order.append((name, gone[name]))
        now = cost(_stays(graph, groups, gone))
        if taken[name] + 1 < len(levels[name]):
            heapq.heappush(queue, (price(name), name))
    return order


def _levels(group: Group, curve: Curve, whole: float, min_channels: int) -> list[tuple[int, float]]:
    """(units gone, predicted loss), from none gone on; the loss never falls."""
    least = max(1, -(-min_channels // next(iter(group.members.values()))))
    most = max(min(round(group.width * curve.ratios[-1]), group.width - least), 0)
    counts = sorted({round(most * i / _LEVELS) for i in range(_LEVELS + 1)})
    rising = np.maximum.accumulate([whole, *curve.loss])
    losses = np.interp([c / group.width for c in counts], [0.0, *curve.ratios], rising)
    return list(zip(counts, losses.tolist(), strict=True))


def _stays(graph: ChannelGraph, groups: dict[str, Group], gone: dict[str, int]) -> np.ndarray:
    stays = graph.all_stay()
    for name, count in gone.items():
        stays[groups[name].units[:count]] = False
    return stays
