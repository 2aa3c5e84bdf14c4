"""Criteria: how much each channel of a coupled group matters, one score a channel.

A criterion is a function from the weights of one group to one score a unit, filed under its name. Those that learn
from data say so with `needs`: "gradients" fills `Member.gradients`, "activations" adds members whose attribute is
"activation".

    @okd.importance.criterion("mean_abs")
    def mean_abs(members):
        return combine(np.abs(m.values).mean(1) for m in members if m.makes)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Member:
    """One weight of a group (or one activation that carries it), seen from its channels.

    Attributes:
        layer: path of the layer.
        attribute: name of the variable, such as "kernel" or "gamma"; "activation" for an output.
        makes: the channels lie on the output axis of a multiplying weight (a filter), else they are read or scaled.
        tensor: the weight.
        gradient: the loss's gradient by the weight, for criteria that need it.
        rows: (units, elements) of an array like the weight.
    """

    layer: str
    attribute: str
    makes: bool
    tensor: tf.Tensor | np.ndarray
    gradient: np.ndarray | None = None
    rows: Callable[[np.ndarray], np.ndarray] = np.asarray

    @functools.cached_property  # kernels are large, and a criterion looks at a few members only
    def values(self) -> np.ndarray:
        """(units, elements) float, read-only: all elements of the weight that belong to each unit.

        Of an activation, the share of elements that are not zero.
        """
        return self.rows(np.asarray(self.tensor))

    @functools.cached_property
    def gradients(self) -> np.ndarray | None:
        """The gradient by each of `values`, where there is one."""
        return None if self.gradient is None else self.rows(self.gradient)


Criterion = Callable[..., np.ndarray]
criteria: Registry[Criterion] = Registry("criterion")
_NEEDS: dict[str, str] = {}


def criterion(name: str, *, needs: str = "") -> Callable[[Criterion], Criterion]:
    """Decorator that files a criterion; `needs` is "", "gradients" or "activations"."""
    _NEEDS[name] = needs
    return criteria.register(name)


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


@criterion("geometric_median")
def geometric_median(members: list[Member]) -> np.ndarray:
    """Distance to all other filters: those near the geometric median are replaceable (He et al., FPGM, CVPR 2019)."""

    def distances(v: np.ndarray) -> np.ndarray:
        squares = (v * v).sum(1)
        return np.sqrt(np.maximum(squares[:, None] + squares - 2 * v @ v.T, 0)).sum(1)

    return combine(distances(m.values) for m in members if m.makes)


@criterion("taylor", needs="gradients")
def taylor(members: list[Member]) -> np.ndarray:
    """(Sum of weight x gradient)^2, the loss's first-order change without the filter (Molchanov et al., CVPR 2019)."""
    return combine((m.values * m.gradients).sum(1) ** 2 for m in members if m.makes and m.gradients is not None)


@criterion("apoz", needs="activations")
def apoz(members: list[Member]) -> np.ndarray:
    """Share of activations that are not zero (Hu et al., Network Trimming, 2016); the l1_norm where none ever is."""
    shares = [m.values[:, 0] for m in members if m.attribute == "activation" and m.values.min() < 1]
    return combine(shares) if shares else l1_norm(members)


@criterion("random")
def random(members: list[Member], *, seed: int) -> np.ndarray:
    """Uniform random scores: the baseline every criterion has to beat."""
    size = len(members[0].values) if members else 0
    name = [ord(c) for m in members[:1] for c in m.layer]
    return np.random.default_rng([seed, *name]).random(size)


def needs_data(name: str) -> bool:
    """Whether a criterion learns from data."""
    return bool(_NEEDS.get(name))
