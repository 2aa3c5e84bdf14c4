"""The trials of a campaign: flips drawn from a seed, outcomes as values, kept on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.flight.intervals import mean_interval
from orbit_kd.flight.regions import Field
from orbit_kd.flight.subject import Subject
from orbit_kd.flight.worker import File, Outcome, Trial
from orbit_kd.flight.workers import Workers
from orbit_kd.support.digests import digest
from orbit_kd.tasks.metrics import wilson

_FIRST, _ROUND = 24, 8  # trials before the first look at the interval, and between looks
_PATIENCE, _LEAST = 20.0, 10.0  # times the time of the undamaged file, and seconds; what takes longer counts as hanging


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is flipped in a row of trials: a region, or a layer or a bit of it, at a rate.

    Attributes:
        region: see `regions.Span`, or "activations".
        rate: probability that a bit is flipped.
        layer: "" for all.
        bit: place in its number, 0 the lowest; None for all.
    """

    region: str
    rate: float
    layer: str = ""
    bit: int | None = None


class Mean(NamedTuple):
    """A metric over trials: the mean, its 95% interval, the worst of them."""

    value: float
    low: float
    high: float
    worst: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of a cell.

    Attributes:
        cell: what was flipped.
        bits: that could be flipped.
        trials: made.
        flips: bits flipped in a trial, on average.
        mean: of the metric over the trials that ran; None where none did.
        ends: how many trials ended how: "ran", "refused", "killed", "hangs".
        failed: share of trials that did not run, with its 95% interval (Wilson).
    """

    cell: Cell
    bits: int
    trials: int
    flips: float
    mean: Mean | None
    ends: Mapping[str, int]
    failed: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        mean = {} if self.mean is None else self.mean._asdict()
        own = {k: v for k, v in vars(self).items() if k not in ("cell", "mean")}
        return {**dataclasses.asdict(self.cell), **own, **mean}


def allowed_seconds(subject: Subject, crew: Workers, files: Mapping[str, File], images: int) -> float:
    """How long a trial may take, from the undamaged file; it must answer in the workers as it does elsewhere.

    Raises:
        InputError: it does not.
    """
    some, none, start = np.arange(images), np.zeros(0, np.int64), time.monotonic()
    for name, outcome in zip(
        files, crew.outcomes([Trial(name, some, none, seconds=600.0) for name in files]), strict=True
    ):
        if outcome.end != "ran" or not np.array_equal(
            subject.records(list(some), outcome.outputs), subject.clean[some]
        ):
            raise InputError(
                f"The undamaged file {name or ''} gives other answers in a worker ({outcome.end}).",
                expected="the same answers, or trials would show more than the flips",
                fix="export the model again; leave the region 'activations' out where its parts do not run alone",
            )
    return max(_LEAST, _PATIENCE * (time.monotonic() - start))


class Bench:
    """The trials of one cell."""

    def __init__(
        self, subject: Subject, crew: Workers, cell: Cell, field: Field | None, images: int, seed: int,
        seconds: float,
    ) -> None:  # fmt: skip
        self._subject, self._crew, self._cell, self._field = subject, crew, cell, field
        self._images, self._seed, self._seconds = images, seed, seconds

    def row(self, known: Known, *, trials: int, tolerance: float) -> Row:
        """Makes trials until the mean is known well enough."""
        done: list[dict[str, Any]] = []
        while len(done) < trials:
            size = min(_ROUND if len(done) >= _FIRST else _FIRST, trials - len(done))
            done += self._made(range(len(done), len(done) + size), known)
            mean = self._summary(done).mean
            if mean is None or max(mean.value - mean.low, mean.high - mean.value) <= tolerance:
                break  # where none of the first trials ran, the share that does is below an eighth
        return self._summary(done)

    def _made(self, numbers: range, known: Known) -> list[dict[str, Any]]:
        found = {n: known.get(self._cell, n) for n in numbers}
        drawn = {n: self._drawn(n) for n in numbers if found[n] is None}
        ran = [n for n, (trial, _) in drawn.items() if len(trial.bits) or trial.input_bits]
        outcomes = dict(zip(ran, self._crew.outcomes([drawn[n][0] for n in ran]), strict=True))
        for n, (trial, flips) in drawn.items():
            said = {"end": "ran", "value": self._subject.whole}  # of one without a flip that is left
            if n in outcomes:
                said = self._said(trial, outcomes[n])
            found[n] = known.add(self._cell, n, {**said, "flips": flips})
        return [f for f in found.values() if f is not None]

    def _drawn(self, number: int) -> tuple[Trial, int]:
        """A trial, and how many bits flip in it before a guard is asked."""
        place = digest(dataclasses.asdict(self._cell), number)
        rng = np.random.default_rng([self._seed, int(place[:15], 16)])
        images = np.sort(rng.choice(self._subject.images, self._images, replace=False))
        if self._field is not None:
            drawn = self._field.drawn(self._cell.rate, rng)
            left, flips = self._subject.guarded(drawn, self._cell.rate, rng)
            return Trial("", images, left, seconds=self._seconds), flips
        name = self._subject.tail_names[rng.integers(len(self._subject.tail_names))]
        size = 8 * self._subject.alive[name]
        bits = [
            (i, int(bit))
            for i in range(len(images))
            for bit in rng.choice(size, rng.binomial(size, self._cell.rate), replace=False, shuffle=False)
        ]
        return Trial(name, images, np.zeros(0, np.int64), tuple(bits), seconds=self._seconds), len(bits)

    def _said(self, trial: Trial, outcome: Outcome) -> dict[str, Any]:
        shapes = [(self._images, *port.shape) for port in self._subject._runner.outputs]
        kinds = [port.dtype for port in self._subject._runner.outputs]
        if outcome.end != "ran":
            return {"end": outcome.end, "value": None}
        if [a.shape for a in outcome.outputs] != shapes or [a.dtype for a in outcome.outputs] != kinds:
            return {"end": "refused", "value": None}  # outputs of other shapes: whoever reads them notices
        after = self._subject.task.value(self._subject.records(list(trial.images), outcome.outputs))
        before = self._subject.task.value(self._subject.clean[trial.images])
        return {"end": "ran", "value": self._subject.whole + after - before}

    def _summary(self, done: Sequence[Mapping[str, Any]]) -> Row:
        values = [d["value"] for d in done if d["end"] == "ran"]
        ends = {end: sum(d["end"] == end for d in done) for end in ("ran", "refused", "killed", "hangs")}
        failed = len(done) - ends["ran"]
        bits = 8 * int(np.mean(list(self._subject.alive.values()))) if self._field is None else self._field.size
        mean = None
        if values:
            mean = Mean(float(np.mean(values)), *mean_interval(values), min(values))
        share = (failed / len(done), *wilson(failed, len(done)))
        return Row(self._cell, bits, len(done), float(np.mean([d["flips"] for d in done])), mean, ends, share)


class Known:
    """Trials that were made before, on disk."""

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self._path, self._key = None if path is None else Path(path), key
        self._found: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    said = json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed
                if said.get("key") == key:
                    self._found[said["place"]] = said

    def get(self, cell: Cell, number: int) -> dict[str, Any] | None:
        return self._found.get(_place(cell, number))

    def add(self, cell: Cell, number: int, said: dict[str, Any]) -> dict[str, Any]:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": self._key, "place": _place(cell, number), **said}) + "\n")
        return said


def _place(cell: Cell, number: int) -> str:
    return f"{cell.region}|{cell.layer}|{cell.bit}|{cell.rate:g}|{number}"
