"""Name -> object. Every string option of the library is looked up in one of these."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from orbit_kd.errors import InputError

T = TypeVar("T")


def _same_definition(new: object, old: object) -> bool:
    """Whether both come from the same `def` or `class` statement, as when a notebook cell runs again."""
    told = [(getattr(item, "__module__", None), getattr(item, "__qualname__", "<lambda>")) for item in (new, old)]
    return told[0] == told[1] and "<lambda>" not in told[0][1]


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

    def register(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        """Decorator that files an object under a name.

        Args:
            name: for `get`.
            replace: take the place of what has that name. The same definition run again (a notebook cell) always does.

        Raises:
            InputError: the name is taken.
        """

        def file(item: T) -> T:
            if name in self._items and not replace and not _same_definition(item, self._items[name]):
                raise InputError(
                    f"There is a {self.kind} {name!r} already.",
                    expected="a new name",
                    fix="choose another name, or say register(..., replace=True)",
                )
            self._items[name] = item
            return item

        return file

    @contextlib.contextmanager
    def temporary(self, name: str, item: T) -> Iterator[T]:
        """Within it, `item` has the name; afterwards what had it before, or nothing."""
        before = dict(self._items)
        self._items[name] = item
        try:
            yield item
        finally:
            self._items = before

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
