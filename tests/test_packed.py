"""Packed weights: exact both ways, as small as promised, and readable by hardware tools."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.errors import InputError
from orbit_kd.exporters import export, export_all
from orbit_kd.exporters.packed.packing import INDEX_KINDS, PackedKernel, pack, pack_bits, unpack, unpack_bits
from orbit_kd.exporters.packed.reading import read_packed
from orbit_kd.tflite.layers import int8_layers

layers = keras.layers


def sparse(shape: tuple[int, ...], n: int, m: int, *, seed: int = 0, full: bool = False) -> np.ndarray:
    """Random int8 with at most n non-zeros (exactly n where `full`) in each aligned group of m channels."""
    rng = np.random.default_rng(seed)
    kernel = rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)
    for start in range(0, shape[-1], m):
        part = kernel[..., start : start + m]
        kept = np.argsort(rng.random(part.shape), axis=-1)
        part[kept >= (n if full else rng.integers(0, n + 1, (*part.shape[:-1], 1)))] = 0
    return kernel.astype(np.int8)


patterns = st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


@settings(max_examples=60, deadline=None)
@given(
    patterns, st.lists(st.integers(0, 5), max_size=3), st.integers(1, 150), st.sampled_from(INDEX_KINDS), st.booleans()
)
def test_unpack_gives_back_exactly_what_was_packed_also_through_bytes(pattern, outer, channels, index, full):
    n, m = pattern
    kernel = sparse((*outer, channels), n, m, full=full)
    packed = pack(kernel, n=n, m=m, index=index)
    again = PackedKernel.of_bytes(packed.value_bytes, packed.index_bytes, shape=kernel.shape, n=n, m=m, index=index)
    for one in (packed, again):
        out = unpack(one)
        assert out.dtype == np.int8 and out.shape == kernel.shape
        np.testing.assert_array_equal(out, kernel)
    groups = math.prod(outer) * math.ceil(channels / m)
    bits = n * math.ceil(math.log2(m)) if index == "positions" else (math.comb(m, n) - 1).bit_length()
    assert packed.group_bits == bits
    assert (len(packed.value_bytes), len(packed.index_bytes)) == (groups * n, math.ceil(groups * bits / 8))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 64), st.lists(st.integers(0, 2**64 - 1), max_size=30))
def test_bit_fields_come_back(width, numbers):
    fields = np.array([n & ((1 << width) - 1) for n in numbers], np.uint64)
    data = pack_bits(fields, width)
    assert len(data) == math.ceil(width * len(fields) / 8)
    np.testing.assert_array_equal(unpack_bits(data, width=width, count=len(fields)), fields)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_non_zero_too_many_is_always_refused(seed):
    kernel = sparse((3, 2, 16), 2, 4, seed=seed, full=True)
    rng = np.random.default_rng(seed)
    zeros = np.argwhere(kernel == 0)
    kernel[tuple(zeros[rng.integers(len(zeros))])] = 1
    with pytest.raises(InputError, match="1 of 24 groups have more than 2 non-zeros in 4 channels"):
        pack(kernel, n=2, m=4)


def test_the_bits_of_2_4_are_those_of_the_documentation():
    kernel = np.array([[0, 5, 0, -1, 7, 0, 0, 0]], np.int8)  # places {1, 3}; then one value, filled up to {0, 1}
    packed = pack(kernel, n=2, m=4)
    assert packed.values.tolist() == [[5, -1], [7, 0]]
    assert packed.index_bytes == bytes([0b01_00_11_01])
    codes = pack(kernel, n=2, m=4, index="codes")
    assert codes.fields.ravel().tolist() == [4, 0]
    assert codes.index_bytes == bytes([0b000_100])
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    for rank, pair in enumerate(pairs):
        kernel = np.zeros((1, 4), np.int8)
        kernel[0, list(pair)] = 1
        assert pack(kernel, n=2, m=4, index="codes").fields.item() == rank


@pytest.mark.parametrize(("index", "ratio"), [("positions", 0.625), ("codes", 0.59375)])
def test_2_4_takes_the_promised_part_of_dense_int8(index, ratio):
    kernel = sparse((16, 3, 3, 32), 2, 4)
    packed = pack(kernel, n=2, m=4, index=index)
    assert (len(packed.value_bytes) + len(packed.index_bytes)) / kernel.nbytes == ratio


def test_bad_patterns_types_and_bytes_are_refused():
    kernel = sparse((4, 8), 2, 4)
    for n, m in ((0, 4), (5, 4), (2, 65)):
        with pytest.raises(InputError, match=f"Pattern {n}:{m}"):
            pack(kernel, n=n, m=m)
    with pytest.raises(InputError, match="index='bitmap'"):
        pack(kernel, n=2, m=4, index="bitmap")
    with pytest.raises(InputError, match="type float32"):
        pack(kernel.astype(np.float32), n=2, m=4)
    packed = pack(kernel, n=2, m=4)
    with pytest.raises(InputError, match="16 and 4 bytes at 2:4"):
        PackedKernel.of_bytes(packed.value_bytes, b"", shape=(4, 8), n=2, m=4)
    wrong = PackedKernel.of_bytes(packed.value_bytes, b"\xff\xff\xff", shape=(4, 8), n=2, m=4, index="codes")
    with pytest.raises(InputError, match="The index 7 in codes of 2:4"):
        unpack(wrong)


def net() -> keras.Model:
    """2:4 kernels of 8 and 6 input channels, one of 3, a depthwise and a dense-stored one."""
    rng = np.random.default_rng(3)
    image = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(6, 3, activation="relu")(x))
    x = layers.Conv2D(16, 1, activation="relu")(x)
    model = keras.Model(image, layers.Dense(5)(layers.Dense(8)(layers.GlobalAveragePooling2D()(x))))
    for v in model.variables:
        v.assign(rng.normal(0, 0.3, v.shape))
    for layer in (model.layers[2], model.layers[4], model.layers[6]):
        kernel = layer.kernel.numpy()
        kernel[..., 0::4, :] = kernel[..., 3::4, :] = 0
        layer.kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    images = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32)
    return export(net(), "tflite_int8", path=tmp_path_factory.mktemp("m") / "m.tflite", calibration=images).path


def words(path) -> list[int]:
    if path.suffix == ".mem":
        return [int(line, 16) for line in path.read_text().split()]
    head, body = path.read_text().split("memory_initialization_vector=")
    assert head == "memory_initialization_radix=16;\n" and body.rstrip().endswith(";")
    return [int(word, 16) for word in body.strip().rstrip(";").split(",")]


@pytest.mark.parametrize("index", INDEX_KINDS)
def test_the_folder_gives_back_every_weight_bias_and_scale_of_the_file(tmp_path, file, index):
    artifact = export(file, "packed", path=tmp_path / "p", index=index)
    expected, found = int8_layers(file.read_bytes()), read_packed(tmp_path / "p")
    assert [layer.op for layer in found] == [
        "CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        *["FULLY_CONNECTED"] * 2,
    ]
    for a, b in zip(expected, found, strict=True):
        assert (a.name, a.input, a.output) == (b.name, b.input, b.output)
        for one, other in ((a.kernel, b.kernel), (a.bias, b.bias), (a.scales, b.scales)):
            np.testing.assert_array_equal(one, other)
    assert artifact.bytes == (tmp_path / "p" / "weights.bin").stat().st_size
    assert artifact.path.name == "weights.bin" and all(f.is_file() for f in artifact.files)


def test_kernels_that_keep_the_pattern_are_packed_and_the_others_say_why_not(tmp_path, file):
    details = export(file, "packed", path=tmp_path / "p").details
    rows = details["layers"]
    assert [row["layout"] for row in rows] == ["dense", "n:m", "dense", "n:m", "n:m", "dense"]
    assert "more than 2 non-zeros" in rows[0]["reason"] and "depthwise" in rows[2]["reason"]
    assert rows[1]["bytes"] / rows[1]["dense_bytes"] == 0.625
    assert rows[3]["bytes"] / rows[3]["dense_bytes"] == 2 * 2.5 / 6  # six channels take two groups
    packed = [row for row in rows if row["layout"] == "n:m"]
    assert details["packed_ratio"] == sum(r["bytes"] for r in packed) / sum(r["dense_bytes"] for r in packed)
    assert details["ratio"] == details["kernel_bytes"] / details["dense_bytes"]
    assert details["packed_layers"] == 3 and details["pattern"] == "2:4"


@pytest.mark.parametrize("index", INDEX_KINDS)
@pytest.mark.parametrize("suffix", [".mem", ".coe"])
def test_block_ram_images_hold_the_weights(tmp_path, file, index, suffix):
    """Decodes the text files alone, as a Verilog test bench would."""
    export(file, "packed", path=tmp_path / "p", index=index)
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    for row, layer in zip(manifest["layers"], int8_layers(file.read_bytes()), strict=True):
        values = words(tmp_path / "p" / f"{row['images']['values']}{suffix}")
        bias = words(tmp_path / "p" / f"{row['images']['bias']}{suffix}") if layer.bias.size else []
        np.testing.assert_array_equal(np.array(bias, np.uint32).view(np.int32), layer.bias)
        if row["layout"] == "dense":
            np.testing.assert_array_equal(np.array(values, np.uint8).view(np.int8), layer.kernel.ravel())
            continue
        indices = words(tmp_path / "p" / f"{row['images']['indices']}{suffix}")
        groups = np.zeros((row["groups"], 4), np.uint8)
        for group, value, where in zip(groups, values, indices, strict=True):
            for slot, place in enumerate(pairs[where] if index == "codes" else (where & 3, where >> 2)):
                group[place] = value >> (8 * slot) & 255
        channels = layer.kernel.shape[-1]
        found = groups.view(np.int8).reshape(*layer.kernel.shape[:-1], -1)[..., :channels]
        np.testing.assert_array_equal(found, layer.kernel)


def test_the_pattern_is_the_variant_and_uhp_is_half_of_each_group(tmp_path, file):
    artifact = export(file, "packed:uhp", path=tmp_path / "p", images=False)
    assert (artifact.target, artifact.details["pattern"]) == ("packed:uhp", "4:8")  # every 2:4 kernel keeps 4:8
    assert artifact.details["layers"][1]["layout"] == "n:m"
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == ["manifest.json", "weights.bin"]
    assert export(file, "packed:uhp:16", path=tmp_path / "q", images=False).details["pattern"] == "8:16"
    assert export(file, "packed:1:4", path=tmp_path / "r", images=False).details["packed_layers"] == 0
    for wrong in ("packed:uhp:7", "packed:half", "packed:5:4"):
        with pytest.raises(InputError, match="Pattern"):
            export(file, wrong, path=tmp_path / "s")
    with pytest.raises(InputError, match="index='x'"):
        export(file, "packed", path=tmp_path / "s", index="x")


def test_export_all_packs_the_int8_file_it_wrote(tmp_path):
    images = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype(np.float32)
    packed, int8 = export_all(net(), ["packed", "tflite_int8"], folder=tmp_path, stem="s", calibration=images)
    assert packed.path == tmp_path / "s_packed" / "weights.bin"
    np.testing.assert_array_equal(read_packed(packed.path)[1].kernel, int8_layers(int8.path.read_bytes())[1].kernel)


def test_damaged_folders_and_float_files_are_refused(tmp_path, file):
    folder = tmp_path / "p"
    blob = export(file, "packed", path=folder, images=False).path
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read_packed(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        read_packed(folder)
    with pytest.raises(InputError, match="Cannot read"):
        read_packed(tmp_path / "none")
    floats = export(net(), "tflite_float32", path=tmp_path / "f.tflite").path
    with pytest.raises(InputError, match="is float32"):
        export(floats, "packed", path=tmp_path / "q")
