"""The wrapper that keeps one layer sparse, and the rules that say which layers have a kernel to wrap.

`SparseLayer` is tfmot's `PruneLowMagnitude` with its state machine replaced. In tfmot the forward pass advances the
schedule and a callback re-applies the mask; here the optimizer does both, through the kernel's `constraint`, which
every tf_keras optimizer applies exactly once after each step. So weights are masked whenever anyone looks at them, no
callback is needed, and neither a second forward pass nor a shared layer moves the schedule.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.sparsity_models import copy_layer
from orbit_kd.sparsity_patterns import Pattern
from orbit_kd.sparsity_schedules import Schedule

with warnings.catch_warnings():
    # tfmot compares versions with distutils at import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude


@dataclasses.dataclass(frozen=True)
class KernelRule:
    """Where a layer class keeps its kernel.

    Attributes:
        kernel: attribute with the kernel variable.
        constraint: attribute with the kernel's constraint, which `build` gives to the variable.
        axis: axis of the input channels, counted from the end.
    """

    kernel: str = "kernel"
    constraint: str = "kernel_constraint"
    axis: int = -2


_layers = keras.layers
# Subclasses follow the first class that fits, so derived classes stand before their bases.
_RULES: dict[type, KernelRule | str] = {
    _layers.DepthwiseConv1D: "depthwise: a filter sees one input channel",
    _layers.DepthwiseConv2D: "depthwise: a filter sees one input channel",
    _layers.SeparableConv1D: KernelRule("pointwise_kernel", "pointwise_constraint"),
    _layers.SeparableConv2D: KernelRule("pointwise_kernel", "pointwise_constraint"),
    _layers.Conv1DTranspose: KernelRule(axis=-1),
    _layers.Conv2DTranspose: KernelRule(axis=-1),
    _layers.Conv3DTranspose: KernelRule(axis=-1),
    _layers.Conv1D: KernelRule(),
    _layers.Conv2D: KernelRule(),
    _layers.Conv3D: KernelRule(),
    _layers.Dense: KernelRule(),
}


def register_kernel(layer_class: type, rule: KernelRule) -> None:
    """Makes layers of a class, and of its subclasses, prunable by `sparsify`.

    Args:
        layer_class: a `keras.layers.Layer` subclass whose `build` gives the constraint attribute to the kernel.
        rule: where its kernel is.
    """
    rest = {c: r for c, r in _RULES.items() if c is not layer_class}
    _RULES.clear()
    _RULES.update({layer_class: rule, **rest})


def kernel_rule(layer: keras.layers.Layer) -> KernelRule | str:
    """Where the layer's kernel is, or in words why it has none to prune."""
    for layer_class, rule in _RULES.items():
        if isinstance(layer, layer_class):
            if isinstance(rule, str):
                return rule
            # A kernel computed on the fly (weight normalization, binarization) cannot be exchanged for a masked one.
            if not isinstance(layer.__dict__.get(rule.kernel), tf.Variable):
                return f"its {rule.kernel} is not a variable"
            if type(layer) is not layer_class and not _honours_constraint(layer, rule):
                return f"{type(layer).__name__}.build does not give {rule.constraint} to its {rule.kernel}"
            return rule
    return f"{type(layer).__name__} has no kernel over input channels"


def reason_dense(layer: keras.layers.Layer, pattern: Pattern) -> str | None:
    """Why a layer cannot be made sparse by a pattern, in words; None where it can."""
    rule = kernel_rule(layer)
    if isinstance(rule, str):
        return rule
    kernel = getattr(layer, rule.kernel)
    if not any(kernel is w for w in layer.trainable_weights):
        return "frozen (trainable=False)"
    return pattern.reason_dense(kernel.shape[rule.axis])


def _honours_constraint(layer: keras.layers.Layer, rule: KernelRule) -> bool:
    """Whether a subclass hands its constraint attribute to the kernel: tried on a copy of the layer."""
    probe = keras.constraints.NonNeg()
    copy = copy_layer(layer)
    setattr(copy, rule.constraint, probe)
    copy.build_from_config(layer.get_build_config())
    return getattr(getattr(copy, rule.kernel, None), "constraint", None) is probe


class AfterStep(keras.constraints.Constraint):
    """Runs a function on the kernel after each optimizer step, behind the user's own constraint.

    It lives on the variable only: the layer's config keeps the user's constraint, and saved files never hold this one.
    """

    def __init__(self, then: Callable[[tf.Tensor], tf.Tensor], first: Callable[[tf.Tensor], tf.Tensor] | None) -> None:
        self.then, self.first = then, first

    def __call__(self, weights: tf.Variable) -> tf.Tensor:
        return self.then(weights if self.first is None else self.first(weights))


@contextlib.contextmanager
def constrained_build(
    layer: keras.layers.Layer, rule: KernelRule, then: Callable[[tf.Tensor], tf.Tensor]
) -> Iterator[None]:
    """Within it, `layer.build` creates a kernel whose constraint ends in `then`."""
    user = getattr(layer, rule.constraint, None)
    setattr(layer, rule.constraint, AfterStep(then, user))
    try:
        yield
    finally:
        setattr(layer, rule.constraint, user)


class _NothingToDo:
    """Stands where tfmot's UpdatePruningStep looks for mask updates, so that it is harmless here."""

    def weight_mask_op(self) -> tf.Operation:
        return tf.no_op()

    conditional_mask_update = weight_mask_op


@keras.utils.register_keras_serializable(package="orbit_kd")
class SparseLayer(PruneLowMagnitude):
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
        with constrained_build(self.layer, self.rule, self.after_step):
            keras.layers.Wrapper.build(self, input_shape)
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

    @property
    def kernel(self) -> tf.Variable:
        """The stored kernel; dense under SR-STE."""
        return getattr(self.layer, self.rule.kernel)

    def masked_kernel(self) -> np.ndarray:
        """The kernel as the forward pass uses it, (…) float, the shape of the layer's kernel."""
        return self.kernel.numpy() * self.mask.numpy()

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

    def start(self) -> None:
        """Takes step 0 of the schedule with the kernel as it is."""
        self.kernel.assign(self.kernel.constraint(self.kernel))

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

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The layer's own timestep mask."""
        return self.layer.compute_mask(inputs, mask)

    def _decay_pruned(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        return 0.5 * (self.schedule.dense_decay or 0.0) * tf.reduce_sum(tf.square(kernel * (1 - self.mask)))

    def get_config(self) -> dict[str, Any]:
        """Layer, pattern, schedule and rule."""
        layer = keras.saving.serialize_keras_object(self.layer)
        # Restored with it, the kernel would be built before its constraint is in place.
        layer.pop("build_config", None)
        return {
            **keras.layers.Layer.get_config(self),
            "layer": layer,
            "pattern": _to_config(self.pattern),
            "schedule": _to_config(self.schedule),
            "rule": dataclasses.asdict(self.rule),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> SparseLayer:
        """The inverse of `get_config`."""
        config = dict(config)
        # .h5 and SavedModel hold the older serialization, which names no module.
        legacy = "module" not in config["layer"]
        config["layer"] = keras.layers.deserialize(config["layer"], custom_objects, use_legacy_format=legacy)
        config["pattern"] = _from_config(config["pattern"], custom_objects)
        config["schedule"] = _from_config(config["schedule"], custom_objects)
        config["rule"] = KernelRule(**config["rule"])
        return cls(**config)

    # tfmot's versions leave out the mask and the step, or losses added here; these are Keras' own.
    get_weights = keras.layers.Layer.get_weights
    set_weights = keras.layers.Layer.set_weights
    losses = keras.layers.Layer.losses


def inner_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer within a `SparseLayer`; any other layer itself."""
    return layer.layer if isinstance(layer, SparseLayer) else layer


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
