"""The wrapper that keeps one layer sparse.

`SparseLayer` is tfmot's `PruneLowMagnitude` with its state machine replaced. In tfmot the forward pass advances the
schedule and a callback re-applies the mask; here the optimizer does both, through the kernel's `constraint`, which
every tf_keras optimizer applies exactly once after each step. So weights are masked whenever anyone looks at them, no
callback is needed, and neither a second forward pass nor a shared layer moves the schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.wrappers import KernelRule, LayerWrapper, PruneLowMagnitude, trainable_rule
from orbit_kd.sparsity.patterns import Pattern
from orbit_kd.sparsity.schedules import Schedule


def reason_dense(layer: keras.layers.Layer, pattern: Pattern) -> str | None:
    """Why a layer cannot be made sparse by a pattern, in words; None where it can."""
    rule = trainable_rule(layer)
    return rule if isinstance(rule, str) else pattern.reason_dense(getattr(layer, rule.kernel).shape[rule.axis])


class _NothingToDo:
    """Stands where tfmot's UpdatePruningStep looks for mask updates, so that it is harmless here."""

    def weight_mask_op(self) -> tf.Operation:
        return tf.no_op()

    conditional_mask_update = weight_mask_op


@keras.utils.register_keras_serializable(package="orbit_kd")
class SparseLayer(LayerWrapper, PruneLowMagnitude):
    """A layer whose kernel is kept sparse; it bears the layer's name.

    Its weights are the layer's own, then `mask` (the kernel's shape and dtype, 1 kept, 0 pruned) and `sparsity_step`
    (int64: optimizer steps since `sparsify`, -1 before the pattern was started). All are saved and restored with the
    model, by `get_weights` as by any file format.

    Args:
        layer: an unbuilt layer that `kernel_rule` accepts, or its saved form.
        pattern: which weights are kept.
        schedule: when.
        rule: where the kernel is.
    """

    rule: KernelRule
    # UpdatePruningStep asks whether it is -1.
    pruning_step = 0

    def __init__(
        self, layer: keras.layers.Layer, *, pattern: Pattern, schedule: Schedule, rule: KernelRule, **kwargs: Any
    ) -> None:
        # The attribute by which tfmot accepts a layer that its registry does not know.
        layer.get_prunable_weights = lambda: [getattr(layer, rule.kernel)]
        kwargs.pop("name", None)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self._name = layer.name
        self.pattern, self.schedule, self.rule = pattern, schedule, rule
        self.pruning_obj = _NothingToDo()
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Builds the layer, its mask and its step counter."""
        if self.layer.built:
            raise InputError(
                f"The layer {self.layer.name!r} has variables already, which no constraint can reach any more.",
                expected="an unbuilt layer",
                fix="use sparsify(model, ...), which wraps copies",
            )
        super().build(input_shape)
        self.mask = self.add_weight(
            "mask",
            shape=self.kernel.shape,
            initializer="ones",
            dtype=getattr(self.kernel, "true_dtype", self.kernel.dtype),
            trainable=False,
            aggregation=tf.VariableAggregation.MEAN,
        )
        self.sparsity_step = self.add_weight(
            "sparsity_step",
            shape=[],
            initializer=keras.initializers.Constant(-1),
            dtype=tf.int64,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        if self.schedule.dense_decay:
            self.add_loss(self._decay_pruned)

    def masked_kernel(self) -> np.ndarray:
        """The kernel as the forward pass uses it, (…) float, the shape of the layer's kernel."""
        return self.kernel.numpy() * self.mask.numpy()

    def plain_weights(self) -> list[np.ndarray]:
        """The layer's own weights, the kernel masked."""
        return [self.masked_kernel() if w is self.kernel else w.numpy() for w in self.layer.weights]

    @property
    def finished(self) -> bool:
        """Whether the schedule has reached the full pattern."""
        step = int(self.sparsity_step.numpy())
        return step >= 0 and self.schedule.last_step <= step

    def after_step(self, weights: tf.Tensor) -> tf.Tensor:
        """Advances the schedule by one optimizer step; returns the kernel to store. Called by the optimizer."""
        step = self.sparsity_step.assign_add(1)
        stays_dense = self.schedule.dense_decay is not None
        kept = tf.convert_to_tensor(weights) if stays_dense else weights * self.mask
        mask = tf.cond(
            self.schedule.updates(step),
            lambda: self.pattern.mask(tf.abs(kept), axis=self.rule.axis, progress=self.schedule.progress(step)),
            lambda: tf.convert_to_tensor(self.mask),
        )
        # Outside the cond: under tf.distribute a variable cannot be assigned within one.
        self.mask.assign(mask)
        return kept if stays_dense else kept * mask

    def fully_masked_kernel(self) -> np.ndarray:
        """The kernel masked by the full pattern, whatever the schedule says."""
        kernel = self.masked_kernel()
        return kernel * self.pattern.mask(tf.abs(kernel), axis=self.rule.axis, progress=tf.constant(1.0)).numpy()

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        """The layer's own call, with the masked kernel in place of the stored one."""
        kernel = tf.convert_to_tensor(self.kernel)
        masked = kernel * tf.cast(self.mask, kernel.dtype)
        if self.schedule.dense_decay is not None:
            # Straight-through: the value is masked, the gradient is that of the dense kernel.
            masked = kernel + tf.stop_gradient(masked - kernel)
        # The layer takes the mask from its inputs itself, where its call has one.
        kwargs.pop("mask", None)
        # Past Keras' attribute tracking, which would take the variable off the layer.
        attributes, variable = self.layer.__dict__, self.kernel
        attributes[self.rule.kernel] = masked
        try:
            return self.layer(inputs, **kwargs)
        finally:
            attributes[self.rule.kernel] = variable

    def _decay_pruned(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        return 0.5 * (self.schedule.dense_decay or 0.0) * tf.reduce_sum(tf.square(kernel * (1 - self.mask)))

    def get_config(self) -> dict[str, Any]:
        """Layer, rule, pattern and schedule."""
        return {**super().get_config(), "pattern": _to_config(self.pattern), "schedule": _to_config(self.schedule)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> SparseLayer:
        """The inverse of `get_config`."""
        parts = {key: _from_config(config[key], custom_objects) for key in ("pattern", "schedule")}
        return super().from_config({**config, **parts}, custom_objects)

    # tfmot's version leaves out losses added here; this is Keras' own.
    losses = keras.layers.Layer.losses


def _to_config(value: Any) -> dict[str, Any]:
    """A registered object as plain values; the same in every file format, which Keras' own serialization is not."""
    return {"name": keras.saving.get_registered_name(type(value)), "options": value.get_config()}


def _from_config(config: dict[str, Any], custom_objects: dict[str, Any] | None) -> Any:
    kind = keras.saving.get_registered_object(config["name"], custom_objects)
    if kind is None:
        raise InputError(
            f"The sparse model holds a {config['name']!r}, which is not registered.",
            expected="a class registered with keras.utils.register_keras_serializable",
            fix="import the module that defines it before you load the model",
        )
    return kind.from_config(config["options"])
