"""Measures exported files on the test set: accuracy, size, zeros, latency, TFLite Micro. Nothing here is estimated."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.datasets.batches import as_batches
from orbit_kd.datasets.labels import check_several, class_numbers
from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.evaluation import latency as timing
from orbit_kd.evaluation.metrics import accuracy, confusion_matrix, mcnemar
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import Artifact, export, find, open_artifact
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.reports.report import Report
from orbit_kd.reports.words import shipped
from orbit_kd.support.progress import track
from orbit_kd.support.versions import versions
from orbit_kd.tflite.reader import read_bytes
from orbit_kd.tflite.summary import TfliteSummary, read

log = logging.getLogger("orbit_kd")


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of the student: what runs it, its name among the outputs, and the flatbuffer that "litert" runs."""

    artifact: Artifact
    runtime: str
    name: str
    model: bytes


def zeros_added(reference: TfliteSummary, quantized: TfliteSummary) -> int | None:
    """Parameters != 0 in the float file and 0 in the quantized one; None where their operators do not match."""
    before, after = ([op for op in file.ops if op.params] for file in (reference, quantized))
    if [(op.op, op.weight_shape, op.params) for op in before] != [(op.op, op.weight_shape, op.params) for op in after]:
        return None
    return sum(a.nonzero - b.nonzero for a, b in zip(before, after, strict=True))


def model_bytes(artifact: Artifact) -> bytes:
    """The flatbuffer that an artifact holds: the .tflite file, or the bytes in its C array.

    Raises:
        InputError: the file is gone or damaged.
    """
    return read_c_array(artifact.path) if artifact.path.suffix == ".cc" else read_bytes(artifact.path)


def logits(
    models: Mapping[str, runtimes.Model | runtimes.Runner], test: Any, *, threads: int = 1
) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs several files on the test set in one pass, so that their outputs belong to the same images in any order.

    Args:
        models: name -> path or bytes of a .tflite file, or what `runtimes.load` gave for a file of any kind.
        test: batches (x, y): x real numbers (batch, ...) after Preprocess; y integers (batch,) or one-hot
            (batch, classes).
        threads: LiteRT threads.

    Returns:
        labels (n,) int64, and name -> float32 outputs (n, classes).

    Raises:
        InputError: an empty test set, labels the outputs cannot hold, outputs that are not finite, or what
            `runtimes.load` and `runtimes.run` raise.
    """
    runners: dict[str, runtimes.Runner] = {
        name: runtimes.load(model, threads=threads) if isinstance(model, (str, os.PathLike, bytes)) else model
        for name, model in models.items()
    }
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in runners}
    labels: list[np.ndarray] = []
    shapes = {runner.input.shape for runner in runners.values()}
    inputs = {"image": shapes.pop()} if len(shapes) == 1 else None
    for given, y, _ in track(as_batches(test, what="test data", labels=True, inputs=inputs), "test set"):
        x = np.asarray(given)
        labels.append(class_numbers(y))
        for name, runner in runners.items():
            outputs[name].append(runtimes.run(runner, x).reshape(len(x), -1))
    if not labels or not sum(map(len, labels)):
        raise InputError("The test data is empty.", expected="at least one batch (x, y)", fix="check the test split")
    truth = np.concatenate(labels)
    joined = {name: np.concatenate(parts) for name, parts in outputs.items()}
    for name, values in joined.items():
        _check_outputs(name, values, truth)
    return truth, joined


def evaluate(
    artifacts: Artifact | str | os.PathLike[str] | Sequence[Artifact | str | os.PathLike[str]],
    test: Any,
    *,
    teacher: Any = None,
    teacher_artifacts: Sequence[Artifact] = (),
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
        test: batches (x, y) as for `logits`.
        teacher: a model of tf_keras or Keras 3, which is exported to "tflite_float32" and measured there; or that file
            (an Artifact or a path); or None, which leaves the comparison out.
        teacher_artifacts: further files of the teacher. A student's file is timed against the teacher's file of the
            same target.
        class_names: for the report.
        workdir: where the teacher's file is kept; None for a temporary folder.
        threads: LiteRT threads for the latencies; accuracy uses all cores.
        latency_runs: rounds of interleaved timing.
        tflm_images: how many test images (a seeded random sample) TFLite Micro is compared on.

    Raises:
        InputError: no artifacts, a teacher file of another target, class counts that differ, or what `logits` raises.
    """
    given = [artifacts] if isinstance(artifacts, (Artifact, str, os.PathLike)) else artifacts
    files = [_file(number, item) for number, item in enumerate(given)]
    students = [file for file in files if file.runtime == "litert"]
    if not students:
        raise InputError(
            f"No TensorFlow Lite file among {len(files)} artifacts.",
            expected="at least one: sizes, zeros and multiply-accumulates are counted in it",
            fix="export the student to tflite_int8 as well",
        )
    test = as_batches(test, what="test data", labels=True, again=True)
    with _teacher_file(teacher, workdir) as teacher_file:
        running: dict[str, Any] = {file.name: file.model for file in students}
        if teacher_file:
            running["teacher"] = model_bytes(teacher_file)
        for model in running.values():
            runtimes.probe(model)
        for file in files:
            if file.runtime not in ("", "litert"):  # files of another kind, that something else runs
                running[file.name] = runtimes.load(
                    file.artifact.path, runtime=file.runtime, threads=os.cpu_count() or 1
                )
        labels, outputs = logits(running, test, threads=os.cpu_count() or 1)
        _same_classes(outputs, class_names)
        width = next(iter(outputs.values())).shape[1]
        check_several(labels, what="test data", classes=width)
        if missing := sorted(set(range(width)) - set(labels.tolist())):
            log.warning("evaluate: the test data has no example of the classes %s", ", ".join(map(str, missing)))
        reference = next((file for file in students if file.artifact.target == "tflite_float32"), None)
        base = reference or min(students, key=lambda file: file.artifact.bytes)
        counted = read(base.model)
        data: dict[str, Any] = {
            "teacher": _teacher_section(teacher_file, running.get("teacher"), labels, outputs),
            "student": _student_section(base.artifact, counted, labels, outputs[base.name]),
            "artifacts": [],
        }
        images = calibration_sample(test, samples=tflm_images)
        against = {a.target: a for a in (*([teacher_file] if teacher_file else []), *teacher_artifacts)}
        for file in files:
            row = _sizes(file.artifact)
            if file.name in outputs:
                values = outputs[file.name]
                row |= _scores(labels, values) | _against_teacher(labels, outputs.get("teacher"), values)
            if file.runtime == "litert":
                summary = counted if file is base else read(file.model)
                row |= {"density": summary.density, "params": counted.params, "nonzero_params": counted.nonzero_params,
                        "sparse_encoded": summary.sparse,
                        "zeros_from_int8": None if reference is None else zeros_added(counted, summary)}  # fmt: skip
                row |= _latency(file.artifact, file.model, against, runs=latency_runs, threads=threads)
                row["tflm"] = dataclasses.asdict(tflm_parity(file.model, images))
            data["artifacts"].append(row)
    data["ratios"] = ratios(data)
    data["class_names"] = None if class_names is None else list(class_names)
    data["data"] = {"test": len(labels)}
    data["versions"] = versions()
    return Report(data)


def ratios(data: Mapping[str, Any]) -> dict[str, float]:
    """How much smaller the student is than the teacher, from the sections of a report; empty without a teacher.

    `bytes` and `gzip_bytes` are of the file the report's headline is about; `float32_bytes` compares float to float.
    """
    teacher, student, file = data["teacher"], data["student"], shipped(dict(data))
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


def _file(number: int, item: Artifact | str | os.PathLike[str]) -> _File:
    artifact = _artifact(item)
    runtime = find(artifact.target)[0].runtime
    model = model_bytes(artifact) if runtime == "litert" else b""
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


def _check_outputs(name: str, values: np.ndarray, labels: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            f"Model {name} puts out NaN or Inf.", expected="finite outputs", fix="the training diverged: train again"
        )
    if labels.min() < 0 or labels.max() >= values.shape[1] or values.shape[1] < 2:
        raise InputError(
            f"Labels run from {labels.min()} to {labels.max()}, and model {name} has {values.shape[1]} outputs.",
            expected="labels from 0 to one less than the number of outputs, and at least two outputs",
            fix="use the data set the network was trained on, with its classes in the same order",
        )


def _same_classes(outputs: Mapping[str, np.ndarray], class_names: Sequence[str] | None) -> None:
    widths = {name: values.shape[1] for name, values in outputs.items()}
    if class_names is not None:
        widths["class_names"] = len(class_names)
    if len(set(widths.values())) > 1:
        raise InputError(
            f"The numbers of classes differ: {', '.join(f'{k}: {v}' for k, v in widths.items())}.",
            expected="the same number everywhere",
            fix="compare networks of the same task",
        )


def _scores(labels: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    predictions = values.argmax(-1)
    matrix = confusion_matrix(labels, predictions, classes=values.shape[1])
    return {"accuracy": accuracy(labels, values), "confusion": matrix.tolist()}


def _teacher_section(
    file: Artifact | None, model: bytes | None, labels: np.ndarray, outputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    if file is None or model is None:
        return None
    summary = read(model)
    sizes = {"params": summary.params, "nonzero_params": summary.nonzero_params, "macs": _known(summary.macs),
             "tflite_bytes": file.bytes, "gzip_bytes": file.gzip_bytes}  # fmt: skip
    return sizes | _scores(labels, outputs["teacher"])


def _student_section(
    artifact: Artifact, summary: TfliteSummary, labels: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    counts = {"params": summary.params, "nonzero_params": summary.nonzero_params, "macs": _known(summary.macs),
              "macs_nonzero": _known(summary.macs_nonzero), "measured_from": artifact.target}  # fmt: skip
    return counts | _scores(labels, values)


def _known(macs: float) -> float | None:
    """None for the multiply-accumulates of a file that does not tell how often its loops run."""
    return None if math.isnan(macs) else macs


def _sizes(artifact: Artifact) -> dict[str, Any]:
    """What is known of any file without running it."""
    return {"target": artifact.target, "path": str(artifact.path), "bytes": artifact.bytes,
            "gzip_bytes": artifact.gzip_bytes, "details": artifact.details}  # fmt: skip


def _against_teacher(labels: np.ndarray, teacher: np.ndarray | None, values: np.ndarray) -> dict[str, Any]:
    if teacher is None:
        return {"mcnemar_p": None, "teacher_only_right": None, "student_only_right": None}
    test = mcnemar(teacher.argmax(-1) == labels, values.argmax(-1) == labels)
    return {"mcnemar_p": test.p, "teacher_only_right": test.first_only, "student_only_right": test.second_only}


def _latency(
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
