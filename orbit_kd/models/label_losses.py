"""The loss of a network on its labels: the one that fits its outputs, where none is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.heads import head_type, heads, output_names
from orbit_kd.models.outputs import (
    LabelLoss,
    compiled_losses,
    keras_loss,
    kinds_of,
    loss_name,
    output_kinds,
    part_of,
    per_output,
)


def cross_entropy(model: keras.Model, *, one_hot: bool = False, reduction: str = "auto") -> keras.losses.Loss:
    """The cross-entropy that fits a classifier's output (logits or softmax) and labels (class numbers or rows)."""
    kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
    return kind(from_logits=heads(model)[0] != "softmax", reduction=reduction)


def class_loss(model: keras.Model, *, loss: Any = None) -> LabelLoss:
    """The loss of a classifier on class numbers (n,), a function (numbers, outputs) -> (n,).

    Args:
        model: with one output.
        loss: that it was trained with, where the model does not tell.

    Raises:
        InputError: a network that is trained on numbers.
    """
    if check_classes(model, loss=loss) == "labels":
        binary = keras.losses.BinaryCrossentropy(from_logits=head_type(heads(model)[0]).kind != "labels",
                                                 reduction="none")  # fmt: skip
        return lambda y, outputs: binary(tf.one_hot(y, outputs.shape[-1]), outputs)
    return cross_entropy(model, reduction="none")


def check_classes(model: keras.Model, *, loss: Any = None) -> str:
    """The kind of a classifier's output: "classes", "labels", or "" where only the data can tell.

    Raises:
        InputError: a network that is trained on numbers.
    """
    kind = kinds_of([model], loss=loss)[0]
    if kind == "values":
        trained = loss_name(loss or compiled_losses(model)[0])
        raise InputError(
            f"Model {model.name!r} is trained with {trained}: its output holds {output_kinds.get(kind).holds}.",
            expected="a classifier, whose accuracy can be counted",
            fix="use plan_removal, remove_filters and Distiller, which take networks of any kind",
        )
    return kind


def label_loss(model: keras.Model, labels: Any, *, loss: Any = None) -> LabelLoss:
    """The loss of a network on labels, a function (labels, outputs) -> scalar.

    Where none is given it is the compiled one, and where the network is not compiled the cross-entropy that fits its
    head. A cross-entropy that is given by its name, or compiled, becomes the one that fits logits or probabilities and
    class numbers or rows.

    Args:
        model: Functional or Sequential.
        labels: some of them, arrays (n, ...) structured as the outputs' labels are.
        loss: as `keras.Model.compile` takes it: for all outputs, a list, or a mapping by name.

    Raises:
        InputError: labels that do not fit the outputs; an output of which nothing says what it holds.
    """
    names, kinds = output_names(model), kinds_of([model], loss=loss)
    given, compiled = per_output(loss, names), compiled_losses(model)
    weights = [1.0] * len(names)
    if loss is None and any(compiled):
        chosen = per_output(getattr(model.compiled_loss, "_user_loss_weights", None), names)
        weights = [1.0 if w is None else float(w) for w in chosen]
    terms: list[tuple[int, float, LabelLoss]] = []
    for i, tensor in enumerate(model.outputs):
        y = part_of(labels, i, names)
        if y is None and len(names) > 1:
            continue  # an output that nothing is known of, as Keras takes it
        terms.append((i, weights[i], _term(names[i], heads(model)[i], tensor, y, kinds[i], given[i], compiled[i])))

    def total(y: Any, outputs: Any) -> tf.Tensor:
        flat = tf.nest.flatten(outputs)
        return tf.add_n([w * tf.reduce_mean(term(part_of(y, i, names), flat[i])) for i, w, term in terms])

    return total


def _term(name: str, head: str, tensor: Any, y: Any, kind: str, given: Any, compiled: Any) -> LabelLoss:
    if y is None:
        raise InputError("The data has no labels.", expected="batches (x, y)", fix="give labelled batches")
    y = np.asarray(y)
    loss = given or compiled
    kind = kind or ("" if loss else _by_labels(y, tensor))
    if not kind and not loss:
        raise InputError(
            f"Output {name!r} ends in {head}, and nothing says which loss its labels of shape {tuple(y.shape)} need.",
            expected="a loss, a compiled network, or labels that are class numbers or one-hot rows",
            fix='give the loss it was trained with, for example loss="mse" or '
            "loss=keras.losses.BinaryCrossentropy(from_logits=True)",
        )
    plain = not loss or loss_name(loss) in output_kinds.get(kind or "values").logits
    if kind == "classes" and plain and (form := _form(y, tensor)):
        if loss and not isinstance(loss, str) and loss_name(loss).startswith("sparse") == (form == "numbers"):
            return keras_loss(loss)
        cls = keras.losses.CategoricalCrossentropy if form == "rows" else keras.losses.SparseCategoricalCrossentropy
        return cls(from_logits=head != "softmax")
    if kind == "labels" and plain and (not loss or isinstance(loss, str)) and _one_each(y, tensor):
        binary = keras.losses.BinaryCrossentropy(from_logits=head_type(head).kind != "labels")
        return lambda y, outputs: binary(tf.reshape(y, tf.shape(outputs)), outputs)
    if loss:
        return keras_loss(loss)
    raise InputError(
        f"The labels of output {name!r} have shape {tuple(y.shape)}, and it gives {tuple(tensor.shape)}.",
        expected=f"labels of {output_kinds.get(kind).holds}",
        fix="give the data that the network was trained on, or its loss as loss=...",
    )


def _one_each(y: Any, tensor: Any) -> bool:
    """Whether there is a label for each number of an output; a last axis of 1 may be missing."""
    shape, output = tuple(y.shape[1:]), tuple(tensor.shape[1:])
    return shape == output or (output[-1:] == (1,) and shape == output[:-1])


def _form(y: Any, tensor: Any) -> str:
    """ "numbers" or "rows": how labels give the classes of an output; "" where they do neither."""
    shape, output = tuple(y.shape[1:]), tuple(tensor.shape[1:])
    if len(output) and output[-1] != 1:
        if len(shape) == len(output) and shape[-1] == output[-1]:
            return "rows"
        if shape == output[:-1] or shape == (*output[:-1], 1):
            return "numbers"
    return ""


def _by_labels(y: Any, tensor: Any) -> str:
    """The kind that labels give away: whole class numbers, or rows that are shares of classes."""
    form = _form(y, tensor)
    values = np.asarray(y, np.float64)
    whole = form == "numbers" and np.array_equal(values, np.round(values))
    shares = form == "rows" and (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3)
    return "classes" if whole or shares else ""
