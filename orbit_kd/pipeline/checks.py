"""What can be refused before hours are spent."""

from __future__ import annotations

import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.channels.profiles import profile
from orbit_kd.datasets import Data
from orbit_kd.errors import InputError
from orbit_kd.exporters import check
from orbit_kd.pipeline.decisions import Decisions
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import losses_of
from orbit_kd.pipeline.trainings import plan_of, sparse_student
from orbit_kd.quantization.aware import quantize_aware
from orbit_kd.removal import budgets
from orbit_kd.removal.importance import criteria
from orbit_kd.removal.plan import RemovalPlan
from orbit_kd.removal.planning import check_names
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.support.stages import log
from orbit_kd.tasks import Task, choose
from orbit_kd.training.fit import check_fit

OF_THE_TEACHER = ("tflite_float32", "tflite_int8")  # what the student's files are compared with


def check_job(
    teacher: keras.Model, first: keras.Model, data: Data, recipe: Recipe
) -> tuple[Task, RemovalPlan | None]:  # fmt: skip
    """Refuses before hours are spent what can be.

    Returns:
        The task, and the plan of what goes; None where a scan or a search decides.
    """
    if not isinstance(data, Data):
        raise InputError(
            f"compress got a {type(data).__name__} as its data.",
            expected="training, validation and test examples in one okd.Data",
            fix="okd.Data(train, val, test), each as Keras' fit takes it; or okd.load(folder)",
        )
    task = choose(teacher, data, task=recipe.task, outputs=recipe.output_tasks, weights=recipe.output_weights)
    check_fit(teacher, data, task=task)
    log.info("task: %s, measured by %s", task.name.replace("_", " "), task.metric.name)
    if first is not teacher:
        _check_student(teacher, first, data, recipe, task)
    criteria.get(recipe.criterion)
    if recipe.shrink is not None:
        budgets.costs.get(f"max_{recipe.shrink}")
    losses_of(recipe, task)
    check(teacher, (*OF_THE_TEACHER, *recipe.targets))
    plan, smaller = None, first
    if recipe.budgets or recipe.max_drop is not None:
        graph = ChannelGraph(first, unknown=recipe.unknown)
        check_names(graph, recipe.exclude)
        budgets.limits(graph, recipe.budgets)
    else:
        plan = plan_of(first, data, recipe, Decisions.from_recipe(recipe))
        smaller = remove_filters(first, plan)
    as_asked = Decisions.from_recipe(recipe)
    if recipe.pattern != "dense":
        sparse_student(smaller, recipe, as_asked, steps=1)
    if as_asked.few_levels:
        quantize_aware(smaller, bits=as_asked.bits_by_pattern)
    return task, plan


def _check_student(teacher: keras.Model, student: keras.Model, data: Data, recipe: Recipe, task: Task) -> None:
    """Raises InputError for a student that was not made of the teacher, or where only the teacher can be begun with."""
    check_fit(student, data, task=task)
    known = {layer.name for layer in profile(teacher).layers}
    missing = [layer.name for layer in profile(student).layers if layer.params and layer.name not in known]
    if missing:
        raise InputError(
            f"The student has layers that the teacher has not: {', '.join(missing[:5])}.",
            expected="a network that remove_filters or compress made of this teacher",
            fix="give that one, or leave the student out; any other pair is taught by tools/distill.py",
        )
    if recipe.max_drop is not None:
        raise InputError(
            "max_drop searches from the teacher on, and a student was given.",
            expected="one of the two",
            fix="leave the student out, or give ratios or budgets in place of max_drop",
        )
