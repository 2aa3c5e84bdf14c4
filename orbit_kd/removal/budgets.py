"""Budgets of a removal plan: what a network may cost, and the fewest channels that must go for it.

A budget is a function from the traced network and what stays of it to a cost that falls as channels go, filed under its
name. One that takes seconds to measure also names a cheap one that follows it (`like`), which leads the search.

    @okd.budgets.cost("max_flash", like="max_params")
    def flash(graph, stays): ...

    okd.plan_removal(model, max_flash=65536)
    okd.Recipe(limits={"max_flash": 65536})

A module with a budget must be imported before it is asked for; the tools import the one that `--custom_objects` names:
`--custom_objects=my_budgets.py:flash --limits=max_flash:65536`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.channels.profiles import activation_bytes
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.registry import Registry
from orbit_kd.removal.surgery import rebuild

Cost = Callable[[ChannelGraph, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Budget:
    """A cost that may be limited.

    Attributes:
        cost: (traced network, bool for each unit: it stays) -> what that costs; NaN where it cannot be known.
        like: the budget whose cheap cost rises and falls with this one, which takes long to measure; "" for none.
    """

    cost: Cost
    like: str = ""


costs: Registry[Budget] = Registry("budget")
_FRACTIONS = {"keep_params": "max_params", "keep_macs": "max_macs"}
_NEAR = 0.98  # a measured cost this close under its limit ends the search


def cost(name: str, *, like: str = "", replace: bool = False) -> Callable[[Cost], Cost]:
    """Decorator that files a function as a budget; see `Budget` for the arguments."""

    def file(function: Cost) -> Cost:
        costs.register(name, replace=replace)(Budget(function, like))
        return function

    return file


@cost("max_params")
def params(graph: ChannelGraph, stays: np.ndarray) -> float:
    """Elements of all variables."""
    return graph.parameters(stays)


@cost("max_macs")
def macs(graph: ChannelGraph, stays: np.ndarray) -> float:
    """Multiply-accumulates of one image; NaN where the image size is not known."""
    return graph.macs(stays)


cost("max_activation_bytes")(activation_bytes)


@cost("max_bytes", like="max_params")
def int8_bytes(graph: ChannelGraph, stays: np.ndarray) -> float:
    """Bytes of the full-integer TFLite file, without metadata; NaN where the image size is not known.

    The file is really written. Its size does not depend on what it is calibrated with, so that two seeded random images
    do.
    """
    model = rebuild(graph, stays)
    shape = model.inputs[0].shape[1:]
    if None in shape:
        return math.nan
    images = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        return export(model, "tflite_int8", path=Path(folder, "m.tflite"), calibration=images).bytes


@dataclasses.dataclass(frozen=True)
class Limit:
    """A cost and what it may be at most.

    Attributes:
        name: as the caller gave it.
        cost: what stays -> cost; whatever `fewest_to_remove` is given to say what stays.
        most: what it may be.
        whole: what it is before anything is removed.
        scale: turns a cost into the caller's unit, for messages.
        guide: a cheap cost that follows this one, where this one takes long to measure.
    """

    name: str
    cost: Callable[[Any], float]
    most: float
    whole: float
    scale: float = 1.0
    guide: Callable[[Any], float] | None = None


def is_budget(name: str) -> bool:
    """Whether a setting of this name is a budget."""
    return name in _FRACTIONS or name in costs


def absolute(name: str) -> str:
    """The budget that a fraction is of ("keep_macs" -> "max_macs"); others are themselves."""
    return _FRACTIONS.get(name, name)


def limits(graph: ChannelGraph, given: Mapping[str, float | None]) -> list[Limit]:
    """The limits that a caller's budgets mean for this network.

    Raises:
        InputError: as `check`; or a cost that cannot be known, such as MACs of a network of unknown image size.
    """
    check(given)
    return [_limit(graph, name, value) for name, value in given.items() if value is not None]


def check(given: Mapping[str, float | None]) -> None:
    """Refuses budgets before anything is measured.

    Raises:
        InputError: an unknown budget (the message lists them), or a value that makes no sense.
    """
    for name, value in given.items():
        if value is None:
            continue
        if absolute(name) not in costs:
            raise InputError(
                f"Unknown budget {name!r}.",
                expected="one of: " + ", ".join(sorted([*_FRACTIONS, *costs])),
                fix="choose one of these; import the module that registers a budget of your own "
                "(tools: --custom_objects=my_budgets.py:its_function)",
            )
        if not value > 0 or (name in _FRACTIONS and value > 1):
            raise InputError(
                f"{name}={value!r}.",
                expected="a part in (0, 1]" if name in _FRACTIONS else "a number above 0",
                fix=f"mend {name}",
            )


def _limit(graph: ChannelGraph, name: str, value: float) -> Limit:
    budget = costs.get(absolute(name))
    cost, guide = budget.cost, costs.get(budget.like).cost if budget.like else None
    whole = cost(graph, graph.all_stay())
    if math.isnan(whole):
        raise InputError(
            f"{name} needs a known image size, and model {graph.model.name!r} leaves it open (or has a layer inside "
            "a wrapper whose cost is not known).",
            expected="an input of fixed height and width, or of a fixed number of time steps",
            fix="build the model with Input((height, width, channels)), or give keep_params",
        )
    scale = whole if name in _FRACTIONS else 1.0
    return Limit(
        name,
        lambda stays: cost(graph, stays),
        most=value * scale * (1 + 1e-12),  # 0.29 * 100 is below 29
        whole=whole,
        scale=scale,
        guide=guide and (lambda stays: guide(graph, stays)),
    )


def round_up(value: float) -> str:
    """A cost as text that is not below it, so that a budget of just that can be met."""
    return str(math.ceil(value)) if value >= 1 else f"{math.ceil(value * 1e6) / 1e6:g}"


def goals(graph: ChannelGraph, given: Mapping[str, float | None]) -> dict[str, tuple[float, float]]:
    """Absolute budget -> (what the network costs now, what it may cost), for the budgets that are given."""
    return {absolute(limit.name): (limit.whole, limit.most) for limit in limits(graph, given)}


def fewest_to_remove(count: int, stays: Callable[[int], Any], limits: Sequence[Limit]) -> int:
    """The smallest n in 0..count for which the network `stays(n)` meets all limits; costs fall as n grows.

    Limits with a guide are met by measuring a few n: never above, and at most 2% below or one step from above.

    Raises:
        InputError: even n = count does not; the message gives the smallest value that can be reached.
    """
    least = stays(count)
    for limit in limits:
        cost = limit.cost(least)
        if cost > limit.most:
            raise InputError(
                f"{limit.name}={limit.most / limit.scale:g} cannot be reached.",
                expected=f"at least {round_up(cost / limit.scale)}, with the other settings as they are",
                fix=f"raise {limit.name}, or lower min_channels, raise max_ratio, or exclude fewer layers",
            )
    cheap = [limit for limit in limits if limit.guide is None]
    n = first_that_meets(0, count, lambda n: all(limit.cost(stays(n)) <= limit.most for limit in cheap))
    for limit in limits:
        if limit.guide is not None:
            n = _measured(n, count, stays, limit)
    return n


def first_that_meets(low: int, high: int, meets: Callable[[int], bool]) -> int:
    """The smallest n of low..high that meets; `high` does."""
    while low < high:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _measured(start: int, count: int, stays: Callable[[int], Any], limit: Limit) -> int:
    """As `first`, for a cost that is slow to measure: its guide, set right by each measurement, says where to look."""
    guide = limit.guide or limit.cost
    above, below = start - 1, count  # known to be too much, known to be enough
    guess, off = start, 0.0
    while below - above > 1:
        guess = min(max(guess, above + 1), below - 1)
        real = limit.cost(stays(guess))
        if real <= limit.most:
            below = guess
            if real >= _NEAR * limit.most or guess == start:
                break
        else:
            above = guess
        off = real - guide(stays(guess))
        aim = (1 + _NEAR) / 2 * limit.most - off
        guess = first_that_meets(above + 1, below, lambda n: guide(stays(n)) <= aim)  # noqa: B023  (called at once)
    return below
