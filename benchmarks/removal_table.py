"""Which channels to remove: criteria, ranking and rounds at equal MACs on MSTAR. Writes docs/removal_table.md.

    python benchmarks/removal_table.py --data_dir=DATA

A quarter-width VGG-16 and ResNet-20 at 32x32 (the crops of 64 pixels, halved), each trained once, lose three quarters
of their MACs and learn 12 epochs from the network they were made of, whatever the row: Adam at 1e-3 on a cosine for
each round, batches of 32, BatchNormalization recalibrated after each removal and each training. Validation (a fifth of
the training images, the same for all) decides; the test split is read once for each finished run and decides nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import app, flags
from experiments import DOCS, SMALL, Runs, accuracy, markdown, small_setting, spread, teach, written_by

from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters

FLAGS = flags.FLAGS
flags.DEFINE_integer("epochs", 12, "Of fine-tuning, over all rounds.")
flags.DEFINE_list("networks", ["vgg16", "resnet20"], "Networks to run.")
flags.DEFINE_float("keep_macs", 0.25, "Part of the MACs that stays.")

CRITERIA = ("l1_norm", "l2_norm", "bn_scale", "geometric_median", "taylor", "apoz", "random")
ROWS = [(c, s, 1) for c in CRITERIA for s in ("local", "global")]
ROWS += [(c, s, 4) for c in ("l1_norm", "taylor") for s in ("local", "global")]
DEFAULTS = """The defaults of `plan_removal` follow from this table: `l1_norm`, local, one round.

- The criteria differ by little once the network has been retrained: of the one-round rows all but those of `apoz` lie
  within two points of the best, random removal among them. `l1_norm` is among the best on both networks and needs no
  data.
- Global ranking gains half a point with `l1_norm` on both networks' validation, about one spread, and on ResNet-20's
  test split it loses half a point; with `l2_norm` and `geometric_median` it gains on VGG-16 and not on ResNet-20, with
  `bn_scale` on VGG-16 and hardly on ResNet-20, with `taylor` it loses on both (validation). VGG-16's global networks
  take longer for equal MACs, as the seconds show: they keep wide first layers. So local stays the default; where
  accuracy at equal MACs is all that counts, say `scope="global"`.
- Four rounds of three epochs do no better than one round of twelve, and on VGG-16 worse: at so few epochs the last
  round is retrained too little.
"""


def run(network: str, criterion: str, scope: str, rounds: int, seed: int) -> dict[str, Any]:
    data, teacher, lessons = small_setting(network)
    student, macs, curve, cut = teacher, (0.0, 0.0), [], []
    for number in range(rounds):
        plan = plan_removal(
            student, criterion=criterion, scope=scope, keep_macs=FLAGS.keep_macs ** (1 / rounds), max_ratio=0.9,
            data=data.train, seed=seed,
        )  # fmt: skip
        macs = (macs[0] or plan.macs[0], plan.macs[1])
        student = remove_filters(student, plan)
        recalibrate_batchnorm(student, data.train)
        cut.append(round(accuracy(student, data.val), 4))
        epochs = FLAGS.epochs * (number + 1) // rounds - FLAGS.epochs * number // rounds
        curve += teach(student, teacher, lessons, data, epochs=epochs, seed=seed, learning_rate=1e-3)
        recalibrate_batchnorm(student, data.train)  # a short training leaves the running statistics behind
    return {
        "macs": macs[1] / macs[0],
        "params": student.count_params(),
        "removed": cut[0],
        "val": round(accuracy(student, data.val), 5),
        "test": round(accuracy(student, data.test), 5),
        "curve": curve,
    }


def page(runs: Runs) -> str:
    parts = [
        "# Which channels to remove",
        written_by("python benchmarks/removal_table.py --data_dir=DATA", "removal_table") + "\n",
        (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ")
        + " Percent, mean and sample deviation over the seeds of "
        "`random`, of order and dropout in the training; the deviation does not hold another teacher or split. "
        '"before" is validation right after the first removal, with BatchNormalization recalibrated. "seconds" is the '
        "median time of a whole run, one thread, beside other work: local and global rows ran in turn.",
        DEFAULTS,
    ]
    for network in SMALL:
        teacher = [r for r in runs.find(network=network) if r["criterion"] == "teacher"]
        rows = []
        for criterion, scope, rounds in ROWS:
            found = runs.find(network=network, criterion=criterion, scope=scope, rounds=rounds)
            if found:
                cells = [spread(r[k] for r in found) for k in ("removed", "val", "test")]
                macs = np.mean([r["macs"] for r in found])
                seconds = f"{np.median([r['seconds'] for r in found]):.0f}"
                line = [criterion, scope, rounds, len(found), f"{macs:.3f}", *cells, seconds]
                rows.append((np.mean([r["val"] for r in found]), line))
        rows.sort(key=lambda r: -r[0])
        for t in teacher:
            whole = f"Whole network: validation {100 * t['val']:.2f}%, test {100 * t['test']:.2f}%."
            parts.append(f"## {network}\n\n{whole}")
        head = ["criterion", "ranking", "rounds", "seeds", "MACs left", "before", "validation", "test", "seconds"]
        parts.append(markdown(head, (cells for _, cells in rows)))
    means = {
        row: [100 * np.mean([r["val"] for n in SMALL for r in runs.find(
            network=n, criterion=row[0], scope=row[1], rounds=row[2])])]
        for row in ROWS
        if all(runs.find(network=n, criterion=row[0], scope=row[1], rounds=row[2]) for n in SMALL)
    }  # fmt: skip
    if means:
        order = sorted(means, key=lambda r: -means[r][0])
        parts.append("## Both networks together\n\nMean validation accuracy of the two, best first.")
        parts.append(markdown(["criterion", "ranking", "rounds", "validation"],
                              ([*row, f"{means[row][0]:.2f}"] for row in order)))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs = Runs("removal_table")
    for network in FLAGS.networks:

        def whole(network: str = network) -> dict[str, Any]:
            data, teacher, _ = small_setting(network)
            return {"val": accuracy(teacher, data.val), "test": accuracy(teacher, data.test)}

        runs.once({"network": network, "criterion": "teacher"}, whole)
    for seed in map(int, FLAGS.seeds):
        for network in FLAGS.networks:
            for criterion, scope, rounds in ROWS:
                settings = {"network": network, "criterion": criterion, "scope": scope, "rounds": rounds, "seed": seed,
                            "epochs": FLAGS.epochs, "keep_macs": FLAGS.keep_macs}  # fmt: skip
                runs.once(settings, lambda n=network, c=criterion, s=scope, r=rounds, k=seed: run(n, c, s, r, k))
    (DOCS / "removal_table.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
