"""1x1 convolutions with strides and few input channels: what their gradient on a CPU needs.

oneDNN writes past its workspace when it computes the gradient of such a kernel: the process dies, or the gradient, or
whatever lies behind, is wrong without a word (https://github.com/uxlfoundation/oneDNN/issues/6035; seen with
TensorFlow 2.21 on AVX-512). The shortcuts of a ResNet become such convolutions when filters go. The fault is one of
strides alone, so the pixels between are left out first, and the convolution moves by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

_BLOCK = 16  # input channels that oneDNN takes at a time with AVX-512, the most of all; the fault needs fewer


@contextlib.contextmanager
def strides_first(model: keras.Model) -> Iterator[None]:
    """Within it, calls of such layers leave out pixels before they convolve; results are the same, and gradients right.

    Only calls count: a gradient may be taken after it. Nothing of it is saved or exported.

    Args:
        model: any Keras model; layers in nested models and wrappers are found too.
    """
    changed = [layer for layer in model.submodules if _at_risk(layer) and "convolution_op" not in layer.__dict__]
    for layer in changed:
        # past Keras' attribute tracking, as for the kernels of wrappers
        layer.__dict__["convolution_op"] = _strided_first(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.__dict__["convolution_op"]


def _at_risk(layer: Any) -> bool:
    kinds = keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D
    transposed = keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose
    return (
        isinstance(layer, kinds)
        and not isinstance(layer, (*transposed, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D))
        and layer.built
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and set(layer.kernel_size) == {1}
        and set(layer.strides) != {1}
        and layer.kernel.shape[-2] < _BLOCK
    )


def _strided_first(layer: Any) -> Any:
    def convolve(inputs: tf.Tensor, kernel: Any) -> tf.Tensor:
        # "same" pads nothing for a kernel of one place, so both kinds of padding take the first pixel of each step
        every = (..., *(slice(None, None, stride) for stride in layer.strides), slice(None))
        return tf.nn.convolution(inputs[every], kernel, padding="VALID", name=type(layer).__name__)

    return convolve
