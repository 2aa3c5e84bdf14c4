"""Sensitivity: accuracy against removal ratio, one curve for each coupled group, or each layer's weights.

The measure that the source paper picks its ratios from (on-orbit CNN compression, Fig. 6). Nothing is retrained and
nothing rebuilt: the weights that read the removed channels are set to zero in a copy, and only the part of the network
behind the first of them is computed again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph, Group
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import resolve
from orbit_kd.models.label_losses import check_classes
from orbit_kd.models.outputs import compiled_loss
from orbit_kd.models.saving import fingerprint
from orbit_kd.models.wrappers import KernelRule, kernel_rule
from orbit_kd.removal.planning import check_names, named
from orbit_kd.removal.scorer import Scorer
from orbit_kd.removal.surgery import rebuild
from orbit_kd.search.evaluator import Evaluator, batches_of, digest_of
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.progress import track

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_STATISTICS_OVER_CHANNELS = (
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
)


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    ratios: Sequence[float] = RATIOS,
    of: str = "filters",
    criterion: str = "l1_norm",
    train: Any = None,
    loss: Any = None,
    images: int | None = None,
    lost: float | None = None,
    memory: int = 1 << 30,
    exclude: Sequence[str] = (),
    unknown: str = "error",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Scan:
    """Accuracy and loss of a classifier as ever more of one coupled group goes, for every group in turn.

    Groups that layers share (residual sums) are removed as a whole: a single layer of one would read as "no effect".
    Group and layer normalizations take statistics over channels, so that groups they touch are rebuilt, not masked.

    Args:
        model: Functional or Sequential, logits or softmax out; it is not changed.
        data: batches (x, y), class numbers or one-hot rows: validation images, not test images.
        ratios: parts that go, each in (0, 1).
        of: "filters", or "weights": the smallest weights of each layer by themselves, unstructured.
        criterion: which filters go first.
        train: batches for criteria that learn from data.
        loss: that the network was trained with, as in `plan_removal`, where it is not compiled.
        images: use this many of `data`; None takes all.
        lost: stop measuring a point once its accuracy is below this part of the whole network's, at 99.9% confidence,
            and call the higher ratios of its curve lost too. None measures everything.
        memory: bytes that kept activations may take; where they would take more, more is computed again.
        exclude: layers (shell patterns) whose groups are left out.
        unknown: as in `plan_removal`.
        seed: for criteria that draw.
        path: JSON file that each finished curve is written to; the same call goes on from it.

    Returns:
        The scan.

    Raises:
        InputError: bad ratios or options, an excluded layer that is not there, no data, labels that are no classes of
            this network, a network that is no classifier.
    """
    model = as_tf_keras(model)
    if of not in ("filters", "weights"):
        raise InputError(f"of={of!r}.", expected='"filters" or "weights"', fix="choose one of the two")
    ratios = sorted(float(r) for r in ratios)
    if not ratios or not 0 < ratios[0] <= ratios[-1] < 1:
        raise InputError(f"ratios={ratios!r}.", expected="numbers in (0, 1)", fix="use for example ratios=(0.3, 0.6)")
    if lost is not None and not 0 < lost < 1:
        raise InputError(f"lost={lost!r}.", expected="a part in (0, 1), or None", fix="use for example lost=0.5")
    loss = loss if loss is not None else compiled_loss(model)  # the copy below is not compiled
    kind = check_classes(model, loss=loss)
    batches = batches_of(data, images, model=model)
    graph = ChannelGraph(model, unknown=unknown)
    graph = ChannelGraph(rebuild(graph, graph.all_stay()), unknown=unknown)  # a copy, whose weights may be masked
    evaluator = Evaluator(graph.model, batches, memory, loss=loss)
    if of == "filters":
        jobs = list(_filter_jobs(graph, evaluator, criterion, train, loss, exclude, seed))
    else:
        jobs = list(_weight_jobs(graph, evaluator, exclude))
    evaluator.cut(job.position for job in jobs if not job.curve.reason)
    whole = evaluator.measure(None)
    floor = None if lost is None else lost * whole[0]
    orders = [(j.curve.name, j.curve.reason, j.order) for j in jobs]
    key = digest(fingerprint(model), digest_of(batches), ratios, of, kind, lost, orders)
    done = _known(path, key)
    for job in track(sorted(jobs, key=lambda j: j.position), f"sensitivity of {of}"):
        if job.curve.name in done:
            continue
        curve = job.curve if job.curve.reason else _scan(job, evaluator, ratios, whole, floor)
        done[curve.name] = curve
        if path is not None:
            write_file(path, json.dumps({"key": key, "curves": [dataclasses.asdict(c) for c in done.values()]}))
    order = [job.curve.name for job in jobs]
    return Scan(of, whole[0], whole[1], whole[2], tuple(done[name] for name in order))


@dataclasses.dataclass(frozen=True)
class _Job:
    """One curve to measure.

    Attributes:
        curve: without its points.
        order: what may go, least important first; empty where the curve has a reason not to be measured.
        position: where the network changes first.
        change: takes out the places it is given; the network itself changes, or another one is returned.
        undo: takes that back.
    """

    curve: Curve
    order: np.ndarray
    position: int
    change: Callable[[np.ndarray], keras.Model | None]
    undo: Callable[[], None]


def _scan(
    job: _Job, evaluator: Evaluator, ratios: Sequence[float], whole: tuple[float, float, int], floor: float | None
) -> Curve:
    points: list[tuple[float, float, int]] = []
    evaluator.move(job.position)
    try:
        for ratio in ratios:
            if points and points[-1][2] < whole[2]:  # lost already, and so is what goes further
                points.append((*points[-1][:2], 0))
                continue
            gone = job.order[: min(round(len(job.order) * ratio), len(job.order) - 1)]  # at least one stays
            other = job.change(gone)
            points.append(evaluator.measure(floor) if other is None else evaluator.of_model(other, floor))
    finally:
        job.undo()
    accuracy, loss, images = zip(*points, strict=True)
    return dataclasses.replace(job.curve, ratios=tuple(ratios), accuracy=accuracy, loss=loss, images=images)


def _filter_jobs(
    graph: ChannelGraph, evaluator: Evaluator, criterion: str, train: Any, loss: Any, exclude: Sequence[str], seed: int
) -> Iterator[_Job]:
    check_names(graph, exclude)
    scorer = Scorer(graph, name=criterion, data=train, loss=loss, seed=seed)
    kinds = {record.path: record.layer for record in graph.layers.values()}
    for group in graph.groups:
        curve = Curve(group.name, tuple(group.members), group.channels,
                      reason=group.reason or ("excluded" if named(group, exclude) else ""))  # fmt: skip
        if curve.reason:
            yield _Job(curve, np.zeros(0, int), len(evaluator.segments.calls), lambda gone: None, lambda: None)
            continue
        order = np.argsort(scorer(group), kind="stable")
        statistics = any(
            isinstance(kinds[path], _STATISTICS_OVER_CHANNELS) and _touches(graph, group, x.ids).any()
            for inputs, _, path in graph.steps
            for x in inputs
        )
        yield (_rebuilt if statistics else _masked)(graph, group, curve, order, evaluator)


def _touches(graph: ChannelGraph, group: Group, ids: np.ndarray) -> np.ndarray:
    return np.isin(graph.unit_of[ids], group.units)


def _masked(
    graph: ChannelGraph, group: Group, curve: Curve, order: np.ndarray, evaluator: Evaluator
) -> _Job:  # fmt: skip
    """Sets to zero the weights that read removed channels; whatever else computes on these is not read any more."""
    readers = []
    for record in graph.layers.values():
        for name, weight in record.weights.items():
            for axis, ids in enumerate(weight.axes):
                if weight.uses and ids is not None and axis != weight.out_axis and _touches(graph, group, ids).any():
                    variable = getattr(record.layer, name)
                    readers.append((record.layer, variable, variable.numpy(), axis, graph.unit_of[ids]))

    def change(gone: np.ndarray) -> None:
        values: dict[int, np.ndarray] = {}
        for _, variable, value, axis, units in readers:
            shape = [-1 if a == axis else 1 for a in range(value.ndim)]
            kept = (~np.isin(units, group.units[gone])).astype(value.dtype).reshape(shape)
            values[id(variable)] = values.get(id(variable), value) * kept
        for _, variable, *_ in readers:
            variable.assign(values[id(variable)])

    def undo() -> None:
        for _, variable, value, *_ in readers:
            variable.assign(value)

    return _Job(curve, order, evaluator.segments.first_call(r[0] for r in readers), change, undo)


def _rebuilt(
    graph: ChannelGraph, group: Group, curve: Curve, order: np.ndarray, evaluator: Evaluator
) -> _Job:  # fmt: skip
    """Removes the channels, where masks would change statistics over channels."""

    def change(gone: np.ndarray) -> keras.Model:
        stays = graph.all_stay()
        stays[group.units[gone]] = False
        return rebuild(graph, stays)

    return _Job(curve, order, 0, change, lambda: None)


def _weight_jobs(graph: ChannelGraph, evaluator: Evaluator, exclude: Sequence[str]) -> Iterator[_Job]:
    excluded = resolve(exclude, {record.path: record.layer for record in graph.layers.values()}, "exclude")
    for record in graph.layers.values():
        rule = None if isinstance(record.layer, keras.Model) else kernel_rule(record.layer)
        if not isinstance(rule, KernelRule):
            continue
        kernel = getattr(record.layer, rule.kernel)
        value = kernel.numpy()
        reason = "excluded" if record.path in excluded else ""
        curve = Curve(record.path, (record.path,), value.size, reason=reason)
        order = np.argsort(np.abs(value), axis=None, kind="stable")

        def change(gone: np.ndarray, kernel: Any = kernel, value: Any = value) -> None:
            mask = np.ones(value.size, value.dtype)
            mask[gone] = 0
            kernel.assign(value * mask.reshape(value.shape))

        def undo(kernel: Any = kernel, value: Any = value) -> None:
            kernel.assign(value)

        yield _Job(curve, order, evaluator.segments.first_call([record.layer]), change, undo)


def _known(path: str | os.PathLike[str] | None, key: str) -> dict[str, Curve]:
    """Finished curves of the same call, from its file."""
    if path is None or not Path(path).is_file():
        return {}
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return {c["name"]: Curve.from_dict(c) for c in saved["curves"]} if saved.get("key") == key else {}
    except (ValueError, KeyError, TypeError):
        return {}  # not a file of ours, or of another version: it is written anew
