"""Walks over memory: sizes and steps of up to four axes, neighbours joined where they can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orbit_kd.exporters.c99.network import Call

AXES = 4
Walk = tuple[tuple[int, ...], ...]


def steps_of(shape: Sequence[int]) -> tuple[int, ...]:
    """How many elements apart neighbours are along each axis of an array in C order."""
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def joined(call: Call, size: Sequence[int], *steps: Sequence[int]) -> Walk:
    """A walk of four axes that visits the same elements in the same order.

    Args:
        call: for the error.
        size: of each axis.
        *steps: of each axis, one sequence an array.

    Returns:
        size, and the steps of each array.

    Raises:
        InputError: it needs more than four axes.
    """
    axes: list[list[int]] = []  # of each axis its size and its steps
    for axis in zip(size, *steps, strict=True):
        if axis[0] == 1:
            continue
        before = axes[-1] if axes else None
        if before and all(big == small * axis[0] for big, small in zip(before[1:], axis[1:], strict=True)):
            axes[-1] = [before[0] * axis[0], *axis[1:]]
        else:
            axes.append(list(axis))
    if len(axes) > AXES:
        raise call.refusal(
            f"moves along {len(axes)} axes",
            expected=f"at most {AXES}",
            fix="flatten axes of the model that go together",
        )
    axes = [[1] + [0] * len(steps)] * (AXES - len(axes)) + axes
    return tuple(tuple(axis[i] for axis in axes) for i in range(1 + len(steps)))


def broadcast_walk(call: Call, one: Sequence[int], two: Sequence[int]) -> Walk:
    """Over the elements of a result, with the steps in its two operands; 0 along an axis where one is repeated.

    Raises:
        InputError: the shapes do not go together, or need more than four axes.
    """
    rank = max(len(one), len(two))
    shapes = [(1,) * (rank - len(shape)) + tuple(shape) for shape in (one, two)]
    size = [max(pair) for pair in zip(*shapes, strict=True)]
    if any(1 < min(pair) < max(pair) for pair in zip(*shapes, strict=True)):
        raise call.refusal(
            f"has operands of {one} and {two}", expected="equal axes, or 1", fix="export the model again"
        )
    steps = [tuple(step if n > 1 else 0 for n, step in zip(shape, steps_of(shape), strict=True)) for shape in shapes]
    return joined(call, size, *steps)
