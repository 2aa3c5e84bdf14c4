"""What the accuracy tables share: runs kept one JSON line each, students taught alike, means with their spread.

A run is known by its settings: a table goes on where it stopped, and every line says how it was made.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags
from absl import logging as absl_logging

from orbit_kd.datasets import Data, load
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.distillation import DistillationLoss, LogitsDistillation, TeacherCache
from orbit_kd.distillation.job import TrainingJob
from orbit_kd.models.networks import build
from orbit_kd.models.saving import load_model
from orbit_kd.search.evaluator import batches_of, value_of
from orbit_kd.training.fit import train

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
FOLDERS = {"mstar": "mstar10", "aid15a": "aid15a"}
TEACHERS = {"mstar": "vgg16_mstar64.keras", "aid15a": "vgg16_aid15a_64.keras"}
PREPROCESS = {"mstar": Preprocess(crop=64), "aid15a": Preprocess(resize=64)}
AUGMENT = {
    "mstar": Augment(shift=8, flip="h", gain=0.2, speckle=40),
    "aid15a": Augment(shift=4, flip="hv"),
}

SEEN = (
    "The given teachers were trained on all training images, those of validation too: for what teaching gives, read "
    "the test column."
)
STUDENTS_FROM = (
    "The students in --students_dir are made by `benchmarks/sparsity_table.py --workdir=STUDENTS_DIR`, once its own "
    "results file is taken away."
)

flags.DEFINE_string("data_dir", None, "Folder that holds mstar10/ and aid15a/.", required=True)
flags.DEFINE_string("models_dir", None, "Folder that holds the trained teachers.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of every row.")
flags.DEFINE_float("minutes", 75.0, "No run starts later than this; the same command goes on another time.")
flags.DEFINE_string("workdir", "out/benchmarks", "Folder for what the runs share and for the state of the running one.")


def teacher_of(name: str) -> keras.Model:
    """The trained VGG-16 of a data set, in --models_dir."""
    return load_model(Path(flags.FLAGS.models_dir, TEACHERS[name]))


SMALL = {"vgg16": 0.25, "resnet20": 1.0}  # network -> width


@functools.cache
def small_setting(network: str) -> tuple[Data, keras.Model, TeacherCache]:
    """MSTAR at 32x32 (the crops of 64 pixels, halved), a small network trained on it for 50 epochs, once, and what it
    says about four augmented renderings of the training images.
    """
    data = data_of("mstar", resize=32)
    path = Path(flags.FLAGS.workdir, f"{network}.keras")
    if not path.is_file():
        keras.utils.set_random_seed(0)
        train(
            build(network, data.shape, classes=10, width=SMALL[network]), data, epochs=50, augment=AUGMENT["mstar"],
            path=path,
        )  # fmt: skip
    teacher = load_model(path)
    return data, teacher, lessons_of(teacher, data, augment=AUGMENT["mstar"])


def lessons_of(
    teacher: keras.Model, data: Data, *, augment: Augment, views: int = 4, layers: Sequence[str] = (),
    path: Path | None = None,
) -> TeacherCache:  # fmt: skip
    """What a teacher says about augmented renderings of the training images."""
    return TrainingJob(teacher, data, views=views, augment=augment).lessons(layers, folder=path)


class Runs:
    """Finished runs in a JSON-lines file under results/; `once` runs what is not there.

    The file is read anew before each run: two sittings side by side share it, each with its own --workdir.
    """

    def __init__(self, name: str) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)
        self.file = RESULTS / f"{name}.jsonl"
        self.rows = self._read()
        self._end = time.monotonic() + 60 * flags.FLAGS.minutes

    def once(self, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
        """Runs and files `settings`, unless that is done or the time is up."""
        settings, self.rows = json.loads(json.dumps(settings)), self._read()
        if self.find(**settings) or time.monotonic() > self._end:
            return
        keras.backend.clear_session()
        keras.utils.set_random_seed(settings.get("seed", 0))
        start = time.monotonic()
        row = {**settings, **run(), "seconds": round(time.monotonic() - start, 1)}
        self.rows.append(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.is_file() else []

    def find(self, **settings: Any) -> list[dict[str, Any]]:
        """The rows with these settings."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in settings.items())]


def data_of(name: str, *, validation: float = 0.2, batch_size: int = 32, **preprocess: Any) -> Data:
    """The data in --data_dir: the same validation split for every seed."""
    how = Preprocess(**{**PREPROCESS[name].to_dict(), **preprocess})
    return load(
        Path(flags.FLAGS.data_dir, FOLDERS[name]), preprocess=how, validation=validation, seed=0, batch_size=batch_size
    )


def vgg16(data: Data, *, width: float, seed: int) -> keras.Model:
    """A new VGG-16 whose BatchNormalization follows within tens of steps: its usual 0.99 lags in a short training."""
    keras.utils.set_random_seed(seed)
    model = build("vgg16", data.shape, classes=len(data.class_names), width=width)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return model


def teach(
    student: keras.Model,
    teacher: keras.Model,
    lessons: TeacherCache,
    data: Data,
    *,
    epochs: int,
    seed: int,
    alpha: float = 0.8,
    losses: Sequence[DistillationLoss] | None = None,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Trains a student as `compress` does; alpha = 0 learns from the labels alone. Returns the validation curve."""
    losses = losses or [LogitsDistillation(temperature=5.0)]
    training = TrainingJob(teacher, data, losses=losses, alpha=alpha, seed=seed, batch_size=lessons.batch_size,
                           learning_rate=learning_rate)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # a row that was killed starts anew: it is not resumed
        history = training.train(training.distiller(student), lessons, epochs=epochs, folder=Path(folder), label="run")
    return [round(v, 4) for v in history["val_accuracy"]]


def accuracy(model: keras.Model, batches: Any) -> float:
    """Share of right answers, in [0, 1]."""
    return value_of(model, batches_of(batches, None, model=model))


def written_by(command: str, name: str) -> str:
    """Which command wrote a page, from which results/<name>.jsonl, and how to measure anew."""
    return (
        f"Written by `{command}` from `benchmarks/results/{name}.jsonl`. Rows that are there are not run again: take "
        "the file away to measure anew, and repeat the command until none is missing (`--minutes`)."
    )


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Mean and sample standard deviation of shares, in percent: "97.10 ± 0.21"; "-" without any."""
    v = 100 * np.array(list(values))
    if not len(v):
        return "-"
    return f"{v.mean():.{digits}f}" + (f" ± {v.std(ddof=1):.{digits}f}" if len(v) > 1 else " (one seed)")


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)
