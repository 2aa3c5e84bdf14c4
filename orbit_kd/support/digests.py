"""Keys under which results are found again, and digests of files."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def digest(*values: Any) -> str:
    """sha256, as hex, of JSON values with arrays and bytes among them: the key under which a result is found again.

    Of JSON values alone it is that of their JSON text, which a recipe's digest in files and reports stays.

    Raises:
        TypeError: a value of another kind.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_told).encode()).hexdigest()


def sha256(data: bytes | bytearray) -> bytes:
    """The 32 bytes of SHA-256, as `sha256sum` prints them in hex."""
    return hashlib.sha256(data).digest()


class ArrayDigest:
    """sha256 of the values of arrays that come in pieces, wherever they are cut."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, array: Any) -> None:
        """The next piece."""
        self._hash.update(_bytes(np.asarray(array)))

    def __str__(self) -> str:
        return self._hash.hexdigest()


def _told(value: Any) -> Any:
    """What stands in the JSON text for a value that JSON does not have; no list of plain values looks like it."""
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return {"array": [array.dtype.str, list(array.shape), hashlib.sha256(_bytes(array)).hexdigest()]}
    raise TypeError(f"{type(value).__name__} has no digest")


def _bytes(array: np.ndarray) -> Any:
    if array.dtype.hasobject:  # texts, which NumPy keeps as pointers
        return json.dumps(array.reshape(-1).tolist(), default=_told).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
