"""Seconds of filter removal, against the floor of any rebuild and against Torch-Pruning: docs/filter_removal.md.

    python -m venv peer && peer/bin/pip install torch==2.13.0 torch-pruning==1.6.1
    python benchmarks/filter_removal.py --torch_python=peer/bin/python --rounds=5
    python benchmarks/filter_removal.py --torch_python=peer/bin/python --rounds=9 --networks=vgg16_bn
    python benchmarks/filter_removal.py --torch_python=peer/bin/python --rounds=5 --threads=1

Ratio 0.5, widths in multiples of 8, L1 norm, 224 px, 1000 classes, random weights. What is compared alternates in one
run, after a warm-up of each, and every ratio is taken within a round. A busy machine slows both sides, but most of all
torch's threads, which wait for each other: one thread is there to show what is left without that. Without
--torch_python, the floor alone. The page has the last row of each network and number of threads.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import app, flags
from tf_keras import layers

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "filter_removal.jsonl", HERE.parent / "docs" / "filter_removal.md"
FLOOR = 1.3

FLAGS = flags.FLAGS
flags.DEFINE_string("torch_python", "", "Interpreter of an environment with torch and torch-pruning.")
flags.DEFINE_integer("rounds", 7, "Measurements of each kind.", lower_bound=1)
flags.DEFINE_integer("threads", 2, "Of either side.", lower_bound=1)
flags.DEFINE_list("networks", ["resnet50", "vgg16_bn", "mobilenet_v2", "densenet121"], "Networks to measure.")

Seconds = dict[str, float]
Ask = Callable[[str], Seconds]


def vgg16_bn() -> keras.Model:
    """VGG-16 with BatchNormalization and the large head of the paper, as torchvision has it."""
    x = image = keras.Input((224, 224, 3))
    for filters, depth in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(depth):
            x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(x)))
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dropout(0.5)(layers.Dense(4096, activation="relu")(x))
    return keras.Model(image, layers.Dense(1000)(x), name="vgg16_bn")


def network(name: str) -> keras.Model:
    classes = {"resnet50": "ResNet50", "mobilenet_v2": "MobileNetV2", "densenet121": "DenseNet121"}
    if name == "vgg16_bn":
        return vgg16_bn()
    return getattr(keras.applications, classes[name])(weights=None, classifier_activation=None)


@contextlib.contextmanager
def torch_pruning(python: str) -> Iterator[Ask | None]:
    """A function that has Torch-Pruning measure a network, in a process that stays alive; None without it."""
    if not python:
        yield None
        return
    command = [python, str(HERE / "torch_pruning_side.py"), str(FLAGS.threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(name: str) -> Seconds:
            print(name, file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"Torch-Pruning stopped at {name}: see above.")
            return json.loads(line)

        yield ask
        process.stdin.close()


def seconds(function: Callable[[], Any]) -> float:
    """Of one call; its result is dropped after the clock has stopped."""
    gc.collect()
    start = time.perf_counter()
    result = function()
    end = time.perf_counter()
    del result
    return end - start


def copied(model: keras.Model) -> keras.Model:
    """A clone with the weights of the model: what a user has to do for a copy."""
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def measure(name: str, ask: Ask | None) -> dict[str, Any]:
    """Seconds of every step, one number a round."""
    model = network(name)
    how = {"ratio": 0.5, "round_to": 8, "criterion": "l1_norm"}
    plan = plan_removal(model, **how)
    student = remove_filters(model, plan)
    ours: dict[str, Callable[[], Any]] = {
        "clone": lambda: keras.models.clone_model(model),
        "rebuild": lambda: remove_filters(model, plan),
        "copy": lambda: copied(model),
        "clone_small": lambda: keras.models.clone_model(student),
        "trace": lambda: ChannelGraph(model),
        "plan": lambda: plan_removal(model, **how),  # traces, too
    }
    steps: list[Callable[[], Seconds]] = [lambda k=k, f=f: {k: seconds(f)} for k, f in ours.items()]
    if ask is not None:
        steps.append(lambda: ask(name))
    rounds: list[Seconds] = []
    for r in range(FLAGS.rounds + 1):  # the first one warms up
        found: Seconds = {}
        for k in range(len(steps)):
            found |= steps[(r + k) % len(steps)]()
        rounds.append(found)
    row = {k: [round(found[k], 4) for found in rounds[1:]] for k in rounds[0]}
    load = round(os.getloadavg()[0], 1)
    return {"network": name, "threads": FLAGS.threads, "load": load, "params": plan.params[1] / plan.params[0], **row}


def ratio(row: dict[str, Any], above: tuple[str, ...], below: tuple[str, ...]) -> np.ndarray:
    """Lower quartile, median and upper quartile of the rounds' ratios."""
    sums = [np.sum([row[k] for k in part], axis=0) for part in (above, below)]
    return np.percentile(sums[0] / sums[1], (25, 50, 75))


def shown(quartiles: np.ndarray) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"


def median(row: dict[str, Any], *steps: str) -> str:
    return f"{np.median(np.sum([row[k] for k in steps], axis=0)):.3f}"


def setting(row: dict[str, Any]) -> list[str]:
    return [row["network"], str(row["threads"])]


def claims(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Claim -> the networks (and threads) that fail it."""
    found = {
        f"rebuild takes at most {FLOOR} of clone_model": [
            " at ".join(setting(r)) for r in rows if ratio(r, ("rebuild",), ("clone",))[1] > FLOOR
        ]
    }
    pairs = [r for r in rows if "graph" in r]
    if pairs:
        found["trace + plan is faster than Torch-Pruning's graph + prune"] = [
            " at ".join(setting(r)) for r in pairs if ratio(r, ("plan",), THEIRS)[1] >= 1
        ]
    return found


THEIRS = ("graph", "choose", "rewrite")
Columns = dict[str, Callable[[dict[str, Any]], str]]
REBUILD: Columns = {
    "rounds": lambda r: str(len(r["clone"])),
    "load": lambda r: str(r["load"]),
    "clone_model s": lambda r: median(r, "clone"),
    "rebuild s": lambda r: median(r, "rebuild"),
    "rebuild / clone_model": lambda r: shown(ratio(r, ("rebuild",), ("clone",))),
    "/ clone_model and set_weights": lambda r: shown(ratio(r, ("rebuild",), ("copy",))),
    "/ clone_model of the small one": lambda r: shown(ratio(r, ("rebuild",), ("clone_small",))),
}
SECONDS: Columns = {
    "our trace s": lambda r: median(r, "trace"),
    "trace + plan s": lambda r: median(r, "plan"),
    "+ rebuild s": lambda r: median(r, "plan", "rebuild"),
    "their graph s": lambda r: median(r, "graph"),
    "choose s": lambda r: median(r, "choose"),
    "rewrite s": lambda r: median(r, "rewrite"),
    "params left, ours": lambda r: f"{r['params']:.3f}",
    "theirs": lambda r: f"{r['params_left'][0]:.3f}",
}
RATIOS: Columns = {
    "trace + plan / graph + prune": lambda r: shown(ratio(r, ("plan",), THEIRS)),
    "with their fastest round": lambda r: f"{np.median(r['plan']) / np.sum([r[k] for k in THEIRS], axis=0).min():.2f}",
    "trace + plan / graph + choose": lambda r: shown(ratio(r, ("plan",), THEIRS[:2])),
    "trace + plan + rebuild / graph + prune": lambda r: shown(ratio(r, ("plan", "rebuild"), THEIRS)),
}


def table(columns: Columns, rows: list[dict[str, Any]]) -> str:
    head = ["network", "threads", *columns]
    lines = [head, ["---"] * len(head), *([*setting(r), *(cell(r) for cell in columns.values())] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows: list[dict[str, Any]], replaced: list[str]) -> str:
    _, command, settings = (__doc__ or "").split("\n\n")
    parts = [
        "# Seconds of filter removal",
        "Written by these commands, from `benchmarks/results/filter_removal.jsonl`:\n\n"
        + "\n".join(line.removeprefix("    ") for line in ["```", *command.splitlines(), "```"]),
        settings.strip().replace("\n", " ") + " Seconds are medians; ratios are medians over the rounds, with the "
        f"quartiles; load is the average of the last minute when the row was done, {os.cpu_count()} cores.",
        "## Rebuild",
        "`remove_filters` traces the network, makes the narrower layers and copies what stays of the weights. "
        f"`clone_model` makes the layers and draws new weights: the floor, of which at most {FLOOR} is claimed. A "
        "large network takes longer to draw at full width than to rebuild at half; the last column, against a clone "
        "of the small network, has no such gain.",
        table(REBUILD, rows),
    ]
    pairs = [r for r in rows if "graph" in r]
    if pairs:
        parts += [
            "## Beside Torch-Pruning",
            "Torch-Pruning 1.6.1 on torch 2.13.0, the same networks as torchvision has them. Their graph comes from a "
            "forward pass of an image and the gradient functions it leaves; ours is read from the Keras layer graph "
            "and computes nothing. Their score of a group sums over all its layers, the ones that read it and the "
            "BatchNorms too; our L1 norm looks at the filters alone. Their last step cuts the tensors of the network "
            "in place; our plan changes nothing, and `remove_filters` makes a new network, layer by layer, and leaves "
            "the old one as it is.",
            table(SECONDS, pairs),
            "Our time as a part of theirs; below 1 is faster. Only the first column is claimed. The second is our "
            "median beside their fastest round; the third leaves out their rewriting, as our plan has none; the last "
            "is the whole way to a smaller network on both sides, and there we are slower wherever it is above 1: "
            "nearly all of our time goes into making Keras layers, as the ratios to `clone_model` show.",
            table(RATIOS, pairs),
        ]
    parts += ["## Claims", "\n".join(f"- {line}" for line in [*verdicts(rows), *replaced])]
    return "\n\n".join(parts) + "\n"


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{claim}: {'fails for ' + ', '.join(bad) if bad else 'pass'}" for claim, bad in claims(rows).items()]


def earlier(row: dict[str, Any]) -> str:
    """What a row says that a later one has taken the place of."""
    values = shown(ratio(row, ("rebuild",), ("clone",)))
    verdict = "; ".join(verdicts([row]))
    network, threads = setting(row)
    return (
        f"an earlier row, {network} with {threads} threads, {len(row['clone'])} rounds: rebuild / clone_model "
        f"{values}; {verdict}"
    )


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(FLAGS.threads)
    with torch_pruning(FLAGS.torch_python) as ask:
        for name in FLAGS.networks:
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            row = measure(name, ask)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    every = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    last = {tuple(setting(r)): r for r in every}
    rows = sorted(last.values(), key=lambda r: -r["threads"])
    PAGE.write_text(page(rows, [earlier(r) for r in every if r not in rows]), encoding="utf-8")
    print("; ".join(verdicts(rows)))
    sys.exit(int(any(claims(rows).values())))


if __name__ == "__main__":
    app.run(main)
