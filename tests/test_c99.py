"""The folder of C: every operator and whole networks equal LiteRT's reference kernels, bit for bit, or are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_files import RELU, RELU6, SAME, VALID, Int8File
from random_int8 import BLOCKS, random_file

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.datasets import load
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.exporters import export, open_artifact, read_metadata
from orbit_kd.exporters.c99 import arena
from orbit_kd.exporters.c99.fixed_point import multiplier_once
from orbit_kd.exporters.c99.network import Tensor
from orbit_kd.exporters.c99.steps import Step
from orbit_kd.runtimes.c99 import compile_c, read_manifest
from orbit_kd.support.files import write_folder

IMAGE = (1, 7, 9, 6)
STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wpedantic")
SANITIZED = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MODELS = sorted(Path(__file__).parent.with_name("models").glob("*/student_tflite_int8.tflite"))


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


# ---------------------------------------------------------------- whole networks


def network(seed: int = 0) -> bytes:
    """A small residual network with a sparse layer, a pooling, and a dense head."""
    g = Int8File(seed)
    x = g.conv(g.input((1, 12, 12, 3), zero=-5), 8, act=RELU)
    sparse = np.clip(g.rng.normal(0, 60, (8, 3, 3, 8)), -127, 127).astype(np.int8)
    sparse[..., ::4] = sparse[..., 1::4] = 0
    x = g.binary("ADD", x, g.conv(x, 8, values=sparse), act=RELU)
    x = g.conv(g.pool(x, "MAX"), 12, 3, stride=2)
    return g.bytes(g.softmax(g.dense(g.reshape(x, (1, 3 * 3 * 12)), 6)))


@pytest.fixture
def made(tmp_path) -> okd.Artifact:
    return export(_file(network(), tmp_path), "c99", path=tmp_path / "made")


def _random_networks(names, seed, tmp_path_factory, prefer="speed"):
    data = random_file(names, seed)
    folder = tmp_path_factory.mktemp("graph")
    made = export(_file(data, folder), "c99", path=folder / "c", prefer=prefer, seed=seed)
    ours, reference = runtimes.load(made.path, runtime="c99"), runtimes.load(data, runtime="litert_reference")
    x = inputs_of(reference.inputs, 8, np.random.default_rng(seed))
    for a, b in zip(
        *(out if isinstance(out, tuple) else (out,) for out in (reference.raw(x), ours.raw(x))), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    shutil.rmtree(folder)
    assert made.details["arena_bytes"] <= 1.3 * made.details["arena_least"]


GRAPHS = {"names": st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=7), "seed": st.integers(0, 10**6)}


@given(**GRAPHS)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_random_networks_give_what_the_reference_kernels_give(tmp_path_factory, names, seed):
    _random_networks(names, seed, tmp_path_factory)


@pytest.mark.slow
@given(**GRAPHS, prefer=st.sampled_from(["speed", "bytes"]))
@settings(max_examples=200, deadline=None)
def test_two_hundred_random_networks_do(tmp_path_factory, names, seed, prefer):
    _random_networks(names, seed, tmp_path_factory, prefer)


@pytest.mark.parametrize("prefer", ["speed", "bytes"])
def test_sparse_layers_are_stored_sparse_and_compute_the_same(prefer, tmp_path):
    compare(network(), tmp_path, prefer=prefer)
    layers = json.loads((tmp_path / "c/manifest.json").read_text())["artifact"]["details"]["layers"]
    forms = [layer["format"] for layer in layers if layer["operator"] == "CONV_2D"]
    assert forms[0] == "dense" and forms[1] != "dense"
    sizes = [(layer["weight_bytes"], layer["dense_bytes"]) for layer in layers if layer["operator"] == "CONV_2D"]
    assert sizes[1][0] < sizes[1][1] if prefer == "bytes" else sizes[0][0] >= sizes[0][1]


def test_sums_that_no_fast_kernel_holds_take_the_plain_one(tmp_path):
    g = Int8File()
    values = np.full((2, 50, 50, 14), 127, np.int8)
    values[0, ::2] = -127
    compare(g.bytes(g.conv(g.input((1, 50, 52, 14)), 2, 50, padding=VALID, values=values)), tmp_path, count=8)
    assert read_manifest(tmp_path / "c")["artifact"]["details"]["layers"][0]["format"] == "plain"


def test_several_inputs_and_outputs_keep_their_order_and_types(tmp_path):
    g = Int8File()
    pixels = g.input((1, 5, 4, 3), scale=1.0, zero=0, dtype="UINT8")
    real = g.input((1, 5, 4, 2), dtype="FLOAT32")
    a = g.requantize(pixels, scale=1.0, zero=-128)
    b = g.requantize(real, scale=0.1, zero=3)
    mixed = g.conv(g.concat([g.requantize(a, scale=0.1, zero=3), b]), 4)
    found = compare(g.bytes(g.dequantize(mixed), g.pool(mixed, "MAX"), b), tmp_path)
    assert [array.dtype.name for array in found] == ["float32", "int8", "int8"]
    header = (tmp_path / "c/model.h").read_text()
    arguments = "const uint8_t *input0, const float *input1, float *output0, int8_t *output1, int8_t *output2"
    assert arguments in " ".join(header.split())
    assert "#define MODEL_INPUT1_SIZE 40" in header and "MODEL_INPUT1_SCALE" not in header


def test_infinite_and_undefined_numbers_become_limits_and_nothing_breaks(tmp_path):
    g = Int8File()
    g.requantize(g.input((1, 6), dtype="FLOAT32"), scale=0.1, zero=3)
    made = export(_file(g.bytes(), tmp_path), "c99", path=tmp_path / "c")
    x = np.array([[np.inf, -np.inf, np.nan, 1e30, -1e30, 0.25]], np.float32)
    assert runtimes.load(made.path, runtime="c99").raw(x).tolist() == [[127, -128, -128, 127, -128, 6]]


def test_a_dense_layer_rounds_as_double_precision_does_at_every_sum():
    rng = np.random.default_rng(0)
    for real in [0.25, 0.5, 1.5, 2 / 3, *np.exp(rng.uniform(-9, 1, 60))]:
        largest = int(min(300 / real, 400_000))
        multiplier, shift = multiplier_once(float(real), steps=256, largest=largest)
        sums = np.arange(0, largest + 1)
        bits = 31 - shift
        ours = (sums * multiplier + (1 << (bits - 1))) >> bits
        expected = np.floor(sums * float(real) + 0.5).astype(np.int64)
        np.testing.assert_array_equal(np.minimum(ours, 256), np.minimum(expected, 256))


# ---------------------------------------------------------------- the folder


def test_the_folder_is_what_its_manifest_says_and_checks_itself(made, tmp_path):
    folder = made.path.parent
    manifest = read_manifest(folder)
    assert {f.name for f in made.files} == {f.name for f in folder.iterdir()} == {*manifest["sha256"], "manifest.json"}
    assert made.path == folder / "model.c" and open_artifact(folder) == made
    assert str(tmp_path) not in "".join(f.read_text() for f in made.files)
    sources = [folder / name for name in ("main.c", "model.c", "orbit_kernels.c")]
    compile_c(sources, tmp_path / "check", include=folder, flags=STRICT)
    assert subprocess.run([tmp_path / "check"]).returncode == 0
    golden = folder / "golden.h"
    text = golden.read_text()
    start = text.rindex("{\n") + 2
    first = text[start:].split(",")[0]
    golden.write_text(f"{text[:start]}{(int(first) + 1) % 100}{text[start + len(first) :]}")
    compile_c(sources, tmp_path / "check", include=folder, flags=STRICT)
    assert subprocess.run([tmp_path / "check"]).returncode == 1


def test_nothing_is_kept_and_nothing_is_called_but_memcpy_and_memset(made, tmp_path):
    """No variable that could be written, no heap: so any number of contexts may be in use at once."""
    for name in ("model.c", "orbit_kernels.c"):
        compile_c(
            [made.path.with_name(name)],
            tmp_path / "object.o",
            include=made.path.parent,
            flags=("-std=c99", "-c", "-fno-pie"),
        )
        symbols = subprocess.run(["nm", tmp_path / "object.o"], capture_output=True, text=True, check=True).stdout
        kinds = {line.split()[-1]: line.split()[-2] for line in symbols.splitlines()}
        assert not {name for name, kind in kinds.items() if kind in "bBdDC"}
        outside = {name for name, kind in kinds.items() if kind == "U" and not name.startswith("orbit_")}
        assert outside <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_two_contexts_do_not_see_each_other_and_need_no_preparation(made, tmp_path):
    program = tmp_path / "two.c"
    program.write_text(
        '#include "golden.h"\n#include "model.h"\n#include <string.h>\nstatic model_context a, b;\n'
        "static int8_t first[MODEL_OUTPUT_SIZE], second[MODEL_OUTPUT_SIZE], other[MODEL_INPUT_SIZE];\n"
        "int main(void) {\n"
        "  memset(&a, 0x55, sizeof a);\n  memset(&b, 0xaa, sizeof b);\n"
        "  model_invoke(&a, golden_input, first);\n  model_invoke(&b, other, second);\n"
        "  model_invoke(&b, golden_input, second);\n"
        "  return memcmp(first, golden_output, sizeof first) || memcmp(second, golden_output, sizeof second);\n}\n"
    )
    folder = made.path.parent
    compile_c([program, folder / "model.c", folder / "orbit_kernels.c"], tmp_path / "two", include=folder)
    assert subprocess.run([tmp_path / "two"]).returncode == 0


def test_names_of_layers_cannot_end_a_comment(tmp_path):
    g = Int8File()
    out = g.conv(g.input(IMAGE), 3)
    g._tensors[out].name = b"evil */ int x = 1; /* \\\n ??/ \xc3\xa9"
    made = export(_file(g.bytes(out), tmp_path), "c99", path=tmp_path / "c", name="my_net")
    folder = made.path.parent
    sources = [folder / name for name in ("main.c", "model.c", "orbit_kernels.c")]
    compile_c(sources, tmp_path / "check", include=folder, flags=STRICT)
    assert "my_net_invoke" in made.path.read_text() and "int x = 1; /" not in made.path.read_text()


def test_the_golden_input_is_an_image_of_the_data_or_random_and_the_readme_says_how_to_call(tmp_path):
    images = np.random.default_rng(2).normal(0, 2, (10, 12, 12, 3)).astype(np.float32)
    file = _file(network(), tmp_path)
    folder = export(file, "c99", path=tmp_path / "a", calibration=images).path.parent
    assert "An image of the calibration data" in (folder / "golden.h").read_text()
    assert "model_invoke(&context, input, output);" in (folder / "README.md").read_text()
    first, same, other = (
        export(file, "c99", path=tmp_path / str(seed), seed=seed).path.with_name("golden.h").read_text()
        for seed in (1, 1, 2)
    )
    assert first == same != other and "random input, seed 1" in first


# ---------------------------------------------------------------- the arena


def _tensor(index: int, size: int) -> Tensor:
    return Tensor(index, f"t{index}", (size,), "int8", np.ones(1, np.float32), np.zeros(1, np.int64), None)


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_tensors_that_are_alive_together_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    tensors, steps = [_tensor(0, 30)], []
    for number in range(1, int(rng.integers(2, 15))):
        inputs = tuple(tensors[i] for i in rng.integers(0, len(tensors), int(rng.integers(1, 3))))
        out = _tensor(number, int(rng.integers(1, 60)))
        scratch = None if rng.integers(2) else int(rng.integers(0, 50))
        in_place = bool(rng.integers(2))
        steps.append(Step("X", "x", "k", "k.c", "t", {}, inputs, out, scratch=scratch, in_place=in_place))
        tensors.append(out)
    outside = {0, len(tensors) - 1}
    plan = arena.plan(steps, outside=outside)
    last = {t.index: n for n, step in enumerate(steps) for t in (*step.inputs, step.output)}
    for number, step in enumerate(steps):
        alive = [t for t in tensors if t.index not in outside and t.index - 1 <= number <= last[t.index]]
        spans = [(plan.tensors[t.index], t.bytes, t.index) for t in alive]
        if step.scratch:
            spans.append((plan.scratch[number], step.scratch, -1))
        own = {t.index for t in step.inputs} | {step.output.index}
        for i, (start, size, a) in enumerate(spans):
            assert start % 8 == 0 and start + size <= plan.bytes
            for other, width, b in spans[i + 1 :]:
                shares = {a, b} <= own and step.output.index in (a, b) and step.in_place and start == other
                assert shares or start + size <= other or other + width <= start
    assert plan.least <= plan.bytes


def test_an_arena_of_a_chain_is_as_small_as_its_fullest_step(made):
    assert made.details["arena_bytes"] == made.details["arena_least"]


# ---------------------------------------------------------------- what is refused


def refused(data: bytes, tmp_path, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        export(_file(data, tmp_path), "c99", path=tmp_path / "c", **options)
    assert not [f for f in tmp_path.iterdir() if f.name != "model.tflite"]  # nothing was written
    return caught.value


def test_an_operator_without_a_kernel_is_named_with_its_layer_and_what_there_is(tmp_path):
    g = Int8File()
    x = g.input(IMAGE)
    out = g.add_op("SQUARED_DIFFERENCE", [x, x], [g.tensor(IMAGE)], schema.SquaredDifferenceOptionsT())
    error = refused(g.bytes(out), tmp_path)
    assert "SQUARED_DIFFERENCE 'layer_1'" in error.what and "CONV_2D" in error.expected and "operators/" in error.fix


def test_activations_of_int16_are_refused_and_named(tmp_path):
    g = Int8File()
    x = g.input(IMAGE, dtype="INT16")
    out = g.add_op("RELU", [x], [g.tensor(IMAGE, dtype="INT16")])
    error = refused(g.bytes(out), tmp_path)
    assert "int16" in error.what and "'layer_0'" in error.what and error.expected == "int8"


def test_a_sum_that_could_overflow_is_refused_before_anything_is_written(tmp_path):
    g = Int8File()
    x = g.input((1, 4, 4, 3))
    kernel, scales = g.weights((2, 1, 1, 3), axis=0)
    bias = g.tensor((2,), dtype="INT32", values=np.array([5, 2**31 - 900], np.int32), scales=0.05 * scales)
    options = schema.Conv2DOptionsT(strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    out = g.add_op("CONV_2D", [x, kernel, bias], [g.tensor((1, 4, 4, 2), scale=1e6)], options)
    error = refused(g.bytes(out), tmp_path)
    assert "overflow" in error.what and "channel 1" in error.what and "2,147,483,647" in error.expected


def test_groups_batches_and_kernels_of_other_types_are_refused(tmp_path):
    g = Int8File()
    x = g.input(IMAGE)
    kernel, scales = g.weights((6, 3, 3, 3), axis=0)
    bias = g.tensor((6,), dtype="INT32", values=np.zeros(6, np.int32), scales=0.05 * scales)
    options = schema.Conv2DOptionsT(strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    out = g.add_op("CONV_2D", [x, kernel, bias], [g.tensor(IMAGE, scale=3.0)], options)
    assert "groups: 6 channels" in refused(g.bytes(out), tmp_path).what
    g = Int8File()
    assert "batch of 1" in refused(g.bytes(g.conv(g.input((2, 5, 5, 3)), 4)), tmp_path).expected


def test_a_softmax_over_more_values_than_its_sum_has_bits_for_is_refused(tmp_path):
    g = Int8File()
    error = refused(g.bytes(g.softmax(g.input((1, 512)))), tmp_path)
    assert "over 512 values" in error.what and "at most 511" in error.expected and "without its softmax" in error.fix
    g = Int8File()
    compare(g.bytes(g.softmax(g.input((1, 511)), beta=3.0)), tmp_path, count=8)


def test_an_arena_or_a_flash_too_small_names_the_layer(tmp_path):
    error = refused(network(), tmp_path, max_arena=1000)
    assert "CONV_2D" in error.what and "alive" in error.what and "1,000 bytes (max_arena)" in error.expected
    error = refused(network(), tmp_path, max_flash=1000)
    assert "largest layer is" in error.what and "1,000 bytes (max_flash)" in error.expected
    made = export(tmp_path / "model.tflite", "c99", path=tmp_path / "c", max_arena=10**5, max_flash=10**5)
    size = made.details["arena_bytes"]
    assert export(tmp_path / "model.tflite", "c99", path=tmp_path / "c", max_arena=size).details["arena_bytes"] == size


def test_names_preferences_and_options_that_do_not_exist(tmp_path):
    assert "C identifier" in refused(network(), tmp_path, name="1 net").expected
    assert "speed, vectors, bytes" in refused(network(), tmp_path, prefer="size").expected


def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="holds something else"):
        export(_file(network(), tmp_path), "c99", path=tmp_path / "c")
    assert [f.name for f in (tmp_path / "c").iterdir()] == ["thesis.tex"]


def test_an_export_takes_the_place_of_the_last_one_as_a_whole(made, monkeypatch, tmp_path):
    folder = made.path.parent
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def broken(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", broken)
        with pytest.raises(InputError, match="No space left"):
            write_folder(folder, {"a": "b"})
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"model.tflite", "made"}
    export(tmp_path / "model.tflite", "c99", path=folder, name="other")
    assert "other_invoke" in made.path.read_text()


# ---------------------------------------------------------------- the runtime


def test_a_changed_file_another_folder_and_a_missing_compiler_are_told(made, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no folder of C"):
        runtimes.load(tmp_path, runtime="c99")
    monkeypatch.setenv("CC", "no_such_compiler")
    with pytest.raises(InputError, match="no C compiler 'no_such_compiler'") as caught:
        runtimes.load(made.path, runtime="c99")
    assert "apt-get install gcc" in caught.value.fix
    monkeypatch.delenv("CC")
    made.path.write_text(made.path.read_text().replace("127", "126"))
    with pytest.raises(InputError, match="not the file that was exported"):
        runtimes.load(made.path, runtime="c99")


def test_images_are_shared_among_processes_and_none_is_lost(made):
    one, three = (runtimes.load(made.path, runtime="c99", threads=n) for n in (1, 3))
    x = inputs_of(one.inputs, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(one.raw(x), three.raw(x))
    assert one.raw(x[:0]).shape == (0, 6)


def test_evaluation_has_a_row_for_the_folder(made, tmp_path):
    images = np.random.default_rng(1).normal(0, 2, (20, 12, 12, 3)).astype(np.float32)
    labels = runtimes.predict(tmp_path / "model.tflite", images, runtime="litert_reference").argmax(-1)
    report = okd.evaluate(
        [tmp_path / "model.tflite", made.path.parent], [(images, labels)], latency_runs=1, tflm_images=4
    )
    rows = {row["target"]: row for row in report.data["artifacts"]}
    assert rows["c99"]["accuracy"] == 1.0 and rows["c99"]["bytes"] == made.bytes
    np.testing.assert_array_equal(
        okd.predict(made, images), runtimes.predict(tmp_path / "model.tflite", images, runtime="litert_reference")
    )


def test_the_tool_writes_it_and_passes_its_limits_on(tool, tmp_path):
    file = _file(network(), tmp_path)
    done = tool("export", f"--model={file}", "--targets=c99", f"--output={tmp_path}", "--prefer=bytes")
    assert done.returncode == 0 and "c99:" in done.stdout and (tmp_path / "model_c99/main.c").is_file()
    done = tool("export", f"--model={file}", "--targets=c99", f"--output={tmp_path / 'x'}", "--max_arena=10")
    assert done.returncode == 1 and "max_arena" in done.stderr


# ---------------------------------------------------------------- minutes


def needs(*programs: str, packages: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install {packages}")


def every_operator(tmp_path) -> Path:
    """A folder with all kernels but those of sparse weights."""
    g = Int8File(seed=2)
    x = g.input(IMAGE, zero=4)
    return export(
        _file(g.bytes(*(build(g, x) for build in OPERATORS.values())), tmp_path), "c99", path=tmp_path / "all"
    )


def sparse_layers(tmp_path) -> Path:
    """A folder with the kernels of all formats of weights."""
    g = Int8File(seed=3)
    x, rng = g.input((1, 6, 9, 16)), np.random.default_rng(0)
    outs = [BLOCKS["sparse_conv"](g, x, rng) for _ in range(8)]
    values = g.rng.integers(-127, 128, (6, 3, 3, 16)).astype(np.int8)
    outs.append(g.conv(x, 6, values=values * (g.rng.random(values.shape) < 0.3)))
    return export(_file(g.bytes(*outs), tmp_path), "c99", path=tmp_path / "sparse")


@pytest.mark.slow
@pytest.mark.parametrize("folder_of", [every_operator, sparse_layers])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_and_analyzers_have_nothing_to_say(compiler, folder_of, tmp_path, monkeypatch):
    needs(compiler, packages=f"{compiler} libc6-dev")
    folder = folder_of(tmp_path).path.parent
    monkeypatch.setenv("CC", compiler)
    for level in ("-O0", "-O3"):
        files = [folder / name for name in ("main.c", "model.c", "orbit_kernels.c")]
        compile_c(files, tmp_path / "check", include=folder, flags=(*STRICT, level))
        assert subprocess.run([tmp_path / "check"]).returncode == 0
    check = {"gcc": ["-fanalyzer", "-c", "-o", os.devnull], "clang": ["--analyze", "-Xclang", "-analyzer-werror"]}[
        compiler
    ]
    for name in ("model.c", "orbit_kernels.c"):
        command = [compiler, "-std=c99", "-O1", "-Werror", *check, name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("folder_of", [every_operator, sparse_layers])
def test_ten_thousand_random_inputs_under_the_sanitizers(folder_of, tmp_path):
    made = folder_of(tmp_path)
    folder, manifest = made.path.parent, read_manifest(made.path.parent)
    outputs = [f"output{i}" for i in range(len(manifest["outputs"]))]
    buffers = "".join(f"static int8_t {name}[MODEL_{name.upper()}_SIZE];\n" for name in outputs)
    program = tmp_path / "many.c"
    program.write_text(
        f'#include "model.h"\nstatic model_context context;\nstatic int8_t input[MODEL_INPUT_SIZE];\n{buffers}'
        "int main(void) {\n  uint32_t state = 1;\n  for (int run = 0; run < 10000; ++run) {\n"
        "    for (int i = 0; i < MODEL_INPUT_SIZE; ++i) {\n"
        "      state = state * 1664525u + 1013904223u;\n"
        "      input[i] = (int8_t)(run % 3 ? state >> 24 : state >> 31 ? 127 : -128);\n    }\n"
        f"    model_invoke(&context, input, {', '.join(outputs)});\n  }}\n  return 0;\n}}\n"
    )
    files = [program, folder / "model.c", folder / "orbit_kernels.c"]
    compile_c(files, tmp_path / "many", include=folder, flags=SANITIZED)
    done = subprocess.run([tmp_path / "many"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def real_images(file: Path, real_data: Path) -> np.ndarray:
    """100 test images as the network sees them."""
    folder = (
        real_data
        / {"mstar": "mstar10", "aid15a": "aid15a", "water": "water", "boats": "boats"}[file.parent.name.split("_")[1]]
    )
    data = load(folder, preprocess=Preprocess(**read_metadata(file)["preprocess"]), batch_size=100)
    return next(data.test.as_numpy_iterator())[0]


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["speed", "bytes"])
@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.parent.name)
def test_the_networks_of_models_on_real_images(file, prefer, real_data, tmp_path):
    images = real_images(file, real_data)
    reference = runtimes.load(file, runtime="litert_reference")
    made = export(file, "c99", path=tmp_path / "c", prefer=prefer, calibration=images)
    ours = runtimes.load(made.path, runtime="c99", threads=os.cpu_count() or 1)
    x = runtimes.quantized(reference, images)
    expected = reference.raw(x)
    np.testing.assert_array_equal(ours.raw(x), expected)
    assert expected.std() > 10
