"""What a sensitivity scan found: accuracy against removal ratio, one curve for each coupled group or layer."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.support.files import write_file
from orbit_kd.support.text_table import aligned


@dataclasses.dataclass(frozen=True)
class Curve:
    """One group (or layer) of a scan.

    Attributes:
        name: of the group: its first layer.
        members: layers that make its channels.
        width: channels of the first member (weights of the kernel, for a scan of weights).
        ratios: parts that went, ascending; of bits the part of eight.
        accuracy: the metric at each ratio; of a classifier the share of right answers.
        loss: mean loss at each ratio.
        images: how many images each point saw; fewer than the scan's where it was clearly lost, 0 where a lower ratio
            was.
        reason: why the group was not scanned; empty where it was.
    """

    name: str
    members: tuple[str, ...]
    width: int
    ratios: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    images: tuple[int, ...] = ()
    reason: str = ""

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Curve:
        """The curve that `dataclasses.asdict` and JSON made a dictionary of."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Scan:
    """What `sensitivity` found: prints as a table; goes to JSON, CSV and a picture.

    Attributes:
        of: "filters", "weights" or "bits".
        accuracy, loss: of the whole network on the same images.
        images: how many.
        curves: one a group, in network order.
        metric: the name of what `accuracy` is.
    """

    of: str
    accuracy: float
    loss: float
    images: int
    curves: tuple[Curve, ...]
    metric: str = "accuracy"

    @property
    def ratios(self) -> tuple[float, ...]:
        """All ratios that a curve has a point at, ascending."""
        return tuple(sorted({ratio for curve in self.curves for ratio in curve.ratios}))

    def __getitem__(self, name: str) -> Curve:
        """The curve of a group, or of the first group that a layer of this name makes channels of."""
        return next(c for which in (lambda c: (c.name,), lambda c: c.members) for c in self.curves if name in which(c))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """All of it as JSON text, also written to `path` where given."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        if path is not None:
            write_file(path, text)
        return text

    @classmethod
    def from_json(cls, text: str) -> Scan:
        """The scan that `to_json` wrote.

        Raises:
            InputError: the text is no such JSON.
        """
        try:
            d = json.loads(text)
            d["curves"] = tuple(Curve.from_dict(c) for c in d["curves"])
            return cls(**d)
        except (ValueError, TypeError, KeyError) as e:
            raise InputError(
                f"This is no sensitivity scan: {e}.", expected="JSON from scan.to_json()", fix="run the scan again"
            ) from e

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """One line a point: group, ratio, accuracy, loss, images; also written to `path` where given."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("group", "ratio", "accuracy", "loss", "images"))
        for c in self.curves:
            writer.writerows(zip([c.name] * len(c.ratios), c.ratios, c.accuracy, c.loss, c.images, strict=True))
        if path is not None:
            write_file(path, out.getvalue())
        return out.getvalue()

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Writes a picture: lines for up to 16 groups, a map of colours for more."""
        from orbit_kd.search.figure import draw

        return draw(self, Path(path))

    def __str__(self) -> str:
        ratios = self.ratios
        rows = [("group", *(f"{r:.0%}" for r in ratios), "")]
        for c in self.curves:
            points = {r: f"{a:.1%}" if n else "lost" for r, a, n in zip(c.ratios, c.accuracy, c.images, strict=True)}
            rows.append((c.name, *(points.get(r, "") for r in ratios), "") if points else (c.name, c.reason))
        lines = aligned(rows, "<" + ">" * len(ratios) + "<")
        told = f"{self.accuracy:.1%} of" if self.metric == "accuracy" else f"{self.metric} {self.accuracy:.1%} on"
        return "\n".join([*lines, f"whole network: {told} {self.images} images"])
