"""`compress`: the whole job, as nothing but the composition of the public functions."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd import automatic, budgets
from orbit_kd.channel_graph import ChannelGraph
from orbit_kd.conversion import as_tf_keras
from orbit_kd.datasets import Data
from orbit_kd.distillation import cache_teacher
from orbit_kd.errors import InputError
from orbit_kd.evaluation import evaluate, logits, model_bytes
from orbit_kd.exporters import Artifact, check, export_all
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
from orbit_kd.retraining import Retraining, lesson_layers, losses_of
from orbit_kd.scan_evaluation import Evaluator, batches_of
from orbit_kd.sparsity import sparsify, strip
from orbit_kd.stages import Stages, log
from orbit_kd.story import chosen, story
from orbit_kd.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.training import check_fit

_OF_THE_TEACHER = ("tflite_float32", "tflite_int8")  # what the student's files are compared with


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
        teacher: a trained classifier (logits or softmax), as `load_model` takes it; it is not changed.
        data: training, validation and test examples; the test split is read once, for the report.
        recipe: what to do; the defaults are moderate.
        augment: random changes to the training images the teacher and the student see.
        workdir: folder for the results: student.keras, exported files, report.json, report.html.
        title: of the report.
        command: that repeats this, for the report.

    Raises:
        InputError: bad settings, data that do not fit the teacher, an unwritable folder, a loss that is not finite.
    """
    teacher = as_tf_keras(load_model(teacher), name="teacher")
    asked, augment = recipe or Recipe(), augment or Augment()
    recipe = asked
    _check(teacher, data, recipe)
    if not _automatic(recipe):
        log.info("%s\n", _first_plan(teacher, data, recipe))
    stages = Stages(workdir, digest(fingerprint(teacher), data.key))
    with stages.stage("teacher", apart=True, calibration=recipe.calibration) as (folder, done):
        if not done:
            _tell_of_chance(teacher, data, recipe.scan_images)
        originals = _export(teacher, _OF_THE_TEACHER, folder, "teacher", data, done, recipe)
    about = note(data.class_names, _preprocess(data), recipe=digest(recipe.to_dict()))
    extra = bytes_of(about, model_bytes(originals[1]))
    if recipe.budgets and recipe.max_drop is None:
        recipe = automatic.choose_ratios(stages, teacher, data, recipe, note=extra)
        log.info("%s\n", _first_plan(teacher, data, recipe))
    layers = lesson_layers(teacher, recipe)
    settings: dict[str, Any] = {
        "views": recipe.views,
        "augment": augment.to_dict(),
        "seed": recipe.seed,
        "layers": layers,
    }
    with stages.stage("lessons", **settings) as (folder, _):
        views = data.renderings(recipe.views, seed=recipe.seed, augment=augment)
        lessons = cache_teacher(teacher, views, path=folder, seed=recipe.seed, layers=layers, data_key=stages.key)
    retraining = Retraining(stages, teacher, lessons, data)
    found: dict[str, Any] | None = None
    if recipe.max_drop is not None:
        smallest, found = automatic.search_student(retraining, recipe, note=extra)
        recipe = automatic.fit_epochs(retraining, smallest, recipe)
        student = retraining.stage("distill", lambda: smallest, recipe, epochs=recipe.epochs)
    else:
        smaller = remove_filters(teacher, _first_plan(teacher, data, recipe)) if recipe.time_budget else teacher
        recipe = automatic.fit_epochs(retraining, smaller, recipe)
        student = teacher
        for number in range(1, recipe.rounds + 1):
            student = _removal_round(retraining, student, recipe, number)
    if recipe.pattern != "dense":
        student = _sparse_training(retraining, student, recipe)
    said = {name: value for name, value in about.items() if name != "versions"}
    with stages.stage("export", targets=recipe.targets, calibration=recipe.calibration, note=said) as (folder, done):
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
    report = Report(report.data | story(report.data, retraining, student, artifacts, asked, recipe.pattern, augment)
                    | {"search": found, "chosen": chosen(asked, recipe)}
                    | {"title": title or f"{teacher.name}, compressed", "command": command})  # fmt: skip
    save_model(student, stages.workdir / "student.keras")
    report.save(stages.workdir)
    return Compressed(student, tuple(artifacts), report)


def _check(teacher: keras.Model, data: Data, recipe: Recipe) -> None:
    """All that can be refused before hours are spent."""
    if not isinstance(data, Data):
        raise InputError(
            f"compress got a {type(data).__name__} as its data.",
            expected="training, validation and test examples in one okd.Data",
            fix="okd.Data(train, val, test), each as Keras' fit takes it; or okd.load(folder)",
        )
    check_fit(teacher, data)
    criteria.get(recipe.criterion)
    losses_of(recipe)
    check(teacher, (*_OF_THE_TEACHER, *recipe.targets))
    if _automatic(recipe):
        budgets.limits(ChannelGraph(teacher, unknown=recipe.unknown), recipe.budgets)
    plan = _first_plan(teacher, data, recipe)
    if recipe.pattern != "dense":
        _sparse(remove_filters(teacher, plan), recipe, steps=1)


def _tell_of_chance(teacher: keras.Model, data: Data, images: int) -> None:
    """Says before hours are spent what the teacher knows, and warns of one that only guesses."""
    batches = batches_of(data.val, images)
    right = Evaluator(teacher, batches, memory=0).measure(None)[0]
    labels = np.concatenate([y for _, y in batches])
    guess = np.bincount(labels).max() / len(labels)
    log.info("teacher: %.2f%% of %d validation images", 100 * right, len(labels))
    if right <= guess:
        log.warning(
            "teacher: that is no better than the commonest class for all (%.2f%%). Do the images reach it as in its "
            "training (tools/evaluate.py --expected_accuracy tells), and are the classes in its order?", 100 * guess,
        )  # fmt: skip


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


_OF_A_REMOVAL = ("criterion", "seed", "ratio", "ratios", "rounds", "round_to", "min_channels", "exclude", "unknown")
_OF_A_PATTERN = ("pattern", "sparsity", "sparsities", "schedule", "sparse_exclude")


def _removal_round(retraining: Retraining, student: keras.Model, recipe: Recipe, number: int) -> keras.Model:
    data, settings = retraining.data, {name: recipe.to_dict()[name] for name in _OF_A_REMOVAL}
    with retraining.stages.stage(f"remove_{number}", round=number, **settings) as (folder, done):
        if not done:
            plan = _plan(student, data, recipe)
            smaller = remove_filters(student, plan)
            recalibrate_batchnorm(smaller, data.train)
            write_file(folder / "plan.json", plan.to_json())
            save_model(smaller, folder / "student.keras")
        smaller = load_model(folder / "student.keras")
    epochs = recipe.epochs * number // recipe.rounds - recipe.epochs * (number - 1) // recipe.rounds
    return retraining.stage(f"distill_{number}", lambda: smaller, recipe, epochs=epochs)


def _sparse_training(retraining: Retraining, student: keras.Model, recipe: Recipe) -> keras.Model:
    epochs = recipe.sparse_epochs
    steps = max(1, epochs * retraining.lessons.steps(recipe.batch_size))
    return retraining.stage(
        "sparsify",
        lambda: _sparse(student, recipe, steps=steps),
        recipe,
        epochs=epochs,
        finish=lambda sparse: strip(sparse, finish=epochs == 0),
        **{name: recipe.to_dict()[name] for name in _OF_A_PATTERN},
    )


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


def _export(
    model: keras.Model, names: tuple[str, ...], folder: Path, stem: str, data: Data, done: bool, recipe: Recipe,
    metadata: dict[str, Any] | None = None,
) -> list[Artifact]:  # fmt: skip
    if not done:
        written = export_all(
            model, names, folder=folder, stem=stem, calibration=data.train, samples=recipe.calibration,
            metadata=metadata,
        )  # fmt: skip
        write_file(folder / "artifacts.json", json.dumps([a.to_dict(folder) for a in written]))
    return [Artifact.from_dict(a, folder) for a in json.loads((folder / "artifacts.json").read_text())]


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
