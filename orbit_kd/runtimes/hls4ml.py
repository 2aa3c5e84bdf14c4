"""hls4ml projects that g++ built: the C++ of an FPGA design, bit by bit as the FPGA would compute it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.compiled import NOTE, CompiledRunner
from orbit_kd.runtimes.ports import Port
from orbit_kd.runtimes.runner import Model, Runner, runtimes


@runtimes.register("hls4ml")
def load_hls4ml(model: Model, threads: int) -> Runner:
    """Loads a project: its folder, or the file in it that its Artifact names.

    Raises:
        InputError: no such project, or one that was not built.
    """
    path = Path(os.fsdecode(model) if isinstance(model, bytes) else model).absolute()
    folder = next((f for f in (path, *path.parents) if (f / NOTE).is_file()), path)
    library = next(iter(sorted(Path(folder, "firmware").glob("*.so"))), None)
    if library is None or not (folder / NOTE).is_file():
        raise InputError(
            f"{folder} holds no project that was built.",
            expected="a folder of the target hls4ml",
            fix="export the model again",
        )
    note = json.loads((folder / NOTE).read_text())
    ports = [Port(tuple(shape), np.dtype(np.float32), 0.0, 0) for shape in (note["input"], [note["classes"]])]
    return CompiledRunner(
        library, f"{note['project']}_float", input=ports[0], output=ports[1], processes=threads,
        fix="if it was moved, call `build` again: orbit_kd.exporters.hls4ml.project.build(folder)",
    )  # fmt: skip
