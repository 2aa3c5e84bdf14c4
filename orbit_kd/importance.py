"""Criteria: how much each channel of a coupled group matters, one score a channel.

A criterion is a function from the weights of one group to one score a unit; it is filed under its name:

    @okd.importance.criterion("mean_abs")
    def mean_abs(members):
        return combine(np.abs(m.values).mean(1) for m in members if m.makes)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from orbit_kd.channels import ChannelGraph, Group
from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Member:
    """One weight of a group, seen from its channels.

    Attributes:
        layer: path of the layer.
        attribute: name of the variable, such as "kernel" or "gamma".
        makes: the channels lie on the output axis of a multiplying weight (a filter), else they are read or scaled.
        values: (units, elements) float, all elements of this weight that belong to each unit.
    """

    layer: str
    attribute: str
    makes: bool
    values: np.ndarray


Criterion = Callable[[list[Member]], np.ndarray]
criteria: Registry[Criterion] = Registry("criterion")
criterion = criteria.register


def members_of(graph: ChannelGraph, group: Group) -> list[Member]:
    """Every weight axis that carries channels of the group, as `Member`s."""
    place = np.full(len(graph.all_stay()), -1)
    place[group.units] = np.arange(group.width)
    found = []
    for record in graph.layers.values():
        for name, weight in record.weights.items():
            for axis, ids in enumerate(weight.axes):
                if ids is None:
                    continue
                unit = place[graph.unit_of[ids]]
                if (unit < 0).all():
                    continue
                values = np.moveaxis(getattr(record.layer, name).numpy(), axis, 0)[unit >= 0]
                order = np.argsort(unit[unit >= 0], kind="stable")
                counts = np.bincount(unit[unit >= 0], minlength=group.width)
                if counts.min() != counts.max():
                    continue  # a layer that reads only some channels of each unit compares nothing
                values = values[order].reshape(group.width, -1)
                found.append(Member(record.path, name, axis == weight.out_axis and weight.uses > 0, values))
    return found


def combine(scores: Iterable[np.ndarray]) -> np.ndarray:
    """One score a unit from the scores of its members: the mean after each is divided by its own mean.

    So no member counts more for being larger, and a group's scores average 1, which makes a global ranking meaningful.
    """
    scaled = [s / (s.mean() or 1.0) for s in scores]
    return np.mean(scaled, axis=0) if scaled else np.empty(0)


@criterion("l1_norm")
def l1_norm(members: list[Member]) -> np.ndarray:
    """Sum of the absolute filter weights (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""
    return combine(np.abs(m.values).sum(1) for m in members if m.makes)


@criterion("l2_norm")
def l2_norm(members: list[Member]) -> np.ndarray:
    """Euclidean norm of the filter (He et al., Soft Filter Pruning, IJCAI 2018)."""
    return combine(np.linalg.norm(m.values, axis=1) for m in members if m.makes)


@criterion("bn_scale")
def bn_scale(members: list[Member]) -> np.ndarray:
    """|gamma| of the normalizations (Liu et al., Network Slimming, ICCV 2017); the l1_norm where there is none."""
    gammas = [np.abs(m.values).sum(1) for m in members if m.attribute == "gamma"]
    return combine(gammas) if gammas else l1_norm(members)


def scores(graph: ChannelGraph, group: Group, *, name: str) -> np.ndarray:
    """The criterion called `name` for one group: (width,) float, larger is more important.

    Raises:
        InputError: no criterion of that name.
    """
    found = criteria.get(name)(members_of(graph, group))
    return found if len(found) == group.width else np.ones(group.width)
