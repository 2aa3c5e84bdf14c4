"""Running exported files: the same numbers in every way of running them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation import latency as timing
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import export
from orbit_kd.runtimes import Port, execution, tflm
from orbit_kd.runtimes.compiled import CompiledRunner
from orbit_kd.support.native_log import native_stderr

layers = keras.layers


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(70, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image)))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    return keras.Model(image, layers.Dense(5)(layers.Flatten()(layers.AveragePooling2D()(x))))


@pytest.fixture(scope="module")
def files(tmp_path_factory, model, images) -> dict[str, os.PathLike]:
    folder = tmp_path_factory.mktemp("runtimes")
    return {
        target: export(model, target, path=folder / f"{target}.tflite", calibration=images).path
        for target in ("tflite_float32", "tflite_int8")
    }


@pytest.mark.parametrize("runtime", ["litert", "litert_reference", "tflm"])
def test_float_file_gives_what_keras_gives(files, model, images, runtime):
    out = runtimes.predict(files["tflite_float32"], images[:10], runtime=runtime)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, model(images[:10]).numpy(), atol=1e-5)


def test_inputs_are_quantized_and_outputs_dequantized_as_the_file_says(files, images):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(model_path=str(files["tflite_int8"]), experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    expected = []
    for image in images[:5]:
        scale, zero = source["quantization"]
        interpreter.set_tensor(
            source["index"], np.clip(np.round(image / scale + zero), -128, 127).astype(np.int8)[None]
        )
        interpreter.invoke()
        expected.append(interpreter.get_tensor(sink["index"])[0])
    raw = runtimes.predict(files["tflite_int8"], images[:5], runtime="litert_reference", raw=True)
    assert raw.dtype == np.int8
    np.testing.assert_array_equal(raw, expected)
    scale, zero = sink["quantization"]
    real = runtimes.predict(files["tflite_int8"], images[:5], runtime="litert_reference")
    np.testing.assert_allclose(real, (np.array(expected, np.float32) - zero) * scale, rtol=1e-6)


def test_values_beyond_the_range_saturate(files):
    runner = runtimes.load(files["tflite_int8"])
    assert runner.input.quantize(np.full((1, 12, 12, 3), 1e9)).max() == 127
    assert runner.input.quantize(np.full((1, 12, 12, 3), -1e9)).min() == -128


@pytest.mark.parametrize("target", ["tflite_float32", "tflite_int8"])
def test_batches_and_single_images_give_the_same(files, images, target):
    runner = runtimes.load(files[target])
    together = runtimes.run(runner, images)  # two batches of 32 and six alone
    assert runner._many_works and runner._many is not None
    alone = np.concatenate([runtimes.predict(files[target], image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_a_graph_with_its_batch_written_down_runs_one_by_one(images):
    function = tf.function(lambda x: tf.reshape(tf.transpose(x * 2.0, (3, 0, 1, 2)), (1, 432)))
    spec = tf.TensorSpec((1, 12, 12, 3), tf.float32)
    with native_stderr():
        data = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function(spec)], tf.Module()
        ).convert()
    runner = runtimes.load(data)
    out = runtimes.run(runner, images)
    assert not runner._many_works
    np.testing.assert_allclose(out, images.transpose(0, 3, 1, 2).reshape(70, 432) * 2, rtol=1e-6)


def test_no_images_give_no_outputs(files):
    assert runtimes.predict(files["tflite_int8"], np.zeros((0, 12, 12, 3))).shape == (0, 5)


def test_threads_do_not_change_the_outputs(files, images):
    one, two = (runtimes.predict(files["tflite_int8"], images, threads=t, raw=True) for t in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_tflm_equals_the_reference_kernels_within_one_step(files, images):
    parity = tflm_parity(files["tflite_int8"], images[:20])
    assert parity.ran and parity.why == "" and parity.compared == 20
    assert parity.max_lsb <= 1
    # The plan must at least hold the largest activation and the input beside it, and this net needs little more.
    assert 12 * 12 * 8 + 12 * 12 * 3 <= parity.arena_bytes <= 16_000


def test_tflm_parity_reports_the_largest_difference(files, images, monkeypatch):
    real = tflm._Tflm.raw

    def off_by_three(self, x):
        out = real(self, x)
        out[1, 2] += 3 if out[1, 2] < 100 else -3
        return out

    reference = runtimes.predict(files["tflite_int8"], images[:4], runtime="litert_reference", raw=True)
    exact = runtimes.predict(files["tflite_int8"], images[:4], runtime="tflm", raw=True)
    monkeypatch.setattr(tflm._Tflm, "raw", off_by_three)
    wrong = runtimes.predict(files["tflite_int8"], images[:4], runtime="tflm", raw=True)
    assert tflm_parity(files["tflite_int8"], images[:4]).max_lsb == np.abs(wrong.astype(int) - reference).max()
    assert np.abs(wrong.astype(int) - exact).max() == 3


def test_tflm_without_its_package_is_not_run_and_says_how_to_get_it(files, images, monkeypatch):
    monkeypatch.setattr(tflm.importlib.util, "find_spec", lambda name: None)
    parity = tflm_parity(files["tflite_int8"], images[:2])
    assert (parity.ran, parity.why) == (False, 'not run: pip install "orbit-kd[mcu]"')
    with pytest.raises(InputError, match=r"orbit-kd\[mcu\]"):
        runtimes.load(files["tflite_int8"], runtime="tflm")


def test_tflm_parity_of_a_float_file_is_not_run(files, images):
    parity = tflm_parity(files["tflite_float32"], images[:2])
    assert not parity.ran and "float outputs" in parity.why and parity.max_lsb is None


def test_a_file_tflm_cannot_run_is_told(images):
    model = keras.Sequential([layers.Input((12, 12, 3)), layers.Flatten(), layers.Dense(64), layers.Dense(3)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]  # dynamic range: int8 weights, float activations
    data = converter.convert()
    with pytest.raises(InputError, match="filter type: INT8 not supported"):
        runtimes.predict(data, images[:1], runtime="tflm")


def test_latency_compares_to_the_first_file(tmp_path, images):
    image = layers.Input((32, 32, 8))
    small = keras.Model(image, layers.Conv2D(8, 3)(image))
    x = layers.Conv2D(64, 3)(image)
    large = keras.Model(image, layers.Conv2D(8, 3)(layers.Conv2D(64, 3)(x)))
    paths = [export(m, "tflite_float32", path=tmp_path / f"{i}.tflite").path for i, m in enumerate((large, small))]
    first, second = timing.latency(paths, runs=7)
    assert (first.ratio, first.low, first.high, first.runs, first.threads) == (1, 1, 1, 7, 1)
    assert second.low <= second.ratio <= second.high
    assert second.ratio > 3  # about 60 times fewer multiplications
    assert second.milliseconds < first.milliseconds


def test_files_are_timed_in_an_order_that_rotates(monkeypatch):
    called: list[int] = []
    monkeypatch.setattr(timing, "_repeats", lambda call: 1)
    calls = [lambda i=i: called.append(i) or time.sleep(0.002 * (i + 1)) for i in range(3)]
    times = timing.time_in_turn(calls, runs=4)
    assert called == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert times.shape == (4, 3) and (np.diff(np.median(times, 0)) > 0).all()  # each time is of its own call


def test_a_file_that_aborts_ends_only_its_own_process(files, monkeypatch):
    runtimes.probe(files["tflite_int8"])
    run = subprocess.run
    monkeypatch.setattr(
        execution.subprocess,
        "run",
        lambda command, **options: run([sys.executable, "-c", "import os; os.abort()"], **options),
    )
    with pytest.raises(InputError, match="signal 6"):
        runtimes.probe(files["tflite_int8"])
    parity = tflm_parity(files["tflite_int8"], np.zeros((1, 12, 12, 3)))
    assert not parity.ran and "signal 6" in parity.why


def test_bad_arguments_are_refused(files, images):
    file = files["tflite_int8"]
    with pytest.raises(InputError, match="litert_reference, onnx, tflm"):
        runtimes.predict(file, images, runtime="paper")
    with pytest.raises(InputError, match=r"shape \(12, 12, 1\)"):
        runtimes.predict(file, images[..., :1])
    with pytest.raises(InputError, match="NaN or Inf"):
        runtimes.predict(file, np.full((1, 12, 12, 3), np.nan))
    with pytest.raises(InputError, match="threads=0"):
        runtimes.predict(file, images, threads=0)
    with pytest.raises(InputError, match="runs=0"):
        timing.latency([file], runs=0)
    with pytest.raises(InputError, match="0 files"):
        timing.latency([])
    with pytest.raises(InputError, match="No images"):
        tflm_parity(file, images[:0])


def test_native_stderr_is_caught_and_given_back(capfd):
    with native_stderr() as log:
        os.write(2, b"from C++")
        assert log.text == "from C++"
        os.write(2, b", more")
    os.write(2, b"after")
    assert log.text == "from C++, more"
    assert capfd.readouterr().err == "after"


@pytest.mark.parametrize("zero_point", [0, 3, -128])
def test_inputs_half_way_between_two_steps_go_to_the_even_one_and_what_is_beyond_saturates(zero_point):
    port = runtimes.Port((), np.dtype(np.int8), 0.5, zero_point)
    steps = [0, 0, 2, 2, 4, 0, -2, -2, 3, -3]
    x = np.array([0.0, 0.25, 0.75, 1.25, 1.75, -0.25, -0.75, -1.25, 1.26, -1.74], np.float32)
    q = port.quantize(x)
    assert q.dtype == np.int8 and q.tolist() == [max(-128, s + zero_point) for s in steps]
    assert port.quantize(np.array([1e3, -1e3])).tolist() == [127, -128]
    assert port.dequantize(np.array([127, zero_point, -128], np.int8)).tolist() == [
        0.5 * (127 - zero_point), 0.0, 0.5 * (-128 - zero_point)
    ]  # fmt: skip
    plain = runtimes.Port((), np.dtype(np.float32), 0.0, 0)
    assert plain.quantize(x).tolist() == plain.dequantize(x).tolist() == x.tolist()


_CODE = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
static int calls = 0;
void twice(const int8_t *x, int16_t *y) {
    printf("what a library says is no answer\\n");
    if (x[0] == 99) abort();
    for (int i = 0; i < 3; i++) y[i] = 2 * x[i] + calls;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "code.c").write_text(_CODE)
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", "-o", folder / "code.so", folder / "code.c"], check=True)
    return folder / "code.so"


def twice(path, threads):
    ports = Port((3,), np.dtype(np.int8), 0.5, 1), Port((3,), np.dtype(np.int16), 0.25, 0)
    return CompiledRunner(path, "twice", input=ports[0], output=ports[1], processes=threads, fix="compile it again")


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_code_is_a_runtime(library, threads):
    x = np.random.default_rng(0).uniform(-20, 20, (7, 3)).astype(np.float32)
    with runtimes.runtimes.temporary("code_of_test", twice):
        raw = runtimes.predict(library, x, runtime="code_of_test", threads=threads, raw=True)
        assert raw.dtype == np.int16
        np.testing.assert_array_equal(raw, 2 * (np.rint(x / 0.5).astype(int) + 1))
        np.testing.assert_array_equal(runtimes.predict(library, x, runtime="code_of_test"), raw * np.float32(0.25))
        assert runtimes.predict(library, x[:0], runtime="code_of_test").shape == (0, 3)


def test_compiled_code_that_ends_its_process_does_not_take_the_caller_with_it(library, tmp_path):
    x = np.full((2, 3), 49, np.float32)  # 99 as an integer
    with pytest.raises(InputError, match=r"does not run(?s:.*)compile it again"):
        runtimes.run(twice(library, 1), x)
    with pytest.raises(InputError, match=r"gone\.so(?s:.*)does not run|does not run(?s:.*)gone\.so"):
        runtimes.run(twice(tmp_path / "gone.so", 1), x)
