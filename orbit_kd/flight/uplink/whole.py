"""The whole new file, compressed by general means at their strongest."""

from __future__ import annotations

import lzma
from typing import Any

from orbit_kd.flight.uplink.methods import Method, methods

_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]  # what xz does, without the container's frame


def pack_zstd(data: bytes, *, dictionary: bytes = b"") -> bytes:
    """Zstandard at level 22, without checksum and length.

    Args:
        data: what to pack.
        dictionary: bytes that the receiver has, to be referred to.
    """
    import zstandard

    known = _dictionary(dictionary)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=len(data), dict_size=len(dictionary), format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=0, write_checksum=0, write_dict_id=0,
    )  # fmt: skip
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(data)


def unpack_zstd(payload: bytes, size: int, *, dictionary: bytes = b"") -> bytes:
    """What `pack_zstd` packed, of at most `size` bytes."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary), format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    return unpacker.decompress(payload, max_output_size=size)


def _dictionary(content: bytes) -> Any:
    import zstandard

    return zstandard.ZstdCompressionDict(content, zstandard.DICT_TYPE_RAWCONTENT) if content else None


def _pack_brotli(_: bytes, new: bytes) -> bytes:
    import brotli

    return brotli.compress(new, quality=11, lgwin=24)


def _unpack_brotli(_: bytes, payload: bytes, size: int) -> bytes:
    import brotli

    unpacker = brotli.Decompressor()
    found = unpacker.process(payload, output_buffer_limit=size + 1)
    while len(found) <= size and not unpacker.is_finished() and (more := unpacker.process(b"")):
        found += more
    return found


def _unpack_xz(_: bytes, payload: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(payload, max_length=size + 1)


methods.register("zstd")(
    Method(lambda _, new: pack_zstd(new), lambda _, payload, size: unpack_zstd(payload, size), ("zstandard",), True)
)
methods.register("xz")(
    Method(lambda _, new: lzma.compress(new, lzma.FORMAT_RAW, filters=_LZMA), _unpack_xz, whole=True)
)
methods.register("brotli")(Method(_pack_brotli, _unpack_brotli, ("brotli",), True))
