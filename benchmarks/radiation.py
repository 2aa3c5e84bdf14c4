"""Bit flips in three published networks: curves by region, and how many trials a second against the plain way.

    python benchmarks/radiation.py --data_dir=DATA

One line a finished network in results/radiation.jsonl. The plain way writes the damaged file, loads it anew and runs
the whole test set; it and the campaign take turns in this script.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import DOCS, Runs, markdown, written_by

from orbit_kd.datasets import load
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.evaluation.outputs import logits
from orbit_kd.exporters.metadata import read_metadata
from orbit_kd.flight.guard import harden
from orbit_kd.flight.radiation import campaign
from orbit_kd.flight.regions import REGIONS, Field, spans
from orbit_kd.flight.worker import flipped
from orbit_kd.support.files import write_file
from orbit_kd.tasks.metrics import accuracy

FLAGS = flags.FLAGS
MODELS = Path(__file__).parent.parent / "models"
NETWORKS = ("vgg16_mstar_400", "resnet20_mstar", "mobilenet_mstar")
LEVELS = ("none", "small", "constants")
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
HOW: dict[str, Any] = {"images": 128, "trials": 96, "tolerance": 0.005}


def main(_: list[str]) -> None:
    runs = Runs("radiation")
    for name in NETWORKS:
        if not [row for row in runs.find(network=name) if "level" not in row]:
            runs.once({"network": name, **HOW}, lambda name=name: measured(name))
        for level in LEVELS:
            if not runs.find(network=name, level=level):
                runs.once({"network": name, "level": level}, lambda name=name, level=level: hardened(name, level))
    guarded = [row for row in runs.rows if "level" in row]
    bare = [row for row in runs.rows if "level" not in row]
    parts = [f"## {row['network']}\n\n{curves(row)}\n" for row in bare]
    speed = markdown(
        ["network", "plain way, trials a second", "campaign", "ratio, median of 3 turns"],
        [[r["network"], f"{r['plain']:.2f}", f"{r['ours']:.2f}", f"{r['speed']:.1f}x"] for r in bare],
    )
    head = ["network", "guard", "its bytes", "without flips", "mean at 1e-3", "95% interval", "worst", "trials",
            "did not run"]  # fmt: skip
    table = markdown(head, [guarded_cells(row) for row in guarded])
    command = "python benchmarks/radiation.py --data_dir=DATA"
    text = f"# Bit flips: figures\n\n{written_by(command, 'radiation')}\n\n" + "\n".join(parts)
    told = "Every bit of weights, biases, scales and of the guard itself flips with a probability of 0.001."
    text += f"\n## With a guard\n\n{told}\n\n{table}\n\n## Trials a second\n\n{speed}\n"
    write_file(DOCS / "radiation_figures.md", text)


def curves(row: dict[str, Any]) -> str:
    """A table of one network: regions down, rates across."""
    found = {(r["region"], r["rate"]): r for r in row["rows"]}
    body = [[region, *(cell(found[region, rate]) for rate in RATES)] for region in REGIONS]
    told = (
        f"{row['file']} on {row['runtime']}, accuracy {row['whole']:.2%} without flips; {row['images']} images a trial."
    )
    return f"{told}\n\n" + markdown(["region", *(f"{rate:g}" for rate in RATES)], body)


def cell(row: dict[str, Any]) -> str:
    """Mean, interval, worst; what did not run."""
    failed = f"{row['failed'][0]:.0%} of {row['trials']} fail"
    if row.get("value") is None:
        return failed
    low, high, worst = (f"{100 * row[key]:.1f}" for key in ("low", "high", "worst"))
    said = f"{row['value']:.1%} [{low}, {high}], worst {worst}, {row['trials']} trials"
    return f"{said}; {row['failed'][0]:.0%} fail" if row["failed"][0] else said


def guarded_cells(row: dict[str, Any]) -> list[str]:
    """A line of the table of guards."""
    figures = ["–"] * 3
    if row.get("value") is not None:
        figures = [f"{row['value']:.2%}", f"{row['low']:.2%} to {row['high']:.2%}", f"{row['worst']:.2%}"]
    named = [row["network"], row["level"], f"{row['bytes']:.1%}", f"{row['whole']:.2%}"]
    return [*named, *figures, str(row["trials"]), f"{row['failed'][0]:.0%}"]


def measured(name: str) -> dict[str, Any]:
    """The campaign, then both ways in turns."""
    file = MODELS / name / "student_tflite_int8.tflite"
    data = data_of(file)
    path = Path(FLAGS.workdir, "radiation", f"{name}.jsonl")
    found = campaign(file, data.test, rates=RATES, path=path, **HOW)
    plain, ours = list[float](), list[float]()
    for turn in range(3):
        start = time.perf_counter()
        straightforward(file.read_bytes(), data.test, trials=4, seed=turn)
        plain.append(4 / (time.perf_counter() - start))
        start = time.perf_counter()
        done = campaign(file, data.test, regions=["weights"], rates=[1e-3], seed=turn, **{**HOW, "tolerance": 0.0})
        ours.append(sum(row.trials for row in done.rows) / (time.perf_counter() - start))
    speed = float(np.median([b / a for a, b in zip(plain, ours, strict=True)]))
    return {**found.to_dict(), "plain": float(np.median(plain)), "ours": float(np.median(ours)), "speed": speed}


def hardened(name: str, level: str) -> dict[str, Any]:
    """Flips in all constants, and in the guard that repairs them before each run."""
    file = MODELS / name / "student_tflite_int8.tflite"
    guard = b"" if level == "none" else harden(file, level=level)
    found = campaign(
        file, data_of(file).test, regions=["constants"], rates=[1e-3], guard=guard or None, images=256, trials=100,
        tolerance=0.0,
    )  # fmt: skip
    return {"bytes": len(guard) / file.stat().st_size, "whole": found.whole, **found.rows[0].to_dict()}


def data_of(file: Path) -> Any:
    """MSTAR as a file takes it."""
    return load(Path(FLAGS.data_dir, "mstar10"), preprocess=Preprocess(**read_metadata(file)["preprocess"]))


def straightforward(data: bytes, test: Any, *, trials: int, seed: int) -> None:
    """What one would write first: a file a trial, a new interpreter, all images, one process."""
    field, rng = Field([s for s in spans(data) if s.region == "weights"], None), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(trials):
            path = Path(folder, "damaged.tflite")
            path.write_bytes(flipped(data, field.drawn(1e-3, rng)))
            labels, outputs = logits({"damaged": str(path)}, test)
            accuracy(labels, outputs["damaged"])


if __name__ == "__main__":
    app.run(main)
