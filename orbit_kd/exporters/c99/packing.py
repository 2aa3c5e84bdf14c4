"""How the weights of a convolution or dense layer are stored: a registry of formats, each with its kernel in C."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of weights.

    Attributes:
        name: for people.
        function: of its kernel in C.
        source: the file in kernels/ that holds it.
        fits: (weights) -> whether it can hold them; int8 (out, ky, kx, in).
        pack: (weights) -> the array that C gets.
        scratch_bytes: (fields of `orbit_conv`) -> bytes of scratch that the kernel needs on any core.
    """

    name: str
    function: str
    source: str
    fits: Callable[[np.ndarray], bool]
    pack: Callable[[np.ndarray], np.ndarray]
    scratch_bytes: Callable[[Mapping[str, Any]], int]


formats: Registry[Format] = Registry("format of weights")
formats.register("dense")(
    Format("dense", "orbit_conv2d_dense_s8", "conv_dense.c", lambda weights: True, lambda weights: weights, lambda f: 0)
)


def choose(weights: np.ndarray, *, prefer: str) -> Format:
    """The format that is fastest ("speed") or smallest ("bytes")."""
    fitting = [formats.get(name) for name in formats if formats.get(name).fits(weights)]
    return min(fitting, key=lambda form: form.pack(weights).nbytes)
