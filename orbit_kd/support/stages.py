"""Stages of a long job that leave their results in a folder, so that the same command goes on where it was killed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orbit_kd.support.digests import digest
from orbit_kd.support.files import writable_folder, write_file
from orbit_kd.support.progress import duration

log = logging.getLogger("orbit_kd")


class Stages:
    """Runs named stages; a stage is not run again while its settings and those of the stages it follows are the same.

    Args:
        workdir: where each stage gets a folder.
        key: digest of all that the stages start from.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str], key: str) -> None:
        self.workdir = writable_folder(workdir)
        self.key = key
        self.keys: dict[str, str] = {}
        self.seconds: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def stage(self, name: str, *, after: Sequence[str] = (), **settings: Any) -> Iterator[tuple[Path, bool]]:
        """One stage: yields its folder, and whether its work is done already.

        The folder of a stage with other settings is emptied first; that of a killed run is kept, for the work in it to
        go on. Seconds add up over the runs of a stage that was killed.

        Args:
            name: of the stage and its folder.
            after: the stages, run before this one, whose results it starts from: it runs anew whenever they do.
            **settings: JSON values, all that its own work depends on.
        """
        key = digest(self.key, name, [self.keys[stage] for stage in after], settings)
        self.keys[name] = key
        folder, marker = self.workdir / name, self.workdir / name / "stage.json"
        state = _read(marker)
        if state.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            state = {"key": key, "done": False, "seconds": 0.0}
            write_file(marker, json.dumps(state))
        if not state["done"]:
            log.info("%s ...", name)
        start = time.monotonic()
        try:
            yield folder, state["done"]
        finally:
            if not state["done"]:
                state["seconds"] += time.monotonic() - start
                write_file(marker, json.dumps(state))
        if not state["done"]:
            write_file(marker, json.dumps({**state, "done": True}))
            log.info("%s: %s", name, duration(state["seconds"]))
        self.seconds.append({"name": name, "seconds": round(state["seconds"], 1)})


def _read(marker: Path) -> dict[str, Any]:
    try:
        return json.loads(marker.read_text())
    except (OSError, ValueError):
        return {}
