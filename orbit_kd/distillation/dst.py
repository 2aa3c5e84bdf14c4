"""DST: a teacher teaches the sparse student directly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.datasets.fit_input import fit_input
from orbit_kd.distillation.distiller import Distiller
from orbit_kd.distillation.losses import Losses, get_losses
from orbit_kd.distillation.schedules import Number
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.keras3.objects import to_tf_keras
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.training.resume import Resume


class DST:
    """Distils a dense student, sets its weights to zero in a pattern, and lets the teacher teach what is left.

    A recipe for `Distiller` and `sparsify`, after "DST" (Remote Sensing, 2023), which teaches a student at 50%
    sparsity, unstructured or in a uniform pattern (UHP) that hardware can use.

    What the paper states (as far as its abstract and tables are known here): the teacher teaches the *pruned* student
    directly, rather than before or without the pruning; 50% sparsity; the pattern is uniform. Ours, since the paper's
    body was not to be had: the loss (that of `Distiller`, on logits where none is given), UHP as exactly half of each
    aligned group of M input channels, a dense student that is distilled first, and the refreshed masks (SR-STE, Zhou
    et al., ICLR 2021, arXiv:2102.04010).

        dst = okd.DST(student, teacher, pattern="2:4")
        dst.compile(optimizer="adam", loss=..., metrics=["accuracy"])
        dst.fit(okd.cache_teacher(teacher, train), epochs=20, sparse_epochs=20, validation_data=val)
        okd.export(dst.student, "tflite_int8", path="student.tflite", calibration=train)

    Args:
        student: a plain model; the dense stage trains it in place.
        teacher: one model, or several (the mean of their logits).
        pattern: as in `sparsify`: "uhp", "2:4" or any "N:M", "magnitude".
        sparsity, group_size, exclude: as in `sparsify`.
        refresh: False keeps the mask of the distilled dense student; True computes it anew from the dense weights
            behind it at every step (SR-STE).
        losses, alpha: as in `Distiller`.

    Attributes:
        sparse: the wrapped model of the sparse stage; None before `fit`.

    Raises:
        InputError: as `sparsify` and `Distiller`, at once and not after hours.
    """

    network_behind = "dst.student"

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | Sequence[keras.Model],
        *,
        pattern: str = "uhp",
        sparsity: float | None = None,
        group_size: int | None = None,
        exclude: Iterable[str] = (),
        refresh: bool = False,
        losses: Losses | None = None,
        alpha: Number = 0.8,
    ) -> None:
        student = as_tf_keras(student, name="student", in_place=True)
        self.dense, self.teacher, self.alpha = student, teacher, alpha
        self._how: dict[str, Any] = {
            "pattern": pattern,
            "sparsity": sparsity,
            "group_size": group_size,
            "exclude": tuple(exclude),
            "schedule": "sr_ste" if refresh else "one_shot",
        }
        self._losses = None if losses is None else get_losses(losses)
        self.sparse: keras.Model | None = None
        self._compiled: dict[str, Any] | None = None
        self._optimizer: dict[str, Any] = {}
        sparsify(student, **self._how)
        self._distiller(student)

    @property
    def student(self) -> keras.Model:
        """The plain sparse student, its zeros verified.

        Raises:
            InputError: `fit` has not run.
        """
        if self.sparse is None:
            raise InputError("There is no sparse student yet.", expected="a fit before", fix="call fit(...) first")
        return strip(self.sparse)

    def compile(self, optimizer: Any = "adam", **options: Any) -> None:
        """As `keras.Model.compile`; each stage starts with a fresh copy of the optimizer and its schedule."""
        self._optimizer = keras.optimizers.serialize(keras.optimizers.get(to_tf_keras(optimizer)))
        self._compiled = to_tf_keras(options)

    def fit(
        self,
        x: Any,
        *,
        epochs: int,
        sparse_epochs: int,
        path: str | os.PathLike[str] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        **options: Any,
    ) -> dict[str, dict[str, list[float]]]:
        """Runs both stages.

        Args:
            x: data, or a `TeacherCache`, as in `Distiller.fit`.
            epochs: of the dense stage; 0 for a student that has been distilled already.
            sparse_epochs: of the sparse stage.
            path: folder for the state of the run, which then goes on after a kill (see `Resume`).
            callbacks: of both stages.
            **options: for `fit`: validation_data, verbose, ...

        Returns:
            {"dense": history, "sparse": history}: one list of values a metric.

        Raises:
            InputError: `compile` has not run, no sparse epoch, and what `Distiller.fit` raises.
        """
        if self._compiled is None:
            raise InputError(
                "DST is not compiled.", expected="compile before fit", fix='call compile("adam", loss=...)'
            )
        if sparse_epochs < 1:
            raise InputError(
                f"sparse_epochs={sparse_epochs}.", expected="at least 1: the teacher teaches the sparse student",
                fix="give it as many epochs as the dense stage",
            )  # fmt: skip

        # what it refuses is told now, not after hours
        fit_input(x, epochs=epochs + sparse_epochs, steps=options.get("steps_per_epoch"))

        def stage(name: str, model: keras.Model, count: int) -> dict[str, list[float]]:
            distiller = self._distiller(model)
            distiller.compile(optimizer=keras.optimizers.deserialize(self._optimizer), **(self._compiled or {}))
            resume = [Resume(Path(path, name))] if path is not None else []
            return distiller.fit(x, epochs=count, callbacks=[*callbacks, *resume], **options).history

        history = {"dense": stage("dense", self.dense, epochs) if epochs else {}}
        self.sparse = sparsify(self.dense, **self._how)
        history["sparse"] = stage("sparse", self.sparse, sparse_epochs)
        return history

    def _distiller(self, model: keras.Model) -> Distiller:
        losses = None if self._losses is None else [type(v).from_config(v.get_config()) for v in self._losses]
        return Distiller(model, teacher=self.teacher, losses=losses, alpha=self.alpha)
