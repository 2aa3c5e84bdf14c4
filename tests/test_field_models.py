"""Cases B and H of the field: models of other kinds than plain tf_keras, and what is wrapped around their layers."""

from __future__ import annotations

import sys
import warnings

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.models.unwrapping import wrappers_in

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow_model_optimization as tfmot

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")

X = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
Y = np.arange(16) % 3


def net(k=keras, seed=0):
    k.utils.set_random_seed(seed)
    image = x = k.Input((6, 6, 2))
    x = k.layers.Conv2D(4, 3, name="c1")(x)
    x = k.layers.BatchNormalization(name="bn")(x)
    x = k.layers.ReLU(name="r")(x)
    x = k.layers.Conv2D(4, 3, activation="relu", name="c2")(x)
    x = k.layers.GlobalAveragePooling2D(name="g")(x)
    return k.Model(image, k.layers.Dense(3, activation="softmax", name="d")(x), name="net")


def trained(model, *callbacks):
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", run_eagerly=True)  # four steps
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


def outputs(model):
    return model(X, training=False).numpy()


def refusal(call, *arguments, **options):
    with pytest.raises(InputError) as refused:
        call(*arguments, **options)
    return refused.value


@pytest.fixture(scope="module")
def pruned():
    half = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    model = tfmot.sparsity.keras.prune_low_magnitude(net(), pruning_schedule=half)
    return trained(model, tfmot.sparsity.keras.UpdatePruningStep())


@pytest.fixture(scope="module")
def clustered():
    start = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return trained(tfmot.clustering.keras.cluster_weights(net(), 4, start))


@pytest.fixture(scope="module")
def quantized():
    return trained(tfmot.quantization.keras.quantize_model(net()))


def test_what_tfmot_pruned_is_exported_as_its_stripped_model_and_loads(pruned, tmp_path):
    theirs = tfmot.sparsity.keras.strip_pruning(pruned)
    expected = outputs(theirs)
    files = [okd.export(m, "tflite_float32", path=tmp_path / f"{i}.tflite") for i, m in enumerate([pruned, theirs])]
    assert files[0].path.read_bytes() == files[1].path.read_bytes()
    np.testing.assert_allclose(runtimes.predict(files[0].path, X), expected, rtol=1e-4, atol=1e-6)
    for name in ("m.keras", "m.h5"):
        pruned.save(tmp_path / name)
        loaded = okd.strip(okd.load_model(tmp_path / name))
        np.testing.assert_array_equal(outputs(loaded), expected)
        assert [la.name for la in loaded.layers][1:] == ["c1", "bn", "r", "c2", "g", "d"]
    assert okd.profile(pruned) == okd.profile(theirs) and okd.profile(theirs).nonzero_params < 200
    assert [r.density for r in okd.sparsity_table(pruned)] == [0.5, 0.5, 0.5]
    again = trained(okd.strip(pruned))  # the zeros stay
    assert [r.density for r in okd.sparsity_table(again)] == [0.5, 0.5, 0.5]


def test_what_tfmot_clustered_comes_off_with_its_clusters(clustered, tmp_path):
    clustered.save(tmp_path / "m.keras")
    expected = outputs(clustered)
    for model in (clustered, okd.load_model(tmp_path / "m.keras")):
        plain = okd.strip_clusters(model)
        np.testing.assert_allclose(outputs(plain), expected, rtol=1e-5, atol=1e-6)
        assert all(len(np.unique(plain.get_layer(n).kernel)) <= 4 for n in ("c1", "c2", "d"))
    assert okd.profile(clustered).macs == okd.profile(net()).macs
    assert refusal(okd.plan_removal, clustered, ratio=0.5).fix.endswith("okd.strip_clusters(model)")


def test_what_tfmot_made_quantization_aware_comes_off_with_its_trained_kernels(quantized, tmp_path):
    quantized.save(tmp_path / "m.h5")
    quantized.save(tmp_path / "m.keras")
    for model in (quantized, okd.load_model(tmp_path / "m.h5")):
        plain = okd.strip_quantization(model)
        for name in ("c1", "c2", "d"):
            (kernel, _, _) = quantized.get_layer(f"quant_{name}")._weight_vars[0]
            np.testing.assert_array_equal(plain.get_layer(name).kernel, kernel)
        assert [plain.get_layer(n).activation.__name__ for n in ("c1", "c2", "d")] == ["linear", "relu", "softmax"]
        np.testing.assert_allclose(outputs(plain), outputs(quantized), atol=0.1)  # but for the rounding
        assert okd.plan_removal(plain, ratio=0.5).params[1] < okd.profile(plain).params
    assert "model.save('model.h5')" in refusal(okd.load_model, tmp_path / "m.keras").fix
    okd.load_model(okd.save_model(okd.strip_quantization(quantized), tmp_path / "plain.keras"))
    for function in (okd.strip, okd.quantize_aware, okd.plan_removal, okd.quantize_table, okd.keep_zeros):
        assert refusal(function, quantized).fix.endswith("okd.strip_quantization(model)")
    for target in ("tflite_float32", "onnx"):
        error = refusal(okd.export, quantized, target, path=tmp_path / "m", calibration=X)
        assert error.fix.endswith("okd.strip_quantization(model)")
    int8 = okd.export(quantized, "tflite_int8", path=tmp_path / "q.tflite")
    assert int8.details == {"quantization_aware": True}


def test_wrappers_are_found_in_nested_models_and_in_time_distributed(pruned):
    nested = keras.Sequential([keras.Input((6, 6, 2)), pruned])
    np.testing.assert_array_equal(outputs(okd.strip(nested)), outputs(nested))
    assert not wrappers_in(okd.strip(nested))
    inner = tfmot.sparsity.keras.prune_low_magnitude(keras.layers.Dense(5, input_shape=(4,)))
    series = keras.Sequential([keras.Input((3, 4)), keras.layers.TimeDistributed(inner, name="each")])
    x = X[:, 0, 0, :].repeat(6, 1).reshape(16, 3, 4)
    assert refusal(okd.plan_removal, series, ratio=0.5).fix.endswith("okd.strip(model)")
    np.testing.assert_array_equal(okd.strip(series)(x), series(x))
    annotated = keras.Sequential([keras.Input((4,)), tfmot.quantization.keras.quantize_annotate_layer(inner.layer)])
    assert refusal(okd.profile, okd.Distiller(net(), net())).fix == "give distiller.student"
    assert refusal(okd.plan_removal, annotated, ratio=0.5).fix.endswith("okd.strip_quantization(model)")


@pytest.mark.parametrize("wrap", ["sparsify", "cluster", "quantize_aware"])
def test_our_own_wrapped_models_cost_what_the_plain_ones_cost_and_say_how_they_come_off(wrap, tmp_path):
    make, off = {
        "sparsify": (lambda m: okd.sparsify(m, "2:4"), okd.strip),
        "cluster": (lambda m: okd.cluster(m, clusters=3), okd.strip_clusters),
        "quantize_aware": (lambda m: okd.quantize_aware(m, calibration=X), okd.strip_quantization),
    }[wrap]
    wrapped = make(net())
    plain = off(wrapped)
    assert okd.profile(wrapped) == okd.profile(plain) and okd.profile(plain).macs == okd.profile(net()).macs
    assert [r.density for r in okd.sparsity_table(wrapped)] == [r.density for r in okd.sparsity_table(plain)]
    for function in (okd.plan_removal, okd.sensitivity, okd.sparsify):
        error = refusal(function, wrapped, *{"sensitivity": [X], "sparsify": ["2:4"]}.get(function.__name__, []))
        assert error.fix == f"strip it first: okd.{off.__name__}(model)"
    if wrap != "quantize_aware":
        files = [okd.export(m, "tflite_float32", path=tmp_path / f"{i}.tflite") for i, m in enumerate([wrapped, plain])]
        assert files[0].path.read_bytes() == files[1].path.read_bytes()


def test_a_keras3_model_trained_on_between_two_calls_gives_no_old_twin():
    model = net(keras3)
    first = okd.as_graph(model)
    np.testing.assert_allclose(outputs(first), model(X), rtol=1e-5, atol=1e-6)
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(outputs(okd.as_graph(model)), model(X), rtol=1e-5, atol=1e-6)
    assert np.abs(outputs(first) - outputs(okd.as_graph(model))).max() > 1e-3


def test_a_keras3_teacher_teaches_from_its_cache_and_is_left_alone():
    teacher, student = net(keras3), net(seed=1)
    before = [w.copy() for w in teacher.get_weights()]
    cache = okd.cache_teacher(teacher, tf.data.Dataset.from_tensor_slices((X, Y)).batch(8))
    distiller = okd.Distiller(student, teacher, alpha=1.0)
    distiller.compile("adam", "sparse_categorical_crossentropy")
    history = distiller.fit(cache, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert teacher.trainable and isinstance(distiller.teachers[0], keras.Model)
    plan = okd.plan_removal(teacher, ratio=0.5)
    assert okd.remove_filters(teacher, plan).count_params() == plan.params[1]


def test_a_distiller_is_no_network_but_its_file_is_read_as_what_it_trained(tmp_path):
    distiller = okd.Distiller(net(), net(seed=1))
    for call in (okd.plan_removal, okd.as_graph, okd.sparsity_table, okd.load_model):
        assert refusal(call, distiller).fix == "give distiller.student"
    distiller.save(tmp_path / "d.keras")
    np.testing.assert_allclose(outputs(okd.load_model(tmp_path / "d.keras")), outputs(distiller.student), rtol=1e-6)


def test_batchnorm_in_time_distributed_and_in_wrappers_is_recalibrated():
    image = keras.Input((3, 4))
    model = keras.Model(image, keras.layers.TimeDistributed(keras.layers.BatchNormalization(name="bn"))(image))
    data = tf.data.Dataset.from_tensor_slices(5 + 2 * X.reshape(96, 3, 4)).batch(32)
    okd.recalibrate_batchnorm(model, data)
    values = (5 + 2 * X.reshape(96, 3, 4)).reshape(-1, 4)
    mean, variance = model.layers[1].layer.moving_mean, model.layers[1].layer.moving_variance
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-3)
    quantized = okd.quantize_aware(net(), calibration=X)
    norms = [layer for layer in quantized._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    before = [layer.moving_mean.numpy() for layer in norms]
    okd.recalibrate_batchnorm(quantized, tf.data.Dataset.from_tensor_slices(X).batch(8))
    assert norms and all(np.any(layer.moving_mean.numpy() != b) for layer, b in zip(norms, before, strict=True))


def test_a_model_of_mixed_precision_is_exported_as_precise_as_its_weights(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed = net()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    plain = net()
    plain.set_weights(mixed.get_weights())
    file = okd.export(mixed, "tflite_float32", path=tmp_path / "m.tflite")
    np.testing.assert_allclose(runtimes.predict(file.path, X), outputs(plain), rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_rule_is_told_in_few_words_with_the_nearest_that_has_one():
    class Conv2DX(keras.layers.Layer):
        def call(self, x):
            return x

    image = keras.Input((6, 6, 2))
    model = keras.Model(image, Conv2DX(name="mine")(keras.layers.Conv2D(4, 3)(image)))
    error = refusal(okd.plan_removal, model, ratio=0.5)
    assert "Conv2D," in error.expected and len(str(error)) < 400
    assert error.fix.startswith('keep its channels with unknown="keep"')
    assert okd.plan_removal(model, ratio=0.5, unknown="keep").params[0] == 76


_LAYER = """
import tf_keras as keras
import orbit_kd as okd

class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

@okd.channel_rule(Twice)
def twice(call):
    return call.inputs[0]
"""


def test_the_tools_take_layers_of_the_users_own_from_a_file_that_is_named(tool, tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(_LAYER)
    monkeypatch.setitem(keras.utils.get_custom_objects(), "_", None)  # puts the table back afterwards
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_layers

    image = keras.Input((6, 6, 2))
    x = my_layers.Twice(name="twice")(keras.layers.Conv2D(4, 3, name="c")(image))
    path = tmp_path / "m.keras"
    keras.Model(image, keras.layers.Conv2D(2, 1, name="out")(x)).save(path)
    monkeypatch.delitem(sys.modules, "my_layers")
    assert "Twice from module 'my_layers'" in tool("inspect_model", f"--model={path}").stderr
    wrong = tool("inspect_model", f"--model={path}", f"--custom_objects={tmp_path}/my_layers.py:Thrice")
    assert wrong.returncode == 1 and "no attribute 'Thrice'" in wrong.stderr
    for name, flags in {"inspect_model": [], "prune": ["--ratio=0.5", f"--output={tmp_path}/s.keras"]}.items():
        ran = tool(name, f"--model={path}", f"--custom_objects={tmp_path}/my_layers.py:Twice", *flags)
        assert ran.returncode == 0, ran.stderr
    assert okd.load_model(tmp_path / "s.keras").count_params() == 2 * 19 + 2 * 3  # Twice is registered by now
    keras.utils.get_custom_objects().pop("Twice")
    sys.modules.pop("my_layers", None)
    for name in ("compress", "distill", "evaluate", "export", "sensitivity"):
        assert "Unknown command line flag" not in tool(name, "--custom_objects=a.py:B").stderr
