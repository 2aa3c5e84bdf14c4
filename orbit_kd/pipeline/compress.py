"""`compress`: the whole job, as nothing but the composition of the public functions."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.datasets import Data
from orbit_kd.datasets.augment import Augment
from orbit_kd.distillation import TeacherCache
from orbit_kd.evaluation.evaluate import evaluate
from orbit_kd.evaluation.outputs import model_bytes
from orbit_kd.evaluation.records import records_of
from orbit_kd.exporters import Artifact, export_all, find
from orbit_kd.exporters.metadata import bytes_of, note
from orbit_kd.flight.manifest import write_manifest
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.saving import fingerprint, load_model, save_model
from orbit_kd.pipeline import decisions
from orbit_kd.pipeline.checks import OF_THE_TEACHER, check_job
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import Retraining, lesson_layers, training_of
from orbit_kd.pipeline.sections import report_sections
from orbit_kd.pipeline.trainings import few_levels, in_rounds, plan_of, sparse_training
from orbit_kd.quantization.aware import plain_model
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.reports.report import Report
from orbit_kd.search.evaluator import Evaluator, examples_of
from orbit_kd.support.digests import digest
from orbit_kd.support.files import write_file
from orbit_kd.support.stages import Stages, log
from orbit_kd.tasks import Task


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
    student: keras.Model | None = None,
    workdir: str | os.PathLike[str],
    title: str = "",
    command: str = "",
) -> Compressed:
    """Removes filters, makes the rest sparse and coarse, retrains with the teacher, quantizes, exports, and measures.

    Each stage leaves its result in `workdir`. The same call goes on after a kill; a stage runs anew when its settings,
    the teacher, the data, or a stage before it have changed.

    Args:
        teacher: a trained network, as `load_model` takes it; it is not changed.
        data: training, validation and test examples; the test split is read once, for the report.
        recipe: what to do; the defaults are moderate.
        augment: random changes to the training images the teacher and the student see.
        student: a smaller network that was made of the teacher before, to go on from; None begins with the teacher.
            Ratios are of its widths, and its layers have the teacher's names.
        workdir: folder for the results: student.keras, exported files and their manifest.json, report.json,
            report.html.
        title: of the report.
        command: that repeats this, for the report.

    Raises:
        InputError: bad settings, data that do not fit the teacher, an unwritable folder, a loss that is not finite.
    """
    teacher = as_tf_keras(load_model(teacher), name="teacher")
    first = teacher if student is None else as_tf_keras(load_model(student), name="student")
    recipe, augment = recipe or Recipe(), augment or Augment()
    task, plan = check_job(teacher, first, data, recipe)
    begun = () if student is None else (fingerprint(first),)
    stages = Stages(workdir, digest(fingerprint(teacher), data.key, *begun))
    if plan:
        log.info("%s\n", plan)
    seen = recipe.scan_images  # for a line that people read: no result depends on it
    with stages.stage("teacher", **recipe.settings("teacher")) as (folder, done):
        if not done:
            _tell_of_chance(teacher, data, task, seen)
        originals = _export(teacher, OF_THE_TEACHER, folder, "teacher", data, done, recipe)
    about = note(data.class_names, _preprocess(data), recipe=digest(recipe.to_dict()), **_told(task))
    extra = bytes_of(about, model_bytes(originals[1]))
    decided = decisions.Decisions.from_recipe(recipe)
    if recipe.budgets and recipe.max_drop is None:
        decided = decisions.within_budgets(stages, first, data, recipe, note=extra, task=task)
        plan = plan_of(first, data, recipe, decided)
        log.info("%s\n", plan)
    job = Retraining(stages, teacher, _lessons(stages, teacher, data, recipe, augment, task), data, recipe, task)
    search = None
    if plan is None:
        student, search = decisions.within_drop(job, note=extra)
        last = "search"
    else:
        if recipe.time_budget:
            decided = decisions.within_time(job, remove_filters(first, plan), decided)
        student, last = in_rounds(job, first, plan, decided)
        if decided.pattern != "dense":
            student, last = sparse_training(job, student, decided, after=last), "sparsify"
        if decided.few_levels:
            student, last = few_levels(job, student, decided, after=last), "quantize"
    said = {name: value for name, value in about.items() if name != "versions"}
    with stages.stage("export", after=[last], note=said, **recipe.settings("export")) as (folder, done):
        artifacts = _export(student, recipe.targets, folder, "student", data, done, recipe, about)
        if not done:  # and never again: what happens to the files later is for the manifest to tell
            files = [file for artifact in artifacts for file in artifact.files]
            write_manifest(stages.workdir, files, recipe=about["recipe"], data=data.key)
    if search is not None:
        search = _validated(search, artifacts, data, task, stages)
    measured = _measured(originals, artifacts, data, task, stages)
    student = plain_model(student)
    about_run = {"search": search, "title": title or f"{teacher.name}, compressed", "command": command}
    report = Report(measured | report_sections(measured, job, student, artifacts, decided, augment) | about_run)
    save_model(student, stages.workdir / "student.keras")
    report.save(stages.workdir)
    return Compressed(student, tuple(artifacts), report)


def _tell_of_chance(teacher: keras.Model, data: Data, task: Task, images: int) -> None:
    """Says before hours are spent what the teacher knows, and warns of one that only guesses."""
    _, batches = examples_of(data.val, images, model=teacher, task=task)
    whole = Evaluator(teacher, batches, memory=0, task=task).measure()
    said, guess = task.metric.text(whole.accuracy), task.chance(whole.each[0])
    told = f"{said} of" if task.metric.key == "accuracy" else f"{task.metric.name} {said} on"
    log.info("teacher: %s %d validation images", told, whole.images)
    if guess is not None and whole.accuracy <= guess:
        log.warning(
            "teacher: that is no better than %s. Do the images reach it as in its training (tools/evaluate.py "
            "--expected_accuracy tells), and are the classes in its order?",
            f"the commonest class for all ({task.metric.text(guess)})" if task.metric.key == "accuracy"
            else f"an answer that never looks at the image ({task.metric.text(guess)})",
        )  # fmt: skip


def _told(task: Task) -> dict[str, Any]:
    """What a file says of its task; a file without a word is a classifier's, as its shape tells."""
    return {} if task.name == "classification" else {"task": task.config()}


def _lessons(
    stages: Stages, teacher: keras.Model, data: Data, recipe: Recipe, augment: Augment, task: Task
) -> TeacherCache:
    """What the teacher says about the training images."""
    layers = lesson_layers(teacher, recipe, task)
    settings = {"layers": layers, "augment": augment.to_dict(), **recipe.settings("lessons")}
    training = training_of(recipe, teacher, data=data, task=task, augment=augment)
    with stages.stage("lessons", **settings) as (folder, _):
        return training.lessons(layers, folder=folder, key=stages.keys["lessons"])


def _export(
    model: keras.Model, names: tuple[str, ...], folder: Path, stem: str, data: Data, done: bool, recipe: Recipe,
    metadata: dict[str, Any] | None = None,
) -> list[Artifact]:  # fmt: skip
    if not done:
        plain, about = plain_model(model), {"calibration": data.train, "samples": recipe.calibration}
        of_int8 = [name for name in names if "tflite_int8" in (name, find(name)[0].made_of)]
        written = {
            name: artifact
            for source, part in ((model, of_int8), (plain, [name for name in names if name not in of_int8]))
            for name, artifact in zip(
                part, export_all(source, part, folder=folder, stem=stem, metadata=metadata, **about), strict=True
            )
        }
        write_file(folder / "artifacts.json", json.dumps([written[name].to_dict(folder) for name in names]))
    return [Artifact.from_dict(a, folder) for a in json.loads((folder / "artifacts.json").read_text())]


def _validated(
    search: dict[str, Any], artifacts: list[Artifact], data: Data, task: Task, stages: Stages
) -> dict[str, Any]:
    """The story of the search with what the shipped file reaches on the images it was chosen by."""
    by_target = {file.target: file for file in reversed(artifacts)}
    file = by_target.get(search["file"]) or by_target.get("tflite_int8") or artifacts[0]
    with stages.stage("validation", after=["export"]) as (folder, done):
        if not done:
            runner = runtimes.load(model_bytes(file), runtime=find(file.target)[0].runtime or "litert")
            reached = task.value(records_of({"student": runner}, data.val, task=task)["student"])
            write_file(folder / "validation.json", json.dumps({"accuracy": reached}))
        reached = json.loads((folder / "validation.json").read_text())["accuracy"]
    verdict = search["verdict"]
    if reached < search["target"] and not verdict.startswith("below"):
        verdict = "below what was asked, as the exported file reads other than the one of the search"
    log.info("validation: %s (%s), %s", task.metric.text(reached), file.target, verdict)
    return {**search, "reached": reached, "target_file": file.target, "verdict": verdict}


def _measured(
    originals: list[Artifact], artifacts: list[Artifact], data: Data, task: Task, stages: Stages
) -> dict[str, Any]:
    """The figures of the exported files on the test split, which is read once."""
    names = list(data.class_names)
    with stages.stage("report", after=["teacher", "export"], class_names=names, task=task.config()) as (folder, done):
        if not done:
            report = evaluate(artifacts, data.test, teacher=originals[0], teacher_artifacts=originals,
                              class_names=names or None, task=task)  # fmt: skip
            write_file(folder / "measured.json", json.dumps(report.data))
        return json.loads((folder / "measured.json").read_text())


def _preprocess(data: Data) -> dict[str, Any] | None:
    return data.preprocess.to_dict() if data.preprocess else None
