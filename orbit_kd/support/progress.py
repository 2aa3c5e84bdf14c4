"""Progress of long steps, with the time left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

T = TypeVar("T")
log = logging.getLogger("orbit_kd")


def track(items: Iterable[T], label: str, *, total: int | None = None, every: float = 5.0) -> Iterator[T]:
    """Yields the items and shows how far it is.

    On a terminal that is a tqdm bar, cleared at the end. Elsewhere (files, pipes, notebooks) the `orbit_kd` logger
    tells a line like "teacher cache 12/40, 1m05s left" at most once in `every` seconds. Nothing where it is not to say
    what it does (its level is above INFO).

    Args:
        items: what to go through.
        label: what is being done.
        total: number of items; taken from `len(items)` where that exists, else the line has no time left.
        every: seconds between two lines. Steps shorter than this stay silent.
    """
    if total is None:
        with contextlib.suppress(TypeError):  # no length, or (tf.data) an unknown one
            total = len(items)  # type: ignore[arg-type]
    if on_terminal():
        with logging_redirect_tqdm([log]):  # or lines would break the bar
            yield from tqdm(items, desc=label, total=total, leave=False, disable=not log.isEnabledFor(logging.INFO))
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - shown >= every:
            shown = now
            left = f", {duration((now - start) / done * (total - done))} left" if total and done else ""
            log.info("%s %d/%s%s", label, done, total if total else "?", left)
        yield item


def on_terminal() -> bool:
    """Whether a person watches: progress bars there, plain lines elsewhere."""
    return sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m05s, 1h10m."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"
