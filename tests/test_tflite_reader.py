"""The reader's counts against the interpreter's own tensor list, and against hand-counted networks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.reader import parse, read_bytes
from orbit_kd.tflite.summary import read

layers = keras.layers
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def recount(path) -> tuple[int, int]:
    """(params, nonzero) from the interpreter: constants that operators read, without shapes and paddings."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    operators = interpreter._get_ops_details()
    produced = {i for op in operators for i in op["outputs"]} | {d["index"] for d in interpreter.get_input_details()}
    constants: dict[int, np.ndarray] = {}
    for op in operators:
        for place, index in enumerate(op["inputs"]):
            if index in produced or index < 0:
                continue
            is_bias = op["op_name"] in CONVOLUTIONS and place == (3 if op["op_name"] == "TRANSPOSE_CONV" else 2)
            if details[index]["dtype"] in (np.float32, np.int8) or is_bias:
                points = details[index]["quantization_parameters"]["zero_points"]
                constants[index] = interpreter.get_tensor(index) != (points[0] if len(points) else 0)
    return sum(c.size for c in constants.values()), sum(int(c.sum()) for c in constants.values())


def every_operator() -> keras.Model:
    rng = np.random.default_rng(0)
    image = layers.Input((8, 8, 4))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image))
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.DepthwiseConv2D(3, padding="same")(layers.ZeroPadding2D(1)(x))
    x = layers.Conv2D(8, 3, groups=2)(x)
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)
    x = layers.Rescaling(0.25, offset=0.5)(x)
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    for v in model.variables:
        values = rng.uniform(0.5, 1, v.shape) if "variance" in v.name else rng.normal(0, 0.5, v.shape)
        v.assign(np.where(rng.random(v.shape) < 0.3, 0, values) if "kernel" in v.name else values)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reader")
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 4)).astype(np.float32)
    made = {
        target: export(every_operator(), target, path=folder / f"{target}.tflite", calibration=x, metadata={"a": 1})
        for target in ("tflite_float32", "tflite_int8")
    }
    return {target: artifact.path for target, artifact in made.items()}


@pytest.mark.parametrize("target", ["tflite_float32", "tflite_int8"])
def test_params_and_zeros_equal_a_recount_from_the_interpreter(files, target):
    summary = read(files[target])
    assert (summary.params, summary.nonzero_params) == recount(files[target])
    assert summary.bytes == len(read_bytes(files[target]))
    assert summary.nonzero_params < 0.9 * summary.params
    assert not summary.sparse


def test_counts_of_a_network_counted_by_hand(tmp_path):
    image = layers.Input((6, 6, 2))
    x = layers.Conv2D(4, 3)(image)  # 4x4x4 outputs of 18 products
    x = layers.DepthwiseConv2D(3, padding="same")(x)  # 4x4x4 outputs of 9
    x = layers.Conv2DTranspose(3, 2, strides=2)(x)  # 4x4x4 inputs into 2x2x3 each
    model = keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))  # 8x8x3 into 5
    rng = np.random.default_rng(0)
    for v in model.variables:
        v.assign(rng.uniform(1, 2, v.shape))
    kernel = model.layers[1].kernel.numpy()
    kernel[0, 0] = 0  # 2 * 4 of 72 weights
    model.layers[1].kernel.assign(kernel)
    summary = read(export(model, "tflite_float32", path=tmp_path / "m.tflite").path)
    rows = {op.op: op for op in summary.ops if op.params}
    macs = {"CONV_2D": 64 * 18, "DEPTHWISE_CONV_2D": 64 * 9, "TRANSPOSE_CONV": 64 * 12, "FULLY_CONNECTED": 192 * 5}
    assert {name: op.macs for name, op in rows.items()} == macs
    assert summary.macs == sum(macs.values())
    assert summary.macs_nonzero == sum(macs.values()) - 16 * 8
    assert summary.params == model.count_params()
    assert summary.nonzero_params == model.count_params() - 8
    assert summary.density == pytest.approx(1 - 8 / model.count_params())
    conv = rows["CONV_2D"]
    assert (conv.weight_shape, conv.params, conv.nonzero, conv.output_shape) == ((4, 3, 3, 2), 76, 68, (1, 4, 4, 4))
    assert conv.density == pytest.approx(68 / 76)
    assert f"{summary.params:,}" in str(summary) and "FULLY_CONNECTED" in str(summary)


def test_dense_layers_over_positions_count_every_position(tmp_path):
    image = layers.Input((7, 6))
    artifact = export(keras.Model(image, layers.Dense(5)(image)), "tflite_float32", path=tmp_path / "m.tflite")
    assert read(artifact.path).macs == 7 * 6 * 5


def test_a_constant_that_two_layers_share_counts_once(tmp_path):
    image = layers.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same")
    conv.build((None, 8, 8, 4))
    conv.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in conv.get_weights()])
    dense = layers.Dense(2, bias_initializer="ones")
    model = keras.Model(image, dense(layers.Flatten()(conv(conv(image)))))
    summary = read(export(model, "tflite_float32", path=tmp_path / "m.tflite").path)
    assert summary.params == model.count_params()
    assert summary.macs == 2 * 64 * 144 + 256 * 2


def test_int8_rows_hold_their_quantization(files):
    rows = [op for op in read(files["tflite_int8"]).ops if op.weight_shape]
    assert {op.dtype for op in rows} == {"int8"}
    axis = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0}
    for op in rows:
        if op.op in axis:
            assert op.quantized_dimension == axis[op.op]
            assert len(op.scales) == len(op.zero_points) == op.weight_shape[axis[op.op]]
        assert min(op.scales) > 0 and set(op.zero_points) == {0}


def two_four(seed: int = 0) -> keras.Model:
    """Two convolutions and a dense layer with 2:4 kernels along the input channels, 6 of them in the second."""
    rng = np.random.default_rng(seed)
    image = layers.Input((6, 6, 8))
    x = layers.Conv2D(6, 3)(image)
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(layers.DepthwiseConv2D(2)(x)))))
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and not isinstance(layer, layers.DepthwiseConv2D):
            kernel = rng.uniform(1, 2, layer.kernel.shape)
            kernel[..., 0::4, :] = kernel[..., 2::4, :] = 0
            layer.kernel.assign(kernel)
    return model


def test_2_4_is_checked_per_group_of_input_channels(tmp_path):
    model, x = two_four(), np.random.default_rng(0).normal(size=(20, 6, 6, 8))
    good = export(model, "tflite_int8", path=tmp_path / "good.tflite", calibration=x)
    checks = check_n_m(good.path)
    assert [c.groups for c in checks] == [6 * 9 * 2, 4 * 9 * 2, 3 * 1]  # six channels are one group and a short one
    assert all(c.ok for c in checks)
    assert not any(c.ok for c in check_n_m(good.path, n=1))
    kernel = model.layers[1].kernel.numpy()
    kernel[1, 2, 4, 5] = 1.5  # a third weight in one group
    model.layers[1].kernel.assign(kernel)
    bad = check_n_m(export(model, "tflite_int8", path=tmp_path / "bad.tflite", calibration=x).path)
    assert [c.bad_groups for c in bad] == [1, 0, 0]


def test_minus_128_is_counted(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 8))
    data = bytearray(export(two_four(), "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path.read_bytes())
    model = parse(bytes(data))
    graph = model.subgraphs[0]
    kernel = bytes(model.buffers[graph.tensors[graph.operators[0].inputs[1]].buffer].data)
    start = data.find(kernel)
    place = kernel.index(127)
    data[start + place] = 0x80
    checks = check_n_m(bytes(data))
    assert [c.minus_128 for c in checks] == [1, 0, 0]
    assert not checks[0].ok and checks[0].bad_groups == 0


@pytest.fixture(scope="module")
def sparse_file() -> tuple[bytes, int]:
    """A float file in TFLite's sparse encoding, and the number of non-zeros that went in."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([layers.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(4)])
    for layer in model.layers:
        layer.bias.assign(np.ones(layer.bias.shape))
    kernel = np.where(rng.random((64, 32)) < 0.9, 0, 1.5)
    model.layers[0].kernel.assign(kernel)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    return converter.convert(), int(np.count_nonzero(kernel)) + 32 * 4 + 36


def test_sparse_encoding_is_reported_and_its_zeros_counted(sparse_file):
    data, nonzero = sparse_file
    summary = read(data)
    assert summary.sparse
    assert (summary.params, summary.nonzero_params) == (64 * 32 + 32 + 32 * 4 + 4, nonzero)
    assert summary.macs == 64 * 32 + 32 * 4
    with pytest.raises(InputError, match="sparse encoding"):
        check_n_m(data)


def test_half_precision_weights_are_found_behind_their_dequantize(tmp_path):
    dense = layers.Dense(2, bias_initializer="ones")
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), dense])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
    summary = read(converter.convert())
    assert summary.params == model.count_params()
    assert [op.dtype for op in summary.ops if op.weight_shape] == ["float16", "float16"]


@pytest.mark.parametrize("data", [b"", b"TFL3", b"PK\x03\x04 a zip", b"\x10\x00\x00\x00TFL3" + b"\xff" * 40])
def test_what_is_no_tflite_file_is_refused(tmp_path, data):
    file = tmp_path / "m.tflite"
    file.write_bytes(data)
    for function in (read, check_n_m, runtimes.load):
        with pytest.raises(InputError, match=r"Not a \.tflite file"):
            function(file)


def test_a_truncated_file_is_refused(files):
    data = read_bytes(files["tflite_float32"])
    with pytest.raises(InputError, match=r"Not a \.tflite file"):
        read(data[: len(data) // 2])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "none.tflite")
    with pytest.raises(InputError, match="directory"):
        read(tmp_path)
