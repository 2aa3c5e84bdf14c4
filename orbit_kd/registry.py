"""Name -> object. Every string option of the library is looked up in one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from orbit_kd.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named options of one kind, such as criteria or export targets.

    Example:
        >>> criteria = Registry("criterion")
        >>> @criteria.register("l1_norm")
        ... def l1_norm(weights): ...
        >>> criteria.get("l1_norm")
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a later one of the same name replaces it."""

        def file(item: T) -> T:
            self._items[name] = item
            return item

        return file

    def get(self, name: str) -> T:
        """The object filed under `name`.

        Raises:
            InputError: nothing is filed under it; the message lists all names.
        """
        if name not in self._items:
            raise InputError(
                f"Unknown {self.kind} {name!r}.",
                expected=f"one of: {', '.join(sorted(self._items))}",
                fix=f"choose one of these, or register a {self.kind} of your own under that name",
            )
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
