"""Patterns and schedules are values: frozen dataclasses that Keras saves with a model."""

from __future__ import annotations

import dataclasses
from typing import Any


class Value:
    """Keras serialization of a frozen dataclass of plain values."""

    def get_config(self) -> dict[str, Any]:
        """The fields, for saved models."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The inverse of `get_config`."""
        return cls(**config)
