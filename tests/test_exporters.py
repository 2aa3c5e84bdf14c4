"""Exported files: what is in them, that they run, and what is refused."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

from orbit_kd import runtimes
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.datasets.samples import calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.exporters import Artifact, export, export_all, file_of, open_artifact, read_metadata, targets
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.exporters.tflite import convert
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.summary import read

layers = keras.layers


def net(*, classes: int = 5) -> keras.Model:
    """Convolution with folded BatchNormalization, depthwise, residual add, dense; every variable random."""
    rng = np.random.default_rng(3)
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(image)))
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Add()([x, layers.Conv2D(8, 1)(y)])
    model = keras.Model(image, layers.Dense(classes)(layers.Flatten()(layers.MaxPooling2D()(x))))
    for v in model.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "variance" in v.name else rng.normal(0, 0.3, v.shape))
    return model


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, 12, 12, 3)).astype(np.float32)


def test_float32_file_agrees_with_keras_and_has_a_fixed_batch_of_one(tmp_path, images):
    model = net()
    artifact = export(model, "tflite_float32", path=tmp_path / "new" / "m.tflite")
    np.testing.assert_allclose(runtimes.predict(artifact.path, images), model(images).numpy(), atol=1e-4)
    image = parse(artifact.path.read_bytes()).subgraphs[0]
    assert list(image.tensors[image.inputs[0]].shape) == [1, 12, 12, 3]
    assert image.tensors[image.inputs[0]].shapeSignature is None  # no axis is open


@pytest.mark.parametrize("target", ["tflite_float32", "tflite_int8", "tflite_int16x8"])
def test_the_short_way_through_the_converter_ends_in_the_same_file(tmp_path, images, target, monkeypatch):
    model, ways = net(), []
    goes = convert._goes_the_short_way
    for name, way in (("short", lambda f: ways.append(goes(f)) or ways[-1]), ("long", lambda f: False)):
        monkeypatch.setattr(convert, "_goes_the_short_way", way)
        export(model, target, path=tmp_path / name, calibration=images)
    assert ways == [True]
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()


def test_artifact_tells_size_on_disk_and_gzip_size(tmp_path, images):
    artifact = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=images)
    data = artifact.path.read_bytes()
    assert (artifact.target, artifact.bytes, artifact.files) == ("tflite_int8", len(data), (artifact.path,))
    assert gzip.decompress(gzip.compress(data, 9)) == data
    assert artifact.gzip_bytes == len(gzip.compress(data, 9, mtime=0))
    assert artifact.details["calibration_images"] == 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        artifact.bytes = 0
    assert list(tmp_path.iterdir()) == [artifact.path]  # no temporary file is left


def test_export_leaves_the_model_alone(tmp_path, images):
    model = net()
    before, trainable = [w.copy() for w in model.get_weights()], model.trainable
    export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=images)
    assert model.trainable == trainable
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_int8_has_integer_io_and_stays_close_to_keras(tmp_path, images):
    model = net()
    artifact = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=images)
    runner = runtimes.load(artifact.path)
    assert (runner.input.dtype, runner.output.dtype) == (np.int8, np.int8)
    expected = model(images).numpy()
    assert np.abs(runtimes.run(runner, images) - expected).mean() < 0.05 * np.abs(expected).max()


def test_int8_with_float_io(tmp_path, images):
    path = tmp_path / "m.tflite"
    whole = export(net(), "tflite_int8", path=path, calibration=images)
    expected = runtimes.predict(whole.path, images, runtime="litert_reference")
    export(net(), "tflite_int8", path=path, calibration=images, float_io=True)
    runner = runtimes.load(path, runtime="litert_reference")
    assert (runner.input.dtype, runner.output.dtype) == (np.float32, np.float32)
    assert {op.dtype for op in read(path).ops if op.weight_shape} == {"int8"}
    np.testing.assert_allclose(runtimes.run(runner, images), expected, atol=1e-5)


def test_the_same_export_gives_the_same_bytes(tmp_path, images):
    model = net()
    a, b = (
        export(model, "tflite_int8", path=tmp_path / f"{i}.tflite", calibration=images, metadata={"b": 1, "a": 2})
        for i in range(2)
    )
    assert a.path.read_bytes() == b.path.read_bytes()


def test_int8_keeps_zeros_and_2_4_and_never_holds_minus_128(tmp_path, images):
    model = net()
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and not isinstance(layer, layers.DepthwiseConv2D):
            kernel = layer.kernel.numpy()
            kernel[..., 0::4, :] = 0  # of every four input channels, two: the kernels are (..., in, out)
            kernel[..., 3::4, :] = 0
            kernel[..., 1, :] = -np.abs(kernel).max()  # the value an asymmetric range would map to -128
            layer.kernel.assign(kernel)
    float32 = export(model, "tflite_float32", path=tmp_path / "f.tflite")
    int8 = export(model, "tflite_int8", path=tmp_path / "q.tflite", calibration=images)
    for path in (float32.path, int8.path):
        checks = check_n_m(path)
        assert len(checks) == 3
        assert all(c.ok and c.groups for c in checks), checks
    for a, b in zip(read(float32.path).ops, read(int8.path).ops, strict=True):
        assert b.nonzero <= a.nonzero  # rounding may add zeros, none may go
    weights = [w for op in read(int8.path).ops for w in [op] if op.op == "CONV_2D"]
    assert all(len(w.scales) == w.weight_shape[0] and set(w.zero_points) == {0} for w in weights)  # per output channel


@pytest.mark.parametrize("runtime", ["litert", "litert_reference", "tflm"])
def test_equal_vectors_are_stored_once_and_the_file_says_the_same(tmp_path, images, runtime):
    import flatbuffers

    path = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=images).path
    builder = flatbuffers.Builder(4096)
    builder.Finish(parse(path.read_bytes()).Pack(builder), file_identifier=b"TFL3")
    apart = bytes(builder.Output())
    graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
    points = [graph.Tensors(i).Quantization() for i in range(graph.TensorsLength())]
    starts = [q._tab.Vector(q._tab.Offset(10)) for q in points if q is not None and q.ZeroPointLength() > 1]
    assert len(starts) >= 4 and len(set(starts)) < len(starts)
    assert path.stat().st_size < 0.97 * len(apart)
    np.testing.assert_array_equal(
        runtimes.predict(path, images[:8], runtime=runtime, raw=True),
        runtimes.predict(apart, images[:8], runtime=runtime, raw=True),
    )


@pytest.mark.parametrize("runtime", ["litert", "litert_reference", "tflm"])
def test_metadata_comes_back_and_the_file_still_runs(tmp_path, images, runtime):
    plain = export(net(), "tflite_int8", path=tmp_path / "plain.tflite", calibration=images)
    note = {"classes": ["T72", "Straße"], "preprocess": Preprocess(crop=64, mean=(1.5,)), "recipe": "9f2c"}
    noted = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=images, metadata=note)
    found = read_metadata(noted.path)
    assert found["classes"] == ["T72", "Straße"]
    assert Preprocess(**found["preprocess"]) == note["preprocess"]
    assert read_metadata(plain.path) == {}
    np.testing.assert_array_equal(
        runtimes.predict(noted.path, images[:8], runtime=runtime, raw=True),
        runtimes.predict(plain.path, images[:8], runtime=runtime, raw=True),
    )
    assert read(noted.path).ops[0].scales == read(plain.path).ops[0].scales


def test_metadata_is_replaced_not_added_twice_and_buffers_stay_aligned(tmp_path):
    first = export(net(), "tflite_float32", path=tmp_path / "m.tflite", metadata={"v": 1})
    second = export(first, "c_array", path=tmp_path / "m.cc", metadata={"v": 2})
    data = read_c_array(second.path)
    assert read_metadata(data) == {"v": 2}
    model = schema.Model.GetRootAs(data, 0)
    names = [model.Metadata(i).Name() for i in range(model.MetadataLength())]
    assert names.count(b"orbit_kd") == 1 and b"min_runtime_version" in names
    starts = []
    for i in range(model.BuffersLength()):
        table = model.Buffers(i)._tab
        field = table.Offset(4)
        if field:
            starts.append(table.Vector(field))
    assert len(starts) > 5
    assert all(start % 16 == 0 for start in starts)


def test_metadata_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be stored"):
        export(net(), "tflite_float32", path=tmp_path / "m.tflite", metadata={"weights": np.zeros(3)})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("name", ["student_int8", "8bit-net.v2"])
def test_c_array_compiles_without_warnings_and_holds_the_file(tmp_path, images, name):
    file = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=images)
    artifact = export(file.path, "c_array", path=tmp_path / f"{name}.cc")
    assert read_c_array(artifact.path) == file.path.read_bytes()
    assert (artifact.bytes, artifact.gzip_bytes) == (file.bytes, file.gzip_bytes)
    assert {f.suffix for f in artifact.files} == {".cc", ".h"} and artifact.path.suffix == ".cc"
    symbol, header = artifact.details["symbol"], artifact.files[1].name
    (tmp_path / "main.cc").write_text(
        f'#include "{header}"\n#include "{header}"\n#include <cstdint>\n#include <cstdio>\n'
        f"int main() {{ std::fwrite({symbol}, 1, {symbol}_len, stdout);\n"
        f"  return reinterpret_cast<std::uintptr_t>({symbol}) % 16 ? 1 : 0; }}\n"
    )
    flags = ["-Wall", "-Wextra", "-Werror", "-std=c++17"]
    subprocess.run(["g++", *flags, "-c", artifact.path.name], cwd=tmp_path, check=True)
    subprocess.run(["g++", *flags, "main.cc", artifact.path.name, "-o", "main"], cwd=tmp_path, check=True)
    ran = subprocess.run([tmp_path / "main"], check=True, capture_output=True)
    assert ran.stdout == file.path.read_bytes()


def test_c_array_of_a_keras_model_is_its_int8_file(tmp_path, images):
    model = net()
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=images, samples=20)
    artifact = export(model, "c_array", path=tmp_path / "a", calibration=images, samples=20)
    assert read_c_array(artifact.path) == file.path.read_bytes()
    assert artifact.details["calibration_images"] == 20


def test_open_artifact_knows_the_target_of_a_file(tmp_path, images):
    model = net()
    made = [
        export(model, "tflite_float32", path=tmp_path / "f.tflite"),
        export(model, "tflite_int8", path=tmp_path / "q.tflite", calibration=images),
    ]
    made.append(export(made[1], "c_array", path=tmp_path / "q"))
    for artifact in made:
        assert dataclasses.replace(open_artifact(artifact.path), details=artifact.details) == artifact


@pytest.mark.parametrize("size", [10, 300])
def test_calibration_sample_takes_images_from_everywhere(size):
    x = np.arange(size, dtype=np.float32).reshape(-1, 1)
    data = tf.data.Dataset.from_tensor_slices((x, x)).batch(7)
    sample = calibration_sample(data, samples=50, seed=1)
    assert sample.shape == (min(size, 50), 1) and sample.dtype == np.float32
    assert len(np.unique(sample)) == len(sample)
    np.testing.assert_array_equal(sample, calibration_sample(x, samples=50, seed=1))
    if size > 50:
        assert sample.min() < 60 and sample.max() > 240
        assert not np.array_equal(sample, calibration_sample(x, samples=50, seed=2))


@pytest.mark.parametrize(("target", "steps"), [("tflite_int8", 255), ("tflite_int16x8", 32767)])
def test_the_calibration_seed_decides_which_images_set_the_ranges(tmp_path, target, steps):
    """Five of a thousand images, each as bright as its number: the file's input range is that of the brightest."""
    x = np.broadcast_to(np.arange(1000, dtype="float32").reshape(-1, 1, 1, 1), (1000, 4, 4, 1))
    image = layers.Input((4, 4, 1))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(image)))
    brightest, scales = [], []
    for seed in (0, 1):
        made = export(model, target, path=tmp_path / "m.tflite", calibration=x, samples=5, seed=seed)
        assert (made.details["seed"], made.details["calibration_images"]) == (seed, 5)
        brightest.append(calibration_sample(x, samples=5, seed=seed).max())
        scales.append(parse(made.path.read_bytes()).subgraphs[0].tensors[0].quantization.scale[0])
    assert brightest[0] != brightest[1] and scales == pytest.approx([b / steps for b in brightest], rel=1e-5)


def test_a_sample_is_as_likely_to_hold_the_last_image_as_the_first():
    drawn = np.concatenate([calibration_sample(np.arange(20.0)[:, None], samples=5, seed=s)[:, 0] for s in range(400)])
    counts = np.bincount(drawn.astype(int), minlength=20)
    assert counts.sum() == 2000 and 70 < counts.min() <= counts.max() < 130  # 100 each, to three standard deviations


def test_calibration_sample_ends_on_an_endless_data_set():
    data = tf.data.Dataset.from_tensor_slices(np.ones((100, 1), np.float32)).batch(100).repeat()
    assert calibration_sample(data, samples=5).shape == (5, 1)


def refuse(message: str, tmp_path, model=None, target="tflite_int8", **options) -> None:
    with pytest.raises(InputError, match=message):
        export(net() if model is None else model, target, path=tmp_path / "m.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_unknown_target_lists_all(tmp_path):
    refuse("tflite_float32, tflite_int16x8, tflite_int4, tflite_int8", tmp_path, target="onix")
    assert {"tflite_float32", "tflite_int8", "c_array"} <= set(targets)


def test_unknown_option_lists_the_targets_options(tmp_path):
    refuse("float_io, input_shape, metadata, samples, seed", tmp_path, floatio=True)
    refuse("no option 'floatio'", tmp_path, target="c_array", floatio=True)


def test_missing_calibration_is_refused(tmp_path):
    refuse("No calibration data", tmp_path)


def test_empty_calibration_is_refused(tmp_path):
    refuse("empty", tmp_path, calibration=np.zeros((0, 12, 12, 3), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_that_is_not_finite_is_refused(tmp_path, images, bad):
    images[40, 3, 3, 1] = bad
    refuse("NaN or Inf, within images 32 to 63", tmp_path, calibration=[images[:32], images[32:]])


def test_calibration_of_another_shape_is_refused(tmp_path, images):
    refuse(r"shape \(12, 12, 1\)", tmp_path, calibration=images[..., :1])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = net()
    model.layers[-1].bias.assign([0, 0, np.nan, 0, 0])
    refuse("NaN or Inf", tmp_path, model, target="tflite_float32")


def test_open_sizes_need_an_input_shape(tmp_path, images):
    image = layers.Input((None, None, 3))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))))
    refuse("input_shape=", tmp_path, model, target="tflite_float32")
    refuse("asked for is", tmp_path, model, target="tflite_float32", input_shape=(12, 12, 1))
    artifact = export(model, "tflite_float32", path=tmp_path / "m.tflite", input_shape=(12, 12, 3))
    np.testing.assert_allclose(runtimes.predict(artifact.path, images), model(images).numpy(), atol=1e-5)


def test_something_that_is_no_model_is_refused(tmp_path):
    refuse("is a path", tmp_path, "teacher.keras", target="tflite_float32")


def test_a_layer_tflite_lacks_is_refused_with_the_reason(tmp_path):
    image = layers.Input((8, 8, 4))
    model = keras.Model(image, layers.Lambda(lambda x: tf.linalg.svd(x, compute_uv=False))(image))
    refuse("Svd", tmp_path, model, target="tflite_float32")


def test_c_array_of_a_file_that_is_no_tflite_is_refused(tmp_path):
    file = tmp_path / "x.tflite"
    file.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"Not a \.tflite file"):
        export(file, "c_array", path=tmp_path / "out" / "x.cc")
    with pytest.raises(InputError, match="No such file"):
        export(tmp_path / "none.tflite", "c_array", path=tmp_path / "out" / "x.cc")
    assert not (tmp_path / "out").exists()


def test_a_path_that_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        export(net(), "tflite_float32", path=tmp_path / "file" / "m.tflite")
    old = tmp_path / "m.tflite"
    old.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        export(net(), "tflite_float32", path=old)
    assert old.read_bytes() == b"old" and not list(tmp_path.glob(".*"))


def test_conversion_is_silent(tmp_path):
    code = (
        "import os, tf_keras as k, numpy as np\n"
        "import tensorflow as tf; tf.zeros(1)\n"
        "from orbit_kd.exporters import export\n"
        "m = k.Sequential([k.layers.Input((8, 8, 1)), k.layers.Conv2D(2, 3), k.layers.Flatten(), k.layers.Dense(2)])\n"
        "os.write(2, b'START'); os.write(1, b'START')\n"
        f"export(m, 'tflite_int8', path=r'{tmp_path}/m.tflite', calibration=np.ones((4, 8, 8, 1)))\n"
        "os.write(2, b'END'); os.write(1, b'END')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "STARTEND" in ran.stderr and "STARTEND" in ran.stdout, ran.stderr


def test_the_package_is_light_to_import():
    code = "import sys, orbit_kd.exporters, orbit_kd.evaluation.evaluate; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_export_all_hands_one_targets_file_to_the_next_and_names_variants(tmp_path, images):
    names = ["packed:uhp:4", "tflite_int8", "c_array"]
    packed, int8, array = export_all(net(), names, folder=tmp_path, stem="m", calibration=images)
    assert [a.target for a in (packed, int8, array)] == names
    assert packed.path.parent == tmp_path / "m_packed_uhp_4" == file_of("packed:uhp:4", tmp_path, stem="m")
    assert read_c_array(array.path) == int8.path.read_bytes()
    assert Artifact.from_dict(json.loads(json.dumps(packed.to_dict(tmp_path))), tmp_path) == packed


def test_a_target_without_variants_refuses_one(tmp_path, images):
    with pytest.raises(InputError, match="'tflite_int8' has no variants"):
        export(net(), "tflite_int8:small", path=tmp_path / "m.tflite", calibration=images)


def test_a_dynamic_range_file_is_known_although_small_kernels_stay_float(tmp_path):
    image = layers.Input((8, 8, 2))
    model = keras.Model(image, layers.Conv2D(64, 3)(layers.Conv2D(4, 3)(image)))
    file = export(model, "tflite_dynamic", path=tmp_path / "m.tflite")
    assert [op.dtype for op in read(file.path).ops if op.weight_shape] == ["float32", "int8"]
    assert open_artifact(file.path).target == "tflite_dynamic"
