"""A JSON note inside a .tflite file: class names, Preprocess, versions, the recipe's hash.

It is an entry "orbit_kd" of the flatbuffer's `metadata` table, which runtimes ignore
(https://ai.google.dev/edge/litert/models/metadata).
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.support.versions import MADE_WITH, versions_of
from orbit_kd.tflite.reader import only_tflm, parse, read_bytes
from orbit_kd.tflite.writer import add_constant, set_constant, to_bytes

NAME = b"orbit_kd"
_SMALL = b"\x01"  # the first byte of a note that is not plain text, and says which of the dictionaries it needs
# What most notes have in them. Files were written with it: it stays as it is, and a better one gets another number.
_WORDS = (
    b'"],"loader":"bilinear"}"tensorflow":"2.21.0","tf_keras":"2.21.0"}}{"class_names":["","],"preprocess":{"channels":'
    b'null,"crop":null,"mean":[],"resize":null,"scale":1.0},"recipe":"","versions":{"orbit_kd":"0.1.0",'
)
_SLACK = 512  # bytes by which files of one shape differ: padding, equal vectors that are stored once


def note(class_names: Sequence[str], preprocess: Any, **more: Any) -> dict[str, Any]:
    """What an exported file says about itself, for `add_metadata`.

    Args:
        class_names: in the order of the outputs.
        preprocess: the `Preprocess` (or its dict) that images went through.
        **more: further entries, such as the recipe's hash.
    """
    return {"class_names": list(class_names), "preprocess": preprocess, "versions": versions_of(MADE_WITH), **more}


def add_metadata(data: bytes, metadata: dict[str, Any]) -> bytes:
    """The .tflite file `data` with `metadata` stored in it; an earlier note is replaced.

    Args:
        data: a .tflite file.
        metadata: JSON values; dataclasses (such as Preprocess) are stored as their fields.

    Raises:
        InputError: `data` is no .tflite file, or `metadata` holds something JSON cannot.
    """
    model = parse(data)
    put_metadata(model, metadata, small=only_tflm(model))
    return to_bytes(model, small=only_tflm(model))


def put_metadata(model: Any, metadata: dict[str, Any], *, small: bool) -> None:
    """`add_metadata` of a parsed file.

    Args:
        model: is changed.
        metadata: as for `add_metadata`.
        small: deflate the text, with a dictionary of the usual words: about a third of the bytes.
    """
    from ai_edge_litert import schema_py_generated as schema

    text = to_text(metadata)
    if small:
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_WORDS)
        content = np.frombuffer(_SMALL + deflate.compress(text.encode()) + deflate.flush(), np.uint8)
    else:
        content = np.frombuffer(text.encode(), np.uint8)
    notes = [entry for entry in model.metadata or [] if entry.name != NAME]
    old = [entry for entry in model.metadata or [] if entry.name == NAME]
    if old:
        set_constant(model, old[0], values=content)
    else:
        old = [schema.MetadataT(name=NAME, buffer=add_constant(model, content))]
    model.metadata = notes + old


def to_text(value: Any) -> str:
    """A JSON value, or a dataclass of such, as text.

    Raises:
        InputError: JSON cannot hold it.
    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The metadata cannot be stored: {error}.",
            expected="a dict of JSON values: text, finite numbers, lists, dicts, None, or dataclasses of these",
            fix="convert the value first, for example arrays with .tolist()",
        ) from error


def bytes_of(metadata: dict[str, Any], file: bytes) -> int:
    """Bytes that `metadata` adds to a .tflite file like `file`, at most."""
    return len(add_metadata(file, metadata)) - len(file) + _SLACK


def read_metadata(path_or_bytes: str | os.PathLike[str] | bytes) -> dict[str, Any]:
    """The note stored in a .tflite file; empty where there is none.

    Raises:
        InputError: not a .tflite file.
    """
    model = parse(read_bytes(path_or_bytes))
    for entry in model.metadata or []:
        if entry.name == NAME:
            return json.loads(_text(bytes(model.buffers[entry.buffer].data)))
    return {}


def _text(content: bytes) -> bytes:
    """The JSON text of a note, deflated or not."""
    if not content.startswith(_SMALL):
        return content
    return zlib.decompressobj(-zlib.MAX_WBITS, zdict=_WORDS).decompress(content[len(_SMALL) :])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return value.to_dict() if hasattr(value, "to_dict") else dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
