"""Several `worker` processes, and trials shared among them."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from orbit_kd.errors import InputError
from orbit_kd.flight.worker import File, Outcome, Trial


class Workers:
    """Runs trials on several processes; made by `started`."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._free: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        for process in processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(len(processes))
        self._processes = processes

    def take(self, files: Mapping[str, File]) -> None:
        """Hands files to all processes; trials name them."""
        for process in self._processes:
            _send(process, dict(files))

    def outcomes(self, trials: Sequence[Trial]) -> list[Outcome]:
        """How trials end, in their order."""
        return list(self._threads.map(self._outcome, trials))

    def _outcome(self, trial: Trial) -> Outcome:
        process = self._free.get()
        try:
            _send(process, trial)
            if process.stdout is None:
                raise EOFError
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise InputError(
                "A worker process has ended.",
                expected="a machine with memory for all images, once a process",
                fix="take fewer images or fewer workers; the same command goes on where it stopped",
            ) from error
        finally:
            self._free.put(process)


@contextlib.contextmanager
def started(count: int) -> Iterator[Workers]:
    """Within it, so many processes wait for trials.

    Raises:
        InputError: a system that cannot fork a process.
    """
    if not hasattr(os, "fork"):
        raise InputError("This system cannot fork a process.", expected="Linux or macOS: damaged files run in forks",
                         fix="run the campaign in a container")  # fmt: skip
    # with no TensorFlow in it, whose threads a fork would lose
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "orbit_kd.flight.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(count)
    ]  # fmt: skip
    workers = Workers(processes)
    try:
        yield workers
    finally:
        workers._threads.shutdown(cancel_futures=True)
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _send(process: subprocess.Popen[bytes], what: object) -> None:
    if process.stdin is None:
        raise BrokenPipeError
    pickle.dump(what, process.stdin)
    process.stdin.flush()
