"""Bytes of an update by each method, for pairs of versions of one student. Writes docs/uplink_table.md.

    python benchmarks/uplink.py --data_dir=DATA

The student is `models/vgg16_mstar_400` (int8, 157 KB). Its next version is

- another seed: the same shape, trained from nothing with labels, briefly (its bytes are asked for, not its accuracy);
- trained on: one epoch more, at a small learning rate;
- last layer: only the logits' layer was trained on;
- new gain: the sensor's gain is halved, and the student is trained on with such chips for two epochs.

Each update is applied again before it counts. Accuracy is that of the int8 files on the test chips of their sensor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import AUGMENT, DOCS, Runs, data_of, markdown, written_by

from orbit_kd.datasets import Data
from orbit_kd.evaluation.outputs import logits
from orbit_kd.exporters import export
from orbit_kd.exporters.metadata import note
from orbit_kd.flight.uplink import make_update, methods
from orbit_kd.models.saving import load_model
from orbit_kd.training.fit import train

FLAGS = flags.FLAGS
MODEL = Path(__file__).parent.parent / "models" / "vgg16_mstar_400" / "student.keras"
GAIN = 0.5
HOW = {  # epochs, learning rate, part of the sensor's gain
    "another seed": (3, 2e-3, 1.0),
    "trained on": (1, 1e-4, 1.0),
    "last layer": (1, 1e-3, 1.0),
    "new gain": (2, 5e-4, GAIN),
}


def student(kind: str) -> keras.Model:
    """The network from which a version's training begins."""
    model = load_model(MODEL)
    if kind == "another seed":
        keras.utils.set_random_seed(1)
        model = keras.models.clone_model(model)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9  # its usual 0.99 lags in a short training
    if kind == "last layer":
        for layer in model.layers[:-1]:
            layer.trainable = False
    return model


def trained(kind: str, data: Data) -> keras.Model:
    """The trained version, kept in --workdir."""
    epochs, rate, _ = HOW[kind]
    path = Path(FLAGS.workdir, "uplink", f"{kind.replace(' ', '_')}.keras")
    if not path.is_file():
        train(student(kind), data, epochs=epochs, learning_rate=rate, augment=AUGMENT["mstar"], path=path)
    return load_model(path)


def int8(model: keras.Model, data: Data, name: str) -> Path:
    """The int8 file of a version; its ranges are set by the same training chips."""
    path = Path(FLAGS.workdir, "uplink", f"{name.replace(' ', '_')}.tflite")
    about = note(data.class_names, data.preprocess)
    return export(model, "tflite_int8", path=path, calibration=data.train, metadata=about).path


def accuracy(path: Path | bytes, data: Data) -> float:
    labels, found = logits({"file": path}, data.test)
    return round(float(np.mean(found["file"].argmax(1) == labels)), 4)


def versions(kind: str) -> tuple[bytes, bytes, Data]:
    """The old file, the new one, and the data of the new one's sensor."""
    seen, now = data_of("mstar"), data_of("mstar", scale=HOW[kind][2])
    old = int8(load_model(MODEL), seen, "old")
    return old.read_bytes(), int8(trained(kind, now), now, kind).read_bytes(), now


def bytes_of_pair(kind: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        old, new, now = versions(kind)
        made = make_update(old, new)
        return {"old": len(old), "new": len(new), "sizes": made.sizes, "chosen": made.method,
                "accuracy": [accuracy(old, now), accuracy(new, now)]}  # fmt: skip

    return run


def page(runs: Runs) -> str:
    names = methods.names()
    rows = []
    for kind in HOW:
        for row in runs.find(pair=kind):
            rest = [size for name, size in row["sizes"].items() if name != "tensors"]
            before, after = (f"{100 * v:.2f}%" for v in row["accuracy"])
            rows.append([kind, f"{row['new']:,}", *(f"{row['sizes'][name]:,}" for name in names),
                         f"{min(rest) / row['sizes']['tensors']:.2f}x", f"{before} → {after}"])  # fmt: skip
    head = ["new version", "file", *names, "`tensors` smaller than the best other", "accuracy, old → new file"]
    command = written_by("python benchmarks/uplink.py --data_dir=DATA", "uplink")
    return f"# Bytes of an update\n\n{command}\n\n" + (__doc__ or "").split("\n\n", 2)[2] + "\n" + markdown(head, rows)


def main(_: list[str]) -> None:
    runs = Runs("uplink")
    for kind in ("last layer", "trained on", "new gain", "another seed"):
        runs.once({"pair": kind}, bytes_of_pair(kind))
    (DOCS / "uplink_table.md").write_text(page(runs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
