"""The Ethos-U target: what Vela compiles, what it costs there, and why an operator does not run 2:4."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.exporters import export, export_all, read_metadata
from orbit_kd.exporters.vela import export as vela
from orbit_kd.exporters.vela.export import ACCELERATORS, SYSTEMS
from orbit_kd.exporters.vela.twins import dense_twin, first_bad_group, kernels, sparse_twin
from orbit_kd.models.networks import build
from orbit_kd.sparsity.sparsify import sparsify, strip
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.reader import parse

pytest.importorskip("ethosu.vela", reason="ethos-u-vela is not installed (extra npu)")
layers = keras.layers


def net() -> keras.Model:
    """Convolution on 3 channels, depthwise, 3x3 and 1x1 convolutions, dense; random weights."""
    image = layers.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(16, 1)(layers.MaxPooling2D()(x))
    return keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(16, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, images) -> dict[str, bytes]:
    """The int8 file of one network, dense and 2:4."""
    keras.utils.set_random_seed(0)
    model = net()
    folder = tmp_path_factory.mktemp("int8")
    sparse = strip(sparsify(model, "2:4", schedule="one_shot"))
    made = {"dense": model, "2:4": sparse}
    return {
        name: export(m, "tflite_int8", path=folder / "m.tflite", calibration=images).path.read_bytes()
        for name, m in made.items()
    }


def compiled(tmp_path, data: bytes, variant: str = "ethos-u85-256", **options):
    source = tmp_path / "source.tflite"
    source.write_bytes(data)
    return export(source, f"vela:{variant}", path=tmp_path / "npu" / "m.tflite", **options)


def by_index(artifact) -> dict[int, dict]:
    return {row["index"]: row for row in artifact.details["operators"]}


def edited(data: bytes, index: int, change) -> bytes:
    """The file with `change` made in place to the kernel of one operator."""
    kernel = kernels(data)[index]
    new = kernel.copy()
    change(new)
    assert data.count(kernel.tobytes()) == 1
    return data.replace(kernel.tobytes(), new.tobytes())


def test_a_2_4_network_runs_2_4_on_u85_with_fewer_cycles_and_bytes_than_dense(tmp_path, files):
    dense, sparse = compiled(tmp_path, files["dense"]), compiled(tmp_path, files["2:4"])
    rows = by_index(sparse)
    big = rows[2]
    assert (big["op"], big["runs_on"], big["runs_2_4"], big["why_not_2_4"]) == ("CONV_2D", "NPU", True, "")
    assert big["cycles_2_4"] == big["cycles"] < 0.6 * big["cycles_dense"]
    assert big["cycles_dense"] == by_index(dense)[2]["cycles"]
    assert big["weight_bytes"] < 0.7 * by_index(dense)[2]["weight_bytes"]
    assert sparse.details["cycles"] < dense.details["cycles"]
    assert sparse.bytes < dense.bytes


def test_totals_are_the_sums_over_the_operators(tmp_path, files):
    details = compiled(tmp_path, files["2:4"]).details
    assert sum(row["weight_bytes"] for row in details["operators"]) == details["weight_bytes"]
    assert sum(row["npu_cycles"] for row in details["operators"]) == details["npu_cycles"]
    assert details["inferences_per_second"] == pytest.approx(1e9 / details["cycles"], rel=1e-3)  # a clock of 1 GHz
    assert details["sram_bytes"] > 0 and details["on_chip_flash_bytes"] >= details["weight_bytes"]


def test_every_operator_that_is_not_2_4_says_why(tmp_path, files):
    rows = by_index(compiled(tmp_path, files["2:4"]))
    assert rows[1]["why_not_2_4"] == "depthwise: one input channel a filter"
    for row in rows.values():
        has_kernel = row["op"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        assert bool(row["why_not_2_4"]) == (has_kernel and not row["runs_2_4"])


def test_the_database_agrees_with_the_register_command_stream(tmp_path, files):
    (tmp_path / "m.tflite").write_bytes(files["2:4"])
    system, mode = SYSTEMS["ethos-u85"]
    command = (
        f"-m ethosu.vela m.tflite --accelerator-config ethos-u85-256 --config Arm/vela.ini --system-config {system}"
    )
    command += f" --memory-mode {mode} --optimise Size --enable-debug-db --verbose-register-command-stream"
    text = subprocess.run(
        [sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    sparse, at = None, {}
    for line in text.splitlines():
        if "weight_sparsity" in line:
            sparse = "WEIGHT_SPARSITY_SPARSE_2_4" in line
        elif found := re.match(r"0x([0-9a-f]+):.*NPU_OP_CONV ", line):
            at[int(found[1], 16)] = sparse
    root = ElementTree.parse(tmp_path / "output" / "m_debug.xml").getroot()
    tables = {t.attrib["name"]: list(csv.DictReader(io.StringIO(t.text.strip()))) for t in root}
    place = {row["id"]: int(row["ext_key"]) for row in tables["source"]}
    source = {row["id"]: place[row["source_id"]] for row in tables["perf"]}
    stream = {
        source[row["scheduled_id"]]: at[int(row["offset"])] for row in tables["queue"] if int(row["offset"]) in at
    }
    rows = by_index(compiled(tmp_path, files["2:4"]))
    assert stream == {index: rows[index]["runs_2_4"] for index in stream}
    assert set(stream) >= {0, 2, 4} and any(stream.values())


def test_one_bad_group_loses_2_4_for_the_whole_operator_and_is_named(tmp_path, files):
    def spoil(kernel):
        kernel[5, 1, 2, 8:12] = 3

    row = by_index(compiled(tmp_path, edited(files["2:4"], 2, spoil)))[2]
    assert not row["runs_2_4"]
    assert row["why_not_2_4"].startswith("1 of 1152 groups have more than 2 non-zeros")
    assert "(5, 1, 2, 8)" in row["why_not_2_4"]
    assert row["cycles_2_4"] < row["cycles_dense"] == row["cycles"]


def test_a_weight_of_minus_128_loses_2_4(tmp_path, files):
    def spoil(kernel):
        kernel.reshape(-1)[np.flatnonzero(kernel)[0]] = -128

    row = by_index(compiled(tmp_path, edited(files["2:4"], 2, spoil)))[2]
    assert not row["runs_2_4"] and row["why_not_2_4"] == "1 weights of -128"


def test_an_operator_left_dense_for_its_bytes_shows_both_forms(tmp_path):
    keras.utils.set_random_seed(0)
    image = layers.Input((32, 32, 32))
    model = keras.Model(image, layers.Conv2D(32, 1)(layers.Conv2D(32, 1)(image)))
    model = strip(sparsify(model, "2:4", schedule="one_shot"))
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 32)).astype(np.float32)
    size = export(model, "vela:ethos-u85-256", path=tmp_path / "s.tflite", calibration=x).details["operators"]
    fast = export(
        model, "vela:ethos-u85-256", path=tmp_path / "p.tflite", calibration=x, optimise="Performance"
    ).details["operators"]
    for slow_row, fast_row in zip(size, fast, strict=True):
        assert not slow_row["runs_2_4"] and fast_row["runs_2_4"]
        assert slow_row["why_not_2_4"].startswith("keeps the rule, but Vela takes the dense form, which is smaller")
        assert slow_row["cycles_2_4"] == fast_row["cycles"] < slow_row["cycles_dense"]
        assert slow_row["weight_bytes_dense"] < slow_row["weight_bytes_2_4"]


@pytest.mark.parametrize("variant", ["ethos-u55-128", "ethos-u65-256"])
def test_u55_and_u65_have_no_2_4_but_zeros_take_fewer_bytes(tmp_path, files, variant):
    dense, sparse = compiled(tmp_path, files["dense"], variant), compiled(tmp_path, files["2:4"], variant)
    for row in sparse.details["operators"]:
        assert not row["runs_2_4"] and row["why_not_2_4"] in ("", f"{variant[:9]} has no 2:4")
    assert sparse.details["weight_bytes"] < 0.75 * dense.details["weight_bytes"]
    assert sparse.details["off_chip_flash_bytes"] >= sparse.details["weight_bytes"]


def test_what_falls_back_to_the_cpu_is_reported(tmp_path):
    keras.utils.set_random_seed(0)
    image = layers.Input((8, 8, 4))
    x = layers.Lambda(lambda t: tf.math.l2_normalize(t, -1))(layers.Conv2D(8, 3)(image))
    model = keras.Model(image, layers.Conv2D(8, 3)(x))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
    artifact = export(model, "vela:ethos-u55-256", path=tmp_path / "m.tflite", calibration=x)
    assert [row["runs_on"] for row in artifact.details["operators"]] == ["NPU", "CPU", "NPU"]
    assert artifact.details["operators"][1]["op"] == "L2_NORMALIZATION"
    left = parse(artifact.path.read_bytes())
    assert len(left.subgraphs[0].operators) == 3  # command stream, L2_NORMALIZATION, command stream


def test_export_all_hands_over_the_int8_file_and_the_artifact_is_plain_json(tmp_path, images):
    int8, npu = export_all(
        net(), ["tflite_int8", "vela:ethos-u85-128"], folder=tmp_path, stem="student", calibration=images
    )
    assert npu.path.name == "student_vela_ethos-u85-128.tflite" and npu.target == "vela:ethos-u85-128"
    assert npu.bytes == npu.path.stat().st_size
    assert npu.details["calibration_images"] == int8.details["calibration_images"]
    assert type(npu).from_dict(json.loads(json.dumps(npu.to_dict(tmp_path))), tmp_path) == npu


def test_options_reach_vela_and_metadata_the_file(tmp_path, files):
    flash = {"system_config": "Ethos_U85_SYS_Flash_High", "memory_mode": "Shared_Sram"}
    artifact = compiled(tmp_path, files["2:4"], metadata={"recipe": "x"}, both_forms=False, **flash)
    assert artifact.details["off_chip_flash_bytes"] > 0 == artifact.details["on_chip_flash_bytes"]
    assert artifact.details["system_config"] == "Ethos_U85_SYS_Flash_High"
    assert read_metadata(artifact.path)["recipe"] == "x"
    assert all("cycles_dense" not in row for row in artifact.details["operators"])


def test_an_unknown_configuration_lists_those_of_vela(tmp_path, files):
    from ethosu.vela.architecture_features import Accelerator

    assert set(Accelerator.member_list()) == set(ACCELERATORS)
    for variant in ("", ":ethos-u99"):
        with pytest.raises(InputError) as error:
            export(net(), f"vela{variant}", path=tmp_path / "m.tflite")
        assert all(name in str(error.value) for name in ACCELERATORS)


def test_an_unknown_system_configuration_is_told_in_vela_s_words(tmp_path, files):
    with pytest.raises(InputError, match="Nowhere"):
        compiled(tmp_path, files["dense"], system_config="Nowhere")
    assert not (tmp_path / "npu").exists()


def test_a_configuration_file_of_your_own_may_be_a_relative_path(tmp_path, files, monkeypatch):
    import ethosu.vela

    shipped = Path(ethosu.vela.__file__).parent.parent / "config_files" / "Arm" / "vela.ini"
    slower = shipped.read_text(encoding="utf-8").replace("core_clock=1e9", "core_clock=5e8")
    (tmp_path / "board.ini").write_text(slower, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    own = compiled(tmp_path, files["2:4"], config="board.ini", both_forms=False).details
    assert own["inferences_per_second"] == pytest.approx(5e8 / own["cycles"], rel=1e-3)


def test_without_vela_the_message_names_the_extra(tmp_path, files, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        compiled(tmp_path, files["dense"])
    assert 'pip install "orbit-kd[npu]"' in str(error.value)


def test_a_float_file_is_refused(tmp_path):
    path = export(net(), "tflite_float32", path=tmp_path / "f.tflite").path
    with pytest.raises(InputError, match="No operator of the file runs on the NPU"):
        export(path, "vela:ethos-u85-256", path=tmp_path / "m.tflite")


def test_a_sparse_encoded_file_is_refused(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((64,)), layers.Dense(64, use_bias=False)])
    kernel = model.weights[0]
    kernel.assign(np.where(np.random.default_rng(0).random(kernel.shape) < 0.9, 0, kernel.numpy()))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    data = converter.convert()
    with pytest.raises(InputError, match="sparse-encoded"):
        compiled(tmp_path, data)


def test_twins_break_and_keep_the_rule_in_every_kernel_and_change_nothing_else(files):
    sparse = sparse_twin(files["dense"])
    dense = dense_twin(sparse)
    assert all(check.ok for check in check_n_m(sparse))
    assert all(check.bad_groups == 1 for check in check_n_m(dense))
    for index, before in kernels(files["dense"]).items():
        kept, broken = kernels(sparse)[index], kernels(dense)[index]
        assert ((kept == before) | (kept == 0)).all()
        assert np.abs(kept.astype(int)).sum() > 0.5 * np.abs(before.astype(int)).sum()  # the larger half
        assert first_bad_group(kept) is None and first_bad_group(broken) == (0,) * before.ndim
        assert 0 < (broken != kept).sum() <= 3


def test_a_report_of_another_vela_is_refused(tmp_path):
    with pytest.raises(InputError, match="Vela's report cannot be read"):
        vela.read_report(tmp_path)


@pytest.mark.slow
def test_vgg16_at_a_quarter_width_gains_what_two_to_four_promises(tmp_path):
    keras.utils.set_random_seed(0)
    model = build("vgg16", (64, 64, 1), classes=10, width=0.25)
    x = np.random.default_rng(0).uniform(0, 255, (16, 64, 64, 1)).astype(np.float32)
    sparse = strip(sparsify(model, "2:4", schedule="one_shot"))
    dense, sparse = (
        export(m, "vela:ethos-u85-256", path=tmp_path / "m.tflite", calibration=x).details for m in (model, sparse)
    )
    pairs = [
        (d, s)
        for d, s in zip(dense["operators"], sparse["operators"], strict=True)
        if s["runs_2_4"] and not d["runs_2_4"]
    ]
    assert len(pairs) == 14  # all but the first convolution, which has one input channel
    assert sum(d["cycles"] for d, _ in pairs) >= 1.75 * sum(s["cycles"] for _, s in pairs)
    assert sum(s["weight_bytes"] for _, s in pairs) <= 0.6 * sum(d["weight_bytes"] for d, _ in pairs)
