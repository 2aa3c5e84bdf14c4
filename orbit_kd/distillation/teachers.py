"""One or several teachers as a function from a batch to logits and features; nothing of theirs is ever changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.distillation.features import find_layer, record_outputs
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.heads import heads, logits_of, output_names
from orbit_kd.support.digests import digest


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """What the teachers say about a batch.

    Attributes:
        logits: one float tensor (batch, ..., classes) for each output of the model.
        features: outputs of the teacher's inner layers by layer name.
    """

    logits: tuple[tf.Tensor, ...]
    features: dict[str, tf.Tensor]

    def to_dict(self) -> dict[str, Any]:
        """As it travels through tf.data: {"logits": (...), "features": {...}}."""
        return {"logits": self.logits, "features": self.features}


class Teachers:
    """Frozen teachers; their logits are averaged with `weights`, features come from the first.

    A plain object: Keras tracks neither it nor what it holds, so no teacher weight reaches the student's optimizer,
    `weights`, or checkpoints. They run with training=False and outside any gradient tape.

    Args:
        models: a Keras model, or several of equal outputs.
        weights: relative weight of each; None for equal ones.

    Raises:
        InputError: no Keras models, or weights that do not fit them.
    """

    def __init__(self, models: keras.Model | Sequence[keras.Model], *, weights: Sequence[float] | None = None) -> None:
        given = list(models) if isinstance(models, (list, tuple)) else [models]
        if not given:
            raise InputError("There is no teacher in the list.", expected="at least one model", fix="give one")
        self.models: list[Any] = [as_tf_keras(m, name="teacher", graph=False, refuse=()) for m in given]
        chosen = [1.0] * len(self.models) if weights is None else [float(w) for w in weights]
        if len(chosen) != len(self.models) or min(chosen) < 0 or sum(chosen) <= 0:
            raise InputError(
                f"teacher_weights={weights!r} for {len(self.models)} teachers.",
                expected="one number >= 0 for each teacher, not all zero",
                fix="leave teacher_weights out for the plain mean",
            )
        self.weights = [w / sum(chosen) for w in chosen]
        self._heads = [heads(m) for m in self.models]
        self.heads = self._heads[0]
        if any(len(ends) != len(self.heads) for ends in self._heads):
            raise InputError(
                "The teachers have different numbers of outputs.",
                expected="teachers of one task",
                fix="give teachers whose outputs agree in number and shape",
            )

    def __call__(self, x: Any, *, layers: Sequence[str] = ()) -> TeacherOutputs:
        """Logits (float32) and the features of the named layers, for a batch as the models take it."""
        with record_outputs({name: find_layer(self.models[0], name) for name in layers}) as record:
            logits = logits_of(self.models[0](x, training=False), self.heads)
        if len(self.models) > 1:
            others = zip(self.models[1:], self._heads[1:], strict=True)
            every = [logits] + [logits_of(m(x, training=False), ends) for m, ends in others]
            logits = tuple(
                tf.add_n([w * z for w, z in zip(self.weights, zs, strict=True)]) for zs in zip(*every, strict=True)
            )
        stop = tf.stop_gradient
        return TeacherOutputs(tuple(stop(z) for z in logits), {n: stop(tf.cast(record[n], tf.float32)) for n in layers})

    def fingerprint(self) -> str:
        """sha256 over all weights, architectures and mixing weights: equal exactly when the outputs are."""
        return digest(self.weights, [(_architecture(model), model.get_weights()) for model in self.models])


def _architecture(model: keras.Model) -> str:
    """The config with layers numbered: automatic names differ from process to process."""
    try:
        text = json.dumps(model.get_config(), default=repr, sort_keys=True)
    except NotImplementedError:  # a subclass without a config: its weights and the classes of its layers still count
        return repr([type(m).__name__ for m in [model, *model.submodules]])
    layers = [m for m in model.submodules if isinstance(m, keras.layers.Layer)]
    for number, name in enumerate([model.name, *(layer.name for layer in layers)]):
        text = text.replace(json.dumps(name), f'"#{number}"')
    return type(model).__name__ + text


def check_outputs(student: keras.Model, teacher: keras.Model) -> None:
    """Raises InputError where student and teacher have other outputs; subclassed models show theirs only in use."""
    ours = [tuple(t.shape) for t in getattr(student, "outputs", None) or []]
    theirs = [tuple(t.shape) for t in getattr(teacher, "outputs", None) or []]
    if not ours or not theirs:
        return  # subclassed: known only once it has run
    names, others = output_names(student), output_names(teacher)
    if names != others and sorted(names) == sorted(others):
        raise InputError(
            f"The student's outputs are {', '.join(names)}, and the teacher's {', '.join(others)}.",
            expected="the same outputs in the same order: they are compared one by one",
            fix="build one of the two with keras.Model(inputs, outputs) in the order of the other",
        )
    agree = len(ours) == len(theirs) and all(
        len(a) == len(b) and all(None in (m, n) or m == n for m, n in zip(a, b, strict=True))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not agree:
        raise InputError(
            f"Student outputs {ours} and teacher outputs {theirs} differ.",
            expected="the same number of outputs, of equal shapes (the last axis is the number of classes)",
            fix="give a teacher of the same classes, or rebuild the student's head",
        )


def unpack(y: Any) -> tuple[Any, TeacherOutputs | None]:
    """Labels, and what the teacher said where it travels beside them."""
    if not _with_lessons(y):
        return y, None
    said = y["teacher"]
    features = {name: tf.cast(v, tf.float32) for name, v in said["features"].items()}
    return y.get("labels"), TeacherOutputs(tuple(said["logits"]), features)


def _with_lessons(y: Any) -> bool:
    return isinstance(y, dict) and "teacher" in y and set(y) <= {"labels", "teacher"} and "logits" in y["teacher"]
