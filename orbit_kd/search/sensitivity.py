"""Sensitivity: accuracy against the part that goes, one curve for each coupled group, or each layer's weights or bits.

The measure that the source paper picks its ratios from (on-orbit CNN compression, Fig. 6). Nothing is retrained, and
only the part of the network behind the first change is computed again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.outputs import compiled_loss, kinds_of
from orbit_kd.models.saving import fingerprint
from orbit_kd.removal.surgery import rebuild
from orbit_kd.search.changes import Change, bit_changes, bits_left, filter_changes, weight_changes
from orbit_kd.search.evaluator import Evaluator, compiled_with, digest_of, examples_of, mixed
from orbit_kd.search.points import Point, Question
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.progress import track
from orbit_kd.tasks import Task

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BITS = (6, 5, 4, 3, 2)
KINDS = ("filters", "weights", "bits")


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    ratios: Sequence[float] | None = None,
    of: str = "filters",
    criterion: str = "l1_norm",
    train: Any = None,
    loss: Any = None,
    images: int | None = None,
    lost: float | None = None,
    tolerance: float | None = None,
    memory: int = 1 << 30,
    exclude: Sequence[str] = (),
    unknown: str = "error",
    task: str | Task = "auto",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Scan:
    """Accuracy (or another task's metric) and loss as ever more of one coupled group (or layer) goes, for every one.

    Groups that layers share (residual sums) are removed as a whole: a single layer of one would read as "no effect".
    Group and layer normalizations take statistics over channels, so that groups they touch are rebuilt, not masked.

    Args:
        model: Functional or Sequential; it is not changed.
        data: batches (x, y), labels as the task has them: validation images, not test images.
        ratios: parts that go, each in (0, 1); 0.1, 0.2, ... 0.9 where none are given. Of bits the part 1 - bits/8
            goes: 6, 5, 4, 3 and 2 bits where none are given.
        of: "filters"; or "weights": the smallest weights of each layer by themselves, unstructured; or "bits": each
            layer's kernel rounded to fewer levels, with a scale for each output channel.
        criterion: which filters go first.
        train: batches for criteria that learn from data.
        loss: that the network was trained with, as in `plan_removal`, where it is not compiled.
        images: use this many of `data`; None takes all.
        lost: stop measuring a point once its accuracy is below this part of the whole network's, at 99.9% confidence,
            and call the higher ratios of its curve lost too. None measures everything.
        tolerance: measure no more than it takes to know how much the loss rises, with a standard error of this or of a
            quarter of the rise: the last ratio first, others only where the curve moves between two of them, and each
            on as many images as that needs. A curve then has the points that were measured. None measures everything.
        memory: bytes that kept activations may take; where they would take more, more is computed again.
        exclude: layers (shell patterns) whose groups are left out.
        unknown: as in `plan_removal`.
        task: what the network is for, a name in `orbit_kd.tasks` or a task; "auto" reads it from outputs and labels.
        seed: for criteria that draw.
        path: JSON file that each finished curve is written to; the same call goes on from it.

    Returns:
        The scan.

    Raises:
        InputError: bad ratios or options, an excluded layer that is not there, no data, labels or a network that the
            task does not fit.
    """
    how: dict[str, Any] = {
        "criterion": criterion, "train": train, "loss": loss, "images": images, "lost": lost, "tolerance": tolerance,
        "memory": memory, "unknown": unknown, "task": task, "seed": seed, "path": path,
    }  # fmt: skip
    return sensitivities(model, data, ratios={of: ratios}, exclude={of: exclude}, **how)[0]


def sensitivities(
    model: keras.Model,
    data: Any,
    *,
    ratios: Mapping[str, Sequence[float] | None],
    exclude: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    criterion: str = "l1_norm",
    train: Any = None,
    loss: Any = None,
    images: int | None = None,
    lost: float | None = None,
    tolerance: float | None = None,
    memory: int = 1 << 30,
    unknown: str = "error",
    task: str | Task = "auto",
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> list[Scan]:
    """Several scans in one pass over the network: what lies before a change is computed and traced once for all.

    Args:
        model, data: as in `sensitivity`.
        ratios: of each kind that is to be scanned, None for the usual ones.
        exclude: layers (shell patterns) that a kind leaves out.
        criterion, train, loss, images, lost, tolerance, memory, unknown, task, seed, path: as in `sensitivity`.

    Returns:
        One scan a kind, in the order of `ratios`.

    Raises:
        InputError: as `sensitivity`.
    """
    model = as_tf_keras(model)
    for of in ratios:
        if of not in KINDS:
            raise InputError(
                f"of={of!r}.", expected=" or ".join(f'"{kind}"' for kind in KINDS), fix="choose one of these"
            )
    points = {of: _checked(given, of) for of, given in ratios.items()}
    if lost is not None and not 0 < lost < 1:
        raise InputError(f"lost={lost!r}.", expected="a part in (0, 1), or None", fix="use for example lost=0.5")
    if tolerance is not None and not tolerance > 0:
        raise InputError(
            f"tolerance={tolerance!r}.", expected="a number above 0, or None", fix="use for example tolerance=0.05"
        )
    loss = loss if loss is not None else compiled_loss(model)  # the copy below is not compiled
    found_task, batches = examples_of(data, images, model=compiled_with(model, loss), task=task)
    batches = mixed(batches) if lost or tolerance else batches
    graph = ChannelGraph(model, unknown=unknown)
    graph = ChannelGraph(rebuild(graph, graph.all_stay()), unknown=unknown)  # a copy, whose weights may be masked
    evaluator = Evaluator(graph.model, batches, memory, task=found_task, loss=loss)
    segments, changes = evaluator.segments, list[tuple[str, Change]]()
    for of in points:
        left_out = exclude.get(of, ())
        if of == "filters":
            found = filter_changes(graph, segments, criterion=criterion, train=train, loss=loss, exclude=left_out,
                                   seed=seed)  # fmt: skip
        else:
            found = (weight_changes if of == "weights" else bit_changes)(graph, segments, exclude=left_out)
        changes += [(of, change) for change in found]
    evaluator.cut(change.position for _, change in changes if not change.curve.reason)
    question = Question(evaluator.task, evaluator.measure(), lost, tolerance)
    about = [(of, c.curve.name, c.curve.reason, c.about) for of, c in changes]
    asked = [list(points.items()), evaluator.task.config(), kinds_of([model], loss=loss), lost, tolerance, about]
    key = digest(fingerprint(model), digest_of(batches), *asked)
    done = _known(path, key)
    for of, change in track(sorted(changes, key=lambda c: c[1].position), f"sensitivity of {', '.join(points)}"):
        curve = change.curve
        if (of, curve.name) in done:
            continue
        done[of, curve.name] = curve if curve.reason else _scan(change, evaluator, points[of], question)
        if path is not None:
            curves = [(kind, dataclasses.asdict(curve)) for (kind, _), curve in done.items()]
            write_file(path, json.dumps({"key": key, "curves": curves}))
    whole = question.whole
    return [
        Scan(kind, whole.accuracy, whole.loss, whole.images,
             tuple(done[of, change.curve.name] for of, change in changes if of == kind),
             evaluator.task.metric.name)
        for kind in points
    ]  # fmt: skip


def _checked(ratios: Sequence[float] | None, of: str) -> list[float]:
    """The ratios in order, or the usual ones."""
    if ratios is None:
        return [1 - bits / 8 for bits in BITS] if of == "bits" else list(RATIOS)
    found = sorted(float(r) for r in ratios)
    if not found or not 0 < found[0] <= found[-1] < 1:
        raise InputError(f"ratios={found!r}.", expected="numbers in (0, 1)", fix="use for example ratios=(0.3, 0.6)")
    if of == "bits" and any(bits_left(r) != 8 * (1 - r) or r > 0.75 for r in found):
        raise InputError(f"ratios={found!r} of bits.", expected="1 - bits/8 for 2 to 7 bits",
                         fix="use for example ratios=(0.25, 0.5, 0.75): 6, 4 and 2 bits")  # fmt: skip
    return found


def _scan(change: Change, evaluator: Evaluator, ratios: Sequence[float], question: Question) -> Curve:
    """The curve with its points; under a tolerance the last one comes first, and others where the curve moves."""
    points: dict[int, Point] = {-1: question.whole}
    evaluator.move(change.position)

    def lost(place: int) -> bool:
        return question.lost is not None and points[place].accuracy < question.lost * question.whole.accuracy

    def measure(place: int) -> None:
        other = change.make(ratios[place])
        points[place] = evaluator.measure(question) if other is None else evaluator.of_model(other, question)

    def refine(low: int, high: int) -> None:
        """Halves a stretch whose ends differ; behind a point that is lost there is nothing to find out."""
        low_rise, high_rise = (points[place].loss - question.whole.loss for place in (low, high))
        differ = abs(high_rise - low_rise) > 2 * (question.tolerance or 0.0) + 0.5 * max(low_rise, 0.0)
        if high - low > 1 and differ and not lost(low):
            measure((low + high) // 2)
            refine(low, (low + high) // 2)
            refine((low + high) // 2, high)

    try:
        if question.tolerance is not None:
            measure(len(ratios) - 1)
            refine(-1, len(ratios) - 1)
        else:
            for place in range(len(ratios)):
                if points[place - 1].images < question.whole.images:  # lost already, and so is what goes further
                    points[place] = dataclasses.replace(points[place - 1], images=0)
                else:
                    measure(place)
    finally:
        change.undo()
    places = sorted(place for place in points if place >= 0)
    return dataclasses.replace(
        change.curve,
        ratios=tuple(ratios[place] for place in places),
        accuracy=tuple(points[place].accuracy for place in places),
        loss=tuple(points[place].loss for place in places),
        images=tuple(points[place].images for place in places),
    )


def _known(path: str | os.PathLike[str] | None, key: str) -> dict[tuple[str, str], Curve]:
    """Finished curves of the same call, from its file."""
    if path is None or not Path(path).is_file():
        return {}
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        if saved.get("key") != key:
            return {}
        return {(of, curve["name"]): Curve.from_dict(curve) for of, curve in saved["curves"]}
    except (ValueError, KeyError, TypeError):
        return {}  # not a file of ours, or of another version: it is written anew
