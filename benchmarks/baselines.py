"""What a user would do otherwise in the same epochs, beside filter removal with distillation. Writes docs/baselines.md.

    python benchmarks/baselines.py --data_dir=DATA

A quarter-width VGG-16, trained on MSTAR at 32x32 for 50 epochs, is brought to a sixteenth of its parameters. Every row
has 24 epochs (96 where it says so): Adam at 1e-3 on a cosine (2e-3 from scratch), batches of 32, four augmented
renderings of each training image, BatchNormalization recalibrated at the end. Validation is a fifth of the training
images; the test split is read once for each finished run and decides nothing.

ours: filters go at once by the L1 criterion, three quarters of each group, and the original teaches what is left (T =
5, alpha = 0.8). labels only: the same network without the teacher. from scratch: the same architecture with new
weights, with and without the teacher. tfmot alone: `prune_low_magnitude` with a polynomial schedule over the first half
of the epochs on the whole network and cross-entropy, to the same number of non-zero weights.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from absl import app, flags
from experiments import DOCS, Runs, accuracy, markdown, small_setting, spread, teach, written_by

from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 24, "Of every row, but those with four times as many.")

# name -> (start, alpha, times the epochs)
ROWS = {
    "ours: filter removal, teacher": ("removed", 0.8, 1),
    "filter removal, labels only": ("removed", 0.0, 1),
    "from scratch, labels only": ("scratch", 0.0, 1),
    "from scratch, teacher": ("scratch", 0.8, 1),
    "from scratch, labels only, 4x epochs": ("scratch", 0.0, 4),
    "from scratch, teacher, 4x epochs": ("scratch", 0.8, 4),
    "ours, 4x epochs": ("removed", 0.8, 4),
    "tfmot alone": ("tfmot", 0.0, 1),
}


def smaller() -> keras.Model:
    data, teacher, _ = small_setting("vgg16")
    student = remove_filters(teacher, plan_removal(teacher, ratio=0.75))
    recalibrate_batchnorm(student, data.train)
    return student


def renewed(model: keras.Model, seed: int) -> keras.Model:
    """The same architecture with new weights."""
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(model)


def tfmot_alone(nonzero: int, seed: int, epochs: int) -> keras.Model:
    """What its guide shows (https://www.tensorflow.org/model_optimization/guide/pruning), layer by layer."""
    _, teacher, lessons = small_setting("vgg16")
    kernels = [la for la in teacher.layers if isinstance(la, (keras.layers.Conv2D, keras.layers.Dense))]
    prunable = sum(la.kernel.shape.num_elements() for la in kernels)
    others = teacher.count_params() - prunable
    steps = epochs * lessons.steps()
    every = max(1, steps // 2 // 20)  # its masks move at multiples of this alone: the end must be one of them
    sparsity = 1 - (nonzero - others) / prunable
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, 0, 20 * every, frequency=every)
    copy = keras.models.clone_model(teacher)
    copy.set_weights(teacher.get_weights())

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        kinds = (keras.layers.Conv2D, keras.layers.Dense)
        if not isinstance(layer, kinds):
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    sparse = keras.models.clone_model(copy, clone_function=wrap)
    keras.utils.set_random_seed(seed)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    sparse.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    labelled = lessons.epochs(seed=seed).map(lambda x, y: (x, y["labels"]))
    sparse.fit(labelled, steps_per_epoch=lessons.steps(), epochs=epochs, verbose=0,
               callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])  # fmt: skip
    return tfmot.sparsity.keras.strip_pruning(sparse)


def run(name: str, seed: int) -> dict[str, Any]:
    data, teacher, lessons = small_setting("vgg16")
    start, alpha, times = ROWS[name]
    student, curve = smaller(), []
    if start == "tfmot":
        student = tfmot_alone(student.count_params(), seed, FLAGS.epochs * times)
    else:
        student = renewed(student, seed) if start == "scratch" else student
        curve = teach(student, teacher, lessons, data, epochs=FLAGS.epochs * times, seed=seed, alpha=alpha,
                      learning_rate=2e-3 if start == "scratch" else 1e-3)  # fmt: skip
    recalibrate_batchnorm(student, data.train)
    return {
        "val": round(accuracy(student, data.val), 5),
        "test": round(accuracy(student, data.test), 5),
        "params": student.count_params(),
        "nonzero": sum(int(np.count_nonzero(w)) for w in student.get_weights()),
        "curve": curve,
    }


def reading(runs: Runs) -> str:
    """What the rows say, in words, from their means on both splits."""
    mean = {(name, split): np.mean([r[split] for r in found]) for name in ROWS for split in ("test", "val")
            if (found := runs.find(name=name, epochs=FLAGS.epochs))}  # fmt: skip
    if len(mean) < 2 * len(ROWS):
        return "Some rows are still to be run."

    def gain(a: str, b: str) -> str:
        test, val = (100 * (mean[a, split] - mean[b, split]) for split in ("test", "val"))
        return f"{test:+.1f} ({val:+.1f})"

    ours, scratch = "ours: filter removal, teacher", "from scratch, teacher"
    longer, scratch_longer = "ours, 4x epochs", "from scratch, teacher, 4x epochs"
    return (
        "Differences of means on test, on validation in brackets, in points. Ours against tfmot alone: "
        f"{gain(ours, 'tfmot alone')}. The teacher gives {gain(ours, 'filter removal, labels only')} to the pruned "
        f"network and {gain(scratch, 'from scratch, labels only')} to new weights; at four times the epochs "
        f"{gain(scratch_longer, 'from scratch, labels only, 4x epochs')} to new weights. Old weights against new ones, "
        f"both with the teacher: {gain(ours, scratch)} at equal epochs, {gain(longer, scratch_longer)} at four times "
        f"as many. Ours against new weights and labels alone, four times the epochs: "
        f"{gain(longer, 'from scratch, labels only, 4x epochs')}.\n\n"
        "**So at a sixteenth of the parameters a small network from scratch does about as well as a pruned one**, and "
        "what the teacher gives the pruned one is undecided here: the splits disagree. What counts is the shape and, "
        "above all, the number of epochs. What filter removal gives is the shape, for any network and to the byte."
    )


def page(runs: Runs) -> str:
    intro = [p.replace("\n", " ").strip() for p in (__doc__ or "").split("\n\n")[2:]]
    whole = runs.find(name="original")
    body = []
    for name in ROWS:
        found = runs.find(name=name, epochs=FLAGS.epochs)
        if found:
            body.append([name, len(found), f"{found[0]['nonzero']:,}", f"{found[0]['params']:,}",
                         spread(r["val"] for r in found), spread(r["test"] for r in found),
                         f"{np.mean([r['seconds'] for r in found]):.0f}"])  # fmt: skip
    head = ["way", "seeds", "not zero", "parameters", "validation", "test", "seconds"]
    original = "".join(f"The original: {r['params']:,} parameters, validation {r['val']:.2%}, test {r['test']:.2%}. "
                       for r in whole)  # fmt: skip
    return "\n\n".join([
        "# Beside what else one could do",
        written_by("python benchmarks/baselines.py --data_dir=DATA", "baselines"),
        *intro,
        original + "Percent, mean and sample deviation over seeds (order, dropout, new weights; one split).",
        markdown(head, body),
        reading(runs),
    ]) + "\n"  # fmt: skip


def main(_: list[str]) -> None:
    runs = Runs("baselines")

    def whole() -> dict[str, Any]:
        data, teacher, _ = small_setting("vgg16")
        return {"val": accuracy(teacher, data.val), "test": accuracy(teacher, data.test),
                "params": teacher.count_params()}  # fmt: skip

    runs.once({"name": "original"}, whole)
    for seed in map(int, FLAGS.seeds):
        for name in ROWS:
            runs.once({"name": name, "seed": seed, "epochs": FLAGS.epochs}, functools.partial(run, name, seed))
    (DOCS / "baselines.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
