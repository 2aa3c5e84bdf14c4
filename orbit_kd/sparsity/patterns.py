"""Which weights of a kernel are kept: N:M, UHP and magnitude patterns.

A pattern is a value. It maps the magnitudes of a kernel and a *progress* in [0, 1] (0 dense, 1 the full pattern; see
`schedules.py`) to a mask, and checks a finished kernel. A new pattern is one frozen dataclass with `mask`,
`violation`, `reason_dense`, `steps` and `label`, registered with Keras so that it is saved, and filed in `patterns`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tensorflow as tf

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.sparsity.magnitude import Magnitude
from orbit_kd.sparsity.n_of_m import NofM


class Pattern(Protocol):
    """What the rest of the library asks of a pattern."""

    @property
    def label(self) -> str:
        """The name in tables, such as "2:4"."""

    @property
    def steps(self) -> int:
        """In how many steps the gradual schedule goes from dense to the full pattern."""

    def reason_dense(self, input_channels: int) -> str | None:
        """Why a kernel of that many input channels stays dense; None where the pattern applies."""

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        """The mask, 1 for kept and 0 for zero, in the shape and dtype of `magnitudes`.

        Args:
            magnitudes: non-negative importance of each weight, float, static shape of the kernel.
            axis: the axis of the input channels, negative.
            progress: scalar float32 in [0, 1].
        """

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        """Where a kernel breaks the full pattern, in words; None where it holds."""


patterns: Registry[Callable[..., Pattern]] = Registry("sparsity pattern")
patterns.register("magnitude")(Magnitude)
patterns.register("N:M")(NofM)


@patterns.register("uhp")
def uhp(group_size: int = 8) -> NofM:
    """Uniform half pruning: exactly half of each aligned group of `group_size` input channels is kept (4 is 2:4).

    The source paper's group size and axis could not be read; input channels and 8 are our choice.
    """
    if group_size < 2 or group_size % 2:
        raise InputError(
            f"group_size={group_size!r} for the pattern 'uhp'.",
            expected="an even number of input channels, since exactly half of a group is kept",
            fix="use for example group_size=8",
        )
    return NofM(group_size // 2, group_size, name=f"uhp {group_size // 2}:{group_size}")


def get_pattern(pattern: str | Pattern, *, sparsity: float | None = None, group_size: int | None = None) -> Pattern:
    """The pattern of that name, such as "2:4", "1:4", "uhp", "magnitude"; an object passes unchanged.

    Args:
        pattern: a name, or a pattern object.
        sparsity: fraction of zeros, for "magnitude" only (default 0.5).
        group_size: channels of a group, for "uhp" only (default 8).

    Raises:
        InputError: an unknown name, or an option that the pattern does not have.
    """
    options = {k: v for k, v in (("sparsity", sparsity), ("group_size", group_size)) if v is not None}
    filed = isinstance(pattern, str) and pattern in patterns and pattern != "N:M"
    takes = set(inspect.signature(patterns.get(str(pattern))).parameters) if filed else set()
    if extra := sorted(set(options) - takes):
        raise InputError(
            f"The pattern {pattern!r} has no option {extra[0]!r}.",
            expected="sparsity= with 'magnitude', group_size= with 'uhp'; N:M patterns say both in their name",
            fix=f"leave {extra[0]}= out, or choose another pattern",
        )
    if not isinstance(pattern, str):
        return pattern
    if nm := re.fullmatch(r"(\d+):(\d+)", pattern):
        return NofM(int(nm[1]), int(nm[2]))
    if pattern == "N:M":
        raise InputError("'N:M' stands for two numbers.", expected="for example '2:4'", fix="write the numbers")
    return patterns.get(pattern)(**options)
