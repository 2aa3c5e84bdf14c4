"""Budgets of a removal plan: what a network may cost, and the fewest channels that must go for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from orbit_kd.channel_graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.profiling import activation_bytes
from orbit_kd.registry import Registry

Cost = Callable[[ChannelGraph, np.ndarray], float]
costs: Registry[Cost] = Registry("budget")
costs.register("max_params")(lambda graph, stays: graph.parameters(stays))
costs.register("max_macs")(lambda graph, stays: graph.macs(stays))
costs.register("max_activation_bytes")(activation_bytes)
_FRACTIONS = {"keep_params": "max_params", "keep_macs": "max_macs"}


@dataclasses.dataclass(frozen=True)
class Limit:
    """A cost and what it may be at most; `scale` turns it into the caller's unit for messages."""

    name: str
    cost: Callable[[np.ndarray], float]
    most: float
    scale: float = 1.0


def limits(graph: ChannelGraph, given: Mapping[str, float | None]) -> list[Limit]:
    """The limits that a caller's budgets mean for this network.

    Raises:
        InputError: an unknown budget, a value that makes no sense, or MACs of a network of unknown image size.
    """
    found = []
    for name, value in given.items():
        if value is None:
            continue
        absolute = _FRACTIONS.get(name, name)
        if absolute not in costs:
            raise InputError(
                f"Unknown budget {name!r}.",
                expected="one of: " + ", ".join(sorted([*_FRACTIONS, *costs])),
                fix="choose one of these",
            )
        if not value > 0 or (name in _FRACTIONS and value > 1):
            raise InputError(
                f"{name}={value!r}.",
                expected="a part in (0, 1]" if name in _FRACTIONS else "a number above 0",
                fix=f"mend {name}",
            )
        cost = costs.get(absolute)
        whole = cost(graph, graph.all_stay())
        if math.isnan(whole):
            raise InputError(
                f"{name} needs a known image size, and model {graph.model.name!r} leaves it open.",
                expected="an input of fixed height and width",
                fix="build the model with Input((height, width, channels)), or give keep_params",
            )
        scale = whole if name in _FRACTIONS else 1.0
        found.append(Limit(name, lambda stays, cost=cost: cost(graph, stays), value * scale, scale))  # type: ignore[misc]
    return found


def fewest(count: int, stays: Callable[[int], np.ndarray], limits: Sequence[Limit]) -> int:
    """The smallest n in 0..count for which the network `stays(n)` meets all limits; costs fall as n grows.

    Raises:
        InputError: even n = count does not; the message gives the smallest value that can be reached.
    """
    least = stays(count)
    for limit in limits:
        if limit.cost(least) > limit.most:
            raise InputError(
                f"{limit.name}={limit.most / limit.scale:g} cannot be reached.",
                expected=f"at least {limit.cost(least) / limit.scale:g}, with the other settings as they are",
                fix=f"raise {limit.name}, or lower min_channels, raise max_ratio, or exclude fewer layers",
            )
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if all(limit.cost(stays(middle)) <= limit.most for limit in limits):
            high = middle
        else:
            low = middle + 1
    return high
