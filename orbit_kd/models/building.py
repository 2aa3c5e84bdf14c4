"""What reference networks are built of, and the registry that they are filed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tf_keras as keras
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

Shape = tuple[int, int, int]
networks: Registry[Callable[..., keras.Model]] = Registry("network")


def rescaled_input(shape: Shape) -> tuple[Any, Any]:
    """An input of raw pixels, and the pixels as fractions of 255."""
    image = keras.Input(shape)
    return image, layers.Rescaling(1 / 255, name="rescaling")(image)


def widened(channels: int, width: float) -> int:
    """A count of channels times the multiplier, at least 1."""
    return max(1, round(channels * width))


def convolution(x: Any, filters: int, name: str, *, size: int = 3, stride: int = 1) -> Any:
    """Convolution without bias, then BatchNormalization."""
    x = layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def check_smallest(shape: Shape, size: int, network: str) -> None:
    """Refuses images smaller than a network takes.

    Raises:
        InputError: one side below `size` pixels.
    """
    if min(shape[:2]) < size:
        raise InputError(
            f"{network} does not take images of {shape[0]}x{shape[1]}.",
            expected=f"at least {size}x{size} pixels",
            fix="use larger crops (--crop, --resize) or another network",
        )


def basic_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """Two convolutions beside a skip, projected where the shape changes (He et al., CVPR 2016)."""
    y = layers.ReLU(name=f"{name}_relu1")(convolution(x, filters, f"{name}_1", stride=stride))
    y = convolution(y, filters, f"{name}_2")
    if stride > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, f"{name}_skip", size=1, stride=stride)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, y]))
