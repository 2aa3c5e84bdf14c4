"""What a sparse training step costs, against the plain step of the same model and against tfmot's own wrapper.

    python benchmarks/sparse_step.py

Quarter-width VGG-16 at 64x64 and ResNet-20 at 32x32, batches of 32, `fit`'s own compiled step. All variants take turns,
a few steps each, in one process: the ratio is that of each turn to the plain turn beside it. Fixed masks may
cost 1.10, masks that are computed anew at every step 1.25. The program's last line says pass or fail.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import app, flags
from experiments import DOCS, RESULTS, markdown

from orbit_kd.models.networks import build
from orbit_kd.sparsity.schedules import Polynomial
from orbit_kd.sparsity.sparsify import sparsify

FLAGS = flags.FLAGS
flags.FLAGS["data_dir"].value = ""  # images are drawn, not read
flags.DEFINE_integer("turns", 20, "Turns of each variant.")
flags.DEFINE_integer("steps", 4, "Steps a turn.")

NETWORKS = {"vgg16 at a quarter width, 64x64": ("vgg16", 64, 0.25), "resnet20, 32x32": ("resnet20", 32, 1.0)}
ALWAYS = Polynomial(end_step=10**6, refreshes=10**6)  # a new mask at every step
LIMITS = {"fixed": 1.10, "refreshed": 1.25}


def tfmot_model(model: keras.Model, **how) -> keras.Model:
    """tfmot's `prune_low_magnitude` on the layers it has a kernel for."""
    from tensorflow_model_optimization.python.core.sparsity.keras import prune

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy = type(layer).from_config(layer.get_config())
        known = isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        return prune.prune_low_magnitude(copy, **how) if known else copy

    return keras.models.clone_model(model, clone_function=wrap)


def variants(model: keras.Model) -> dict[str, tuple[str, keras.Model]]:
    """Name -> (kind, model): ours and tfmot's."""
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule as schedules

    def poly(frequency: int) -> object:
        return schedules.PolynomialDecay(0.0, 0.5, 0, 10**6, frequency=frequency)

    return {
        "plain": ("", model),
        "2:4, fixed": ("fixed", sparsify(model, "2:4", schedule="one_shot")),
        "uhp, fixed": ("fixed", sparsify(model, "uhp", schedule="one_shot")),
        "magnitude, fixed": ("fixed", sparsify(model, "magnitude", schedule="one_shot")),
        "2:4, SR-STE": ("refreshed", sparsify(model, "2:4", schedule="sr_ste")),
        "magnitude, every step": ("refreshed", sparsify(model, "magnitude", schedule=ALWAYS)),
        "tfmot 2:4, fixed": (
            "tfmot",
            tfmot_model(
                model, pruning_schedule=schedules.ConstantSparsity(0.5, 0, frequency=10**6), sparsity_m_by_n=(2, 4)
            ),
        ),
        "tfmot magnitude, every step": ("tfmot", tfmot_model(model, pruning_schedule=poly(1))),
        "tfmot magnitude, every 100th": ("tfmot", tfmot_model(model, pruning_schedule=poly(100))),
    }


def stepper(model: keras.Model, size: int) -> Callable[[], None]:
    """One training step as `fit` makes it, with the callback that tfmot needs."""
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_callbacks import UpdatePruningStep

    model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (32, size, size, 1)).astype("float32")
    data = iter(tf.data.Dataset.from_tensors((x, rng.integers(0, 10, 32))).cache().repeat())
    function, callback = model.make_train_function(), UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()

    def step() -> None:
        callback.on_train_batch_begin(0)
        float(function(data)["loss"])

    return step


def measure(network: str) -> list[dict]:
    kind, size, width = NETWORKS[network]
    keras.utils.set_random_seed(0)
    models = variants(build(kind, (size, size, 1), classes=10, width=width))
    steps = {name: stepper(model, size) for name, (_, model) in models.items()}
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for turn in range(FLAGS.turns):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            start = time.perf_counter()
            for _ in range(FLAGS.steps):
                steps[name]()
            seconds[name].append((time.perf_counter() - start) / FLAGS.steps)
    plain = np.array(seconds["plain"])
    rows = []
    for name, (what, _) in models.items():
        ratio = np.array(seconds[name]) / plain
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        row = {"network": network, "variant": name, "kind": what, "ratio": middle, "low": low, "high": high,
               "ms": 1e3 * float(np.median(seconds[name]))}  # fmt: skip
        rows.append(row)
        print(f"{network:32} {name:30} {row['ms']:7.1f} ms  {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
    return rows


def page(rows: list[dict]) -> str:
    body = [
        [r["network"], r["variant"], f"{r['ratio']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}",
         f"{LIMITS[r['kind']]:.2f}" if r["kind"] in LIMITS else ""]
        for r in rows
    ]  # fmt: skip
    intro = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    return "\n\n".join(
        ["# What a sparse training step costs", "Written by `python benchmarks/sparse_step.py`.", intro,
         markdown(["network", "variant", "step, plain = 1 (median)", "quartiles", "at most"], body)]
    ) + "\n"  # fmt: skip


def main(_: list[str]) -> None:
    warnings.simplefilter("ignore")
    rows = [row for network in NETWORKS for row in measure(network)]
    (RESULTS / "sparse_step.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (DOCS / "sparse_step.md").write_text(page(rows), encoding="utf-8")
    over = [r for r in rows if r["kind"] in LIMITS and r["ratio"] > LIMITS[r["kind"]]]
    for r in over:
        print(f"over: {r['network']}, {r['variant']}: {r['ratio']:.3f} > {LIMITS[r['kind']]}")
    print("fail" if over else "pass")
    sys.exit(bool(over))


if __name__ == "__main__":
    app.run(main)
