"""Key -> object. Every string option of the library, and every rule of a layer class, is looked up in one of these.

What is filed with facts about it (what an export target writes, what a criterion needs) is a frozen dataclass that
holds the function and says them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from orbit_kd.errors import InputError

T = TypeVar("T")
Key = str | type


def named(key: Key) -> str:
    """A key as people read it."""
    return key if isinstance(key, str) else key.__name__


class Registry(Generic[T]):
    """A table of options of one kind, such as criteria or export targets by name, or channel rules by layer class.

    Example:
        >>> networks = Registry("network")
        >>> @networks.register("vgg16")
        ... def vgg16(shape, classes): ...
        >>> networks.get("vgg16")
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[Key, T] = {}

    def register(self, *keys: Key, replace: bool = False) -> Callable[[T], T]:
        """Decorator that files an object under a key, or several.

        Args:
            *keys: for `get`.
            replace: take the place of what is there. The same definition run again (a notebook cell) always does.

        Raises:
            InputError: a key is taken.
        """

        def file(item: T) -> T:
            for key in keys:
                if key in self._items and not replace and not _same_definition(item, self._items[key]):
                    raise InputError(
                        f"There is a {self.kind} {named(key)!r} already.",
                        expected="a new name",
                        fix="choose another name, or say replace=True where you register it",
                    )
            self._items.update(dict.fromkeys(keys, item))
            return item

        return file

    @contextlib.contextmanager
    def temporary(self, key: Key, item: T) -> Iterator[T]:
        """Within it, `item` has the key; afterwards what had it before, or nothing."""
        before = dict(self._items)
        self._items[key] = item
        try:
            yield item
        finally:
            self._items = before

    def get(self, key: Key) -> T:
        """The object filed under `key`.

        Raises:
            InputError: nothing is filed under it; the message lists all names.
        """
        if key not in self._items:
            raise InputError(
                f"Unknown {self.kind} {named(key)!r}.",
                expected=f"one of: {', '.join(self.names())}",
                fix=f"choose one of these, or register a {self.kind} of your own under that name",
            )
        return self._items[key]

    def names(self) -> list[str]:
        """All keys as people read them, sorted."""
        return sorted({named(key) for key in self._items})

    def of_class(self, cls: type) -> tuple[type, T] | None:
        """What is filed under a class or, where there is nothing, under the nearest of its bases, with that class."""
        return next(((base, self._items[base]) for base in cls.__mro__ if base in self._items), None)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Any]:
        """All keys, in the order of their names."""
        return iter(sorted(self._items, key=named))


def _same_definition(new: object, old: object) -> bool:
    """Whether both are alike, or come from the same `def` or `class` statement, as when a notebook cell runs again."""
    return new == old or (_definition(new) == _definition(old) and "<lambda>" not in _definition(new)[1])


def _definition(item: Any) -> tuple[str, str]:
    """Module and name of the statement that made a function or class; of a dataclass those of the function it holds."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = next((value for value in vars(item).values() if callable(value)), item)
    return getattr(item, "__module__", ""), getattr(item, "__qualname__", "<lambda>")
