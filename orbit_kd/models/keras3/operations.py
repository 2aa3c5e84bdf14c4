"""Operations of `keras.ops` that are one TensorFlow function, in tables; to add one, add a line.

Those with options of their own are in `array_operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.models.keras3.activations import ACTIVATIONS, elu, glu, hard_sigmoid
from orbit_kd.registry import Registry

OPERATIONS: Registry[Callable[..., Any]] = Registry("Keras 3 operation")
"""Class name of an operation -> function of the operation (for its options) and the arguments of the call."""

operation = OPERATIONS.register


def alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands of one dtype, as Keras 3 promotes them: TensorFlow refuses to mix integers and floats."""
    tensors = [v.dtype for v in (a, b) if hasattr(v, "_keras_history")]
    numbers = [v for v in (a, b) if isinstance(v, float)]
    if len(tensors) == 1 and not numbers:  # a constant takes the tensor's dtype, unless it is a float and that is none
        other = b if hasattr(a, "_keras_history") else a
        numbers = [other] if np.asarray(other).dtype.kind == "f" else []
    dtype = max(tensors, key=lambda d: (d.is_floating, d.size))
    if numbers and not dtype.is_floating:
        dtype = tf.float32

    def cast(v: Any) -> Any:
        if hasattr(v, "_keras_history"):
            return v if v.dtype == dtype else tf.cast(v, dtype)
        return np.asarray(v, dtype.as_numpy_dtype) if np.ndim(v) else dtype.as_numpy_dtype(v).item()

    return cast(a), cast(b)


def _quotient(a: Any, b: Any) -> Any:
    a, b = (tf.cast(v, tf.float32) if hasattr(v, "_keras_history") and not v.dtype.is_floating else v for v in (a, b))
    return tf.truediv(*alike(a, b))


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Subtract": lambda a, b: a - b,
    "Multiply": lambda a, b: a * b,
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "Power": tf.pow,
    "Mod": tf.math.floormod,
    "FloorDivide": tf.math.floordiv,
    "Matmul": tf.matmul,
    "Equal": tf.equal,
    "NotEqual": tf.not_equal,
    "Greater": tf.greater,
    "GreaterEqual": tf.greater_equal,
    "Less": tf.less,
    "LessEqual": tf.less_equal,
}
for _name, _function in _BINARY.items():
    operation(_name)(lambda op, a, b, f=_function: f(*alike(a, b)))
for _name in ("Divide", "TrueDivide"):
    operation(_name)(lambda op, a, b: _quotient(a, b))

_UNARY: dict[str, Callable[[Any], Any]] = {
    "Absolute": tf.abs,
    "Ceil": tf.math.ceil,
    "Copy": tf.identity,
    "Cos": tf.cos,
    "Erf": tf.math.erf,
    "Exp": tf.exp,
    "Exp2": lambda x: tf.pow(2.0, x),
    "Expm1": tf.math.expm1,
    "Floor": tf.floor,
    "HardSigmoid": hard_sigmoid,
    "HardSilu": ACTIVATIONS["hard_silu"],
    "HardTanh": ACTIVATIONS["hard_tanh"],
    "Log": tf.math.log,
    "Log10": lambda x: tf.math.log(x) * (1 / np.log(10.0)),
    "Log1p": tf.math.log1p,
    "Log2": lambda x: tf.math.log(x) * (1 / np.log(2.0)),
    "LogSigmoid": ACTIVATIONS["log_sigmoid"],
    "LogicalNot": tf.logical_not,
    "Mish": ACTIVATIONS["mish"],
    "Negative": lambda x: -x,
    "Ravel": lambda x: tf.reshape(x, [-1]),
    "Reciprocal": tf.math.reciprocal,
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "Rsqrt": tf.math.rsqrt,
    "Selu": tf.nn.selu,
    "Sigmoid": tf.sigmoid,
    "Sign": tf.sign,
    "Silu": tf.nn.silu,
    "Sin": tf.sin,
    "Softplus": tf.math.softplus,
    "Softsign": tf.nn.softsign,
    "Sqrt": tf.sqrt,
    "Square": tf.square,
    "StopGradient": tf.stop_gradient,
    "Tan": tf.tan,
    "Tanh": tf.tanh,
    "TanhShrink": ACTIVATIONS["tanh_shrink"],
}
for _name, _unary in _UNARY.items():
    operation(_name)(lambda op, x, f=_unary: f(x))

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "All": tf.reduce_all,
    "Amax": tf.reduce_max,
    "Amin": tf.reduce_min,
    "Any": tf.reduce_any,
    "Logsumexp": tf.reduce_logsumexp,
    "Max": tf.reduce_max,
    "Mean": tf.reduce_mean,
    "Min": tf.reduce_min,
    "Prod": tf.reduce_prod,
    "Std": tf.math.reduce_std,
    "Sum": tf.reduce_sum,
    "Var": tf.math.reduce_variance,
}
for _name, _reduction in _REDUCTIONS.items():
    operation(_name)(lambda op, x, f=_reduction, **_: f(x, op.axis, op.keepdims))

for _name, _logical in {
    "LogicalAnd": tf.logical_and,
    "LogicalOr": tf.logical_or,
    "LogicalXor": tf.math.logical_xor,
}.items():
    operation(_name)(lambda op, a, b, f=_logical: f(a, b))

_OTHERS: dict[str, Callable[..., Any]] = {
    "BroadcastTo": lambda op, x: tf.broadcast_to(x, op.shape),
    "Cast": lambda op, x: tf.cast(x, op.dtype),
    "Celu": lambda op, x: tf.where(x > 0, x, op.alpha * (tf.exp(tf.minimum(x, 0.0) * (1 / op.alpha)) - 1.0)),
    "Concatenate": lambda op, xs: tf.concat(xs, op.axis),
    "Cumprod": lambda op, x: tf.math.cumprod(x, op.axis),
    "Cumsum": lambda op, x: tf.math.cumsum(x, op.axis),
    "DepthToSpace": lambda op, x: tf.nn.depth_to_space(x, op.block_size),
    "Elu": lambda op, x: elu(x, op.alpha),
    "Gelu": lambda op, x: tf.nn.gelu(x, approximate=op.approximate),
    "Glu": lambda op, x: glu(x, op.axis),
    "LeakyRelu": lambda op, x: tf.nn.leaky_relu(x, alpha=op.negative_slope),
    "LogSoftmax": lambda op, x: tf.nn.log_softmax(x, axis=op.axis),
    "OnesLike": lambda op, x: tf.ones_like(x, dtype=op.dtype),
    "RGBToGrayscale": lambda op, x: tf.image.rgb_to_grayscale(x),
    "Repeat": lambda op, x: tf.repeat(x, op.repeats, op.axis),
    "Reshape": lambda op, x: tf.reshape(x, [-1 if n is None else n for n in np.atleast_1d(op.newshape).tolist()]),
    "Softmax": lambda op, x: tf.nn.softmax(x, axis=op.axis),
    "Sort": lambda op, x: tf.sort(x, op.axis),
    "SpaceToDepth": lambda op, x: tf.nn.space_to_depth(x, op.block_size),
    "Squareplus": lambda op, x: 0.5 * (x + tf.sqrt(tf.square(x) + float(op.b))),
    "Squeeze": lambda op, x: tf.squeeze(x, op.axis),
    "Stack": lambda op, xs: tf.stack(xs, op.axis),
    "Take": lambda op, x, indices: tf.gather(x, indices, axis=op.axis),
    "Threshold": lambda op, x: tf.where(x > op.threshold, x, op.default_value),
    "TopK": lambda op, x: tf.math.top_k(x, op.k, op.sorted),
    "Transpose": lambda op, x: tf.transpose(x, op.axes),
    "Unstack": lambda op, x: tf.unstack(x, op.num, op.axis),
    "ZerosLike": lambda op, x: tf.zeros_like(x, dtype=op.dtype),
}
for _name, _other in _OTHERS.items():
    operation(_name)(_other)
