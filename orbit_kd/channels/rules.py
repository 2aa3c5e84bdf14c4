"""How channel ids flow through each Keras layer type: one short rule a type, filed with `@channel_rule`.

To add a layer, write a function of a `Call` that names the layer's weights and returns the named output; see
`ids.Call` for what a rule can say. TensorFlow operations in a graph have their rules in `operations.py`.
"""

from __future__ import annotations

import math

import numpy as np
from tf_keras import layers
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.convolutional.base_depthwise_conv import DepthwiseConv

from orbit_kd.channels.ids import Call, Channels, Ids, channel_rule
from orbit_kd.channels.shapes import concatenate_ids, element_ids, merge_ids, reshape_ids
from orbit_kd.models.walk import RANDOM


def positions(shape: tuple[int | None, ...], channel_axis: int) -> float:
    """Number of spatial positions of a tensor (batch not counted); NaN where a size is not known."""
    sizes = [n for i, n in enumerate(shape) if i != channel_axis]
    return math.nan if None in sizes else math.prod(n for n in sizes if n)


# ---------------------------------------------------------------- convolutions and dense layers


@channel_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(call: Call) -> Channels:
    """New ids; with groups, channels at the same place in each group live or die together."""
    layer, axis, x = call.layer, call.channel_axis, call.ids()
    out, spatial = call.new_ids(layer.filters), (None,) * layer.rank
    read: Ids | None = x
    if 1 < layer.groups == len(x):  # depthwise in all but name: a filter goes with its one input channel
        call.couple(out.reshape(len(x), -1), x[:, None])
        call.config(groups=x)
        read = None
    elif layer.groups > 1:
        for ids in (x, out):
            call.couple(ids.reshape(layer.groups, -1), ids.reshape(layer.groups, -1)[:1])
        read = x.reshape(layer.groups, -1)[0]
    call.weight("kernel", *spatial, read, out, uses=positions(call.output_shapes[0], axis))
    call.weight("bias", out)
    call.config(filters=out)
    return call.output(out, axis)


@channel_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(call: Call) -> Channels:
    """New ids; the kernel is (*space, out, in), and multiplies once for each input position."""
    axis, x = call.channel_axis, call.ids()
    out = call.new_ids(call.layer.filters)
    call.weight("kernel", *(None,) * call.layer.rank, out, x, uses=positions(call.x.shape, axis))
    call.weight("bias", out)
    call.config(filters=out)
    return call.output(out, axis)


@channel_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D, DepthwiseConv)
def depthwise_convolution(call: Call) -> Channels:
    """The input's ids, each repeated `depth_multiplier` times."""
    axis, x = call.channel_axis, call.ids()
    out = np.repeat(x, call.layer.depth_multiplier)
    spatial = (None,) * (len(call.x.shape) - 1)
    call.weight("depthwise_kernel", *spatial, x, None, uses=positions(call.output_shapes[0], axis))
    call.weight("bias", out)
    return call.output(out, axis)


@channel_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(call: Call) -> Channels:
    """A depthwise convolution, then a pointwise one with new ids."""
    layer, axis, x = call.layer, call.channel_axis, call.ids()
    out, spatial = call.new_ids(layer.filters), (None,) * layer.rank
    uses = positions(call.output_shapes[0], axis)
    call.weight("depthwise_kernel", *spatial, x, None, uses=uses)
    call.weight("pointwise_kernel", *spatial, np.repeat(x, layer.depth_multiplier), out, uses=uses)
    call.weight("bias", out)
    call.config(filters=out)
    return call.output(out, axis)


@channel_rule(layers.Dense)
def dense(call: Call) -> Channels:
    """New ids on the last axis, whatever the rank."""
    x, out = call.ids(-1), call.new_ids(call.layer.units)
    call.weight("kernel", x, out, uses=positions(call.output_shapes[0], len(call.x.shape) - 1))
    call.weight("bias", out)
    call.config(units=out)
    return call.output(out)


# ---------------------------------------------------------------- normalizations


@channel_rule(layers.BatchNormalization)
def batch_normalization(call: Call) -> list[Channels]:
    """The input's ids on all four vectors."""
    (axis,) = call.layer.axis
    x = call.ids(axis - 1 if axis > 0 else axis)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        call.weight(name, x)
    return call.same()


@channel_rule(layers.LayerNormalization)
def layer_normalization(call: Call) -> list[Channels]:
    """The input's ids where it normalizes over the channels alone; the kept channels then share the statistics."""
    axes = [call.layer.axis] if isinstance(call.layer.axis, int) else list(call.layer.axis)
    if [a % (len(call.x.shape) + 1) - 1 for a in axes] != [call.x.axis]:
        return call.keep_all("normalizes over more than the channels")
    for name in ("gamma", "beta"):
        call.weight(name, call.x.ids)
    return call.same()


@channel_rule(layers.GroupNormalization)
def group_normalization(call: Call) -> list[Channels]:
    """Whole groups go, so that those that stay keep their statistics."""
    axis = call.layer.axis
    x = call.ids(axis - 1 if axis > 0 else axis)
    groups = len(x) if call.layer.groups == -1 else call.layer.groups
    rows = x.reshape(groups, -1)
    call.couple(rows, rows[:, :1])
    for name in ("gamma", "beta"):
        call.weight(name, x)
    call.config(groups=rows[:, 0])
    return call.same()


@channel_rule(layers.Normalization)
def normalization(call: Call) -> list[Channels]:
    """Its statistics are no trainable weights and cannot shrink: the channels it sees stay."""
    return call.keep_all("fixed statistics") if call.layer.axis else call.same()


# ---------------------------------------------------------------- activations and everything elementwise


@channel_rule(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.ThresholdedReLU)
@channel_rule(*RANDOM)
@channel_rule(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
@channel_rule(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)
@channel_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
@channel_rule(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
@channel_rule(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D)
@channel_rule(layers.Rescaling, layers.Resizing, layers.CenterCrop, layers.Masking, layers.ActivityRegularization)
@channel_rule(layers.RandomFlip, layers.RandomTranslation, layers.RandomRotation, layers.RandomZoom)
@channel_rule(layers.RandomCrop, layers.RandomHeight, layers.RandomWidth, layers.RandomBrightness)
@channel_rule(layers.RandomContrast, StochasticDepth)
def unchanged(call: Call) -> list[Channels]:
    """One channel in, the same channel out."""
    if np.ndim(getattr(call.layer, "scale", 0.0)) or np.ndim(getattr(call.layer, "offset", 0.0)):
        return call.keep_all("one constant a channel")
    return call.same()


@channel_rule(LayerScale)
def layer_scale(call: Call) -> list[Channels]:
    """ConvNeXt: one factor a channel."""
    call.weight("gamma", call.ids(-1))
    call.config(projection_dim=call.ids(-1))
    return call.same()


@channel_rule(layers.Softmax, layers.UnitNormalization)
def softmax(call: Call) -> list[Channels]:
    """Each output depends on every channel: all stay."""
    return call.keep_all("mixes channels")


@channel_rule(layers.PReLU)
def prelu(call: Call) -> list[Channels]:
    """One slope per element, shared along `shared_axes`."""
    shape = call.layer.alpha.shape
    axes: list[Ids | None] = [None] * len(shape)
    if shape[call.x.axis] == len(call.x.ids):
        axes[call.x.axis] = call.x.ids
    call.weight("alpha", *axes)
    return call.same()


# ---------------------------------------------------------------- shapes


@channel_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def global_pooling(call: Call) -> Channels:
    """Space goes, the channels stay where they are (keepdims) or become the only axis."""
    return call.output(call.ids(), call.channel_axis if call.layer.keepdims else 0)


@channel_rule(layers.Flatten)
def flatten(call: Call) -> Channels | list[Channels]:
    """Ids tiled over the positions; Keras moves channels_first channels to the end before it flattens."""
    ids = element_ids(call.x)
    if ids is None:
        return call.keep_all("flattens an image of unknown size")
    if call.channel_axis == 0:
        ids = np.moveaxis(ids, 0, -1)
    return call.output(ids.ravel())


@channel_rule(layers.Reshape)
def reshape(call: Call) -> Channels | list[Channels]:
    """Ids follow the elements; the target shape follows the ids."""
    return reshape_ids(call, lambda target: call.config(target_shape=target))


@channel_rule(layers.Permute)
def permute(call: Call) -> Channels:
    """The channel axis moves with its ids."""
    return call.output(call.x.ids, [d - 1 for d in call.layer.dims].index(call.x.axis))


@channel_rule(layers.RepeatVector)
def repeat_vector(call: Call) -> Channels:
    """(features,) -> (n, features): ids on the last axis."""
    return call.output(call.x.ids)


# ---------------------------------------------------------------- merges


@channel_rule(CustomScaleLayer)  # of InceptionResNetV2: a scaled residual sum
@channel_rule(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def merge(call: Call) -> Channels:
    """Residual sums and squeeze-and-excite gates."""
    return merge_ids(call)


@channel_rule(layers.Concatenate)
def concatenate(call: Call) -> Channels:
    """DenseNet, Inception, NASNet."""
    return concatenate_ids(call, call.layer.axis)
