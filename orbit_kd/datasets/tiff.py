"""TIFF files that Pillow does not read, or not whole: many bands, deep bands, signed and planar ones.

Pillow stays the reader of what it reads as it is (grey, RGB of 8 bits, palettes, CMYK, YCbCr); `tifffile` reads the
rest. The pixels of a GeoTIFF are read as well, its coordinates are not.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_NODATA = 42113
_MINISBLACK, _RGB, _ALPHAS = 1, 2, {1, 2}


def is_tiff(item: Any) -> bool:
    """Whether a file, or the bytes of one, is a TIFF."""
    if isinstance(item, Path):
        with item.open("rb") as file:
            return file.read(4) in _MAGIC
    return isinstance(item, bytes) and item[:4] in _MAGIC


def read(item: Path | bytes, name: str, *, raw: bool = False) -> np.ndarray | None:
    """The bands of a TIFF file, (height, width, bands) of its own dtype; None where Pillow is to read it.

    Args:
        item: a file, or the bytes of one.
        name: for messages.
        raw: every channel and page is a band: no channel is taken for alpha, pages are not frames.

    Raises:
        InputError: a compression that needs the extra, or an array whose bands cannot be told from its pixels.
    """
    import tifffile

    try:
        file = tifffile.TiffFile(item if isinstance(item, Path) else io.BytesIO(item))
    except Exception:  # whatever its parser met; Pillow reads the file, or says what is wrong with it
        return None
    with file:
        if not file.pages or not file.series:
            return None
        page, series = file.pages.first, file.series[0]
        whole = page.samplesperpixel in (1, 3) and len(series.pages) == 1
        if int(page.photometric) not in (_MINISBLACK, _RGB) or (_is_for_pillow(page, series) and (whole or not raw)):
            return None
        try:
            pixels = series.asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            raise InputError(
                f"The image {name} is compressed, and has more than Pillow reads: {str(error).strip(chr(34))}.",
                expected="no compression, deflate, or the package imagecodecs",
                fix='pip install "orbit-kd[geo]", or save it without compression: gdal_translate -co COMPRESS=DEFLATE',
            ) from error
        return _bands_last(pixels, series.axes, name)


def hidden(item: Any) -> str:
    """What is left out of a TIFF file as Pillow reads it: "its 12 pages but the first", or nothing.

    Args:
        item: a file or the bytes of one, of any format.
    """
    if not isinstance(item, (Path, bytes)) or not is_tiff(item):
        return ""
    import tifffile

    try:
        with tifffile.TiffFile(item if isinstance(item, Path) else io.BytesIO(item)) as file:
            page, pages = file.pages.first, len(file.series[0].pages)
            if not _is_for_pillow(page, file.series[0]):
                return ""
            if pages > 1:
                return f"of its {pages} pages only the first is taken"
            if page.samplesperpixel > 1 and _has_alpha(page):
                return f"the last of its {page.samplesperpixel} channels is taken for alpha"
    except Exception:
        return ""
    return ""


def nodata(item: Any) -> float | None:
    """The value that GDAL wrote into a TIFF file as standing for no data; None where there is none.

    Args:
        item: one image as `decoding.Item` has them; of several files the first counts that has such a value.
    """
    if isinstance(item, tuple):
        return next((found for part in item if (found := nodata(part)) is not None), None)
    if not isinstance(item, (Path, bytes)) or not is_tiff(item):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(item if isinstance(item, Path) else io.BytesIO(item)) as file:
            value = float(file.pages.first.tags[_NODATA].value)
    except Exception:  # no such tag, or no such number
        return None
    return value if math.isfinite(value) else None


def _is_for_pillow(page: Any, series: Any) -> bool:
    if int(page.photometric) not in (_MINISBLACK, _RGB):
        return True
    samples, dtype = page.samplesperpixel, np.dtype(page.dtype) if page.dtype is not None else np.dtype(np.uint8)
    if samples == 1:
        stacked = len(series.shape) > 2 and series.axes[0] in "QC"
        return not stacked and not (dtype.kind == "i" and dtype.itemsize < 4) and dtype != np.float16
    if page.bitspersample > 8 or dtype.kind != "u":
        return False
    colours = 3 if int(page.photometric) == _RGB else 1
    return samples == colours or (samples == colours + 1 and _has_alpha(page))


def _has_alpha(page: Any) -> bool:
    return bool({int(e) for e in page.extrasamples} & _ALPHAS)


def _bands_last(pixels: np.ndarray, axes: str, name: str) -> np.ndarray:
    """Pixels as (height, width, bands); axes as tifffile names them, such as YXS, SYX and QYX."""
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim == 3 and len(axes) == 3:
        if axes[-1] in "SC":
            return pixels
        if axes[0] in "SCIZT":
            return np.moveaxis(pixels, 0, -1)
        # Pages of an array that was saved with no word on its axes: (bands, height, width), or the bands last.
        first, *_, last = pixels.shape
        if last < min(pixels.shape[:2]):
            return pixels
        if first < min(pixels.shape[1:]):
            return np.moveaxis(pixels, 0, -1)
    raise InputError(
        f"The image {name} is an array of shape {pixels.shape} (axes {axes}).",
        expected="(height, width, bands) or (bands, height, width), the bands fewer than the rows and columns",
        fix='save it with its axes: tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")',
    )
