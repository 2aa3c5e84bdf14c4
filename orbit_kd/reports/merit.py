"""The figure of merit of a report: accuracy, or another task's metric, and how it is told."""

from __future__ import annotations

import dataclasses
from typing import Any

from orbit_kd.reports.words import NONE, number, percent, points


@dataclasses.dataclass(frozen=True)
class Merit:
    """What rows of a report are compared by.

    Attributes:
        key: its name in training histories.
        name: for people.
        unit: "%" for shares, told in percent and points; "" for numbers told as they are.
    """

    key: str = "accuracy"
    name: str = "accuracy"
    unit: str = "%"

    @property
    def title(self) -> str:
        """The name as a heading."""
        return self.name[:1].upper() + self.name[1:]

    def of(self, row: dict[str, Any]) -> float | None:
        """Its value in a row (teacher, student, artifact); reports of before have accuracies alone."""
        found = number(row.get("metric"))
        return number(row.get("accuracy")) if found is None else found

    def text(self, value: Any) -> str:
        """A value for people."""
        return percent(value) if self.unit == "%" else NONE if number(value) is None else f"{value:.4f}{self.unit}"

    def change(self, before: Any, after: Any) -> str:
        """The difference of two values."""
        a, b = number(before), number(after)
        if self.unit == "%" or a is None or b is None:
            return points(before, after)
        return "no change" if a == b else f"{b - a:+.4f}{self.unit}"


def merit(data: dict[str, Any]) -> Merit:
    """The figure of merit of a report."""
    about = data.get("task") or {}
    return Merit(*(str(about.get(name, default)) for name, default in dataclasses.asdict(Merit()).items()))
