"""Folders of the target "c99": compiled with this machine's C compiler, and run as a program of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.ports import Port, as_tuple, one_or_all
from orbit_kd.runtimes.runner import Model, Runner, runtimes
from orbit_kd.support.digests import sha256

MANIFEST = "manifest.json"
FORMAT = "orbit_kd c99"
FLAGS = ("-std=c99", "-O2")
_SOURCES = ("model.c", "orbit_kernels.c")
_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}
# Reads the inputs of one inference after the other from stdin, and writes its outputs to stdout.
_PROGRAM = """\
#include <stdio.h>

#include "model.h"

static {name}_context context;
{buffers}

int main(void) {{
  while ({reads}) {{
    {name}_invoke(&context, {arguments});
    if (!({writes})) return 1;
  }}
  return 0;
}}
"""


def is_c99(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one that the target "c99" wrote."""
    try:
        return json.loads(Path(folder, MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, whose files must be as it says.

    Raises:
        InputError: no such folder, or a file in it was changed since.
    """
    if not is_c99(folder):
        raise InputError(
            f"{folder} is no folder of C.", expected="a folder of the target c99", fix="export the model again"
        )
    values: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    for name, digest in values["sha256"].items():
        file = folder / name
        if not file.is_file() or sha256(file.read_bytes()).hex() != digest:
            raise InputError(
                f"{file} is not the file that was exported.",
                expected=f"the files of {MANIFEST}, unchanged",
                fix="export the model again",
            )
    return values


@runtimes.register("c99")
def load_c99(model: Model, threads: int) -> Runner:
    """Compiles a folder: the folder itself, or the file in it that its Artifact names.

    Raises:
        InputError: no such folder, one that was changed, or no C compiler.
    """
    path = Path(os.fsdecode(model)).absolute()
    return _Program(path if path.is_dir() else path.parent, threads)


class _Program:
    """A compiled folder, in a process of its own for each call of `raw`."""

    def __init__(self, folder: Path, processes: int) -> None:
        values = read_manifest(folder)
        self.inputs, self.outputs = (
            tuple(
                Port(tuple(p["shape"]), np.dtype(p["dtype"]), p["scale"], p["zero_point"], p["name"])
                for p in values[side]
            )
            for side in ("inputs", "outputs")
        )
        self.input, self.output = self.inputs[0], self.outputs[0]
        self._folder, self._processes = folder, processes
        place = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self._program, source = place / "program", place / "program.c"
        source.write_text(self._text(values["name"]))
        compile_c([source, *(folder / name for name in _SOURCES)], self._program, include=folder)

    def _text(self, name: str) -> str:
        def names(side: str, ports: tuple[Port, ...]) -> list[str]:
            return [f"{side}{i}" for i in range(len(ports))]

        took, gave = names("input", self.inputs), names("output", self.outputs)
        ports = zip((*took, *gave), (*self.inputs, *self.outputs), strict=True)
        return _PROGRAM.format(
            name=name,
            buffers="\n".join(f"static {_TYPES[p.dtype.name]} {n}[{int(np.prod(p.shape))}];" for n, p in ports),
            reads=" && ".join(f"fread({n}, sizeof {n}, 1, stdin) == 1" for n in took),
            arguments=", ".join((*took, *gave)),
            writes=" && ".join(f"fwrite({n}, sizeof {n}, 1, stdout) == 1" for n in gave),
        )

    def raw(self, x: Any) -> Any:
        """See `Runner.raw`."""
        parts = as_tuple(x, self.inputs)
        count = len(parts[0])
        rows = [
            np.ascontiguousarray(part, port.dtype).reshape(count, int(np.prod(port.shape))).view(np.uint8)
            for part, port in zip(parts, self.inputs, strict=True)
        ]
        given = np.concatenate(rows, axis=1)
        with ThreadPoolExecutor(self._processes) as pool:
            done = list(pool.map(self._run, [part for part in np.array_split(given, self._processes) if len(part)]))
        found = np.concatenate(done) if done else np.zeros((0, self._row), np.uint8)
        outputs, start = [], 0
        for port in self.outputs:
            end = start + _bytes(port)
            outputs.append(np.ascontiguousarray(found[:, start:end]).view(port.dtype).reshape(count, *port.shape))
            start = end
        return one_or_all(outputs)

    @property
    def _row(self) -> int:
        """Bytes of the outputs of one inference."""
        return sum(map(_bytes, self.outputs))

    def _run(self, given: np.ndarray) -> np.ndarray:
        done = subprocess.run([self._program], input=given.tobytes(), capture_output=True)
        if done.returncode or len(done.stdout) != len(given) * self._row:
            raise InputError(
                f"The compiled code of {self._folder} does not run (exit code {done.returncode}: "
                f"{done.stderr.decode(errors='replace').strip()[-300:]}).",
                expected=f"{len(given)} results",
                fix="export the model again; if it still fails, this is a fault of orbit_kd: please report it",
            )
        return np.frombuffer(done.stdout, np.uint8).reshape(len(given), self._row)


def compile_c(sources: list[Path], program: Path, *, include: Path, flags: tuple[str, ...] = FLAGS) -> None:
    """Compiles and links C sources with `cc`, or the compiler that the variable CC names.

    Raises:
        InputError: no compiler, or one that refuses the sources.
    """
    wanted = os.environ.get("CC", "cc")
    compiler = shutil.which(wanted)
    if compiler is None:
        raise InputError(
            f"There is no C compiler {wanted!r} on this machine.",
            expected="gcc or clang, called cc or named by the environment variable CC",
            fix="install one (Debian: apt-get install gcc libc6-dev)",
        )
    command = [compiler, *flags, f"-I{include}", *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise InputError(
            f"{compiler} does not compile {include}: {' '.join(lines[:1])[:300]}",
            expected="a compiler of C99",
            fix="set CC to another compiler; gcc and clang are known to work",
        )


def _bytes(port: Port) -> int:
    return int(np.prod(port.shape)) * port.dtype.itemsize
