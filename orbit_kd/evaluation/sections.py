"""The parts of a report on exported files: sizes, scores, comparison with the teacher, speed, ratios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from orbit_kd.evaluation import latency as timing
from orbit_kd.evaluation.outputs import model_bytes
from orbit_kd.exporters import Artifact
from orbit_kd.reports.summary import main_artifact
from orbit_kd.tasks import Records, Task
from orbit_kd.tflite.summary import TfliteSummary, read


def zeros_added(reference: TfliteSummary, quantized: TfliteSummary) -> int | None:
    """Parameters != 0 in the float file and 0 in the quantized one; None where their operators do not match."""
    before, after = ([op for op in file.ops if op.params] for file in (reference, quantized))
    if [(op.op, op.weight_shape, op.params) for op in before] != [(op.op, op.weight_shape, op.params) for op in after]:
        return None
    return sum(a.nonzero - b.nonzero for a, b in zip(before, after, strict=True))


def ratios(data: Mapping[str, Any]) -> dict[str, float]:
    """How much smaller the student is than the teacher, from the sections of a report; empty without a teacher.

    `bytes` and `gzip_bytes` are of the file the report's headline is about; `float32_bytes` compares float to float.
    """
    teacher, student, file = data["teacher"], data["student"], main_artifact(dict(data))
    if not teacher:
        return {}
    found = {
        "params": teacher["params"] / max(1, student["params"]),
        "nonzero_params": teacher["params"] / max(1, student["nonzero_params"]),
        "parameters_gone": 1 - student["nonzero_params"] / teacher["params"],
        "bytes": teacher["tflite_bytes"] / file["bytes"],
        "gzip_bytes": teacher["gzip_bytes"] / file["gzip_bytes"],
    }
    if teacher["macs"] is not None and student["macs"] is not None:
        found["macs"] = teacher["macs"] / max(1, student["macs"])
    float32 = next((a for a in data["artifacts"] if a["target"] == "tflite_float32"), None)
    return found | ({"float32_bytes": teacher["tflite_bytes"] / float32["bytes"]} if float32 else {})


def scores(task: Task, records: Records) -> dict[str, Any]:
    """The task's metric, and what else it tells."""
    return {"metric": task.value(records), **task.details(records)}


def teacher_section(
    file: Artifact | None, model: bytes | None, task: Task, records: Mapping[str, Records]
) -> dict[str, Any] | None:
    if file is None or model is None:
        return None
    summary = read(model)
    sizes = {"params": summary.params, "nonzero_params": summary.nonzero_params, "macs": _known(summary.macs),
             "tflite_bytes": file.bytes, "gzip_bytes": file.gzip_bytes}  # fmt: skip
    return sizes | scores(task, records["teacher"])


def student_section(artifact: Artifact, summary: TfliteSummary, task: Task, records: Records) -> dict[str, Any]:
    counts = {"params": summary.params, "nonzero_params": summary.nonzero_params, "macs": _known(summary.macs),
              "macs_nonzero": _known(summary.macs_nonzero), "measured_from": artifact.target}  # fmt: skip
    return counts | scores(task, records)


def _known(macs: float) -> float | None:
    """None for the multiply-accumulates of a file that does not tell how often its loops run."""
    return None if math.isnan(macs) else macs


def sizes(artifact: Artifact) -> dict[str, Any]:
    """What is known of any file without running it."""
    return {"target": artifact.target, "path": str(artifact.path), "bytes": artifact.bytes,
            "gzip_bytes": artifact.gzip_bytes, "details": artifact.details}  # fmt: skip


def speed(
    artifact: Artifact, model: bytes, against: Mapping[str, Artifact], *, runs: int, threads: int
) -> dict[str, Any]:
    """The student's file timed against the teacher's file of the same target."""
    if artifact.target not in against:
        return {"latency": None, "latency_why": f"no {artifact.target} file of the teacher to compare with"}
    teacher, student = timing.latency([model_bytes(against[artifact.target]), model], runs=runs, threads=threads)
    return {
        "latency": dataclasses.asdict(student)
        | {"against": f"teacher {artifact.target}", "against_milliseconds": teacher.milliseconds},
        "latency_why": None,
    }
