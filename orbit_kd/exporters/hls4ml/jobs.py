"""Runs the jobs of `child.py` in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError


def run_job(job: str, request: dict[str, Any], *, scratch: str, failure: str) -> dict[str, Any]:
    """Runs a job in the folder `scratch`, and returns its answer.

    Raises:
        InputError: it fails; the message begins with `failure`.
    """
    Path(scratch, f"{job}.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "orbit_kd.exporters.hls4ml.child", job, f"{job}.json", "answer.json"]
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    env = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"{failure} ({last[:300]}).",
            expected="a small network of plain layers",
            fix="the messages of the tools are the `__cause__` of this error",
        ) from RuntimeError(done.stderr)
    return json.loads(Path(scratch, "answer.json").read_text())
