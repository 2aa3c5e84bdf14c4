"""Which bands of the files are taken, by name or number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError


def merged(preprocess: Preprocess, bands: str | Sequence[str | int]) -> Preprocess:
    """The Preprocess with these bands in it, which may be there already.

    Args:
        preprocess: with bands or without.
        bands: names or numbers, or a text of them with commas between.

    Raises:
        InputError: it has other bands.
    """
    names = bands.split(",") if isinstance(bands, str) else bands
    given = dataclasses.replace(preprocess, bands=tuple(map(str, names)))
    if not given.bands:
        return preprocess
    if preprocess.bands and preprocess.bands != given.bands:
        raise InputError(
            f"bands={given.bands}, and Preprocess(bands={preprocess.bands}).",
            expected="one choice of bands",
            fix="leave out one of the two",
        )
    return given


def channel_numbers(bands: Sequence[str], files: Sequence[str]) -> tuple[int, ...]:
    """The channels to take of each decoded image; none where the bands are files, which are chosen already.

    Args:
        bands: what is asked for.
        files: names of the files of which an image is put together; empty where each is one file.

    Raises:
        InputError: a name where an image is one file.
    """
    if not bands or tuple(bands) == tuple(files):
        return ()
    if unknown := [band for band in bands if not band.isdigit()]:
        raise InputError(
            f"There is no band {unknown[0]!r}: each image is one file.",
            expected="numbers of its channels, counted from 0",
            fix="name channels by number: bands=(3, 2, 1) (--bands=3,2,1)",
        )
    return tuple(int(band) for band in bands)
