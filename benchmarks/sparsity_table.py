"""Sparse students with and without a teacher, on MSTAR and AID-15a. Writes docs/sparsity_table.md and its figure.

    python benchmarks/sparsity_table.py --data_dir=DATA --models_dir=MODELS

A quarter-width VGG-16 learns 20 epochs dense and 16 more in a pattern; every row has the same 36 epochs, Adam at 2e-3
and then 1e-3 on a cosine each, four augmented renderings of each training image, batches of 32, BatchNormalization with
a momentum of 0.9, T = 5 and alpha = 0.8 where the teacher (the full VGG-16) takes part. Validation is a fifth of the
training images, the same for all rows; the test split is read once for each finished run, and nothing was chosen by it.

ce: labels alone, dense and sparse (what tfmot alone gives). kd: the dense student learns from labels, is pruned, and
the teacher teaches what is left (KD after pruning). dst: the teacher teaches the dense student, then the sparse one,
the mask fixed. dst_sr_ste: the same, the mask computed anew from the dense weights at every step.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import (
    AUGMENT,
    DOCS,
    SEEN,
    Runs,
    accuracy,
    data_of,
    lessons_of,
    markdown,
    spread,
    teach,
    teacher_of,
    vgg16,
    written_by,
)

from orbit_kd.exporters import export
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware
from orbit_kd.runtimes.execution import predict
from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
from orbit_kd.sparsity.table import sparsity_table
from orbit_kd.tasks import metrics
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.summary import read

FLAGS = flags.FLAGS
flags.DEFINE_integer("dense_epochs", 20, "Of the dense student.")
flags.DEFINE_integer("sparse_epochs", 16, "With the pattern (the dense rows go on dense).")
flags.DEFINE_list("parts", ["half", "high", "aid15a", "int8"], "Parts of the table to run: half, high, aid15a, int8.")

PATTERNS: dict[str, dict[str, Any]] = {
    "dense": {},
    "unstructured": {"pattern": "magnitude", "sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
    "uhp8": {"pattern": "uhp", "group_size": 8},
    **{f"{p}%": {"pattern": "magnitude", "sparsity": p / 100} for p in (80, 90, 95)},
}
METHODS = {"ce": (0.0, 0.0), "kd": (0.0, 0.8), "dst": (0.8, 0.8), "dst_sr_ste": (0.8, 0.8)}  # alpha dense, sparse
HALF = [("dense", "ce"), ("dense", "dst"), *((p, m) for p in ("unstructured", "2:4", "uhp8") for m in METHODS)]
HIGH = [(f"{p}%", m) for p in (80, 90, 95) for m in ("ce", "dst")]
AID = [("dense", "dst"), ("2:4", "ce"), ("2:4", "dst")]
VIEWS = 4


@functools.cache
def setting(dataset: str) -> tuple[Any, keras.Model, Any]:
    """Data, teacher, and what it says about the training images."""
    data, teacher = data_of(dataset), teacher_of(dataset)
    path = Path(FLAGS.workdir, f"lessons_{dataset}")
    return data, teacher, lessons_of(teacher, data, augment=AUGMENT[dataset], views=VIEWS, path=path)


def dense(dataset: str, alpha: float, seed: int) -> tuple[keras.Model, list[float]]:
    """The dense student that the rows with this alpha begin with, trained once."""
    data, teacher, lessons = setting(dataset)
    path = Path(FLAGS.workdir, f"dense_{dataset}_{alpha}_{seed}.keras")
    curve: list[float] = []
    if not path.is_file():
        student = vgg16(data, width=0.25, seed=seed)
        curve = teach(student, teacher, lessons, data, epochs=FLAGS.dense_epochs, seed=seed, alpha=alpha)
        save_model(student, path)
    return load_model(path), curve


def run(dataset: str, pattern: str, method: str, seed: int) -> dict[str, Any]:
    data, teacher, lessons = setting(dataset)
    before, after = METHODS[method]
    student, curve = dense(dataset, before, seed)
    if pattern != "dense":
        steps = FLAGS.sparse_epochs * lessons.steps()
        schedule = "sr_ste" if method == "dst_sr_ste" else "polynomial" if pattern.endswith("%") else "one_shot"
        end = steps // 2 if schedule == "polynomial" else None
        student = sparsify(student, schedule=schedule, end_step=end, **PATTERNS[pattern])
    curve = curve + teach(
        student, teacher, lessons, data, epochs=FLAGS.sparse_epochs, seed=seed, alpha=after, learning_rate=1e-3
    )
    if pattern != "dense":
        student = strip(student)
    save_model(student, Path(FLAGS.workdir, f"student_{dataset}_{pattern.replace(':', '_')}_{method}_{seed}.keras"))
    rows = [r for r in sparsity_table(student) if r.weights and (pattern == "dense" or not r.dense_because)]
    return {
        "val": round(accuracy(student, data.val), 5),
        "test": round(accuracy(student, data.test), 5),
        "density": round(sum(r.density * r.weights for r in rows) / sum(r.weights for r in rows), 6),
        "curve": curve,
    }


def int8(method: str, seed: int) -> dict[str, Any]:
    """The 2:4 student of DST as an int8 file: after 6 more epochs in float, or 6 quantization-aware ones."""
    data, teacher, lessons = setting("mstar")
    student = load_model(Path(FLAGS.workdir, f"student_mstar_2_4_dst_{seed}.keras"))
    zeros = {r.layer: r.density for r in sparsity_table(student)}
    trained = quantize_aware(student, calibration=data.train) if method == "qat" else keep_zeros(student)
    curve = teach(trained, teacher, lessons, data, epochs=6, seed=seed, learning_rate=3e-4)
    with tempfile.TemporaryDirectory() as folder:
        file = export(trained, "tflite_int8", path=Path(folder, "m.tflite"), calibration=data.train)
        checks = [c for c in check_n_m(file.path) if c.groups]
        kernels = [op for op in read(file.path).ops if len(op.weight_shape) >= 2]
        right = {}
        for split in ("val", "test"):
            batches = list(getattr(data, split).as_numpy_iterator())
            logits = predict(file.path, np.concatenate([x for x, _ in batches]))
            right[split] = metrics.accuracy(np.concatenate([y for _, y in batches]), logits)
        return {
            **{k: round(v, 5) for k, v in right.items()},
            "sparse_layers": sum(c.ok for c in checks),
            "layers": len(checks),
            "wanted": sum(d <= 0.5 for d in zeros.values()),
            "minus_128": sum(c.minus_128 for c in checks),
            "params": sum(op.params for op in kernels),
            "bytes": file.bytes,
            "curve": curve,
        }


def whole_curve(runs: Runs, row: dict[str, Any]) -> list[float]:
    """A row's validation curve with that of its dense stage, which the row that trained it has written down."""
    if len(row["curve"]) > FLAGS.sparse_epochs:
        return row["curve"]
    start = METHODS[row["method"]][0]
    known = runs.find(dataset=row["dataset"], seed=row["seed"], epochs=row["epochs"])
    first = (r for r in known if METHODS[r["method"]][0] == start and len(r["curve"]) > FLAGS.sparse_epochs)
    return [*next(first)["curve"][: FLAGS.dense_epochs], *row["curve"]]


def curves(runs: Runs) -> None:
    """Mean validation accuracy against the epoch, one panel a pattern, one line a method: docs/sparsity_curves.png."""
    import matplotlib.pyplot as plt

    patterns = list(dict.fromkeys(pattern for pattern, _ in HALF))
    figure, panels = plt.subplots(1, len(patterns), figsize=(3.2 * len(patterns), 3), sharey=True)
    for panel, pattern in zip(panels, patterns, strict=True):
        for number, method in enumerate(METHODS):
            found = [whole_curve(runs, r) for r in runs.find(dataset="mstar", pattern=pattern, method=method)]
            if found:
                panel.plot(range(1, len(found[0]) + 1), 100 * np.mean(found, 0), f"C{number}", label=method)
        panel.axvline(FLAGS.dense_epochs + 0.5, color="0.7", linewidth=0.8)
        panel.set(title=pattern, xlabel="epoch", ylim=(50, 100))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy, %")
    panels[1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "sparsity_curves.png", dpi=100)


def claims(runs: Runs) -> str:
    """What was asked of the table, and whether it holds: means over seeds, in points, on validation and test."""

    def apart(one: tuple[str, str], other: tuple[str, str]) -> tuple[float, float, int] | None:
        """Validation and test of a row less those of another, over the seeds that both have."""
        rows = [{r["seed"]: r for r in runs.find(dataset="mstar", pattern=p, method=m)} for p, m in (one, other)]
        both = sorted(rows[0].keys() & rows[1].keys())
        gains = [[100 * (rows[0][s][split] - rows[1][s][split]) for s in both] for split in ("val", "test")]
        return (float(np.mean(gains[0])), float(np.mean(gains[1])), len(both)) if both else None

    lines = []
    for pattern in ("dense", "unstructured", "2:4", "uhp8", "80%", "90%", "95%"):
        if gain := apart((pattern, "dst"), (pattern, "ce")):
            lines.append(f"- {pattern}: with the teacher {gain[0]:+.2f} points on validation, {gain[1]:+.2f} on test "
                         f"(seeds: {gain[2]}).")  # fmt: skip
    level, refreshed = apart(("2:4", "dst"), ("dense", "dst")), apart(("2:4", "dst_sr_ste"), ("2:4", "dst"))
    if level is None or refreshed is None:
        return "\n".join(lines)
    return "\n".join([
        "DST against cross-entropy alone, means over seeds:\n",
        *lines,
        f"\nThe 2:4 student of DST against the dense distilled student (asked: within 0.5): {level[0]:+.2f} points on "
        f"validation, {level[1]:+.2f} on test. Masks refreshed by SR-STE against fixed ones, 2:4: {refreshed[0]:+.2f} "
        f"and {refreshed[1]:+.2f}.",
    ])  # fmt: skip


def page(runs: Runs) -> str:
    def of(dataset: str, rows: list[tuple[str, str]]) -> str:
        body = []
        for pattern, method in rows:
            found = runs.find(dataset=dataset, pattern=pattern, method=method)
            if found:
                density = np.mean([r["density"] for r in found])
                late = [100 * (r["curve"][-1] - r["curve"][-4]) for r in found]
                body.append([pattern, method, len(found), f"{density:.3f}", spread(r["val"] for r in found),
                             spread(r["test"] for r in found), f"{np.mean(late):+.2f}"])  # fmt: skip
        return markdown(["pattern", "method", "seeds", "density", "validation", "test", "last 3 epochs"], body)

    intro = (__doc__ or "").split("\n\n")
    late: dict[tuple[str, str], list[float]] = {}
    for r in runs.find(dataset="mstar"):
        late.setdefault((r["pattern"], r["method"]), []).append(100 * (r["curve"][-1] - r["curve"][-4]))
    most = max((abs(float(np.mean(gains))) for gains in late.values()), default=0.0)
    verdict = (
        f"**Not all rows have converged**: the mean of one still moves by {most:.1f} points in the last three epochs."
        if most > 1
        else f"The rows have converged: on MSTAR no row's mean moves by more than {most:.2f} points in the last three "
        "epochs."
    )
    parts = [
        "# Sparse students, with and without a teacher",
        written_by("python benchmarks/sparsity_table.py --data_dir=DATA --models_dir=MODELS", "sparsity_table"),
        *(p.replace("\n", " ").strip() for p in intro[2:]),
        "Percent, mean and sample deviation over seeds (initial weights, order and views, dropout; one teacher and one "
        "split). The density is that of the layers the pattern fits. The last column is what validation gained in "
        "the last three epochs, in points: near zero where a run has converged. " + SEEN,
        verdict,
        claims(runs),
        "## MSTAR at 50%\n\n" + of("mstar", HALF) + "\n\n![Validation curves](sparsity_curves.png)",
        "## MSTAR at 80, 90 and 95%, unstructured, polynomial over the first half of the sparse epochs\n\n"
        + of("mstar", HIGH),
        "## AID-15a\n\n" + of("aid15a", AID),
    ]
    body = []
    for method in ("ptq", "qat"):
        found = runs.find(part="int8", method=method)
        if found:
            kept = all(r["sparse_layers"] >= r["wanted"] and not r["minus_128"] for r in found)
            body.append([method, len(found), spread(r["val"] for r in found), spread(r["test"] for r in found),
                         f"{min(r['sparse_layers'] for r in found)} of {found[0]['layers']}",
                         "yes" if kept else "no", f"{np.mean([r['bytes'] for r in found]):,.0f}"])  # fmt: skip
    head = ["method", "seeds", "validation", "test", "layers 2:4 in the file", "zeros kept, no -128", "bytes"]
    parts.append(
        "## int8 files of the 2:4 student of DST (MSTAR)\n\nptq: six more epochs with the teacher, then post-training "
        "int8. qat: six quantization-aware epochs with the teacher (`quantize_aware`). The files are run; their bytes "
        "are of the time before equal vectors were stored once in a file.\n\n" + markdown(head, body)
    )
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs = Runs("sparsity_table")
    epochs = [FLAGS.dense_epochs, FLAGS.sparse_epochs]
    tables = (("half", "mstar", HALF), ("high", "mstar", HIGH), ("aid15a", "aid15a", AID))
    for seed in map(int, FLAGS.seeds):  # all parts of a seed before the next
        for part, dataset, rows in tables:
            for pattern, method in rows if part in FLAGS.parts else []:
                settings = {"dataset": dataset, "pattern": pattern, "method": method, "seed": seed, "epochs": epochs}
                runs.once(settings, functools.partial(run, dataset, pattern, method, seed))
        for method in ("ptq", "qat") if "int8" in FLAGS.parts else []:
            runs.once({"part": "int8", "method": method, "seed": seed}, functools.partial(int8, method, seed))
    curves(runs)
    (DOCS / "sparsity_table.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
