"""The removal plan: which channels go, as a value to show, keep and edit."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.support.text_table import aligned


@dataclasses.dataclass(frozen=True)
class PlannedGroup:
    """One coupled group of a plan.

    Attributes:
        name: the first layer that makes these channels.
        members: layer path -> its channels before the removal, for all layers that make channels of the group.
        before: width, in units.
        keep: positions of the units that stay, ascending.
        reason: why the group stays whole; empty when it may shrink.
    """

    name: str
    members: dict[str, int]
    before: int
    keep: tuple[int, ...]
    reason: str = ""

    @property
    def after(self) -> int:
        """Width after the removal, in units."""
        return len(self.keep)


@dataclasses.dataclass(frozen=True)
class RemovalPlan:
    """What `remove_filters` will do: prints as a table, goes to JSON and back, and can be edited.

    Attributes:
        groups: every coupled group, in network order.
        params: parameters before and after.
        macs: multiply-accumulates of one image before and after; NaN where the input size is not known.
        unknown: how the trace treats layers without a rule.
    """

    groups: tuple[PlannedGroup, ...]
    params: tuple[int, int]
    macs: tuple[float, float]
    unknown: str = "error"

    def stays(self, graph: ChannelGraph) -> np.ndarray:
        """bool per unit of a traced network.

        Raises:
            InputError: the network is not the one the plan was made for.
        """
        planned = {g.name: g for g in self.groups}
        stays = graph.all_stay()
        if {g.name: g.width for g in graph.groups} != {n: g.before for n, g in planned.items()}:
            differ = {g.name for g in graph.groups} ^ set(planned) or {
                g.name for g in graph.groups if planned[g.name].before != g.width
            }
            raise InputError(
                f"The plan does not fit model {graph.model.name!r}: it differs at {', '.join(sorted(differ)[:5])}.",
                expected="the network the plan was made for, before anything was removed",
                fix="make a new plan with plan_removal(model, ...)",
            )
        for group in graph.groups:
            keep = planned[group.name].keep
            bad = not keep or min(keep) < 0 or max(keep) >= group.width or len(set(keep)) != len(keep)
            if bad or (group.reason and len(keep) != group.width):
                raise InputError(
                    f"The plan keeps {len(keep)} of {group.width} units of group {group.name!r}.",
                    expected=f"all of them ({group.reason})" if group.reason else f"1 to {group.width} of 0..width-1",
                    fix="mend `keep` of this group",
                )
            stays[group.units] = False
            stays[group.units[list(keep)]] = True
        return stays

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RemovalPlan:
        """The plan that `to_json` wrote.

        Raises:
            InputError: the text is no such JSON.
        """
        try:
            d = json.loads(text)
            groups = tuple(PlannedGroup(**{**g, "keep": tuple(g["keep"])}) for g in d["groups"])
            return cls(groups, tuple(d["params"]), tuple(d["macs"]), d["unknown"])
        except (ValueError, TypeError, KeyError) as e:
            raise InputError(
                f"This is no removal plan: {e}.", expected="JSON from plan.to_json()", fix="make the plan again"
            ) from e

    def __str__(self) -> str:
        rows = [("group", "width", "", "", "made by")]
        for g in self.groups:
            width = next(iter(g.members.values()))
            after = width * g.after // g.before
            names = ", ".join(list(g.members)[:4]) + (f" and {len(g.members) - 4} more" if len(g.members) > 4 else "")
            rows.append((g.name, str(width), "->", str(after), f"kept: {g.reason}" if g.reason else names))
        lines = aligned(rows, "<><><")
        totals = [("params", *self.params)] + ([] if math.isnan(self.macs[0]) else [("MACs", *self.macs)])
        lines += [f"{what}: {a:,.0f} -> {b:,.0f} ({a / max(b, 1):.1f}x fewer)" for what, a, b in totals]
        return "\n".join(lines)
