"""Files and folders: written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from orbit_kd.errors import InputError


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Lets `write` make the file under a temporary name of the same ending, then renames it.

    A killed run, or an error in `write`, leaves the old file or the new one, and nothing else.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Writes bytes, or text as UTF-8.

    Raises:
        InputError: the folder cannot be made or written.
    """
    return replace_file(path, lambda file: file.write_bytes(data.encode() if isinstance(data, str) else data))


def write_folder(folder: str | os.PathLike[str], files: Mapping[str, str]) -> Path:
    """Writes a folder of texts as a whole, in the place of what is there.

    A killed run leaves the old folder or the new one under its name, or none and the old one beside it.

    Args:
        folder: where.
        files: name -> text, stored as UTF-8.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(folder)
    new, old = (folder.with_name(f".{uuid.uuid4().hex}") for _ in range(2))
    try:
        new.mkdir(parents=True)
        for name, text in files.items():
            (new / name).write_bytes(text.encode())
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
    return folder


def unwritable(path: str | os.PathLike[str], error: OSError) -> InputError:
    """The error for a path that cannot be written."""
    return InputError(
        f"{path} cannot be written: {error.strerror or error}.", expected="a folder you may write to, with space left",
        fix="choose another --workdir or path",
    )  # fmt: skip


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Makes the folder, and proves that a file can be written there.

    Raises:
        InputError: it cannot.
    """
    folder = Path(path)
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        shutil.rmtree(probe)
    except OSError as e:
        raise unwritable(folder, e) from e
    return folder
