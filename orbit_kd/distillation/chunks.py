"""Batches of samples as structured arrays: one record a sample, each field in the smallest type that keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.support.files import replace_file


def as_records(exact: Sequence[np.ndarray], rounded: Sequence[np.ndarray]) -> np.ndarray:
    """Records with fields f0, f1, ... of the arrays' rows.

    Args:
        exact: arrays (n, ...) whose values must come back as they are: uint8 if all fit, else float16, else their own
            type.
        rounded: arrays (n, ...) kept as float16, or as float32 where that would overflow.
    """
    arrays = [_smallest(a) for a in exact] + [_half(a) for a in rounded]
    fields = [(f"f{i}", a.dtype, a.shape[1:]) for i, a in enumerate(arrays)]
    records = np.empty(len(arrays[0]), np.dtype(fields))
    for i, array in enumerate(arrays):
        records[f"f{i}"] = array
    return records


def save(path: Path, records: np.ndarray) -> None:
    """Writes a chunk as .npy; a killed write leaves nothing under the name.

    Raises:
        InputError: the folder cannot be written.
    """
    replace_file(path, lambda file: np.save(file, records, allow_pickle=False))


def load(path: Path) -> np.ndarray | None:
    """The chunk of that name, read from the file as it is used; None where there is none, or a damaged one."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def digest(arrays: Sequence[np.ndarray], *, salt: str = "") -> str:
    """sha256 of types, shapes and values."""
    result = hashlib.sha256(salt.encode())
    for array in arrays:
        result.update(f"{array.dtype}{array.shape}".encode())
        result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


class Records:
    """The samples of several chunks under one running index.

    Args:
        chunks: structured arrays of the same fields; their types may differ from chunk to chunk.
        merge: copy them into one array in memory, which reads faster.
    """

    def __init__(self, chunks: Sequence[np.ndarray], *, merge: bool) -> None:
        names = chunks[0].dtype.names or ()
        shapes = [chunks[0].dtype[name].shape for name in names]
        types = [np.result_type(*{c.dtype[name].base for c in chunks}) for name in names]
        self.dtype = np.dtype([(n, t, s) for n, t, s in zip(names, types, shapes, strict=True)])
        if merge:
            merged = np.empty(sum(map(len, chunks)), self.dtype)
            start = 0
            for chunk in chunks:
                for name in names:
                    merged[name][start : start + len(chunk)] = chunk[name]
                start += len(chunk)
            chunks = [merged]
        self._chunks = list(chunks)
        self._ends = np.cumsum([len(chunk) for chunk in chunks])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies the records of `rows` (n,) into `out` (n,), a structured array of at least these types."""
        if len(self._chunks) == 1 and self._chunks[0].dtype == out.dtype:
            np.take(self._chunks[0], rows, out=out, mode="clip")
            return
        which = np.searchsorted(self._ends, rows, side="right")
        for i, (chunk, row) in enumerate(zip(which, rows, strict=True)):
            start = self._ends[chunk - 1] if chunk else 0
            record = self._chunks[chunk][row - start]
            for name in self.dtype.names or ():
                out[name][i] = record[name]


def _smallest(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "fiu" or values.dtype == np.uint8:
        return values
    for kind in ("uint8", "float16") if values.dtype.kind == "f" else ("uint8",):
        with np.errstate(all="ignore"):
            small = values.astype(kind)
            back = small.astype(values.dtype)
        # equal bytes, not equal values: a negative zero must come back negative
        if back.tobytes() == np.ascontiguousarray(values).tobytes():
            return small
    return values


def _half(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(
            "The teacher gives NaN or infinite outputs.",
            expected="finite outputs for every sample",
            fix="check the data for NaN, and that its scaling is what the teacher was trained with",
        )
    fits = np.abs(values).max(initial=0.0) <= np.finfo(np.float16).max
    return values.astype(np.float16 if fits else np.float32)
