"""The folder for TensorFlow Lite Micro: it compiles, holds what it says, and is refused where no device can run it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import Artifact, export, export_all, open_artifact, read_metadata
from orbit_kd.exporters.c_array import read_c_array
from orbit_kd.exporters.tflm.memory import arena_margin, peak
from orbit_kd.exporters.tflm.operators import ADD_METHODS, add_methods
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse

layers = keras.layers
STUB = Path(__file__).with_name("tflm_stub")
FLAGS = ["-Wall", "-Wextra", "-Werror", "-std=c++17"]
NAMES = {"model_data.cc", "model_data.h", "model_operators.h", "model_settings.h", "golden.cc", "golden.h", "main.cc"}
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 12, 12, 3)).astype(np.float32)


def net(activation: str = "relu") -> keras.Model:
    keras.utils.set_random_seed(0)
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", name="first")(image)))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    x = layers.Activation(activation)(layers.Conv2D(24, 3, name="second")(x))
    return keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(layers.AveragePooling2D()(x))))


@pytest.fixture(scope="module")
def int8(tmp_path_factory) -> Artifact:
    return export(net(), "tflite_int8", path=tmp_path_factory.mktemp("tflm") / "m.tflite", calibration=images())


@pytest.fixture(scope="module")
def folder(int8, tmp_path_factory) -> Artifact:
    return export(int8, "tflm", path=tmp_path_factory.mktemp("tflm") / "m_tflm", calibration=images())


def constant(artifact: Artifact, name: str) -> float:
    text = artifact.path.with_name("model_settings.h").read_text()
    return float(re.search(rf"{name} = ([-\d.e]+)f?;", text)[1])


def golden(artifact: Artifact) -> list[np.ndarray]:
    bodies = re.findall(r"\{\n([-\d,\n]+)\}", artifact.path.with_name("golden.cc").read_text())
    return [np.array([int(v) for v in re.findall(r"-?\d+", body)]) for body in bodies]


def compiles(place: Path) -> subprocess.CompletedProcess:
    command = ["g++", *FLAGS, "-fsyntax-only", f"-I{STUB}", "main.cc"]
    return subprocess.run(command, cwd=place, capture_output=True, text=True)


def test_the_folder_holds_the_model_and_nothing_else(folder, int8):
    place = folder.path.parent
    assert {f.name for f in folder.files} == {f.name for f in place.iterdir()} == NAMES
    assert folder.path == folder.files[0] == place / "model_data.cc"
    assert read_c_array(folder.path) == int8.path.read_bytes() and folder.bytes == int8.bytes
    assert open_artifact(folder.path).bytes == folder.bytes  # so tools/evaluate.py takes it
    assert str(place) not in "".join(f.read_text() for f in folder.files)


@needs_gxx
def test_main_is_valid_against_tflite_micros_interface_and_a_wrong_operator_is_not(folder, tmp_path):
    shutil.copytree(folder.path.parent, tmp_path, dirs_exist_ok=True)
    result = compiles(tmp_path)
    assert result.returncode == 0, result.stderr
    header = tmp_path / "model_operators.h"
    header.write_text(header.read_text().replace("AddConv2D", "AddConv2d"))
    assert "AddConv2d" in compiles(tmp_path).stderr


@needs_gxx
@pytest.mark.parametrize(("offset", "code"), [(0, 0), (1, 0), (2, 1)])
def test_main_takes_the_golden_output_within_one_step_and_nothing_else(folder, tmp_path, offset, code):
    made = [str(f) for f in folder.files if f.suffix == ".cc"]
    include = [f"-I{STUB}", f"-I{folder.path.parent}", f"-DOFFSET={offset}"]
    subprocess.run(["g++", *FLAGS, *include, *made, STUB / "echo.cc", "-o", tmp_path / "main"], check=True)
    ran = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert ran.returncode == code
    assert ran.stdout.startswith("failed: another output" if code else f"ok: model {folder.bytes} bytes")


@needs_gxx
@pytest.mark.parametrize("target", ["tflite_int8", "tflite_int16x8"])
def test_the_arrays_compile_link_and_hold_what_they_should(target, tmp_path):
    file = export(net(), target, path=tmp_path / "m.tflite", calibration=images())
    made = export(file, "tflm", path=tmp_path / "c", calibration=images())
    (tmp_path / "c/check.cc").write_text(
        '#include "golden.h"\n#include "model_data.h"\n#include <cstdio>\n'
        "int main() {\n  using namespace orbit_kd;\n"
        "  std::fwrite(kGoldenInput, sizeof(Input), kInputSize, stdout);\n"
        "  std::fwrite(kGoldenOutput, sizeof(Output), kOutputSize, stdout);\n"
        "  std::fwrite(model_data, 1, model_data_len, stdout);\n"
        "  auto odd = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 != 0; };\n"
        "  return odd(model_data) || odd(kGoldenInput) || odd(kGoldenOutput);\n}\n"
    )
    command = ["g++", *FLAGS, "check.cc", "golden.cc", "model_data.cc", "-o", "check"]
    subprocess.run(command, cwd=tmp_path / "c", check=True)
    ran = subprocess.run([tmp_path / "c/check"], check=True, capture_output=True).stdout
    kind = runtimes.load(file.path).input.dtype
    sent, expected = (a.astype(kind) for a in golden(made))
    assert ran == sent.tobytes() + expected.tobytes() + file.path.read_bytes()


def test_the_golden_output_is_what_tflite_micro_computes_from_a_calibration_image(folder, int8):
    sent, expected = golden(folder)
    runner = runtimes.load(int8.path, runtime="tflm")
    sent = sent.reshape(1, 12, 12, 3)
    assert any(np.array_equal(sent, q[None]) for q in runner.input.quantize(images()))
    np.testing.assert_array_equal(runner.raw(sent.astype(np.int8))[0], expected)
    reference = runtimes.load(int8.path, runtime="litert_reference").raw(sent.astype(np.int8))[0]
    assert np.abs(reference.astype(int) - expected).max() <= 1
    assert "image of the calibration data" in folder.path.with_name("golden.h").read_text()


def test_without_calibration_the_golden_input_is_random_seeded_and_said_to_be(int8, tmp_path):
    made = [export(int8.path, "tflm", path=tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4))]
    first, same, other = (golden(m)[0] for m in made)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other) and first.min() < -100 and first.max() > 100
    assert "random input, seed 3" in made[0].path.with_name("golden.h").read_text()


def test_scales_and_zero_points_are_those_of_the_file(folder, int8):
    runner = runtimes.load(int8.path)
    for side, port in (("Input", runner.input), ("Output", runner.output)):
        assert np.float32(constant(folder, f"k{side}Scale")) == np.float32(port.scale)
        assert constant(folder, f"k{side}ZeroPoint") == port.zero_point
        assert constant(folder, f"k{side}Size") == np.prod(port.shape)


def test_the_arena_is_enough_and_the_measured_part_not_16_bytes_too_much(folder, int8):
    from tflite_micro.python.tflite_micro import runtime

    data, measured = int8.path.read_bytes(), folder.details["arena_bytes"]
    assert constant(folder, "kTensorArenaSize") == folder.details["tensor_arena_bytes"]
    assert folder.details["tensor_arena_bytes"] % 16 == 0
    assert 0 <= folder.details["tensor_arena_bytes"] - measured - folder.details["arena_margin"] < 16

    def runs(size: int) -> bool:
        with native_stderr():
            try:
                interpreter = runtime.Interpreter.from_bytes(data, arena_size=size)
                interpreter.set_input(np.zeros((1, 12, 12, 3), np.int8), 0)
                interpreter.invoke()
            except RuntimeError:
                return False
        return True

    assert runs(measured) and not runs(measured - 16)


def test_the_margin_is_the_largest_scratch_memory_of_cmsis_nn(int8):
    # Second convolution: 4 bytes for each of 3 * 3 * 16 weights; depthwise on Helium: 4 * 124 * 3 * 3. Then 1 KiB.
    assert arena_margin(int8.path.read_bytes()) == max(4 * 144, 4 * 124 * 9) + 1024


def test_operators_are_listed_once_each_as_the_file_has_them(folder):
    header = folder.path.with_name("model_operators.h").read_text()
    called = re.findall(r"resolver\.(\w+)\(\)", header)
    assert sorted(called) == sorted(folder.details["operators"]) == [
        "AddAdd", "AddAveragePool2D", "AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddReshape"
    ]  # fmt: skip
    assert "tflite::MicroMutableOpResolver<6>" in header


def test_the_table_of_operators_is_that_of_the_installed_tflite_micro():
    place = Path(importlib.util.find_spec("tflite_micro").submodule_search_locations[0])
    library = (place / "python/tflite_micro/_runtime.so").read_bytes()
    builtin = {name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    registered = {name.decode() for name in re.findall(rb"Register_([A-Z0-9_]+?)E?v", library)}
    assert builtin & registered == set(ADD_METHODS) and len(ADD_METHODS) == 100
    assert all(name.replace("_", "").lower() == method[3:].lower() for name, method in ADD_METHODS.items())


@pytest.fixture(scope="module")
def gelu(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("gelu") / "gelu.tflite"
    return export(net("gelu"), "tflite_int8", path=file, calibration=images()).path


def test_an_operator_tflite_micro_lacks_is_named(gelu, tmp_path):
    assert any(code.builtinCode == schema.BuiltinOperator.GELU for code in parse(gelu.read_bytes()).operatorCodes)
    with pytest.raises(InputError, match=r"has no operator GELU\.\n.*expected: .*RELU"):
        export(gelu, "tflm", path=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_operators_of_all_subgraphs_are_looked_at(int8):
    model = parse(int8.path.read_bytes())
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.SOFTMAX))
    step = schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, inputs=[0], outputs=[0])
    model.subgraphs.append(schema.SubGraphT(operators=[step]))
    assert add_methods(model)[-1] == "AddSoftmax"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    model = net()
    for layer in model.layers:
        if layer.name in ("second", "head"):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) < 0.1))
    file = tmp_path_factory.mktemp("sparse") / "sparse.tflite"
    with native_stderr():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        file.write_bytes(converter.convert())
    return file


def test_a_sparse_encoded_file_is_refused_and_told_to_be_exported_dense(sparse, tmp_path):
    with pytest.raises(InputError, match=r"sparse encoding.*no DENSIFY[\s\S]*export dense"):
        export(sparse, "tflm", path=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_too_little_flash_names_the_layer_with_the_largest_weights(int8, tmp_path):
    limit = int8.bytes - 1
    with pytest.raises(InputError) as caught:
        export(int8, "tflm", path=tmp_path / "c", max_flash=limit)
    message = str(caught.value)
    assert f"{int8.bytes:,}" in message and f"{limit:,}" in message and "max_flash" in message
    assert "CONV_2D 24x3x3x16" in message and "second" in message  # 3,456 weights; the dense layer has 3,000
    assert not (tmp_path / "c").exists()
    assert export(int8, "tflm", path=tmp_path / "c", max_flash=int8.bytes).bytes == int8.bytes


def test_too_small_an_arena_names_the_tensors_alive_at_the_peak(int8, folder, tmp_path):
    size = folder.details["tensor_arena_bytes"]
    with pytest.raises(InputError) as caught:
        export(int8, "tflm", path=tmp_path / "c", max_arena=size - 1)
    message = str(caught.value)
    assert f"{size:,}" in message and f"{size - 1:,}" in message and "max_arena" in message
    assert "peak is at ADD" in message and message.count("2,304") == 3  # 12 x 12 x 16: two in, one out
    assert not (tmp_path / "c").exists()
    export(int8, "tflm", path=tmp_path / "c", max_arena=size)


def test_a_skipped_tensor_is_alive_until_it_is_added():
    image = layers.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same")(image)
    y = layers.Conv2D(8, 3, padding="same")(layers.Conv2D(8, 3, padding="same")(x))
    model = keras.Model(image, layers.Conv2D(1, 1)(layers.Concatenate()([x, y])))
    with native_stderr():
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    layer, tensors = peak(data)
    # At the concatenation: 4 channels, 8 channels, and 12 that it writes, of 64 float32 pixels each.
    assert layer.startswith("CONCATENATION") and [size for _, size in tensors] == [12 * 256, 8 * 256, 4 * 256]


def test_float_ports_are_refused(tmp_path):
    file = export(net(), "tflite_int8", path=tmp_path / "m.tflite", calibration=images(), float_io=True)
    with pytest.raises(InputError, match=r"input is float32[\s\S]*without float_io"):
        export(file, "tflm", path=tmp_path / "c")


def test_bad_files_and_images_are_refused(int8, tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"no model")
    for source, data, said in (
        (tmp_path / "x.tflite", None, "Not a .tflite file"),
        (tmp_path / "none.tflite", None, "No such file"),
        (int8, images()[..., :1], r"shape \(12, 12, 1\)"),
        (int8, np.full((3, 12, 12, 3), np.nan, np.float32), "NaN or Inf"),
        (int8, images()[:0], "empty"),
    ):
        with pytest.raises(InputError, match=said):
            export(source, "tflm", path=tmp_path / "c", calibration=data)
    assert not (tmp_path / "c").exists()


@pytest.fixture
def without_tflite_micro(monkeypatch):
    known = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "tflite_micro" else known(name, *rest)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", missing)


def test_without_tflite_micro_the_extra_is_named(int8, tmp_path, without_tflite_micro):
    with pytest.raises(InputError, match=r'pip install "orbit-kd\[mcu\]"'):
        export(int8, "tflm", path=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_export_all_makes_it_of_the_int8_file_it_wrote_and_of_a_keras_model_alone(tmp_path):
    model, note = net(), {"classes": ["a"]}
    file, made = export_all(
        model, ["tflite_int8", "tflm"], folder=tmp_path, stem="s", calibration=images(), metadata=note, samples=20
    )
    assert made.path == tmp_path / "s_tflm/model_data.cc" and read_c_array(made.path) == file.path.read_bytes()
    assert read_metadata(read_c_array(made.path)) == note and made.details["calibration_images"] == 20
    alone = export(model, "tflm", path=tmp_path / "alone", calibration=images(), metadata=note, samples=20)
    assert read_c_array(alone.path) == file.path.read_bytes()


# Weight-clustered models.


@pytest.fixture(scope="module")
def clustered(tmp_path_factory) -> Artifact:
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.Conv2D(16, 3, name="first")(image))
    x = layers.ReLU()(layers.Conv2D(48, 3, name="second")(x))
    model = keras.Model(image, layers.Dense(5, name="head")(layers.Flatten()(layers.AveragePooling2D(4)(x))))
    shared = okd.strip_clusters(okd.cluster(model, clusters=16))
    return export(shared, "tflite_int8", path=tmp_path_factory.mktemp("c") / "c.tflite", calibration=images())


def test_clustered_weights_take_fewer_bytes_and_give_the_same_outputs_in_tflite_micro(clustered, tmp_path):
    made = export(clustered, "tflm", path=tmp_path / "c", compress=True, calibration=images())
    data = read_c_array(made.path)
    assert made.bytes == len(data) < 0.9 * clustered.bytes == 0.9 * made.details["uncompressed_bytes"]
    plain, small = (runtimes.load(d, runtime="tflm") for d in (clustered.path, data))
    np.testing.assert_array_equal(runtimes.run(plain, images(), raw=True), runtimes.run(small, images(), raw=True))
    assert small.arena_bytes == made.details["arena_bytes"] > plain.arena_bytes  # the kernels are decoded into it
    assert made.details["compressed_layers"] and set(made.details["compressed_layers"].values()) == {4}
    assert "AddDecode" in made.details["operators"]
    if shutil.which("g++"):
        assert compiles(tmp_path / "c").returncode == 0


def test_compression_raises_no_limit(clustered, tmp_path):
    limit = clustered.bytes - 1
    with pytest.raises(InputError, match="of flash"):
        export(clustered, "tflm", path=tmp_path / "c", max_flash=limit)
    assert export(clustered, "tflm", path=tmp_path / "c", max_flash=limit, compress=True).bytes <= limit
    with pytest.raises(InputError, match=r"of flash\. The largest layer is .*CONV_2D 48x3x3x16"):
        export(clustered, "tflm", path=tmp_path / "d", max_flash=1000, compress=True)
    with pytest.raises(InputError, match=r"second.*_decoded' 6,912"):
        export(clustered, "tflm", path=tmp_path / "d", max_arena=1000, compress=True)


def test_weights_that_are_not_clustered_are_not_compressed(int8, tmp_path):
    with pytest.raises(InputError, match=r"fewer bytes[\s\S]*okd\.cluster"):
        export(int8, "tflm", path=tmp_path / "c", compress=True)
    assert not (tmp_path / "c").exists()


def test_a_compressed_file_that_computes_otherwise_is_refused(clustered, tmp_path, monkeypatch):
    """With one table for a kernel that has a scale a channel, TFLM decodes without a word, and is wrong."""
    from tflite_micro.tensorflow.lite.micro.compression import spec

    monkeypatch.setattr("orbit_kd.exporters.tflm.compression._BITS", 8)
    monkeypatch.setattr(
        "orbit_kd.exporters.tflm.compression._kernels",
        lambda data: [(k, 0, 7, "x") for k in per_tensor_candidates(data)],
    )
    monkeypatch.setattr(spec, "PerChannel", lambda axis: spec.PerTensor())
    with pytest.raises(InputError, match="computes other outputs"):
        export(clustered, "tflm", path=tmp_path / "c", compress=True)


def per_tensor_candidates(data: bytes) -> list[int]:
    from orbit_kd.tflite.subgraph import Subgraph

    graph = Subgraph(parse(data))
    kernels = [k for k in map(graph.kernel, graph.operators) if k is not None]
    found = [
        k for k in kernels if len(np.unique(graph.dense(k))) <= 128 and len(graph.tensors[k].quantization.scale) > 1
    ]
    assert found
    return found


# The tools.


def test_the_export_tool_writes_the_folder(int8, tmp_path, tool):
    limits = ["--max_flash=100000", "--max_arena=100000"]
    result = tool("export", f"--model={int8.path}", "--targets=tflm", f"--output={tmp_path}", *limits)
    assert result.returncode == 0, result.stderr
    assert {f.name for f in (tmp_path / "m_tflm").iterdir()} == NAMES and "tflm: " in result.stdout


@pytest.mark.parametrize(
    ("file", "flags", "said"),
    [
        ("int8", ["--max_flash=1000"], "The largest layer is"),
        ("int8", ["--max_arena=1000"], "The peak is at"),
        ("int8", ["--compress"], "fewer bytes"),
        ("int8", ["--targets=c_array", "--max_flash=1000"], "looks at --max_flash"),
        ("gelu", [], "no operator GELU"),
        ("sparse", [], "sparse encoding"),
    ],
)
def test_the_export_tool_says_what_is_wrong_and_ends_with_1(file, flags, said, request, tmp_path, tool):
    given = request.getfixturevalue(file)
    model = given.path if isinstance(given, Artifact) else given
    result = tool("export", f"--model={model}", "--targets=tflm", f"--output={tmp_path}", *flags)
    assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr
    assert "expected:" in result.stderr and "to do:" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_export_tool_names_the_extra_that_is_missing(int8, tmp_path, tool, without_tflite_micro):
    result = tool("export", f"--model={int8.path}", "--targets=tflm", f"--output={tmp_path}")
    assert result.returncode == 1 and 'pip install "orbit-kd[mcu]"' in result.stderr


# Real networks on real images.

REFERENCES = sorted(Path(__file__).parent.with_name("models").glob("*mstar*/*_int8.tflite"))


@pytest.mark.slow
@pytest.mark.parametrize("file", REFERENCES, ids=lambda f: f.parent.name)
def test_reference_models_agree_on_200_real_chips_and_their_arena_is_measured(file, real_data, tmp_path):
    from orbit_kd.datasets import load
    from orbit_kd.datasets.preprocessing import Preprocess

    told = read_metadata(file)["preprocess"]
    preprocess = Preprocess(**told)
    chips = np.concatenate([x for x, _ in load(str(real_data / "mstar10"), preprocess=preprocess).test])
    chosen = chips[np.random.default_rng(0).choice(len(chips), 200, replace=False)]
    made = export(file, "tflm", path=tmp_path / "c", calibration=chosen)
    data = read_c_array(made.path)
    parity = tflm_parity(data, chosen)
    assert parity.ran and parity.compared == 200 and parity.max_lsb <= 1
    assert parity.arena_bytes == made.details["arena_bytes"] < made.details["tensor_arena_bytes"]
    # The plan cannot be smaller than the tensors of its largest moment, and TFLM's tables are small beside them.
    alive = sum(size for _, size in peak(data)[1])
    assert alive <= parity.arena_bytes < alive + 0.2 * alive
    if shutil.which("g++"):
        assert compiles(tmp_path / "c").returncode == 0
    print(f"{file.parent.name}: {made.bytes:,} bytes, arena {parity.arena_bytes:,}, {parity.max_lsb} LSB of 200")
