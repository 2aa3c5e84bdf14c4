"""The parts of `compress` that decide: ratios from a scan, the smallest network by search, epochs for the time left."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd import budgets
from orbit_kd.channel_graph import ChannelGraph
from orbit_kd.datasets import Data
from orbit_kd.errors import InputError
from orbit_kd.files import write_file
from orbit_kd.model_io import load_model, save_model
from orbit_kd.ratios import hybrid_for, ratios_for
from orbit_kd.recipe import Recipe
from orbit_kd.retraining import Retraining
from orbit_kd.scan import Scan
from orbit_kd.scanning import sensitivity
from orbit_kd.search import RATIOS, smallest
from orbit_kd.stages import Stages
from orbit_kd.surgery import recalibrate_batchnorm

log = logging.getLogger("orbit_kd")

_PATIENCE = 4  # times the epochs of a trial once the search with few has come to its end
_SEARCH_PART = 0.4  # of the time that is left when the search begins
_TRAINING_PART = 0.8  # of the time that is left when the long training begins: estimates err, and files are yet to come
_WHAT_GOES = ("criterion", "exclude", "unknown", "seed")
_HOW_FAR = ("round_to", "min_channels")


def choose_ratios(stages: Stages, teacher: keras.Model, data: Data, recipe: Recipe, *, note: int) -> Recipe:
    """The recipe with the ratios (and sparsities of layers) that meet its budgets at the least predicted loss.

    Args:
        stages: where the scan is kept.
        teacher: the network that shrinks.
        data: validation examples for the scan, training examples for the criterion.
        recipe: with a budget.
        note: bytes of max_bytes that class names and preprocessing take in the file.

    Raises:
        InputError: a budget that cannot be met.
    """
    how = {name: getattr(recipe, name) for name in _WHAT_GOES}
    hybrid = recipe.pattern == "magnitude" and recipe.keep_params is not None
    if hybrid:
        how["sparse_exclude"] = recipe.sparse_exclude
    with stages.stage("sensitivity", **how, images=recipe.scan_images, hybrid=hybrid) as (folder, done):
        scans = {}
        for of in ("filters", "weights") if hybrid else ("filters",):
            if not done:
                scan = _scan(teacher, data, recipe, of, folder)
                scan.to_json(folder / f"{of}.json")
                scan.to_csv(folder / f"{of}.csv")
                scan.plot(folder / f"{of}.png")
            scans[of] = Scan.from_json((folder / f"{of}.json").read_text())
    log.info("%s\n", scans["filters"])
    limits: dict[str, Any] = {"unknown": recipe.unknown, **{n: getattr(recipe, n) for n in _HOW_FAR}, **recipe.budgets}
    if recipe.max_bytes is not None:
        limits["max_bytes"] = recipe.max_bytes - note
    sparsities: dict[str, float] = dict(recipe.sparsities)
    try:
        if hybrid:
            ratios, sparsities = hybrid_for(scans["filters"], teacher, weights=scans["weights"], **limits)
        else:
            ratios = ratios_for(scans["filters"], teacher, **limits)
    except InputError as error:
        also = f"; and {note} bytes more, for class names and preprocessing" if "max_bytes" in error.what else ""
        raise InputError(
            f"{', '.join(f'{name}={value:g}' for name, value in recipe.budgets.items())} cannot be met. {error.what}",
            expected=error.expected + also,
            fix="raise the budget, lower min_channels or round_to, or exclude fewer layers",
        ) from error
    pattern = recipe.pattern if sparsities or not hybrid else "dense"  # filters alone were the better choice
    chosen: dict[str, Any] = {"ratio": 0.0, "ratios": ratios, "sparsities": sparsities if pattern != "dense" else {}}
    return dataclasses.replace(recipe, pattern=pattern, **(chosen | dict.fromkeys(recipe.budgets)))


def _scan(teacher: keras.Model, data: Data, recipe: Recipe, of: str, folder: Path) -> Scan:
    about: dict[str, Any] = {"criterion": recipe.criterion, "train": data.train} if of == "filters" else {}
    return sensitivity(
        teacher,
        data.val,
        ratios=RATIOS,
        of=of,
        images=recipe.scan_images,
        lost=0.5,
        exclude=recipe.exclude if of == "filters" else recipe.sparse_exclude,
        unknown=recipe.unknown,
        seed=recipe.seed,
        path=folder / f"{of}.state.json",
        **about,
    )


def search_student(job: Retraining, recipe: Recipe, *, note: int) -> tuple[keras.Model, dict[str, Any]]:
    """The smallest student within `max_drop`, and how it was found, for the report; `note` as in `choose_ratios`.

    Raises:
        InputError: it is larger than another budget allows.
    """
    names = (*_WHAT_GOES, *_HOW_FAR, "max_drop", "search_epochs", "scan_images", "losses", "alpha", "temperature",
             "batch_size", "learning_rate", "time_budget")  # fmt: skip
    teacher, data, stages = job.teacher, job.data, job.stages
    with stages.stage("search", **{name: getattr(recipe, name) for name in names}) as (folder, done):
        if not done:

            def retrain(student: keras.Model, epochs: int) -> None:
                recalibrate_batchnorm(student, data.train)
                state = folder / "training"
                label = f"trial of {student.count_params():,} parameters"
                job.distil(student, recipe, epochs=epochs, folder=state, label=label)
                recalibrate_batchnorm(student, data.train)
                shutil.rmtree(state, ignore_errors=True)

            found = smallest(
                teacher,
                retrain,
                data=data.val,
                max_drop=recipe.max_drop or 0.0,
                epochs=(recipe.search_epochs, _PATIENCE * recipe.search_epochs),
                train=data.train,
                images=recipe.scan_images,
                criterion=recipe.criterion,
                round_to=recipe.round_to,
                min_channels=recipe.min_channels,
                exclude=recipe.exclude,
                unknown=recipe.unknown,
                seconds=None if recipe.time_budget is None else _SEARCH_PART * _left(stages, recipe),
                path=folder,
            )
            log.info("%s\n", found)
            story = {"target": found.target, "images": found.images,
                     "trials": [dataclasses.asdict(t) for t in found.trials]}  # fmt: skip
            write_file(folder / "search.json", json.dumps(story))
            save_model(found.student, folder / "student.keras")
        student = load_model(folder / "student.keras")
    _check_budgets(student, teacher, recipe, note)
    return student, json.loads((folder / "search.json").read_text())


def _check_budgets(student: keras.Model, teacher: keras.Model, recipe: Recipe, note: int) -> None:
    """Raises InputError where the smallest network within `max_drop` is too large for another budget."""
    graph = ChannelGraph(student, unknown=recipe.unknown)
    for limit in budgets.limits(ChannelGraph(teacher, unknown=recipe.unknown), recipe.budgets):
        cost = budgets.costs.get(budgets.absolute(limit.name))(graph, graph.all_stay())
        cost += note if limit.name == "max_bytes" else 0
        if cost > limit.most:
            raise InputError(
                f"The smallest network found within max_drop={recipe.max_drop:g} is too large for "
                f"{limit.name}={limit.most / limit.scale:g}.",
                expected=f"at least {budgets.rounded_up(cost / limit.scale)} at this accuracy",
                fix="raise max_drop, raise the budget, or give the search more time (search_epochs, time_budget)",
            )


def fit_epochs(job: Retraining, student: keras.Model, recipe: Recipe) -> Recipe:
    """The recipe with as many epochs as its time budget leaves time for, at most what it says and one a round."""
    if recipe.time_budget is None:
        return recipe
    settings = {k: v for k, v in recipe.to_dict().items() if k not in ("targets", "calibration")}
    with job.stages.stage("timing", recipe=settings) as (folder, done):
        if not done:
            each = job.seconds_an_epoch(student, recipe)
            wanted = recipe.epochs + (recipe.sparse_epochs if recipe.pattern != "dense" else 0)
            part = min(1.0, _TRAINING_PART * _left(job.stages, recipe) / (each * wanted))
            write_file(folder / "part.json", json.dumps({"part": max(0.0, part), "seconds_an_epoch": each}))
        part = json.loads((folder / "part.json").read_text())["part"]
    epochs = max(recipe.rounds, int(part * recipe.epochs))
    sparse = recipe.sparse_epochs
    if sparse and recipe.pattern != "dense":
        sparse = max(1, int(part * sparse))
    if part < 1:
        log.info("time_budget: %d of %d epochs fit", epochs, recipe.epochs)
    return dataclasses.replace(recipe, epochs=epochs, sparse_epochs=sparse)


def _left(stages: Stages, recipe: Recipe) -> float:
    """Seconds left of the time budget after the stages so far."""
    return max(0.0, float(recipe.time_budget or 0.0) - sum(s["seconds"] for s in stages.seconds))
