"""Mask files to class numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets import tiff
from orbit_kd.datasets.decoding import ARRAYS
from orbit_kd.datasets.kinds import IGNORE
from orbit_kd.errors import InputError

TO_NUMBERS = (
    "save class numbers: numbers = np.zeros(rgb.shape[:2], np.uint8); for each class k "
    "numbers[(rgb == colour_k).all(-1)] = k; Image.fromarray(numbers).save('mask.png')"
)


def decode_mask(item: Any, *, name: str = "") -> np.ndarray:
    """One mask as class numbers, uint8 (height, width, 1).

    Args:
        item: a file (grey or indexed PNG, of which the index counts and not its colour; TIFF; .npy), or an array.
        name: for messages.

    Raises:
        InputError: colours, blended values of a JPEG, fractions, or numbers beyond 0 to 255.
    """
    name = name or str(item)
    if isinstance(item, np.ndarray):
        return _numbers(item, name)
    try:
        return _numbers(_read(item, name), name)
    except InputError:
        raise
    except Exception as e:  # as of images: Pillow's plug-ins raise whatever their parser met
        raise InputError(
            f"Cannot read the mask {name}: {e}.",
            expected="a whole png, tif or npy file",
            fix="replace the file, or take it out of the folder with its image",
        ) from e


def _read(file: Path, name: str) -> np.ndarray:
    from PIL import Image

    if file.suffix.lower() in ARRAYS:
        return np.load(file, allow_pickle=False)
    if tiff.is_tiff(file) and (read := tiff.read(file, name)) is not None:
        return read
    with Image.open(file) as image:
        if image.format in ("JPEG", "MPO", "WEBP"):
            raise InputError(
                f"The mask {name} is a {image.format} file, whose compression blends class numbers.",
                expected="PNG, TIFF or .npy",
                fix="make the masks anew from their source; a threshold may do where there are two classes",
            )
        if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "F"):
            raise InputError(
                f"The mask {name} has colours ({image.mode}), which are no class numbers.",
                expected="one number a pixel: a grey or indexed PNG",
                fix=TO_NUMBERS,
            )
        return np.asarray(image)


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2:
        raise InputError(
            f"The mask {name} has shape {values.shape}.",
            expected="(height, width), one class number a pixel",
            fix=TO_NUMBERS if values.shape[-1] in (3, 4) else "of one-hot masks save np.argmax(mask, -1)",
        )
    if values.dtype == bool or values.dtype == np.uint8:
        return values.astype(np.uint8)[..., None]
    if not np.issubdtype(values.dtype, np.number) or not np.array_equal(values, np.round(values)):
        raise InputError(
            f"The mask {name} has values that are no whole numbers.",
            expected=f"class numbers from 0, and {IGNORE} for pixels that count for nothing",
            fix="of probabilities save (mask > 0.5); a mask must be resized with the nearest pixel, not blended",
        )
    if values.min() < 0 or values.max() > IGNORE:
        raise InputError(
            f"The mask {name} has values from {values.min():g} to {values.max():g}.",
            expected=f"class numbers from 0 to {IGNORE - 1}, and {IGNORE} for pixels that count for nothing",
            fix="number the classes anew, from 0",
        )
    return values.astype(np.uint8)[..., None]
