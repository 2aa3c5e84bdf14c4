"""What to do to images and to networks, as values: frozen dataclasses, no TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

from orbit_kd.errors import InputError


def _pair(value: Any, name: str) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(
            f"Preprocess({name}={value!r}) is no image size.",
            expected="a positive integer, or (height, width)",
            fix=f"give for example {name}=64 or {name}=(64, 96)",
        )
    return pair


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a decoded image to the network's input: channels, crop, resize, then (x - mean) * scale, in this order.

    The one description used by training, calibration, evaluation and golden pairs alike; it is stored in the report
    and in the exported file's metadata.

    Attributes:
        crop: centre crop (height, width) in pixels of the decoded image; None keeps all.
        resize: (height, width) in pixels after the crop, bilinear; None keeps the size.
        scale: factor on the pixel values, after the mean is taken off.
        mean: subtracted from each channel, in units of the decoded pixels; empty for none.
        channels: 1 (luminance) or 3 (grey repeated); None keeps what the file has.
    """

    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    channels: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", _pair(self.crop, "crop"))
        object.__setattr__(self, "resize", _pair(self.resize, "resize"))
        mean = self.mean if isinstance(self.mean, (tuple, list)) else (self.mean,)
        object.__setattr__(self, "mean", tuple(float(m) for m in mean))
        if self.channels not in (None, 1, 3):
            raise InputError(
                f"Preprocess(channels={self.channels!r}).", expected="1, 3 or None", fix="use 1 for grey, 3 for RGB"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Preprocess(**d)` gives it back."""
        return dataclasses.asdict(self)
