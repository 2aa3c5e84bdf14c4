"""quantize_aware(bits=...): kernels of few levels, in training, in the plain model behind it, and in the int8 file."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantization import data, fit, int8_kernels, kernels, net, sparse_net, zeros

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters import export, open_artifact
from orbit_kd.exporters.tflite.levels import _factor
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware, strip_quantization
from orbit_kd.quantization.levels import best_steps, levels_of, round_to_steps
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.summary import read


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_the_int8_file_holds_whole_numbers_of_the_grid_and_the_outputs_of_the_trained_model(tmp_path, bits):
    plain, (x, _) = sparse_net(), data()
    model = quantize_aware(plain, bits=bits)
    fit(model)
    path = export(model, "tflite_int8", path=tmp_path / "m.tflite").path
    for (name, kernel), values in zip(kernels(model).items(), int8_kernels(path), strict=True):
        assert np.abs(values).max() <= levels_of(bits), name
        assert not values[np.moveaxis(kernel, -1, 0) == 0].any(), name
    port = runtimes.load(path).output
    ours, theirs = model.predict(x, verbose=0), runtimes.predict(path, x)
    assert np.abs(ours - theirs).max() <= 3.01 * port.scale
    assert np.ptp(theirs, axis=0).min() > 4 * port.scale  # outputs that do not vary would agree anyhow


def test_biases_have_the_scale_of_input_and_kernel(tmp_path):
    model = quantize_aware(net(), bits={"conv": 3, "logits": 5}, calibration=data()[0])
    graph = Subgraph(parse(export(model, "tflite_int8", path=tmp_path / "m.tflite").path.read_bytes()))
    checked = 0
    for op in graph.operators:
        if graph.kernel(op) is None or len(op.inputs) < 3 or op.inputs[2] < 0:
            continue
        scale = [np.asarray(graph.tensors[int(i)].quantization.scale, np.float64) for i in op.inputs[:3]]
        np.testing.assert_allclose(scale[2], scale[0] * scale[1], rtol=1e-5)
        checked += 1
    assert checked >= 4


def test_layers_have_their_own_bits(tmp_path):
    model = quantize_aware(net(), bits={"block/*": 2, "conv": 4}, calibration=data()[0])
    counts = [len(np.unique(np.abs(values))) for values in int8_kernels(
        export(model, "tflite_int8", path=tmp_path / "m.tflite").path)]  # fmt: skip
    assert counts[0] <= 8 and counts[1] <= 2 and min(counts[2:]) > 30


def test_steps_are_trained_with_the_weights_and_zeros_stay():
    plain = sparse_net("magnitude")
    model = quantize_aware(plain, bits=3)
    steps = {v.name: v.numpy() for v in model.trainable_variables if "log_step" in v.name}
    assert len(steps) == len(kernels(model))
    fit(model)
    moved = {v.name: v.numpy() for v in model.trainable_variables if "log_step" in v.name}
    assert all(np.any(moved[name] != before) for name, before in steps.items())
    for name, before in zeros(plain).items():
        assert zeros(model)[name][before].all()


def test_training_lowers_the_loss_of_the_rounded_model():
    rounded = quantize_aware(net(), bits=2, calibration=data()[0])
    losses = fit(rounded, epochs=8).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_plain_model_behind_it_has_the_levels():
    model = quantize_aware(net(), bits=2, calibration=data()[0])
    fit(model, epochs=1)
    plain = strip_quantization(model)
    for name, kernel in kernels(plain).items():
        channels = np.abs(kernel).reshape(-1, kernel.shape[-1])
        assert all(len(np.unique(channel[channel > 0])) <= 1 for channel in channels.T), name


def test_saved_and_loaded_it_goes_on(tmp_path):
    model = quantize_aware(net(), bits=4, calibration=data()[0])
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model.predict(data()[0], verbose=0), again.predict(data()[0], verbose=0))
    fit(again, epochs=1)


@pytest.mark.parametrize(
    ("bits", "said"), [(1, "2 to 8"), (9, "2 to 8"), ({"conv": 1}, "'conv'"), ({"nowhere": 4}, "'nowhere'")]
)
def test_bits_out_of_range_or_of_no_layer_are_refused(bits, said):
    with pytest.raises(InputError, match=said):
        quantize_aware(net(), bits=bits)


def test_gradients_are_those_of_learned_step_size_quantization():
    kernel, log_step = tf.constant([[-9.0, -1.2, 0.4, 1.7]]), tf.Variable([[0.0]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        rounded = round_to_steps(kernel, log_step, bits=3)
    np.testing.assert_array_equal(rounded, [[-3.0, -1.0, 0.0, 2.0]])
    along, of_step = tape.gradient(rounded, [kernel, log_step])
    np.testing.assert_array_equal(along, [[0.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(of_step, [[-3.0 + 0.2 - 0.4 + 0.3]], atol=1e-6)


@given(st.integers(2, 6), st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_best_steps_are_no_worse_than_those_of_the_largest_weight(bits, values):
    kernel = np.array(values, np.float32)[:, None]

    def error(step):
        most = levels_of(bits)
        return np.square(np.clip(np.round(kernel / step), -most, most) * step - kernel).sum()

    step = best_steps(kernel, bits=bits, inner=[0])
    assert step.shape == (1, 1) and step > 0
    assert error(step) <= error(max(np.abs(kernel).max(), 1e-6) / levels_of(bits)) * (1 + 1e-5) + 1e-12


@given(st.data(), st.integers(2, 6))
@settings(deadline=None, max_examples=200)
def test_a_grid_is_found_again_from_what_the_converter_wrote(draw, bits):
    most = draw.draw(st.integers(1, levels_of(bits)))
    places = np.array([most, *draw.draw(st.lists(st.integers(-most, most), max_size=40))])
    towards = np.array(draw.draw(st.lists(st.sampled_from([-1e-4, 1e-4]), min_size=len(places), max_size=len(places))))
    stored = np.round(places * 127 / most + towards).astype(np.int8)
    factor = _factor(stored, levels_of(bits))
    found = np.round(stored / factor)
    assert np.abs(found * 127 / np.abs(found).max() - places * 127 / most).max() <= 1.01  # the same but for a rounding
    assert np.abs(found).max() <= most


def test_eight_bit_channels_are_left_alone():
    assert _factor(np.array([127, 3, -60, 45, 99, 20, -11], np.int8), 31) == 1
    assert _factor(np.zeros(4, np.int8), 31) == 1


def test_convolution_kernels_of_few_levels_fit_into_four_bits(tmp_path):
    model = quantize_aware(net(), bits={"conv": 4, "block/*": 3, "hidden": 4}, calibration=data()[0])
    plain = export(model, "tflite_int8", path=tmp_path / "m.tflite")
    packed = export(plain, "tflite_int4", path=tmp_path / "m4.tflite")
    assert packed.details["int4_kernels"] == 2 and packed.bytes < plain.bytes  # the dense kernel stays
    assert open_artifact(packed.path).target == "tflite_int4"
    figures = [(row.params, row.nonzero_params, row.macs) for row in (read(plain.path), read(packed.path))]
    assert figures[0] == figures[1]
    for runtime in ("litert_reference", "tflm"):
        files = [runtimes.predict(file.path, data()[0][:8], runtime=runtime) for file in (plain, packed)]
        np.testing.assert_array_equal(*files)


def test_a_file_of_many_levels_is_not_packed(tmp_path):
    plain = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=data()[0])
    with pytest.raises(InputError, match="No convolution kernel"):
        export(plain, "tflite_int4", path=tmp_path / "m4.tflite")
    assert not (tmp_path / "m4.tflite").exists()
