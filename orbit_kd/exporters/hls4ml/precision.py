"""The fixed-point type of every number in a network: just wide enough for what was seen over calibration images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.exporters.hls4ml.network import KERNELS, POOLS, fan_in, scale_and_offset

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A type of Xilinx' ap_fixed library: `width` bits, `integer` of them (the sign too) before the point.

    Rounds to nearest and saturates; an accumulator truncates and wraps, as only its end value must fit.
    """

    width: int
    integer: int
    signed: bool = True
    accumulator: bool = False

    @property
    def fraction(self) -> int:
        """Bits after the point."""
        return self.width - self.integer

    def __str__(self) -> str:
        modes = "" if self.accumulator else ",AP_RND,AP_SAT"
        return f"ap_{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{modes}>"

    @classmethod
    def holding(cls, low: float, high: float, *, width: int) -> Fixed:
        """The type of that width with the finest steps that reaches from `low` to `high`."""
        signed, largest = low < 0, max(-low, high)
        return cls(width, (math.frexp(largest)[1] if largest else 0) + signed, signed)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real numbers -> int64 steps of 2**-fraction, as ap_fixed does it."""
        top = 1 << (self.width - self.signed)
        steps = np.floor(np.asarray(x, np.float64) * 2.0**self.fraction + 0.5)
        return np.clip(steps, -top if self.signed else 0, top - 1).astype(np.int64)


def ranges(network: keras.Model, images: np.ndarray, *, batch: int = 32) -> dict[str, tuple[float, float]]:
    """(lowest, highest) value of each layer's output over the images."""
    probe = keras.Model(network.input, [layer.output for layer in network.layers])
    found = {layer.name: (math.inf, -math.inf) for layer in network.layers}
    for start in range(0, len(images), batch):
        outputs = probe(images[start : start + batch], training=False)
        for layer, out in zip(network.layers, outputs if isinstance(outputs, list) else [outputs], strict=True):
            low, high = found[layer.name]
            found[layer.name] = min(low, float(np.min(out))), max(high, float(np.max(out)))
    return found


def precisions(
    network: keras.Model, observed: dict[str, tuple[float, float]], *, bits: int, weight_bits: int
) -> dict[str, dict[str, Fixed]]:
    """The types of each layer: "result", and where it has them "weight" (or "scale"), "bias" and "accum".

    Args:
        network: of `plain`.
        observed: of `ranges`.
        bits: width of results and biases.
        weight_bits: width of kernels.
    """
    types: dict[str, dict[str, Fixed]] = {}
    for layer in network.layers:
        low, high = observed[layer.name]
        own = types[layer.name] = {"result": Fixed.holding(low, high, width=bits)}
        if isinstance(layer, layers.InputLayer):
            continue
        source = types[_source(layer)]["result"]
        if weights := layer.get_weights():
            first = weights[0] if isinstance(layer, KERNELS) else scale_and_offset(layer)[0]
            second = weights[1] if isinstance(layer, KERNELS) else scale_and_offset(layer)[1]
            kernel = Fixed.holding(float(first.min()), float(first.max()), width=weight_bits)
            own["weight" if isinstance(layer, KERNELS) else "scale"] = kernel
            own["bias"] = Fixed.holding(float(second.min()), float(second.max()), width=bits)
            if isinstance(layer, KERNELS):
                own["accum"] = _accumulator(source, kernel, own["result"], terms=fan_in(layer))
        elif isinstance(layer, POOLS):
            shape = layer.input_shape[1:3] if isinstance(layer, (layers.GlobalAveragePooling2D,)) else ()
            grow = math.ceil(math.log2(math.prod(shape or getattr(layer, "pool_size", (1,))))) + 1
            own["accum"] = Fixed(source.width + grow + 2, source.integer + grow, source.signed, accumulator=True)
    return types


def _source(layer: Any) -> str:
    inbound = layer.inbound_nodes[0].inbound_layers
    return (inbound[0] if isinstance(inbound, list) else inbound).name


def _accumulator(source: Fixed, kernel: Fixed, result: Fixed, *, terms: int) -> Fixed:
    """Two bits of room above the result; each product is truncated, so together they lose half a step of the result."""
    integer = result.integer + (not result.signed) + 2
    fraction = min(source.fraction + kernel.fraction, result.fraction + math.ceil(math.log2(max(terms, 2))) + 1)
    return Fixed(integer + max(fraction, 1 - integer), integer, accumulator=True)
