"""quantize_aware: it trains as the int8 file computes, keeps every zero, and leaves the source model alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.distillation import Distiller, LogitsDistillation
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.models.copies import named_layers
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware, strip_quantization
from orbit_kd.quantization.layers import QuantizedLayer
from orbit_kd.quantization.table import quantize_table
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.summary import read

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(n=96):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8, 8, 4)).astype("float32")
    return x, (x.mean((1, 2)) @ rng.normal(size=(4, 5))).argmax(1)


def randomize(model):
    """Every variable random, BatchNormalization's too, some of its gammas negative."""
    rng = np.random.default_rng(3)
    for v in model.variables:
        if v.dtype.is_floating:
            v.assign(rng.uniform(0.5, 1.5, v.shape) if "variance" in v.name else rng.normal(0, 0.3, v.shape))
    return model


def net():
    """Rescaling, a nested convolution block, a residual add, a TF operation, dense layers."""
    block = keras.Sequential(
        [
            L.Input((8, 8, 8)),
            L.Conv2D(8, 3, padding="same", use_bias=False, name="inner_conv"),
            L.BatchNormalization(),
            L.ReLU(),
        ],
        name="block",
    )
    image = L.Input((8, 8, 4))
    x = L.Rescaling(0.5, offset=0.1)(image)
    x = L.ReLU()(L.BatchNormalization(name="bn")(L.Conv2D(8, 3, padding="same", name="conv")(x)))
    x = L.Add()([x, block(x)]) * 1.5
    x = L.Dense(8, activation="relu", name="hidden")(L.Flatten()(L.AveragePooling2D(4)(x)))
    return randomize(keras.Model(image, L.Dense(5, name="logits")(x)))


def sparse_net(pattern="2:4"):
    return strip(sparsify(net(), pattern))


def kernels(model):
    return {
        name: layer.kernel.numpy()
        for name, layer in named_layers(model)
        if isinstance(getattr(layer, "kernel", None), tf.Variable)
    }


def zeros(model):
    return {name: kernel == 0 for name, kernel in kernels(model).items()}


def assert_same_zeros(before, after):
    assert before and before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def fit(model, *, epochs=2, optimizer=None, graph=False, **kwargs):
    """Three steps an epoch; eager unless the test is about graphs: tracing the layers takes longer than six steps."""
    model.compile(optimizer or keras.optimizers.Adam(1e-2), LOSS, metrics=["accuracy"], run_eagerly=not graph)
    return model.fit(*data(), epochs=epochs, verbose=0, **kwargs)


def int8_kernels(path):
    """(operator's output name, values as stored) of each convolution and dense kernel of a file."""
    flat = parse(path.read_bytes())
    graph, found = flat.subgraphs[0], []
    for op in graph.operators:
        for index in op.inputs[1:2]:
            tensor = graph.tensors[index]
            stored = flat.buffers[tensor.buffer].data
            if stored is not None and len(tensor.shape) in (2, 4) and tensor.type == 9:
                found.append(np.asarray(stored, np.uint8).view(np.int8).reshape(tensor.shape))
    return found


# ---------------------------------------------------------------- the zeros


@pytest.mark.parametrize("pattern", ["2:4:shared", "magnitude"])
def test_fit_moves_every_kernel_and_no_zero(pattern):
    plain = sparse_net(pattern)
    model = quantize_aware(plain)
    before, values = zeros(model), kernels(model)
    assert_same_zeros(zeros(plain), before)
    # Decay, momentum and a clipped norm all touch weights that have no gradient.
    fit(model, optimizer=keras.optimizers.AdamW(1e-2, weight_decay=0.1, clipnorm=1.0), graph=True)
    assert_same_zeros(before, zeros(model))
    assert all((values[name] != kernel).any() for name, kernel in kernels(model).items())


def test_the_source_model_stays_bit_for_bit_as_it_was():
    plain = sparse_net()
    config, before = plain.to_json(), [w.copy() for w in plain.get_weights()]
    model = quantize_aware(plain, calibration=data()[0])
    fit(model)
    assert plain.to_json() == config
    for a, b in zip(before, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not {id(v) for v in plain.variables} & {id(v) for v in model.variables}


def test_user_callbacks_in_any_order_see_the_zeros(tmp_path):
    model = quantize_aware(sparse_net())
    before, seen = zeros(model), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(zeros(self.model))

        on_train_batch_end = on_epoch_end

    stop = keras.callbacks.EarlyStopping("loss", patience=5, restore_best_weights=True, min_delta=1e9)
    keep = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    fit(model, callbacks=[Look(), stop, keep, Look()])
    for now in [*seen, zeros(model), zeros(load_model(tmp_path / "1.keras"))]:
        assert_same_zeros(before, now)


def test_zeros_of_layers_whose_kernel_is_not_rounded_are_kept_too():
    image = L.Input((8, 8, 4))
    layer = L.Conv1DTranspose(8, 2, name="up")
    plain = randomize(keras.Model(image, L.Dense(5)(L.Flatten()(layer(L.Reshape((64, 4))(image))))))
    layer.kernel.assign(layer.kernel * (np.arange(4) % 2))
    model = quantize_aware(plain)
    fit(model)
    assert (zeros(model)["up"] == zeros(plain)["up"]).all() and zeros(plain)["up"].mean() == 0.5
    assert quantize_table(model)["up"].quantized == ("output",)


def test_a_dense_model_has_no_mask_and_stays_dense():
    model = quantize_aware(net())
    assert not any("mask" in v.name for v in model.variables)
    fit(model)
    assert all(row.density in (None, 1.0) for row in quantize_table(model))


# ---------------------------------------------------------------- the int8 file


@pytest.mark.parametrize("how", ["fit", "distiller", "calibration"])
def test_the_int8_file_has_the_zeros_the_groups_and_the_outputs_of_the_trained_model(tmp_path, how):
    plain, (x, _) = sparse_net(), data()
    model = quantize_aware(plain, calibration=x if how == "calibration" else None)
    if how == "fit":
        fit(model, graph=True)
    elif how == "distiller":
        distiller = Distiller(model, teacher=net(), losses=[LogitsDistillation(temperature=2.0)])
        distiller.compile("adam", LOSS)
        distiller.fit(*data(), epochs=2, verbose=0)
    assert_same_zeros(zeros(plain), zeros(model))
    artifact = export(model, "tflite_int8", path=tmp_path / "m.tflite")
    assert artifact.details == {"quantization_aware": True}
    checks = check_n_m(artifact.path, n=2, m=4)
    assert len(checks) == 4 and all(check.ok for check in checks)
    stored = int8_kernels(artifact.path)
    for (name, kernel), values in zip(kernels(model).items(), stored, strict=True):
        # (ky, kx, in, out) -> (out, ky, kx, in); (in, out) -> (out, in)
        kernel = np.moveaxis(kernel, -1, 0)
        assert not values[kernel == 0].any(), name
        scale = np.abs(kernel).max(axis=tuple(range(1, kernel.ndim)), keepdims=True) / 127
        # A folded BatchNormalization may turn a channel's sign.
        np.testing.assert_allclose(np.abs(values), np.abs(kernel / scale), atol=0.51, err_msg=name)
        assert values.min() >= -127
    port = runtimes.load(artifact.path).output
    ours, theirs = model(x).numpy(), runtimes.predict(artifact.path, x)
    assert np.abs(ours - theirs).max() <= 3.01 * port.scale
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.97
    assert np.ptp(theirs, axis=0).min() > 4 * port.scale  # outputs that do not vary would agree anyhow


HEAD = {
    "conv, BatchNormalization, ReLU": (lambda x: L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3)(x))), 1),
    "conv, BatchNormalization, Activation": (
        lambda x: L.Activation("relu")(L.BatchNormalization()(L.Conv2D(8, 3, use_bias=False)(x))),
        1,
    ),
    "depthwise, BatchNormalization, ReLU6": (lambda x: L.ReLU(6.0)(L.BatchNormalization()(L.DepthwiseConv2D(3)(x))), 1),
    "transposed, BatchNormalization": (
        lambda x: L.BatchNormalization()(L.Conv2DTranspose(8, 3, strides=2, padding="same")(x)),
        1,
    ),
    "separable": (lambda x: L.SeparableConv2D(8, 3)(x), 2),
    "split over nested models": (
        lambda x: L.ReLU()(L.BatchNormalization()(keras.Sequential([L.Input(x.shape[1:]), L.Conv2D(8, 3)])(x))),
        1,
    ),
    "BatchNormalization before the conv": (lambda x: L.Conv2D(8, 3)(L.ReLU()(L.BatchNormalization()(x))), 3),
    "Normalization": (lambda x: L.Conv2D(8, 3)(L.Normalization(mean=[0.5] * 4, variance=[2.0] * 4)(x)), 3),
    "slices and TF operations": (lambda x: 1.0 - x[:, 1:7, 1:7, :] * 2.0, 3),
    "PReLU": (lambda x: L.PReLU(shared_axes=[1, 2])(L.Conv2D(8, 3)(x)), 2),
    "swish": (lambda x: L.Conv2D(8, 3, activation="swish")(x), 3),
    "squeeze and excite": (
        lambda x: L.Multiply()([x, L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))]),
        4,
    ),
    "concatenation": (lambda x: L.Concatenate()([L.Conv2D(4, 3, padding="same")(x), L.MaxPooling2D(1)(x)]), 3),
    "a shared conv": (
        lambda x: (lambda conv, y: L.Add()([conv(y), conv(L.MaxPooling2D(1)(y))]))(L.Conv2D(8, 1), L.Conv2D(8, 1)(x)),
        5,
    ),
}


@pytest.mark.parametrize("name", HEAD)
def test_layers_become_int8_operators_with_the_same_results(tmp_path, name):
    make, operators = HEAD[name]
    image = L.Input((8, 8, 4))
    plain = randomize(keras.Model(image, L.Dense(5)(L.Flatten()(make(image)))))
    x, _ = data()
    model = quantize_aware(plain, calibration=x)
    artifact = export(model, "tflite_int8", path=tmp_path / "m.tflite")
    found = [op.op for op in read(artifact.path).ops if op.op not in ("RESHAPE", "QUANTIZE")]
    assert len(found) == operators + 1, found  # and the dense layer
    ours, theirs = model(x).numpy(), runtimes.predict(artifact.path, x)
    assert np.abs(ours - theirs).max() <= 5 * runtimes.load(artifact.path).output.scale
    # and both are near the float model
    assert np.abs(ours - plain(x).numpy()).max() <= 0.15 * np.abs(ours).max()


def test_a_softmax_is_not_rounded_twice(tmp_path):
    image = L.Input((8, 8, 4))
    plain = randomize(keras.Model(image, L.Dense(5, activation="softmax")(L.Flatten()(L.Conv2D(4, 3)(image)))))
    model = quantize_aware(plain, calibration=data()[0])
    assert quantize_table(model)[plain.layers[-1].name].quantized == ("kernel", "preactivation")
    x = data()[0]
    path = export(model, "tflite_int8", path=tmp_path / "m.tflite").path
    assert np.abs(model(x).numpy() - runtimes.predict(path, x)).max() <= 2 / 256


def test_a_channel_of_zeros_and_a_dead_relu_convert(tmp_path):
    image = L.Input((8, 8, 4))
    x = L.Conv2D(4, 3, activation="relu", name="conv")(image)
    plain = randomize(keras.Model(image, L.Dense(5)(L.Flatten()(x))))
    plain.get_layer("conv").kernel.assign(plain.get_layer("conv").kernel * [0.0, 1, 1, 1])
    model = quantize_aware(plain)
    fit(model)
    model.get_layer("conv").layer.bias.assign([-1e3] * 4)  # from here on the ReLU gives zeros only
    path = export(model, "tflite_int8", path=tmp_path / "m.tflite").path
    assert not int8_kernels(path)[0][0].any()
    assert np.isfinite(runtimes.predict(path, data()[0])).all()


def test_a_filter_pruned_model_trains_and_exports(tmp_path):
    student = remove_filters(net(), plan_removal(net(), criterion="l1_norm", ratio=0.5, unknown="keep"))
    model = quantize_aware(strip(sparsify(student, "magnitude", sparsity=0.5)))
    before = zeros(model)
    fit(model)
    assert_same_zeros(before, zeros(model))
    export(model, "tflite_int8", path=tmp_path / "m.tflite")


def test_training_lowers_the_loss_of_the_rounded_model():
    keras.utils.set_random_seed(1)
    history = fit(quantize_aware(sparse_net(), calibration=data()[0]), epochs=8, graph=True).history["loss"]
    assert history[-1] < 0.9 * history[0]


def test_the_model_rounds_as_soon_as_it_knows_its_ranges():
    plain, (x, _) = net(), data()
    exact = plain(x).numpy()
    blank = quantize_aware(plain)(x).numpy()  # kernels only
    known = quantize_aware(plain, calibration=x)(x).numpy()
    assert 0 < np.abs(blank - exact).max() < np.abs(exact).max() * 0.1
    assert 0 < np.abs(known - exact).max() < np.abs(exact).max() * 0.1
    assert len(np.unique(known)) <= 256 < len(np.unique(blank))


# ---------------------------------------------------------------- training around it


def test_saved_and_loaded_it_computes_the_same_and_goes_on_keeping_its_zeros(tmp_path):
    model = quantize_aware(sparse_net())
    before = zeros(model)
    fit(model)
    path = save_model(model, tmp_path / "qat.keras")
    loaded = load_model(path)
    x, _ = data()
    np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
    fit(loaded)
    assert_same_zeros(before, zeros(loaded))
    export(loaded, "tflite_int8", path=tmp_path / "m.tflite")


def test_a_process_that_imported_nothing_of_it_loads_the_file(tmp_path):
    path = save_model(quantize_aware(net()), tmp_path / "qat.keras")
    code = f"import orbit_kd; print(type(orbit_kd.load_model({str(path)!r}).get_layer('conv')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "QuantizedLayer", done.stderr


def test_a_frozen_layer_stays_frozen():
    plain = net()
    plain.get_layer("conv").trainable = False
    model = quantize_aware(plain)
    before = model.get_layer("conv").get_weights()[0].copy()
    fit(model)
    np.testing.assert_array_equal(before, model.get_layer("conv").get_weights()[0])
    assert len(model.trainable_variables) == len(plain.trainable_variables)


def test_strip_quantization_gives_the_trained_weights_in_plain_layers():
    model = quantize_aware(sparse_net())
    fit(model)
    plain = strip_quantization(model)
    assert not any(isinstance(layer, QuantizedLayer) for _, layer in named_layers(plain))
    for (name, ours), theirs in zip(kernels(plain).items(), kernels(model).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    before = zeros(plain)
    fit(plain)
    assert_same_zeros(before, zeros(plain))
    with pytest.raises(InputError, match="not quantization-aware"):
        strip_quantization(plain)


def test_the_table_says_what_each_layer_got():
    model = quantize_aware(sparse_net())
    table = quantize_table(model)
    assert table["rescaling"].quantized == ("inputs", "product", "output")
    assert table["conv"].quantized == ("kernel",) and table["conv"].density == 0.5
    assert table["conv"].note == "the next layer is fused into it"
    assert table["bn"].note == "folded into the layer before"
    assert table["block/inner_conv"].quantized == ("kernel",)
    assert table["logits"].quantized == ("kernel", "output") and table["logits"].note == "no ranges yet"
    fit(model)
    assert "no ranges yet" not in str(quantize_table(model))


# ---------------------------------------------------------------- what is refused


def test_wrapped_models_are_refused_and_told_to_strip():
    with pytest.raises(InputError, match=r"(?s)wrapped by SparseLayer.*strip it first"):
        quantize_aware(sparsify(net(), "2:4"))
    with pytest.raises(InputError, match=r"(?s)wrapped by QuantizedLayer.*strip_quantization"):
        quantize_aware(quantize_aware(net()))


def test_models_with_nothing_to_quantize_or_no_graph_are_refused():
    image = L.Input((8, 8, 4))
    with pytest.raises(InputError, match="no layer whose kernel"):
        quantize_aware(keras.Model(image, L.ReLU()(image)))
    with pytest.raises(InputError, match="is a path"):
        quantize_aware("model.keras")

    class Own(keras.Model):
        pass

    with pytest.raises(InputError, match="subclassed"):
        quantize_aware(Own())


def test_calibration_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"shape \(4, 4, 4\)"):
        quantize_aware(net(), calibration=np.zeros((8, 4, 4, 4), "float32"))
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_aware(net(), calibration=np.full((8, 8, 8, 4), np.nan, "float32"))


def test_an_export_without_ranges_is_refused(tmp_path):
    with pytest.raises(InputError, match="no range yet"):
        export(quantize_aware(net()), "tflite_int8", path=tmp_path / "m.tflite")


def test_a_layer_that_would_compute_in_float_is_refused_by_the_operators_name():
    image = L.Input((8, 8, 4))
    x = L.LayerNormalization()(L.Conv2D(4, 3)(image))
    plain = randomize(keras.Model(image, L.Dense(5)(L.Flatten()(x))))
    with pytest.raises(InputError, match=r"SQUARED_DIFFERENCE.*in float"):
        quantize_aware(plain)


def test_a_float_export_is_refused_and_told_to_strip(tmp_path):
    with pytest.raises(InputError, match="strip_quantization"):
        export(quantize_aware(net()), "tflite_float32", path=tmp_path / "m.tflite")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bias_of_one_value_is_that_in_every_channel_of_the_file(tmp_path, bits):
    """The converter would quantize it by the first channel's scale for all of them."""
    image = L.Input((8, 8, 4))
    x = L.Conv2D(6, 3, bias_initializer=keras.initializers.Constant(-2.0), name="head")(image)
    model = keras.Model(image, x)
    kernel = model.get_layer("head").kernel
    kernel.assign(kernel * np.geomspace(0.01, 1, 6))
    images = data()[0]
    aware = quantize_aware(model, bits=bits, calibration=images)
    path = export(aware, "tflite_int8", path=tmp_path / "m.tflite").path
    difference = np.abs(runtimes.predict(path, images) - aware.predict(images, verbose=0)).max()
    assert difference <= 2.01 * runtimes.load(path).output.scale
