"""What C++ code writes to standard error: caught, so that users see what concerns them and nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any


class NativeLog:
    """The text that was caught; may be asked for within the block and after it."""

    def __init__(self, file: Any) -> None:
        self._file, self._text = file, ""

    @property
    def text(self) -> str:
        """All of it so far."""
        if not self._file.closed:
            self._file.seek(0)
            self._text = self._file.read().decode(errors="replace")
            self._file.seek(0, os.SEEK_END)
        return self._text


@contextlib.contextmanager
def native_stderr() -> Iterator[NativeLog]:
    """Catches what is written to file descriptor 2 within the block, by the whole process, other threads too."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        log = NativeLog(file)
        try:
            saved = os.dup(2)
        except OSError:  # a process without standard error has nothing to catch
            yield log
            return
        try:
            os.dup2(file.fileno(), 2)
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            _ = log.text  # read before the file is gone
