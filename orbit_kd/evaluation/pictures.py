"""The samples that a network does worst on, drawn: image, truth, teacher, student side by side."""

from __future__ import annotations

import base64
import heapq
import io
import itertools
from typing import Any

import numpy as np

from orbit_kd.tasks import Outputs, Records, Task

_SIDE, _GAP = 160, 4  # pixels of a panel, at least, and between panels


class Worst:
    """Keeps the samples that one of several networks does worst on, as they come by (see `records_of`).

    Args:
        task: one that `draws`.
        student: the name of that network.
        teacher: the name of the network beside it; "" for none.
        count: how many.
    """

    def __init__(self, task: Task, *, student: str, teacher: str = "", count: int = 8) -> None:
        self._task, self._student, self._teacher, self._count = task, student, teacher, count
        self._kept: list[tuple[float, int, np.ndarray, Any, dict[str, Outputs], float | None]] = []
        self._numbers = itertools.count()

    def __call__(self, x: Any, truth: Any, outputs: dict[str, Outputs], records: dict[str, Records]) -> None:
        for i in range(len(x[0])):
            value = self._task.value(records[self._student][i : i + 1])
            if not np.isfinite(value):
                continue
            beside = self._task.value(records[self._teacher][i : i + 1]) if self._teacher else None
            said = {name: tuple(out[i] for out in outputs[name]) for name in (self._teacher, self._student) if name}
            entry = (-value, next(self._numbers), x[0][i], truth[i], said, beside)
            if len(self._kept) < self._count:
                heapq.heappush(self._kept, entry)
            else:
                heapq.heappushpop(self._kept, entry)

    def rows(self) -> list[dict[str, Any]]:
        """One a sample, worst first: `metric`, `teacher`, and `image`, a PNG as a data URI of the panels in a row."""
        found = []
        for value, _, x, truth, said, beside in sorted(self._kept, key=lambda kept: -kept[0]):
            image = as_picture(x)
            answers = [said[name] for name in (self._teacher, self._student) if name]
            panels = [image, *(self._task.picture(image, truth, out) for out in (None, *answers))]
            found.append({"metric": -value, "teacher": beside, "image": data_uri(side_by_side(panels))})
        return found


def as_picture(x: np.ndarray) -> np.ndarray:
    """An input (h, w, bands) as people see it, uint8 (h, w, 3): the first three bands, or the first as grey.

    The values of the picture from the 1st to the 99th percentile fill the range.
    """
    shown = np.repeat(x[..., :1], 3, axis=-1) if x.shape[-1] < 3 else x[..., :3]
    low, high = np.percentile(shown, (1, 99))
    return np.clip(255 * (shown - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8)


def side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    """Pictures of one size in a row, enlarged by a whole factor to at least 160 pixels, uint8 (h, w, 3)."""
    factor = max(1, -(-_SIDE // panels[0].shape[0]))
    large = [panel.repeat(factor, axis=0).repeat(factor, axis=1) for panel in panels]
    gap = np.full((large[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [part for panel in large for part in (panel, gap)]
    return np.concatenate(parts[:-1], axis=1)


def data_uri(picture: np.ndarray) -> str:
    """A picture as a PNG within a page."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
