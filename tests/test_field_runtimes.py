"""Files with memory, loops and variables, and running a file on an array: what users bring to the runtimes."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.channels.profiles import profile
from orbit_kd.errors import InputError
from orbit_kd.evaluation.operators import op_latency
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.state import State, state_of
from orbit_kd.tflite.summary import read

layers = keras.layers
RUNTIMES = ("litert", "litert_reference", "tflm")
STEPS, WIDTH = 6, 5
# TensorFlow's loops, collected after `clear_session`: "Tried to remove non-existent function 'while_body_8084'".
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """No loop is left to be collected in another file's tests."""
    yield
    gc.collect()


def randomized(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    for variable in model.trainable_weights:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def after(layer: keras.layers.Layer, shape: tuple[int, ...] = (STEPS, WIDTH)) -> keras.Model:
    image = layers.Input(shape)
    return randomized(keras.Model(image, layer(image)))


def stream() -> bytes:
    """y = x @ kernel + state; state = y. The state begins as ones."""
    module = tf.Module()
    module.kernel = tf.constant(np.random.default_rng(1).normal(size=(WIDTH, 4)), tf.float32)
    module.state = tf.Variable(tf.ones((1, 4)))

    def call(x):
        return module.state.assign(x @ module.kernel + module.state).read_value()

    function = tf.function(call).get_concrete_function(tf.TensorSpec((1, WIDTH), tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.experimental_enable_resource_variables = True
    with native_stderr():
        return converter.convert()


@pytest.fixture(scope="module")
def sequences() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(40, STEPS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("field_runtimes")


@pytest.fixture(scope="module")
def lstm() -> keras.Model:
    """An LSTM behind a convolution, both ways."""
    sequence = layers.Input((STEPS, WIDTH))
    x = layers.Conv1D(4, 3, padding="same", activation="relu")(sequence)
    return randomized(keras.Model(sequence, layers.Dense(3)(layers.Bidirectional(layers.LSTM(4))(x))))


@pytest.fixture(scope="module")
def lstm_files(folder, lstm, sequences) -> dict[str, okd.Artifact]:
    return {
        name: okd.export(lstm, name, path=folder / f"lstm_{name}.tflite", calibration=sequences)
        for name in ("tflite_float32", "tflite_int8")
    }


@pytest.fixture(scope="module")
def streaming() -> bytes:
    return stream()


# ---------------------------------------------------------------- A: no image leaves anything for the next


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_sequence_gives_the_same_row_and_keras_agrees(lstm_files, lstm, sequences, runtime):
    out = runtimes.predict(lstm_files["tflite_float32"].path, sequences, runtime=runtime)
    np.testing.assert_allclose(out, lstm(sequences).numpy(), atol=1e-5)
    repeated = runtimes.predict(lstm_files["tflite_int8"].path, np.repeat(sequences[:1], 40, 0), runtime=runtime)
    assert np.ptp(repeated, axis=0).max() == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_integer_lstm_does_not_depend_on_the_order(lstm_files, sequences, runtime):
    file = lstm_files["tflite_int8"].path
    forwards = runtimes.predict(file, sequences, runtime=runtime, raw=True)
    backwards = runtimes.predict(file, sequences[::-1], runtime=runtime, raw=True)
    np.testing.assert_array_equal(forwards, backwards[::-1])
    np.testing.assert_array_equal(forwards[7], runtimes.predict(file, sequences[7:8], runtime=runtime, raw=True)[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_stream_begins_anew_with_its_first_state(streaming, runtime):
    assert state_of(parse(streaming)) is State.RESOURCES
    x = np.random.default_rng(3).normal(size=(35, WIDTH)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(WIDTH, 4)).astype(np.float32)
    np.testing.assert_allclose(runtimes.predict(streaming, x, runtime=runtime), x @ kernel + 1, atol=1e-5)


def test_evaluation_does_not_depend_on_the_order_of_the_images(lstm_files, lstm, sequences):
    labels = lstm(sequences).numpy().argmax(-1)  # a teacher that is always right
    for order in (slice(None), slice(None, None, -1)):
        test = [(sequences[order], labels[order])]
        report = okd.evaluate(lstm_files["tflite_float32"], test, latency_runs=1, tflm_images=4)
        assert report.data["student"]["accuracy"] == 1.0


def test_golden_output_and_main_of_a_file_with_variables(sequences, folder):
    made = okd.export(after(layers.LSTM(4)), "tflm", path=folder / "tflm", calibration=sequences)
    main = (folder / "tflm" / "main.cc").read_text()
    assert main.index("interpreter.Reset()") < main.index("std::memcpy") < main.index("interpreter.Invoke()")
    assert state_of(parse(read_c_array(made.path))) is State.TENSORS


def test_main_of_a_file_without_variables_resets_nothing(folder):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    okd.export(after(layers.Dense(3), (4,)), "tflm", path=folder / "plain", calibration=x)
    assert "Reset" not in (folder / "plain" / "main.cc").read_text()


def test_a_keras_layer_that_keeps_its_state_is_refused_and_the_advice_is_true(folder, sequences):
    image = layers.Input(batch_shape=(1, STEPS, WIDTH))
    model = randomized(keras.Model(image, layers.LSTM(3, stateful=True)(image)))
    with pytest.raises(InputError, match="keeps state from one call to the next") as error:
        okd.export(model, "tflite_float32", path=folder / "stateful.tflite")
    assert "stateful=False" in error.value.fix
    plain = after(layers.LSTM(3))
    plain.set_weights(model.get_weights())
    okd.export(plain, "tflite_float32", path=folder / "stateless.tflite")


# ---------------------------------------------------------------- A: what recurrent layers cost

RECURRENT = {
    "lstm": (lambda: layers.LSTM(4), (STEPS, WIDTH), STEPS * (5 + 4) * 16, 160),
    "bidirectional": (lambda: layers.Bidirectional(layers.LSTM(4)), (STEPS, WIDTH), 2 * STEPS * 9 * 16, 320),
    "gru": (lambda: layers.GRU(4), (STEPS, WIDTH), STEPS * 9 * 12, 132 + 1),  # and the 1 of 1 - z
    "simple_rnn": (lambda: layers.SimpleRNN(4), (STEPS, WIDTH), STEPS * 9 * 4, 40),
    "other_activation": (lambda: layers.LSTM(4, activation="relu"), (STEPS, WIDTH), STEPS * 9 * 16, 160),
    "sequences": (lambda: layers.GRU(4, return_sequences=True), (STEPS, WIDTH), STEPS * 9 * 12, 132 + 1),
    "time_distributed": (
        lambda: layers.TimeDistributed(layers.Conv2D(3, 3)), (4, 6, 6, 2), 4 * 16 * 9 * 2 * 3, 57),
    "model_in_time": (
        lambda: layers.TimeDistributed(keras.Sequential([layers.Input((None, None, 2)), layers.Conv2D(3, 3),
                                                         layers.GlobalAveragePooling2D(), layers.Dense(2)])),
        (4, 6, 6, 2), 4 * (16 * 54 + 6), 65),
    "lstm_in_time": (lambda: layers.TimeDistributed(layers.LSTM(3)), (2, STEPS, WIDTH), 2 * STEPS * 8 * 12, 108),
    "cells": (lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), (STEPS, WIDTH),
              STEPS * (8 * 12 + 5 * 6), 150 + 1),
    # the file has the constants of its hard sigmoid beside 552 weights
    "conv_lstm": (lambda: layers.ConvLSTM2D(3, 3, padding="same", strides=2), (4, 6, 6, 2), 4 * 9 * 9 * 5 * 12, 558),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_macs_and_parameters_of_recurrent_layers_by_hand_in_profile_and_file(name, tmp_path):
    make, shape, macs, params = RECURRENT[name]
    model = after(make(), shape)
    summary = read(okd.export(model, "tflite_float32", path=tmp_path / "m.tflite").path)
    assert profile(model).macs == macs
    assert (summary.macs, summary.params) == (macs, params)


def test_attention_counts_its_projections_and_its_products(tmp_path):
    sequence = layers.Input((STEPS, WIDTH))
    model = randomized(keras.Model(sequence, layers.MultiHeadAttention(2, 3)(sequence, layers.Dense(WIDTH)(sequence))))
    macs = STEPS * WIDTH * WIDTH + 4 * STEPS * WIDTH * 6 + 2 * 2 * STEPS * STEPS * 3
    assert profile(model).macs == macs
    assert read(okd.export(model, "tflite_float32", path=tmp_path / "m.tflite").path).macs == macs


def test_an_integer_lstm_has_the_counts_of_the_float_one(lstm_files, lstm):
    files = {name: read(artifact.path) for name, artifact in lstm_files.items()}
    macs = STEPS * 3 * WIDTH * 4 + 2 * STEPS * 8 * 16 + 8 * 3
    assert {s.macs for s in files.values()} == {macs} and profile(lstm).macs == macs
    assert {s.params for s in files.values()} == {lstm.count_params()}


def test_a_budget_of_macs_sees_the_recurrent_layer_that_stays():
    sequence = layers.Input((STEPS, WIDTH))
    x = layers.Conv1D(8, 3, padding="same")(layers.Conv1D(40, 3, padding="same")(sequence))
    model = keras.Model(sequence, layers.LSTM(8)(x))
    stays = STEPS * 16 * 32
    plan = okd.plan_removal(model, keep_macs=0.6)
    assert plan.macs[0] == STEPS * (3 * 5 * 40 + 3 * 40 * 8) + stays
    assert stays < plan.macs[1] <= 0.6 * plan.macs[0]
    assert profile(okd.remove_filters(model, plan)).macs == plan.macs[1]
    with pytest.raises(InputError, match="cannot be reached"):  # the LSTM alone is 0.247 of them
        okd.plan_removal(model, keep_macs=0.25)


def test_an_open_number_of_steps_is_unknown_and_not_zero():
    sequence = layers.Input((None, WIDTH))
    model = keras.Model(sequence, layers.Bidirectional(layers.GRU(3))(sequence))
    assert math.isnan(profile(model).macs) and "?" in str(profile(model))


def convert(function, *shape: int) -> bytes:
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    with native_stderr():
        return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()


def test_a_loop_that_ends_when_its_values_say_so_has_unknown_macs_and_known_parameters():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(4, 4)) * 0.1, tf.float32)

    def call(x):
        return tf.while_loop(lambda y: tf.reduce_sum(y * y) > 0.1, lambda y: (y @ kernel,), (x,))[0]

    summary = read(convert(call, 1, 4))
    assert math.isnan(summary.macs) and summary.params == 16 + 1  # and the 0.1
    assert "?" in str(summary)


def test_a_counted_loop_runs_from_its_start_to_its_limit_in_its_steps():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(4, 4)), tf.float32)

    def call(x):
        return tf.while_loop(lambda i, y: i < 12, lambda i, y: (i + 3, y @ kernel), (2, x))[1]  # 2, 5, 8, 11

    assert read(convert(call, 1, 4)).macs == 4 * 16


def test_branches_show_their_parameters_and_no_macs():
    first, second = (tf.constant(np.random.default_rng(i).normal(size=(4, 4)), tf.float32) for i in (0, 1))

    def call(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ first, lambda: x @ second)

    summary = read(convert(call, 1, 4))
    assert "IF" in [op.op for op in summary.ops]
    assert summary.params >= 32 and math.isnan(summary.macs)


def test_a_growing_tensor_in_a_loop_is_refused_for_tflm_and_unrolled_it_runs(sequences, tmp_path):
    rolled, unrolled = (after(layers.GRU(3, return_sequences=True, unroll=u)) for u in (False, True))
    unrolled.set_weights(rolled.get_weights())
    expected = rolled(sequences[:4]).numpy()
    file = okd.export(rolled, "tflite_float32", path=tmp_path / "rolled.tflite")
    np.testing.assert_allclose(okd.predict(file, sequences[:4]), expected, atol=1e-5)
    with pytest.raises(InputError, match="known only while it runs") as error:
        okd.predict(file, sequences[:4], runtime="tflm")
    assert "unroll=True" in error.value.fix
    file = okd.export(unrolled, "tflite_float32", path=tmp_path / "unrolled.tflite")
    np.testing.assert_allclose(okd.predict(file, sequences[:4], runtime="tflm"), expected, atol=1e-5)


# ---------------------------------------------------------------- J: operators without outputs


def test_a_stream_is_inspected_timed_and_stored(streaming, folder, tool):
    path = folder / "stream.tflite"
    path.write_bytes(streaming)
    summary = read(path)
    assert summary.macs == WIDTH * 4 and summary.params == WIDTH * 4 + 4  # the kernel and the first state
    assert "ASSIGN_VARIABLE" in [op.op for op in summary.ops] and "ASSIGN_VARIABLE" in str(summary)
    assert "FULLY_CONNECTED" in tool("inspect_model", f"--model={path}").stdout
    ops = op_latency([path], runs=1)[0].ops
    assert [op.op for op in ops if op.macs] == ["FULLY_CONNECTED"]
    assert not {"ASSIGN_VARIABLE", "READ_VARIABLE", "CALL_ONCE", "VAR_HANDLE"} & {op.op for op in ops}
    bench = tool("benchmark", f"--models={path}", "--runs=1", "--per_op")
    assert bench.returncode == 0 and "FULLY_CONNECTED" in bench.stdout
    array = okd.export(path, "c_array", path=folder / "stream_data")
    assert read_c_array(array.path) == streaming
    with pytest.raises(InputError, match="streaming network"):
        okd.export(path, "tflm", path=folder / "stream_tflm")


def test_a_loop_is_timed_as_one_operator_with_all_its_macs(tmp_path):
    model = after(layers.GRU(4))
    file = okd.export(model, "tflite_float32", path=tmp_path / "m.tflite")
    loop = next(op for op in op_latency([file.path], runs=1)[0].ops if op.op == "WHILE")
    assert loop.macs == STEPS * 9 * 12 and loop.milliseconds > 0


# ---------------------------------------------------------------- okd.predict: an exported file on an array


def test_predict_takes_artifacts_paths_bytes_arrays_in_c_and_single_images(lstm_files, lstm, sequences, folder):
    expected = lstm(sequences[:5]).numpy()
    file = lstm_files["tflite_float32"]
    array = okd.export(file, "c_array", path=folder / "lstm_data")
    for given in (file, file.path, str(file.path), file.path.read_bytes(), array, array.path):
        np.testing.assert_allclose(okd.predict(given, sequences[:5]), expected, atol=1e-5)
    one = okd.predict(file, sequences[3], runtime="litert_reference")
    assert one.shape == (3,)
    np.testing.assert_allclose(one, expected[3], atol=1e-5)
    raw = okd.predict(lstm_files["tflite_int8"], sequences[:5], raw=True)
    assert raw.dtype == np.int8 and raw.shape == (5, 3)


def test_predict_runs_an_onnx_file_on_its_own_runtime(folder):
    model = after(layers.Dense(3), (4,))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    made = okd.export(model, "onnx", path=folder / "m.onnx")
    for given in (made, made.path):
        np.testing.assert_allclose(okd.predict(given, x), model(x).numpy(), atol=1e-5)


def test_predict_says_what_to_do_with_a_keras_model(lstm, sequences):
    with pytest.raises(InputError, match="Keras model") as error:
        okd.predict(lstm, sequences)
    assert "okd.export" in error.value.fix and "model.predict" in error.value.fix
    with pytest.raises(InputError, match="not a file"):
        runtimes.predict(lstm, sequences)
    with pytest.raises(InputError, match="not a file"):
        okd.predict(None, sequences)


def test_predict_refuses_what_would_be_quantized_twice(lstm_files, sequences):
    file = lstm_files["tflite_int8"]
    port = runtimes.load(file.path).input
    steps = port.quantize(sequences[:3])
    with pytest.raises(InputError, match="quantized already"):
        okd.predict(file, steps)
    np.testing.assert_array_equal(
        okd.predict(file, (steps.astype("float32") - port.zero_point) * port.scale, raw=True),
        okd.predict(file, sequences[:3], raw=True),
    )


def test_integer_inputs_without_a_scale_take_whole_numbers_only():
    spec = tf.TensorSpec((1, 4), tf.uint8)
    function = tf.function(lambda x: tf.cast(x, tf.float32) * 2).get_concrete_function(spec)
    with native_stderr():
        data = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module()).convert()
    pixels = np.array([[0, 1, 128, 255], [3, 2, 1, 0]], np.uint8)
    for x in (pixels, pixels.astype(np.float32), pixels.tolist()):
        np.testing.assert_array_equal(okd.predict(data, x), pixels.astype(np.float32) * 2)
    for bad in (pixels / 255, pixels.astype(np.float32) + 1, -pixels.astype(np.int32)):
        with pytest.raises(InputError, match="uint8 with no scale"):
            okd.predict(data, bad)
    large = tf.function(lambda x: x - 16_777_216).get_concrete_function(tf.TensorSpec((1, 1), tf.int32))
    with native_stderr():
        data = tf.lite.TFLiteConverter.from_concrete_functions([large], tf.Module()).convert()
    assert okd.predict(data, np.array([[16_777_217]]), raw=True).tolist() == [[1]]  # not a float32


def test_a_file_of_a_larger_batch_runs_image_by_image():
    kernel = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(okd.predict(convert(lambda x: x @ kernel, 8, 4), x), x @ kernel, atol=1e-5)


def test_one_array_for_several_inputs_is_refused_clearly():
    a, b = layers.Input((3,)), layers.Input((3,))
    model = keras.Model([a, b], layers.Add()([a, b]))
    with native_stderr():
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    with pytest.raises(InputError, match="2 inputs, and one ndarray came"):
        okd.predict(data, np.zeros((1, 3)))
