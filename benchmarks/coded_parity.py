"""Coded and uncoded file of a model on TensorFlow Lite Micro, on every test image: how far do their outputs differ?

    python benchmarks/coded_parity.py --data_dir=DATA --names=vgg16_mstar_1500,vgg16_mstar_2500

Prints a line a model of models/, and files it in results/coded_parity.jsonl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import Runs, data_of

from orbit_kd import runtimes
from orbit_kd.evaluation.metrics import accuracy

FLAGS = flags.FLAGS
flags.DEFINE_list("names", ["vgg16_mstar_1500", "vgg16_mstar_2500"], "Folders of models/, of networks on MSTAR.")

MODELS = Path(__file__).parent.parent / "models"


def compared(name: str) -> dict[str, Any]:
    """Both files of one model on the test split."""
    files = [MODELS / name / f"student_{target}.tflite" for target in ("tflite_int8", "tflite_micro_coded")]
    runners = [runtimes.load(file, runtime="tflm") for file in files]
    most, labels, scores = 0, [], []
    for x, y in data_of("mstar").test:
        plain, coded = (runtimes.run(runner, np.asarray(x), raw=True).astype(int) for runner in runners)
        most = max(most, int(np.abs(plain - coded).max()))
        labels.append(np.asarray(y))
        scores.append(coded)
    truth = np.concatenate(labels)
    return {
        "images": len(truth),
        "max_lsb": most,
        "accuracy_on_tflm": accuracy(truth, np.concatenate(scores)),
        "bytes": [file.stat().st_size for file in files],
    }


def main(_: list[str]) -> None:
    runs = Runs("coded_parity")
    for name in FLAGS.names:
        runs.once({"model": name}, lambda name=name: compared(name))
    for row in runs.rows:
        print(row)


if __name__ == "__main__":
    app.run(main)
