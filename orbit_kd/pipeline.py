"""`compress`: the whole job, as nothing but the composition of the public functions."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd import automatic, budgets
from orbit_kd.channel_graph import ChannelGraph
from orbit_kd.datasets import Data
from orbit_kd.distillation import TeacherCache, cache_teacher
from orbit_kd.evaluation import evaluate, logits, model_bytes
from orbit_kd.exporters import Artifact, export_all, find
from orbit_kd.exporters.metadata import bytes_of, note
from orbit_kd.files import write_file
from orbit_kd.importance import criteria
from orbit_kd.iterative import ratio_of_round
from orbit_kd.metrics import accuracy
from orbit_kd.model_io import fingerprint, load_model, save_model
from orbit_kd.planning import RemovalPlan, plan_removal
from orbit_kd.preprocessing import Augment
from orbit_kd.recipe import Recipe, digest
from orbit_kd.reporting import Report
from orbit_kd.retraining import distil, lesson_layers, losses_of
from orbit_kd.sparsity import sparsify, strip
from orbit_kd.stages import Stages, log
from orbit_kd.story import chosen, story
from orbit_kd.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.training import check_fit


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What `compress` returns: the student (a plain Keras model), its exported files, and the report."""

    student: keras.Model
    artifacts: tuple[Artifact, ...]
    report: Report


def compress(
    teacher: keras.Model,
    data: Data,
    *,
    recipe: Recipe | None = None,
    augment: Augment | None = None,
    workdir: str | os.PathLike[str],
    title: str = "",
    command: str = "",
) -> Compressed:
    """Removes filters, makes the rest sparse, retrains with the teacher, quantizes, exports, and measures the files.

    Each stage leaves its result in `workdir`. The same call goes on after a kill; a stage runs anew when its settings,
    the teacher, the data, or a stage before it have changed.

    Args:
        teacher: a trained classifier (logits or softmax); it is not changed.
        data: training, validation and test examples; the test split is read once, for the report.
        recipe: what to do; the defaults are moderate.
        augment: random changes to the training images the teacher and the student see.
        workdir: folder for the results: student.keras, exported files, report.json, report.html.
        title: of the report.
        command: that repeats this, for the report.

    Raises:
        InputError: bad settings, data that do not fit the teacher, an unwritable folder, a loss that is not finite.
    """
    asked, augment = recipe or Recipe(), augment or Augment()
    recipe = asked
    _check(teacher, data, recipe)
    if not _automatic(recipe):
        log.info("%s\n", _first_plan(teacher, data, recipe))
    stages = Stages(workdir, digest(fingerprint(teacher), _data_key(data)))
    with stages.stage("teacher") as (folder, done):
        originals = _export(teacher, ("tflite_float32", "tflite_int8"), folder, "teacher", data, done, recipe)
    about = note(data.class_names, _preprocess(data), recipe=digest(recipe.to_dict()))
    extra = bytes_of(about, model_bytes(originals[1]))
    if recipe.budgets and recipe.max_drop is None:
        recipe = automatic.choose_ratios(stages, teacher, data, recipe, note=extra)
        log.info("%s\n", _first_plan(teacher, data, recipe))
    layers = lesson_layers(teacher, recipe)
    settings = {"views": recipe.views, "augment": augment.to_dict(), "seed": recipe.seed, "layers": layers}
    with stages.stage("lessons", **settings) as (folder, _):
        views = [data.views(k, seed=recipe.seed, augment=augment) for k in range(recipe.views)]
        lessons = cache_teacher(teacher, views, path=folder, seed=recipe.seed, layers=layers, data_key=stages.key)
    history: list[dict[str, Any]] = []
    found: dict[str, Any] | None = None
    if recipe.max_drop is not None:
        student, found = automatic.search_student(stages, teacher, lessons, data, recipe, note=extra)
        recipe = automatic.fit_epochs(stages, student, teacher, lessons, data, recipe)
        with stages.stage("distill", epochs=recipe.epochs, **_training_settings(recipe)) as (folder, done):
            student = _learn(student, teacher, lessons, data, recipe, recipe.epochs, folder, done, history, lambda s: s)
    else:
        smaller = remove_filters(teacher, _first_plan(teacher, data, recipe)) if recipe.time_budget else teacher
        recipe = automatic.fit_epochs(stages, smaller, teacher, lessons, data, recipe)
        student = teacher
        for number in range(1, recipe.rounds + 1):
            student = _removal_round(stages, student, teacher, lessons, data, recipe, number, history)
    if recipe.pattern != "dense":
        student = _sparse_training(stages, student, teacher, lessons, data, recipe, history)
    with stages.stage("export", targets=recipe.targets, calibration=recipe.calibration) as (folder, done):
        artifacts = _export(student, recipe.targets, folder, "student", data, done, recipe, about)
    if found is not None:
        with stages.stage("validation") as (folder, done):
            found = _validated(found, artifacts, data, folder, done)
    with stages.stage("report", title=title, command=command) as (folder, done):
        if not done:
            report = evaluate(
                artifacts,
                data.test,
                teacher=originals[0],
                teacher_artifacts=originals,
                class_names=data.class_names or None,
            )
            report.save(folder)
        report = Report.load(folder)
    told = story(report.data, teacher, student, data, asked, recipe.pattern, augment, history, stages)
    report = Report(report.data | told
                    | {"search": found, "chosen": chosen(asked, recipe)}
                    | {"title": title or f"{teacher.name}, compressed", "command": command})  # fmt: skip
    save_model(student, stages.workdir / "student.keras")
    report.save(stages.workdir)
    return Compressed(student, tuple(artifacts), report)


def _check(teacher: keras.Model, data: Data, recipe: Recipe) -> None:
    """All that can be refused before hours are spent."""
    check_fit(teacher, data)
    criteria.get(recipe.criterion)
    losses_of(recipe)
    for target in recipe.targets:
        find(target)
    if _automatic(recipe):
        budgets.limits(ChannelGraph(teacher, unknown=recipe.unknown), recipe.budgets)
    plan = _first_plan(teacher, data, recipe)
    if recipe.pattern != "dense":
        _sparse(remove_filters(teacher, plan), recipe, steps=1)


def _automatic(recipe: Recipe) -> bool:
    """Whether a scan or a search decides what goes."""
    return bool(recipe.budgets) or recipe.max_drop is not None


def _first_plan(teacher: keras.Model, data: Data, recipe: Recipe) -> RemovalPlan:
    return _plan(teacher, data, dataclasses.replace(recipe, rounds=1))


def _plan(model: keras.Model, data: Data, recipe: Recipe) -> RemovalPlan:
    return plan_removal(
        model,
        criterion=recipe.criterion,
        ratio=ratio_of_round(recipe.ratio, recipe.rounds),
        ratios={name: ratio_of_round(ratio, recipe.rounds) for name, ratio in recipe.ratios.items()},
        round_to=recipe.round_to,
        min_channels=recipe.min_channels,
        exclude=recipe.exclude,
        unknown=recipe.unknown,
        data=data.train,
        seed=recipe.seed,
    )


def _removal_round(
    stages: Stages, student: keras.Model, teacher: keras.Model, lessons: TeacherCache, data: Data, recipe: Recipe,
    number: int, history: list[dict[str, Any]],
) -> keras.Model:  # fmt: skip
    settings = {k: v for k, v in recipe.to_dict().items() if k in _REMOVAL_SETTINGS}
    with stages.stage(f"remove_{number}", round=number, **settings) as (folder, done):
        if not done:
            plan = _plan(student, data, recipe)
            smaller = remove_filters(student, plan)
            recalibrate_batchnorm(smaller, data.train)
            write_file(folder / "plan.json", plan.to_json())
            save_model(smaller, folder / "student.keras")
        student = load_model(folder / "student.keras")
    epochs = recipe.epochs * number // recipe.rounds - recipe.epochs * (number - 1) // recipe.rounds
    with stages.stage(f"distill_{number}", epochs=epochs, **_training_settings(recipe)) as (folder, done):
        return _learn(student, teacher, lessons, data, recipe, epochs, folder, done, history, lambda s: s)


_REMOVAL_SETTINGS = ("criterion", "seed", "ratio", "ratios", "rounds", "round_to", "min_channels", "exclude", "unknown")


def _sparse_training(
    stages: Stages, student: keras.Model, teacher: keras.Model, lessons: TeacherCache, data: Data, recipe: Recipe,
    history: list[dict[str, Any]],
) -> keras.Model:  # fmt: skip
    settings = {
        k: v
        for k, v in recipe.to_dict().items()
        if k in ("pattern", "sparsity", "sparsities", "schedule", "sparse_exclude")
    }
    epochs = recipe.sparse_epochs
    with stages.stage("sparsify", epochs=epochs, **settings, **_training_settings(recipe)) as (folder, done):
        sparse = _sparse(student, recipe, steps=max(1, epochs * lessons.steps(recipe.batch_size)))
        return _learn(sparse, teacher, lessons, data, recipe, epochs, folder, done, history,
                      lambda s: strip(s, finish=epochs == 0))  # fmt: skip


def _sparse(student: keras.Model, recipe: Recipe, *, steps: int) -> keras.Model:
    """The student under the recipe's pattern; a gradual schedule is through after half of the steps."""
    gradual = recipe.schedule not in ("constant", "one_shot", "sr_ste")
    return sparsify(
        student,
        recipe.pattern,
        sparsity=(recipe.sparsities or recipe.sparsity) if recipe.pattern == "magnitude" else None,
        schedule=recipe.schedule,
        end_step=max(1, steps // 2) if gradual else None,
        exclude=recipe.sparse_exclude,
    )


def _training_settings(recipe: Recipe) -> dict[str, Any]:
    names = ("losses", "alpha", "temperature", "batch_size", "learning_rate", "seed")
    return {name: getattr(recipe, name) for name in names}


def _learn(
    student: keras.Model, teacher: keras.Model, lessons: TeacherCache, data: Data, recipe: Recipe, epochs: int,
    folder: Path, done: bool, history: list[dict[str, Any]], finish: Callable[[keras.Model], keras.Model],
) -> keras.Model:  # fmt: skip
    """Trains the student with the teacher, once; returns the finished plain model as it was saved."""
    if not done:
        curves: dict[str, list[float]] = {}
        if epochs:
            curves = distil(
                student, teacher, lessons, data=data, recipe=recipe, epochs=epochs, folder=folder, label=folder.name
            )
        save_model(finish(student), folder / "student.keras")
        write_file(folder / "history.json", json.dumps(curves))
    curves = json.loads((folder / "history.json").read_text())
    history.append({"stage": folder.name, "epochs": list(range(1, epochs + 1)), **curves})
    return load_model(folder / "student.keras")


def _export(
    model: keras.Model, names: tuple[str, ...], folder: Path, stem: str, data: Data, done: bool, recipe: Recipe,
    metadata: dict[str, Any] | None = None,
) -> list[Artifact]:  # fmt: skip
    if not done:
        written = export_all(
            model, names, folder=folder, stem=stem, calibration=data.train, samples=recipe.calibration,
            metadata=metadata,
        )  # fmt: skip
        write_file(folder / "artifacts.json", json.dumps([a.to_dict() for a in written]))
    return [Artifact.from_dict(a) for a in json.loads((folder / "artifacts.json").read_text())]


def _validated(
    found: dict[str, Any], artifacts: list[Artifact], data: Data, folder: Path, done: bool
) -> dict[str, Any]:
    """The story of the search with what the shipped file reaches on the images it was chosen by."""
    file = next((a for a in artifacts if a.target == "tflite_int8"), artifacts[0])
    if not done:
        labels, outputs = logits({"student": model_bytes(file)}, data.val)
        write_file(folder / "validation.json", json.dumps({"accuracy": accuracy(labels, outputs["student"])}))
    reached = json.loads((folder / "validation.json").read_text())["accuracy"]
    verdict = "as asked" if reached >= found["target"] else "below what was asked, after int8 rounding"
    log.info("validation: %.2f%% (%s), %s", 100 * reached, file.target, verdict)
    return {**found, "reached": reached, "target_file": file.target, "verdict": verdict}


def _preprocess(data: Data) -> dict[str, Any] | None:
    return data.preprocess.to_dict() if data.preprocess else None


def _data_key(data: Data) -> str:
    """What the stages start from; data of the caller's own are known by their first batches."""
    if data.fingerprint:
        return data.fingerprint
    import hashlib

    h = hashlib.sha256()
    for part in (data.train, data.val, data.test):
        for batch in part.take(4):
            for values in batch:
                h.update(np.ascontiguousarray(values).tobytes())
    return h.hexdigest()
