"""Manifests and signatures: what changed is named, to the tensor; who signed is proven; bad keys are told."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from coded_mutations import mutated

from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.flight.manifest import NAME, changes, read_manifest, write_manifest
from orbit_kd.support.digests import sha256
from orbit_kd.tflite.places import places

MODELS = Path(__file__).parent.parent / "models"
SMALL = MODELS / "resnet20_mstar_max_drop" / "student_tflite_int8.tflite"


@pytest.fixture
def folder(tmp_path) -> Path:
    """An export with its manifest: a .tflite file, and a folder with another file."""
    (tmp_path / "export" / "code").mkdir(parents=True)
    shutil.copy(SMALL, tmp_path / "export" / "m.tflite")
    (tmp_path / "export" / "code" / "main.cc").write_text("int main() { return 0; }\n")
    files = [tmp_path / "export" / "m.tflite", tmp_path / "export" / "code"]
    write_manifest(tmp_path, files, recipe="r", data="d")
    return tmp_path


def said(folder: Path) -> list[str]:
    return [str(change) for change in changes(folder)]


def test_a_manifest_names_files_tensors_and_how_they_were_made(folder):
    data = SMALL.read_bytes()
    found = read_manifest(folder)
    assert found["recipe"] == "r" and found["data"] == "d" and "orbit_kd" in found["versions"]
    assert sorted(found["files"]) == ["export/code/main.cc", "export/m.tflite"]
    entry = found["files"]["export/m.tflite"]
    assert entry["sha256"] == subprocess.run(
        ["sha256sum", SMALL], capture_output=True, text=True, check=True
    ).stdout.split()[0]  # fmt: skip
    kernel = next(row for row in entry["tensors"] if row["dtype"] == "int8" and len(row["shape"]) == 4)
    values = data[kernel["start"] : kernel["start"] + kernel["bytes"]]
    assert sha256(values).hex() == kernel["sha256"] and np.prod(kernel["shape"]) == kernel["bytes"]
    assert said(folder) == []


def test_the_same_files_give_the_same_manifest(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "export", other / "export")
    write_manifest(other, [other / "export" / "code", other / "export" / "m.tflite"], recipe="r", data="d")
    assert (other / NAME).read_bytes() == (folder / NAME).read_bytes()


def test_every_changed_tensor_is_named_and_no_other(folder):
    """One byte of each constant and each vector of scales, one after the other."""
    path, data = folder / "export" / "m.tflite", SMALL.read_bytes()
    once = {place.start: place for place in places(data)}
    for place in [*once.values()][::3]:
        damaged = bytearray(data)
        damaged[place.start + place.bytes // 2] ^= 8
        path.write_bytes(damaged)
        same = [p for p in places(data) if p.start == place.start]
        what = "the scales of" if place.kind == "scale" else "the values of"
        assert [line.split(f"{what} ")[1].split(" (")[0] for line in said(folder)] == [repr(p.name[:120]) for p in same]


def test_what_changed_is_told_also_where_the_file_is_broken(folder):
    path, data = folder / "export" / "m.tflite", SMALL.read_bytes()
    kernel = max(places(data), key=lambda place: place.bytes)
    broken = bytearray(data)
    broken[0:4] = b"\xff" * 4  # the root: nothing can be read from it
    broken[kernel.start] ^= 1
    path.write_bytes(broken)
    values, outside = said(folder)
    assert repr(kernel.name[:120]) in values and "outside of the tensors" in outside
    path.write_bytes(data[:-10])
    assert f"{len(data) - 10:,} bytes in place of {len(data):,}" in said(folder)[0]
    path.write_bytes(bytes(100))
    assert said(folder)[1] == "export/m.tflite: no readable .tflite file any more"
    path.unlink()
    (folder / "export" / "code" / "main.cc").write_text("int main() { return 1; }\n")
    assert said(folder) == ["export/code/main.cc: changed", "export/m.tflite: missing"]


def test_a_file_of_another_length_is_compared_by_names(tmp_path):
    def file(width: int, name: str) -> Path:
        keras.utils.set_random_seed(0)
        layer = keras.layers.Dense(width, name=name)
        x = keras.Input((4,))
        return export(keras.Model(x, layer(x), name="net"), "tflite_float32", path=tmp_path / "m.tflite").path

    write_manifest(tmp_path, [file(4, "one")])
    file(5, "one")
    longer = said(tmp_path)
    assert "bytes in place of" in longer[0] and any("the values of" in line and "changed" in line for line in longer)
    file(5, "two")
    renamed = " ".join(said(tmp_path))
    assert "is gone" in renamed and "is new" in renamed


def test_a_manifest_keeps_what_it_says_of_other_files_unread(folder):
    (folder / "export" / "code" / "main.cc").write_text("int main() { return 1; }\n")
    (folder / "more.bin").write_bytes(b"more")
    write_manifest(folder, [folder / "more.bin"], keep=True)
    assert sorted(read_manifest(folder)["files"]) == ["export/code/main.cc", "export/m.tflite", "more.bin"]
    assert said(folder) == ["export/code/main.cc: changed"]
    with pytest.raises(InputError, match="does not lie in"):
        write_manifest(folder / "export", [folder / "more.bin"])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "orbit_kd manifest 1"}', '{"format": "orbit_kd manifest 1", "files": {"../x": {}}}',
     '{"format": "orbit_kd manifest 1", "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}',
     '{"format": "orbit_kd manifest 1", "files": {"x": {"bytes": true, "sha256": ""}}}',
     '{"format": "orbit_kd manifest 1", "files": {"' + "x" * 300 + '": {"bytes": 1, "sha256": ""}}}',
     "[" * 100_000],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match="is no manifest"):
        changes(tmp_path)
    with pytest.raises(InputError, match="has no manifest"):
        changes(tmp_path / "elsewhere")


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_manifests_are_told(count, folder):
    """Never a traceback; a changed hash or place shows as a change of the file or of a tensor."""
    path = folder / NAME
    small = json.loads(path.read_bytes())
    entry = small["files"]["export/m.tflite"]
    entry["tensors"] = entry["tensors"][:4]
    data, told, shown = json.dumps(small).encode(), 0, 0
    (folder / "export" / "m.tflite").write_bytes(mutated(SMALL.read_bytes(), 1))
    for seed in range(count):
        path.write_bytes(mutated(data, seed))
        try:
            shown += bool(changes(folder))
        except InputError as error:
            told += bool(error.fix)
    assert told > count / 4 and told + shown > 0.95 * count


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """Pairs of keys, as openssl makes them: ed, other, curve; and what is none."""
    pytest.importorskip("cryptography", reason="the extra `signing`")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

    place, plain = tmp_path_factory.mktemp("keys"), form.NoEncryption()

    def save(name, key, protection=plain):
        private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection)
        (place / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (place / f"{name}.pub").write_bytes(public)

    for name in ("ed", "other"):
        save(name, ed25519.Ed25519PrivateKey.generate())
    save("curve", ec.generate_private_key(ec.SECP256R1()))
    save("curve2", ec.generate_private_key(ec.SECP256R1()))
    save("exotic", ec.generate_private_key(ec.SECP256K1()))
    save("exchange", x25519.X25519PrivateKey.generate())
    save("locked", ed25519.Ed25519PrivateKey.generate(), form.BestAvailableEncryption(b"secret"))
    (place / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (place / "text.pem").write_text("no key")
    return place


KINDS = [("ed", "other", "manifest.json.sig"), ("curve", "curve2", "model.sig")]


@pytest.mark.parametrize(("key", "other", "name"), KINDS)
def test_a_signature_proves_who_wrote_the_manifest(key, other, name, folder, keys, tmp_path_factory):
    if key == "curve":
        pytest.importorskip("model_signing", reason="the extra `signing`")
    from orbit_kd.flight.signature import check_signature, sign

    (folder / "later.txt").write_text("what a run writes later is not signed")
    assert sign(folder, keys / f"{key}.pem") == folder / name
    (folder / "report.json").write_text("{}")
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.copytree(folder, moved)
    for place in (folder, moved):
        check_signature(place, keys / f"{key}.pub")
    with pytest.raises(InputError, match="is no signature of this folder by this key"):
        check_signature(folder, keys / f"{other}.pub")
    text = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(text.replace(b'"recipe": "r"', b'"recipe": "s"'))
    with pytest.raises(InputError, match="is no signature of this folder by this key"):
        check_signature(folder, keys / f"{key}.pub")
    (folder / NAME).write_bytes(text)
    (folder / name).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is no signature of this folder by this key"):
        check_signature(folder, keys / f"{key}.pub")


def test_the_other_kind_of_signature_is_named_and_a_new_manifest_is_not_signed(folder, keys):
    from orbit_kd.flight.signature import check_signature, sign

    with pytest.raises(InputError, match="it is not signed"):
        check_signature(folder, keys / "ed.pub")
    sign(folder, keys / "ed.pem")
    with pytest.raises(InputError, match=r"has no model\.sig.*but manifest\.json\.sig"):
        check_signature(folder, keys / "curve.pub")
    write_manifest(folder, [folder / "export"], recipe="r", data="d")
    assert (folder / "manifest.json.sig").is_file()  # the same manifest
    write_manifest(folder, [folder / "export"], recipe="another", data="d")
    assert not (folder / "manifest.json.sig").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("ed.pub", "but a public key"), ("missing", "cannot be read"), ("text.pem", "is no private key"),
     ("cert.pem", "but a certificate"), ("locked.pem", "has a password"), ("exchange.pem", "of another kind: X25519"),
     ("exotic.pem", "of another kind: secp256k1")],
)  # fmt: skip
def test_a_key_that_cannot_sign_is_told_before_the_work(name, message, folder, keys, tool):
    from orbit_kd.flight.signature import check_private_key

    with pytest.raises(InputError, match=message):
        check_private_key(keys / name)
    flags = [f"--model={SMALL}", "--targets=c_array", f"--output={folder}/out", f"--sign_key={keys / name}"]
    result = tool("export", *flags)
    assert result.returncode == 1 and message in result.stderr and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("ed.pem", "but a private key"), ("missing", "cannot be read"), ("text.pem", "is no public key"),
     ("cert.pem", "but a certificate"), ("exchange.pub", "of another kind: X25519")],
)  # fmt: skip
def test_a_key_that_cannot_verify_is_told(name, message, folder, keys):
    from orbit_kd.flight.signature import check_signature

    with pytest.raises(InputError, match=message):
        check_signature(folder, keys / name)


def test_a_missing_package_names_the_extra(folder, keys, monkeypatch):
    from orbit_kd.flight import signature

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for work in (signature.sign, signature.check_signature):
        with pytest.raises(InputError, match=r"orbit-kd\[signing\]"):
            work(folder, keys / "ed.pem")


def test_export_signs_and_verify_tells_what_changed(keys, tmp_path, tool):
    out = tmp_path / "out"
    flags = [f"--model={SMALL}", "--targets=c_array", f"--output={out}", f"--sign_key={keys / 'ed.pem'}"]
    assert "signature:" in tool("export", *flags).stdout
    good = tool("verify", str(out), f"--key={keys / 'ed.pub'}")
    assert good.returncode == 0 and "2 files are as the manifest says; signature by this key" in good.stdout
    assert "signature not checked" in tool("verify", f"--folder={out}").stdout
    wrong = tool("verify", str(out), f"--key={keys / 'other.pub'}")
    assert wrong.returncode == 1 and "no signature of this folder" in wrong.stderr
    array = next(out.glob("*.cc"))
    array.write_text(array.read_text().replace("const", "cons7", 1))
    bad = tool("verify", str(out), f"--key={keys / 'ed.pub'}")
    assert bad.returncode == 1 and f"{array.name}: changed" in bad.stdout and "1 of 2 files changed" in bad.stderr
    assert "has no manifest" in tool("verify", str(tmp_path)).stderr
    assert "Unexpected argument" in tool("verify", str(out), "more").stderr
