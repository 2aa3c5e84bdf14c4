"""One tiny network for each channel rule; a test walks the registry to see that none is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.convolutional.base_depthwise_conv import DepthwiseConv

Apply = Callable[[Any], Any]


def network(apply: Apply, shape: tuple[int, ...]) -> keras.Model:
    """Convolution, the layer under test, a head; for signals of one to three axes."""
    convolution = [layers.Conv1D, layers.Conv2D, layers.Conv3D][len(shape) - 2]
    image = keras.Input(shape)
    x = convolution(8, 3, padding="same", activation="softsign")(image)
    x = layers.Flatten()(apply(x))
    return keras.Model(image, layers.Dense(3)(layers.Dense(6, activation="softsign")(x)))


LINE, IMAGE, VOLUME = (8, 3), (8, 8, 3), (4, 4, 4, 3)
SHAPES = {1: LINE, 2: IMAGE, 3: VOLUME}


def _by_rank(name: str, **options: Any) -> dict[type, tuple[Apply, tuple[int, ...]]]:
    """The 1D, 2D and 3D forms of a layer."""
    found = {}
    for rank, shape in SHAPES.items():
        cls = getattr(layers, name.replace("ND", f"{rank}D"), None)
        if cls is not None:
            found[cls] = (lambda x, cls=cls: cls(**options)(x), shape)
    return found


EXAMPLES: dict[type | str, tuple[Apply, tuple[int, ...]]] = {
    **_by_rank("ConvND", filters=6, kernel_size=3, padding="same", groups=2),
    **_by_rank("ConvNDTranspose", filters=6, kernel_size=2, strides=2),
    **_by_rank("DepthwiseConvND", kernel_size=3, padding="same", depth_multiplier=2),
    **_by_rank("SeparableConvND", filters=6, kernel_size=3, padding="same"),
    **_by_rank("SpatialDropoutND", rate=0.1),
    **_by_rank("MaxPoolingND"),
    **_by_rank("AveragePoolingND"),
    **_by_rank("ZeroPaddingND"),
    **_by_rank("CroppingND"),
    **_by_rank("UpSamplingND"),
    **_by_rank("GlobalAveragePoolingND", keepdims=True),
    **_by_rank("GlobalMaxPoolingND"),
}
for _layer in (
    layers.Dense(6), layers.BatchNormalization(), layers.LayerNormalization(), layers.GroupNormalization(2),
    layers.Activation("gelu"), layers.ReLU(), layers.LeakyReLU(), layers.ELU(), layers.ThresholdedReLU(0.1),
    layers.PReLU(), layers.Dropout(0.1), layers.GaussianDropout(0.1), layers.GaussianNoise(0.1),
    layers.AlphaDropout(0.1),
    layers.Softmax(), layers.UnitNormalization(), layers.Rescaling(2.0, 1.0), layers.Resizing(4, 4),
    layers.CenterCrop(4, 4), layers.Masking(), layers.ActivityRegularization(), layers.Flatten(),
    layers.Reshape((8, 8, 4, 2)), layers.Permute((2, 1, 3)), layers.RandomFlip(), layers.RandomTranslation(0.1, 0.1),
    layers.RandomRotation(0.1), layers.RandomZoom(0.1), layers.RandomCrop(4, 4), layers.RandomBrightness(0.1),
    layers.RandomContrast(0.1), LayerScale(1.0, 8), StochasticDepth(0.1),
    layers.Normalization(mean=[0.5] * 8, variance=[2.0] * 8),
):  # fmt: skip
    EXAMPLES[type(_layer)] = (
        lambda x, la=_layer: type(la).from_config({**la.get_config(), "name": "tested"})(x),
        IMAGE,
    )
for _layer in (layers.RandomHeight(0.1), layers.RandomWidth(0.1)):
    EXAMPLES[type(_layer)] = (
        lambda x, la=_layer: layers.GlobalAveragePooling2D()(
            type(la).from_config({**la.get_config(), "name": "tested"})(x)
        ),
        IMAGE,
    )
for _cls in (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum):
    EXAMPLES[_cls] = (lambda x, cls=_cls: cls()([x, layers.Conv2D(8, 1)(x)]), IMAGE)
EXAMPLES[layers.Concatenate] = (lambda x: layers.Concatenate()([x, layers.Conv2D(4, 1)(x)]), IMAGE)
EXAMPLES[CustomScaleLayer] = (lambda x: CustomScaleLayer(0.5)([x, layers.Conv2D(8, 1)(x)]), IMAGE)
EXAMPLES[DepthwiseConv] = (lambda x: layers.DepthwiseConv2D(3)(x), IMAGE)  # the base class of both
EXAMPLES[layers.RepeatVector] = (lambda x: layers.RepeatVector(3)(layers.GlobalAveragePooling2D()(x)), IMAGE)

for _cls in (layers.LSTM, layers.GRU, layers.SimpleRNN):
    EXAMPLES[_cls] = (lambda x, cls=_cls: cls(4)(layers.Reshape((64, 8))(layers.Conv2D(8, 1)(x))), IMAGE)
for _cls in (layers.Attention, layers.AdditiveAttention):
    EXAMPLES[_cls] = (lambda x, cls=_cls: cls()([layers.Reshape((64, 8))(layers.Conv2D(8, 1)(x))] * 2), IMAGE)
EXAMPLES[layers.MultiHeadAttention] = (
    lambda x: layers.MultiHeadAttention(2, 4)(*[layers.Reshape((64, 8))(layers.Conv2D(8, 1)(x))] * 2),
    IMAGE,
)
EXAMPLES[layers.Bidirectional] = (
    lambda x: layers.Bidirectional(layers.GRU(4))(layers.Reshape((64, 8))(layers.Conv2D(8, 1)(x))),
    IMAGE,
)
EXAMPLES[layers.RNN] = (
    lambda x: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])(layers.Reshape((64, 8))(layers.Conv2D(8, 1)(x))),
    IMAGE,
)
EXAMPLES[layers.ConvLSTM1D] = (lambda x: layers.ConvLSTM1D(3, 3)(layers.Conv2D(8, 1)(x)), IMAGE)
EXAMPLES[layers.ConvLSTM2D] = (lambda x: layers.ConvLSTM2D(3, 3)(layers.Conv3D(8, 1)(x)), VOLUME)
EXAMPLES[layers.ConvLSTM3D] = (
    lambda x: layers.ConvLSTM3D(2, 2)(layers.Reshape((2, 2, 4, 4, 8))(layers.Conv3D(8, 1)(x))),
    VOLUME,
)
EXAMPLES[layers.TimeDistributed] = (lambda x: layers.TimeDistributed(layers.Dense(4))(layers.Conv2D(8, 1)(x)), IMAGE)

_CONSTANT = np.linspace(-1, 1, 8).astype("float32")
OPERATIONS: dict[str, Apply] = {
    "nn.relu": tf.nn.relu, "nn.relu6": tf.nn.relu6, "nn.silu": tf.nn.silu, "nn.gelu": tf.nn.gelu, "nn.elu": tf.nn.elu,
    "nn.selu": tf.nn.selu, "nn.leaky_relu": tf.nn.leaky_relu, "math.softplus": tf.math.softplus,
    "nn.softsign": tf.nn.softsign, "math.sigmoid": tf.sigmoid, "math.tanh": tf.tanh, "math.exp": tf.exp,
    "math.log": lambda x: tf.math.log(tf.abs(x) + 2.0), "math.sqrt": lambda x: tf.sqrt(tf.abs(x) + 1.0),
    "math.rsqrt": lambda x: tf.math.rsqrt(tf.abs(x) + 1.0), "math.square": tf.square, "math.abs": tf.abs,
    "math.negative": tf.negative, "math.sign": lambda x: tf.sign(x) + x, "math.erf": tf.math.erf,
    "math.reciprocal": lambda x: tf.math.reciprocal(tf.abs(x) + 1.0), "math.round": lambda x: tf.round(x * 4),
    "math.floor": lambda x: tf.floor(x * 4), "math.ceil": lambda x: tf.math.ceil(x * 4),
    "cast": lambda x: tf.cast(tf.cast(x, "float64"), "float32"), "identity": tf.identity,
    "stop_gradient": tf.stop_gradient, "clip_by_value": lambda x: tf.clip_by_value(x, -0.5, 0.5),
    "nn.dropout": lambda x: tf.nn.dropout(x, 0.0), "image.resize": lambda x: tf.image.resize(x, (4, 4)),
    "nn.max_pool2d": lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
    "nn.avg_pool2d": lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"),
    "nn.avg_pool": lambda x: tf.nn.avg_pool(x, 2, 2, "VALID"),
    "__operators__.add": lambda x: x + layers.Conv2D(8, 1)(x), "math.subtract": lambda x: tf.subtract(x, _CONSTANT),
    "math.multiply": lambda x: x * tf.sigmoid(x), "math.truediv": lambda x: x / (tf.abs(x) + 1.0),
    "math.divide_no_nan": lambda x: tf.math.divide_no_nan(x, 2.0),
    "math.pow": lambda x: x**2,
    "math.maximum": lambda x: tf.maximum(x, 0.1), "math.minimum": lambda x: tf.minimum(x, 0.1),
    "math.squared_difference": lambda x: tf.math.squared_difference(x, 0.5), "math.add": lambda x: tf.add(x, 1.0),
    "math.add_n": lambda x: tf.add_n([x, layers.Conv2D(8, 1)(x)]),
    "nn.bias_add": lambda x: tf.nn.bias_add(x, _CONSTANT),
    "concat": lambda x: tf.concat([x, layers.Conv2D(4, 1)(x)], -1),
    "math.reduce_mean": lambda x: tf.reduce_mean(x, [1, 2]), "math.reduce_sum": lambda x: tf.reduce_sum(x, 1),
    "math.reduce_max": lambda x: tf.reduce_max(x, [2], keepdims=True),
    "math.reduce_min": lambda x: tf.reduce_min(x, -2),
    "math.reduce_std": lambda x: tf.math.reduce_std(x, [1, 2]),
    "math.reduce_variance": lambda x: tf.math.reduce_variance(x, [1, 2]),
    "__operators__.getitem": lambda x: x[:, 1:5, ::2], "reshape": lambda x: tf.reshape(x, (-1, 64, 8)),
    "transpose": lambda x: tf.transpose(x, (0, 3, 1, 2)), "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]),
    "expand_dims": lambda x: tf.expand_dims(x, 1), "squeeze": lambda x: tf.squeeze(tf.expand_dims(x, 1), axis=[1]),
    "split": lambda x: tf.split(x, 2, axis=1)[1], "shape": lambda x: tf.reshape(x, (tf.shape(x)[0], 64, 8)),
}  # fmt: skip
EXAMPLES |= {name: (apply, IMAGE) for name, apply in OPERATIONS.items()}
