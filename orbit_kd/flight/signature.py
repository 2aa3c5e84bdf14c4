"""Signatures of a manifest: who wrote it. The kind of key says which of two formats it is.

- Ed25519 (`openssl genpkey -algorithm ed25519 -out key.pem`): `manifest.json.sig`, the 64 bytes of the signature of
  manifest.json (RFC 8032), which needs neither a network nor this library to check:
  `openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in manifest.json -sigfile manifest.json.sig`
- elliptic curves (`openssl ecparam -name prime256v1 -genkey -noout -out key.pem`): `model.sig`, the bundle of the
  OpenSSF Model Signing specification (https://github.com/ossf/model-signing-spec) over manifest.json and the files in
  it; `model_signing verify key --ignore-unsigned-files` checks it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.flight.manifest import NAME, SIGNATURES, read_manifest
from orbit_kd.support.extras import require
from orbit_kd.support.files import replace_file, write_file
from orbit_kd.tflite.reader import read_bytes

_MAKE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"
_MAKE_PUBLIC = "openssl pkey -in key.pem -pubout -out public.pem"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # of the model-signing package
_ED25519, _OPENSSF = SIGNATURES


def check_private_key(path: str | os.PathLike[str]) -> None:
    """Refuses a key that cannot sign, before there is anything to sign.

    Raises:
        InputError: no such file, no private key in PEM, one with a password, one of another kind; a missing package.
    """
    _format_of(_private(path), path)


def sign(folder: str | os.PathLike[str], key: str | os.PathLike[str]) -> Path:
    """Signs the manifest in a folder; returns the signature's file.

    Args:
        folder: with the manifest.
        key: private key in PEM, without a password.

    Raises:
        InputError: no manifest; a key as in `check_private_key`.
    """
    read_manifest(folder)
    private = _private(key)
    if _format_of(private, key) == _ED25519:
        return write_file(Path(folder, _ED25519), private.sign(read_bytes(Path(folder, NAME))))
    from model_signing import signing

    config = signing.Config().use_elliptic_key_signer(private_key=Path(key))
    config.set_hashing_config(_listed(folder))
    return replace_file(Path(folder, _OPENSSF), lambda file: config.sign(Path(folder), file))


def check_signature(folder: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Proves that the manifest in a folder was signed with the private half of a key.

    Args:
        folder: with the manifest and its signature.
        key: public key in PEM.

    Raises:
        InputError: no signature of the key's kind, one by another key or of another manifest; a file that is no public
            key.
    """
    from cryptography.exceptions import InvalidSignature

    public = _public(key)
    name = _format_of(public, key)
    if not Path(folder, name).is_file():
        others = [other for other in SIGNATURES if Path(folder, other).is_file()]
        raise InputError(
            f"{folder} has no {name}, the signature of a key of this kind"
            + (f", but {others[0]}, of the other kind." if others else ": it is not signed."),
            expected="the public half of the key that signed",
            fix="give that key; or sign: tools/compress.py or tools/export.py with --sign_key=key.pem",
        )
    try:
        if name == _ED25519:
            public.verify(read_bytes(Path(folder, name)), read_bytes(Path(folder, NAME)))
        else:
            _verify_openssf(folder, key)
    except InvalidSignature as error:
        raise InputError(
            f"{Path(folder, name)} is no signature of this folder by this key.",
            expected="manifest and files as they were signed, and the public half of the key that signed it",
            fix="check that the key is the sender's; if it is, the folder was changed: get it again",
        ) from error


def _verify_openssf(folder: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Raises InvalidSignature for a bundle of another key, or of other files."""
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=Path(key))
    config.set_hashing_config(_listed(folder))
    try:
        config.verify(Path(folder), Path(folder, _OPENSSF))
    except Exception as error:  # the package raises whatever the parsers below it raise
        raise InvalidSignature(str(error)) from error


def _listed(folder: str | os.PathLike[str]) -> Any:
    """The model-signing package's way to hash, for the manifest and those of its files that are there."""
    from model_signing import hashing

    names = [NAME, *read_manifest(folder)["files"]]
    files = [path for path in (Path(folder, name) for name in names) if path.is_file()]

    class Listed(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            return super().hash(model_path, files_to_hash=files)

    return Listed()


def _private(path: str | os.PathLike[str]) -> Any:
    require("cryptography", extra="signing")
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def load(data: bytes) -> Any:
        return load_pem_private_key(data, password=None)

    return _key(path, load, kind="private", make=_MAKE_KEY)


def _public(path: str | os.PathLike[str]) -> Any:
    require("cryptography", extra="signing")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return _key(path, load_pem_public_key, kind="public", make=_MAKE_PUBLIC)


def _key(path: str | os.PathLike[str], load: Callable[[bytes], Any], *, kind: str, make: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"The key {path} cannot be read: {error.strerror or error}.", expected=f"a {kind} key in PEM", fix=make
        ) from error
    try:
        return load(data)
    except TypeError as error:  # what cryptography raises where a password is missing
        raise InputError(
            f"The key {path} has a password.", expected="a key without one, in a file that only you can read",
            fix=f"openssl pkey -in {path} -out plain.pem",
        ) from error  # fmt: skip
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} is no {kind} key in PEM{_other_pem(data)}.", expected=f"a {kind} key in PEM", fix=make
        ) from error


def _other_pem(data: bytes) -> str:
    """What a PEM file holds in place of the key that is asked for."""
    for text, name in ((b"PRIVATE KEY-", "a private key"), (b"PUBLIC KEY-", "a public key"),
                       (b"CERTIFICATE-", "a certificate, whose key `openssl x509 -pubkey -noout` prints")):  # fmt: skip
        if b"-----BEGIN " in data and text in data:
            return f", but {name}"
    return ""


def _format_of(key: Any, path: str | os.PathLike[str]) -> str:
    """The signature's file that a key of this kind makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        return _ED25519
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)) and key.curve.name in _CURVES:
        require("model_signing", "OpenSSL", extra="signing")
        return _OPENSSF
    name = getattr(getattr(key, "curve", None), "name", type(key).__name__.strip("_"))
    raise InputError(
        f"The key {path} is of another kind: {name}.",
        expected=f"Ed25519, or an elliptic curve for the OpenSSF format: {', '.join(_CURVES)}",
        fix=f"{_MAKE_KEY}; and for the public half {_MAKE_PUBLIC}",
    )
