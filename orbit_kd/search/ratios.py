"""Ratios from a sensitivity scan: which groups to shrink, and how far, for a budget at the least predicted loss."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.wrappers import KernelRule, kernel_rule
from orbit_kd.removal import budgets
from orbit_kd.search.scan import Curve, Scan

_LEVELS = 40  # steps from whole to the last ratio of the scan; narrower groups take one channel a step

Levels = list[tuple[float, float]]  # (how much has gone, predicted loss), from nothing on; the loss never falls


def ratios_for(
    scan: Scan, model: keras.Model, *, unknown: str = "error", round_to: int = 1, min_channels: int = 1,
    **budget: float | None,
) -> dict[str, float]:  # fmt: skip
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
        round_to: widths are multiples of this (or the group stays whole).
        min_channels: no group shrinks below this many channels.
        **budget: one or more budgets of `plan_removal`; the first one says what a step saves.

    Returns:
        Group -> part of its channels that goes, of every group in the scan that may shrink.

    Raises:
        InputError: a scan of weights or of another model, no budget, one that no ratio within the scan meets.
    """
    graph = ChannelGraph(as_tf_keras(model), unknown=unknown)
    limits = budgets.limits(graph, budget)
    groups = _scanned_groups(graph, scan)
    if not limits:
        raise InputError(
            "There is no budget.", expected="one such as keep_macs=0.2 or max_bytes=200_000", fix="give one"
        )
    levels = {n: _channel_levels(g, scan[n], scan.loss, round_to, min_channels) for n, g in groups.items()}
    gone = _fewest_gone(graph, groups, levels, limits)
    return {name: gone.get(name, 0) / group.width for name, group in groups.items()}


def hybrid_for(
    scan: Scan,
    model: keras.Model,
    *,
    weights: Scan,
    keep_params: float,
    unknown: str = "error",
    round_to: int = 1,
    min_channels: int = 1,
    **budget: float | None,
) -> tuple[dict[str, float], dict[str, float]]:
    """How much goes by filters and how much by single weights, chosen together for a number of non-zero parameters.

    Filters and weights compete step by step as groups do in `ratios_for`: whichever saves most non-zeros for the
    predicted loss goes next. Zeros among the weights save nothing but parameters; where another budget is given, the
    filters that it takes go first. The first source paper prunes both and chooses by eye.

        ratios, sparsity = hybrid_for(scan, teacher, weights=weight_scan, keep_params=0.06)
        student = okd.remove_filters(teacher, okd.plan_removal(teacher, ratios=ratios, ratio=0.0))
        sparse = okd.sparsify(student, "magnitude", sparsity=sparsity)

    Args:
        scan: scan of the filters of this model.
        model: the model.
        weights: scan of its weights (`of="weights"`).
        keep_params: part of the parameters that stay and are not zero.
        unknown: as in the scan.
        round_to: widths are multiples of this (or the group stays whole).
        min_channels: no group shrinks below this many channels.
        **budget: further budgets of `plan_removal`, such as keep_macs=0.1.

    Returns:
        Group -> part of its channels that goes, of every group that may shrink; layer -> part of its remaining weights
        that becomes zero.

    Raises:
        InputError: scans of something else, or a budget that nothing within the scans meets.
    """
    graph = ChannelGraph(as_tf_keras(model), unknown=unknown)
    groups = _scanned_groups(graph, scan)
    kernels = _kernels(graph)
    if weights.of != "weights" or not {c.name for c in weights.curves} <= {r.path for r in graph.layers.values()}:
        raise InputError(
            f"The scan of weights is of {weights.of}.", expected='okd.sensitivity(model, data, of="weights")',
            fix="run it on this model",
        )  # fmt: skip
    channel_levels = {n: _channel_levels(g, scan[n], scan.loss, round_to, min_channels) for n, g in groups.items()}
    curves = [c for c in weights.curves if c.ratios and c.name in kernels]
    weight_levels = {"weights of " + c.name: _weight_levels(c, weights.loss) for c in curves}
    limits = budgets.limits(graph, budget)
    first = _fewest_gone(graph, groups, channel_levels, limits) if limits else {}
    channel_levels = {n: [v for v in lv if v[0] >= first.get(n, 0)] for n, lv in channel_levels.items()}

    def left(gone: Mapping[str, float]) -> float:
        """Parameters that stay and are not zero."""
        stays = _stays(graph, groups, gone)
        zeros = sum(gone.get(f"weights of {n}", 0.0) * size(stays) for n, size in kernels.items())
        return graph.parameters(stays) - zeros

    order = _order(channel_levels | weight_levels, left)
    most = budgets.limits(graph, {"keep_params": keep_params})[0].most
    if left(first | dict(order)) > most:
        least = left(first | dict(order)) / graph.parameters(graph.all_stay())
        raise InputError(
            f"keep_params={keep_params:g} cannot be reached.",
            expected=f"at least {budgets.round_up(least)}, with these scans",
            fix="scan higher ratios, or raise keep_params",
        )
    gone = first | dict(
        order[: budgets.first_that_meets(0, len(order), lambda n: left(first | dict(order[:n])) <= most)]
    )
    ratios = {name: gone.get(name, 0) / group.width for name, group in groups.items()}
    return ratios, {name: gone[f"weights of {name}"] for name in kernels if gone.get(f"weights of {name}")}


def _scanned_groups(graph: ChannelGraph, scan: Scan) -> dict[str, Group]:
    """The groups that may shrink.

    Raises:
        InputError: a scan of weights or of another model.
    """
    if scan.of != "filters" or {c.name for c in scan.curves} != {g.name for g in graph.groups}:
        raise InputError(
            f"The scan is of {scan.of} of {len(scan.curves)} groups, the model has {len(graph.groups)}.",
            expected="a scan of the filters of this model",
            fix="run okd.sensitivity(model, data) on it",
        )
    narrower = [g.name for g in graph.groups if scan[g.name].width != g.channels]
    if narrower:
        raise InputError(
            f"The scan is of another network: {', '.join(narrower[:5])} had other widths.",
            expected="a scan of the filters of this model",
            fix="run okd.sensitivity(model, data) on it",
        )
    return {g.name: g for g in graph.groups if scan[g.name].ratios}


def _kernels(graph: ChannelGraph) -> dict[str, Callable[[np.ndarray], int]]:
    """Layer -> (what stays -> elements of its kernel)."""
    found: dict[str, Callable[[np.ndarray], int]] = {}
    for record in graph.layers.values():
        rule = None if isinstance(record.layer, keras.Model) else kernel_rule(record.layer)
        if isinstance(rule, KernelRule) and rule.kernel in record.weights:
            weight = record.weights[rule.kernel]
            found[record.path] = lambda stays, weight=weight: graph.size(weight, stays)  # type: ignore[misc]
    return found


def _fewest_gone(
    graph: ChannelGraph, groups: Mapping[str, Group], levels: Mapping[str, Levels], limits: Sequence[budgets.Limit]
) -> dict[str, float]:
    """Group -> units that go, for the limits at the least predicted loss; the first limit says what a step saves."""
    cost = limits[0].guide or limits[0].cost
    order = _order(levels, lambda gone: cost(_stays(graph, groups, gone)))

    def stays(n: int) -> np.ndarray:
        return _stays(graph, groups, dict(order[:n]))

    return dict(order[: budgets.fewest_to_remove(len(order), stays, limits)])


def _order(levels: Mapping[str, Levels], cost: Callable[[Mapping[str, float]], float]) -> list[tuple[str, float]]:
    """(name, how much of it has gone by then) in the order in which to take, from the first levels to the last.

    A step's worth falls as others are taken, and rarely rises, so that only the best of the queue is looked at anew.
    """
    gone = {name: steps[0][0] for name, steps in levels.items()}
    taken: Counter[str] = Counter()
    order: list[tuple[str, float]] = []
    now = cost(gone)

    def price(name: str) -> float:
        """Predicted loss for each part of the cost that the next step saves."""
        (_, before), (amount, loss) = levels[name][taken[name] : taken[name] + 2]
        saved = now - cost({**gone, name: amount})
        return (loss - before) / saved if saved > 0 else np.inf

    queue = [(price(name), name) for name in levels if len(levels[name]) > 1]
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
        now = cost(gone)
        if taken[name] + 1 < len(levels[name]):
            heapq.heappush(queue, (price(name), name))
    return order


def _channel_levels(group: Group, curve: Curve, whole: float, round_to: int, min_channels: int) -> Levels:
    """Units gone, and the loss."""
    step = group.step(round_to)
    most = max(min(round(group.width * curve.ratios[-1]), group.width - group.fewest_units(min_channels)), 0)
    steps = {(group.width - round(most * i / _LEVELS)) // step * step for i in range(_LEVELS + 1)}
    counts = sorted({0, *(group.width - width for width in steps if group.width - width <= most)})
    return [(c, _loss(curve, whole, c / group.width)) for c in counts]


def _weight_levels(curve: Curve, whole: float) -> Levels:
    """Part of the weights gone, and the loss."""
    parts = np.linspace(0, curve.ratios[-1], _LEVELS + 1)
    return [(part, _loss(curve, whole, part)) for part in parts.tolist()]


def _loss(curve: Curve, whole: float, part: float) -> float:
    rising = np.maximum.accumulate([whole, *curve.loss])
    return float(np.interp(part, [0.0, *curve.ratios], rising))


def _stays(graph: ChannelGraph, groups: Mapping[str, Group], gone: Mapping[str, float]) -> np.ndarray:
    stays = graph.all_stay()
    for name, group in groups.items():
        stays[group.units[: int(gone.get(name, 0))]] = False
    return stays
