"""How much faster the compressed student runs on this CPU, beside what its MACs promise. Writes docs/latency.md.

    python benchmarks/latency.py --data_dir=DATA --models_dir=MODELS --students_dir=out/benchmarks/sparsity

The teacher is the VGG-16 for MSTAR (64x64x1), the students have a quarter of its channels (rows dense/dst and 2:4/dst,
seed 0, of `benchmarks/sparsity_table.py`): float against float, int8 against int8, batch 1, LiteRT with XNNPACK. All
files of a row take turns in one process; a ratio is taken within a turn; the median over turns is shown with its
quartiles. Run it on a machine that does nothing else.

The aim is half of what the MACs promise: a fourth of the channels means a sixteenth of the MACs.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from experiments import DOCS, STUDENTS_FROM, Runs, data_of, markdown, teacher_of, written_by

from orbit_kd.evaluation.latency import latency
from orbit_kd.evaluation.operators import op_latency
from orbit_kd.exporters import export
from orbit_kd.models.saving import load_model
from orbit_kd.tflite.summary import read

FLAGS = flags.FLAGS
flags.DEFINE_string("students_dir", "out/benchmarks/sparsity", "Folder with the trained students.")
flags.DEFINE_integer("runs", 100, "Rounds of each measurement.")

STUDENTS = {"dense student": "student_mstar_dense_dst_0.keras", "2:4 student": "student_mstar_2_4_dst_0.keras"}
NAMES = ("teacher", *STUDENTS)
TYPES = {"int8": "tflite_int8", "float": "tflite_float32"}
Row = dict[str, Any]


@functools.cache
def files(kind: str) -> list[Path]:
    """The three networks in one type."""
    folder = Path(tempfile.mkdtemp())
    images = data_of("mstar").train
    models = [teacher_of("mstar"), *(load_model(Path(FLAGS.students_dir, name)) for name in STUDENTS.values())]
    return [
        export(model, TYPES[kind], path=folder / f"{i}.tflite", calibration=images).path
        for i, model in enumerate(models)
    ]


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def whole(kind: str, threads: int) -> Row:
    paths = files(kind)
    times = latency(paths, runs=FLAGS.runs, threads=threads)
    return {"cpu": cpu(), "macs": [read(p).macs for p in paths], "times": [dataclasses.asdict(t) for t in times]}


def per_op(kind: str, threads: int) -> Row:
    """Teacher and dense student, operator by operator."""
    teacher, student = op_latency(files(kind)[:2], runs=FLAGS.runs, threads=threads)
    ops = [
        {"op": a.op, "name": a.name, "macs": [a.macs, b.macs], "ms": [a.milliseconds, b.milliseconds]}
        for a, b in zip(teacher.ops, student.ops, strict=True)
    ]
    whole_ms = [teacher.milliseconds, student.milliseconds]
    return {"covered": [teacher.covered, student.covered], "fastest": whole_ms, "ops": ops}


def speed(runs: Runs) -> str:
    body = []
    for kind in TYPES:
        for threads in (1, 2):
            for row in runs.find(part="whole", type=kind, threads=threads, runs=FLAGS.runs):
                for name, macs, time in zip(NAMES, row["macs"], row["times"], strict=True):
                    promised = row["macs"][0] / macs
                    body.append([kind, threads, name, f"{macs:,}", f"{time['milliseconds']:.3f}",
                                 f"{time['ratio']:.2f}x ({time['low']:.2f}-{time['high']:.2f})", f"{promised:.2f}x",
                                 f"{time['ratio'] / promised:.2f}"])  # fmt: skip
    return markdown(["type", "threads", "network", "MACs", "ms", "faster (quartiles)", "MACs ratio", "of it"], body)


def short_of(op: Row) -> str:
    """Why a layer gains less than half of its MACs ratio, as far as its figures tell."""
    (before, after), (slow, fast) = op["macs"], op["ms"]
    if not before:
        return "no MACs: it moves data, which shrinks with the channels, not with their square"
    if slow / fast >= 0.5 * before / after:
        return ""
    work = f"{before / slow / 1e6:.0f} -> {after / fast / 1e6:.0f} GMAC/s"
    if before / after < 8:
        return f"its input or output keeps its width; {work}"
    return f"too few channels to fill the vector units, or too short a call; {work}"


def layers(row: Row) -> str:
    total = sum(op["ms"][1] for op in row["ops"])
    body = []
    for op in row["ops"]:
        (before, after), (slow, fast) = op["macs"], op["ms"]
        name = (op["name"].split(";")[-1].split("/")[-2:-1] or ["logits"])[0]
        promised = [f"{before / after:.1f}x", f"{slow / fast * after / before:.2f}"] if after else ["-", "-"]
        body.append([op["op"], name, f"{1e3 * slow:.1f}", f"{1e3 * fast:.1f}", f"{100 * fast / total:.0f}%",
                     f"{slow / fast:.1f}x", *promised, short_of(op)])  # fmt: skip
    head = ["operator", "layer", "teacher, us", "student, us", "of the student", "faster", "MACs ratio", "of it", "why"]
    return markdown(head, body)


def verdict(runs: Runs) -> str:
    shares = []
    for kind in TYPES:
        for threads in (1, 2):
            for row in runs.find(part="whole", type=kind, threads=threads, runs=FLAGS.runs):
                share = row["times"][1]["ratio"] * row["macs"][1] / row["macs"][0]
                shares.append((share, f"{kind}, {threads} thread{'s'[: threads > 1]}: {share:.2f}"))
    if not shares:
        return "**Not measured yet.**"
    reached = "The aim is reached everywhere" if min(shares)[0] >= 0.5 else "The aim is missed somewhere"
    return f"{reached}. Dense student, speed-up over MACs ratio: {'; '.join(text for _, text in shares)}."


def page(runs: Runs) -> str:
    intro = [p.replace("\n", " ").strip() for p in (__doc__ or "").split("\n\n")]
    known = runs.find(part="whole", runs=FLAGS.runs)
    parts = [
        "# Latency on a CPU",
        written_by(f"{intro[1].strip()} --runs={FLAGS.runs}", "latency")
        + (f" On {known[0]['cpu']}, {FLAGS.runs} turns. " if known else " ")
        + STUDENTS_FROM,
        *intro[2:],
        verdict(runs),
        "## Whole networks",
        "The 2:4 student has as many MACs as the dense one, half of them with zeros: on a CPU these gain nothing.",
        speed(runs),
    ]
    for row in runs.find(part="per_op", runs=FLAGS.runs):
        low = [op for op in row["ops"] if short_of(op)]
        share = sum(op["ms"][1] for op in low) / sum(op["ms"][1] for op in row["ops"])
        (slow, fast), covered = row["fastest"], row["covered"]
        parts += [
            f"## Layer by layer: {row['type']}, {row['threads']} thread{'s'[: row['threads'] > 1]}",
            "LiteRT's Python package has no profiler, so each operator is timed alone, in a file cut out of the "
            "network (`orbit_kd/evaluation/operators.py`, `tools/benchmark.py --per_op`), its fastest turn. The parts "
            f"sum to {covered[0]:.2f} of the whole teacher and {covered[1]:.2f} of the whole student, whose own "
            f"fastest turns took {slow:.3f} and {fast:.3f} ms ({slow / fast:.2f}x). The layers with a reason in the "
            "last column gain "
            "less than half of their MACs ratio, or have no MACs; "
            f"they are {100 * share:.0f}% of the student's time.",
            layers(row),
        ]
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs = Runs("latency")
    if missing := [name for name in STUDENTS.values() if not Path(FLAGS.students_dir, name).is_file()]:
        print(f"not in --students_dir yet: {', '.join(missing)}")
        return
    for kind in TYPES:
        for threads in (1, 2):
            settings = {"part": "whole", "type": kind, "threads": threads, "runs": FLAGS.runs}
            runs.once(settings, functools.partial(whole, kind, threads))
            runs.once({**settings, "part": "per_op"}, functools.partial(per_op, kind, threads))
    (DOCS / "latency.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
