"""The difference to the old file by programs that know nothing of networks."""

from __future__ import annotations

import io
import struct
from typing import Any

from orbit_kd.flight.uplink.methods import Method, methods


class _Bounded(io.BytesIO):
    """Bytes that grow to a limit: a damaged patch may ask for any number."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit:
            raise ValueError("it makes more bytes than the new file has")
        return super().write(data)


def _pack_detools(old: bytes, new: bytes) -> bytes:
    import detools

    patch = io.BytesIO()
    detools.create_patch(io.BytesIO(old), io.BytesIO(new), patch, compression="lzma")
    return patch.getvalue()


def _unpack_detools(old: bytes, payload: bytes, size: int) -> bytes:
    import detools

    new = _Bounded(size)
    detools.apply_patch(io.BytesIO(old), io.BytesIO(payload), new)
    return new.getvalue()


def _pack_bsdiff4(old: bytes, new: bytes) -> bytes:
    import bsdiff4

    return bsdiff4.diff(old, new)


def _unpack_bsdiff4(old: bytes, payload: bytes, size: int) -> bytes:
    import bsdiff4

    if struct.unpack_from("<q", payload, 24)[0] != size:  # the patch says how much memory to ask for
        raise ValueError("it makes another number of bytes than the new file has")
    return bsdiff4.patch(old, payload)


methods.register("detools")(Method(_pack_detools, _unpack_detools, ("detools",)))
methods.register("bsdiff4")(Method(_pack_bsdiff4, _unpack_bsdiff4, ("bsdiff4",)))
