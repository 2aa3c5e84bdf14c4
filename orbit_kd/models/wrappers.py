"""What the wrappers of single layers share: which layers have a kernel to wrap, how to build one, save it, take it off.

`SparseLayer`, `ClusteredLayer` and `QuantizedLayer` are tfmot's wrappers with the state machines replaced: the
optimizer itself ends each step in the wrapper's `after_step`, through the `constraint` of the kernel's variable.
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

from orbit_kd.models.copies import copy_layer
from orbit_kd.registry import Registry

with warnings.catch_warnings():
    # tfmot compares versions with distutils at import. The wrappers' modules take these from here.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights  # noqa: F401
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_configs  # noqa: F401
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapper  # noqa: F401
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude  # noqa: F401


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
kernel_rules: Registry[KernelRule | str] = Registry("kernel rule of")  # in words where there is no kernel to prune
kernel_rules.register(_layers.DepthwiseConv1D, _layers.DepthwiseConv2D)("depthwise: a filter sees one input channel")
kernel_rules.register(_layers.SeparableConv1D, _layers.SeparableConv2D)(
    KernelRule("pointwise_kernel", "pointwise_constraint")
)
kernel_rules.register(_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)(KernelRule(axis=-1))
kernel_rules.register(_layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Dense)(KernelRule())


def register_kernel(layer_class: type, rule: KernelRule, *, replace: bool = False) -> None:
    """Makes layers of a class, and of its subclasses, prunable by `sparsify`.

    Args:
        layer_class: a `keras.layers.Layer` subclass whose `build` gives the constraint attribute to the kernel.
        rule: where its kernel is.
        replace: take the place of the rule that the class has.

    Raises:
        InputError: the class has a rule already.
    """
    kernel_rules.register(layer_class, replace=replace)(rule)


def kernel_rule(layer: keras.layers.Layer) -> KernelRule | str:
    """Where the layer's kernel is, or in words why it has none to prune."""
    found = kernel_rules.of_class(type(layer))
    if found is None:
        return f"{type(layer).__name__} has no kernel over input channels"
    layer_class, rule = found
    if isinstance(rule, str):
        return rule
    # A kernel computed on the fly (weight normalization, binarization) cannot be exchanged for a masked one.
    if not isinstance(layer.__dict__.get(rule.kernel), tf.Variable):
        return f"its {rule.kernel} is not a variable"
    if type(layer) is not layer_class and not _honours_constraint(layer, rule):
        return f"{type(layer).__name__}.build does not give {rule.constraint} to its {rule.kernel}"
    return rule


def trainable_rule(layer: keras.layers.Layer) -> KernelRule | str:
    """Where the layer's kernel is, or in words why it has none that training could change."""
    rule = kernel_rule(layer)
    if isinstance(rule, str) or any(getattr(layer, rule.kernel) is w for w in layer.trainable_weights):
        return rule
    return "frozen (trainable=False)"


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


class LayerWrapper(keras.layers.Wrapper):
    """A layer whose kernel passes `after_step` after each optimizer step. As a base, it stands before tfmot's wrapper.

    Attributes:
        rule: where the kernel is; None for a layer without one.
    """

    rule: KernelRule | None

    # tfmot's versions leave out what a wrapper adds (masks, steps, indices); these are Keras' own.
    get_weights = keras.layers.Layer.get_weights
    set_weights = keras.layers.Layer.set_weights

    @property
    def kernel(self) -> Any:
        """The stored kernel, a variable; None for a layer without one."""
        return None if self.rule is None else getattr(self.layer, self.rule.kernel)

    def plain_weights(self) -> list[np.ndarray]:
        """The weights that the layer computes with, in its own order."""
        return self.layer.get_weights()

    def after_step(self, weights: tf.Tensor) -> tf.Tensor:
        """The kernel to store. Called by the optimizer."""
        raise NotImplementedError

    def build(self, input_shape: Any) -> None:
        """Builds the layer."""
        rule = self.rule
        with contextlib.nullcontext() if rule is None else constrained_build(self.layer, rule, self.after_step):
            keras.layers.Wrapper.build(self, input_shape)

    def start(self) -> None:
        """Passes the kernel as it is through the constraint, as an optimizer step would."""
        self.kernel.assign(self.kernel.constraint(self.kernel))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's own."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The layer's own timestep mask."""
        return self.layer.compute_mask(inputs, mask)

    def get_config(self) -> dict[str, Any]:
        """Layer and rule; past tfmot's options, which are not used here."""
        layer = keras.saving.serialize_keras_object(self.layer)
        # Restored with it, the kernel would be built before its constraint is in place.
        layer.pop("build_config", None)
        rule = None if self.rule is None else dataclasses.asdict(self.rule)
        return {**keras.layers.Layer.get_config(self), "layer": layer, "rule": rule}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """The inverse of `get_config`."""
        config = dict(config)
        # .h5 and SavedModel hold the older serialization, which names no module.
        legacy = "module" not in config["layer"]
        config["layer"] = keras.layers.deserialize(config["layer"], custom_objects, use_legacy_format=legacy)
        config["rule"] = None if config["rule"] is None else KernelRule(**config["rule"])
        return cls(**config)


def inner_layer(layer: keras.layers.Layer, wrapper: type[LayerWrapper]) -> keras.layers.Layer:
    """The layer within a wrapper of a class; any other layer itself."""
    return layer.layer if isinstance(layer, wrapper) else layer
