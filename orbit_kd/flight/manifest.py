"""A manifest beside exported files: the SHA-256 of each file, and of each tensor of a .tflite file.

`manifest.json` says in which tensor a file was changed, also where the change has broken it, as each tensor stands
there with its place in the file. It tells damage; that nobody changed file and manifest together, its signature tells
(`signature.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.support.digests import sha256
from orbit_kd.support.files import write_file
from orbit_kd.support.versions import MADE_WITH, versions_of
from orbit_kd.tflite.places import Place, places, without
from orbit_kd.tflite.reader import read_bytes

NAME = "manifest.json"
SIGNATURES = ("manifest.json.sig", "model.sig")  # names of the files of both signature formats
_FORMAT = "orbit_kd manifest 1"
_FILE = {"bytes": int, "sha256": str}
_TENSOR = {"name": str, "graph": int, "kind": str, "dtype": str, "shape": list, "start": int, "bytes": int,
           "sha256": str}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """A difference between a file and its manifest.

    Attributes:
        file: relative to the folder.
        what: e.g. "missing", or what of it changed.
    """

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def write_manifest(
    folder: str | os.PathLike[str],
    files: Iterable[str | os.PathLike[str]],
    *,
    recipe: str | None = None,
    data: str | None = None,
    keep: bool = False,
) -> Path:
    """Writes `folder`/manifest.json; the same files give the same bytes. Signatures of another manifest are removed.

    Args:
        folder: that the files lie in, below it at any depth.
        files: exported files, and folders of such.
        recipe: its digest.
        data: key of the training data.
        keep: what an earlier manifest there says of other files stays in it, unread.

    Raises:
        InputError: a file outside of the folder, or an unwritable folder.
    """
    folder = Path(folder)
    path = folder / NAME
    entries = read_manifest(folder)["files"] if keep and path.is_file() else {}
    for file in _each(files):
        entries[_relative(file, folder)] = _entry(read_bytes(file))
    content = {"format": _FORMAT, "recipe": recipe, "data": data, "versions": versions_of(MADE_WITH), "files": entries}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        for name in SIGNATURES:
            (folder / name).unlink(missing_ok=True)
        write_file(path, text)
    return path


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest in a folder.

    Raises:
        InputError: there is none, or one of another form.
    """
    path = Path(folder, NAME)
    if not path.is_file():
        raise InputError(
            f"{folder} has no {NAME}.",
            expected="a folder of tools/export.py, or the workdir of tools/compress.py",
            fix="give the folder that the files were exported to; files of earlier versions are exported again",
        )
    try:
        found = json.loads(path.read_bytes())
        _check(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} is no manifest of exported files: {error}.",
            expected=f'JSON with "format": "{_FORMAT}", as orbit_kd writes it',
            fix="get the folder again from who sent it, or export the files again",
        ) from error
    return found


def changes(folder: str | os.PathLike[str]) -> list[Change]:
    """What in a folder is not as its manifest says; empty where all is. Files that it does not name are not looked at.

    Raises:
        InputError: as `read_manifest`.
    """
    return [
        Change(name, what)
        for name, entry in sorted(read_manifest(folder)["files"].items())
        for what in _changed(Path(folder, name), entry)
    ]


def _each(files: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files, those in folders too."""
    for file in map(Path, files):
        yield from sorted(f for f in file.rglob("*") if f.is_file()) if file.is_dir() else [file]


def _relative(file: Path, folder: Path) -> str:
    try:
        return file.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError as error:
        raise InputError(
            f"{file} does not lie in {folder}.", expected="files below the folder of the manifest",
            fix="choose the folder that holds them all",
        ) from error  # fmt: skip


def _entry(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    entry: dict[str, Any] = {"bytes": len(data), "sha256": sha256(data).hex()}
    if data[4:8] == b"TFL3":
        found = places(data)
        entry["structure"] = sha256(without(data, found)).hex()
        entry["tensors"] = [_row(place, data) for place in found]
    return entry


def _row(place: Place, data: bytes) -> dict[str, Any]:
    row = {name: getattr(place, name) for name in ("name", "graph", "kind", "dtype", "start", "bytes")}
    return row | {"shape": list(place.shape), "sha256": sha256(data[place.start : place.end]).hex()}


def _changed(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one file, in words."""
    if not path.is_file():
        yield "missing"
        return
    data = read_bytes(path)
    if sha256(data).hex() == entry["sha256"]:
        return
    if len(data) != entry["bytes"]:
        yield f"{len(data):,} bytes in place of {entry['bytes']:,}"
    if "tensors" not in entry:
        yield "changed"
    elif len(data) == entry["bytes"]:
        yield from _changed_in_place(data, entry)
    else:
        yield from _changed_by_name(data, entry)


def _changed_in_place(data: bytes, entry: dict[str, Any]) -> Iterator[str]:
    """Changed tensors of a file of the right length, which need not be readable any more."""
    left = bytearray(data)
    for row in entry["tensors"]:
        span = slice(row["start"], row["start"] + row["bytes"])
        if sha256(data[span]).hex() != row["sha256"]:
            yield _named(row) + " changed"
        left[span] = bytes(len(left[span]))
    if sha256(left).hex() != entry["structure"]:
        yield "changed outside of the tensors (structure, zero points, notes)"


def _changed_by_name(data: bytes, entry: dict[str, Any]) -> Iterator[str]:
    """The same of a file of another length: tensors are found by their names."""
    try:
        found = {_key(row): row for row in (_row(place, data) for place in places(data))}
    except InputError:
        yield "no readable .tflite file any more"
        return
    for row in entry["tensors"]:
        now = found.pop(_key(row), None)
        if now is None:
            yield _named(row) + " is gone"
        elif now["sha256"] != row["sha256"]:
            yield _named(row) + " changed"
    for row in found.values():
        yield _named(row) + " is new"


def _key(row: dict[str, Any]) -> tuple[int, str, str]:
    return row["graph"], row["name"], row["kind"]


def _named(row: dict[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"])) or "1"
    what = "the scales of" if row["kind"] == "scale" else "the values of"
    return f"{what} {row['name'][:120]!r} ({row['dtype']}, {shape})"


def _check(found: Any) -> None:
    """Raises ValueError or KeyError for JSON of another form."""
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError("it does not name its format")
    if not isinstance(found["files"], dict):
        raise ValueError("its files are no table")
    for name, entry in found["files"].items():
        path = PurePosixPath(name)
        odd = not name or "\0" in name or "\\" in name or max(map(len, name.encode().split(b"/"))) > 255
        if odd or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} is no file in its folder")
        _check_row(entry, _FILE)
        if "tensors" in entry:
            _check_row(entry, {"tensors": list, "structure": str})
            for row in entry["tensors"]:
                _check_row(row, _TENSOR)


def _check_row(row: Any, kinds: dict[str, type]) -> None:
    if not isinstance(row, dict):
        raise ValueError("an entry is no table")
    for name, kind in kinds.items():
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} is {value!r}")
