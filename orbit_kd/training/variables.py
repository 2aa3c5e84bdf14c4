"""Variables that Keras creates in the first step of a training."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


def create_variables(model: keras.Model, x: Any, y: Any = None, *, outputs: Any) -> None:
    """Creates the optimizer's and the metrics' variables of a compiled model before its `fit` does.

    `fit` creates them while it traces the first step, and a function that has created variables is traced again. For a
    short training that is a third of its time.

    Args:
        model: compiled; is left alone where its optimizer, its outputs or the data are of a kind not known here.
        x: what it will be fitted on: a data set, or an array with labels `y`.
        y: labels.
        outputs: the symbolic outputs of the network that is trained; None where it has none.
    """
    strategy, spec = model.distribute_strategy, getattr(x, "element_spec", ())
    if isinstance(spec, tuple) and len(spec) > 1:
        y = spec[1]
    if isinstance(y, dict):  # with the lessons of a teacher
        y = y.get("labels")
    known = isinstance(getattr(y, "shape", None), (tuple, tf.TensorShape)) and tf.TensorShape(y.shape).rank
    if not known or outputs is None or len(outputs) != 1 or strategy.num_replicas_in_sync > 1 or model.run_eagerly:
        return
    if hasattr(model.optimizer, "build"):
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
            if not model.compiled_metrics.built:
                model.compiled_metrics.build(outputs[0], tf.TensorSpec(y.shape))
