"""The wrapper that lets one layer compute as its int8 version will: rounded kernel, inputs and outputs.

`QuantizedLayer` is tfmot's `QuantizeWrapper` with its state machine replaced. In tfmot an activation's range starts at
[-6, 6] and moves by a thousandth a step, the mask of the zeros is a constant that no file holds, dense and depthwise
kernels have one scale where the int8 file has one per channel, and the layer's kernel variable is lost to a tensor at
the first call. Here ranges start at the first batch, the mask is a weight, and the kernel's range follows the kernel
after each optimizer step, through its constraint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.wrappers import KernelRule, LayerWrapper, QuantizeWrapper, default_8bit_quantize_configs
from orbit_kd.quantization.levels import MOST_BITS, best_steps, round_to_steps

_layers = keras.layers
# Where layers that TFLite runs as one int8 operator keep the kernel. Exact classes: a subclass may do anything with it.
# The axes are those of the output channels, each of which gets a scale of its own.
KERNELS: dict[type, tuple[KernelRule, tuple[int, ...]]] = {
    _layers.Conv1D: (KernelRule(), (-1,)),
    _layers.Conv2D: (KernelRule(), (-1,)),
    _layers.Conv2DTranspose: (KernelRule(axis=-1), (-2,)),
    _layers.Dense: (KernelRule(), (-1,)),
    _layers.DepthwiseConv2D: (KernelRule("depthwise_kernel", "depthwise_constraint"), (-2, -1)),
}
# x * scale + offset: two operators in the file, so that the product needs a range as well.
AFFINE = (_layers.BatchNormalization, _layers.Rescaling, _layers.Normalization)
# An activation that TFLite computes within the operator before it: only its result is ever an int8 tensor.
FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
# Their results have a fixed range in TFLite: 1/256 or 1/128 a step.
FIXED_RANGE_ACTIVATIONS = ("softmax", "sigmoid", "tanh")
# Share of the range that a batch's own range makes up, as in PyTorch's observers.
_RATE = 0.01
# The least end of a range: a channel or an activation of zeros alone needs some scale.
_SMALLEST = 1e-6


@keras.utils.register_keras_serializable(package="orbit_kd")
class QuantizedLayer(LayerWrapper, QuantizeWrapper):
    """A layer that computes with 8-bit values; it bears the layer's name.

    Its weights are the layer's own; `mask` where the kernel has zeros to keep; where it is rounded, `kernel_max` of
    each channel, or with fewer than 8 bits `log_step`, which is trained; and the (min, max) of the tensors that are
    rounded: `inputs`, `product` of an affine layer, `preactivation`, `output`.

    Args:
        layer: an unbuilt layer, or its saved form.
        rule: where its kernel is; None for layers without one, and for those whose kernel is left alone.
        inputs: which of its inputs to quantize, by position: those that are inputs of the model.
        output: quantize its result; False where the next layer is fused into this one.
        folded: a BatchNormalization that the converter folds into the convolution before it.
        keep_zeros: the kernel has zeros, which stay.
        bits: of the kernel.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        rule: KernelRule | None = None,
        inputs: Sequence[int] = (),
        output: bool = True,
        folded: bool = False,
        keep_zeros: bool = False,
        bits: int = MOST_BITS,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs["name"] = layer.name
        super().__init__(layer, default_8bit_quantize_configs.NoOpQuantizeConfig(), **kwargs)
        self.inputs = tuple(inputs)
        self.output_quantized, self.folded, self.keep_zeros, self.bits = output, folded, keep_zeros, bits
        self.supports_masking = layer.supports_masking
        # Of TF operations: without it their arguments come back from a config one list deeper.
        self._preserve_input_structure_in_config = layer._preserve_input_structure_in_config
        self.rule = rule
        self.channel_axes = KERNELS[type(layer)][1] if type(layer) in KERNELS else None
        self.ranges: dict[str, tuple[tf.Variable, tf.Variable]] = {}
        self._observing = False

    @property
    def ready(self) -> bool:
        """Whether every range is known: from the first training step, or from calibration."""
        return all((low.numpy() < high.numpy()).all() for low, high in self.ranges.values())

    def build(self, input_shape: Any) -> None:
        """Builds the layer, and the variables of its ranges."""
        super().build(input_shape)
        self.mask = None
        if (kernel := self.kernel) is not None:
            if self.keep_zeros:
                self.mask = self._state("mask", kernel.shape, "ones")
            if self.channel_axes is not None:
                rank = kernel.shape.rank
                self._inner = [axis for axis in range(rank) if axis - rank not in self.channel_axes]
                shape = [1 if a in self._inner else n for a, n in enumerate(kernel.shape)]
                if self.bits < MOST_BITS:
                    self.log_step = self._state("log_step", shape, trainable=True)
                else:
                    self.kernel_max = self._state("kernel_max", shape)
        if self.inputs:
            self._add_range("inputs")
        if isinstance(self.layer, AFFINE) and not self.folded:
            self._add_range("product")
        if not isinstance(self.layer, _layers.Activation) and activation_name(self.layer) not in FUSED_ACTIVATIONS:
            self._add_range("preactivation")
        if self.output_quantized:
            self._add_range("output")

    def _add_range(self, name: str) -> None:
        self.ranges[name] = self._state(f"{name}_min"), self._state(f"{name}_max")

    def _state(self, name: str, shape: Any = (), initializer: str = "zeros", *, trainable: bool = False) -> tf.Variable:
        return self.add_weight(
            name,
            shape=shape,
            initializer=initializer,
            dtype=tf.float32,
            trainable=trainable,
            experimental_autocast=False,
            aggregation=tf.VariableAggregation.MEAN,
        )

    def start(self) -> None:
        """Takes mask and range, or steps, from the kernel as it is."""
        if self.kernel is None:
            return
        if self.mask is not None:
            self.mask.assign(tf.cast(tf.not_equal(self.kernel, 0), tf.float32))
        if self.channel_axes is not None and self.bits < MOST_BITS:
            self.log_step.assign(np.log(best_steps(self.kernel.numpy(), bits=self.bits, inner=self._inner)))
        super().start()

    def plain_weights(self) -> list[np.ndarray]:
        """The layer's weights; a kernel of few levels as it is rounded."""
        weights = self.layer.get_weights()
        if self.channel_axes is not None and self.bits < MOST_BITS:
            place = next(i for i, weight in enumerate(self.layer.weights) if weight is self.kernel)
            weights[place] = self._quantized_kernel(False).numpy()
        return weights

    def after_step(self, weights: tf.Tensor) -> tf.Tensor:
        """The kernel to store, its zeros in place; fits its range. Called by the optimizer."""
        kernel = tf.convert_to_tensor(weights)
        if self.mask is not None:
            kernel *= tf.cast(self.mask, kernel.dtype)
        if self.channel_axes is None or self.bits < MOST_BITS:
            return kernel
        largest = tf.reduce_max(tf.abs(tf.cast(kernel, tf.float32)), axis=self._inner, keepdims=True)
        self.kernel_max.assign(tf.maximum(largest, _SMALLEST))
        return kernel

    def call(self, inputs: Any, *args: Any, training: Any = None, **kwargs: Any) -> Any:
        """The layer's own call, on 8-bit values in float."""
        if training is None:
            training = keras.backend.learning_phase()
        # The layer takes the mask from its inputs itself, where its call has one.
        kwargs.pop("mask", None)
        if self.inputs:
            values = tf.nest.flatten((inputs, args, kwargs))
            tensors = [i for i, value in enumerate(values) if tf.is_tensor(value)]
            for position in self.inputs:
                i = tensors[position]
                values[i] = self._quantize("inputs", values[i], training)
            inputs, args, kwargs = tf.nest.pack_sequence_as((inputs, args, kwargs), values)
        if self.layer._expects_training_arg:
            kwargs["training"] = training
        with self._replaced(training):
            outputs = self.layer(inputs, *args, **kwargs)
        if "product" in self.ranges:
            scale, offset = _affine(self.layer)
            total = self._quantize("product", inputs * scale, training) + offset
            if isinstance(self.layer, _layers.BatchNormalization):
                # Training normalizes by the batch's own statistics; the product is only looked at for its range.
                total = _select(training, lambda: outputs, lambda: total)
            outputs = total
        return self._quantize("output", outputs, training) if self.output_quantized else outputs

    @contextlib.contextmanager
    def _replaced(self, training: Any) -> Iterator[None]:
        """Within it, the layer has a quantized kernel and activation."""
        new: dict[str, Any] = {}
        if self.rule is not None and self.channel_axes is not None:
            new[self.rule.kernel] = self._quantized_kernel(training)
        if "preactivation" in self.ranges:
            activation = self.layer.activation
            new["activation"] = lambda x: activation(self._quantize("preactivation", x, training))
        # Past Keras' attribute tracking, which would take the variable off the layer.
        attributes = self.layer.__dict__
        old = {name: attributes[name] for name in new}
        attributes.update(new)
        try:
            yield
        finally:
            attributes.update(old)

    def _quantized_kernel(self, training: Any) -> tf.Tensor:
        """The kernel rounded to -127..127 steps of each channel's scale, or to fewer that are learned.

        In plain arithmetic, not by TensorFlow's fake-quantization: the converter folds it into a constant on the very
        grid that it finds again by itself, also where it would lose the mark of a fake-quantization on the way (Dense
        and Conv1D with a scale per channel).
        """
        kernel = tf.convert_to_tensor(self.kernel)
        if self.bits < MOST_BITS:
            on_grid = round_to_steps(tf.cast(kernel, tf.float32), self.log_step, bits=self.bits)
            # For zeros that stay no gradient, so that they count in no norm.
            return tf.cast(on_grid if self.mask is None else on_grid * self.mask, kernel.dtype)
        scale = self.kernel_max / 127
        rounded = tf.cast(
            tf.clip_by_value(tf.round(tf.cast(kernel, tf.float32) / scale), -127, 127) * scale, kernel.dtype
        )
        if isinstance(training, (bool, int)) and not training:
            return rounded
        # Straight-through: the gradient of the stored kernel, none for zeros that stay, so that they count in no norm.
        mask = 1.0 if self.mask is None else tf.cast(self.mask, kernel.dtype)
        return kernel * mask + tf.stop_gradient(rounded - kernel)

    def _quantize(self, name: str, x: tf.Tensor, training: Any) -> tf.Tensor:
        """x rounded to 256 steps of a range, which follows x in training; x itself as long as there is no range."""
        low, high = self.ranges[name]

        def follow() -> tf.Tensor:
            values = tf.cast(x, tf.float32)
            least = tf.minimum(tf.reduce_min(values), 0.0)
            # Something above zero, so that a range of zeros alone counts as known.
            most = tf.maximum(tf.reduce_max(values), _SMALLEST)
            # An input's range holds all that ever came, and so does one of calibration; others forget.
            if name == "inputs" or self._observing:
                next_low, next_high = tf.minimum(low, least), tf.maximum(high, most)
            else:
                rate = tf.where(low < high, _RATE, 1.0)
                next_low, next_high = low + rate * (least - low), high + rate * (most - high)
            return low.assign(next_low), high.assign(next_high)

        def stay() -> tf.Tensor:
            return tf.convert_to_tensor(low), tf.convert_to_tensor(high)

        least, most = follow() if self._observing else _select(training, follow, stay)
        return tf.cond(
            least < most,
            lambda: tf.cast(tf.quantization.fake_quant_with_min_max_vars(tf.cast(x, tf.float32), least, most), x.dtype),
            lambda: tf.identity(x),
        )

    def get_config(self) -> dict[str, Any]:
        """Layer, rule and options."""
        return {
            **super().get_config(),
            "inputs": list(self.inputs),
            "output": self.output_quantized,
            "folded": self.folded,
            "keep_zeros": self.keep_zeros,
            "bits": self.bits,
        }

    # tfmot's versions train frozen layers (tensorflow/model-optimization issues 881, 1067), and list weights that
    # `build` here leaves where they are.
    trainable = keras.layers.Layer.trainable
    trainable_weights = keras.layers.Layer.trainable_weights
    non_trainable_weights = keras.layers.Layer.non_trainable_weights
    updates = keras.layers.Layer.updates
    losses = keras.layers.Layer.losses


def activation_name(layer: keras.layers.Layer) -> str:
    """Name of a layer's activation, "linear" where it has none."""
    activation = getattr(layer, "activation", keras.activations.linear)
    return getattr(activation, "__name__", type(activation).__name__)


@contextlib.contextmanager
def observe_ranges(layers: Iterable[QuantizedLayer]) -> Iterator[None]:
    """Within it, the layers' ranges follow what comes at inference, in eager calls."""
    layers = list(layers)
    for layer in layers:
        layer._observing = True
    try:
        yield
    finally:
        for layer in layers:
            layer._observing = False


def _affine(layer: keras.layers.Layer) -> tuple[Any, Any]:
    """(scale, offset) of a layer that computes x * scale + offset at inference."""
    if isinstance(layer, keras.layers.Rescaling):
        return layer.scale, layer.offset
    if isinstance(layer, keras.layers.Normalization):
        scale = 1 / tf.maximum(tf.sqrt(layer.variance), keras.backend.epsilon())
        return scale, -layer.mean * scale
    scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    if layer.scale:
        scale *= layer.gamma
    offset = -layer.moving_mean * scale
    return scale, offset + layer.beta if layer.center else offset


def _select(training: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """A branch by a bool or by a tensor of it."""
    if isinstance(training, (bool, int)):
        return then() if training else otherwise()
    return tf.cond(tf.cast(training, tf.bool), then, otherwise)
