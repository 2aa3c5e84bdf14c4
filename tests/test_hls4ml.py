"""hls4ml projects: the same network, types wide enough for what was seen, the compiled code close to Keras."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess

import numpy as np
import pytest
import tf_keras as keras

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.datasets import load
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.exporters import Artifact, export, open_artifact
from orbit_kd.exporters.hls4ml import export as hls4ml_export
from orbit_kd.exporters.hls4ml.adders import count_adders
from orbit_kd.exporters.hls4ml.limits import fitting_reuse_factor
from orbit_kd.exporters.hls4ml.network import plain
from orbit_kd.exporters.hls4ml.precision import Fixed, precisions, ranges
from orbit_kd.exporters.hls4ml.project import build, run_project
from orbit_kd.models.networks import build as network_of
from orbit_kd.reports import tables
from orbit_kd.runtimes.compiled import NOTE
from orbit_kd.sparsity.sparsify import sparsify, strip

layers = keras.layers


def random_weights(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(3)
    for v in model.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "variance" in v.name else rng.normal(0, 0.4, v.shape))
    return model


def net() -> keras.Model:
    """All that is folded or kept: Rescaling, convolution with and without its normalization, ReLU6, Add, pooling."""
    image = layers.Input((10, 8, 2), name="chip")
    x = layers.Rescaling(1 / 255, name="rescaling")(image)
    x = layers.BatchNormalization(name="norm1")(layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(x))
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(1.0, name="capped")(x))
    y = layers.BatchNormalization(name="norm2")(layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2")(x))
    x = layers.Dropout(0.5, name="drop")(layers.Add(name="add")([x, y]))
    x = layers.AveragePooling2D(name="average")(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x))
    x = layers.Dense(6, activation="relu", name="hidden")(layers.Flatten(name="flatten")(x))
    return random_weights(keras.Model(image, layers.Dense(3, name="logits")(x), name="small"))


def tiny() -> keras.Model:
    image = layers.Input((6,), name="features")
    x = layers.Dense(5, activation="relu", name="hidden")(image)
    return random_weights(keras.Model(image, layers.Dense(3, name="logits")(x)))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, (40, 10, 8, 2)).astype(np.float32)


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)


@pytest.mark.parametrize("make", [net, tiny])
def test_the_plain_network_gives_the_same_outputs(make):
    model = make()
    x = np.random.default_rng(2).uniform(0, 255, (9, *model.input_shape[1:])).astype(np.float32)
    expected = model(x).numpy()
    before = [w.copy() for w in model.get_weights()]
    np.testing.assert_allclose(plain(model)(x).numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("name", ["vgg16", "a_convnet", "resnet20", "mobilenet_v1"])
def test_the_reference_networks_can_be_made_plain(name):
    model = random_weights(network_of(name, (32, 32, 1), classes=4, width=0.125))
    x = np.random.default_rng(2).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    expected = model(x).numpy()
    np.testing.assert_allclose(plain(model)(x).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_normalization_goes_into_the_kernel_only_where_that_is_exact():
    names = [layer.name for layer in plain(net()).layers]
    assert "norm1" not in names and "rescaling" not in names and "drop" not in names
    assert "norm2" in names  # a relu stands before it
    shifted = layers.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, padding="same", name="conv")(layers.Rescaling(2.0, offset=-1.0, name="shift")(shifted))
    assert "shift" in [layer.name for layer in plain(keras.Model(shifted, x)).layers]  # its border is not -1
    image = layers.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, name="conv")(image)
    twice = keras.Model(image, layers.Add()([x, layers.BatchNormalization(name="norm")(x)]))
    assert "norm" in [layer.name for layer in plain(random_weights(twice)).layers]  # the bare result is read too


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0, 1.0, "ap_ufixed<16,1,AP_RND,AP_SAT>"),
        (0.0, 0.9, "ap_ufixed<16,0,AP_RND,AP_SAT>"),
        (0.0, 255.0, "ap_ufixed<16,8,AP_RND,AP_SAT>"),
        (-3.0, 1.0, "ap_fixed<16,3,AP_RND,AP_SAT>"),
        (-0.01, 0.001, "ap_fixed<16,-5,AP_RND,AP_SAT>"),
        (0.0, 0.0, "ap_ufixed<16,0,AP_RND,AP_SAT>"),
    ],
)
def test_a_type_reaches_from_the_lowest_to_the_highest_value(low, high, text):
    kind = Fixed.holding(low, high, width=16)
    assert str(kind) == text
    steps = kind.quantize(np.array([low, high]))
    np.testing.assert_allclose(steps / 2.0**kind.fraction, [low, high], atol=2.0**-kind.fraction)


def test_types_follow_the_observed_ranges(images):
    network = plain(net())
    observed = ranges(network, images)
    probe = keras.Model(network.input, network.get_layer("conv2").output)(images).numpy()
    np.testing.assert_allclose(observed["conv2"], (probe.min(), probe.max()), rtol=1e-5)
    types = precisions(network, observed, bits=16, weight_bits=10)
    assert str(types["chip"]["result"]) == "ap_ufixed<16,8,AP_RND,AP_SAT>"
    assert types["conv1"]["weight"].width == 10 and types["conv1"]["weight"].integer < -4  # it holds 1/255
    for name, own in types.items():
        largest = max(map(abs, observed[name]))
        room = own["result"].integer - own["result"].signed
        assert 2.0**room >= largest and 2.0 ** (room - 1) <= max(largest, 2.0 ** (room - 1)), name
    assert len({str(own["result"]) for own in types.values()}) > 3
    ten = precisions(network, ranges(network, images * 10), bits=16, weight_bits=10)
    assert ten["logits"]["result"].integer > types["logits"]["result"].integer


def conv(**options) -> keras.Model:
    image = layers.Input((8, 8, 4))
    return keras.Model(image, layers.Conv2D(4, 3, name="odd", **options)(image))


def with_layer(layer: layers.Layer) -> keras.Model:
    image = layers.Input((8, 8, 4))
    return keras.Model(image, layer(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_layer(layers.Conv2DTranspose(4, 3, name="odd")), "'odd': it is a Conv2DTranspose"),
        (lambda: with_layer(layers.Softmax(name="odd")), "'odd': it is a Softmax"),
        (lambda: conv(activation="gelu"), "'odd': it has the activation 'gelu'"),
        (lambda: conv(dilation_rate=2), "'odd': it is dilated"),
        (lambda: conv(groups=2), "'odd': it is dilated, grouped"),
        (lambda: with_layer(layers.DepthwiseConv2D(3, depth_multiplier=2, name="odd")), "depth multiplier"),
        (lambda: with_layer(layers.ReLU(negative_slope=0.1, name="odd")), "'odd': it has a negative slope"),
        (lambda: with_layer(layers.BatchNormalization(axis=1, name="odd")), "'odd': it normalizes another axis"),
        (lambda: with_layer(keras.Sequential([layers.ReLU()], name="odd")), "'odd': it is a Sequential"),
    ],
)
def test_a_layer_hls4ml_does_not_take_is_named(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        export(make(), "hls4ml", path=tmp_path / "p", calibration=np.zeros((2, 8, 8, 4)))
    assert not (tmp_path / "p").exists()


def test_a_layer_used_twice_is_named():
    image, shared = layers.Input((8, 8, 4)), layers.Conv2D(4, 3, padding="same", name="odd")
    with pytest.raises(InputError, match="'odd': it is used more than once"):
        plain(keras.Model(image, shared(shared(image))))


def test_a_network_that_is_too_large_is_told_before_anything_runs(tmp_path):
    large = network_of("vgg16", (32, 32, 1), classes=10, width=0.5)
    x = np.zeros((1, 32, 32, 1))
    with pytest.raises(InputError, match=r"reuse factor of 16 are [\d,]+ multipliers[\s\S]*reuse_factor=\d+ or more"):
        export(large, "hls4ml", path=tmp_path / "p", calibration=x, max_weight_bits=10**9, reuse_factor=16)
    with pytest.raises(InputError, match=r"too large for hls4ml: its weights take [\d,]+ bits[\s\S]*'block\d_conv\d'"):
        export(large, "hls4ml", path=tmp_path / "p", calibration=x)
    with pytest.raises(InputError, match="reuse factor of 1"):
        export(large, "hls4ml", path=tmp_path / "p", calibration=x, max_weight_bits=10**9, strategy="latency")


def test_bad_input_is_refused(tmp_path, features):
    model, path = tiny(), tmp_path / "p"
    with pytest.raises(InputError, match="No calibration"):
        export(model, "hls4ml", path=path)
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        export(model, "hls4ml", path=path, calibration=features[:, :5])
    for option in ({"io_type": "io_x"}, {"strategy": "x"}, {"reuse_factor": 0}, {"bits": 40}, {"samples": 0}):
        with pytest.raises(InputError, match=next(iter(option))):
            export(model, "hls4ml", path=path, calibration=features, **option)
    path.mkdir()
    (path / "thesis.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds something else"):
        export(model, "hls4ml", path=path, calibration=features)
    assert (path / "thesis.txt").read_text() == "keep me"
    with pytest.raises(InputError, match="holds no project"):
        run_project(path, features)


def test_missing_packages_and_a_missing_compiler_are_told(tmp_path, features, monkeypatch):
    find, which = importlib.util.find_spec, shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("hls4ml", "da4ml") else find(name))
    with pytest.raises(InputError, match=r'pip install "orbit-kd\[fpga\]"'):
        export(tiny(), "hls4ml", path=tmp_path / "p", calibration=features)
    counted = count_adders({"a": np.array([[1, 3]])}, limit=10)
    assert "orbit-kd[fpga]" in counted["a"]["not_run"]
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "g++" else which(name))
    with pytest.raises(InputError, match=r"g\+\+ is not installed"):
        export(tiny(), "hls4ml", path=tmp_path / "p", calibration=features)


def test_zeros_save_adders_and_what_is_too_large_is_not_run():
    rng = np.random.default_rng(0)
    kernel = rng.integers(1, 64, (16, 4)) * rng.choice([-1, 1], (16, 4))
    half = kernel * (np.arange(16) % 4 < 2)[:, None]
    told = count_adders({"full": kernel, "half": half, "large": np.ones((50, 50)), "none": half * 0}, limit=100)
    assert told["full"]["adders"] == told["full"]["dense_adders"] and told["full"]["zeros"] == 0
    assert told["half"]["zeros"] == 32
    assert 0.35 < told["half"]["adders"] / told["half"]["dense_adders"] < 0.75
    assert told["large"]["not_run"] == "2,500 weights; adder_limit is 100"
    assert told["none"]["not_run"] == "all zeros"
    # one weight of 1 is a wire, 3 = 2 + 1 is one adder
    assert count_adders({"a": np.array([[1]]), "b": np.array([[3]])}, limit=9)["b"]["adders"] == 1


def test_reuse_factors_are_those_that_the_templates_compute():
    for inputs, outputs in ((12, 24), (9, 16), (7, 5), (1, 1)):
        for wanted in (1, 4, 64, 1000):
            factor = fitting_reuse_factor(inputs, outputs, wanted=wanted)
            assert inputs * outputs % factor == 0 and (inputs % factor == 0 or factor % inputs == 0)
    assert fitting_reuse_factor(16, 16, wanted=64) == 64 and fitting_reuse_factor(12, 24, wanted=64) == 72


def checked_as_a_runtime(model, made, folder, x) -> np.ndarray:
    """What the project gives, the same in every way of asking, and in a row of the report."""
    outputs = run_project(folder, x)
    np.testing.assert_array_equal(okd.predict(made, x), outputs)
    np.testing.assert_array_equal(okd.predict(folder, x[3]), outputs[3])
    np.testing.assert_array_equal(runtimes.predict(made.path, x, runtime="hls4ml", threads=2), outputs)
    assert open_artifact(folder) == made
    labels = np.arange(len(x)) % 3
    small = export(model, "tflite_float32", path=folder.parent / "m.tflite")
    report = okd.evaluate([small, made], (x, labels), teacher=model, latency_runs=1)
    row = next(row for row in report.artifacts if row["target"] == "hls4ml")
    assert row["accuracy"] == np.mean(outputs.argmax(-1) == labels) and row["bytes"] == made.bytes
    assert row["mcnemar_p"] is not None and "hls4ml" in tables.artifacts(report.data).titles
    return outputs


def test_a_project_is_a_runtime_like_any_other(tmp_path, features):
    """One that stands for what hls4ml and g++ make: the first inputs, doubled."""
    folder, model = tmp_path / "p", tiny()
    (folder / "firmware").mkdir(parents=True)
    code = folder / "firmware" / "net.cpp"
    code.write_text('extern "C" void net_float(float *x, float *y) { for (int i = 0; i < 3; i++) y[i] = 2 * x[i]; }')
    subprocess.run(["g++", "-shared", "-fPIC", "-o", code.with_suffix(".so"), code], check=True)
    made = Artifact.of(b"weights", target="hls4ml", files=(code, folder / NOTE), details={"bits": 8})
    note = {"project": "net", "input": [6], "classes": 3, "artifact": made.to_dict(folder)}
    (folder / NOTE).write_text(json.dumps(note))
    np.testing.assert_array_equal(checked_as_a_runtime(model, made, folder, features), 2 * features[:, :3])
    (folder / NOTE).write_text(json.dumps({k: v for k, v in note.items() if k != "artifact"}))
    with pytest.raises(InputError, match="not finished"):
        okd.predict(folder, features)


@pytest.mark.slow
def test_a_real_project_is_a_runtime_like_any_other(tmp_path, features):
    made = export(tiny(), "hls4ml", path=tmp_path / "p", calibration=features, compare=1, adder_limit=0, bits=8)
    checked_as_a_runtime(tiny(), made, tmp_path / "p", features)


@pytest.mark.slow
def test_a_1x1_convolution_whose_widths_do_not_divide_64_compiles(tmp_path):
    image = layers.Input((4, 4, 12))
    model = keras.Model(image, layers.Flatten()(layers.Conv2D(20, 1, name="point")(image)))
    x = np.random.default_rng(0).normal(size=(20, 4, 4, 12)).astype(np.float32)
    made = export(model, "hls4ml", path=tmp_path / "p", calibration=x)
    assert made.details["relative_difference"] < 0.01
    assert next(r for r in made.details["layers"] if r["name"] == "point")["reuse_factor"] == 60


@pytest.mark.slow
def test_the_compiled_project_gives_what_keras_gives(tmp_path, images):
    model = net()
    artifact = export(model, "hls4ml", path=tmp_path / "p", calibration=images, reuse_factor=4)
    expected = model(images).numpy()
    outputs = run_project(tmp_path / "p", images)
    assert outputs.shape == (40, 3)
    # a small difference of two float32 outputs: how this machine rounds Keras' own shows in its fourth digit
    assert np.abs(outputs - expected).max() == pytest.approx(artifact.details["max_difference"], rel=1e-2)
    assert artifact.details["relative_difference"] < 0.01 and artifact.details["compared"] == 40
    assert artifact.details["agreement"] == np.mean(outputs.argmax(-1) == expected.argmax(-1))
    rows = {row["name"]: row for row in artifact.details["layers"]}
    assert rows["conv1"]["weight"].startswith("fixed<12,-") and rows["conv1"]["reuse_factor"] >= 1
    assert not any("16,6,TRN" in row["result"] for row in rows.values())  # nothing is left at hls4ml's default
    sizes = [2 * 4 * 9, 4 * 4 * 9, 4 * 9, 2 * 2 * 4 * 6, 6 * 3]  # conv1, conv2, depthwise, hidden, logits
    assert artifact.bytes == sum(sizes) * 12 // 8
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "p", moved)
    with pytest.raises(InputError, match="if it was moved, call `build` again"):
        run_project(moved, images)
    build(moved)
    np.testing.assert_array_equal(run_project(moved, images), outputs)
    with pytest.raises(InputError, match=r"shape \(8, 8, 2\)"):
        run_project(moved, images[:, :8])


@pytest.mark.slow
def test_a_dense_network_in_parallel_and_too_few_bits_show(tmp_path, features):
    model = tiny()
    model.get_layer("hidden").kernel.assign(model.get_layer("hidden").kernel * np.eye(6, 5))
    options = {"calibration": features, "io_type": "io_parallel", "strategy": "latency"}
    fine = export(model, "hls4ml", path=tmp_path / "p", **options).details
    coarse = export(model, "hls4ml", path=tmp_path / "p", bits=6, weight_bits=4, **options).details  # replaces it
    assert fine["relative_difference"] < 0.005 < coarse["relative_difference"]
    hidden = next(row for row in fine["layers"] if row["name"] == "hidden")
    assert hidden["n_zeros"]["weight"] == 25
    assert fine["adders"]["hidden"]["adders"] < fine["adders"]["hidden"]["dense_adders"]


@pytest.mark.slow
def test_a_build_that_fails_is_told(tmp_path, features, monkeypatch):
    monkeypatch.setattr(hls4ml_export, "PROJECT", "broken name")
    with pytest.raises(InputError, match=r"does not compile|cannot convert"):
        export(tiny(), "hls4ml", path=tmp_path / "p", calibration=features)


def arrays(part) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.concatenate(values) for values in zip(*part.as_numpy_iterator(), strict=True))
    return images, labels


@pytest.mark.slow
def test_a_2_4_student_on_real_chips_is_within_a_point_of_keras_and_takes_fewer_adders(real_data, tmp_path):
    data = load(real_data / "mstar10", preprocess=Preprocess(crop=64, resize=32), batch_size=64)
    image = layers.Input((32, 32, 1))
    x = layers.Rescaling(1 / 255)(image)
    for i, filters in enumerate((8, 16, 24), 1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x)))
    model = keras.Model(image, layers.Dense(len(data.class_names), name="logits")(layers.Flatten()(x)))
    sparse = sparsify(model, "2:4", schedule="constant", begin_step=400)
    sparse.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train = arrays(data.train)
    sparse.fit(*train, batch_size=32, epochs=10, verbose=0)
    student = strip(sparse)
    images, labels = arrays(data.test)
    chosen = np.random.default_rng(0).permutation(len(images))[:500]
    images, labels = images[chosen], labels[chosen]
    artifact = export(student, "hls4ml", path=tmp_path / "p", calibration=train[0])
    in_keras = np.mean(student(images).numpy().argmax(-1) == labels)
    in_hls = np.mean(run_project(tmp_path / "p", images).argmax(-1) == labels)
    details = artifact.details
    told = ("max_difference", "relative_difference", "agreement", "adders", "seconds")
    print(f"\nKeras {in_keras:.3f}, hls4ml {in_hls:.3f} on {len(images)} chips", {key: details[key] for key in told})
    assert in_keras > 0.6  # a network that learned nothing would agree too; chance is about 0.1
    assert abs(in_keras - in_hls) <= 0.01 and len(images) == 500
    zeros = {row["name"]: row["n_zeros"]["weight"] for row in details["layers"] if "weight" in row}
    assert zeros["conv2"] >= 8 * 9 * 16 / 2 and zeros["conv1"] < 72 / 2
    assert details["adders"]["conv2"]["adders"] < 0.7 * details["adders"]["conv2"]["dense_adders"]
