"""Reference networks, each a function of input shape and class count; raw pixels in, logits out."""

from __future__ import annotations

import tf_keras as keras
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.models import dense_networks  # noqa: F401  files its networks
from orbit_kd.models.building import Shape, basic_block, check_smallest, convolution, networks, rescaled_input, widened


def build(name: str, input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """The network called `name` (vgg16, vgg16_average, a_convnet, resnet18, resnet20, resnet56, mobilenet_v1; unet for
    a class a pixel; centernet, centernet_resnet for boxes).

    Args:
        name: a registered network.
        input_shape: (height, width, channels) in pixels.
        classes: number of logits; of classes of pixels or boxes.
        width: multiplier on all channel counts.

    Returns:
        A Functional model from (batch, height, width, channels) raw pixel values 0..255 to (batch, classes) logits;
        "unet" gives (batch, height, width, classes) logits, and "centernet" (batch, height / 4, width / 4, classes + 4)
        in [0, 1], see `orbit_kd.tasks.detection`.

    Raises:
        InputError: an unknown name, or an image too small for the network, or of a size that it cannot halve.
    """
    return networks.get(name)(input_shape, classes=classes, width=width)


@networks.register("vgg16")
def vgg16(
    input_shape: Shape,
    *,
    classes: int,
    width: float = 1.0,
    batch_norm: bool = True,
    head: str = "flatten",
    hidden: int = 512,
    dropout: float = 0.5,
) -> keras.Model:
    """VGG-16 (Simonyan & Zisserman, ICLR 2015) with BatchNormalization and a small head.

    Args:
        input_shape: (height, width, channels), at least 32x32.
        classes: number of logits.
        width: multiplier on all channel counts.
        batch_norm: BatchNormalization after each convolution, which then has no bias.
        head: "flatten" (Flatten, Dense(hidden), logits) or "average" (global average pooling, logits).
        hidden: units of the hidden dense layer, before `width`.
        dropout: rate after the hidden layer.

    Raises:
        InputError: a smaller image, or an unknown head.
    """
    check_smallest(input_shape, 32, "vgg16")
    image, x = rescaled_input(input_shape)
    for block, (filters, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for i in range(1, depth + 1):
            x = layers.Conv2D(
                widened(filters, width),
                3,
                padding="same",
                use_bias=not batch_norm,
                kernel_initializer="he_normal",
                name=f"block{block}_conv{i}",
            )(x)
            if batch_norm:
                x = layers.BatchNormalization(name=f"block{block}_bn{i}")(x)
            x = layers.ReLU(name=f"block{block}_relu{i}")(x)
        x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    if head == "flatten":
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(widened(hidden, width), activation="relu", name="fc1")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
    elif head == "average":
        x = layers.GlobalAveragePooling2D(name="average")(x)
    else:
        raise InputError(f"Unknown head {head!r}.", expected='"flatten" or "average"', fix="choose one of the two")
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="vgg16")


@networks.register("vgg16_average")
def vgg16_average(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """VGG-16 with global average pooling in place of the dense layer: learns from fewer images."""
    return vgg16(input_shape, classes=classes, width=width, head="average")


@networks.register("a_convnet")
def a_convnet(input_shape: Shape, *, classes: int, width: float = 1.0, dropout: float = 0.5) -> keras.Model:
    """A-ConvNet, the all-convolutional SAR standard (Chen et al., IEEE TGRS 2016).

    The paper's unpadded convolutions need 88x88 images; smaller ones are padded ("same"), and the last convolution
    always covers what is left of the image.

    Raises:
        InputError: an image below 32x32.
    """
    check_smallest(input_shape, 32, "a_convnet")
    padding = "valid" if min(input_shape[:2]) >= 88 else "same"
    image, x = rescaled_input(input_shape)
    for i, (filters, size) in enumerate([(16, 5), (32, 5), (64, 6)], 1):
        x = layers.Conv2D(widened(filters, width), size, padding=padding, activation="relu", name=f"conv{i}")(x)
        x = layers.MaxPooling2D(name=f"pool{i}")(x)
    x = layers.Conv2D(widened(128, width), 5, padding=padding, activation="relu", name="conv4")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(classes, tuple(x.shape[1:3]), name="logits")(x)
    return keras.Model(image, layers.Flatten(name="flatten")(x), name="a_convnet")


def _resnet(name: str, input_shape: Shape, classes: int, stages: list[tuple[int, int]], width: float) -> keras.Model:
    check_smallest(input_shape, 8, name)
    image, x = rescaled_input(input_shape)
    large = len(stages) == 4 and min(input_shape[:2]) > 96
    x = convolution(x, widened(stages[0][0], width), "stem", size=7 if large else 3, stride=2 if large else 1)
    x = layers.ReLU(name="stem_relu")(x)
    if large:
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for s, (filters, blocks) in enumerate(stages, 1):
        for b in range(1, blocks + 1):
            x = basic_block(x, widened(filters, width), 2 if b == 1 and s > 1 else 1, f"stage{s}_block{b}")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name=name)


@networks.register("resnet20")
def resnet20(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """ResNet-20 of the CIFAR kind, with projection shortcuts (He et al., CVPR 2016)."""
    return _resnet("resnet20", input_shape, classes, [(16, 3), (32, 3), (64, 3)], width)


@networks.register("resnet56")
def resnet56(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """ResNet-56 of the CIFAR kind, with projection shortcuts (He et al., CVPR 2016)."""
    return _resnet("resnet56", input_shape, classes, [(16, 9), (32, 9), (64, 9)], width)


@networks.register("resnet18")
def resnet18(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """ResNet-18 (He et al., CVPR 2016); images up to 96 pixels get a 3x3 stem without pooling."""
    return _resnet("resnet18", input_shape, classes, [(64, 2), (128, 2), (256, 2), (512, 2)], width)


@networks.register("mobilenet_v1")
def mobilenet_v1(input_shape: Shape, *, classes: int, width: float = 1.0) -> keras.Model:
    """MobileNet v1 (Howard et al., 2017): depthwise separable convolutions; one stride less for images up to 96."""
    check_smallest(input_shape, 32, "mobilenet_v1")
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    image, x = rescaled_input(input_shape)
    x = convolution(x, widened(32, width), "stem", stride=1 if min(input_shape[:2]) <= 96 else 2)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    for i, (filters, stride) in enumerate(blocks, 1):
        x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"block{i}_depthwise")(x)
        x = layers.BatchNormalization(name=f"block{i}_depthwise_bn")(x)
        x = layers.ReLU(6.0, name=f"block{i}_depthwise_relu")(x)
        x = layers.ReLU(6.0, name=f"block{i}_relu")(convolution(x, widened(filters, width), f"block{i}", size=1))
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="mobilenet_v1")
