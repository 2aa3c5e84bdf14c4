"""TFLite's int8 convolution written down in numpy, and C kernels compiled for this machine: what tests compare."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from orbit_kd.exporters.c99 import packing

KERNELS = Path(packing.__file__).parent / "kernels"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wpedantic")
INTS = (
    "in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h",
    "dilation_w", "pad_top", "pad_left", "in_zero", "out_zero", "act_min", "act_max",
)  # fmt: skip


class Conv(ctypes.Structure):
    """`orbit_conv`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in INTS),
        *((name, ctypes.c_void_p) for name in ("multiplier", "shift", "bias", "weights")),
    ]


def requantize(x: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """MultiplyByQuantizedMultiplier of TFLite, which rounds twice; Python's integers, so that nothing wraps unseen."""

    def one(value: int, factor: int, power: int) -> int:
        product = value * 2 ** max(power, 0) * factor
        high = abs(product + (2**30 if product >= 0 else 1 - 2**30)) // 2**31 * (1 if product >= 0 else -1)
        right = max(-power, 0)
        low, half = high % 2**right, (2**right - 1) // 2 + (high < 0)
        return high // 2**right + (low > half)

    return np.vectorize(one, otypes=[np.int64])(x.astype(object), multiplier.astype(object), shift.astype(object))


def convolve(layer: dict, x: np.ndarray) -> np.ndarray:
    """int8 (height, width, channels) -> int8, with `layer` as `random_layer` gives it."""
    g, weights = layer["ints"], layer["weights"].astype(np.int64)
    sums = np.zeros((g["out_h"], g["out_w"], g["out_c"]), np.int64)
    for y, c in np.ndindex(g["out_h"], g["out_w"]):
        for ky, kx in np.ndindex(g["kernel_h"], g["kernel_w"]):
            iy = y * g["stride_h"] + ky * g["dilation_h"] - g["pad_top"]
            ix = c * g["stride_w"] + kx * g["dilation_w"] - g["pad_left"]
            if 0 <= iy < g["in_h"] and 0 <= ix < g["in_w"]:
                sums[y, c] += weights[:, ky, kx] @ (x[iy, ix].astype(np.int64) - g["in_zero"])
    values = requantize(sums + layer["bias"], layer["multiplier"], layer["shift"]) + g["out_zero"]
    return np.clip(values, g["act_min"], g["act_max"]).astype(np.int8)


def folded_bias(layer: dict) -> np.ndarray:
    """The bias as the kernels have it."""
    sums = layer["weights"].astype(np.int64).reshape(layer["ints"]["out_c"], -1).sum(1)
    return (layer["bias"] - layer["ints"]["in_zero"] * sums).astype(np.int32)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], pattern: str) -> np.ndarray:
    """Random int8 weights (out, kernel_h, kernel_w, in) with the zeros of a pattern."""
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    weights[weights == 0] = 1
    if pattern == "csr":
        return weights * (rng.random(shape) < 0.5).astype(np.int8)
    if ":" in pattern:
        n, m = map(int, pattern.split(":")[:2])
        size = (shape[0], 1, 1, -(-shape[3] // m), m) if "shared" in pattern else (*shape[:3], -(-shape[3] // m), m)
        kept = np.argsort(np.argsort(rng.random(size), axis=-1), axis=-1) < n
        mask = kept.reshape(*size[:3], -1)[..., : shape[3]]
        return weights * np.broadcast_to(mask, shape).astype(np.int8)
    return weights


def random_layer(rng: np.random.Generator, *, in_c: int, out_c: int, size: tuple[int, int], kernel: tuple[int, int],
                 stride: int = 1, dilation: int = 1, same: bool = True, pattern: str = "dense") -> dict:  # fmt: skip
    """A layer with random weights, biases and scales; in one of four its activation is clipped further."""
    ints = {"in_c": in_c, "out_c": out_c, "kernel_h": kernel[0], "kernel_w": kernel[1]}
    for axis, length, width in zip("hw", size, kernel, strict=True):
        reach = (width - 1) * dilation + 1
        out = -(-length // stride) if same else (length - reach) // stride + 1
        pad = max((out - 1) * stride + reach - length, 0) // 2 if same else 0
        ints |= {f"in_{axis}": length, f"out_{axis}": out, f"stride_{axis}": stride, f"dilation_{axis}": dilation}
        ints["pad_top" if axis == "h" else "pad_left"] = pad
    narrow = rng.random() < 0.25
    ints |= {"in_zero": int(rng.integers(-128, 128)), "out_zero": int(rng.integers(-128, 128))}
    ints |= {"act_min": -100 if narrow else -128, "act_max": 90 if narrow else 127}
    weights = sparse(rng, (out_c, *kernel, in_c), pattern)
    return {
        "ints": ints,
        "weights": weights,
        "bias": rng.integers(-5000, 5000, out_c),
        "multiplier": rng.integers(2**30, 2**31, out_c).astype(np.int32),
        "shift": rng.choice([-12, -9, -8, -7, -6, -1, 0, 1], out_c).astype(np.int8),
    }


def build(folder: Path, *, flags: tuple[str, ...] = ("-O1",)) -> ctypes.CDLL:
    """The kernels as a library of this machine."""
    library = folder / "kernels.so"
    sources = sorted({str(KERNELS / f.source) for f in map(packing.formats.get, packing.formats)})
    subprocess.run(["cc", *WARNINGS, *flags, "-shared", "-fPIC", "-o", str(library), *sources], check=True)
    return ctypes.CDLL(str(library))


def run(library: ctypes.CDLL, layer: dict, x: np.ndarray, form: packing.Format) -> np.ndarray:
    """The layer's output by a C kernel. Guards before and behind scratch and output must stay."""
    g = layer["ints"]
    arrays = [layer["multiplier"].astype(np.int32), layer["shift"], folded_bias(layer),
              form.pack(layer["weights"])]  # fmt: skip
    conv = Conv(*[g[name] for name in INTS], *[a.ctypes.data for a in arrays])
    scratch = np.full(form.scratch_bytes(g) // 8 + 2, 0x5A5A5A5A5A5A5A5A, np.int64)
    out = np.full(g["out_h"] * g["out_w"] * g["out_c"] + 16, 0x5A, np.int8)
    x = np.ascontiguousarray(x)
    function = getattr(library, form.function)
    function.restype = None
    pointers = [ctypes.c_void_p(a) for a in (x.ctypes.data, out[8:].ctypes.data, scratch[1:].ctypes.data)]
    function(ctypes.byref(conv), *pointers)
    assert scratch[0] == scratch[-1] == 0x5A5A5A5A5A5A5A5A
    assert (out[:8] == 0x5A).all() and (out[-8:] == 0x5A).all()
    return out[8:-8].reshape(g["out_h"], g["out_w"], g["out_c"])
