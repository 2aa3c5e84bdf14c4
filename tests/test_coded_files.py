"""The target tflite_micro_coded: the same outputs from fewer bytes, figures of what is decoded, clear refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tf_keras as keras

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.evaluate import evaluate
from orbit_kd.evaluation.latency import latency
from orbit_kd.evaluation.operators import op_latency
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import Artifact, export, open_artifact, read_metadata
from orbit_kd.exporters.tflm.compression import compress_weights
from orbit_kd.reports.summary import main_artifact
from orbit_kd.tflite import coded_model, coding, joined_biases, sharing
from orbit_kd.tflite.layers import int8_layers
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.reader import is_decode, only_tflm, parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.summary import read
from orbit_kd.tflite.trim import trim
from orbit_kd.tflite.writer import set_constant, to_bytes

layers = keras.layers
NAME = "tflite_micro_coded"
SHAPE = (12, 12, 3)
NOTE = {"class_names": ["ship", "Bär"], "preprocess": {"crop": [64, 64], "mean": [], "scale": 1.0}, "recipe": "ab" * 32}


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *SHAPE)).astype(np.float32)


def net(levels: int = 15, zeros: float = 0.5) -> keras.Model:
    """A convolution, a depthwise one in a residual block, another, and two dense layers; few levels, many zeros."""
    keras.utils.set_random_seed(0)
    image = layers.Input(SHAPE)
    x = layers.ReLU()(layers.Conv2D(16, 3, padding="same", name="first")(image))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", name="depth")(x)])
    x = layers.Conv2D(24, 3, activation="relu", name="second")(x)
    x = layers.Dense(32, activation="relu", name="hidden")(layers.Flatten()(layers.AveragePooling2D()(x)))
    model = keras.Model(image, layers.Dense(5, name="head")(x))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if "kernel" in variable.name and levels:
            steps = rng.integers(-(levels // 2), levels // 2 + 1, variable.shape) * (rng.random(variable.shape) > zeros)
            variable.assign(steps * 0.02)
        elif "bias" in variable.name:
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    return model


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Files of these tests are whole: they need no process of their own first. See test_coded_damage.py."""
    monkeypatch.setattr(runtimes, "probe", lambda *args, **options: None)
    monkeypatch.setattr(runtimes.tflm, "probe", lambda *args, **options: None)


@pytest.fixture(scope="module")
def int8(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("coded") / "m.tflite"
    return export(net(), "tflite_int8", path=path, calibration=images(), metadata=NOTE)


@pytest.fixture(scope="module")
def coded(int8, tmp_path_factory) -> Artifact:
    return export(int8, NAME, path=tmp_path_factory.mktemp("coded") / "c.tflite", calibration=images())


def figures(file) -> dict:
    summary = read(file)
    rows = [(op.op, op.weight_shape, op.dtype, op.params, op.nonzero, op.macs, op.macs_nonzero) for op in summary.ops]
    return dataclasses.asdict(summary) | {"ops": rows, "bytes": 0}


def written(data: bytes, **codings) -> bytes:
    """A coded file made step by step, one decoder for each layer."""
    model = parse(data)
    constants = {c.tensor: codings.get("coding", "auto") for c in coded_model.codable(model) if not c.bias}
    coded_model.insert_decoders(model, coded_model.encode_constants(model, constants), together=0)
    trim(model)
    return to_bytes(model, small=True)


def test_the_file_is_smaller_and_computes_the_same(int8, coded):
    assert coded.bytes == coded.path.stat().st_size < 0.5 * int8.bytes
    x = images()
    np.testing.assert_array_equal(
        okd.predict(coded, x, raw=True), okd.predict(int8, x, runtime="tflm", raw=True)
    )  # fmt: skip
    assert not any(t.name for t in parse(coded.path.read_bytes()).subgraphs[0].tensors)


def test_the_details_add_up(int8, coded):
    details = coded.details
    assert sum(details["bytes"].values()) == coded.bytes
    assert all(size >= 0 for size in details["bytes"].values())
    assert details["uncoded"]["bytes"] == int8.bytes
    assert details["arena_bytes"] == runtimes.load(coded.path, runtime="tflm").arena_bytes
    assert details["tensor_arena_bytes"] >= details["arena_bytes"] >= details["uncoded"]["arena_bytes"]
    assert details["compared"] == {"inputs": 16, "origin": "calibration data"}
    assert sum(details["codings"].values()) == len(coded_model.codable(parse(int8.path.read_bytes())))
    json.dumps(details)


def test_figures_are_those_of_the_uncoded_file(int8, coded):
    assert figures(coded.path) == figures(int8.path)
    assert [check[1:] for check in map(dataclasses.astuple, check_n_m(coded.path, n=2, m=4))] == [
        check[1:] for check in map(dataclasses.astuple, check_n_m(int8.path, n=2, m=4))
    ]
    for a, b in zip(*(int8_layers(f.path.read_bytes()) for f in (int8, coded)), strict=True):
        np.testing.assert_array_equal(a.kernel, b.kernel)
        np.testing.assert_array_equal(a.bias, b.bias)
        np.testing.assert_array_equal(np.broadcast_to(b.scales, a.scales.shape), a.scales)


@pytest.mark.parametrize(
    ("asked", "codings"),
    [
        ({"*hidden/*": "mask", "*second/*": "none"}, {"mask": 1, "huffman": 3}),
        ({"*depth/*": "none", "*head/*": "none", "*": "huffman"}, {"mask": 0, "huffman": 3}),
        ({"*second/*": "pairs", "*hidden/*": "pairs", "*head/*": "none"}, {"pairs": 2}),
        ("none", {"mask": 0, "huffman": 0}),
    ],
)
def test_every_coding_runs_in_the_interpreter(int8, tmp_path, asked, codings):
    made = export(int8, NAME, path=tmp_path / "c.tflite", coding=asked)
    assert made.details["codings"].items() >= codings.items()
    np.testing.assert_array_equal(
        okd.predict(made, images(8), raw=True), okd.predict(int8, images(8), runtime="tflm", raw=True)
    )
    assert figures(made.path) == figures(int8.path)


@pytest.mark.parametrize("kind", ["mask", "pairs"])
def test_all_kinds_of_layers_take_a_coding_in_the_interpreter(int8, kind):
    """All constants in masks, all kernels in pairs, whether that is smaller or not."""
    data = int8.path.read_bytes()
    model = parse(data)
    graph = Subgraph(model)
    constants = [c.tensor for c in coded_model.codable(model) if not c.bias or kind == "mask"]
    forms = {i: coding.encode(graph.dense(i), coding=kind) for i in constants}
    coded_model.insert_decoders(model, forms, together=1)
    trim(model)
    made = to_bytes(model, small=True)
    assert figures(made) == figures(data)
    outputs = [runtimes.predict(f, images(8), runtime="tflm", raw=True) for f in (data, made)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("kind", ["huffman", "pairs"])
@pytest.mark.parametrize("levels", [1, 3, 15, 63, 255])
def test_few_and_many_levels_decode_alike_here_and_there(tiny_file, levels, kind):
    """Tables of one level and of several, a code of a single symbol; the interpreter's decoder is the judge."""
    model, rng = parse(tiny_file), np.random.default_rng(levels)
    graph = Subgraph(model)
    kernel = graph.kernel(next(op for op in graph.operators if graph.kernel(op) is not None))
    values = np.clip(np.rint(rng.standard_normal(graph.shape(kernel)) * levels / 6), -(levels // 2), levels // 2)
    set_constant(model, graph.tensors[kernel], values=values.astype(np.int8))
    plain = to_bytes(model)
    made = parse(plain)
    form = coding.encode(values.astype(np.int8), coding=kind)
    coded_model.insert_decoders(made, {kernel: form}, together=0)
    made = to_bytes(made, small=True)
    np.testing.assert_array_equal(Subgraph(parse(made)).dense(kernel), values)
    x = np.random.default_rng(0).integers(-128, 128, (4, 8, 8, 3), np.int8)
    np.testing.assert_array_equal(*(runtimes.load(f, runtime="tflm").raw(x) for f in (plain, made)))


def tiny() -> keras.Model:
    """One convolution of 96 filters and few levels."""
    image = layers.Input((8, 8, 3))
    convolution = layers.Conv2D(96, 3)
    model = keras.Model(image, layers.GlobalAveragePooling2D()(convolution(image)))
    levels = np.random.default_rng(0).integers(-3, 4, (3, 3, 3, 96))
    convolution.set_weights([levels.astype(np.float32), np.zeros(96)])
    return model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("coded") / "t.tflite"
    return export(tiny(), "tflite_int8", path=path, calibration=images()[:, :8, :8]).path.read_bytes()


def test_kernels_share_a_table_where_that_is_smaller(coded):
    """Kernels of the same few levels: one ancillary for all; those of quite other levels have their own."""
    model = parse(coded.path.read_bytes())
    decoders = [op for op in model.subgraphs[0].operators if is_decode(model, op)]
    tensors = model.subgraphs[0].tensors
    ancillaries = [bytes(model.buffers[tensors[i].buffer].data) for op in decoders for i in op.inputs[1::2]]
    tables = [ancillary for ancillary in ancillaries if ancillary[0] == 1]  # Huffman
    assert len(set(tables)) < len(tables)
    rng = np.random.default_rng(0)
    values = [rng.integers(a, a + 8, 4000).astype(np.int8) for a in (0, 0, 100, 100)]
    codes = sharing.share_codes([coding.histogram(v) for v in values])
    assert codes[0] is codes[1] and codes[2] is codes[3] and codes[0] is not codes[2]
    assert sharing.coded_size_together(values) < sum(map(coding.coded_size, values))


def test_one_decoder_serves_several_layers_without_a_larger_arena(int8, coded):
    model = parse(coded.path.read_bytes())
    decoders = [op for op in model.subgraphs[0].operators if is_decode(model, op)]
    apart = written(int8.path.read_bytes())
    assert len(decoders) < sum(is_decode(parse(apart), op) for op in parse(apart).subgraphs[0].operators)
    assert coded.details["arena_bytes"] <= runtimes.load(apart, runtime="tflm").arena_bytes + 2048


def test_short_biases_are_smaller_and_can_be_left_out(int8, tmp_path):
    made = [export(int8, NAME, path=tmp_path / f"{on}.tflite", short_biases=on) for on in (True, False)]
    assert made[0].bytes <= made[1].bytes
    assert figures(made[1].path) == figures(int8.path)
    model = parse(int8.path.read_bytes())
    assert not joined_biases.join_biases(model, [])
    biases = [c.tensor for c in coded_model.codable(model) if c.bias]
    values = {i: Subgraph(model).dense(i) for i in biases}
    joined = joined_biases.join_biases(model, biases)
    assert all((Subgraph(model).dense(i) == values[i]).all() for i in biases)
    assert not joined or all(np.abs(values[i]).max() > 32767 for i in biases if i not in joined)


def test_the_note_is_read_as_before_and_takes_less(int8, coded, tmp_path):
    assert read_metadata(coded.path) == read_metadata(int8.path)
    other = export(int8, NAME, path=tmp_path / "n.tflite", metadata={"class_names": ["x"]})
    assert read_metadata(other.path) == {"class_names": ["x"]}
    model = parse(coded.path.read_bytes())
    (entry,) = model.metadata
    assert entry.name == b"orbit_kd" and len(model.buffers[entry.buffer].data) < 120


def test_plain_again_it_runs_everywhere(int8, coded):
    plain = coded_model.plain_file(coded.path.read_bytes())
    assert figures(plain) == figures(int8.path)
    x = images(8)
    outputs = [runtimes.predict(f, x, runtime="litert_reference", raw=True) for f in (plain, int8.path)]
    np.testing.assert_array_equal(*outputs)
    assert coded_model.plain_file(int8.path.read_bytes()) == int8.path.read_bytes()


def test_litert_names_the_runtime_that_takes_it(coded):
    for call in (
        lambda: okd.predict(coded, images(1), runtime="litert"),
        lambda: runtimes.load(coded.path, runtime="litert_reference"),
        lambda: latency([coded.path], runs=1),
        lambda: op_latency([coded.path], runs=1),
    ):
        with pytest.raises(InputError, match='runtime="tflm"'):
            call()
    assert okd.predict(coded.path, images(2)).shape == okd.predict(coded.path.read_bytes(), images(2)).shape == (2, 5)


def test_it_is_opened_and_evaluated(int8, coded, tmp_path):
    opened = open_artifact(coded.path)
    assert (opened.target, opened.bytes) == (NAME, coded.bytes)
    y = np.arange(40) % 5
    report = evaluate([opened, int8], [(images(), y)], latency_runs=2, tflm_images=4)
    ours, theirs = report.data["artifacts"]
    for key in ("density", "params", "nonzero_params", "accuracy"):
        assert ours[key] == theirs[key], key
    assert ours["latency"] is None and "TensorFlow Lite Micro" in ours["latency_why"]
    assert ours["tflm"]["ran"] and ours["tflm"]["max_lsb"] == theirs["tflm"]["max_lsb"]
    assert ours["tflm"]["arena_bytes"] == coded.details["arena_bytes"]
    assert main_artifact(report.data)["target"] == NAME
    alone = evaluate(coded, [(images(), y)], latency_runs=2, tflm_images=4)
    assert alone.data["student"]["measured_from"] == NAME
    assert tflm_parity(coded.path, images(2)).ran


def test_sources_are_made_of_a_coded_file(coded, tmp_path):
    made = export(coded, "tflm", path=tmp_path / "c", calibration=images())
    text = (tmp_path / "c/model_operators.h").read_text()
    assert "AddDecode" in text and made.bytes == coded.bytes
    assert made.details["golden_difference"] <= 1
    assert okd.predict(made, images(2)).shape == (2, 5)
    with pytest.raises(InputError, match="coded already"):
        export(coded, "tflm", path=tmp_path / "d", compress=True)
    array = export(coded, "c_array", path=tmp_path / "a.cc", metadata={"class_names": ["b"]})
    assert read_metadata(coding_array(array)) == {"class_names": ["b"]} and array.bytes < coded.bytes + 200


def coding_array(artifact: Artifact) -> bytes:
    from orbit_kd.exporters.c_array import read_c_array

    return read_c_array(artifact.path)


@pytest.mark.parametrize("target", [NAME, "vela:ethos-u55-128", "packed"])
def test_a_coded_file_is_not_coded_again_nor_compiled(coded, tmp_path, target):
    with pytest.raises(InputError, match="coded for TensorFlow Lite Micro"):
        export(coded, target, path=tmp_path / "again")
    assert not list(tmp_path.iterdir())


def test_bad_files_and_options_are_refused_and_nothing_is_written(int8, tmp_path):
    path = tmp_path / "out" / "c.tflite"
    floats = export(tiny(), "tflite_float32", path=tmp_path / "f.tflite")
    for wrong, message in (
        (lambda: export(floats, NAME, path=path), "kernels are float32"),
        (lambda: export(int8, NAME, path=path, coding="zip"), "Unknown coding"),
        (lambda: export(int8, NAME, path=path, coding={"*nothing*": "mask"}), "No kernel has a name like"),
        (lambda: export(int8, NAME, path=path, coding={"*head/*": "mask"}), "would take"),
        (lambda: export(int8, NAME, path=path, checks=0), "checks=0"),
        (lambda: export(int8, NAME, path=path, max_flash=100), "bytes of flash"),
        (lambda: export(int8, NAME, path=path, max_arena=100), "tensor arena takes"),
        (lambda: export(int8, NAME, path=path, calibration=np.zeros((4, 5, 5, 3), np.float32)), "shape"),
    ):
        with pytest.raises(InputError, match=message) as error:
            wrong()
        assert error.value.expected and error.value.fix
    assert not path.parent.exists()


def test_without_the_extra_it_is_named(int8, tmp_path, monkeypatch):
    from orbit_kd.support import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="mcu"):
        export(int8, NAME, path=tmp_path / "c.tflite")


def test_other_outputs_are_refused(int8, tmp_path, monkeypatch):
    """Decoders in the wheel may be other than the encoder thinks: the export compares, and writes nothing."""
    right = coding.encode

    def wrong(values, **options):
        form = right(values, **options)
        return form and dataclasses.replace(form, encoded=bytes(len(form.encoded)))

    monkeypatch.setattr(coding, "encode", wrong)
    with pytest.raises(InputError, match="computes other outputs"):
        export(int8, NAME, path=tmp_path / "c.tflite")
    assert not list(tmp_path.iterdir())


def test_a_keras_model_is_converted_first(tmp_path):
    made = export(tiny(), NAME, path=tmp_path / "k.tflite", calibration=images()[:, :8, :8], metadata=NOTE)
    assert only_tflm(parse(made.path.read_bytes())) and read_metadata(made.path) == NOTE
    assert made.details["calibration_images"] == 40


def test_tables_of_indices_are_read_too(int8):
    """What TFLM's own tool writes (compress=True of the target tflm) has the figures of the file it was made of."""
    smaller, found = compress_weights(int8.path.read_bytes())
    assert found["compressed_layers"]
    assert figures(smaller) == figures(int8.path)
