"""Measures exported files on the test set: accuracy, size, zeros, latency, TFLite Micro. Nothing here is estimated."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orbit_kd import runtimes
from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.evaluation.outputs import model_bytes
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.evaluation.pictures import Worst
from orbit_kd.evaluation.records import records_of
from orbit_kd.evaluation.running import file_inputs
from orbit_kd.evaluation.sections import (
    ratios,
    scores,
    sizes,
    speed,
    student_section,
    teacher_section,
    zeros_added,
)
from orbit_kd.evaluation.task_of_files import task_of
from orbit_kd.exporters import Artifact, export, find, open_artifact
from orbit_kd.reports.report import Report
from orbit_kd.reports.summary import main_artifact
from orbit_kd.support.versions import versions
from orbit_kd.tasks import Records, Task
from orbit_kd.tflite.summary import read

log = logging.getLogger("orbit_kd")


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of the student: what runs it, its name among the outputs, and the flatbuffer; b"" without one."""

    artifact: Artifact
    runtime: str
    name: str
    model: bytes


def evaluate(
    artifacts: Artifact | str | os.PathLike[str] | Sequence[Artifact | str | os.PathLike[str]],
    test: Any,
    *,
    teacher: Any = None,
    teacher_artifacts: Sequence[Artifact] = (),
    task: str | Task = "auto",
    class_names: Sequence[str] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    threads: int = 1,
    latency_runs: int = 50,
    tflm_images: int = 200,
) -> Report:
    """Runs every exported file on the test set and reports what was gained and what was lost against the teacher.

    The student's params and zeros are those of its "tflite_float32" file, where one is among the artifacts; else those
    of the smallest file, and `student.measured_from` says which.

    Args:
        artifacts: exported files of the student, as `export` returns them, or paths.
        test: batches (x, y): x real numbers (batch, ...) after Preprocess, y labels as the task has them.
        teacher: a model of tf_keras or Keras 3, which is exported to "tflite_float32" and measured there; or that file
            (an Artifact or a path); or None, which leaves the comparison out.
        teacher_artifacts: further files of the teacher. A student's file is timed against the teacher's file of the
            same target.
        task: what the files are for, a name in `orbit_kd.tasks` or a task; "auto" asks the teacher and the files.
        class_names: for the report.
        workdir: where the teacher's file is kept; None for a temporary folder.
        threads: LiteRT threads for the latencies; accuracy uses all cores.
        latency_runs: rounds of interleaved timing.
        tflm_images: how many test images (a seeded random sample) TFLite Micro is compared on.

    Raises:
        InputError: no artifacts, a teacher file of another target, files and labels of another task, or what
            `records_of` raises.
    """
    from orbit_kd.datasets.batches import as_batches  # loads TensorFlow

    given = [artifacts] if isinstance(artifacts, (Artifact, str, os.PathLike)) else artifacts
    files = [_file(number, item) for number, item in enumerate(given)]
    students = [file for file in files if file.model]
    if not students:
        raise InputError(
            f"No TensorFlow Lite file among {len(files)} artifacts.",
            expected="at least one: sizes, zeros and multiply-accumulates are counted in it",
            fix="export the student to tflite_int8 as well",
        )
    inputs = file_inputs(students[0].model)
    test = as_batches(test, what="test data", labels=True, again=True, inputs=inputs)
    with _teacher_file(teacher, workdir) as teacher_file:
        running: dict[str, Any] = {"teacher": model_bytes(teacher_file)} if teacher_file else {}
        for model in running.values():
            runtimes.probe(model)
        for file in students:
            runtimes.probe(file.model, runtime=file.runtime)
        for file in files:
            if file.runtime:
                running[file.name] = runtimes.load(
                    file.model or file.artifact.path, runtime=file.runtime, threads=os.cpu_count() or 1
                )
        of = task_of(students, teacher, test, task=task)
        reference = next((file for file in students if file.artifact.target == "tflite_float32"), None)
        base = reference or min(students, key=lambda file: file.artifact.bytes)
        shown = main_artifact({"artifacts": [dataclasses.asdict(file.artifact) for file in students]})
        worst = Worst(of, student=_named(students, shown), teacher="teacher" if teacher_file else "")
        outputs = records_of(running, test, task=of, threads=os.cpu_count() or 1, watch=worst if of.draws else None)
        some = next(iter(outputs.values()))
        _check_classes(of, some, class_names)
        counted = read(base.model)
        data: dict[str, Any] = {
            "teacher": teacher_section(teacher_file, running.get("teacher"), of, outputs),
            "student": student_section(base.artifact, counted, of, outputs[base.name]),
            "task": {"kind": of.name, **dataclasses.asdict(of.metric)},
            "artifacts": [],
        }
        images = calibration_sample(test, samples=tflm_images, inputs=inputs)
        against = {a.target: a for a in (*([teacher_file] if teacher_file else []), *teacher_artifacts)}
        for file in files:
            row = sizes(file.artifact)
            if file.name in outputs:
                values = outputs[file.name]
                row |= scores(of, values)
                if "teacher" in outputs:
                    row |= of.compare(outputs["teacher"], values)
            if file.model:
                summary = counted if file is base else read(file.model)
                row |= {"density": summary.density, "params": counted.params, "nonzero_params": counted.nonzero_params,
                        "sparse_encoded": summary.sparse,
                        "zeros_from_int8": None if reference is None else zeros_added(counted, summary)}  # fmt: skip
                if file.runtime == "litert":
                    row |= speed(file.artifact, file.model, against, runs=latency_runs, threads=threads)
                else:
                    row |= {"latency": None, "latency_why": "only TensorFlow Lite Micro runs the file"}
                row["tflm"] = dataclasses.asdict(tflm_parity(file.model, images))
            data["artifacts"].append(row)
    data["pictures"] = worst.rows()
    data["ratios"] = ratios(data)
    data["class_names"] = None if class_names is None else list(class_names)
    data["data"] = {"test": len(some)}
    data["versions"] = versions()
    return Report(data)


def _check_classes(task: Task, records: Records, class_names: Sequence[str] | None) -> None:
    """Refuses names that are not one a class, and labels that say nothing; warns of classes without an example."""
    classes = getattr(task, "classes", None)
    if class_names is not None and classes is not None and task.name != "detection" and len(class_names) != classes:
        raise InputError(
            f"The numbers of classes differ: {len(class_names)} class names, {classes} classes of the network.",
            expected="one name a class",
            fix="give the names of the data that the network was trained on",
        )
    task.check_labels(task.truth_in(records), what="test data")
    counts = [sum(row) for row in task.details(records).get("confusion", [])]
    if missing := [str(i) for i, count in enumerate(counts) if not count]:
        log.warning("evaluate: the test data has no example of the classes %s", ", ".join(missing))


def _named(files: Sequence[_File], artifact: Mapping[str, Any]) -> str:
    """The name among the outputs of the file that a report's headline is about."""
    return next(file.name for file in files if file.artifact.target == artifact["target"])


def _file(number: int, item: Artifact | str | os.PathLike[str]) -> _File:
    artifact = _artifact(item)
    runtime = find(artifact.target)[0].runtime
    model = model_bytes(artifact) if runtime in ("litert", "tflm") else b""
    runtime = runtimes.made_for(model) if model else runtime
    return _File(artifact, runtime, f"{number} ({artifact.path.name})", model)


def _artifact(item: Artifact | str | os.PathLike[str]) -> Artifact:
    return item if isinstance(item, Artifact) else open_artifact(item)


@contextlib.contextmanager
def _teacher_file(teacher: Any, workdir: str | os.PathLike[str] | None) -> Iterator[Artifact | None]:
    """The teacher's tflite_float32 file, exported if need be."""
    if teacher is None:
        yield None
        return
    if isinstance(teacher, (Artifact, str, os.PathLike)):
        artifact = _artifact(teacher)
        if artifact.target != "tflite_float32":
            raise InputError(
                f"The teacher's file {artifact.path} is of the target {artifact.target}.",
                expected="tflite_float32: params and byte ratios are counted from it",
                fix="pass the tf_keras teacher, and this file in teacher_artifacts",
            )
        yield artifact
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(workdir or folder, "teacher_float32.tflite")
        yield export(teacher, "tflite_float32", path=path)
