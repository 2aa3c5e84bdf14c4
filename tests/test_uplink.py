"""Updates over an uplink: the new file bit for bit or a refusal; packets may be lost; nothing is half."""

from __future__ import annotations

import dataclasses
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from coded_mutations import mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from orbit_kd.errors import InputError
from orbit_kd.flight import uplink
from orbit_kd.flight.uplink import Update, apply_update, make_update, methods, packets
from orbit_kd.flight.uplink.entropy import PACES, Decoder, Encoder
from orbit_kd.tflite.places import places, without
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph

for package in ("zstandard", "brotli", "bsdiff4", "detools", "constriction", "spacepackets"):
    pytest.importorskip(package, reason="the extra `uplink`")

MODELS = Path(__file__).parent.parent / "models"
SMALL = MODELS / "resnet20_mstar_max_drop" / "student_tflite_int8.tflite"  # 28 KB


@pytest.fixture(scope="module")
def old() -> bytes:
    return SMALL.read_bytes()


def changed(data: bytes, *, weights: int = 40, scale: float = 1.0, seed: int = 0) -> bytes:
    """The file with some int8 weights a step away, and with the scales of one kernel multiplied."""
    rng, out = np.random.default_rng(seed), bytearray(data)
    kernels = [p for p in places(data) if p.kind == "constant" and p.dtype == "int8" and p.bytes > 500]
    for _ in range(weights):
        place = kernels[rng.integers(len(kernels))]
        at = place.start + int(rng.integers(place.bytes))
        value = np.int8(out[at] - 256 if out[at] > 127 else out[at])
        out[at] = (int(value) + (1 if value < 100 else -1)) & 255
    if scale != 1:
        place = next(p for p in places(data) if p.kind == "scale" and p.name == kernels[0].name)
        out[place.start : place.end] = (
            np.frombuffer(data[place.start : place.end], "<f4") * np.float32(scale)
        ).tobytes()
    return bytes(out)


@pytest.fixture(scope="module")
def new(old) -> bytes:
    return changed(old, scale=1.01)


@pytest.fixture(scope="module")
def update(old, new) -> bytes:
    return make_update(old, new, among=["tensors"]).data


def test_the_places_are_where_the_reader_finds_the_values(old):
    graph = Subgraph(parse(old))
    found = {(p.tensor, p.kind): p for p in places(old)}
    constants = [i for i in range(len(graph.tensors)) if graph.data(i) is not None]
    assert sorted(i for i, kind in found if kind == "constant") == constants and len(constants) > 20
    for index in constants:
        place = found[index, "constant"]
        stored = np.frombuffer(old[place.start : place.end], place.numpy_dtype).reshape(place.shape)
        assert np.array_equal(stored, graph.dense(index)) and place.dtype == graph.dtype(index)
        quantization = graph.tensors[index].quantization
        if quantization is not None and quantization.scale is not None:
            scale = found[index, "scale"]
            assert np.array_equal(np.frombuffer(old[scale.start : scale.end], "<f4"), quantization.scale)
    bare = without(old, list(found.values()))
    assert len(bare) == len(old) and [p.start for p in places(bare)] == [p.start for p in places(old)]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_gives_the_new_file_bit_for_bit(name, old, new):
    made = make_update(old, new, among=[name])
    assert made.method == name and not made.refused
    assert apply_update(old, made.data) == new
    assert Update.from_bytes(made.data).to_bytes() == made.data


def test_the_smallest_is_chosen_and_knowing_the_tensors_helps(old):
    made = make_update(old, changed(old), among=["tensors", "xz", "zstd", "bsdiff4", "detools"])
    assert made.method == "tensors" and len(made.data) == made.sizes["tensors"] == min(made.sizes.values())
    frame = len(Update("tensors", 0, bytes(32), bytes(32), b"").to_bytes())
    others = min(size for name, size in made.sizes.items() if name != "tensors")
    assert 1.5 * (made.sizes["tensors"] - frame) < others - frame


def test_another_network_is_sent_whole_and_other_files_by_general_methods(old):
    other = (MODELS / "vgg16_mstar_2500" / "student_tflite_micro_coded.tflite").read_bytes()
    for a, b in ((old, other), (other, old)):
        assert apply_update(a, make_update(a, b, among=["tensors"]).data) == b
    made = make_update(b"no model " * 50, b"no model " * 60, among=["tensors", "zstd", "bsdiff4"])
    assert "Not a .tflite file" in made.refused["tensors"] and set(made.sizes) == {"zstd", "bsdiff4"}
    with pytest.raises(InputError, match=r"Not a \.tflite"):
        make_update(b"no model", old, among=["tensors"])
    with pytest.raises(InputError, match="Unknown uplink method 'magic'"):
        make_update(old, other, among=["magic"])
    with pytest.raises(InputError, match="the new one 0"):
        make_update(old, b"")


def test_a_class_more_costs_its_own_weights(tmp_path):
    """The rows that both layers have are taken from the old file."""
    import tf_keras as keras

    from orbit_kd.exporters import export

    x, rng = keras.Input((64,)), np.random.default_rng(0)
    images = rng.normal(size=(8, 64)).astype("float32")
    kernel = rng.normal(size=(64, 33)).astype("float32")
    kernel[0] = 4  # the largest of each column: the scales stay
    files = []
    for classes in (32, 33):
        layer = keras.layers.Dense(classes, name="logits", use_bias=False)
        model = keras.Model(x, layer(x), name="net")
        layer.set_weights([kernel[:, :classes]])
        files.append(
            export(model, "tflite_int8", path=tmp_path / f"{classes}.tflite", calibration=images).path.read_bytes()
        )
    made = make_update(*files, among=["tensors", "xz"])
    assert made.sizes["tensors"] < 0.4 * made.sizes["xz"]


def test_another_old_file_is_refused(old, new, update):
    for other in (new, old[:-1], b""):
        with pytest.raises(InputError, match="The old file is another"):
            apply_update(other, update)


def test_a_missing_package_names_the_extra(old, new, update, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for work in (lambda: make_update(old, new), lambda: apply_update(old, update), lambda: packets.split(update)):
        with pytest.raises(InputError, match=r"orbit-kd\[uplink\]"):
            work()


def test_a_method_from_outside_is_tried_and_one_that_loses_bits_is_not_sent(old, new):
    mine = uplink.Method(lambda old, new: b"", lambda old, payload, size: old)
    with methods.temporary("mine", mine):
        made = make_update(old, new, among=["mine", "xz"])
        assert made.method == "xz" and "SHA-256" in made.refused["mine"]
        same = make_update(old, old, among=["mine", "xz"])
        assert same.method == "mine" and apply_update(old, same.data) == old


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            arrays.arrays(np.int8, st.integers(0, 150)),
            arrays.arrays(np.uint64, st.integers(0, 60)),
            st.binary(max_size=60),
            st.integers(0, 4),
        ),
        max_size=6,
    ),
    st.sampled_from(PACES),
)
def test_the_entropy_coder_gives_back_what_it_took(values, pace):
    encoder = Encoder(pace)
    for value in values:
        if isinstance(value, bytes):
            encoder.plain(value)
        elif isinstance(value, int):
            encoder.choice(value, 5, use="c")
        else:
            (encoder.small if value.dtype == np.int8 else encoder.wide)(value, use="v")
    decoder = Decoder(encoder.finish(), pace)
    for value in values:
        if isinstance(value, bytes):
            assert decoder.plain(len(value)) == value
        elif isinstance(value, int):
            assert decoder.choice(5, use="c") == value
        else:
            read = decoder.small if value.dtype == np.int8 else decoder.wide
            assert np.array_equal(read(len(value), use="v"), value)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 400), st.sampled_from([1.0, 0.5, 1.001, 3.0]), st.integers(0, 9))
def test_tensors_round_trip(weights, scale, seed):
    old = SMALL.read_bytes()
    new = changed(old, weights=weights, scale=scale, seed=seed)
    assert methods.get("tensors").unpack(old, methods.get("tensors").pack(old, new), len(new)) == new


@pytest.mark.parametrize("kind", ["f", "i"])
def test_damaged_numbers_round_trip_too(kind, old):
    """Scales of 0, NaN and infinity, and the ends of int32, come across as they are."""
    out = bytearray(old)
    for place in places(old):
        if kind == "f" and place.kind == "scale":
            out[place.start : place.start + 4] = np.array([[0, np.nan, np.inf][place.tensor % 3]], "<f4").tobytes()
        if kind == "i" and place.dtype == "int32" and place.bytes > 8:
            out[place.start : place.start + 8] = np.array([-(2**31), 2**31 - 1], "<i4").tobytes()
    for a, b in ((old, bytes(out)), (bytes(out), old)):
        assert apply_update(a, make_update(a, b, among=["tensors"]).data) == b


def with_check_sum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_updates_are_told(count, old, new):
    """No traceback, no other file: half of them have a check sum that is right again, so that their inside is read."""
    files = [make_update(old, new, among=[name]).data for name in methods.names()]
    told = 0
    for seed in range(count):
        damaged = mutated(files[seed % len(files)], seed)
        if seed % 2:
            damaged = with_check_sum(damaged)
        try:
            assert apply_update(old, damaged) == new
        except InputError as error:
            told += bool(error.expected and error.fix)
    assert told > 0.9 * count


def test_packets_hold_to_their_size_and_the_standard(update):
    sent = packets.split(update, packet_bytes=64, apid=42)
    assert {len(p) for p in sent[:-1]} == {64} and len(sent[-1]) <= 64
    for number, packet in enumerate(sent):  # CCSDS 133.0-B-2, 4.1.3
        first, second, length = (int.from_bytes(packet[i : i + 2], "big") for i in (0, 2, 4))
        assert first >> 13 == 0 and first >> 12 & 1 == 1 and first >> 11 & 1 == 0 and first & 0x7FF == 42
        assert second & 0x3FFF == number and length == len(packet) - 7
        assert second >> 14 == (1 if number == 0 else 2 if number == len(sent) - 1 else 0)
    assert int.from_bytes(packets.split(b"1")[0][2:4], "big") >> 14 == 3  # alone


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600), st.integers(packets.FRAME + 1, 80), st.randoms())
def test_packets_in_any_order_with_anything_between_make_the_update(data, size, rng):
    sent = packets.split(data, packet_bytes=size)
    order = [*sent, *rng.sample(sent, min(2, len(sent)))]
    rng.shuffle(order)
    noise = [bytes(rng.randrange(256) for _ in range(rng.randrange(4))) for _ in order]
    assert packets.join([b"".join(map(bytes.__add__, noise, order))]) == data


def test_lost_and_damaged_packets_are_named_and_sent_again(update):
    sent = packets.split(update, packet_bytes=40)
    assert len(sent) > 12
    received = [*sent]
    received[3] = received[3][:20] + bytes([received[3][20] ^ 4]) + received[3][21:]
    received[5] = received[5][:4] + b"\xff" + received[5][5:]  # its length
    del received[8:11]
    with pytest.raises(InputError, match=r"Packets 3,5,8-10 of 0 to \d+ are lost or damaged: nothing") as told:
        packets.join([b"".join(received)])
    assert "--resend=3,5,8-10" in told.value.fix
    again = packets.resend(b"".join(sent), packets.numbers_of("3,5,8-10"))
    assert packets.join([b"".join(received), again]) == update
    with pytest.raises(InputError, match="9 are not in the file"):
        packets.resend(b"".join(received), [9])


def test_packets_of_another_update_are_passed_over_and_told(update):
    sent, other = packets.split(update, packet_bytes=40), packets.split(b"another" * 9, packet_bytes=40)
    assert packets.join([b"".join(sent + other)]) == update
    with pytest.raises(InputError, match="3 packets of other updates"):
        packets.join([b"".join(sent[1:] + other)])
    with pytest.raises(InputError, match="no whole space packet"):
        packets.join([b"nothing"])


@pytest.mark.parametrize(
    ("how", "said"),
    [({"packet_bytes": 14}, "15 to"), ({"apid": 2047}, "idle"), ({"packet_bytes": 70000}, "15 to 65542")],
)
def test_impossible_packets_are_refused(how, said):
    with pytest.raises(InputError, match=said):
        packets.split(b"data", **how)
    with pytest.raises(InputError, match="20,000 packets"):
        packets.split(bytes(20_000), packet_bytes=packets.FRAME + 1)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-2-3", "-1", "99999"])
def test_numbers_of_packets_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="names no packets"):
        packets.numbers_of(text)
    assert packets.numbers_of(packets.in_words([0, 3, 4, 5, 9])) == [0, 3, 4, 5, 9]


def test_two_thousand_damaged_receptions_are_told(update):
    sent, told = b"".join(packets.split(update, packet_bytes=48)), 0
    for seed in range(2000):
        damaged = mutated(sent, seed)
        try:
            assert packets.join([damaged]) == update
        except InputError as error:
            told += bool(error.fix)
    assert told > 1900


def test_the_tool_from_end_to_end(old, new, tmp_path, tool):
    (tmp_path / "a.tflite").write_bytes(old)
    (tmp_path / "b.tflite").write_bytes(new)
    a, b = f"--old={tmp_path}/a.tflite", f"--new={tmp_path}/b.tflite"
    made = tool("uplink", a, b, f"--output={tmp_path}/u.okdu")
    assert made.returncode == 0 and "tensors" in made.stdout and "xz" in made.stdout, made.stderr
    assert tool("uplink", a, f"--apply={tmp_path}/u.okdu", f"--output={tmp_path}/c.tflite").returncode == 0
    assert (tmp_path / "c.tflite").read_bytes() == new
    sent = tmp_path / "sent"
    assert "space packets" in tool("uplink", a, b, f"--output={sent}", "--packet_bytes=64", "--methods=tensors").stdout
    (tmp_path / "got").write_bytes(sent.read_bytes()[:64] + sent.read_bytes()[128:])
    lost = tool("uplink", a, f"--apply={tmp_path}/got", f"--output={tmp_path}/d.tflite")
    assert lost.returncode == 1 and "Packets 1 of" in lost.stderr and not (tmp_path / "d.tflite").exists()
    assert tool("uplink", f"--packets={sent}", "--resend=1", f"--output={tmp_path}/again").returncode == 0
    both = f"--apply={tmp_path}/got,{tmp_path}/again"
    assert tool("uplink", a, both, f"--output={tmp_path}/d.tflite").returncode == 0
    assert (tmp_path / "d.tflite").read_bytes() == new
    wrong = tool("uplink", f"--old={tmp_path}/b.tflite", both, f"--output={tmp_path}/e.tflite")
    assert wrong.returncode == 1 and "another" in wrong.stderr and not (tmp_path / "e.tflite").exists()
    assert "--old is missing" in tool("uplink", f"--output={tmp_path}/x").stderr


def test_a_kill_while_writing_leaves_the_file_that_was_there(old, new, update, tmp_path, tool, monkeypatch):
    (tmp_path / "a.tflite").write_bytes(old)
    (tmp_path / "u.okdu").write_bytes(update)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("power lost")))
    flags = [f"--old={tmp_path}/a.tflite", f"--apply={tmp_path}/u.okdu", f"--output={tmp_path}/a.tflite"]
    assert tool("uplink", *flags).returncode == 1
    assert (tmp_path / "a.tflite").read_bytes() == old and sorted(f.name for f in tmp_path.iterdir()) == [
        "a.tflite",
        "u.okdu",
    ]


def test_an_update_says_what_it_holds(old, new, update):
    found = Update.from_bytes(update)
    assert found.method == "tensors" and found.size == len(new)
    other = dataclasses.replace(found, size=found.size + 1)
    with pytest.raises(InputError, match="The update is damaged"):
        apply_update(old, other)
    with pytest.raises(InputError, match="Unknown uplink method"):
        apply_update(old, dataclasses.replace(found, method="magic"))
    with pytest.raises(InputError, match="Not an update"):
        Update.from_bytes(random.Random(0).randbytes(99))
