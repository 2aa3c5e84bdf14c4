"""What a report tells beside the measured figures: layers, settings, stages, and what was decided on the way."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from orbit_kd.channels.profiles import profile
from orbit_kd.datasets.augment import Augment
from orbit_kd.exporters import Artifact
from orbit_kd.pipeline.decisions import Decisions, target_of
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.pipeline.retraining import Retraining
from orbit_kd.sparsity.table import sparsity_table

log = logging.getLogger("orbit_kd")


def report_sections(
    measured: dict[str, Any], job: Retraining, student: keras.Model, files: Sequence[Artifact], decided: Decisions,
    augment: Augment,
) -> dict[str, Any]:  # fmt: skip
    """The sections of the report that tell how the figures came about."""
    recipe = job.recipe
    before = {row.name: row for row in profile(job.teacher).layers}
    sparse = {row.layer: row for row in sparsity_table(student).rows}
    layers = []
    for after in profile(student).layers:
        was, zeros = before[after.name], sparse.get(after.name)
        if after.macs:
            layers.append({
                "name": after.name, "type": after.type, "width_before": was.width, "width_after": after.width,
                "params_before": was.params, "params_after": after.params, "nonzero_after": after.nonzero_params,
                "density": zeros.density if zeros else after.nonzero_params / after.params,
                "pattern": zeros.pattern if zeros else "", "macs_before": was.macs, "macs_after": after.macs,
            })  # fmt: skip
    data = job.data
    artifacts = [{**row, "path": os.path.relpath(file.path, job.stages.workdir)}
                 for row, file in zip(measured["artifacts"], files, strict=True)]  # fmt: skip
    return {
        "teacher": {"name": job.teacher.name, **measured["teacher"]},
        "artifacts": artifacts,
        "layers": layers,
        "history": job.history,
        "stages": job.stages.seconds,
        "recipe": {**recipe.to_dict(), "augment": augment.to_dict()},
        "preprocess": data.preprocess.to_dict() if data.preprocess else None,
        "data": {**dict(data.counts), **measured["data"], "fingerprint": data.fingerprint},
        "seed": recipe.seed,
        "chosen": decided.changes(recipe),
        "notes": _notes(measured, decided.pattern, recipe),
    }


def _notes(measured: dict[str, Any], pattern: str, recipe: Recipe) -> list[str]:
    notes = []
    counts = target_of(recipe)
    larger = [a for a in measured["artifacts"] if a["target"] == counts and a["bytes"] > (
        recipe.max_bytes or math.inf)]  # fmt: skip
    if larger:  # bytes of a coded file are predicted, and training moves them
        notes.append(
            f"The {counts} file has {larger[0]['bytes']:,} bytes, more than max_bytes={recipe.max_bytes:,.0f}."
        )
        log.warning("%s", notes[-1])
    if pattern != "dense":
        notes.append(
            f"The {pattern} zeros make no CPU faster and no plain file smaller by themselves: they pay off in "
            "tflite_micro_coded, after gzip, and on hardware that skips them, such as an Ethos-U85."
        )
    slower = [a for a in measured["artifacts"] if a.get("latency") and a["latency"]["ratio"] < 0.5 * (
        measured["ratios"].get("macs") or 0)]  # fmt: skip
    if slower:
        notes.append("Fewer MACs are not as much less time: the speed-up is less than half of the ratio of MACs.")
    return notes
