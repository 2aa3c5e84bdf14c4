"""Writes flatbuffers in which equal parts are stored once: vectors, texts, and whole tables.

The FlatBuffers format allows any number of references to a part; its builders share texts and table layouts only.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

Field = tuple[Any, Any]  # how a number is packed, None for a reference; and the value


class SharingBuilder(flatbuffers.Builder):
    """A builder that stores equal vectors once and, if asked to, equal tables and texts.

    A table is equal to another if its numbers are, and its references, which are shared already, lead to the same
    place. It is written when it is complete, small fields together, so that no more than three bytes are padding.

    Args:
        size: bytes to begin with.
        tables: share tables, texts and vectors of bytes too. The latter are a file's constants, which then lie at any
            multiple of 4.
    """

    def __init__(self, size: int, *, tables: bool = False) -> None:
        super().__init__(size)
        self._share, self._known = tables, dict[Any, int]()
        self._fields: dict[int, Field] | None = None
        self._slots = 0

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """See the base class."""
        if x.dtype == np.uint8 and not self._share:  # constants: they need their alignment
            return super().CreateNumpyVector(x)
        key = (x.dtype.str, x.tobytes())
        if key not in self._known:
            self._known[key] = super().CreateNumpyVector(x)
        return self._known[key]

    def CreateString(self, s: Any, *args: Any, **kwargs: Any) -> int:
        """See the base class."""
        if not self._share:
            return super().CreateString(s, *args, **kwargs)
        if ("text", s) not in self._known:
            self._known["text", s] = super().CreateString(s, *args, **kwargs)
        return self._known["text", s]

    def StartObject(self, numfields: int) -> None:
        """See the base class."""
        if self._share:
            self._fields, self._slots = {}, numfields
        else:
            super().StartObject(numfields)

    def PrependSlot(self, flags: Any, o: int, x: Any, d: Any) -> None:
        """See the base class."""
        if self._fields is None:
            super().PrependSlot(flags, o, x, d)
        elif x != d:
            self._fields[o] = (flags, x)

    def PrependUOffsetTRelativeSlot(self, o: int, x: int, d: int) -> None:
        """See the base class."""
        if self._fields is None:
            super().PrependUOffsetTRelativeSlot(o, x, d)
        elif x != d:
            self._fields[o] = (None, x)

    def EndObject(self) -> int:
        """See the base class."""
        if self._fields is None:
            return super().EndObject()
        fields, self._fields = self._fields, None
        key = (self._slots, tuple(sorted((slot, str(flags), value) for slot, (flags, value) in fields.items())))
        if key not in self._known:
            super().StartObject(self._slots)
            for slot, (flags, value) in sorted(fields.items(), key=_width):
                if flags is None:
                    super().PrependUOffsetTRelativeSlot(slot, value, 0)
                else:
                    super().PrependSlot(flags, slot, value, None)
            self._known[key] = super().EndObject()
        return self._known[key]


def _width(item: tuple[int, Field]) -> int:
    flags = item[1][0]
    return 4 if flags is None else flags.bytewidth
