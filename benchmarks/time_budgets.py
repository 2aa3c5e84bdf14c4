"""How small a network gets in 2, 5, 15 and 60 minutes. Writes docs/time_budgets.md from results/time_budgets.jsonl.

    python benchmarks/time_budgets.py --data_dir=DATA --budgets=2,5,15,60

`compress` with max_drop=0.02 and nothing else chosen, on three networks: MobileNetV2 (alpha 0.35, 96x96, made and
trained in Keras 3) on RSSCN7, ResNet-20 (32x32) on MSTAR, VGG-16 of quarter width (48x48) on AID-15a. Claim: more time
never gives a larger file, and no file is larger than the teacher's own int8 file or less accurate on validation images
than was asked.

A run is a finished line; the same command goes on with what is missing. Run it while the machine does nothing else: the
budgets are minutes on a clock.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import AUGMENT, DOCS, RESULTS, Runs, data_of, markdown, small_setting, written_by

from orbit_kd.datasets import Data, load
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.networks import build
from orbit_kd.models.saving import load_model
from orbit_kd.pipeline.compress import compress
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.training.fit import train

FLAGS = flags.FLAGS
flags.DEFINE_list("budgets", ["2", "5", "15", "60"], "Minutes.")
flags.DEFINE_list("networks", ["mobilenet_v2", "resnet20", "vgg16"], "Which of the three.")
flags.DEFINE_string("target", "tflite_int8", "The file whose bytes are to be few.")
flags.DEFINE_integer("teacher_epochs", 40, "Of the teachers, which are trained once.")
DROP = 0.02


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set, its trained teacher, and how images are changed in training."""

    data: Data
    teacher: keras.Model
    augment: Augment


@functools.cache
def mobilenet_v2() -> Setting:
    """A network of Keras 3, as many users have one."""
    data = load(Path(FLAGS.data_dir, "rsscn7"), preprocess=Preprocess(resize=96), seed=0, batch_size=32)
    path, augment = Path(FLAGS.workdir, "mobilenet_v2.keras"), Augment(shift=8, flip="hv")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _train_in_keras3(data, augment, path)
    return Setting(data, as_tf_keras(load_model(path)), augment)


def _train_in_keras3(data: Data, augment: Augment, path: Path) -> None:
    import keras as keras3

    keras3.utils.set_random_seed(0)
    base = keras3.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    for layer in base.layers:
        if isinstance(layer, keras3.layers.BatchNormalization):
            layer.momentum = 0.95  # the usual 0.999 lags behind a training of some hundred steps
    image = keras3.Input((96, 96, 3))
    x = base(keras3.layers.Rescaling(1 / 127.5, offset=-1)(image))
    scores = keras3.layers.Dense(7, activation="softmax")(keras3.layers.Dropout(0.2)(x))
    model = keras3.Model(image, scores, name="mobilenet_v2")
    epochs, steps = FLAGS.teacher_epochs, data.steps(64)
    rate = keras3.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
    model.compile(keras3.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"],
                  jit_compile=False)  # fmt: skip
    batches = data.epochs(seed=0, augment=augment, start=0, batch_size=64)
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, validation_data=data.val, verbose=2)
    model.save(path)


@functools.cache
def resnet20() -> Setting:
    """The small ResNet of the other tables."""
    data, teacher, _ = small_setting("resnet20")
    return Setting(data, teacher, AUGMENT["mstar"])


@functools.cache
def vgg16() -> Setting:
    """Fifteen classes of scenes, a quarter of VGG-16's width."""
    data, path = data_of("aid15a", resize=48), Path(FLAGS.workdir, "vgg16_aid15a.keras")
    if not path.is_file():
        keras.utils.set_random_seed(0)
        model = build("vgg16", data.shape, classes=15, width=0.25)
        train(model, data, epochs=FLAGS.teacher_epochs, augment=AUGMENT["aid15a"], path=path)
    return Setting(data, load_model(path), AUGMENT["aid15a"])


NETWORKS: dict[str, Callable[[], Setting]] = {"mobilenet_v2": mobilenet_v2, "resnet20": resnet20, "vgg16": vgg16}


def run(network: str, minutes: float) -> dict[str, Any]:
    """What `compress` reaches in so many minutes."""
    setting = NETWORKS[network]()
    recipe = Recipe(max_drop=DROP, time_budget=60 * minutes, targets=(FLAGS.target,))
    folder = Path(FLAGS.workdir, f"{network}_{FLAGS.target}_{minutes:g}")
    report = compress(setting.teacher, setting.data, recipe=recipe, augment=setting.augment, workdir=folder).report.data
    search, file = report["search"], report["artifacts"][0]
    whole = search["teacher"]
    return {
        "bytes": file["bytes"], "teacher_bytes": whole["bytes"], "asked": search["target"],
        "validation": search["reached"], "test": file["accuracy"], "teacher_test": report["teacher"]["accuracy"],
        "macs_ratio": report["ratios"]["macs"], "params": report["student"]["params"], "verdict": search["verdict"],
        "trials": len(search["trials"]), "taken": sum(t["accepted"] for t in search["trials"]),
        "search_seconds": next(s["seconds"] for s in report["stages"] if s["name"] == "search"),
    }  # fmt: skip


def page(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """The page, and whether the claim holds."""
    body, faults = [], []
    for network, target in dict.fromkeys((r["network"], r["target"]) for r in rows):
        found = sorted(
            (r for r in rows if (r["network"], r["target"]) == (network, target)), key=lambda r: r["minutes"]
        )
        least = np.inf
        for r in sorted(found, key=lambda r: r["minutes"]):
            name = f"{network}, {target}, {r['minutes']:g} minutes"
            if r["bytes"] > least:
                faults.append(f"{name}: {r['bytes']:,} bytes, more than with less time ({least:,.0f})")
            if r["bytes"] > r["teacher_bytes"] * 1.02:  # the note on classes and images counts in one alone
                faults.append(f"{name}: larger than the teacher's own file")
            if r["validation"] < r["asked"]:
                faults.append(f"{name}: {r['validation']:.2%} on validation images, asked {r['asked']:.2%}")
            least = min(least, r["bytes"])
            body.append([network, target, f"{r['minutes']:g}", f"{r['bytes']:,}",
                         f"{r['teacher_bytes'] / r['bytes']:.1f}x", f"{r['macs_ratio']:.1f}x",
                         f"{100 * (r['validation'] - r['asked']):+.2f}",
                         f"{100 * (r['test'] - r['teacher_test']):+.2f}",
                         f"{r['taken']} of {r['trials']}"])  # fmt: skip
    head = ["network", "file", "minutes", "bytes", "fewer than the teacher's int8 file", "fewer MACs",
            "validation above what was asked, points", "test against the teacher, points", "trials taken"]  # fmt: skip
    claim = "\n".join(f"- {fault}" for fault in faults) or "More time never gave a larger file; every file is within."
    text = [
        "# What a search finds in how much time",
        written_by("python benchmarks/time_budgets.py --data_dir=DATA", "time_budgets"),
        (__doc__ or "").split("\n\n")[2].strip().replace("\n", " "),
        markdown(head, body),
        claim,
    ]
    return "\n\n".join(text) + "\n", not faults


def main(_: list[str]) -> None:
    runs = Runs("time_budgets")
    for minutes in map(float, FLAGS.budgets):
        for network in FLAGS.networks:
            settings = {"network": network, "target": FLAGS.target, "drop": DROP, "minutes": minutes}
            runs.once(settings, functools.partial(run, network, minutes))
    if not RESULTS.joinpath("time_budgets.jsonl").is_file():
        sys.exit("no run has finished yet")
    text, good = page(Runs("time_budgets").rows)
    (DOCS / "time_budgets.md").write_text(text, encoding="utf-8")
    print(text, "pass" if good else "fail", sep="\n")
    sys.exit(not good)


if __name__ == "__main__":
    app.run(main)
