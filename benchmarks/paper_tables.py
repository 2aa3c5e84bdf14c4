"""The source papers' tables for a data set by name, with their figures beside. Writes docs/paper_<dataset>.md.

    python benchmarks/paper_tables.py --dataset=mstar --data_dir=DATA --models_dir=MODELS
    python benchmarks/paper_tables.py --dataset=resisc45 --teacher=vgg16.keras --resize=64 --data_dir=TFDS

mstar and aid15a are folders in --data_dir with teachers in --models_dir; any other name is one of `orbit_kd.datasets`
or of TensorFlow Datasets (resisc45, uc_merced, cifar100, fusar_ship, ...), with --teacher. Filters and weights are
chosen together from two sensitivity scans (`allocate`), for a part of the parameters that is not zero and at most a
quarter of the MACs; the filters go at once, the weights on a cubic schedule over the first half of the epochs, while
the network learns from the original: Adam at 1e-3 on a cosine, batches of 32, four augmented renderings of each
training image. Validation is a fifth of the training images; the test split is read once for each finished run and
decides nothing.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import (
    AUGMENT,
    DOCS,
    FOLDERS,
    SEEN,
    Runs,
    accuracy,
    data_of,
    lessons_of,
    markdown,
    spread,
    teach,
    teacher_of,
    written_by,
)

from orbit_kd.datasets import Data, load
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.distillation import LogitsDistillation
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.search.allocation import allocate
from orbit_kd.search.scan import Scan
from orbit_kd.search.sensitivity import sensitivity
from orbit_kd.search.shrinking import RATIOS
from orbit_kd.sparsity.sparsify import sparsify, strip

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "mstar", "Name of the data set.")
flags.DEFINE_string("teacher", None, "The trained network, for data sets without one in --models_dir.")
flags.DEFINE_integer("crop", None, "Centre crop of the images, in pixels.")
flags.DEFINE_integer("resize", None, "Size of the images, in pixels.")
flags.DEFINE_integer("epochs", 5, "Of retraining, in every row.")
flags.DEFINE_integer("images", 400, "Validation images of the scans.")
flags.DEFINE_list("parts", ["hybrid", "grid", "dst"], "Tables to run besides the sensitivity curves.")

KEEP = (0.12, 0.061, 0.03)
MACS = 0.25  # of the teacher's at most: two cores finish the tables in an evening
PAPER = 0.061  # 93.9% of the parameters gone
GRID = ((0.0, 5.0), (0.3, 5.0), (0.7, 5.0), (0.8, 5.0))
DST = [(p, m) for p in ("magnitude", "uhp") for m in ("kd then prune", "dst")]
# The first source's test accuracy, VGG-16 on RESISC45 at 93.92% of the parameters gone; its teacher has 89.69.
PUBLISHED = {(0.0, 5.0): "88.53 (-1.16, read as no KD)", (0.3, 5.0): "88.87 (-0.82)", (0.7, 5.0): "89.48 (-0.21)",
             (0.8, 5.0): "89.63 (-0.06)"}  # fmt: skip


READING = (
    "Few epochs, so that the table got finished: the networks in [models/](../models/README.md) had hundreds, and lose "
    "nothing with 99.1% of the parameters gone on MSTAR and with 94.5% gone on AID-15a (three seeds each). " + SEEN
)


def about() -> dict[str, Any]:
    """What the rows are of: the data set, and the teacher and image size where they are not the given ones."""
    more = {"teacher": FLAGS.teacher and Path(FLAGS.teacher).name, "crop": FLAGS.crop, "resize": FLAGS.resize}
    return {"dataset": FLAGS.dataset, **{k: v for k, v in more.items() if v}}


def kept(what: str, *more: Any) -> Path:
    """A file or folder of the workdir for these rows."""
    return Path(FLAGS.workdir, "_".join([what, *map(str, about().values()), *map(str, more)]))


@functools.cache
def setting() -> tuple[Data, keras.Model, Any]:
    """Data, teacher, and what it says about the training images."""
    name = FLAGS.dataset
    if name in FOLDERS:
        data, teacher = data_of(name), load_model(FLAGS.teacher) if FLAGS.teacher else teacher_of(name)
    else:
        preprocess = Preprocess(crop=FLAGS.crop, resize=FLAGS.resize)
        data = load(name, preprocess=preprocess, validation=0.2, seed=0, batch_size=32, data_dir=FLAGS.data_dir)
        teacher = load_model(FLAGS.teacher)
    augment = AUGMENT.get(name, Augment(shift=4, flip="h"))
    return data, teacher, lessons_of(teacher, data, augment=augment, path=kept("lessons"))


@functools.cache
def scan(of: str) -> Scan:
    data, teacher, _ = setting()
    path = kept("scan", f"{of}.json")
    more = {"train": data.train} if of == "filters" else {}
    return sensitivity(teacher, data.val, ratios=RATIOS, of=of, images=FLAGS.images, lost=0.5, path=path, **more)


def scores(model: keras.Model) -> dict[str, float]:
    data = setting()[0]
    return {"val": round(accuracy(model, data.val), 5), "test": round(accuracy(model, data.test), 5)}


def hybrid(keep: float, alpha: float, temperature: float, seed: int) -> dict[str, Any]:
    """A network with part `keep` of the teacher's parameters not zero, before and after retraining."""
    data, teacher, lessons = setting()
    found = allocate(teacher, [scan("filters"), scan("weights")], keep_params=keep, keep_macs=MACS)
    ratios, sparsities = found.ratios, found.sparsities
    small = remove_filters(teacher, plan_removal(teacher, ratios=ratios, ratio=0.0))
    at_once = strip(sparsify(small, "magnitude", sparsity=sparsities), finish=True) if sparsities else small
    recalibrate_batchnorm(at_once, data.train)
    before = round(accuracy(at_once, data.val), 5)
    student, steps = small, FLAGS.epochs * lessons.steps()
    recalibrate_batchnorm(student, data.train)
    if sparsities:
        student = sparsify(small, "magnitude", sparsity=sparsities, schedule="polynomial", end_step=steps // 2)
    losses = [LogitsDistillation(temperature=temperature)]
    curve = teach(student, teacher, lessons, data, epochs=FLAGS.epochs, seed=seed, alpha=alpha, losses=losses,
                  learning_rate=1e-3)  # fmt: skip
    student = strip(student) if sparsities else student
    recalibrate_batchnorm(student, data.train)
    nonzero = sum(int(np.count_nonzero(w)) for w in student.get_weights())
    return {**scores(student), "pruned": before, "gone": 1 - nonzero / teacher.count_params(),
            "by_filters": 1 - small.count_params() / teacher.count_params(), "curve": curve}  # fmt: skip


def dense_student(seed: int) -> keras.Model:
    """A student that has lost three quarters of its filters and learned from the teacher; made once a seed."""
    data, teacher, lessons = setting()
    path = kept("dense", FLAGS.epochs, f"{seed}.keras")
    if not path.is_file():
        student = remove_filters(teacher, plan_removal(teacher, ratio=0.75, round_to=8))
        recalibrate_batchnorm(student, data.train)
        teach(student, teacher, lessons, data, epochs=FLAGS.epochs, seed=seed, learning_rate=1e-3)
        save_model(student, path)
    return load_model(path)


def dst(pattern: str, method: str, seed: int) -> dict[str, Any]:
    """Half of the weights of that student."""
    data, teacher, lessons = setting()
    student, epochs = dense_student(seed), FLAGS.epochs
    options: dict[str, Any] = {"sparsity": 0.5} if pattern == "magnitude" else {}
    sparse = sparsify(student, pattern, schedule="one_shot", **options)
    alpha = 0.8 if method == "dst" else 0.0  # kd then prune: the pruned student learns from the labels
    curve = teach(sparse, teacher, lessons, data, epochs=epochs, seed=seed, alpha=alpha, learning_rate=1e-3)
    plain = strip(sparse)
    recalibrate_batchnorm(plain, data.train)
    return {**scores(plain), "curve": curve}


def findings(runs: Runs) -> str:
    """What the rows say, from their means on the test split over the seeds that both sides have."""

    def gain(a: dict[str, Any], b: dict[str, Any]) -> str:
        test = [{r["seed"]: r["test"] for r in runs.find(**about(), epochs=FLAGS.epochs, **how)} for how in (a, b)]
        both = sorted(test[0].keys() & test[1].keys())
        if not both:
            return "not run"
        gains = [100 * (test[0][s] - test[1][s]) for s in both]
        return f"{np.mean(gains):+.1f} ({', '.join(f'{g:+.1f}' for g in gains)})"

    def kd(alpha: float) -> dict[str, Any]:
        return {"part": "hybrid", "keep": PAPER, "alpha": alpha, "temperature": 5.0}

    def half(pattern: str, method: str) -> dict[str, Any]:
        return {"part": "dst", "pattern": pattern, "method": method}

    other = "kd then prune"
    grid = "; ".join(f"alpha {a:g}: {gain(kd(a), kd(0.0))}" for a, _ in GRID if a)
    return "\n".join(
        [
            "Differences on the test split in points, mean and each seed in brackets:\n",
            f"- The teacher at {1 - PAPER:.1%} gone, against the labels alone: {grid}. Published: +0.34, +0.95, +1.10.",
            f"- DST against KD then prune: unstructured {gain(half('magnitude', 'dst'), half('magnitude', other))}, "
            f"UHP {gain(half('uhp', 'dst'), half('uhp', other))}.",
            f"- UHP against unstructured, both DST: {gain(half('uhp', 'dst'), half('magnitude', 'dst'))}.",
            "- Three quarters of the filters gone and then half of the weights (unstructured, DST, "
            f"{2 * FLAGS.epochs} epochs in all) against the hybrid at {1 - PAPER:.1%} ({FLAGS.epochs} epochs): "
            f"{gain(half('magnitude', 'dst'), kd(0.8))}.",
        ]
    )


def page(runs: Runs, whole: dict[str, float]) -> str:
    name = FLAGS.dataset
    intro = (__doc__ or "").split("\n\n")[2].replace("\n", " ")

    def row(keep: float, alpha: float, t: float) -> list[Any] | None:
        found = runs.find(**about(), part="hybrid", keep=keep, alpha=alpha, temperature=t, epochs=FLAGS.epochs)
        if not found:
            return None
        gone, filters = (np.mean([r[k] for r in found]) for k in ("gone", "by_filters"))
        return [len(found), f"{gone:.2%}", f"{filters:.2%}", spread(r["pruned"] for r in found),
                spread(r["val"] for r in found), spread(r["test"] for r in found)]  # fmt: skip

    hybrids = [[f"{1 - k:.1%}", *r, PUBLISHED[0.8, 5.0] if k == PAPER else ""] for k in KEEP
               if (r := row(k, 0.8, 5.0))]  # fmt: skip
    grid = [[f"{a:g}", "-" if not a else f"{t:g}", *r, PUBLISHED[a, t]] for a, t in GRID
            if (r := row(PAPER, a, t))]  # fmt: skip
    dsts = []
    for pattern, method in DST:
        found = runs.find(**about(), part="dst", pattern=pattern, method=method, epochs=FLAGS.epochs)
        if found:
            dsts.append(
                [pattern, method, len(found), spread(r["val"] for r in found), spread(r["test"] for r in found)]
            )
    published = "published (RESISC45, test)"
    columns = ["seeds", "gone", "of it by filters", "pruned, validation", "retrained, validation", "retrained, test"]
    parts = [
        f"# The source papers' tables on {name}",
        written_by(
            f"python benchmarks/paper_tables.py --dataset={name} --data_dir=DATA --models_dir=MODELS", "paper_tables"
        ),
        intro,
        f"The original network: validation {whole['val']:.2%}, test {whole['test']:.2%}. Percent, mean and sample "
        f"deviation over seeds; {FLAGS.epochs} epochs of retraining. The published figures (difference to their "
        "teacher in brackets) come from other data and other trainings: read them as shape, not as rivals.",
        *([READING] if name in FOLDERS else []),
        f"## Sensitivity (Fig. 6)\n\n![filters](paper_{name}_filters.png)\n\n![weights](paper_{name}_weights.png)",
    ]
    if hybrids:
        parts.append("## Before and after hybrid pruning (Tab. 1)\n\nThe paper also has 93.78% gone on UC Merced.\n\n"
                     + markdown(["asked to go", *columns, published], hybrids))  # fmt: skip
    if grid:
        parts.append("## The teacher's share and temperature at 93.9% (Tab. 2, 3)\n\n"
                     + markdown(["alpha", "T", *columns, published], grid))  # fmt: skip
    if dsts:
        text = (
            "## Half of the weights: the teacher after pruning or only before (DST)\n\nA student that has lost three "
            "quarters of its filters learns from the teacher, is pruned, and goes on with the labels (kd then prune) "
            "or with the teacher (dst). The paper gives no figures that could be read: close to the teacher, UHP twice "
            "as fast as unstructured.\n\n"
        )
        parts.append(text + markdown(["pattern", "method", "seeds", "validation", "test"], dsts))
        parts.append("## What the rows say\n\n" + findings(runs))
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs, name = Runs("paper_tables"), FLAGS.dataset
    for of in ("filters", "weights"):
        scan(of).plot(DOCS / f"paper_{name}_{of}.png")
    known = kept("whole").with_suffix(".json")
    if not known.is_file():
        known.write_text(json.dumps(scores(setting()[1])))
    points = [(k, 0.8, 5.0) for k in KEEP if "hybrid" in FLAGS.parts]
    points += [(PAPER, a, t) for a, t in GRID if "grid" in FLAGS.parts and (PAPER, a, t) not in points]
    for seed in map(int, FLAGS.seeds):
        for keep, alpha, t in points:
            settings = {**about(), "part": "hybrid", "keep": keep, "alpha": alpha, "temperature": t, "seed": seed,
                        "epochs": FLAGS.epochs}  # fmt: skip
            runs.once(settings, functools.partial(hybrid, keep, alpha, t, seed))
        for pattern, method in DST if "dst" in FLAGS.parts else []:
            settings = {**about(), "part": "dst", "pattern": pattern, "method": method, "seed": seed,
                        "epochs": FLAGS.epochs}  # fmt: skip
            runs.once(settings, functools.partial(dst, pattern, method, seed))
    (DOCS / f"paper_{name}.md").write_text(page(runs, json.loads(known.read_text())), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
