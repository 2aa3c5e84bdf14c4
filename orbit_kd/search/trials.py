"""What a search for the smallest network has tried and found, and how that is kept for the same call to go on from."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import plain_model
from orbit_kd.search.trial import Reached
from orbit_kd.support.files import write_file
from orbit_kd.support.text_table import aligned
from orbit_kd.tasks import Metric


@dataclasses.dataclass(frozen=True)
class Trial:
    """One network that was tried.

    Attributes:
        params, macs: of the network.
        bytes: of its file.
        cost: what is to be small.
        accuracy: of its file on the validation images, in [0, 1].
        accepted: whether it took the place of the best one.
        seconds: of scans, removal, training and measuring.
        factor: what the step was to divide the cost by; 1 for a longer training of a network that was tried before.
        epochs: of its training.
        training: seconds of that.
        patience: how often the epochs of a trial had been raised by then.
    """

    params: int
    macs: float
    bytes: int
    cost: float
    accuracy: float
    accepted: bool
    seconds: float
    factor: float
    epochs: int
    training: float
    patience: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What `smallest` found; prints as a table.

    Attributes:
        model: the best network, as its file is exported: quantization-aware where it has fewer than eight bits.
        target: the accuracy that was asked for, in [0, 1].
        images: number of validation images: accuracies move in steps of one part in so many.
        whole: what the teacher's own file reaches.
        reached: what the file of the best network reaches.
        trials: every network that was tried, in order.
        metric: what target and accuracies are of.
    """

    model: keras.Model
    target: float
    images: int
    whole: Reached
    reached: Reached
    trials: tuple[Trial, ...]
    metric: Metric = dataclasses.field(default_factory=lambda: Metric("accuracy", "accuracy"))

    @property
    def student(self) -> keras.Model:
        """The best network as a plain one."""
        return plain_model(self.model)

    @property
    def verdict(self) -> str:
        """In words, whether the best file is as accurate as was asked for."""
        if self.reached.accuracy < self.target:
            return "below what was asked, as the teacher's own int8 file is: nothing better was found"
        if not any(trial.accepted for trial in self.trials):
            return "the teacher's own int8 file: nothing smaller was accurate enough"
        return "as asked"

    def __str__(self) -> str:
        rows = [
            (
                f"{t.params:,} parameters",
                f"{t.macs:,.0f} MACs",
                f"{t.bytes:,} bytes",
                f"{t.epochs} epochs",
                self.metric.text(t.accuracy),
                "taken" if t.accepted else "too small" if t.factor > 1 else "no better",
            )
            for t in self.trials
        ]
        of = "of" if self.metric.key == "accuracy" else f"{self.metric.name} on"
        own = f"{self.whole.bytes:,} bytes, {self.metric.text(self.whole.accuracy)}"
        told = (f"at least {self.metric.text(self.target)} {of} {self.images} validation images; "
                f"the teacher's own int8 file: {own}")  # fmt: skip
        return "\n".join([told, *aligned(rows, ">>>>><"), self.verdict])


class State:
    """Trials of a search, the best network, and the one that came nearest, in a folder where one is given.

    Attributes:
        trials: so far.
        best, near: the name of a network's file, and what else is known of it; empty where there is none.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self.key = folder, key
        self.trials: list[Trial] = []
        self.whole: Reached | None = None
        self.best: dict[str, Any] = {}
        self.near: dict[str, Any] = {}
        self._models: dict[str, keras.Model] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None, key: str) -> State:
        """What a folder holds of the same search."""
        state = cls(None if path is None else Path(path), key)
        try:
            saved = json.loads((state.folder / "trials.json").read_text()) if state.folder else {}
        except (OSError, ValueError):
            saved = {}
        if saved.get("key") == key:
            state.trials = [Trial(**trial) for trial in saved["trials"]]
            state.whole = Reached(**saved["whole"])
            state.best, state.near = saved["best"], saved["near"]
        return state

    @property
    def spent(self) -> float:
        """Seconds of the trials."""
        return sum(trial.seconds for trial in self.trials)

    def model(self, kept: Mapping[str, Any]) -> keras.Model:
        """The network of `best` or `near`."""
        name = kept["file"]
        if name not in self._models:
            self._models[name] = load_model(Path(self.folder or "", name))
        return self._models[name]

    def keep(self, model: keras.Model, reached: Reached, bits: Mapping[str, int]) -> dict[str, Any]:
        """Takes a network up; what `best` or `near` is set to, before `save`."""
        name = "whole.keras" if not self.best else f"trial_{len(self.trials)}.keras"
        self._models[name] = model
        if self.folder is not None:
            save_model(model, self.folder / name)
        return {"file": name, "reached": dataclasses.asdict(reached), "bits": dict(bits)}

    def save(self) -> None:
        """Writes what is known, and then takes away the networks that are neither best nor near."""
        used = {kept["file"] for kept in (self.best, self.near) if kept}
        self._models = {name: model for name, model in self._models.items() if name in used}
        if self.folder is None or self.whole is None:
            return
        values = {
            "key": self.key,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "whole": dataclasses.asdict(self.whole),
            "best": self.best,
            "near": self.near,
        }
        write_file(self.folder / "trials.json", json.dumps(values))
        for file in (*self.folder.glob("trial_*.keras"), self.folder / "whole.keras"):
            if file.name not in used:
                file.unlink(missing_ok=True)
