"""The table of ways to write an update. A new one is two functions and their registration:

methods.register("mine")(Method(pack, unpack))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to bring a new file to a receiver that has an old one.

    Attributes:
        pack: (old, new) -> payload. It raises InputError for files it cannot take.
        unpack: (old, payload, size) -> new, of `size` bytes. Whatever it raises is told as a damaged payload; it must
            not make more than `size` bytes of it.
        packages: import names of what it needs.
        whole: the payload holds the whole new file, not the difference to the old one.
    """

    pack: Callable[[bytes, bytes], bytes]
    unpack: Callable[[bytes, bytes, int], bytes]
    packages: tuple[str, ...] = ()
    whole: bool = False


methods: Registry[Method] = Registry("uplink method")
