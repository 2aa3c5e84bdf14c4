"""Calls a function of a shared library on each input that comes in on stdin; a program of its own, see `compiled`."""

from __future__ import annotations

import ctypes
import os
import sys


def main(library: str, function: str, input_bytes: int, output_bytes: int) -> None:
    """Writes to stdout what `void function(const void *input, void *output)` makes of each `input_bytes` of stdin."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what the library prints is no answer
        call = getattr(ctypes.CDLL(library), function)
        call.restype = None
        source, sink = ctypes.create_string_buffer(input_bytes), ctypes.create_string_buffer(output_bytes)
        given = sys.stdin.buffer.read()
        for start in range(0, len(given), input_bytes):
            source.raw = given[start : start + input_bytes]
            call(source, sink)
            answers.write(sink.raw)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
