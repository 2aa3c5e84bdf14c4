"""A folder with an hls4ml project: builds it with g++ and runs it, bit by bit as the FPGA would."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.hls4ml.jobs import run_job

NOTE = "orbit_kd.json"  # beside hls4ml's own files: the project's name, the shape of its input, its classes


def build(folder: str | os.PathLike[str]) -> float:
    """Compiles a project with g++, again after it was moved; returns the seconds.

    Raises:
        InputError: g++ fails.
    """
    start = time.monotonic()
    for old in Path(folder, "firmware").glob("*.so"):
        old.unlink()
    done = subprocess.run(["bash", "build_lib.sh"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise InputError(
            f"g++ does not compile the project: {' '.join(lines[:1])[:300]}",
            expected="a network and options that hls4ml's templates cover",
            fix=f"run build_lib.sh in {folder} for the whole report; try strategy='latency' or other widths",
        )
    return time.monotonic() - start


def run_project(folder: str | os.PathLike[str], images: Any) -> np.ndarray:
    """Runs a built project, bit by bit as the FPGA would, on images as the network sees them.

    Args:
        folder: what `export_hls4ml` wrote.
        images: (n, ...) float32.

    Returns:
        float32 (n, classes).

    Raises:
        InputError: no such project, images of another shape, or a project that was moved since it was built.
    """
    folder, images = Path(folder).absolute(), np.asarray(images, np.float32)
    library = next(iter(sorted(Path(folder, "firmware").glob("*.so"))), None)
    if library is None or not (folder / NOTE).is_file():
        raise InputError(f"{folder} holds no project that was built.", expected="a folder of the target hls4ml",
                         fix="export the model again")  # fmt: skip
    note = json.loads((folder / NOTE).read_text())
    if list(images.shape[1:]) != note["input"]:
        raise InputError(f"The images have shape {images.shape[1:]}.", expected=f"{tuple(note['input'])}",
                         fix="apply the Preprocess the network was trained with")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "images.npy"), images)
        request = note | {"library": str(library), "images": "images.npy", "outputs": "outputs.npy"}
        failure = f"The project in {folder} does not run; if it was moved, call `build` again"
        run_job("run", request, scratch=scratch, failure=failure)
        return np.load(Path(scratch, "outputs.npy"))
