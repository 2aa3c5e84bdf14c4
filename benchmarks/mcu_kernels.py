"""Instructions of the C99 kernels, layer by layer, on small cores, beside CMSIS-NN. Writes docs/mcu_kernels.md.

    git clone https://github.com/ARM-software/CMSIS-NN
    python benchmarks/mcu_kernels.py --cmsis_nn=CMSIS-NN

Each row is one layer on one core under QEMU, with random weights that keep the pattern and random activations: the
instructions of one call, without start-up and without the comparison of its output, which must be what TFLite's
arithmetic gives. They are instructions, not cycles: QEMU has no pipeline and no flash that makes it wait.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from mcu_kernels_page import CMSIS, VECTORS, page

from orbit_kd.errors import InputError
from orbit_kd.exporters.c99 import packing, qemu

FLAGS = flags.FLAGS
flags.DEFINE_string("cmsis_nn", None, "A checkout of CMSIS-NN; without it its rows are left out.")
flags.DEFINE_list("cores", ["cortex-m4", "cortex-m3", "cortex-m55", "rv32", "leon3"], "Cores to run.")
flags.DEFINE_boolean("page_only", False, "Write the page from the rows that are there.")

RESULTS = Path(__file__).parent / "results" / "mcu_kernels.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "mcu_kernels.md"
KERNELS = Path(packing.__file__).parent / "kernels"
# name: (height and width, input channels, output channels, kernel)
LAYERS = {
    "L1": (64, 4, 4, 3), "L2": (32, 8, 8, 3), "L3": (16, 16, 16, 3), "L4": (8, 32, 32, 3), "L7": (16, 64, 64, 3),
    "L8": (8, 128, 128, 3), "L9": (8, 128, 128, 1),
}  # fmt: skip
# row: (pattern of the weights, format)
FORMS = {
    "dense": ("dense", "dense"), "CSR 50%": ("half", "csr"), "2:4": ("2:4", "nm"),
    "2:4, long index": ("2:4", "nm_long"), "4:8": ("4:8", "nm"), "1:4": ("1:4", "nm"),
    "tap-shared 2:4": ("2:4:shared", "shared"), VECTORS: ("dense", "vector"),
}  # fmt: skip
CMSIS_CORES = ("cortex-m3", "cortex-m4", "cortex-m55")
_CALL = """\
{includes}
{arrays}
int main(void) {{
#if CALL
  {call}
#endif
  return memcmp(CALL ? output : golden, golden, sizeof golden) != 0;
}}
"""
_OWN = """\
static const orbit_conv layer = {{{ints}, multiplier, shift, bias, weights}};
static int64_t scratch[{words}];
static int8_t output[sizeof golden];"""
_CMSIS = """\
static int8_t output[sizeof golden];
static int64_t scratch[16384];
static const cmsis_nn_conv_params params = {{
  {in_offset}, {out_offset}, {{1, 1}}, {{{pad}, {pad}}}, {{1, 1}}, {{-128, 127}}}};
static const cmsis_nn_per_channel_quant_params scales = {{(int32_t *)multiplier, (int32_t *)shift}};
static const cmsis_nn_dims in = {{1, {size}, {size}, {in_c}}}, kernel = {{{out_c}, {k}, {k}, {in_c}}};
static const cmsis_nn_dims count = {{1, 1, 1, {out_c}}}, out = {{1, {size}, {size}, {out_c}}};"""
_CMSIS_CALL = """\
const cmsis_nn_context context = {scratch, sizeof scratch};
  if (arm_convolve_wrapper_s8_get_buffer_size(&params, &in, &kernel, &out) > (int32_t)sizeof scratch) return 1;
  arm_convolve_wrapper_s8(&context, &params, &scales, &in, input, &kernel, weights, &count, bias, &out, output);"""


def sparse(rng: np.random.Generator, shape: Sequence[int], pattern: str) -> np.ndarray:
    """int8 weights (out, kernel_h, kernel_w, in) like a trained layer's: normal, the largest 127."""
    values = np.clip(np.round(rng.normal(size=shape) * 127 / 3.5), -127, 127).astype(np.int8)
    values[values == 0] = 1
    if pattern == "half":
        return values * (np.argsort(rng.random(values.size)).reshape(shape) < values.size // 2).astype(np.int8)
    if pattern == "dense":
        return values
    n, m = map(int, pattern.split(":")[:2])
    places = (shape[0], 1, 1) if pattern.endswith("shared") else tuple(shape[:3])
    order = np.argsort(np.argsort(rng.random((*places, shape[3] // m, m)), axis=-1), axis=-1)
    return values * (order < n).reshape(*places, shape[3]).astype(np.int8)


def golden_of(x: np.ndarray, weights: np.ndarray, bias: np.ndarray, multiplier: np.ndarray, shift: np.ndarray,
              zeros: tuple[int, int]) -> np.ndarray:  # fmt: skip
    """TFLite's int8 convolution with 'same' padding and stride 1, (height, width, out)."""
    reach = weights.shape[1] // 2
    padded = np.pad(x.astype(np.int64) - zeros[0], ((reach, reach), (reach, reach), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[1:3], axis=(0, 1))
    sums = np.einsum("yxckl,oklc->yxo", windows, weights.astype(np.int64)) + bias
    high = (sums * multiplier + 2**30) >> 31
    right = -shift.astype(np.int64)
    rounded = (high + (1 << (right - 1)) - (high < 0)) >> right
    return np.clip(rounded + zeros[1], -128, 127).astype(np.int8)


def array(kind: str, name: str, values: np.ndarray) -> str:
    """A constant of C."""
    return f"static const {kind} {name}[] = {{{','.join(map(str, values.reshape(-1).tolist()))}}};"


def run(core: qemu.Core, name: str, row: str, library: list[Path]) -> dict[str, Any]:
    """One layer in one form on one core.

    Raises:
        InputError: its output is not TFLite's.
    """
    size, in_c, out_c, k = LAYERS[name]
    rng = np.random.default_rng(0)
    pattern, format_name = FORMS.get(row, ("dense", ""))
    weights = sparse(rng, (out_c, k, k, in_c), pattern)
    x = rng.integers(-128, 128, (size, size, in_c)).astype(np.int8)
    bias, zeros = rng.integers(-3000, 3000, out_c), (-5, 3)
    multiplier, shift = rng.integers(2**30, 2**31, out_c), np.full(out_c, -7 - int(np.log2(in_c * k)))
    golden = golden_of(x, weights, bias, multiplier, shift, zeros)
    common = [
        array("int8_t", "golden", golden),
        array("int8_t", "input", x),
        array("int32_t", "multiplier", multiplier),
    ]
    if row == CMSIS:
        fields = {"in_offset": -zeros[0], "out_offset": zeros[1], "pad": k // 2, "size": size, "in_c": in_c,
                  "out_c": out_c, "k": k}  # fmt: skip
        arrays = [array("int32_t", "shift", shift), array("int32_t", "bias", bias), array("int8_t", "weights", weights),
                  _CMSIS.format(**fields)]  # fmt: skip
        includes, call, include = '#include <string.h>\n#include "arm_nnfunctions.h"', _CMSIS_CALL, [_include()]
        packed, scratch = weights.nbytes, None
    else:
        form = packing.formats.get(format_name)
        data = form.pack(weights)
        ints = {
            "in_h": size, "in_w": size, "in_c": in_c, "out_h": size, "out_w": size, "out_c": out_c, "kernel_h": k,
            "kernel_w": k, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "pad_top": k // 2,
            "pad_left": k // 2, "in_zero": zeros[0], "out_zero": zeros[1], "act_min": -128, "act_max": 127,
        }  # fmt: skip
        folded = bias - zeros[0] * weights.astype(np.int64).sum((1, 2, 3))
        scratch, packed = form.scratch_bytes(ints), data.nbytes
        arrays = [array("int8_t", "shift", shift), array("int32_t", "bias", folded), array("int8_t", "weights", data),
                  _OWN.format(ints=", ".join(map(str, ints.values())), words=scratch // 8)]  # fmt: skip
        includes, include = '#include "orbit_kernels.h"', [KERNELS]
        call = f"{form.function}(&layer, input, output, scratch);"
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder, "main.c")
        main.write_text(_CALL.format(includes=includes, arrays="\n".join([*common, *arrays]), call=call))
        for called in (1, 0):
            objects = qemu.compile_objects(
                core, [main], folder=Path(folder), include=include, flags=("-std=gnu99", f"-DCALL={called}")
            )
            ran = qemu.execute(core, qemu.link(core, [*objects, *library], folder=Path(folder)))
            if ran.code:
                raise InputError(f"{row} on {name}, {core.name}: a wrong output.", expected="TFLite's arithmetic",
                                 fix="correct the kernel")  # fmt: skip
            counts.append(ran.instructions)
    return {
        "instructions": counts[0] - counts[1], "macs": size * size * out_c * in_c * k * k, "weights": weights.size,
        "weight_bytes": packed, "scratch_bytes": scratch,
    }  # fmt: skip


def _include() -> Path:
    return Path(FLAGS.cmsis_nn, "Include")


def commit() -> str:
    """Of the checkout of CMSIS-NN."""
    done = subprocess.run(
        ["git", "-C", FLAGS.cmsis_nn, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def libraries(core: qemu.Core, folder: Path) -> tuple[list[Path], list[Path]]:
    """Objects of the own kernels, and of those of CMSIS-NN with the optimization of its own build."""
    own = qemu.compile_objects(core, sorted(KERNELS.glob("conv_*.c")), folder=folder, include=[KERNELS],
                               flags=("-std=c99",))  # fmt: skip
    if FLAGS.cmsis_nn is None or core.name not in CMSIS_CORES:
        return own, []
    source = Path(FLAGS.cmsis_nn, "Source")
    files = [
        f for part in ("ConvolutionFunctions", "NNSupportFunctions") for f in sorted((source / part).glob("*.c"))
        if not any(kind in f.name for kind in ("f16", "f32"))
    ]  # fmt: skip
    theirs = folder / "cmsis"
    theirs.mkdir()
    return own, qemu.compile_objects(core, files, folder=theirs, include=[_include()], flags=("-Ofast",))


def rows_there() -> list[dict[str, Any]]:
    """Finished rows."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def measure() -> None:
    """Runs what is not there."""
    for name in FLAGS.cores:
        core = qemu.cores.get(name)
        qemu.require(core)
        rows = [CMSIS] * (FLAGS.cmsis_nn is not None and name in CMSIS_CORES) + list(FORMS)
        there = {(row["core"], row["layer"], row["form"]) for row in rows_there()}
        todo = [
            (layer, row) for layer in LAYERS for row in rows
            if (name, layer, row) not in there
            and not (row == "4:8" and LAYERS[layer][1] < 8) and not (row == VECTORS and name != "cortex-m55")
        ]  # fmt: skip
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            own, theirs = libraries(core, Path(folder))
            for layer, row in todo:
                found = {"core": name, "layer": layer, "form": row,
                         **run(core, layer, row, theirs if row == CMSIS else own)}  # fmt: skip
                if row == CMSIS:
                    found["commit"] = commit()
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(json.dumps(found), flush=True)


def main(argv: Sequence[str]) -> None:
    if not FLAGS.page_only:
        measure()
    PAGE.write_text(page(rows_there(), LAYERS, [CMSIS, *FORMS]), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
