"""Decides which channels go, before anything happens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.walk import matches
from orbit_kd.removal import budgets
from orbit_kd.removal.importance import criteria
from orbit_kd.removal.plan import PlannedGroup, RemovalPlan
from orbit_kd.removal.scorer import Scorer


def plan_removal(
    model: keras.Model,
    *,
    criterion: str = "l1_norm",
    ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    scope: str = "local",
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    round_to: int = 1,
    min_channels: int = 1,
    max_ratio: float = 1.0,
    exclude: Sequence[str] = (),
    unknown: str = "error",
    **budget: float | None,
) -> RemovalPlan:
    """Decides which channels go: the least important ones of each coupled group, or of all groups together.

    Say how much with `ratio` and `ratios`, or with one or more budgets: the plan then removes as little as it can to
    meet all of them. What is left is never above a budget, and below it by at most one step (one channel of a group,
    or `round_to` of them).

    Args:
        model: a Functional or Sequential model.
        criterion: name of a criterion (see `orbit_kd.removal.importance`).
        ratio: part of the channels that goes, in [0, 1), of every group that `ratios` does not name.
        ratios: group, or any layer that makes its channels (shell patterns allowed) -> part that goes. Of several that
            fit a group its own name counts, else the first.
        scope: "local" shrinks all groups by the same part; "global" ranks the channels of all groups together by score.
        data: batches (x, y), for criteria that learn from data.
        loss: of the network on its labels, for criteria that need gradients, as `keras.Model.compile` takes it: a name,
            function or Loss; for several outputs a list or a mapping. Where none is given, the one that the model is
            compiled with, else the cross-entropy that fits its softmax or sigmoid or its labels.
        seed: for criteria that draw.
        round_to: widths after the removal are multiples of this (or the group stays whole).
        min_channels: no group shrinks below this many channels.
        max_ratio: no group loses more than this part.
        exclude: layers (shell patterns) whose channels all stay.
        unknown: "error" refuses layers without a channel rule; "keep" keeps the channels that touch them.
        **budget: `keep_params`, `keep_macs`: part that stays, in (0, 1]; `max_params`, `max_macs`: absolute;
            `max_bytes`: of the int8 TFLite file, which is really written to find out (seconds; at most 2% below);
            `max_activation_bytes`: the most that tensors alive at one time take as int8, for one image.

    Returns:
        The plan; nothing has happened yet.

    Raises:
        InputError: a ratio outside [0, 1), an unknown criterion, layer or budget, a budget that cannot be met (with the
            smallest value that can), or a model without a layer graph.
    """
    model = as_tf_keras(model)
    if scope not in ("local", "global"):
        raise InputError(f"scope={scope!r}.", expected='"local" or "global"', fix="choose one of the two")
    criteria.get(criterion)
    for name, value in {"ratio": ratio or 0.0, **(ratios or {})}.items():
        _check_ratio(name, value)
    graph = ChannelGraph(model, unknown=unknown)
    check_names(graph, [*(ratios or {}), *exclude])
    limits = budgets.limits(graph, budget)
    scorer = Scorer(graph, name=criterion, data=data, loss=loss, seed=seed)
    choice = _Choice(graph, scorer, round_to=round_to, min_channels=min_channels, max_ratio=max_ratio, exclude=exclude)
    fixed = {}
    for group in graph.groups:
        parts = [part for name, part in (ratios or {}).items() if named(group, [name])]
        if parts:
            fixed[group.name] = (ratios or {}).get(group.name, parts[0])
    order = choice.order([g for g in graph.groups if g.name not in fixed], scope)
    start = {name: round(choice.width(name) * part) for name, part in fixed.items()}
    if limits:
        gone = budgets.fewest_to_remove(len(order), lambda n: choice.stays(start, order[:n]), limits)
    elif scope == "global":
        gone = round(len(order) * (ratio or 0.0))
    else:
        start |= {g.name: round(g.width * (ratio or 0.0)) for g in graph.groups if g.name not in fixed}
        gone = 0
    stays = choice.stays(start, order[:gone])
    before = graph.all_stay()
    return RemovalPlan(
        groups=tuple(_planned(g, np.flatnonzero(stays[g.units]), choice.reason(g)) for g in graph.groups),
        params=(graph.parameters(before), graph.parameters(stays)),
        macs=(graph.macs(before), graph.macs(stays)),
        unknown=unknown,
    )


class _Choice:
    """Which units of each group go, least important first, within what each group may lose."""

    def __init__(
        self, graph: ChannelGraph, scorer: Scorer, *, round_to: int, min_channels: int, max_ratio: float,
        exclude: Sequence[str],
    ) -> None:  # fmt: skip
        self.graph, self.exclude = graph, exclude
        self.groups = {g.name: g for g in graph.groups}
        self.step: dict[str, int] = {}
        self.floor: dict[str, int] = {}
        self.scores: dict[str, np.ndarray] = {}
        for g in graph.groups:
            self.step[g.name] = g.step(round_to)
            least = max(g.fewest_units(min_channels), math.ceil(round(g.width * (1 - max_ratio), 6)))
            self.floor[g.name] = g.width if self.reason(g) else min(least, g.width)
            self.scores[g.name] = np.zeros(g.width) if self.reason(g) else scorer(g)

    def reason(self, group: Group) -> str:
        """Why a group stays whole; empty when it may shrink."""
        return group.reason or ("excluded" if named(group, self.exclude) else "")

    def width(self, name: str) -> int:
        return self.groups[name].width

    def order(self, groups: Sequence[Group], scope: str) -> list[str]:
        """The name of a group for each unit that may go, in the order in which they go."""
        keys: list[tuple[float, str]] = []
        for g in groups:
            ranked = np.sort(self.scores[g.name])
            for i in range(g.width - self.floor[g.name]):
                keys.append((float(ranked[i]) if scope == "global" else (i + 1) / g.width, g.name))
        return [name for _, name in sorted(keys, key=lambda k: k[0])]

    def stays(self, removed: Mapping[str, int], order: Sequence[str]) -> np.ndarray:
        """bool per unit, after so many units of each group have gone; widths rounded up to their steps."""
        counts = Counter(order)
        stays = self.graph.all_stay()
        for name, group in self.groups.items():
            width = max(group.width - removed.get(name, 0) - counts[name], self.floor[name])
            width = min(math.ceil(width / self.step[name]) * self.step[name], group.width)
            gone = np.argsort(self.scores[name], kind="stable")[: group.width - width]
            stays[group.units[gone]] = False
        return stays


def _planned(group: Group, keep: np.ndarray, reason: str) -> PlannedGroup:
    members = {path: n * group.width for path, n in group.members.items()}
    return PlannedGroup(group.name, members, group.width, tuple(int(i) for i in keep), reason)


def named(group: Group, patterns: Sequence[str]) -> bool:
    """Whether a shell pattern names the group or a layer that makes its channels."""
    return any(matches(name, p) for name in (group.name, *group.members) for p in patterns)


def _check_ratio(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(
            f"{name}={value!r} is no removal ratio.",
            expected="a number in [0, 1): the part of the channels that goes",
            fix="use for example 0.5 to remove every second channel",
        )


def check_names(graph: ChannelGraph, patterns: Sequence[str]) -> None:
    """Raises InputError where a shell pattern names no group and no layer that makes channels."""
    for pattern in patterns:
        if not any(named(g, [pattern]) for g in graph.groups):
            raise InputError(
                f"No group or layer with channels is called {pattern!r}.",
                expected="one of: " + ", ".join(g.name for g in graph.groups),
                fix="print the plan (or tools/inspect_model.py) to see the groups",
            )
