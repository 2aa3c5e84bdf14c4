"""The U-Net and the CenterNets: every step of a compression works on them as on classifiers."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from oracle import difference, randomize

from orbit_kd.errors import InputError
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.evaluation.prediction import predict
from orbit_kd.exporters import export
from orbit_kd.models import networks
from orbit_kd.models.dense_networks import centernet, unet
from orbit_kd.models.heads import heads
from orbit_kd.quantization.aware import quantize_aware, strip_quantization
from orbit_kd.quantization.table import quantize_table
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.sparsity.table import sparsity_table
from orbit_kd.tasks import choose, tasks

SIZE = (32, 32, 6)


def build(name: str) -> keras.Model:
    return networks.build(name, SIZE, classes=3, width=0.125)


def images(count: int = 24) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, *SIZE)).astype("float32")


DENSE = pytest.mark.parametrize("name", ["unet", "centernet", "centernet_resnet"])


def test_a_unet_gives_logits_of_each_pixel_for_any_number_of_bands():
    model = unet((32, 48, 11), classes=4, width=0.125, depth=2)
    assert model.output_shape == (None, 32, 48, 4)
    assert heads(model) == ("linear",)
    assert choose(model).name == "segmentation"
    assert [la.filters for la in model.layers if la.name in ("down0_1_conv", "down1_1_conv", "bottom_1_conv")] == [
        8,
        16,
        32,
    ]


def test_a_centernet_gives_a_quarter_of_the_image_in_sigmoids_and_starts_without_objects():
    model = centernet((64, 32, 3), classes=2, width=0.25)
    assert model.output_shape == (None, 16, 8, 6)
    assert heads(model) == ("sigmoid",)
    assert tasks.get("detection").of(model).classes == 2
    maps = model(images(2)[..., :3].repeat(2, axis=1)).numpy()
    assert 0.05 < maps.mean() < 0.2


@pytest.mark.parametrize("name", ["unet", "centernet"])
@pytest.mark.parametrize("shape", [(100, 96, 3), (8, 8, 3)])
def test_images_that_cannot_be_halved_are_refused(name, shape):
    with pytest.raises(InputError, match="multiples of 16"):
        networks.build(name, shape, classes=2)


def test_unknown_parts_are_refused():
    with pytest.raises(InputError, match="backbone"):
        centernet(SIZE, classes=2, backbone="vgg")
    with pytest.raises(InputError, match="depth=0"):
        unet(SIZE, classes=2, depth=0)


@DENSE
@pytest.mark.parametrize("criterion", ["l2_norm", "bn_scale"])
def test_filter_removal_matches_the_oracle_across_skips(name, criterion):
    model = randomize(build(name))
    plan = plan_removal(model, ratio=0.4, criterion=criterion)
    student = remove_filters(model, plan)
    assert difference(model, student, plan) <= 1e-4
    assert student.count_params() < 0.6 * model.count_params()
    assert student.output_shape == model.output_shape


@DENSE
def test_the_int8_file_is_the_network_and_runs_on_a_microcontroller(name, tmp_path):
    model, x = randomize(build(name)), images()
    model.get_layer("logits" if name == "unet" else "maps").bias.assign(np.zeros(3 if name == "unet" else 7))
    file = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x)
    expected, found = model.predict(x, verbose=0), predict(file, x)
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.9
    parity = tflm_parity(file.path, x[:3])
    assert parity.ran, parity.why
    assert parity.max_lsb <= 1


@DENSE
def test_two_of_four_weights_go_and_stay_gone(name):
    model = build(name)
    student = strip(sparsify(model, "2:4", schedule="one_shot"))
    rows = [row for row in sparsity_table(student) if row.pattern == "2:4"]
    assert len(rows) > 5
    assert student.output_shape == model.output_shape


def small(name: str) -> keras.Model:
    return unet(SIZE, classes=3, width=0.125, depth=2) if name == "unet" else build(name)


@pytest.mark.parametrize("name", ["unet", "centernet"])
def test_few_levels_are_exported_with_the_outputs_of_the_rounded_network(name, tmp_path):
    """Of a centernet as it starts too, whose last bias is one number for all channels."""
    model, x = small(name), images(8)
    aware = quantize_aware(model, bits=4, calibration=x)
    last = "logits" if name == "unet" else "maps"
    assert "kernel" in quantize_table(aware)[last].quantized
    kernel = strip_quantization(aware).get_layer(last).kernel.numpy()
    assert all(len(np.unique(kernel[..., i])) <= 15 for i in range(kernel.shape[-1]))
    file = export(aware, "tflite_int8", path=tmp_path / "m.tflite")
    found, expected = predict(file, x), aware.predict(x, verbose=0)
    assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()
