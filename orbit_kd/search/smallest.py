"""The smallest network within an accuracy budget, found by removing filters and retraining in ever smaller steps.

Progressive shrinking in the manner of NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230): every step starts from the
last network that was good enough, takes what its own sensitivity scan predicts to cost least, and trains briefly. What
a brief training refuses a longer one may grant, and small networks train fast: the search ends with more patience.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.datasets.batches import as_batches, inputs_of
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.label_losses import check_classes
from orbit_kd.models.outputs import compiled_loss, loss_name
from orbit_kd.models.saving import fingerprint, load_model, save_model
from orbit_kd.removal.importance import needs_data
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.search.evaluator import accuracy_of, batches_of, digest_of
from orbit_kd.search.ratios import ratios_for
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.search.sensitivity import sensitivity
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.text_table import aligned

log = logging.getLogger("orbit_kd")

RATIOS = (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96)
_FIRST, _LEAST = 8.0, 1.15  # a step divides the parameters by so much; smaller ones are not worth a training
_LOST = 0.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """One step of the search.

    Attributes:
        params: parameters of the network that was tried.
        macs: its multiply-accumulates for one image.
        accuracy: on the validation images after its short training, in [0, 1].
        accepted: whether that was enough.
        seconds: of scan, removal and training.
        factor: what the step was to divide the parameters by.
        epochs: of its training.
    """

    params: int
    macs: float
    accuracy: float
    accepted: bool
    seconds: float
    factor: float
    epochs: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What `smallest` found; prints as a table.

    Attributes:
        student: the smallest network that was accurate enough; a copy of the teacher where none was.
        target: the accuracy that was asked for, in [0, 1].
        images: number of validation images: accuracies move in steps of one part in so many.
        trials: every network that was tried, in order.
    """

    student: keras.Model
    target: float
    images: int
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        rows = [
            (
                f"{t.params:,} parameters",
                f"{t.macs:,.0f} MACs",
                f"{t.epochs} epochs",
                f"{t.accuracy:.2%}",
                "taken" if t.accepted else "too small",
            )
            for t in self.trials
        ]
        told = f"at least {self.target:.2%} of {self.images} validation images"
        return "\n".join([told, *aligned(rows, ">>>><")])


def smallest(
    teacher: keras.Model,
    retrain: Callable[[keras.Model, int], Any],
    *,
    data: Any,
    max_drop: float,
    epochs: Sequence[int] = (6, 24),
    train: Any = None,
    loss: Any = None,
    images: int | None = None,
    criterion: str = "l1_norm",
    round_to: int = 1,
    min_channels: int = 1,
    exclude: Sequence[str] = (),
    unknown: str = "error",
    seed: int = 0,
    seconds: float | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Found:
    """Shrinks a network as far as short retraining keeps it within `max_drop` of the teacher on validation data.

    The first step aims at an eighth of the parameters; a step that loses too much is taken back and tried again half as
    far (on a logarithmic scale), until steps are smaller than 15%. Then the search goes on from there with the next of
    `epochs`, and a first step half as far as that of the epochs before. The multiply-accumulates fall with each step by
    the square root of the same factor at least, so that a network never gets small without getting faster, and no group
    shrinks more in one step than all parameters together do.

    The training that follows the search can be longer still; what this returns was accurate enough without it.

    Args:
        teacher: Functional or Sequential classifier; it is not changed.
        retrain: trains in place the network it is given (recalibrate BatchNormalization first) for as many epochs as
            its second argument says.
        data: validation batches (x, y) as in `sensitivity`: the search chooses on them.
        max_drop: accuracy that may be lost, in [0, 1): 0.01 is one point.
        epochs: of the trainings: of the brief ones first, then of the more patient ones.
        train: batches for criteria that learn from data.
        loss: that the teacher was trained with, as in `sensitivity`, where it is not compiled.
        images: validation images for the scans; None takes all. Accuracies are always measured on all.
        criterion, round_to, min_channels, exclude, unknown, seed: as in `plan_removal`.
        seconds: start no trial that would end later than this, as far as the last one tells.
        path: folder for what each trial leaves; the same call goes on from it.

    Returns:
        The smallest network, trained, with the list of trials.

    Raises:
        InputError: an impossible max_drop, epochs that do not grow, and what `sensitivity` raises.
    """
    teacher = as_tf_keras(teacher, name="teacher")
    if not 0 <= max_drop < 1:
        raise InputError(
            f"max_drop={max_drop!r}.",
            expected="a part of 1, in [0, 1)",
            fix="for one point of accuracy give max_drop=0.01",
        )
    if not epochs or min(epochs) < 1 or sorted(set(epochs)) != list(epochs):
        raise InputError(
            f"epochs={epochs!r}.",
            expected="whole numbers, each above the one before",
            fix="give for example epochs=(6, 24)",
        )
    loss = loss if loss is not None else compiled_loss(teacher)  # the students are not compiled
    check_classes(teacher, loss=loss)
    batches = batches_of(data, None, model=teacher)
    if train is not None and needs_data(criterion):
        train = as_batches(train, what="training data", again=True, inputs=inputs_of(teacher))
    target = accuracy_of(teacher, batches) - max_drop - 1e-9  # a drop of just max_drop is within it
    log.info("search: at least %.2f%% of %d validation images", 100 * target, sum(len(y) for _, y in batches))
    learned = digest_of(train) if train is not None and needs_data(criterion) else ""
    key = digest(fingerprint(teacher), digest_of(batches), learned, max_drop,
                 list(epochs), criterion, round_to, min_channels, list(exclude), unknown, images, seed,
                 loss_name(loss) if learned and loss else "")  # fmt: skip
    graph = ChannelGraph(teacher, unknown=unknown)
    size_known = not math.isnan(graph.macs(graph.all_stay()))
    state = _State.load(path, key)
    student = load_model(state.student) if state.student else teacher
    scan, start = None, time.monotonic()
    last = state.trials[-1] if state.trials else None
    patience, factor = _next(epochs.index(last.epochs), last.factor, last.accepted) if last else (0, _FIRST)
    while patience < len(epochs):
        spent = sum(t.seconds for t in state.trials)
        expected = last.seconds * epochs[patience] / last.epochs if last else 0.0
        if seconds is not None and max(spent, time.monotonic() - start) + expected > seconds:
            log.info("search: the time is up")
            break
        begun = time.monotonic()
        if scan is None:
            scan = sensitivity(student, batches, ratios=RATIOS, criterion=criterion, train=train, images=images,
                               loss=loss, lost=_LOST, exclude=exclude, unknown=unknown, seed=seed)  # fmt: skip
        goal = {"keep_params": 1 / factor} | ({"keep_macs": factor**-0.5} if size_known else {})
        ratios = _ratios(student, _up_to(scan, 1 - 1 / factor), goal, round_to, min_channels, unknown)
        plan = plan_removal(student, criterion=criterion, ratio=0.0, ratios=ratios, round_to=round_to,
                            min_channels=min_channels, exclude=exclude, unknown=unknown, data=train,
                            loss=loss, seed=seed)  # fmt: skip
        if plan.params[1] >= plan.params[0]:  # the scan does not go so far
            patience, factor = _next(patience, factor, False)
            continue
        small = remove_filters(student, plan)
        retrain(small, epochs[patience])
        accuracy = accuracy_of(small, batches)
        last = Trial(plan.params[1], plan.macs[1], accuracy, accuracy >= target, time.monotonic() - begun, factor,
                     epochs[patience])  # fmt: skip
        log.info("search: %s parameters, %.2f%% after %d epochs, %s", f"{last.params:,}", 100 * accuracy, last.epochs,
                 "taken" if last.accepted else "too small")  # fmt: skip
        if last.accepted:
            student, scan = small, None
        state.add(last, small)
        patience, factor = _next(patience, factor, last.accepted)
    if student is teacher:
        student = remove_filters(teacher, plan_removal(teacher, ratio=0.0, unknown=unknown))
    return Found(student, target, sum(len(y) for _, y in batches), tuple(state.trials))


def _next(patience: int, factor: float, accepted: bool) -> tuple[int, float]:
    """As far again after a success; half as far after a failure; where that is too little, more epochs."""
    if accepted:
        return patience, factor
    if factor**0.5 >= _LEAST:
        return patience, factor**0.5
    return patience + 1, _FIRST**0.5 ** (patience + 1)


def _ratios(
    student: keras.Model, scan: Scan, goal: dict[str, float], round_to: int, min_channels: int, unknown: str
) -> dict[str, float]:
    """Ratios that meet the goal; none where the scan does not go so far."""
    try:
        return ratios_for(scan, student, unknown=unknown, round_to=round_to, min_channels=min_channels, **goal)
    except InputError:
        return {}


def _up_to(scan: Scan, most: float) -> Scan:
    """The scan without what lies above a ratio.

    Where an untrained network has lost everything its curves are flat, and the rest of a group looks free. So no group
    may shrink more in one step than all parameters together do.
    """

    def cut(curve: Curve) -> Curve:
        if not curve.ratios:
            return curve
        ratios = (*(r for r in curve.ratios if r < most), min(most, max(curve.ratios)))
        accuracy, loss = (tuple(np.interp(ratios, curve.ratios, v).tolist()) for v in (curve.accuracy, curve.loss))
        return dataclasses.replace(curve, ratios=ratios, accuracy=accuracy, loss=loss,
                                   images=(scan.images,) * len(ratios))  # fmt: skip

    return dataclasses.replace(scan, curves=tuple(cut(c) for c in scan.curves))


class _State:
    """Trials of a search and the last network that was accepted, in a folder where one is given."""

    def __init__(self, folder: Path | None, key: str, trials: list[Trial], student: Path | None) -> None:
        self.folder, self.key, self.trials, self.student = folder, key, trials, student

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None, key: str) -> _State:
        folder = None if path is None else Path(path)
        try:
            saved = json.loads((folder / "trials.json").read_text()) if folder else {}
        except (OSError, ValueError):
            saved = {}
        if saved.get("key") != key:
            return cls(folder, key, [], None)
        student = Path(folder or "", saved["student"]) if saved["student"] else None
        return cls(folder, key, [Trial(**t) for t in saved["trials"]], student)

    def add(self, trial: Trial, model: keras.Model) -> None:
        self.trials.append(trial)
        if self.folder is None:
            return
        if trial.accepted:
            previous, self.student = self.student, self.folder / f"trial_{len(self.trials) - 1}.keras"
            save_model(model, self.student)
        name = self.student.name if self.student else ""
        trials = [dataclasses.asdict(t) for t in self.trials]
        write_file(self.folder / "trials.json", json.dumps({"key": self.key, "trials": trials, "student": name}))
        if trial.accepted and previous:
            previous.unlink(missing_ok=True)
