"""Reference networks that answer for each place in the image: a U-Net for pixels, CenterNets for boxes."""

from __future__ import annotations

import math
from typing import Any

import tf_keras as keras
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.models.building import Shape, basic_block, convolution, networks, rescaled_input, widened

_FIRST_HEAT = 0.1  # a detector that starts at 0.5 everywhere is flooded by its background (Lin et al. 2017)
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1))
_RESIDUAL = ((64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))


@networks.register("unet")
def unet(input_shape: Shape, *, classes: int, width: float = 1.0, depth: int = 4) -> keras.Model:
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597), padded and with BatchNormalization: a class for each pixel.

    On the way up, channels are halved by a 1x1 convolution before the image grows by repeating pixels, not by a
    transposed convolution: that takes the least memory where the image is largest, and every target runs it.

    Args:
        input_shape: (height, width, bands), both sides multiples of 2**depth.
        classes: number of logits a pixel.
        width: multiplier on the channel counts, which are 64 at full size and double with each level.
        depth: how often the image is halved.

    Returns:
        A model to logits (batch, height, width, classes).

    Raises:
        InputError: an image of another size, or no depth.
    """
    if depth < 1:
        raise InputError(f"depth={depth}.", expected="at least 1", fix="3 or 4 is usual")
    _check_halves(input_shape, depth, "unet")
    image, x = rescaled_input(input_shape)
    counts = [widened(64 * 2**level, width) for level in range(depth + 1)]
    skips = []
    for level, filters in enumerate(counts):
        x = _twice(x, filters, f"down{level}" if level < depth else "bottom")
        if level < depth:
            skips.append(x)
            x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
    for level in reversed(range(depth)):
        x = _grown(x, counts[level], skips[level], f"up{level}")
        x = _twice(x, counts[level], f"up{level}")
    return keras.Model(image, layers.Conv2D(classes, 1, name="logits")(x), name="unet")


@networks.register("centernet")
def centernet(
    input_shape: Shape, *, classes: int, width: float = 1.0, backbone: str = "mobilenet", head: int = 64
) -> keras.Model:
    """A small detector without anchors (CenterNet, Zhou et al. 2019, arXiv:1904.07850).

    A backbone down to 1/16 of the image, two steps up to 1/4 with skips as in a U-Net, then one map: the heat of each
    class, height and width as fractions of the image, and where in its cell the centre is. One sigmoid ends all of
    them, so that one int8 scale fits. See `orbit_kd.tasks.detection`.

    Args:
        input_shape: (height, width, bands), both sides multiples of 16.
        classes: of boxes.
        width: multiplier on all channel counts.
        backbone: "mobilenet", depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861), or "resnet",
            basic blocks (He et al., CVPR 2016).
        head: channels of the convolution before the last, before `width`.

    Returns:
        A model to (batch, height / 4, width / 4, classes + 4) in [0, 1]; its heat starts near 0.1.

    Raises:
        InputError: an image of another size, or an unknown backbone.
    """
    _check_halves(input_shape, 4, "centernet")
    if backbone not in ("mobilenet", "resnet"):
        raise InputError(
            f"Unknown backbone {backbone!r}.", expected='"mobilenet" or "resnet"', fix="choose one of both"
        )
    image, x = rescaled_input(input_shape)
    x = layers.ReLU(name="stem_relu")(convolution(x, widened(32, width), "stem", stride=2))
    skips = {}
    for i, (filters, stride) in enumerate(_SEPARABLE if backbone == "mobilenet" else _RESIDUAL, 1):
        if stride == 2:
            skips[input_shape[0] // int(x.shape[1])] = x
        block = _separable if backbone == "mobilenet" else basic_block
        x = block(x, widened(filters, width), stride, f"block{i}")
    for step in (8, 4):
        filters = widened(2 * head if step == 8 else head, width)
        x = _grown(x, filters, skips[step], f"up{step}")
        x = layers.ReLU(name=f"up{step}_relu")(convolution(x, filters, f"up{step}"))
    x = layers.ReLU(name="head_relu")(convolution(x, widened(head, width), "head"))
    start = math.log(_FIRST_HEAT / (1 - _FIRST_HEAT))  # also a fair first guess of the size of a box
    last = layers.Conv2D(
        classes + 4, 1, activation="sigmoid", name="maps", bias_initializer=keras.initializers.Constant(start),
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
    )  # fmt: skip
    return keras.Model(image, last(x), name="centernet")


@networks.register("centernet_resnet")
def centernet_resnet(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """`centernet` on residual blocks: larger, a teacher for the other."""
    return centernet(input_shape, classes=classes, width=width, backbone="resnet")


def _twice(x: Any, filters: int, name: str) -> Any:
    """Two convolutions."""
    for i in (1, 2):
        x = layers.ReLU(name=f"{name}_relu{i}")(convolution(x, filters, f"{name}_{i}"))
    return x


def _grown(x: Any, filters: int, skip: Any, name: str) -> Any:
    """x with fewer channels and twice as large, beside what was there on the way down."""
    x = layers.ReLU(name=f"{name}_narrow_relu")(convolution(x, filters, f"{name}_narrow", size=1))
    x = layers.UpSampling2D(name=f"{name}_grow")(x)
    return layers.Concatenate(name=f"{name}_skip")([x, skip])


def _separable(x: Any, filters: int, stride: int, name: str) -> Any:
    x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.BatchNormalization(name=f"{name}_depthwise_bn")(x)
    x = layers.ReLU(name=f"{name}_depthwise_relu")(x)
    return layers.ReLU(name=f"{name}_relu")(convolution(x, filters, name, size=1))


def _check_halves(shape: Shape, times: int, network: str) -> None:
    """Refuses images that cannot be halved so often: the way up would meet a skip of another size."""
    step = 2**times
    if any(side is None or side < step or side % step for side in shape[:2]):
        raise InputError(
            f"{network} does not take images of {shape[0]}x{shape[1]}.",
            expected=f"sides that are multiples of {step} pixels",
            fix="resize or crop the images (--resize, --crop); 128x128 for example",
        )
