"""What an export target is, what it returns, and the table of targets."""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

Buffer = bytes  # the type, where a field `bytes` hides it


@dataclasses.dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        write: (model, *, path, calibration=None, ...) -> Artifact. Where `variant` is among its arguments, the
            target is asked for as "name:variant".
        suffix: of the file it writes; "" for a folder.
        made_of: the target whose file it takes in place of a Keras model; "" for none.
        runtime: in `orbit_kd.runtimes.run`, that runs what it writes; "" where nothing here does.
        check: (model) -> None, raises InputError for a model that `write` would refuse whatever the data.
    """

    write: Callable[..., Artifact]
    suffix: str
    made_of: str
    runtime: str
    check: Callable[[Any], None] = lambda model: None


targets: Registry[Target] = Registry("export target")
Writer = TypeVar("Writer", bound=Callable[..., Any])


def target(
    name: str,
    *,
    suffix: str = ".tflite",
    made_of: str = "",
    runtime: str = "litert",
    check: Callable[[Any], None] = lambda model: None,
) -> Callable[[Writer], Writer]:
    """Decorator that files a function as an export target; see `Target` for the arguments."""

    def file(write: Writer) -> Writer:
        targets.register(name)(Target(write, suffix, made_of, runtime, check))
        return write

    return file


def find(spec: str) -> tuple[Target, str]:
    """The target and the variant that "name" or "name:variant" asks for.

    Raises:
        InputError: an unknown target, or a variant of one that has none.
    """
    name, _, variant = spec.partition(":")
    found = targets.get(name)
    if variant and "variant" not in inspect.signature(found.write).parameters:
        raise InputError(f"Export target {name!r} has no variants.", expected=repr(name), fix=f"drop :{variant}")
    return found, variant


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported model on disk.

    Attributes:
        target: name of the export target that wrote it, with its variant: "vela:ethos-u85-256".
        path: the file to hand to the runtime.
        bytes: what the device has to store, in bytes, not compressed: the file size of a .tflite, the length of a C
            array.
        gzip_bytes: the same bytes after gzip at level 9.
        details: what else the target knows, such as the number of calibration images; plain JSON values.
        files: every file that was written, `path` first.
    """

    target: str
    path: Path
    bytes: int
    gzip_bytes: int
    details: dict[str, Any]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, data: Buffer, *, target: str, files: tuple[Path, ...], details: dict[str, Any]) -> Artifact:
        """The artifact whose stored bytes are `data`."""
        return cls(target, files[0], len(data), gzip_size(data), details, files)

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Plain values, for JSON; paths from a folder on, which may be moved or renamed with all that is in it."""
        path, *files = (os.path.relpath(f, folder) for f in (self.path, *self.files))
        return dataclasses.asdict(self) | {"path": path, "files": files}

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: Path) -> Artifact:
        """The artifact of `to_dict`."""
        files = tuple(folder / f for f in values["files"])
        return cls(**{**values, "path": folder / values["path"], "files": files})


def gzip_size(data: bytes) -> int:
    """Bytes after gzip at level 9; the same on every day, as the header holds no time."""
    return len(gzip.compress(data, 9, mtime=0))
