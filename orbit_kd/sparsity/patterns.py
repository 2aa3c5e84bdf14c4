"""Which weights of a kernel are kept: N:M (also shared by all taps of a kernel), UHP and magnitude patterns.

A pattern is a value. It maps the magnitudes of a kernel and a *progress* in [0, 1] (0 dense, 1 the full pattern; see
`schedules.py`) to a mask, and checks a finished kernel. A new pattern is one frozen dataclass with `mask`,
`violation`, `reason_dense`, `steps` and `label`, registered with Keras so that it is saved, and filed in `patterns`;
with `@pattern(name, options=...)` where it takes `sparsity` or `group_size`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.support import n_of_m


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


class Value:
    """Keras serialization of a frozen dataclass of plain values."""

    def get_config(self) -> dict[str, Any]:
        """The fields, for saved models."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The inverse of `get_config`."""
        return cls(**config)


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class NofM(Value):
    """At most `n` non-zeros in each aligned group of `m` consecutive input channels (Mishra et al. 2021).

    A group is taken for each output channel and kernel position, aligned at input channel 0, as hardware wants it. Note
    that tfmot's `sparsity_m_by_n` counts zeros instead (tensorflow/model-optimization pulls 743, 880). Where the input
    channels are no multiple of m, the last group of k < m channels keeps ceil(k * n / m): the density stays that of the
    pattern, and padding the group with zeros up to m never breaks it. A kernel with fewer than m input channels has no
    whole group and stays dense.

    Attributes:
        n: non-zeros kept in a group.
        m: channels of a group.
        name: label in tables; empty for "n:m".
    """

    n: int
    m: int
    name: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise InputError(
                f"{self.n}:{self.m} is no N:M pattern.",
                expected="N non-zeros in each group of M, with 1 <= N < M",
                fix="use for example 2:4, 1:4 (75% sparse) or 4:8",
            )

    @property
    def label(self) -> str:
        return self.name or f"{self.n}:{self.m}"

    @property
    def steps(self) -> int:
        return self.m - self.n

    def reason_dense(self, input_channels: int) -> str | None:
        if input_channels >= self.m:
            return None
        plural = "s" if input_channels > 1 else ""
        return f"{input_channels} input channel{plural}, fewer than a group of {self.m}"

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        shape, at = magnitudes.shape.as_list(), magnitudes.shape.rank + axis
        tail = -shape[at] % self.m
        # The ragged tail is filled up with -1, below every magnitude.
        padding = [[0, tail if i == at else 0] for i in range(len(shape))]
        padded = tf.pad(magnitudes, padding, constant_values=-1) if tail else magnitudes
        behind = [1] * len(shape[at + 1 :])
        groups = tf.reshape(padded, [*shape[:at], -1, self.m, *shape[at + 1 :]])
        # Rank in the group by comparing all pairs, the lower channel winning a tie: several times faster than a sort.
        mine, other = tf.expand_dims(groups, at + 1), tf.expand_dims(groups, at + 2)
        earlier = tf.reshape(tf.constant(np.triu(np.ones((self.m, self.m), bool), 1)), [self.m, self.m, *behind])
        beats = tf.logical_or(other > mine, tf.logical_and(tf.equal(other, mine), earlier))
        rank = tf.reduce_sum(tf.cast(beats, tf.int32), axis=at + 1)
        # 1e-4: at a progress of i / steps, float rounding must not cost the i-th step.
        removed = tf.cast(tf.floor(progress * (self.m - self.n) + 1e-4), tf.int32)
        kept = tf.reshape(self._kept(shape[at], self.m - removed), [-1, 1, *behind])
        mask = tf.reshape(tf.cast(rank < kept, magnitudes.dtype), padded.shape)
        return tf.slice(mask, [0] * len(shape), shape)

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        channels = kernel.shape[axis]
        count = n_of_m.nonzeros(kernel, self.m, axis=axis)
        allowed = np.asarray(self._kept(channels, self.n))
        bad = np.argwhere(count > allowed)
        if not len(bad):
            return None
        *position, group = (int(i) for i in bad[0])
        first, last = group * self.m, min((group + 1) * self.m, channels) - 1
        return (
            f"input channels {first}..{last} at kernel position {tuple(position)} hold {count[tuple(bad[0])]} "
            f"non-zeros, {self.label} allows {allowed[group]} ({len(bad)} of {count.size} groups are wrong)"
        )

    def _kept(self, channels: int, n: Any) -> Any:
        """Non-zeros of each group when a whole group keeps n: an array with one entry a group."""
        sizes = np.full(-(-channels // self.m), self.m, np.int32)
        sizes[-1] -= -channels % self.m
        return (sizes * n + self.m - 1) // self.m


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class SharedNofM(NofM):
    """N:M whose N input channels are the same at all taps of a kernel, for each output channel: tap-shared N:M.

    Small cores read one index for a whole 3x3 kernel, and each input column once for three of its taps (the target
    `c99`). What is kept of a group are the channels whose weights' magnitudes, over all taps, add up to most. A kernel
    of one tap (1x1, dense) keeps plain N:M.
    """

    @property
    def label(self) -> str:
        return self.name or f"{self.n}:{self.m}:{n_of_m.SHARED}"

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        taps = _taps(magnitudes.shape.rank)
        mask = super().mask(tf.reduce_sum(magnitudes, axis=taps, keepdims=True), axis=axis, progress=progress)
        return tf.broadcast_to(mask, magnitudes.shape)

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        found = super().violation((kernel != 0).any(axis=_taps(kernel.ndim), keepdims=True), axis=axis)
        return found and f"of all taps together, {found}"


def _taps(rank: int) -> tuple[int, ...]:
    """Axes of a kernel's taps: all but the last two, which are its channels."""
    return tuple(range(rank - 2))


@keras.utils.register_keras_serializable(package="orbit_kd")
@dataclasses.dataclass(frozen=True)
class Magnitude(Value):
    """The smallest magnitudes of a kernel are zero, anywhere (unstructured; Han et al. 2015).

    Attributes:
        sparsity: fraction of zeros, in [0, 1). Exactly round((1 - sparsity) * size) weights are kept, at least one.
    """

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(
                f"sparsity={self.sparsity!r}.",
                expected="the fraction of weights that become zero, in [0, 1)",
                fix="use for example sparsity=0.5",
            )

    @property
    def label(self) -> str:
        return f"magnitude {self.sparsity:.3g}"

    @property
    def steps(self) -> int:
        return 50

    def reason_dense(self, input_channels: int) -> str | None:
        return None if self.sparsity > 0 else "sparsity 0"

    def mask(self, magnitudes: tf.Tensor, *, axis: int, progress: tf.Tensor) -> tf.Tensor:
        size = magnitudes.shape.num_elements()
        kept = tf.maximum(tf.cast(tf.round(size * (1 - progress * self.sparsity)), tf.int32), 1)
        return tf.cast(_largest(magnitudes, kept), magnitudes.dtype)

    def violation(self, kernel: np.ndarray, *, axis: int) -> str | None:
        allowed = max(round(kernel.size * (1 - self.sparsity)), 1)
        found = int(np.count_nonzero(kernel))
        # float32 rounding of size * (1 - sparsity) can differ by a few weights in a very large kernel.
        if found <= allowed + 1 + kernel.size * 1e-6:
            return None
        return f"the kernel holds {found} non-zeros, {self.label} allows {allowed}"


def _largest(magnitudes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """bool, True for exactly `count` of the largest magnitudes (>= 0); of equal ones, the first.

    The bits of non-negative floats are ordered as the floats are, so that at most 31 halvings find a magnitude that so
    many reach: several times faster than a sort, and quick under XLA too.
    """
    bits = tf.bitcast(tf.cast(tf.reshape(magnitudes, [-1]), tf.float32), tf.int32)

    def reach(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(bits >= least, tf.int32))

    def halve(low: tf.Tensor, high: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        middle = low + (high - low) // 2
        n = reach(middle)
        enough = n >= count
        return tf.where(enough, middle, low), tf.where(enough, high, middle), tf.where(enough, n, found)

    low, _, found = tf.while_loop(
        lambda low, high, found: tf.logical_and(found > count, high - low > 1),
        halve,
        (tf.reduce_min(bits), tf.reduce_max(bits) + 1, tf.size(bits)),
    )
    # where more reach it than wanted, the last of those that equal it go: the density is exact even among equals
    equal = tf.cast(tf.equal(bits, low), tf.int32)
    spare = tf.cumsum(equal) <= tf.reduce_sum(equal) - (found - count)
    return tf.reshape(tf.logical_or(bits > low, tf.logical_and(equal > 0, spare)), magnitudes.shape)


@dataclasses.dataclass(frozen=True)
class WithOptions:
    """What makes a pattern from options.

    Attributes:
        make: (**options) -> Pattern.
        options: the names it takes, of those of `get_pattern`.
    """

    make: Callable[..., Pattern]
    options: tuple[str, ...]

    def __call__(self, **options: Any) -> Pattern:
        """The pattern with these options."""
        return self.make(**options)


patterns: Registry[Callable[..., Pattern]] = Registry("sparsity pattern")
Make = TypeVar("Make", bound=Callable[..., Pattern])


def pattern(name: str, *, options: Sequence[str] = (), replace: bool = False) -> Callable[[Make], Make]:
    """Decorator that files what makes a pattern; see `WithOptions` for the arguments."""

    def file(make: Make) -> Make:
        patterns.register(name, replace=replace)(WithOptions(make, tuple(options)))
        return make

    return file


pattern("magnitude", options=("sparsity",))(Magnitude)
patterns.register("N:M")(NofM)
patterns.register("N:M:shared")(SharedNofM)


@pattern("uhp", options=("group_size",))
def uhp(group_size: int = n_of_m.UHP_GROUP) -> NofM:
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
    """The pattern of that name, such as "2:4", "2:4:shared", "uhp", "uhp:16", "magnitude"; an object passes unchanged.

    Args:
        pattern: a name, or a pattern object.
        sparsity: fraction of zeros, for "magnitude" only (default 0.5).
        group_size: channels of a group, for "uhp" only (default 8).

    Raises:
        InputError: an unknown name, or an option that the pattern does not have.
    """
    options = {k: v for k, v in (("sparsity", sparsity), ("group_size", group_size)) if v is not None}
    filed = patterns.get(pattern) if isinstance(pattern, str) and pattern in patterns else None
    takes = filed.options if isinstance(filed, WithOptions) else ()
    if extra := sorted(set(options) - set(takes)):
        raise InputError(
            f"The pattern {pattern!r} has no option {extra[0]!r}.",
            expected="sparsity= with 'magnitude', group_size= with 'uhp'; N:M patterns say both in their name",
            fix=f"leave {extra[0]}= out, or choose another pattern",
        )
    if not isinstance(pattern, str):
        return pattern
    if pattern not in patterns and (found := n_of_m.parse(pattern)):
        return uhp(found[1]) if pattern.startswith("uhp") else NofM(*found)
    if pattern not in patterns and (found := n_of_m.parse_shared(pattern)):
        return SharedNofM(*found)
    if pattern.startswith("N:M"):
        example = pattern.replace("N:M", "2:4")
        raise InputError(f"{pattern!r} stands for two numbers.", expected=f"for example {example!r}",
                         fix="write the numbers")  # fmt: skip
    return patterns.get(pattern)(**options)
