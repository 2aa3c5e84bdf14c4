"""What people bring to the converter: loops, LSTMs, whole numbers as input, operators of TFLite Micro, QAT models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.datasets import Data
from orbit_kd.errors import InputError
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import check, export
from orbit_kd.exporters.hls4ml import adders as hls4ml_adders
from orbit_kd.exporters.tflm import export as tflm
from orbit_kd.exporters.tflm.operators import operator_names
from orbit_kd.models import copies as sparsity_models
from orbit_kd.pipeline.compress import compress
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.quantization.aware import quantize_aware, strip_quantization
from orbit_kd.quantization.layers import QuantizedLayer
from orbit_kd.tflite.reader import parse

L = keras.layers
INTEGERS = ("tflite_int8", "tflite_int16x8")


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for v in model.variables:
        v.assign(rng.normal(0, 0.5, v.shape))
    return model


def series(*middle: L.Layer, shape: tuple[int, ...] = (5, 4)) -> keras.Model:
    return randomize(keras.Sequential([L.Input(shape), *middle, L.Flatten(), L.Dense(3, name="last")]))


def noise(model: keras.Model, count: int = 24) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *model.input_shape[1:])).astype(np.float32)


def each(file: Path, x: np.ndarray, runtime: str = "litert", *, raw: bool = False) -> np.ndarray:
    """Outputs of each image by a fresh interpreter, which has no state of the image before."""
    return np.concatenate([runtimes.predict(file, x[i : i + 1], runtime=runtime, raw=raw) for i in range(len(x))])


def error(file: Path, model: keras.Model, x: np.ndarray, runtime: str = "litert") -> float:
    """Largest difference to Keras, as a part of the largest output."""
    expected = model(tf.cast(x, model.inputs[0].dtype)).numpy()
    return float(np.abs(each(file, x, runtime) - expected).max() / np.abs(expected).max())


def mean_error(file: Path, model: keras.Model, x: np.ndarray) -> float:
    """Mean difference to Keras, as a part of the largest output."""
    expected = model(x).numpy()
    return float(np.abs(each(file, x) - expected).mean() / np.abs(expected).max())


def names(file: Path) -> list[str]:
    return operator_names(parse(file.read_bytes()))


# ---------------------------------------------------------------- loops


class Own(L.Layer):
    """A layer of a user, with a recurrent one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = L.GRU(3, name="hidden_gru")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.inner(x)


LOOPS: dict[str, Callable[[], keras.Model]] = {
    "'a' (SimpleRNN)": lambda: series(L.SimpleRNN(3, name="a")),
    "'a' (LSTM)": lambda: series(L.LSTM(3, activation="relu", name="a")),
    "'masked' (LSTM)": lambda: series(L.Masking(), L.LSTM(3, name="masked")),
    "'forward_a' (GRU), 'backward_a' (GRU)": lambda: series(L.Bidirectional(L.GRU(3, name="a"))),
    "'a' (RNN of GRUCell)": lambda: series(L.RNN(L.GRUCell(3), name="a")),
    "'nested' (GRU)": lambda: series(keras.Sequential([L.Input((5, 4)), L.GRU(3, name="nested")])),
    "'a' (ConvLSTM1D)": lambda: series(L.ConvLSTM1D(2, 3, name="a"), shape=(3, 6, 2)),
    "'hidden_gru' (GRU)": lambda: series(Own()),
    "its loop 'sequential": lambda: series(L.Lambda(lambda x: tf.map_fn(lambda a: a * 2 + 1, x))),
}


@pytest.mark.parametrize("told", LOOPS)
def test_a_loop_is_refused_by_name_before_any_image_is_read(told, tmp_path):
    model = LOOPS[told]()
    with pytest.raises(InputError, match="cannot become tflite_int8") as refused:
        export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=iter(lambda: pytest.fail("read"), None))
    assert told in refused.value.what and refused.value.what.count("(") == told.count("(")
    assert ("unroll=True" in refused.value.fix) == ("ConvLSTM" not in told and "(" in told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [L.GRU(3, return_sequences=True), L.LSTM(3, activation="relu")])
def test_unrolled_as_the_refusal_says_it_has_the_same_outputs_and_exports_right(layer, tmp_path):
    model = series(layer)
    with pytest.raises(InputError, match="unroll=True"):
        check(model, INTEGERS[:1])
    unrolled = series(type(layer).from_config({**layer.get_config(), "unroll": True}))
    unrolled.set_weights(model.get_weights())
    x = noise(model)
    np.testing.assert_allclose(unrolled(x), model(x), atol=1e-5)
    for target in INTEGERS:
        check(unrolled, [target])
        file = export(unrolled, target, path=tmp_path / "m.tflite", calibration=x).path
        assert error(file, model, x) < 0.06


def test_int16x8_of_an_lstm_names_both_ways_out(tmp_path):
    model = series(L.LSTM(3, name="a"))
    with pytest.raises(InputError, match=r"'a' \(LSTM\)") as refused:
        export(model, "tflite_int16x8", path=tmp_path / "m.tflite", calibration=noise(model))
    assert "unroll=True" in refused.value.fix and "tflite_int8" in refused.value.fix


def test_what_has_no_loop_left_passes_the_check():
    check(series(L.LSTM(3)), ["tflite_int8", "c_array", "tflm", "tflite_float32"])
    check(series(L.GRU(3)), ["tflite_float32", "onnx"])
    check(series(L.TimeDistributed(L.Dense(2))), INTEGERS)
    with pytest.raises(InputError, match="tflite_int8"):
        check(series(L.GRU(3)), ["vela:ethos-u85-256"])  # it is made of the int8 file


def test_compress_refuses_a_loop_before_the_teacher_sees_an_image(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype(np.float32)
    y = np.arange(12) % 3
    model = randomize(keras.Sequential([L.Input((8, 8, 1)), L.Conv2D(4, 3), L.Reshape((6, 24)), L.GRU(3), L.Dense(3)]))
    monkeypatch.setattr("orbit_kd.pipeline.compress._tell_of_chance", lambda *_: pytest.fail("evaluated"))
    data = Data((x, y), (x[:9], y[:9]), (x[:6], y[:6]))
    with pytest.raises(InputError, match=r"cannot become tflite_int8.*\(GRU\)"):
        compress(model, data, recipe=Recipe(unknown="keep"), workdir=tmp_path / "work")


# ---------------------------------------------------------------- LSTMs in int8


LSTMS: dict[str, Callable[[], keras.Model]] = {
    "one": lambda: series(L.LSTM(4)),
    "both ways": lambda: series(L.Bidirectional(L.LSTM(4))),
    "both ways, sequences": lambda: series(L.Bidirectional(L.LSTM(4, return_sequences=True))),
}


@pytest.mark.parametrize("name", LSTMS)
def test_int8_lstms_are_near_keras_and_alike_on_all_runtimes(name, tmp_path):
    model = LSTMS[name]()
    x = noise(model)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    assert mean_error(file, model, x) < 0.02
    raw = {r: each(file, x, r, raw=True).astype(int) for r in ("litert", "litert_reference", "tflm")}
    for runtime in ("litert", "tflm"):
        assert np.abs(raw[runtime] - raw["litert_reference"]).max() <= 1


def test_a_cell_that_stays_small_is_read_right(tmp_path):
    model = keras.Sequential([L.Input((5, 4)), L.LSTM(4), L.Dense(3)])
    for v in model.variables:
        v.assign(np.random.default_rng(2).normal(0, 0.1, v.shape))
    x = noise(model)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    assert error(file, model, x) < 0.05 and error(file, model, x, "tflm") < 0.05


def test_one_hot_keeps_its_zeros(tmp_path):
    number = L.Input((4,), dtype="int32")
    model = randomize(keras.Model(number, L.Dense(3)(L.Flatten()(tf.one_hot(number, 6)))))
    x = np.random.default_rng(0).integers(0, 6, (24, 4)).astype(np.float32)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    assert runtimes.load(file).input.dtype == np.int32
    assert error(file, model, x) < 0.05


# ---------------------------------------------------------------- whole numbers as input


def tail(x: tf.Tensor) -> tf.Tensor:
    return L.Dense(3)(L.Flatten()(L.Conv2D(4, 3, activation="relu")(x)))


def pixels(then: Callable[[tf.Tensor], tf.Tensor], dtype: str = "uint8") -> keras.Model:
    image = L.Input((6, 6, 2), dtype=dtype)
    return randomize(keras.Model(image, tail(then(image))))


PIXELS: dict[str, Callable[[], keras.Model]] = {
    "layer": lambda: pixels(L.Rescaling(1 / 127.5, offset=-1)),
    "operation": lambda: pixels(lambda x: tf.cast(x, tf.float32) / 255.0),
    "nested": lambda: pixels(keras.Sequential([L.Input((6, 6, 2), dtype="uint8"), L.Rescaling(1 / 255)])),
    "int32": lambda: pixels(L.Rescaling(1 / 255), "int32"),
}


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (24, 6, 6, 2)).astype(np.float32)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_as_whole_numbers_give_a_file_of_int8_alone(name, grey, tmp_path):
    model = PIXELS[name]()
    grey.flat[:2] = 0, 255
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=grey).path
    assert names(file) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    port = runtimes.load(file).input
    assert (port.dtype, port.scale, port.zero_point) == (np.int8, 1.0, -128)  # a step a grey level
    assert error(file, model, grey) < 0.05
    assert model.inputs[0].dtype.is_integer  # the user's is left alone
    if name != "nested":
        return
    qat = quantize_aware(model, calibration=grey)
    trained = export(qat, "tflite_int8", path=tmp_path / "q.tflite").path
    assert not {"CAST", "DEQUANTIZE"} & set(names(trained)) and error(trained, model, grey) < 0.05
    assert export(file, "tflm", path=tmp_path / "tflm", calibration=grey).details["golden_difference"] <= 1


@pytest.mark.parametrize("bad", [lambda x: x / 255, lambda x: x - 128, lambda x: x * 2])
def test_calibration_that_does_not_fit_whole_numbers_is_refused(bad, grey, tmp_path):
    for target in INTEGERS:
        with pytest.raises(InputError, match=r"and the input of model .* is uint8"):
            export(PIXELS["layer"](), target, path=tmp_path / "m.tflite", calibration=bad(grey))


def embedding(dtype: str, *, nested: bool = False) -> keras.Model:
    inner = [L.Embedding(1000, 4), L.GlobalAveragePooling1D()]
    if nested:
        inner = [keras.Sequential([L.Input((6,), dtype=dtype), *inner])]
    return randomize(keras.Sequential([L.Input((6,), dtype=dtype), *inner, L.Dense(3)]))


@pytest.mark.parametrize(("dtype", "nested"), [("int32", False), ("float32", False), ("float32", True)])
def test_indices_stay_whole_numbers_whatever_the_input_of_the_network(dtype, nested, tmp_path):
    model = embedding(dtype, nested=nested)
    x = np.random.default_rng(4).integers(0, 1000, (24, 6)).astype(np.float32)
    for target in INTEGERS:
        file = export(model, target, path=tmp_path / "m.tflite", calibration=x).path
        assert names(file)[0] == "GATHER" and runtimes.load(file).input.dtype == np.int32
        assert error(file, model, x) < 0.05
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    with pytest.raises(InputError, match="indices, not amounts"):
        export(file, "tflm", path=tmp_path / "tflm")
    made = export(file, "tflm", path=tmp_path / "tflm", calibration=x)
    settings = (tmp_path / "tflm" / "model_settings.h").read_text()
    assert "using Input = std::int32_t;" in settings and "kInputScale = 1" in settings
    assert made.details["golden_difference"] <= 1
    with pytest.raises(InputError, match="whole numbers from its input on"):
        quantize_aware(model)


# ---------------------------------------------------------------- operators of TFLite Micro


def image_net(layer: Callable[[tf.Tensor], tf.Tensor]) -> keras.Model:
    image = L.Input((6, 6, 2))
    return randomize(keras.Model(image, L.Dense(3)(L.Flatten()(layer(L.Conv2D(4, 3, padding="same")(image))))))


@pytest.mark.parametrize(
    ("layer", "operator", "against"),
    [
        (L.ELU(), "ELU", "litert"),
        (tf.math.ceil, "CEIL", "litert"),
        (lambda x: tf.nn.depth_to_space(x, 2), "DEPTH_TO_SPACE", "litert"),
        (tf.abs, "ABS", "litert_reference"),
    ],
)
def test_operators_that_only_tflite_micro_and_the_fast_kernels_have_are_taken(layer, operator, against, tmp_path):
    model = image_net(layer)
    x = noise(model)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    assert operator in names(file)
    made = export(file, "tflm", path=tmp_path / "tflm", calibration=x)
    assert (made.details["compared_with"], made.details["tolerance"]) == (against, 1)
    assert made.details["golden_difference"] <= 1
    parity = tflm_parity(file, x)
    assert (parity.ran, parity.against, parity.compared) == (True, against, len(x))
    assert parity.max_lsb <= 1 or operator == "CEIL"  # where a step before it jumps


def test_a_larger_tolerance_can_be_given_and_is_told(tmp_path, monkeypatch):
    model = image_net(L.ReLU())
    x = noise(model)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    load = runtimes.load

    class Off:
        """LiteRT, five steps away."""

        def __init__(self, runner: runtimes.Runner) -> None:
            self.runner, self.input, self.output = runner, runner.input, runner.output

        def raw(self, given: np.ndarray) -> np.ndarray:
            out = self.runner.raw(given).astype(int)
            return np.where(out < 0, out + 5, out - 5).astype(np.int8)

    def loaded(model: runtimes.Model, *, runtime: str = "litert", threads: int = 1) -> object:
        runner = load(model, runtime=runtime, threads=threads)
        return Off(runner) if runtime == "litert_reference" else runner

    monkeypatch.setattr(tflm.runtimes, "load", loaded)
    with pytest.raises(InputError, match=r"differ by [456] steps") as refused:
        export(file, "tflm", path=tmp_path / "tflm", calibration=x)
    assert "tolerance=" in refused.value.fix
    details = export(file, "tflm", path=tmp_path / "tflm", calibration=x, tolerance=6).details
    assert details["tolerance"] == 6 and 4 <= details["golden_difference"] <= 6
    with pytest.raises(InputError, match="tolerance=-1"):
        export(file, "tflm", path=tmp_path / "tflm", calibration=x, tolerance=-1)


# ---------------------------------------------------------------- quantization-aware training


@pytest.mark.parametrize(
    "layer",
    [L.SeparableConv1D(3, 3), L.LSTM(3), L.LayerNormalization(), L.Activation("elu")],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_the_int8_file_would_compute_in_float_is_refused_before_training(layer, tmp_path):
    model = series(L.Conv1D(4, 3), layer, shape=(8, 4))
    with pytest.raises(InputError, match="in float") as refused:
        quantize_aware(model)
    assert "quantize after training" in refused.value.fix
    x = noise(model)
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path  # as the refusal says
    assert error(file, model, x) < 0.08


def two_inputs() -> keras.Model:
    a, b = L.Input((6,), name="a"), L.Input((4,), name="b")
    return randomize(
        keras.Model([a, b], L.Dense(2)(L.Concatenate()([L.Dense(3, activation="relu")(a), L.Dense(3)(b)])))
    )


def test_calibration_of_two_inputs_is_taken_in_every_form_and_sets_the_observed_ranges():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-2, 3, (40, 6)).astype(np.float32), rng.uniform(-0.5, 0.25, (40, 4)).astype(np.float32)
    y = np.zeros(40)
    named = {"a": a, "b": b}
    forms = {
        "arrays": [a, b],
        "by name": named,
        "labelled": tf.data.Dataset.from_tensor_slices(((a, b), y)).batch(8),
        "named batches": tf.data.Dataset.from_tensor_slices((named, y)).batch(8),
        "bare": tf.data.Dataset.from_tensor_slices((a, b)).batch(8),
        "list": [((a[:20], b[:20]), y[:20]), ((a[20:], b[20:]), y[20:])],
    }
    for form, calibration in forms.items():
        model = quantize_aware(two_inputs(), calibration=calibration)
        found = [
            [float(v) for v in layer.ranges["inputs"]]
            for _, layer in sparsity_models.named_layers(model)
            if isinstance(layer, QuantizedLayer) and "inputs" in layer.ranges
        ]
        limits = [[float(x.min()), float(x.max())] for x in (a, b)]
        np.testing.assert_allclose(sorted(found), sorted(limits), rtol=1e-6, err_msg=form)
    with pytest.raises(InputError, match="what the model takes"):
        quantize_aware(two_inputs(), calibration=tf.data.Dataset.from_tensor_slices(a).batch(8))
    with pytest.raises(InputError, match=r"shape \(4,\)"):
        quantize_aware(two_inputs(), calibration=[b, a])


@pytest.mark.parametrize("target", ["onnx", "hls4ml", "tflite_float32", "tflite_int16x8"])
def test_a_quantization_aware_model_is_refused_by_name_and_its_plain_form_taken(target, tmp_path):
    model = image_net(L.ReLU())
    x = noise(model)
    qat = quantize_aware(model, calibration=x)
    with pytest.raises(InputError, match="wrapped by QuantizedLayer") as refused:
        export(qat, target, path=tmp_path / "m", calibration=x)
    assert "okd.strip_quantization(model)" in refused.value.fix
    if target == "onnx":
        file = export(strip_quantization(qat), target, path=tmp_path / "m.onnx", calibration=x).path
        np.testing.assert_allclose(runtimes.predict(file, x, runtime="onnx"), model(x), atol=1e-4)


# ---------------------------------------------------------------- hls4ml


def test_a_kernel_without_zeros_is_counted_once(monkeypatch):
    pytest.importorskip("da4ml")
    jobs = []

    def job(name: str, request: dict, *, scratch: str, failure: str) -> dict[str, int]:
        with np.load(Path(scratch, request["kernels"])) as kernels:
            jobs.extend(kernels.files)
            return {key: int(np.count_nonzero(kernels[key])) for key in kernels.files}

    monkeypatch.setattr(hls4ml_adders, "run_job", job)
    full, holed = np.full((4, 3), 5), np.array([[1, 0], [2, 3]])
    told = hls4ml_adders.count_adders({"full": full, "holed": holed}, limit=100)
    assert len(jobs) == 3
    assert told["full"] == {"adders": 12, "dense_adders": 12, "zeros": 0}
    assert told["holed"] == {"adders": 3, "dense_adders": 4, "zeros": 1}
