"""float16, dynamic-range and int16x8 files: what they hold, how near they are to Keras, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import export, open_artifact, read_metadata
from orbit_kd.tflite.summary import read

layers = keras.layers
VARIANTS = ["tflite_float16", "tflite_dynamic", "tflite_int16x8"]
# Of the largest output: float16 has 11 bits, int16 activations leave the rounding of int8 weights.
TOLERANCE = {"tflite_float16": 2e-3, "tflite_dynamic": 3e-2, "tflite_int16x8": 2e-2}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, 12, 12, 3)).astype(np.float32)


def net() -> keras.Model:
    """Kernels of 1,024 weights or more each, as the converter leaves smaller ones in float where it may."""
    keras.utils.set_random_seed(0)
    image = layers.Input((12, 12, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(40, 3, padding="same")(image)))
    x = layers.Add()([x, layers.Conv2D(40, 3, padding="same")(x)])
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    return keras.Model(image, layers.Dense(5)(x))


@pytest.mark.parametrize("target", VARIANTS)
def test_a_variant_is_near_keras_and_known_by_its_file(target, tmp_path, images):
    model = net()
    note = {"classes": ["a", "b"]}
    made = export(model, target, path=tmp_path / "m.tflite", calibration=images, metadata=note)
    expected = model(images).numpy()
    for runtime in ("litert", "litert_reference"):
        found = runtimes.predict(made.path, images, runtime=runtime)
        assert np.abs(found - expected).max() <= TOLERANCE[target] * np.abs(expected).max()
        assert np.abs(found - expected).max() > 0  # it is not the float file
    assert open_artifact(made.path).target == target
    assert read_metadata(made.path) == note
    assert runtimes.load(made.path).input.shape == (12, 12, 3)


def test_weights_and_activations_have_the_types_they_are_named_after(tmp_path, images):
    model = net()
    kinds = {}
    for target in VARIANTS:
        made = export(model, target, path=tmp_path / f"{target}.tflite", calibration=images)
        kinds[target] = {(op.dtype, op.output_dtype) for op in read(made.path).ops if op.weight_shape}
    assert kinds == {
        "tflite_float16": {("float16", "float32")},
        "tflite_dynamic": {("int8", "float32")},
        "tflite_int16x8": {("int8", "int16")},
    }


def test_bytes_go_down_from_float32_to_float16_to_int8_weights(tmp_path, images):
    model = net()
    names = ["tflite_float32", *VARIANTS]
    size = {n: export(model, n, path=tmp_path / n, calibration=images).bytes for n in names}
    assert size["tflite_float16"] < 0.6 * size["tflite_float32"]
    assert size["tflite_dynamic"] < 0.4 * size["tflite_float32"]
    assert size["tflite_int16x8"] < 0.4 * size["tflite_float32"]


def test_int16x8_is_nearer_to_float_than_int8(tmp_path, images):
    model = net()
    expected = model(images).numpy()
    error = {}
    for target in ("tflite_int8", "tflite_int16x8"):
        made = export(model, target, path=tmp_path / target, calibration=images)
        error[target] = np.abs(runtimes.predict(made.path, images) - expected).mean()
    assert error["tflite_int16x8"] < 0.5 * error["tflite_int8"]


@pytest.mark.parametrize(("target", "kind"), [("tflite_int8", np.int8), ("tflite_int16x8", np.int16)])
def test_float_io_changes_the_ports_and_not_the_results(target, kind, tmp_path, images):
    model = net()
    plain = export(model, target, path=tmp_path / "i.tflite", calibration=images)
    floats = export(model, target, path=tmp_path / "f.tflite", calibration=images, float_io=True)
    assert runtimes.load(plain.path).input.dtype == runtimes.load(plain.path).output.dtype == kind
    assert runtimes.load(floats.path).input.dtype == runtimes.load(floats.path).output.dtype == np.float32
    assert open_artifact(floats.path).target == target
    a, b = (runtimes.predict(made.path, images, runtime="litert_reference") for made in (plain, floats))
    np.testing.assert_allclose(a, b, atol=1.01 * runtimes.load(plain.path).output.scale)


def test_tflite_micro_runs_int16x8_as_litert_does_and_refuses_the_float_ones(tmp_path, images):
    model = net()
    made = {t: export(model, t, path=tmp_path / t, calibration=images) for t in VARIANTS}
    parity = tflm_parity(made["tflite_int16x8"].path, images[:10])
    assert parity.ran and parity.max_lsb <= 1
    for target in ("tflite_float16", "tflite_dynamic"):
        with pytest.raises(InputError, match="TensorFlow Lite Micro cannot run the file"):
            runtimes.load(made[target].path, runtime="tflm")


def test_int16x8_calibrates_on_the_images_it_says(tmp_path, images):
    made = export(net(), "tflite_int16x8", path=tmp_path / "m", calibration=images, samples=7, seed=3)
    assert made.details == {"calibration_images": 7, "seed": 3}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "No calibration data"),
        (np.zeros((0, 12, 12, 3), np.float32), "empty"),
        (np.full((4, 12, 12, 3), np.nan, np.float32), "NaN or Inf"),
        (np.zeros((4, 12, 12, 1), np.float32), r"shape \(12, 12, 1\)"),
    ],
)
def test_int16x8_refuses_calibration_data_it_cannot_use(tmp_path, data, said):
    with pytest.raises(InputError, match=said):
        export(net(), "tflite_int16x8", path=tmp_path / "m", calibration=data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", VARIANTS)
def test_weights_that_are_not_finite_are_refused(target, tmp_path, images):
    model = net()
    model.layers[-1].bias.assign([0, 0, np.inf, 0, 0])
    with pytest.raises(InputError, match="NaN or Inf"):
        export(model, target, path=tmp_path / "m", calibration=images)


@pytest.mark.parametrize("target", VARIANTS)
def test_a_quantization_aware_model_is_refused(target, tmp_path, images):
    aware = okd.quantize_aware(net(), calibration=images)
    with pytest.raises(InputError, match=r"okd\.strip_quantization\(model\)"):
        export(aware, target, path=tmp_path / "m", calibration=images)


def test_a_weight_beyond_float16_is_refused_also_when_folding_makes_it(tmp_path, images):
    model = net()
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    norm.gamma.assign(norm.gamma * 1e6)
    with pytest.raises(InputError, match="does not fit into float16"):
        export(model, "tflite_float16", path=tmp_path / "m")
    assert not list(tmp_path.iterdir())
    assert export(model, "tflite_float32", path=tmp_path / "m").bytes  # its weights themselves are finite


def test_the_tools_export_and_evaluate_every_kind(tmp_path, tool):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, kind in enumerate(("left", "right")):
            (tmp_path / "images" / split / kind).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 60, (12, 12), dtype=np.uint8)
                pixels[:, 6 * label : 6 * label + 6] += 150
                Image.fromarray(pixels).save(tmp_path / "images" / split / kind / f"{i}.png")
    image = layers.Input((12, 12, 1))
    x = layers.AveragePooling2D(4)(layers.ReLU()(layers.Conv2D(128, 3, padding="same")(image)))
    keras.Model(image, layers.Dense(2)(layers.Conv2D(128, 3)(x)[:, 0, 0])).save(tmp_path / "m.keras")
    data = [f"--data_dir={tmp_path}/images", "--validation=0.25"]
    targets = [*VARIANTS, "tflm"]
    result = tool(
        "export", *data, f"--model={tmp_path}/m.keras", f"--output={tmp_path}", f"--targets={','.join(targets)}"
    )
    assert result.returncode == 0, result.stderr
    files = [tmp_path / f"m_{t}{'/model_data.cc' if t == 'tflm' else '.tflite'}" for t in targets]
    result = tool("evaluate", *data, f"--models={','.join(map(str, files))}", f"--output={tmp_path}/report")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "report/report.json").read_text())["artifacts"]
    assert [row["target"] for row in rows] == [*VARIANTS, "c_array"]
    assert {row["accuracy"] for row in rows} <= {i / 12 for i in range(13)}
    assert [row["tflm"]["ran"] for row in rows] == [False, False, True, True]
