"""An update file: what a receiver with the old file needs to have the new one, and the proof that it got it.

Layout, little-endian:

    4  b"OKDU"
    1  version, 1
    1  length of the method's name, and the name in ASCII
    4  bytes of the new file
    32 SHA-256 of the old file
    32 SHA-256 of the new file
    .. payload of the method
    4  CRC-32 of all before
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zlib
from collections.abc import Iterator, Sequence

from orbit_kd.errors import InputError
from orbit_kd.flight.uplink.methods import methods
from orbit_kd.support.digests import sha256
from orbit_kd.support.extras import require

MAGIC = b"OKDU\x01"
_FIXED = struct.Struct("<I32s32s")
_CHECK = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class Update:
    """An update, read or made.

    Attributes:
        method: name in `methods`.
        size: bytes of the new file.
        old, new: SHA-256 of both files.
        payload: of the method.
    """

    method: str
    size: int
    old: bytes
    new: bytes
    payload: bytes

    def to_bytes(self) -> bytes:
        """The file."""
        name = self.method.encode("ascii")
        body = MAGIC + bytes([len(name)]) + name + _FIXED.pack(self.size, self.old, self.new) + self.payload
        return body + _CHECK.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> Update:
        """The update in a file.

        Raises:
            InputError: it is none, or a damaged one.
        """
        if not data.startswith(MAGIC):
            raise InputError(
                f"Not an update: it begins with {data[:5]!r}.",
                expected=f"a file of tools/uplink.py, which begins with {MAGIC!r}",
                fix="give the file that tools/uplink.py --output wrote",
            )
        body, start = data[: -_CHECK.size], len(MAGIC) + 1
        whole = len(data) >= start + _CHECK.size and zlib.crc32(body) == _CHECK.unpack(data[-_CHECK.size :])[0]
        end = start + (data[start - 1] if whole else 0)
        if not whole or len(body) < end + _FIXED.size or not body[start:end].isascii():
            raise _damaged("its check sum is another")
        size, old, new = _FIXED.unpack_from(body, end)
        return cls(body[start:end].decode("ascii"), size, old, new, body[end + _FIXED.size :])


@dataclasses.dataclass(frozen=True)
class Made:
    """What `make_update` returns.

    Attributes:
        data: the update file.
        method: that was chosen.
        sizes: method -> bytes of its update file.
        refused: method -> why it takes no such files.
    """

    data: bytes
    method: str
    sizes: dict[str, int]
    refused: dict[str, str]


def make_update(old: bytes, new: bytes, *, among: Sequence[str] | None = None) -> Made:
    """The smallest update from one file to another, each method tried and its result unpacked again.

    Args:
        old: what the receiver has.
        new: what it shall have.
        among: methods to try; None for all.

    Raises:
        InputError: an unknown method, a package that is missing, an empty file, or no method that takes these files.
    """
    if not old or not new or len(new) >= 1 << 32:
        raise InputError(
            f"The old file has {len(old)} bytes, and the new one {len(new)}.", expected="files with something in them, "
            "below 4 GiB", fix="check the paths",
        )  # fmt: skip
    made: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    for name in methods.names() if among is None else among:
        require(*methods.get(name).packages, extra="uplink")
        try:
            update = Update(name, len(new), sha256(old), sha256(new), methods.get(name).pack(old, new))
        except InputError as error:
            refused[name] = error.what
            continue
        try:
            apply_update(old, update)
        except InputError as error:
            refused[name] = f"its update does not give the new file: {error.what}"
        else:
            made[name] = update.to_bytes()
    if not made:
        raise InputError(
            "; ".join(f"{name}: {why}" for name, why in refused.items()) or "No method was given.",
            expected="a method that takes these files", fix="add zstd, xz or brotli, which take any",
        )  # fmt: skip
    best = min(made, key=lambda name: (len(made[name]), name))
    return Made(made[best], best, {name: len(data) for name, data in made.items()}, refused)


def apply_update(old: bytes, update: Update | bytes) -> bytes:
    """The new file, equal to the sender's in SHA-256.

    Args:
        old: what the receiver has.
        update: as `make_update` made it.

    Raises:
        InputError: an old file that is another, a damaged update, or one whose method is not known here.
    """
    if not isinstance(update, Update):
        update = Update.from_bytes(update)
    method = methods.get(update.method)
    require(*method.packages, extra="uplink")
    if sha256(old) != update.old:
        raise InputError(
            f"The old file is another: its SHA-256 begins with {sha256(old).hex()[:16]}, that of the file the update "
            f"was made from with {update.old.hex()[:16]}.",
            expected="the very file that was given as --old when the update was made",
            fix="find that file, or make an update from the file that is there",
        )
    with _told_if_damaged():
        new = method.unpack(old, update.payload, update.size)
    if len(new) != update.size or sha256(new) != update.new:
        raise _damaged("what it makes has another SHA-256 than the sender's file")
    return new


@contextlib.contextmanager
def _told_if_damaged() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of constriction's Rust code is no Exception
        raise _damaged(f"unpacking it fails with {type(error).__name__}: {error}") from error


def _damaged(problem: str) -> InputError:
    return InputError(
        f"The update is damaged: {problem}.",
        expected="the file as tools/uplink.py wrote it", fix="send it again, and apply it to the old file",
    )  # fmt: skip
