"""Code that was compiled for this machine: a function of a shared library, one image in, one result out.

A target that writes a folder of such code needs a runtime of a few lines: find the library, say what goes in and out.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes import call_library
from orbit_kd.runtimes.ports import Port

NOTE = "orbit_kd.json"  # in a folder that a target wrote: what is in it


class CompiledRunner:
    """A function `void name(const T *input, U *output)`, of arrays as the ports say, in C order.

    It has one input and one output: a target whose code has more is to refuse the model.

    It runs in a process of its own, as compiled code may end its process (hls4ml's does where a weight file is gone),
    and in a fresh one for each call of `raw`, so that nothing stays behind.

    Args:
        library: the shared library.
        function: its name there.
        input: what goes in.
        output: what comes out.
        processes: that share the images.
        fix: what to do where the code does not run.
    """

    def __init__(
        self, library: Path, function: str, *, input: Port, output: Port, processes: int = 1, fix: str
    ) -> None:
        self.input, self.output = input, output
        self.inputs: tuple[Port, ...] = (input,)
        self.outputs: tuple[Port, ...] = (output,)
        self._library, self._function, self._processes, self._fix = library, function, processes, fix

    def raw(self, x: np.ndarray) -> np.ndarray:
        """See `Runner.raw`."""
        parts = [part for part in np.array_split(x, self._processes) if len(part)]
        with ThreadPoolExecutor(self._processes) as pool:
            done = list(pool.map(self._run, parts))
        return np.concatenate(done) if done else np.zeros((0, *self.output.shape), self.output.dtype)

    def _run(self, x: np.ndarray) -> np.ndarray:
        sizes = [int(np.prod(port.shape)) * port.dtype.itemsize for port in (self.input, self.output)]
        # -I and -S: this program needs nothing but Python itself, and so starts at once
        command = [sys.executable, "-I", "-S", call_library.__file__, str(self._library), self._function]
        given = np.ascontiguousarray(x, self.input.dtype).tobytes()
        done = subprocess.run([*command, *map(str, sizes)], input=given, capture_output=True)
        if done.returncode or len(done.stdout) != len(x) * sizes[1]:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise InputError(
                f"The compiled code in {self._library.parent} does not run ({last[:300]}; exit code "
                f"{done.returncode}).",
                expected="code that was compiled on this machine and has not been moved since",
                fix=self._fix,
            )
        return np.frombuffer(done.stdout, self.output.dtype).reshape(len(x), *self.output.shape)
