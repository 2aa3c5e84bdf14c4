"""The same compression under several seeds: one line each in results/<name>.jsonl, and a table for the model's card.

    python benchmarks/seed_table.py --name=vgg16_mstar_400 --runs=out/vgg400_0,out/vgg400_1,out/vgg400_2

--runs are the workdirs of `tools/compress.py` with the same flags but --seed; without it, the table of the lines that
are there. The file that counts is the int8 one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import RESULTS, markdown

FLAGS = flags.FLAGS
FLAGS["data_dir"].value = ""  # reports are read, no images
flags.DEFINE_string("name", None, "Folder of models/ that the runs belong to.", required=True)
flags.DEFINE_list("runs", [], "Workdirs of the finished runs.")


def row(workdir: str) -> dict[str, Any]:
    """What one run's report says of its int8 file."""
    report = json.loads(Path(workdir, "report.json").read_text(encoding="utf-8"))
    file = next(a for a in report["artifacts"] if a["target"] == "tflite_int8")
    return {
        "seed": report["seed"],
        "teacher_accuracy": report["teacher"]["accuracy"],
        "int8_accuracy": file["accuracy"],
        "bytes": file["bytes"],
        "ratios": report["ratios"],
        **{name: file[name] for name in ("mcnemar_p", "teacher_only_right", "student_only_right", "tflm")},
        "stages": report["stages"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a seed, then the mean and what it means."""
    head = ["seed", "int8 accuracy", "difference", "McNemar p", "teacher only right", "student only right", "bytes",
            "TFLM, LSB"]  # fmt: skip
    drops = [100 * (r["int8_accuracy"] - r["teacher_accuracy"]) for r in rows]
    body = [
        [r["seed"], f"{r['int8_accuracy']:.2%}", f"{drop:+.2f} points", f"{r['mcnemar_p']:.2g}",
         r["teacher_only_right"], r["student_only_right"], f"{r['bytes']:,}", r["tflm"].get("max_lsb", "-")]
        for r, drop in zip(rows, drops, strict=True)
    ]  # fmt: skip
    spread = f", sample deviation {np.std(drops, ddof=1):.2f}" if len(drops) > 1 else ""
    zero = len({r["seed"] for r in rows}) >= 3 and np.mean(drops) >= 0
    verdict = " By the project's definition this is zero loss: a mean of at least 0 over three seeds." if zero else ""
    return (
        f"{markdown(head, body)}\n\nMean difference {np.mean(drops):+.2f} points over {len(drops)} seeds, from "
        f"{min(drops):+.2f} to {max(drops):+.2f}{spread}.{verdict}"
    )


def main(_: list[str]) -> None:
    file = RESULTS / f"{FLAGS.name}.jsonl"
    if FLAGS.runs:
        file.write_text("".join(json.dumps(row(run)) + "\n" for run in FLAGS.runs), encoding="utf-8")
    print(table([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    app.run(main)
