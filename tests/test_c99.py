"""The folder of C: every operator and whole networks equal LiteRT's reference kernels, bit for bit, or are refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from int8_files import RELU, RELU6, SAME, VALID, Int8File

from orbit_kd import runtimes
from orbit_kd.exporters import export

IMAGE = (1, 7, 9, 6)


@pytest.fixture(autouse=True)
def _no_probes(monkeypatch, request):
    """A file is tried in a process of its own before it is exported: not here, where that takes most of the time."""
    if "probed" not in request.keywords:
        monkeypatch.setattr(runtimes, "probe", lambda *args, **kwargs: None)


def inputs_of(ports, count: int, rng: np.random.Generator):
    arrays = []
    for port in ports:
        shape = (count, *port.shape)
        if port.dtype.kind == "f":
            arrays.append(rng.normal(0, 3, shape).astype(np.float32))
        else:
            limits = np.iinfo(port.dtype)
            arrays.append(rng.integers(limits.min, limits.max + 1, shape).astype(port.dtype))
    return runtimes.one_or_all(arrays)


def compare(data: bytes, folder, *, count: int = 64, names: Sequence[str] = (), **options) -> list[np.ndarray]:
    """Exports, runs, and compares with LiteRT's reference kernels; `names` of the outputs for messages."""
    made = export(_file(data, folder), "c99", path=folder / "c", **options)
    ours, reference = (runtimes.load(m, runtime=r) for m, r in ((made.path, "c99"), (data, "litert_reference")))
    x = inputs_of(reference.inputs, count, np.random.default_rng(3))
    expected, found = (out if isinstance(out, tuple) else (out,) for out in (reference.raw(x), ours.raw(x)))
    for place, (a, b) in enumerate(zip(expected, found, strict=True)):
        name = names[place] if names else f"output {place}"
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.std() > (0.02 if a.dtype.kind == "f" else 2), name  # of what is all alike nothing was compared
    return list(found)


def _file(data: bytes, folder):
    path = folder / "model.tflite"
    path.write_bytes(data)
    return path


def lrelu(g, x):
    return g.unary("LEAKY_RELU", x, scale=0.04, zero=5, options=schema.LeakyReluOptionsT(alpha=0.2))


OPERATORS = {
    "conv": lambda g, x: g.conv(x, 5),
    "conv_valid_relu": lambda g, x: g.conv(x, 5, padding=VALID, act=RELU),
    "conv_strided_even": lambda g, x: g.conv(x, 4, 3, stride=2, act=RELU6),
    "conv_dilated": lambda g, x: g.conv(x, 4, 3, dilation=2),
    "conv_1x1": lambda g, x: g.conv(x, 9, 1),
    "conv_wide": lambda g, x: g.conv(x, 3, 5, kw=2),
    "depthwise": lambda g, x: g.depthwise(x),
    "depthwise_two_a_channel": lambda g, x: g.depthwise(x, multiplier=2, stride=2, act=RELU),
    "depthwise_dilated_valid": lambda g, x: g.depthwise(x, dilation=2, padding=VALID),
    "transposed": lambda g, x: g.transposed(x, 4),
    "transposed_2x2": lambda g, x: g.transposed(x, 4, k=2, bias=False),
    "transposed_valid": lambda g, x: g.transposed(x, 3, k=4, stride=3, padding=VALID),
    "transposed_one": lambda g, x: g.transposed(x, 3, k=3, stride=1),
    "dense": lambda g, x: g.dense(g.reshape(x, (1, 7 * 9 * 6)), 11),
    "dense_per_channel": lambda g, x: g.dense(x, 11, per_tensor=False, act=RELU, bias=False),
    "dense_rows": lambda g, x: g.dense(g.reshape(x, (1, 21, 18)), 5, rows=21),
    "max_pool": lambda g, x: g.pool(x, "MAX"),
    "max_pool_same": lambda g, x: g.pool(x, "MAX", k=3, padding=SAME, act=RELU),
    "average_pool": lambda g, x: g.pool(x, "AVERAGE", k=3, stride=1),
    "average_pool_same": lambda g, x: g.pool(x, "AVERAGE", k=3, stride=2, padding=SAME),
    "mean": lambda g, x: g.reduce(x, "MEAN", scale=0.012),
    "mean_kept_same_scale": lambda g, x: g.reduce(x, "MEAN", (1,), keep=True),
    "mean_of_channels": lambda g, x: g.reduce(x, "MEAN", (-1,), scale=0.03),
    "reduce_max": lambda g, x: g.reduce(x, "REDUCE_MAX", (2,)),
    "add": lambda g, x: g.binary("ADD", x, g.conv(x, 6)),
    "add_itself": lambda g, x: g.binary("ADD", x, x, act=RELU),
    "add_constant_vector": lambda g, x: g.binary("ADD", x, g.tensor((6,), values=np.arange(-3, 3, dtype=np.int8) * 31)),
    "sub": lambda g, x: g.binary("SUB", x, g.conv(x, 6)),
    "sub_smaller_first": lambda g, x: g.binary("SUB", g.reduce(x, "MEAN", keep=True), x),
    "mul": lambda g, x: g.binary("MUL", x, g.conv(x, 6), act=RELU6, scale=0.03),
    "mul_channels": lambda g, x: g.binary("MUL", x, g.reduce(x, "MEAN", keep=True, scale=0.002)),
    "mul_rows": lambda g, x: g.binary("MUL", g.reduce(x, "REDUCE_MAX", (2,), keep=True), x),
    "mul_constant": lambda g, x: g.binary("MUL", x, g.tensor((), scale=0.013, values=np.array(77, np.int8))),
    "relu": lambda g, x: g.unary("RELU", x, scale=0.04),
    "relu6": lambda g, x: g.unary("RELU6", x, scale=6 / 255, zero=-128),
    "leaky_relu": lrelu,
    "logistic": lambda g, x: g.unary("LOGISTIC", x, scale=1 / 256, zero=-128),
    "tanh": lambda g, x: g.unary("TANH", x, scale=1 / 128),
    "hard_swish": lambda g, x: g.unary("HARD_SWISH", x, scale=0.04, options=schema.HardSwishOptionsT()),
    "softmax": lambda g, x: g.softmax(x),
    "softmax_steep": lambda g, x: g.softmax(g.reshape(x, (1, 378)), beta=3.0),
    "reshape": lambda g, x: g.conv(g.reshape(g.conv(x, 6), (1, 9, 7, 6)), 4),
    "concat": lambda g, x: g.concat([x, g.pool(x, "MAX", k=3, stride=1, padding=SAME), x]),
    "concat_rows": lambda g, x: g.concat([g.pool(x, "MAX", k=3, stride=1, padding=SAME), x], axis=1),
    "pad": lambda g, x: g.pad(x, [(0, 0), (1, 2), (0, 3), (0, 0)]),
    "pad_channels": lambda g, x: g.pad(x, [(0, 0), (0, 0), (2, 0), (1, 4)]),
    "nearest": lambda g, x: g.resize(x, "NEAREST", (14, 18)),
    "nearest_half_pixels": lambda g, x: g.resize(x, "NEAREST", (10, 5), half=True),
    "nearest_corners": lambda g, x: g.resize(x, "NEAREST", (13, 25), align=True),
    "bilinear": lambda g, x: g.resize(x, "BILINEAR", (14, 18)),
    "bilinear_half_pixels": lambda g, x: g.resize(x, "BILINEAR", (11, 5), half=True),
    "bilinear_corners": lambda g, x: g.resize(x, "BILINEAR", (13, 25), align=True),
    "requantize": lambda g, x: g.requantize(x, scale=0.031, zero=-9),
    "transpose": lambda g, x: g.moved("TRANSPOSE", x, (1, 6, 7, 9), more=[g.numbers(0, 3, 1, 2)],
                                      options=schema.TransposeOptionsT()),
    "slice": lambda g, x: g.moved("SLICE", x, (1, 3, 4, 6), more=[g.numbers(0, 2, 5, 0), g.numbers(1, 3, 4, -1)]),
    "strided_slice": lambda g, x: g.moved(
        "STRIDED_SLICE", x, (1, 4, 6), more=[g.numbers(0, 3, -8, 0), g.numbers(1, 4, 9, 6), g.numbers(1, 1, 2, 1)],
        options=schema.StridedSliceOptionsT(shrinkAxisMask=2, beginMask=8, endMask=12)),
    "depth_to_space": lambda g, x: g.moved("DEPTH_TO_SPACE", g.conv(x, 8), (1, 14, 18, 2),
                                           options=schema.DepthToSpaceOptionsT(blockSize=2)),
    "space_to_depth": lambda g, x: g.moved("SPACE_TO_DEPTH", g.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)]), (1, 4, 5, 24),
                                           options=schema.SpaceToDepthOptionsT(blockSize=2)),
}  # fmt: skip


GROUPS = [list(OPERATORS)[first::6] for first in range(6)]  # a file each, with an output an operator: compiled once


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_operators_give_what_the_reference_kernels_give(names, tmp_path):
    g = Int8File(seed=5)
    x = g.input(IMAGE, zero=4)
    compare(g.bytes(*(OPERATORS[name](g, x) for name in names)), tmp_path, names=names)
