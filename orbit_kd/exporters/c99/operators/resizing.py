"""Images of another size: the nearest pixel, or between four."""

from __future__ import annotations

import numpy as np

from orbit_kd.exporters.c99.network import Call
from orbit_kd.exporters.c99.steps import Choice, Fields, Step, operator

_ONE = 1024  # of the fixed point that positions between pixels have


@operator("RESIZE_NEAREST_NEIGHBOR")
def resize_nearest(call: Call, choice: Choice) -> list[Step]:
    """Which pixel is nearest was decided in float32, by lite/kernels/internal/reference/resize_nearest_neighbor.h."""
    image, out = call.input(0), call.output
    rows, columns = (_nearest(call, image.shape[axis], out.shape[axis]) for axis in (1, 2))
    fields: Fields = {"in_w": image.shape[2], "out_h": out.shape[1], "out_w": out.shape[2], "channels": out.shape[3],
              "rows": rows, "columns": columns}  # fmt: skip
    return [Step.of(call, "orbit_resize_nearest_s8", "resize_nearest.c", "orbit_resize_nearest", fields, image)]


@operator("RESIZE_BILINEAR")
def resize_bilinear(call: Call, choice: Choice) -> list[Step]:
    """In 1024ths of a pixel, as lite/kernels/internal/reference/resize_bilinear.h."""
    image, out, options = call.input(0), call.output, call.options
    fields = {"in_h": image.shape[1], "in_w": image.shape[2], "out_h": out.shape[1], "out_w": out.shape[2],
              "channels": out.shape[3]}  # fmt: skip
    for axis, side in ((1, "h"), (2, "w")):
        took, gave = image.shape[axis], out.shape[axis]
        if options.alignCorners and gave > 1:
            took, gave = took - 1, gave - 1
        scale = (_ONE * took + gave // 2) // gave
        fields[f"scale_{side}"] = scale
        fields[f"start_{side}"] = scale // 2 - _ONE // 2 if options.halfPixelCenters else 0
    return [Step.of(call, "orbit_resize_bilinear_s8", "resize_bilinear.c", "orbit_resize_bilinear", fields, image)]


def _nearest(call: Call, size: int, count: int) -> np.ndarray:
    """uint16 (count,): for each pixel of the output its pixel of the input, along one axis."""
    options = call.options
    if size > 2**16:
        raise call.refusal(f"has an input of {size} pixels", expected="at most 65,536", fix="make the input smaller")
    aligned = options.alignCorners and count > 1
    scale = np.float32(size - 1) / np.float32(count - 1) if aligned else np.float32(size) / np.float32(count)
    offset = np.float32(0.5 if options.halfPixelCenters else 0)
    places = (np.arange(count).astype(np.float32) + offset) * scale
    if options.alignCorners:
        places = np.floor(places + np.float32(0.5))  # places are not negative: halves go up
    return np.clip(np.floor(places), 0, size - 1).astype(np.uint16)
