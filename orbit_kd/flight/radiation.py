"""What bit flips do to an exported file: campaigns of random flips, region by region, run on the real runtime."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.flight.regions import REGIONS, Field
from orbit_kd.flight.subject import Subject
from orbit_kd.flight.trials import Bench, Cell, Known, Row, allowed_seconds
from orbit_kd.flight.workers import started
from orbit_kd.support.digests import digest
from orbit_kd.tasks import Metric, Task
from orbit_kd.tflite.reader import read_bytes

log = logging.getLogger("orbit_kd")

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
ACTIVATIONS, CONSTANTS = "activations", "constants"


@dataclasses.dataclass(frozen=True)
class Campaign:
    """The result of `campaign`.

    Attributes:
        file: its name.
        runtime: that it ran on.
        metric: what is measured.
        whole: the metric of the undamaged file on all test images.
        images: in a trial.
        rows: one a cell.
    """

    file: str
    runtime: str
    metric: Metric
    whole: float
    images: int
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**{k: v for k, v in vars(self).items() if k not in ("rows", "metric")},
                "metric": dataclasses.asdict(self.metric), "rows": [row.to_dict() for row in self.rows]}  # fmt: skip


def campaign(
    file: str | os.PathLike[str] | bytes,
    test: Any,
    *,
    regions: Sequence[str] = REGIONS,
    rates: Sequence[float] = RATES,
    by: Sequence[str] = (),
    layers: Sequence[str] = ("*",),
    images: int = 256,
    trials: int = 200,
    tolerance: float = 0.005,
    task: str | Task = "auto",
    runtime: str = "",
    seed: int = 0,
    workers: int | None = None,
    guard: str | os.PathLike[str] | bytes | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Campaign:
    """Flips bits of a file at random, runs it, and measures what is left of its metric.

    Each trial flips every bit of a region with the probability `rate`, in the file as it lies in memory, and runs some
    of the test images, drawn anew for each trial, in a process that may die. Its value is that of the undamaged file
    on all images, less what the same file loses on the trial's images by the flips. Trials of a cell go on until the
    95% interval of their mean is within `tolerance` on both sides, or `trials` are made. Flips in activations hit what
    is alive between two operators of one inference, at a random place, another for each image.

    Args:
        file: an exported .tflite file.
        test: batches (x, y), as `evaluate` takes them.
        regions: "weights", "biases", "scales", these together as "constants", "structure", "activations".
        rates: probabilities of a flip, of each bit.
        by: "layer", "bit", or both: cells of their own for each layer and each bit of a number.
        layers: patterns of the layers that count.
        images: in a trial; all where there are fewer.
        trials: at most, in a cell.
        tolerance: half the width of the interval that ends a cell, as a share (0.005: half a point).
        task: what the file is for, see `evaluate`.
        runtime: "litert" or "tflm"; "" for the one the file is made for.
        seed: of flips and images.
        workers: processes; None for one a core.
        guard: of the file (see `guard.harden`): its bits flip too, and it repairs the file before each run.
        path: file of JSON lines, one a trial; the same campaign goes on from it.

    Raises:
        InputError: an unknown region or runtime, a rate out of [0, 1], a region that the file has not, or what
            `evaluate` raises.
    """
    _check(regions, rates, by, images=images, trials=trials)
    data = read_bytes(file)
    runtime = runtime or runtimes.made_for(data)
    if runtime not in ("litert", "tflm"):
        raise InputError(f"runtime={runtime!r}.", expected='"litert" or "tflm"', fix="leave it out")
    kept = b"" if guard is None else read_bytes(guard)
    subject = Subject(data, test, runtime=runtime, task=task, guard=kept)
    count = min(images, subject.images)
    known = Known(path, digest(data, subject.key, runtime, count, seed))
    rows = []
    with started(workers or os.cpu_count() or 1) as crew:
        files = {"": subject.file()}
        if ACTIVATIONS in regions:
            files |= subject.tails()
        crew.take(files)
        seconds = allowed_seconds(subject, crew, files, count)
        for cell, field in _cells(subject, regions, rates, by, layers):
            bench = Bench(subject, crew, cell, field, count, seed, seconds)
            rows.append(bench.row(known, trials=trials, tolerance=tolerance))
            log.info("radiation: %s", _line(rows[-1], subject.task.metric))
    name = Path(file).name if isinstance(file, (str, os.PathLike)) else "file"
    return Campaign(name, runtime, subject.task.metric, subject.whole, count, tuple(rows))


def _cells(
    subject: Subject, regions: Sequence[str], rates: Sequence[float], by: Sequence[str], layers: Sequence[str]
) -> Iterator[tuple[Cell, Field | None]]:
    for region in regions:
        if region == ACTIVATIONS:
            yield from ((Cell(region, rate), None) for rate in rates)
            continue
        inside_of = [r for r in REGIONS if r != "structure"] if region == CONSTANTS else [region]
        found = [s for s in subject.spans if s.region in inside_of]
        if region != "structure":
            found = [s for s in found if any(fnmatchcase(s.layer, pattern) for pattern in layers)]
        if not found:
            raise InputError(
                f"The file has no {region} in the layers {', '.join(layers)}.",
                expected="a region and layers that the file has",
                fix="an int8 file has weights, biases and scales; see orbit_kd.flight.regions.spans for the layers",
            )
        split = by if region != "structure" else ()
        names = dict.fromkeys(s.layer for s in found) if "layer" in split else ("",)
        for layer in names:
            inside = [s for s in found if layer in ("", s.layer)]
            bits = range(8 * max(s.width for s in inside)) if "bit" in split else (None,)
            for bit in bits:
                wide = [s for s in inside if bit is None or bit < 8 * s.width]
                yield from ((Cell(region, rate, layer, bit), Field(wide, bit)) for rate in rates)


def _line(row: Row, metric: Metric) -> str:
    cell = row.cell
    what = " ".join(
        [cell.region, *([cell.layer] if cell.layer else []), *([f"bit {cell.bit}"] * (cell.bit is not None))]
    )
    said = "none ran"
    if row.mean is not None:
        mean, low, high, worst = map(metric.text, row.mean)
        said = f"{metric.name} {mean} [{low}, {high}], worst {worst}"
    return f"{what} at {cell.rate:g}: {said}, {row.failed[0]:.0%} of {row.trials} trials failed"


def _check(regions: Sequence[str], rates: Sequence[float], by: Sequence[str], *, images: int, trials: int) -> None:
    """Raises InputError for arguments that make no sense."""
    known = (*REGIONS, CONSTANTS, ACTIVATIONS)
    if not regions or set(regions) - set(known):
        raise InputError(f"regions={list(regions)}.", expected=f"some of {', '.join(known)}",
                         fix="correct the names")  # fmt: skip
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise InputError(f"rates={list(rates)}.", expected="probabilities of a flip, between 0 and 1",
                         fix="1e-5 is one bit in a hundred thousand")  # fmt: skip
    if set(by) - {"layer", "bit"}:
        raise InputError(f"by={list(by)}.", expected='"layer", "bit" or both', fix="leave it out for whole regions")
    if images < 1 or trials < 1:
        raise InputError(f"images={images}, trials={trials}.", expected="at least 1", fix="256 and 200 are usual")
