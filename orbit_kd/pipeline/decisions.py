"""What a recipe leaves open, settled: ratios from a scan, the smallest network by search, epochs for the time left."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.datasets import Data
from orbit_kd.errors import InputError
from orbit_kd.models.saving import fingerprint, load_model, save_model
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import Retraining
from orbit_kd.quantization.aware import plain_model
from orbit_kd.removal import budgets
from orbit_kd.search.allocation import allocate, is_coded
from orbit_kd.search.scan import Scan
from orbit_kd.search.sensitivity import sensitivities
from orbit_kd.search.shrinking import LOST, TOLERANCE, USUAL
from orbit_kd.search.smallest import smallest
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.stages import Stages
from orbit_kd.tasks import Task

log = logging.getLogger("orbit_kd")

_UNASKED = 3000.0  # seconds for a search where no time budget is given
_SURELY = 0.95  # of the time that is left when the search begins: files are yet to come
_ENDLESS = 1 << 20  # epochs, where the time budget alone says when to end
ZEROS = ("dense", "magnitude")  # patterns that leave it to the scans how many zeros a layer gets
_WARMUP = 0.1  # of the steps of a trial's training
_TRAINING_PART = 0.8  # of the time that is left when the long training begins: estimates err, and files are yet to come


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The settings of a recipe that a job may choose by itself, as they hold in the end.

    Attributes:
        ratio, ratios: part of the filters that goes, in every group and in some.
        pattern: sparsity of the remaining weights.
        sparsities: part of the weights that becomes zero, for each layer that the pattern "magnitude" names.
        bits, layer_bits: of every kernel, and of some.
        epochs: after filter removal.
        sparse_epochs: with the sparsity pattern.
        quantize_epochs: with the rounding of the int8 file.
    """

    ratio: float
    ratios: Mapping[str, float]
    pattern: str
    sparsities: Mapping[str, float]
    bits: int
    layer_bits: Mapping[str, int]
    epochs: int
    sparse_epochs: int
    quantize_epochs: int

    @property
    def few_levels(self) -> bool:
        """Whether a kernel has fewer than 8 bits."""
        return min(self.bits, *self.layer_bits.values(), 8) < 8

    @property
    def bits_by_pattern(self) -> dict[str, int]:
        """Bits of kernels, for `quantize_aware`."""
        return {**self.layer_bits, "*": self.bits}

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Decisions:
        """As the recipe says."""
        return cls(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(cls)})

    def changes(self, recipe: Recipe) -> dict[str, Any]:
        """What is not as the recipe says, for the report."""
        return {k: v for k, v in self.to_dict().items() if v != recipe.to_dict()[k]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Decisions(**d)` gives it back."""
        return {**vars(self), **{k: dict(v) for k, v in vars(self).items() if isinstance(v, Mapping)}}


def within_budgets(
    stages: Stages, teacher: keras.Model, data: Data, recipe: Recipe, *, note: int, task: Task
) -> Decisions:
    """The ratios (and zeros and bits of layers) that meet the recipe's budgets at the least predicted loss.

    Args:
        stages: where the scans are kept.
        teacher: the network that shrinks.
        data: validation examples for the scans, training examples for the criterion.
        recipe: with a budget.
        note: bytes of max_bytes that class names and preprocessing take in the file.
        task: what the network is for.

    Raises:
        InputError: a budget that cannot be met.
    """
    target = target_of(recipe)
    coded = recipe.max_bytes is not None and is_coded(target)
    kinds = ["filters"]
    if (recipe.pattern == "magnitude" and recipe.keep_params is not None) or (recipe.pattern in ZEROS and coded):
        kinds.append("weights")
    if coded:
        kinds.append("bits")
    scans = _scans(stages, teacher, data, recipe, kinds, task)
    log.info("%s\n", scans[0])
    settings = recipe.settings("budget") | {"note": note, "target": target}
    with stages.stage("budget", after=["sensitivity"], **settings) as (folder, done):
        if not done:
            write_file(folder / "decisions.json", json.dumps(_met(scans, teacher, recipe, note, target)))
        met = json.loads((folder / "decisions.json").read_text())
    return dataclasses.replace(Decisions.from_recipe(recipe), ratio=0.0, **met)


def _met(scans: Sequence[Scan], teacher: keras.Model, recipe: Recipe, note: int, target: str) -> dict[str, Any]:
    """The decisions that budgets make, as plain values; epochs are none of them."""
    limits: dict[str, Any] = {"unknown": recipe.unknown, "round_to": recipe.round_to,
                              "min_channels": recipe.min_channels, **recipe.budgets}  # fmt: skip
    if recipe.max_bytes is not None:
        limits["max_bytes"] = recipe.max_bytes - note
    try:
        found = allocate(teacher, scans, target=target, shrink=recipe.shrink, **limits)
    except InputError as error:
        also = f"; and {note} bytes more, for class names and preprocessing" if "max_bytes" in error.what else ""
        raise InputError(
            f"{', '.join(f'{name}={value:g}' for name, value in recipe.budgets.items())} cannot be met. {error.what}",
            expected=error.expected + also,
            fix="raise the budget, lower min_channels or round_to, or exclude fewer layers",
        ) from error
    met: dict[str, Any] = {"ratios": found.ratios}
    if any(scan.of == "weights" for scan in scans):  # where none are chosen, filters alone were the better choice
        met |= {"pattern": "magnitude" if found.sparsities else "dense", "sparsities": found.sparsities}
    if any(scan.of == "bits" for scan in scans):
        met["layer_bits"] = {**recipe.layer_bits, **found.bits}
    return met


def _scans(
    stages: Stages, teacher: keras.Model, data: Data, recipe: Recipe, kinds: Sequence[str], task: Task
) -> list[Scan]:
    """Scans of these kinds, in one pass."""
    settings = recipe.settings("sensitivity") | {"of": kinds}
    exclude = {"filters": recipe.exclude, "weights": recipe.sparse_exclude, "bits": recipe.sparse_exclude}
    if kinds == ["filters"]:
        settings.pop("sparse_exclude")
    with stages.stage("sensitivity", **settings) as (folder, done):
        if not done:
            scans = sensitivities(
                teacher, data.val, ratios={of: USUAL[of] for of in kinds}, exclude=exclude, criterion=recipe.criterion,
                train=data.train, images=recipe.scan_images, lost=LOST, tolerance=TOLERANCE, unknown=recipe.unknown,
                task=task, seed=recipe.seed, path=folder / "scans.state.json",
            )  # fmt: skip
            for scan in scans:
                scan.to_json(folder / f"{scan.of}.json")
                scan.to_csv(folder / f"{scan.of}.csv")
                scan.plot(folder / f"{scan.of}.png")
        return [Scan.from_json((folder / f"{of}.json").read_text()) for of in kinds]


def within_drop(job: Retraining, *, note: int) -> tuple[keras.Model, dict[str, Any]]:
    """The smallest student within `max_drop`, and how it was found, for the report; `note` as in `within_budgets`.

    Raises:
        InputError: it is larger than another budget allows.
    """
    teacher, data, stages, recipe = job.teacher, job.data, job.stages, job.recipe
    target = target_of(recipe)
    with stages.stage("search", after=["lessons"], target=target, **recipe.settings("search")) as (folder, done):
        if not done:

            def retrain(student: keras.Model, epochs: int, rate: float) -> None:
                state = folder / "training" / digest(fingerprint(student), epochs, rate)[:16]
                label = f"trial of {student.count_params():,} parameters"
                job.distil(student, epochs=epochs, folder=state, label=label, rate=rate, warmup=_WARMUP)
                shutil.rmtree(state.parent, ignore_errors=True)

            found = smallest(
                teacher,
                retrain,
                data=data.val,
                max_drop=recipe.max_drop or 0.0,
                shrink=recipe.shrink or "bytes",
                target=target,
                epochs=min(recipe.search_epochs, recipe.epochs),
                longest=recipe.epochs if recipe.time_budget is None else _ENDLESS,
                train=data.train,
                images=recipe.scan_images,
                samples=recipe.calibration,
                criterion=recipe.criterion,
                pattern="magnitude" if recipe.pattern in ZEROS else recipe.pattern,
                round_to=recipe.round_to,
                min_channels=recipe.min_channels,
                exclude=recipe.exclude,
                sparse_exclude=recipe.sparse_exclude,
                unknown=recipe.unknown,
                task=job.task,
                seed=recipe.seed,
                examples=job.lessons.steps(recipe.batch_size) * recipe.batch_size,
                seconds=_SURELY * _left(stages, recipe.time_budget or _UNASKED),
                path=folder,
            )
            log.info("%s\n", found)
            story = {"target": found.target, "images": found.images, "shrink": recipe.shrink or "bytes", "file": target,
                     "teacher": dataclasses.asdict(found.whole), "bytes": found.reached.bytes, "verdict": found.verdict,
                     "trials": [dataclasses.asdict(t) for t in found.trials]}  # fmt: skip
            write_file(folder / "search.json", json.dumps(story))
            save_model(found.model, folder / "student.keras")
        student = load_model(folder / "student.keras")
    told = json.loads((folder / "search.json").read_text())
    _check_budgets(plain_model(student), teacher, recipe, note, told["bytes"] if is_coded(target) else None)
    return student, told


def target_of(recipe: Recipe) -> str:
    """The target whose bytes count."""
    return next((name for name in recipe.targets if is_coded(name)), "tflite_int8")


def _check_budgets(
    student: keras.Model, teacher: keras.Model, recipe: Recipe, note: int, coded: int | None = None
) -> None:
    """Raises InputError where the smallest network within `max_drop` is too large for another budget.

    `coded` is what its coded file takes, where that is the file whose bytes count.
    """
    graph = ChannelGraph(student, unknown=recipe.unknown)
    for limit in budgets.limits(ChannelGraph(teacher, unknown=recipe.unknown), recipe.budgets):
        cost = budgets.costs.get(budgets.absolute(limit.name)).cost(graph, graph.all_stay())
        if limit.name == "max_bytes":
            cost = note + (cost if coded is None else coded)
        if cost > limit.most:
            raise InputError(
                f"The smallest network found within max_drop={recipe.max_drop:g} is too large for "
                f"{limit.name}={limit.most / limit.scale:g}.",
                expected=f"at least {budgets.round_up(cost / limit.scale)} at this accuracy",
                fix="raise max_drop, raise the budget, or give the search more time (search_epochs, time_budget)",
            )


def within_time(job: Retraining, student: keras.Model, decided: Decisions) -> Decisions:
    """With as many epochs as the time budget leaves time for, at most as decided, and at least one a round."""
    recipe = job.recipe
    if recipe.time_budget is None:
        return decided
    settings = recipe.settings("timing") | {"pattern": decided.pattern, **decided.bits_by_pattern}
    shapes = digest([v.shape.as_list() for v in student.weights])
    with job.stages.stage("timing", after=["lessons"], student=shapes, **settings) as (folder, done):
        if not done:
            each = job.seconds_an_epoch(student)
            wanted = decided.epochs + (decided.sparse_epochs if decided.pattern != "dense" else 0)
            wanted += decided.quantize_epochs if decided.few_levels else 0
            part = min(1.0, _TRAINING_PART * _left(job.stages, recipe.time_budget) / (each * wanted))
            write_file(folder / "part.json", json.dumps({"part": max(0.0, part), "seconds_an_epoch": each}))
        part = json.loads((folder / "part.json").read_text())["part"]
    epochs = max(recipe.rounds, int(part * decided.epochs))
    sparse, quantize = (min(n, max(1, int(part * n))) for n in (decided.sparse_epochs, decided.quantize_epochs))
    if part < 1:
        log.info("time_budget: %d of %d epochs fit", epochs, decided.epochs)
    return dataclasses.replace(decided, epochs=epochs, sparse_epochs=sparse, quantize_epochs=quantize)


def _left(stages: Stages, seconds: float) -> float:
    """Seconds left of a time budget after the stages so far."""
    return max(0.0, seconds - sum(s["seconds"] for s in stages.seconds))
