"""Scores of coupled groups by one criterion: which weights, gradients and activations belong to each channel."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.datasets.batches import as_batches, in_order, inputs_of
from orbit_kd.errors import InputError
from orbit_kd.models.label_losses import label_loss
from orbit_kd.models.strided_pointwise import strides_first
from orbit_kd.models.tracing import traced
from orbit_kd.models.walk import replay
from orbit_kd.removal.importance import Member, criteria


class Scorer:
    """Scores groups by one criterion; what it learns from data, it learns once.

    Args:
        graph: the traced network.
        name: of the criterion.
        data: batches for criteria that need them, in any form that `datasets.batches` takes: (x, y) for gradients, x
            for activations.
        loss: of the network on its labels, for gradients, see `plan_removal`.
        batches: how many batches to use.
        seed: for criteria that draw.

    Raises:
        InputError: an unknown criterion, or one that needs data without any.
    """

    def __init__(
        self, graph: ChannelGraph, *, name: str, data: Any = None, loss: Any = None, batches: int = 8, seed: int = 0
    ) -> None:
        self._graph, self._name, self._criterion, self._seed = graph, name, criteria.get(name), seed
        self._gradients: dict[int, np.ndarray] = {}
        self._shares: list[tuple[Any, str, np.ndarray]] = []
        self._index()
        needs = self._criterion.needs
        if needs and data is None:
            raise InputError(
                f"The criterion {name!r} needs data.",
                expected="a few batches of labelled training images",
                fix="give them as data= (in a scan or search: train=; tools/compress.py has them, tools/prune.py "
                "does not), or use a criterion on weights, such as l1_norm",
            )
        if needs:
            whole = as_batches(data, what="training data", labels=needs == "gradients", endless=True,
                               inputs=inputs_of(graph.model))  # fmt: skip
            some = itertools.islice(whole, batches)
            if needs == "gradients":
                self._gradients = _gradients(graph.model, some, loss)
            else:
                self._shares = _shares(graph, some)

    def __call__(self, group: Group) -> np.ndarray:
        """(width,) float, larger is more important."""
        found = self._criterion(self._members(group), seed=self._seed)
        if not len(found):  # nothing that this criterion looks at carries the group: its channels are all alike
            return np.ones(group.width)
        if np.shape(found) != (group.width,):
            raise InputError(
                f"The criterion {self._name!r} gives scores of shape {np.shape(found)} for the group {group.name!r}.",
                expected=f"({group.width},): one score for each unit of the group, see `importance.combine`",
                fix="mend the criterion",
            )
        return found

    def _members(self, group: Group) -> list[Member]:
        found = []
        for record, name, weight, axis in self._where.get(group.name, ()):
            order = self._order(group, weight.axes[axis])
            if order is not None:
                variable, makes = getattr(record.layer, name), axis == weight.out_axis and weight.uses > 0
                rows = functools.partial(_rows, axis=axis, order=order, units=group.width)
                gradient = self._gradients.get(id(variable))
                found.append(Member(record.path, name, makes, variable.value(), gradient, rows))
        for channels, path, share in self._shares:
            order = self._order(group, channels.ids)
            if order is not None:
                shares = _rows(share, axis=0, order=order, units=group.width).mean(1, keepdims=True)
                found.append(Member(path, "activation", False, shares))
        return found

    def _order(self, group: Group, ids: np.ndarray) -> np.ndarray | None:
        """Positions in `ids` of the group's ids, unit by unit; None where the units do not all have as many."""
        units = self._graph.unit_of[ids]
        mine = np.flatnonzero(self._group_of[units] == self._number[group.name])
        unit = self._place[units[mine]]
        counts = np.bincount(unit, minlength=group.width)
        if not len(mine) or counts.min() != counts.max():
            return None
        return mine[np.argsort(unit, kind="stable")]

    def _index(self) -> None:
        """Which group each unit is in and at which place, and on which weight axes each group lies."""
        graph = self._graph
        self._group_of = np.full(len(graph.all_stay()), -1)
        self._place = np.zeros_like(self._group_of)
        self._number = {group.name: i for i, group in enumerate(graph.groups)}
        for i, group in enumerate(graph.groups):
            self._group_of[group.units] = i
            self._place[group.units] = np.arange(group.width)
        self._where: dict[str, list[tuple[Any, str, Any, int]]] = {}
        for record in graph.layers.values():
            for name, weight in record.weights.items():
                for axis, ids in enumerate(weight.axes):
                    for i in np.unique(self._group_of[graph.unit_of[ids]]) if ids is not None else ():
                        if i >= 0:
                            self._where.setdefault(graph.groups[i].name, []).append((record, name, weight, axis))


def _rows(array: np.ndarray, *, axis: int, order: np.ndarray, units: int) -> np.ndarray:
    """(units, elements) of what lies at `order` along an axis: a view where the array has that order already."""
    if not np.array_equal(order, np.arange(array.shape[axis])):
        array = np.take(array, order, axis)
    return np.moveaxis(array, axis, 0).reshape(units, -1)


def _gradients(model: keras.Model, data: Any, loss: Any) -> dict[int, np.ndarray]:
    """Gradients of the mean loss, in inference mode, summed over the batches; by id of the variable."""
    variables = [v for v in model.weights if v.dtype.is_floating]  # frozen layers have filters too
    batches = [keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in data]
    if not batches or batches[0][1] is None:
        raise InputError(
            "The data for a criterion on gradients has no labels." if batches else "There is no data to learn from.",
            expected="batches (x, y)",
            fix="give labelled training images, or use a criterion on weights, such as l1_norm",
        )
    labels = tf.nest.map_structure(lambda *y: np.concatenate(y), *[y for _, y in batches])
    loss_of = label_loss(model, labels, loss=loss)

    @traced
    def step(x: Any, y: Any) -> list[tf.Tensor]:
        with tf.GradientTape() as tape, strides_first(model):
            tape.watch(variables)
            value = loss_of(y, model(x, training=False))
        return tape.gradient(value, variables, unconnected_gradients="zero")

    totals = [np.zeros(v.shape, np.float32) for v in variables]
    for batch in batches:
        for total, gradient in zip(totals, step(*batch), strict=True):
            total += gradient.numpy()
    return {id(v): total for v, total in zip(variables, totals, strict=True)}


def _shares(graph: ChannelGraph, data: Any) -> list[tuple[Any, str, np.ndarray]]:
    """For each traced tensor, the share of elements of each channel that are not zero."""
    named = [(x, path) for _, outputs, path in graph.steps for x in outputs]

    @traced
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        outputs: list[tf.Tensor] = []
        replay(graph.model, in_order(x, inputs_of(graph.model)), seen=lambda layer, made: outputs.extend(made))
        shares = []
        for (channels, _), tensor in zip(named, outputs, strict=True):
            others = [a for a in range(tensor.shape.rank) if a != channels.axis + 1] if len(channels.ids) else None
            shares.append(tf.reduce_mean(tf.cast(tensor != 0, tf.float32), others))
        return shares

    totals = [
        np.mean(values, 0) for values in zip(*([s.numpy() for s in step(batch[0])] for batch in data), strict=True)
    ]
    return [(x, path, total) for (x, path), total in zip(named, totals, strict=True) if len(x.ids)]
