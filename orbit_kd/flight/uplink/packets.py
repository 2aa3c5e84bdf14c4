"""An update as CCSDS space packets (CCSDS 133.0-B-2), each of which can be lost, damaged, repeated or late.

The packets are telecommands of one application process. The sequence count is the packet's number, the sequence flags
mark the first and the last one. The data field, big-endian:

    4  the first bytes of the update's SHA-256: whose packet this is
    2  how many packets the update has, less one
    .. its part of the update
    2  CRC-16 of the whole packet before (x^16 + x^12 + x^5 + 1, all ones at first, as CCSDS 232.0-B has it)
"""

from __future__ import annotations

import binascii
import collections
import dataclasses
import struct
from collections.abc import Iterable, Iterator, Sequence

from orbit_kd.errors import InputError
from orbit_kd.support.digests import sha256
from orbit_kd.support.extras import require

_HEADER, _INNER, _CRC = 6, struct.Struct(">4sH"), struct.Struct(">H")
FRAME = _HEADER + _INNER.size + _CRC.size  # bytes of a packet that carry nothing of the update
MOST_PACKETS = 1 << 14  # the sequence count has 14 bits


@dataclasses.dataclass(frozen=True)
class Packet:
    """One whole packet.

    Attributes:
        number: from 0.
        count: of the update's packets.
        update: the first four bytes of its SHA-256.
        part: of the update.
        data: the packet itself.
    """

    number: int
    count: int
    update: bytes
    part: bytes
    data: bytes


def split(data: bytes, *, packet_bytes: int = 256, apid: int = 1) -> list[bytes]:
    """The packets of an update.

    Args:
        data: the update file.
        packet_bytes: length of a packet at most, its header and CRC counted.
        apid: application process identifier of the receiver, 0 to 2046.

    Raises:
        InputError: a length or identifier that packets cannot have, or more of them than the sequence count can tell.
    """
    require("spacepackets", extra="uplink")
    from spacepackets.ccsds.spacepacket import SequenceFlags, SpacePacketHeader

    room = packet_bytes - FRAME
    if not 0 < room <= (1 << 16) - _INNER.size - _CRC.size:
        raise InputError(
            f"Packets of {packet_bytes} bytes.",
            expected=f"{FRAME + 1} to {(1 << 16) + _HEADER}",
            fix="mend --packet_bytes",
        )
    if not 0 <= apid < 2047:
        raise InputError(
            f"Application process {apid}.", expected="0 to 2046; 2047 is for idle packets", fix="mend --apid"
        )
    parts = [data[start : start + room] for start in range(0, len(data), room)]
    if len(parts) > MOST_PACKETS:
        raise InputError(
            f"{len(data):,} bytes make {len(parts):,} packets of {packet_bytes} bytes.",
            expected=f"at most {MOST_PACKETS:,}, which the sequence count can tell apart", fix="raise --packet_bytes",
        )  # fmt: skip
    packets, update = [], sha256(data)[:4]
    for number, part in enumerate(parts):
        ends = {0: SequenceFlags.FIRST_SEGMENT, len(parts) - 1: SequenceFlags.LAST_SEGMENT}
        flags = SequenceFlags.UNSEGMENTED if len(parts) == 1 else ends.get(number, SequenceFlags.CONTINUATION_SEGMENT)
        inner = _INNER.pack(update, len(parts) - 1) + part
        length = len(inner) + _CRC.size - 1  # CCSDS: one less than the data field has
        packet = bytes(SpacePacketHeader.tc(apid, number, length, seq_flags=flags).pack()) + inner
        packets.append(packet + _CRC.pack(_crc(packet)))
    return packets


def read_packets(streams: Iterable[bytes]) -> Iterator[Packet]:
    """Every whole packet in what was received; what is damaged, and anything between packets, is passed over."""
    require("spacepackets", extra="uplink")
    for stream in streams:
        start = 0
        while start + FRAME < len(stream):
            packet = _packet_at(stream, start)
            if packet is None:
                start += 1
            else:
                yield packet
                start += len(packet.data)


def join(streams: Iterable[bytes]) -> bytes:
    """The update, once all its packets are there, in any order and from any number of receptions.

    Raises:
        InputError: no packets; or some are lost or damaged, which it names.
    """
    found = list(read_packets(streams))
    if not found:
        raise InputError("There is no whole space packet in it.", expected="packets of tools/uplink.py --packet_bytes",
                         fix="check the path; or send all packets again")  # fmt: skip
    kinds = collections.Counter((packet.update, packet.count) for packet in found)
    (update, count), _ = kinds.most_common(1)[0]
    parts = {packet.number: packet.part for packet in found if (packet.update, packet.count) == (update, count)}
    missing = [number for number in range(count) if number not in parts]
    if missing:
        others = sum(kinds.values()) - kinds[update, count]
        also = f" ({others} packets of other updates were passed over)" if others else ""
        raise InputError(
            f"Packets {in_words(missing)} of 0 to {count - 1} are lost or damaged{also}: nothing was applied.",
            expected="all packets of the update",
            fix=f"send them again (tools/uplink.py --packets=SENT --resend={in_words(missing)} --output=AGAIN), and "
            "give both files to --apply",
        )
    data = b"".join(parts[number] for number in range(count))
    if sha256(data)[:4] != update:
        raise InputError("The packets do not make the update they name.", expected="packets of one update",
                         fix="send all of them again")  # fmt: skip
    return data


def resend(sent: bytes, numbers: Sequence[int]) -> bytes:
    """Those packets of a file of packets that are asked for.

    Raises:
        InputError: one is not in it.
    """
    known = {packet.number: packet.data for packet in read_packets([sent])}
    lacking = [number for number in numbers if number not in known]
    if lacking or not numbers:
        raise InputError(
            f"Packets {in_words(lacking) or 'without a number'} are not in the file of packets.",
            expected=f"numbers from {in_words(sorted(known)) or 'a file with packets'}",
            fix="give the file that was sent as --packets, and the numbers that --apply named",
        )
    return b"".join(known[number] for number in numbers)


def in_words(numbers: Sequence[int]) -> str:
    """Rising numbers as "3,7-9"; `numbers_of` reads it."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def numbers_of(text: str) -> list[int]:
    """The numbers of "3,7-9".

    Raises:
        InputError: it has another form.
    """
    try:
        ends = [[int(end) for end in run.split("-")] for run in text.split(",")]
        if all(0 <= run[0] <= run[-1] < MOST_PACKETS and len(run) <= 2 for run in ends):
            return [number for run in ends for number in range(run[0], run[-1] + 1)]
    except ValueError:
        pass
    raise InputError(f"{text!r} names no packets.", expected="numbers such as 3,7-9", fix="mend --resend")


def _packet_at(stream: bytes, start: int) -> Packet | None:
    """The whole packet that begins there; None where there is none."""
    from spacepackets.ccsds.spacepacket import PacketType, SpacePacketHeader

    if stream[start] >> 3 != 0b00010:  # version 0, a telecommand, no secondary header
        return None
    header = SpacePacketHeader.unpack(stream[start : start + _HEADER])
    data = stream[start : start + _HEADER + header.data_len + 1]
    whole = header.packet_type == PacketType.TC and len(data) == _HEADER + header.data_len + 1 > FRAME
    if not whole or _crc(data[: -_CRC.size]) != _CRC.unpack(data[-_CRC.size :])[0]:
        return None
    update, last = _INNER.unpack_from(data, _HEADER)
    if not header.seq_count <= last < MOST_PACKETS:
        return None
    return Packet(header.seq_count, last + 1, update, data[_HEADER + _INNER.size : -_CRC.size], data)


def _crc(data: bytes) -> int:
    return binascii.crc_hqx(data, 0xFFFF)
