"""Random int8 networks for property tests: each block is a function from an image to an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from int8_files import NONE, RELU, RELU6, SAME, VALID, Int8File

Block = Callable[[Int8File, int, np.random.Generator], int]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Files a block under its name."""
    BLOCKS[function.__name__] = function
    return function


def random_file(names: list[str], seed: int) -> bytes:
    """Blocks one after the other on an image, and a random head; the middle is an output, too."""
    rng = np.random.default_rng(seed)
    g = Int8File(seed)
    size = [int(n) for n in rng.integers(5, 12, 2)]
    x = first = g.input((1, *size, int(rng.integers(1, 9))), zero=int(rng.integers(-20, 20)))
    middle = None
    for place, name in enumerate(names):
        x = BLOCKS[name](g, x, rng)
        if place == len(names) // 2 and x != first:
            middle = x
    head = rng.integers(4)
    if head == 0:
        x = g.softmax(g.dense(x, int(rng.integers(2, 12)), per_tensor=bool(rng.integers(2))))
    elif head == 1:
        x = g.dense(g.reduce(x, "MEAN", scale=g.scale(x) * 0.4), 5, act=RELU6)
    elif head == 2:
        x = g.dequantize(g.conv(x, 3, 1))
    else:
        x = g.conv(x, 3, 1)
    return g.bytes(*([] if middle is None else [middle]), x)


def _width(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 20))


def _act(rng: np.random.Generator) -> int:
    return int(rng.choice([NONE, NONE, RELU, RELU6]))


def _padding(g: Int8File, x: int, rng: np.random.Generator, reach: int) -> int:
    return VALID if min(g.shape(x)[1:3]) >= reach and rng.integers(3) == 0 else SAME


@block
def conv(g, x, rng):
    k = int(rng.choice([1, 2, 3, 3, 5]))
    dilation = int(rng.integers(1, 3))
    stride = 1 if dilation > 1 else int(rng.integers(1, 3))
    padding = _padding(g, x, rng, (k - 1) * dilation + 1)
    return g.conv(x, _width(rng), k, stride=stride, dilation=dilation, padding=padding, act=_act(rng))


@block
def sparse_conv(g, x, rng):
    """N:M, the same at all places of a kernel or not, or any zeros."""
    c, out, k = g.shape(x)[3], _width(rng), int(rng.choice([1, 3]))
    values = np.clip(rng.normal(0, 60, (out, k, k, c)), -127, 127).astype(np.int8)
    m = int(rng.choice([2, 4, 8]))
    n, shared = int(rng.integers(1, m)), bool(rng.integers(2))
    places = rng.random((out, 1, 1, c) if shared else values.shape)
    for start in range(0, c, m):
        group = places[..., start : start + m]
        ranks = group.argsort(-1).argsort(-1)
        values[..., start : start + m] *= np.broadcast_to(ranks < n, values[..., start : start + m].shape)
    return g.conv(x, out, k, padding=SAME, act=_act(rng), values=values)


@block
def depthwise(g, x, rng):
    return g.depthwise(
        x, k=int(rng.choice([3, 3, 5])), multiplier=int(rng.integers(1, 3)), stride=int(rng.integers(1, 3))
    )


@block
def transposed(g, x, rng):
    if max(g.shape(x)[1:3]) > 12:
        return x
    return g.transposed(x, _width(rng), k=int(rng.integers(2, 5)), padding=int(rng.choice([SAME, VALID])))


@block
def pool(g, x, rng):
    k = int(rng.integers(1, 4))
    kind = str(rng.choice(["MAX", "AVERAGE"]))
    return g.pool(x, kind, k=k, stride=int(rng.integers(1, 3)), padding=_padding(g, x, rng, k), act=_act(rng))


@block
def residual(g, x, rng):
    c = g.shape(x)[3]
    inner = g.conv(g.conv(x, _width(rng), 1, act=RELU), c)
    return g.binary(str(rng.choice(["ADD", "SUB", "MUL"])), *rng.permutation([x, inner]).tolist(), act=_act(rng))


@block
def gate(g, x, rng):
    """As squeeze and excitation."""
    squeezed = g.reduce(x, "MEAN", keep=True, scale=g.scale(x) * 0.3)
    inner = g.conv(g.conv(squeezed, 3, 1, act=RELU), g.shape(x)[3], 1)
    return g.binary("MUL", x, g.unary("LOGISTIC", inner, scale=1 / 256, zero=-128), scale=g.scale(x) * 0.6)


@block
def branches(g, x, rng):
    parts = [x]
    for _ in range(int(rng.integers(1, 3))):
        part = g.conv(x, _width(rng), int(rng.choice([1, 3])))
        parts.append(g.requantize(part, scale=g.scale(x), zero=g.zero(x)))
    return g.concat([parts[i] for i in rng.permutation(len(parts))])


@block
def resize(g, x, rng):
    h, w = g.shape(x)[1:3]
    if max(h, w) > 12:
        return x
    kind, half, align = str(rng.choice(["NEAREST", "BILINEAR"])), bool(rng.integers(2)), bool(rng.integers(2))
    size = (2 * h, 2 * w) if rng.integers(2) else tuple(int(n) for n in rng.integers(3, 15, 2))
    return g.resize(x, kind, size, half=half, align=align and not half)


@block
def activation(g, x, rng):
    name = str(rng.choice(["LOGISTIC", "TANH", "LEAKY_RELU", "RELU6", "HARD_SWISH"]))
    options = {"LEAKY_RELU": schema.LeakyReluOptionsT(alpha=0.3), "HARD_SWISH": schema.HardSwishOptionsT()}.get(name)
    scale, zero = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.get(name, (g.scale(x) * 0.8, -10))
    return g.unary(name, x, scale=scale, zero=zero, options=options)


@block
def pad(g, x, rng):
    return g.pad(x, [(0, 0), *((int(a), int(b)) for a, b in rng.integers(0, 3, (3, 2)))])


@block
def reshape(g, x, rng):
    _, h, w, c = g.shape(x)
    return g.reshape(x, (1, w, h, c))
