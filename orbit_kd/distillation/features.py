"""The outputs of inner layers, wherever they are nested, taken from the one forward pass that is made anyway."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.walk import RANDOM

_lock = threading.RLock()
_users: dict[int, int] = {}  # id(layer) -> how many recordings hook it now
_thread = threading.local()  # MirroredStrategy runs its replicas in threads: each records its own tensors


@contextmanager
def record_outputs(layers: Mapping[str, keras.layers.Layer]) -> Iterator[dict[str, tf.Tensor]]:
    """While open, every call of one of `layers` in this thread leaves its output in the yielded dict, in call order.

    Works inside nested and subclassed models, wrappers and `tf.function`, and adds no forward pass; a sub-model made
    with `keras.Model(inputs, layer.output)` reaches no nested layer. A layer called twice leaves its last output.
    """
    names = {id(layer): name for name, layer in layers.items()}
    record: dict[str, tf.Tensor] = {}
    stack = _thread.__dict__.setdefault("stack", [])
    with _lock:
        for layer in layers.values():
            _users[id(layer)] = _users.get(id(layer), 0) + 1
            if _users[id(layer)] == 1:
                _hook(layer)
    stack.append((names, record))
    try:
        yield record
    finally:
        stack.pop()
        with _lock:
            for layer in layers.values():
                _users[id(layer)] -= 1
                if not _users[id(layer)]:
                    del _users[id(layer)]
                    del layer.call


def _hook(layer: keras.layers.Layer) -> None:
    call = layer.call

    @functools.wraps(call)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        for names, record in _thread.__dict__.get("stack", ()):
            if id(layer) in names:
                record[names[id(layer)]] = output
        return output

    layer.call = recorded


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """All layers of a model and of the models and wrappers inside it; the first of a name wins."""
    found: dict[str, keras.layers.Layer] = {}
    for module in model.submodules:
        if isinstance(module, keras.layers.Layer):
            found.setdefault(module.name, module)
    return found


def find_layer(model: keras.Model, name: str) -> keras.layers.Layer:
    """The layer of that name, at any depth.

    Raises:
        InputError: there is none; the message lists names that come near.
    """
    found = layers_by_name(model)
    if name not in found:
        import difflib

        near = difflib.get_close_matches(name, found, n=5, cutoff=0.3) or sorted(found)[:10]
        raise InputError(
            f"{model.name!r} has no layer {name!r}.",
            expected=f"the name of a layer, such as {', '.join(near)}",
            fix='name another layer, or give match="auto" to pair layers by name',
        )
    return found[name]


def feature_shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    """Output shape of every layer that gives one tensor, in the order of execution, batch axis first.

    Raises:
        InputError: the model has no known input shape yet.
    """
    spec = model.save_spec()
    if spec is None:
        raise InputError(
            f"The input shape of {model.name!r} is not known, so its layers' shapes are not either.",
            expected="a model that is built, for losses on features",
            fix="build it from an Input layer, or call it once on a batch",
        )
    shapes: dict[str, tuple[int | None, ...]] = {}

    def trace(x: Any) -> Any:
        with record_outputs(layers_by_name(model)) as record:
            result = model(x, training=False)
        shapes.update({n: tuple(t.shape) for n, t in record.items() if isinstance(t, tf.Tensor) and t.shape.rank})
        return result

    tf.function(trace, autograph=False).get_concrete_function(*spec[0])
    return shapes


def match_layers(student: keras.Model, teacher: keras.Model) -> list[tuple[str, str]]:
    """Pairs (student layer, teacher layer) of equal name and spatial size: the last one at each resolution.

    Filter removal keeps names and spatial sizes and changes widths only; a wrapper (sparsity, quantization) holds the
    layer of the original name, and that one is found.

    Raises:
        InputError: no two layers match.
    """
    last: dict[tuple[int | None, ...], str] = {}
    for name, ours, theirs in _alike(student, teacher):
        if len(ours) > 2 and ours[1:-1] == theirs[1:-1]:
            last[ours[1:-1]] = name
    if not last:
        raise _nothing_matches(student, teacher)
    return [(name, name) for name in last.values()]


def match_deepest(student: keras.Model, teacher: keras.Model) -> list[tuple[str, str]]:
    """The pair of the last layers of equal name before the class scores: mostly the vector that is classified.

    Trailing layers of the output's shape are the scores, before and after a softmax; Dropout and noise are passed over.

    Raises:
        InputError: no two layers match.
    """
    pairs = list(_alike(student, teacher))
    scores = {tuple(t.shape) for t in teacher.outputs or ()} or {shapes for _, _, shapes in pairs[-1:]}
    while pairs and pairs[-1][2] in scores:
        pairs.pop()
    layers = layers_by_name(student)
    kept = [name for name, _, _ in pairs if not isinstance(layers[name], RANDOM)]
    if not kept:
        raise _nothing_matches(student, teacher)
    return [(kept[-1], kept[-1])]


def _alike(student: keras.Model, teacher: keras.Model) -> Iterator[tuple[str, tuple, tuple]]:
    """Name and both output shapes of the layers, models aside, that both have, in the student's order."""
    ours, theirs = feature_shapes(student), feature_shapes(teacher)
    models = {name for name, layer in layers_by_name(student).items() if isinstance(layer, keras.Model)}
    for name, shape in ours.items():
        if name in theirs and name not in models:
            yield name, shape, theirs[name]


def _nothing_matches(student: keras.Model, teacher: keras.Model) -> InputError:
    return InputError(
        f"No feature layer of {student.name!r} has the name and size of one of {teacher.name!r}.",
        expected="a student made from the teacher by remove_filters, or layers named alike",
        fix='give match={"student_layer": "teacher_layer", ...} instead of match="auto"',
    )
