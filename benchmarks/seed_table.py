"""The same compression under several seeds: one line each in results/<name>.jsonl, and a table for the model's card.

    python benchmarks/seed_table.py --name=vgg16_mstar_400 --runs=out/vgg400_0,out/vgg400_1,out/vgg400_2

--runs are the workdirs of `tools/compress.py` with the same flags but --seed; without it, the table of the lines that
are there. The file that counts is the one that the report's headline is about.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import RESULTS, markdown

from orbit_kd.reports.merit import merit
from orbit_kd.reports.summary import main_artifact

FLAGS = flags.FLAGS
FLAGS["data_dir"].value = ""  # reports are read, no images
flags.DEFINE_string("name", None, "Folder of models/ that the runs belong to.", required=True)
flags.DEFINE_list("runs", [], "Workdirs of the finished runs.")


def row(workdir: str) -> dict[str, Any]:
    """What one run's report says of the file that its headline is about."""
    report = json.loads(Path(workdir, "report.json").read_text(encoding="utf-8"))
    file, told = main_artifact(report), merit(report)
    kept = ("bytes", "mcnemar_p", "teacher_only_right", "student_only_right", "paired_p", "tflm")
    return {
        "seed": report["seed"],
        "metric": told.name,
        "teacher": told.of(report["teacher"]),
        "student": told.of(file),
        "target": file["target"],
        **{name: file[name] for name in kept if name in file},
        "ratios": report["ratios"],
        "stages": report["stages"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a seed, then the mean and what it means."""
    name = rows[0].get("metric", "accuracy")
    head = ["seed", name, "difference", "paired test, p", "bytes", "fewer", "arena", "TFLM, LSB"]
    before, after = ([r.get(new, r.get(old)) for r in rows] for new, old in (
        ("teacher", "teacher_accuracy"), ("student", "int8_accuracy")))  # fmt: skip
    drops = [100 * (b - a) for a, b in zip(before, after, strict=True)]
    body = [
        [r["seed"], f"{value:.2%}", f"{drop:+.2f} points", f"{r.get('mcnemar_p', r.get('paired_p')):.2g}",
         f"{r['bytes']:,}", f"{r['ratios']['bytes']:.1f}x", f"{r['tflm'].get('arena_bytes') or 0:,}",
         r["tflm"].get("max_lsb", "-")]
        for r, value, drop in zip(rows, after, drops, strict=True)
    ]  # fmt: skip
    spread = f", sample deviation {np.std(drops, ddof=1):.2f}" if len(drops) > 1 else ""
    zero = len({r["seed"] for r in rows}) >= 3 and np.mean(drops) >= 0
    verdict = " By the project's definition this is zero loss: a mean of at least 0 over three seeds." if zero else ""
    told = f"Teacher: {before[0]:.2%}. Mean difference {np.mean(drops):+.2f} points over {len(drops)} seeds"
    told += f", from {min(drops):+.2f} to {max(drops):+.2f}{spread}.{verdict}"
    return f"{markdown(head, body)}\n\n{told}"


def main(_: list[str]) -> None:
    file = RESULTS / f"{FLAGS.name}.jsonl"
    if FLAGS.runs:
        file.write_text("".join(json.dumps(row(run)) + "\n" for run in FLAGS.runs), encoding="utf-8")
    print(table([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    app.run(main)
