"""What an export target returns: a model on disk."""

from __future__ import annotations

import dataclasses
import gzip
import os
from pathlib import Path
from typing import Any

Buffer = bytes  # the type, where a field `bytes` hides it


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
