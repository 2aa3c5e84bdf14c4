"""Timing of files and of their operators: the cut files compute the same, and the tool says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from orbit_kd.errors import InputError
from orbit_kd.evaluation.latency import delegates, latency, prepare_call
from orbit_kd.evaluation.operators import cut_operators, op_latency
from orbit_kd.exporters import export
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.summary import read
from orbit_kd.tflite.writer import to_bytes

layers = keras.layers
TOOL = Path(__file__).parent.parent / "tools" / "benchmark.py"


def net(width: int) -> keras.Model:
    """Convolutions with a shortcut, a depthwise one, pooling and a dense layer."""
    image = layers.Input((24, 24, 3))
    x = layers.Conv2D(width, 3, padding="same", activation="relu")(image)
    x = layers.Add()([x, layers.Conv2D(width, 3, padding="same")(x)])
    x = layers.DepthwiseConv2D(3)(x)
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.MaxPooling2D()(x))))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """A large and a small network, float and int8."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("timed")
    x = np.random.default_rng(0).normal(size=(8, 24, 24, 3)).astype(np.float32)
    return {
        f"{name}_{kind}": export(
            net(width), f"tflite_{kind}", path=folder / f"{name}_{kind}.tflite", calibration=x
        ).path
        for name, width in (("large", 48), ("small", 8))
        for kind in ("float32", "int8")
    }


def feed(data: bytes, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a file on tensors given by name, and returns its outputs by name."""
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    for port in interpreter.get_input_details():
        interpreter.set_tensor(port["index"], values[port["name"]])
    interpreter.invoke()
    return {port["name"]: interpreter.get_tensor(port["index"]) for port in interpreter.get_output_details()}


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_cut_operators_compute_in_turn_what_the_whole_file_does(paths, kind):
    data = paths[f"small_{kind}"].read_bytes()
    graph = parse(data).subgraphs[0]
    name = graph.tensors[graph.inputs[0]].name.decode()
    x = np.random.default_rng(1).normal(size=(1, 24, 24, 3)) * 40
    values = {name: x.astype(kind)}
    expected = feed(data, values)
    cuts = cut_operators(data)
    assert [n for n, _ in cuts] == [op.name for op in read(data).ops]
    for _, part in cuts:
        values |= feed(part, values)
    for output, wanted in expected.items():
        np.testing.assert_allclose(values[output], wanted, rtol=1e-4, atol=1e-4)


def test_a_cut_operator_keeps_its_macs_and_its_constants_only(paths):
    data = paths["large_int8"].read_bytes()
    for (name, part), op in zip(cut_operators(data), read(data).ops, strict=True):
        summary = read(part)
        assert (len(summary.ops), summary.ops[0].name, summary.macs, summary.params) == (1, name, op.macs, op.params)
        assert summary.bytes < op.params * 4 + 4096


def test_float16_weights_come_along_through_their_dequantize(tmp_path):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(net(8))
    converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
    data = converter.convert()
    assert len(parse(data).subgraphs[0].operators) > len(read(data).ops)  # there are DEQUANTIZE operators
    cuts = cut_operators(data)
    assert [name for name, _ in cuts] == [op.name for op in read(data).ops]
    for _, part in cuts:
        prepare_call(part)()


def test_packing_a_file_again_changes_nothing_and_aligns_its_weights(paths):
    data = to_bytes(parse(paths["small_int8"].read_bytes()))
    before, after = read(paths["small_int8"]), read(data)
    assert after.ops == before.ops
    for buffer in parse(data).buffers:
        if buffer.data is not None and len(buffer.data) > 64:
            assert data.index(bytes(buffer.data)) % 16 == 0


def test_the_large_network_takes_longer_as_a_whole_and_in_its_convolution(paths):
    large, small = op_latency([paths["large_float32"], paths["small_float32"]], runs=5)
    assert large.milliseconds > small.milliseconds
    heavy = [max(file.ops, key=lambda op: op.macs) for file in (large, small)]
    assert heavy[0].macs == 36 * heavy[1].macs  # (48 / 8) squared
    assert heavy[0].milliseconds > 3 * heavy[1].milliseconds
    assert large.covered == pytest.approx(sum(op.milliseconds for op in large.ops) / large.milliseconds)


def test_without_a_delegate_int8_takes_longer_than_with_xnnpack(paths):
    slow, fast = (latency([paths["large_int8"]], runs=5, delegate=name)[0] for name in ("none", "xnnpack"))
    assert slow.milliseconds > fast.milliseconds
    assert delegates.names() == ["none", "xnnpack"]


def test_bad_files_and_arguments_are_refused(paths, tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"\0\0\0\0TFL3" + bytes(64))
    with pytest.raises(InputError, match=r"Not a \.tflite file"):
        latency([tmp_path / "broken.tflite"])
    with pytest.raises(InputError, match="Unknown delegate 'gpu'"):
        latency([paths["small_int8"]], delegate="gpu")
    with pytest.raises(InputError, match="threads=0"):
        latency([paths["small_int8"]], threads=0)
    with pytest.raises(InputError, match="runs=0"):
        op_latency([paths["small_int8"]], runs=0)
    with pytest.raises(InputError, match="0 files"):
        op_latency([])


def test_a_file_for_an_npu_is_refused_with_a_word_about_it(paths, tmp_path):
    pytest.importorskip("ethosu.vela", reason="ethos-u-vela is not installed (extra npu)")
    npu = export(paths["small_int8"], "vela:ethos-u55-128", path=tmp_path / "npu.tflite")
    with pytest.raises(InputError, match="compiled by Vela"):
        latency([npu.path])


@pytest.fixture
def tool(tool):
    """Runs the tool: exit code, what it printed, what it complained of."""

    def run(*flags: str) -> tuple[int, str, str]:
        done = tool("benchmark", *flags)
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_tool_prints_each_file_and_each_operator_for_all_threads_and_delegates(paths, tool):
    models = f"--models={paths['large_int8']},{paths['small_int8']}"
    code, out, _ = tool(models, "--threads=1,2", "--delegates=xnnpack,none", "--runs=2", "--per_op")
    assert code == 0
    for heading in ("1 thread, delegate xnnpack", "2 threads, delegate xnnpack", "1 thread, delegate none"):
        assert heading in out
    ratio = read(paths["large_int8"]).macs / read(paths["small_int8"]).macs
    assert out.count(f"{ratio:.2f}x") >= 4
    assert out.count("DEPTHWISE_CONV_2D") == 8
    assert out.count("36.00x") == 4  # the second convolution of the small file, in each of four settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--models is missing"),
        (["--models=nowhere.tflite"], "Cannot read nowhere.tflite"),
        (["--models=nowhere.tflite", "--threads=none"], "--threads=none is no number of threads"),
        (["--models=nowhere.tflite", "--delegates=gpu"], "Unknown delegate 'gpu'"),
        (["nowhere.tflite"], "Unexpected argument"),
    ],
)
def test_bad_flags_end_with_exit_code_1_and_one_message(tool, flags, message):
    code, out, said = tool(*flags)
    assert (code, out) == (1, "")
    assert message in said and "Traceback" not in said


def test_help_needs_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('loaded')")
    said = subprocess.run(
        [sys.executable, TOOL, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "--[no]per_op" in said.stdout and "loaded" not in said.stderr
