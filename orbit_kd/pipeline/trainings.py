"""The trainings of a recipe: removal in rounds, zeros, few levels; each a stage that goes on where it was killed."""

from __future__ import annotations

import functools

import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.pipeline.decisions import Decisions
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import Retraining
from orbit_kd.quantization.aware import quantize_aware
from orbit_kd.removal.plan import RemovalPlan
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.rounds import ratio_of_round
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.support.files import write_file


def plan_of(model: keras.Model, data: Data, recipe: Recipe, decided: Decisions, *, rounds: int = 1) -> RemovalPlan:
    """What goes in one of so many equal rounds."""
    return plan_removal(
        model,
        criterion=recipe.criterion,
        ratio=ratio_of_round(decided.ratio, rounds),
        ratios={name: ratio_of_round(ratio, rounds) for name, ratio in decided.ratios.items()},
        round_to=recipe.round_to,
        min_channels=recipe.min_channels,
        exclude=recipe.exclude,
        unknown=recipe.unknown,
        data=data.train,
        seed=recipe.seed,
    )


def in_rounds(job: Retraining, first: keras.Model, plan: RemovalPlan, decided: Decisions) -> tuple[keras.Model, str]:
    """The student after all rounds of removal, each with its training, and the name of its last stage."""
    recipe, student, last = job.recipe, first, ""
    removal = recipe.settings("remove") | {"ratio": decided.ratio, "ratios": dict(decided.ratios)}
    for number in range(1, recipe.rounds + 1):
        name, after = f"remove_{number}", [last] if last else []
        with job.stages.stage(name, after=after, round=number, **removal) as (folder, done):
            if not done:
                if recipe.rounds > 1:  # the given plan is that of all rounds at once
                    plan = plan_of(student, job.data, recipe, decided, rounds=recipe.rounds)
                smaller = remove_filters(student, plan)
                recalibrate_batchnorm(smaller, job.data.train)
                write_file(folder / "plan.json", plan.to_json())
                save_model(smaller, folder / "student.keras")
            path = folder / "student.keras"
        epochs = decided.epochs * number // recipe.rounds - decided.epochs * (number - 1) // recipe.rounds
        last = f"distill_{number}"
        student = job.stage(last, functools.partial(load_model, path), after=[name],
                            settings=recipe.settings("distill"), epochs=epochs)  # fmt: skip
    return student, last


def sparse_training(job: Retraining, student: keras.Model, decided: Decisions, *, after: str) -> keras.Model:
    epochs = decided.sparse_epochs
    steps = max(1, epochs * job.lessons.steps(job.recipe.batch_size))
    return job.stage(
        "sparsify",
        lambda: sparse_student(student, job.recipe, decided, steps=steps),
        after=[after],
        settings=job.recipe.settings("sparsify")
        | {"pattern": decided.pattern, "sparsities": dict(decided.sparsities), "sparse_epochs": epochs},
        epochs=epochs,
        finish=lambda sparse: strip(sparse, finish=epochs == 0),
    )


def sparse_student(student: keras.Model, recipe: Recipe, decided: Decisions, *, steps: int) -> keras.Model:
    """The student under its pattern; a gradual schedule is through after half of the steps."""
    gradual = recipe.schedule not in ("constant", "one_shot", "sr_ste")
    return sparsify(
        student,
        decided.pattern,
        sparsity=(decided.sparsities or recipe.sparsity) if decided.pattern == "magnitude" else None,
        scope="layer" if decided.sparsities else recipe.sparsity_scope,
        schedule=recipe.schedule,
        end_step=max(1, steps // 2) if gradual else None,
        exclude=recipe.sparse_exclude,
    )


def few_levels(job: Retraining, student: keras.Model, decided: Decisions, *, after: str) -> keras.Model:
    """The student trained with the rounding of its int8 file: quantization-aware."""
    recipe = job.recipe

    def make() -> keras.Model:
        return quantize_aware(
            student, bits=decided.bits_by_pattern, calibration=job.data.train, samples=recipe.calibration,
            seed=recipe.seed,
        )  # fmt: skip

    settings = recipe.settings("quantize") | {"bits": decided.bits_by_pattern}
    return job.stage("quantize", make, after=[after], settings=settings, epochs=decided.quantize_epochs)
