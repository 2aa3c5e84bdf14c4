"""Where tensors lie in memory: first fit over lifetimes, in place where a kernel allows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99.steps import Step

ALIGNMENT = 8


@dataclasses.dataclass
class _Block:
    """Memory of one tensor, or of several that lie in place, or a step's scratch: alive from one step to another."""

    first: int
    last: int
    bytes: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The arena.

    Attributes:
        bytes: of the arena.
        tensors: tensor -> offset.
        scratch: step -> offset.
        least: the bytes alive at the fullest step: no plan that keeps these tensors is smaller.
        fullest: that step.
        alive: the tensors alive there, (name, bytes), the largest first.
    """

    bytes: int
    tensors: dict[int, int]
    scratch: dict[int, int]
    least: int
    fullest: int
    alive: tuple[tuple[str, int], ...]


def plan(steps: Sequence[Step], *, outside: set[int]) -> Plan:
    """Plans the arena.

    Args:
        steps: in order.
        outside: tensors that lie elsewhere: the network's inputs and outputs.
    """
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    tensors = {}
    for number, step in enumerate(steps):
        born.setdefault(step.output.index, number)
        for tensor in (*step.inputs, step.output):
            if tensor.data is None and tensor.index not in outside:
                tensors[tensor.index], last[tensor.index] = tensor, number
    blocks: dict[int, _Block] = {}
    for number, step in enumerate(steps):
        out = step.output.index
        if out in outside or born[out] < number:
            continue
        own = _Block(born[out], last[out], _up(step.output.bytes))
        place = _in_place(step, number, blocks, last)
        if place is not None:
            place.last, own = own.last, place
        blocks[out] = own
    scratch = {number: _Block(number, number, _up(step.scratch)) for number, step in enumerate(steps) if step.scratch}
    every = list({id(block): block for block in (*blocks.values(), *scratch.values())}.values())
    total = _place(every)
    load = [sum(block.bytes for block in every if block.first <= i <= block.last) for i in range(len(steps))]
    fullest = max(range(len(steps)), key=load.__getitem__)
    alive = {(tensors[i].name, b.bytes) for i, b in blocks.items() if born[i] <= fullest <= last[i]}
    if fullest in scratch:
        alive.add(("scratch of the kernel", scratch[fullest].bytes))
    return Plan(
        total,
        {index: block.offset for index, block in blocks.items()},
        {number: block.offset for number, block in scratch.items()},
        load[fullest],
        fullest,
        tuple(sorted(alive, key=lambda pair: (-pair[1], pair[0]))),
    )


def _in_place(step: Step, number: int, blocks: dict[int, _Block], last: dict[int, int]) -> _Block | None:
    """The block of an input that nothing reads afterwards, and that has room for the output."""
    if not step.in_place:
        return None
    for tensor in step.inputs:
        block = blocks.get(tensor.index)
        dies = block is not None and last[tensor.index] == number
        # an operand that is repeated is smaller than the output, and is read again after it would be overwritten
        if block is not None and dies and block.last == number and tensor.bytes >= step.output.bytes:
            return block
    return None


def _place(blocks: list[_Block]) -> int:
    """Gives every block its offset, and returns the size of all: the best of three orders of first fit."""
    orders = (
        lambda b: (-b.bytes, b.first),
        lambda b: (b.first, -b.bytes),
        lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
    )
    best: tuple[int, list[int]] | None = None
    for order in orders:
        done: list[_Block] = []
        for block in sorted(blocks, key=order):
            block.offset = 0
            near = [b for b in done if b.first <= block.last and block.first <= b.last]
            for other in sorted(near, key=lambda b: b.offset):
                if block.offset + block.bytes <= other.offset:
                    break
                block.offset = max(block.offset, other.offset + other.bytes)
            done.append(block)
        size = max((b.offset + b.bytes for b in blocks), default=0)
        if best is None or size < best[0]:
            best = size, [b.offset for b in blocks]
    if best is None:
        return 0
    for block, offset in zip(blocks, best[1], strict=True):
        block.offset = offset
    return best[0]


def check(plan: Plan, steps: Sequence[Step], *, limit: int | None) -> None:
    """Refuses a plan that is larger than the arena may be.

    Raises:
        InputError: it is; the message names the layer at the peak and the tensors alive there.
    """
    if limit is None or plan.bytes <= limit:
        return
    step = steps[plan.fullest]
    alive = ", ".join(f"{name.split(';')[0][:80]!r} {size:,}" for name, size in plan.alive)
    raise InputError(
        f"The arena takes {plan.bytes:,} bytes. The peak is at {step.operator} {step.layer!r}, where these are alive "
        f"(bytes): {alive}.",
        expected=f"at most {limit:,} bytes (max_arena)",
        fix="make the input smaller, pool or stride earlier, remove filters of that layer, or raise max_arena",
    )


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
