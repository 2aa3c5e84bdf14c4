"""Networks as small as what they are to show allows: tracing a network costs far more here than computing with it."""

from __future__ import annotations

import tf_keras as keras

from orbit_kd.models import networks


def small_resnet(
    input_shape: networks.Shape,
    *,
    classes: int,
    width: float = 1.0,
    stages: tuple[tuple[int, int], ...] = ((8, 1), (16, 1)),
) -> keras.Model:
    """As the reference ResNets, with their names of layers, of a block in each of two stages."""
    return networks._resnet("small_resnet", input_shape, classes, list(stages), width)
