"""What an export target returns, and the table of targets."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orbit_kd.registry import Registry

Buffer = bytes  # the type, where a field `bytes` hides it
targets: Registry[Callable[..., Artifact]] = Registry("export target")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One exported model on disk.

    Attributes:
        target: name of the export target that wrote it.
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


def gzip_size(data: bytes) -> int:
    """Bytes after gzip at level 9; the same on every day, as the header holds no time."""
    return len(gzip.compress(data, 9, mtime=0))
