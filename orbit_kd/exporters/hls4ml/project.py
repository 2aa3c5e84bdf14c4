"""A folder with an hls4ml project: builds it with g++ and runs it, bit by bit as the FPGA would."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.runtimes.execution import predict


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
    return predict(folder, images, runtime="hls4ml")
