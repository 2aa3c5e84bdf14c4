"""Runs damaged coded files, each in a process that is forked for it; a program of its own, see test_coded_damage.py.

Reads from stdin: the file's length and the file, the number of mutations and a seed. Writes a line a mutation: how it
ended, and what the load said.
"""

from __future__ import annotations

import os
import random
import sys


def mutated(data: bytes, seed: int) -> bytes:
    """The file with one to three changes: a bit or a byte elsewhere, some bytes moved, or its end cut off."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(len(out)), rng.random()
        if kind < 0.45:
            out[place] ^= 1 << rng.randrange(8)
        elif kind < 0.8:
            out[place] = rng.randrange(256)
        elif kind < 0.95:
            size, source = rng.randint(1, 8), rng.randrange(len(out))
            out[place : place + size] = out[source : source + size]
        else:
            del out[place:]
            break
    return bytes(out) or b"\0"


def main(path: str, first: int, count: int) -> None:
    """Prints one line for each seed: its number, the signal or exit code, and the beginning of the message."""
    from orbit_kd import runtimes
    from orbit_kd.errors import InputError
    from orbit_kd.runtimes.execution import run_on_zeros  # noqa: F401  loads all that the forked processes need
    from orbit_kd.runtimes.trusted import trust
    from orbit_kd.support.extras import require

    require("tflite_micro", extra="mcu")
    import numpy as np
    from tflite_micro.python.tflite_micro import runtime  # noqa: F401

    with open(path, "rb") as file:
        data = file.read()
    for seed in range(first, first + count):
        damaged = mutated(data, seed)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code, said = 0, b"ran"
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                runtimes.tflm.plain_file(damaged)  # what is looked at before the file reaches native code
                trust(damaged)
                runner = runtimes.load(damaged, runtime="tflm")
                runner.raw(np.zeros((1, *runner.input.shape), runner.input.dtype))
            except InputError as error:
                code, said = 1, str(error).encode()[:80]
            except BaseException as error:
                code, said = 2, f"{type(error).__name__}: {error}".encode()[:200]
            os.write(write, said)
            os._exit(code)
        os.close(write)
        said = os.read(read, 300)
        os.close(read)
        _, status = os.waitpid(child, 0)
        ending = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(seed, ending, said.decode(errors="replace").replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
