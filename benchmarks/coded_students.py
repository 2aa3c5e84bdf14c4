"""How small a network gets when filters, zeros and few levels are all paid for: bytes against accuracy.

    python benchmarks/coded_students.py --dataset=mstar --data_dir=DATA --models_dir=MODELS

Every student goes on from one that has lost filters alone (mstar: models/vgg16_mstar_400, 401x fewer bytes): more
filters go (L1), then single weights (magnitude, shared by LAMP), then kernels are trained in few levels, each with the
full VGG-16 as the teacher (T = 5, alpha 0.8); the int8 file is coded for stock TFLite Micro. Seeds are those of the
order of images and dropout; the split (a tenth for validation), the eight renderings of each image and the first
student are the same. Accuracy is that of the exported file on the test split: a coded one runs on TFLite Micro, where
its outputs are held against the uncoded one's, the others on LiteRT. One line a finished run in
results/coded_students.jsonl; --workdir keeps the state of the running one, and the students that points share.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import AUGMENT, DOCS, TEACHERS, Runs, data_of, lessons_of, markdown, spread, teacher_of, written_by
from student_of_file import student_of_file

from orbit_kd import runtimes
from orbit_kd.clustering.cluster import cluster, strip_clusters
from orbit_kd.datasets import Data
from orbit_kd.distillation import LogitsDistillation, TeacherCache
from orbit_kd.distillation.job import TrainingJob
from orbit_kd.evaluation.outputs import logits
from orbit_kd.exporters import export
from orbit_kd.exporters.metadata import note
from orbit_kd.exporters.tflm.compression import compress_weights
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.search.evaluator import batches_of, value_of
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.support.files import write_file
from orbit_kd.tasks.metrics import accuracy, mcnemar

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "mstar", list(TEACHERS), "Which.")
flags.DEFINE_list("points", [], "Names of points to run; all where none is given.")

MODELS = Path(__file__).parent.parent / "models"
STUDENTS = {"mstar": MODELS / "vgg16_mstar_400", "aid15a": MODELS / "vgg16_aid15a"}
EDGES = ("block1_conv1", "logits")  # few weights that see the image, or give the scores: 6 bits
_RATE = {"filters": 2e-3, "zeros": 1e-3, "levels": 1e-3, "clusters": 1e-3}


@dataclasses.dataclass(frozen=True)
class Point:
    """One student.

    Attributes:
        keep: part of the channels of the first student that stays in each layer.
        sparsity: part of the weights that becomes zero.
        bits: of the kernels but the first and the last; 8 trains no levels.
        epochs: after removal, with the zeros, with the levels.
        coded: export for TFLite Micro's DECODE operator; else the plain int8 file.
        clusters: in place of levels, shared weights in each kernel (tfmot's clustering), stored by TFLM's own look-up
            tables.
        whole: of the teacher itself, no filter removed; nothing is trained then, and the file runs on LiteRT.
    """

    keep: float = 1.0
    sparsity: float = 0.0
    bits: int = 8
    epochs: tuple[int, int, int] = (0, 0, 0)
    coded: bool = True
    clusters: int = 0
    whole: bool = False


POINTS: dict[str, dict[str, Point]] = {
    "mstar": {
        "filters": Point(),
        "filters + levels": Point(1.0, 0.0, 4, (0, 0, 40)),
        "1500x": Point(1.0, 0.74, 4, (0, 20, 40)),
        "2500x": Point(0.75, 0.70, 3, (50, 25, 50)),
        "3000x": Point(0.68, 0.70, 3, (50, 25, 50)),
        "4000x": Point(0.58, 0.68, 3, (60, 20, 40)),
        "6000x": Point(0.36, 0.60, 3, (80, 20, 40)),
        "8000x": Point(0.22, 0.50, 3, (100, 20, 40)),
    },
    "aid15a": {
        "250x": Point(1.0, 0.50, 5, (0, 10, 25)),
        "400x": Point(1.0, 0.68, 4, (0, 15, 30)),
    },
}
# What each way contributes, on MSTAR: the same trainings with one left out.
ALONE = {
    "nothing": Point(whole=True),
    "zeros alone (not retrained)": Point(1.0, 0.74, 8, whole=True),
    "levels alone (not retrained)": Point(1.0, 0.0, 4, whole=True),
    "filters": Point(),
    "filters + zeros": Point(1.0, 0.74, 8, (0, 20, 0)),
    "filters + levels": Point(1.0, 0.0, 4, (0, 0, 40)),
    "filters + zeros + levels": POINTS["mstar"]["1500x"],
    "filters + tfmot clustering": Point(1.0, 0.0, 8, (0, 0, 40), coded=False, clusters=16),
}


class Students:
    """Trains what points ask for, each stage once."""

    def __init__(self, dataset: str) -> None:
        self.dataset, self.folder = dataset, Path(FLAGS.workdir, f"coded_{dataset}")
        self.data: Data = data_of(dataset, validation=0.1, batch_size=64)
        self.teacher = teacher_of(dataset)
        kept = STUDENTS[dataset] / "student.keras"
        self.first = load_model(kept) if kept.is_file() else student_of_file(self.teacher, kept.parent, self.data)
        self.val = batches_of(self.data.val, None)

    @functools.cached_property
    def lessons(self) -> TeacherCache:
        """What the teacher says about eight renderings of each training image."""
        return lessons_of(self.teacher, self.data, augment=AUGMENT[self.dataset], views=8, path=self.folder / "lessons")

    @functools.cached_property
    def reference(self) -> tuple[int, np.ndarray, np.ndarray]:
        """(bytes, labels, answers on the test split) of the teacher's float file."""
        kept = self.folder / "teacher.npz"
        if not kept.is_file():
            file = export(self.teacher, "tflite_float32", path=self.folder / "teacher.tflite")
            labels, outputs = logits({"teacher": str(file.path)}, self.data.test, threads=2)
            np.savez(kept, bytes=file.bytes, labels=labels, answers=outputs["teacher"].argmax(-1))
        found = np.load(kept)
        return int(found["bytes"]), found["labels"], found["answers"]

    def of(self, point: Point, seed: int) -> keras.Model:
        """The student of a point."""
        student, name = (self.teacher, f"{seed}_whole") if point.whole else (self.first, f"{seed}")
        if point.keep < 1 or point.epochs[0]:
            name += f"_{point.keep:g}"
            student = self._stage(
                "filters", name, lambda s=student: self._narrowed(s, point.keep), point.epochs[0], seed
            )
        if point.sparsity:
            name += f"_{point.sparsity:g}"
            steps = point.epochs[1] and point.epochs[1] * self.lessons.steps(64)

            when: dict[str, Any] = {"schedule": "polynomial", "end_step": max(1, steps // 2)} if steps else {}

            def sparse(student: keras.Model = student) -> keras.Model:
                return sparsify(student, "magnitude", sparsity=point.sparsity, scope="lamp", **when)

            student = self._stage("zeros", name, sparse, point.epochs[1], seed, strip)
        if point.bits < 8:
            bits = {**dict.fromkeys(EDGES, max(point.bits, 6)), "*": point.bits}

            def coarse(student: keras.Model = student) -> keras.Model:
                return quantize_aware(student, bits=bits, calibration=self.data.train, seed=seed)

            student = self._stage("levels", f"{name}_{point.bits}", coarse, point.epochs[2], seed)
        if point.clusters:

            def shared(student: keras.Model = student) -> keras.Model:
                return cluster(student, clusters=point.clusters)

            student = self._stage("clusters", f"{name}_{point.clusters}", shared, point.epochs[2], seed, strip_clusters)
        return student

    def _narrowed(self, student: keras.Model, keep: float) -> keras.Model:
        if keep == 1:
            return student
        small = remove_filters(student, plan_removal(student, ratio=1 - keep))
        recalibrate_batchnorm(small, self.data.train)
        return small

    def _stage(
        self, kind: str, name: str, make: Callable[[], keras.Model], epochs: int, seed: int,
        finish: Callable[[keras.Model], keras.Model] = lambda student: student,
    ) -> keras.Model:  # fmt: skip
        folder = self.folder / f"{kind}_{name}_{epochs}"
        if not (folder / "student.keras").is_file():
            keras.utils.set_random_seed(seed)
            student = make()
            if epochs:
                training = TrainingJob(
                    self.teacher, self.data, losses=[LogitsDistillation(temperature=5.0)], alpha=0.8, seed=seed,
                    learning_rate=_RATE[kind],
                )  # fmt: skip
                distiller = training.distiller(student)
                training.train(distiller, self.lessons, epochs=epochs, folder=folder, label=folder.name)
                student = distiller.student
            save_model(finish(student), folder / "student.keras")
        return load_model(folder / "student.keras")

    def measured(self, point: Point, seed: int) -> dict[str, Any]:
        """Trains, exports, and measures the file on the test split."""
        student = self.of(point, seed)
        about = note(self.data.class_names, self.data.preprocess)
        path = self.folder / f"student_{seed}.tflite"
        plain = export(student, "tflite_int8", path=path, calibration=self.data.train, metadata=about)
        gzipped = len(gzip.compress(plain.path.read_bytes(), 9, mtime=0))
        row: dict[str, Any] = {
            "val_accuracy": value_of(student, self.val),
            "int8_bytes": plain.bytes,
            "gzip": gzipped,
        }
        teacher_bytes, labels, answers = self.reference
        file, given = plain, None
        if point.clusters:
            data, compressed = compress_weights(plain.path.read_bytes())
            file = dataclasses.replace(plain, bytes=len(data))
            row["layers"] = compressed["compressed_layers"]
        if point.coded:
            coded = self.folder / f"student_{seed}_coded.tflite"
            file = export(plain, "tflite_micro_coded", path=coded, calibration=self.data.train)
            given, most = (None, None) if point.whole else self._on_tflm(path, coded)
            details = file.details
            row |= {
                "arena_bytes": details["arena_bytes"],
                "uncoded_arena_bytes": details["uncoded"]["arena_bytes"],
                "parts": details["bytes"],
                "lsb": most,
            }
        if given is None:
            given = logits({"student": str(path)}, self.data.test)[1]["student"]
        test = mcnemar(answers == labels, given.argmax(-1) == labels)
        return row | {
            "runtime": "tflm" if point.coded and not point.whole else "litert",
            "bytes": file.bytes,
            "ratio": teacher_bytes / file.bytes,
            "test_accuracy": accuracy(labels, given),
            "teacher_accuracy": float(np.mean(answers == labels)),
            "mcnemar_p": test.p,
            "teacher_only": test.first_only,
            "student_only": test.second_only,
        }

    def _on_tflm(self, plain: Path, coded: Path) -> tuple[np.ndarray, int]:
        """Outputs of the coded file for the test split, on TFLM, and how far they are off the uncoded one's, in LSB."""
        runners = {str(path): runtimes.load(path, runtime="tflm") for path in (plain, coded)}
        _, outputs = logits(runners, self.data.test)
        steps = np.abs(outputs[str(coded)] - outputs[str(plain)]) / runners[str(coded)].output.scale
        return outputs[str(coded)], int(np.rint(steps.max()))


def curve(runs: Runs, dataset: str) -> str:
    """Bytes against accuracy: a row a point, over its seeds."""
    rows = []
    for name, point in POINTS[dataset].items():
        if found := rows_of(runs, dataset, point):
            rows.append(
                (
                    name,
                    *_figures(found),
                    f"{point.keep:g}",
                    f"{point.sparsity:.0%}",
                    point.bits,
                    "/".join(map(str, point.epochs)),
                )
            )
    head = (*_FIGURES, "channels kept", "zeros", "bits", "epochs")
    return markdown(("point", *head), rows)


def alone(runs: Runs, dataset: str) -> str:
    """What each way contributes, and what the same weights take as an int8 file, one through gzip, and a coded one."""
    rows = []
    for name, point in ALONE.items():
        if found := rows_of(runs, dataset, point):
            _, fewer, *figures = _figures(found)
            sizes = (f"{np.mean([r[size] for r in found]):,.0f}" for size in ("int8_bytes", "gzip", "bytes"))
            rows.append((name, *sizes, fewer, *figures[:-1], len(found)))
    head = ("what", "int8 file", "int8, gzip", "coded file", *_FIGURES[1:-1], "seeds")
    return markdown(head, rows)


_FIGURES = ("bytes", "fewer", "test accuracy", "difference, points", "McNemar p", "arena, bytes")


def _figures(found: list[dict[str, Any]]) -> tuple[str, ...]:
    drops = [r["test_accuracy"] - r["teacher_accuracy"] for r in found]
    arena = found[0].get("arena_bytes")
    return (
        f"{np.mean([r['bytes'] for r in found]):,.0f}",
        f"{np.mean([r['ratio'] for r in found]):,.0f}x",
        spread(r["test_accuracy"] for r in found),
        f"{100 * np.mean(drops):+.2f}",
        ", ".join(f"{r['mcnemar_p']:.2g}" for r in found),
        f"{arena:,}" if arena else "-",
    )


def rows_of(runs: Runs, dataset: str, point: Point, **more: Any) -> list[dict[str, Any]]:
    """The lines of a point and of no other: what a line leaves out is at its default."""
    found = runs.find(dataset=dataset, **json_of(point), **more)
    return [r for r in found if (r.get("whole", False), r.get("clusters", 0)) == (point.whole, point.clusters)]


def json_of(point: Point) -> dict[str, Any]:
    """A point as its line in the results has it."""
    found = {**dataclasses.asdict(point), "epochs": list(point.epochs)}
    return {name: value for name, value in found.items() if name not in ("clusters", "whole") or value}


def main(_: list[str]) -> None:
    runs, students, dataset = Runs("coded_students"), Students(FLAGS.dataset), FLAGS.dataset
    points = POINTS[dataset] | (ALONE if dataset == "mstar" else {})
    for seed in map(int, FLAGS.seeds):
        for name, point in points.items():
            if (not FLAGS.points or name in FLAGS.points) and not (point.whole and seed):
                settings = {"dataset": dataset, "point": name, **json_of(point), "seed": seed}
                if not rows_of(runs, dataset, point, seed=seed):
                    runs.once(settings, lambda point=point, seed=seed: students.measured(point, seed))
    command = "python benchmarks/coded_students.py --dataset={mstar,aid15a} --data_dir=DATA --models_dir=MODELS"
    tables = [
        f"## Bytes against accuracy: {name}\n\n{curve(runs, name)}\n" for name in POINTS if runs.find(dataset=name)
    ]
    if any(row["point"] in ALONE for row in runs.rows):
        tables.append(f"## What filters, zeros, levels and coding contribute (mstar)\n\n{alone(runs, 'mstar')}\n")
    text = f"# Coded students\n\n{written_by(command, 'coded_students')}\n\n" + "\n".join(tables)
    write_file(DOCS / "coded_students.md", text)


if __name__ == "__main__":
    app.run(main)
