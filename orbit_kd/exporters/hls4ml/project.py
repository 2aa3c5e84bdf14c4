"""An hls4ml project of a small network for an FPGA, built with g++ and compared with Keras (extra `fpga`).

hls4ml (https://fastmachinelearning.org/hls4ml, arXiv:2103.05579) writes C++ for Vitis HLS. Every layer becomes hardware
of its own, and all weights stay on the chip: it is for networks of some ten thousand weights. da4ml (arXiv:2507.04535)
counts the adders of a kernel that is computed without multipliers, where zeros are gone for nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_images
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.packed.packing import pack_bits
from orbit_kd.exporters.requirements import input_shape
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.convert import refuse_quantization_aware
from orbit_kd.support.extras import require
from orbit_kd.support.files import unwritable, write_file

PROJECT = "orbit_kd_network"
NOTE = "orbit_kd.json"
MAX_MULTIPLIERS = 4096  # Vivado unrolls and partitions up to so many elements (hls4ml's documentation, "reuse factor")


@target("hls4ml", suffix="", runtime="")
def export_hls4ml(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    bits: int = 16,
    weight_bits: int = 12,
    io_type: str = "io_stream",
    strategy: str = "resource",
    reuse_factor: int = 64,
    part: str = "xczu9eg-ffvb1156-2-e",
    clock_period: float = 5.0,
    max_weight_bits: int = 32_000_000,
    adder_limit: int = 1200,
    samples: int = 256,
    compare: int = 100,
    seed: int = 0,
) -> Artifact:
    """A folder with an hls4ml project for Vitis HLS, compiled with g++.

    Each layer's fixed-point types are as wide as `bits` and `weight_bits` say, and their range is what was observed
    over the calibration images; larger values saturate.

    Args:
        model: tf_keras model, one input (batch, ...) float32; layers as in `hls4ml_network.SUPPORTED`.
        path: the folder; an hls4ml project that is there already is replaced.
        calibration: images as the network sees them, see `export`; needed.
        bits: width of activations and biases.
        weight_bits: width of kernels.
        io_type: "io_stream" (layers hand pixels on) or "io_parallel" (all at once: for dense networks).
        strategy: "resource" (weights in block RAM, multipliers shared) or "latency" (a multiplier for each weight).
        reuse_factor: how often a multiplier is used for one output position; each layer gets the nearest that fits.
        part: the FPGA.
        clock_period: nanoseconds.
        max_weight_bits: of all weights, which stay on the chip; the default is about the block RAM of the
            default part.
        adder_limit: da4ml counts kernels of at most so many weights (1,200 take some seconds each).
        samples: calibration images for the ranges.
        compare: how many of them to run through the compiled project.
        seed: which ones.

    Returns:
        Artifact of the top function's C++ file; `bytes` is what its weights take. Details: layers (hls4ml's own list:
        precisions, reuse factor, n_zeros), observed (layer -> [low, high]), max_difference, relative_difference (to the
        largest output), agreement (part of images with the same argmax), compared, adders, seconds, and the options.

    Raises:
        InputError: the extra or g++ is missing, no calibration, a layer that hls4ml does not take, a network too large
            for these options, a folder that holds something else, or a build that fails.
    """
    require("hls4ml", extra="fpga")
    if shutil.which("g++") is None:
        raise InputError("g++ is not installed.", expected="a C++ compiler, for hls4ml's bit-exact simulation",
                         fix="install g++ (Debian: apt-get install g++)")  # fmt: skip
    _check_options(io_type, strategy, reuse_factor, bits, weight_bits, samples, compare)
    refuse_quantization_aware(model, "hls4ml sets widths of its own (bits, weight_bits)")
    shape, folder = input_shape(model), Path(path)
    if folder.exists() and not (folder.is_dir() and ((folder / NOTE).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder} holds something else.", expected="a new folder, or one that this target wrote",
                         fix="choose another path")  # fmt: skip
    from orbit_kd.exporters.hls4ml.network import is_depthwise, kernels, plain, precisions, ranges

    network = plain(model)
    matrices = {layer.name: matrix for layer, matrix in kernels(network)}
    # hls4ml's depthwise template for "resource" asserts that the reuse factor is a multiple of the channels; its own
    # choice of a factor is not. These kernels are small, so they get a multiplier for each weight.
    unrolled = {layer.name for layer, _ in kernels(network) if is_depthwise(layer) or strategy == "latency"}
    plans = {
        name: {"ReuseFactor": 1, "Strategy": "Latency"}
        if name in unrolled
        else {
            "ReuseFactor": fitting_reuse_factor(matrix.shape[0], matrix.shape[1], reuse_factor),
            "Strategy": strategy.capitalize(),
        }
        for name, matrix in matrices.items()
    }
    _check_size({n: m.size for n, m in matrices.items()}, plans, weight_bits, max_weight_bits)
    images = calibration_images(calibration, shape=shape, samples=samples, seed=seed)
    observed = ranges(network, images)
    types = precisions(network, observed, bits=bits, weight_bits=weight_bits)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        network.save(Path(scratch, "network.keras"), save_format="keras")
        request = {
            "model": "network.keras", "output": "project", "project": PROJECT, "io_type": io_type,
            "strategy": strategy.capitalize(), "part": part, "clock_period": clock_period,
            "precisions": {name: {k: str(t) for k, t in own.items()} for name, own in types.items()},
            "kernels": plans,
        }  # fmt: skip
        start = time.monotonic()
        converted = _job("convert", request, scratch, "hls4ml cannot convert the network")
        seconds["convert"] = time.monotonic() - start
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch, "project"), folder)
        except OSError as error:
            raise unwritable(folder, error) from error
    expected = model.predict(images[:compare], verbose=0)
    note = {"project": PROJECT, "input": list(shape), "classes": int(expected.shape[-1])}
    note_file = write_file(folder / NOTE, json.dumps(note))
    seconds["build"] = build(folder)
    start = time.monotonic()
    outputs = run_project(folder, images[:compare])
    seconds["run"] = time.monotonic() - start
    quantized = {name: types[name]["weight"].quantize(matrix) for name, matrix in matrices.items()}
    start = time.monotonic()
    counted = count_adders(quantized, limit=adder_limit, seed=seed)
    seconds["adders"] = time.monotonic() - start
    difference = float(np.abs(outputs - expected).max())
    details = {
        "bits": bits, "weight_bits": weight_bits, "io_type": io_type, "strategy": strategy, "part": part,
        "hls4ml": converted["version"], "layers": converted["layers"],
        "observed": {name: list(pair) for name, pair in observed.items()},
        "max_difference": difference, "relative_difference": difference / max(float(np.abs(expected).max()), 1e-30),
        "agreement": float(np.mean(outputs.argmax(-1) == expected.argmax(-1))), "compared": len(expected),
        "adders": counted, "seconds": {k: round(v, 2) for k, v in seconds.items()},
    }  # fmt: skip
    mask = np.uint64((1 << weight_bits) - 1)
    fields = [q.ravel().astype(np.uint64) & mask for q in quantized.values()]
    data = pack_bits(np.concatenate(fields), weight_bits) if fields else b""
    files = (folder / "firmware" / f"{PROJECT}.cpp", note_file)
    return Artifact.of(data, target="hls4ml", files=files, details=details)


def fitting_reuse_factor(inputs: int, outputs: int, wanted: int) -> int:
    """The factor nearest to `wanted` that hls4ml's templates for "resource" take for a kernel (inputs, outputs).

    A divisor of `inputs`, or a multiple of it that divides all weights. hls4ml rounds to one of these itself, but not
    for 1x1 convolutions, where any other names a template that is not there (DenseResource_rf_gt_nin, hls4ml 1.3).
    """
    few = (k for k in range(1, inputs + 1) if inputs % k == 0)
    many = (inputs * k for k in range(1, outputs + 1) if outputs % k == 0)
    return min((*few, *many), key=lambda factor: (abs(factor - wanted), factor))


def build(folder: str | os.PathLike[str]) -> float:
    """Compiles a project with g++, again after it was moved; returns the seconds.

    Raises:
        InputError: g++ fails.
    """
    start = time.monotonic()
    for old in Path(folder, "firmware").glob("*.so"):
        old.unlink()
    done = subprocess.run(["bash", "build_lib.sh"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise InputError(
            f"g++ does not compile the project: {' '.join(lines[:1])[:300]}",
            expected="a network and options that hls4ml's templates cover",
            fix=f"run build_lib.sh in {folder} for the whole report; try strategy='latency' or other widths",
        )
    return time.monotonic() - start


def run_project(folder: str | os.PathLike[str], images: Any) -> np.ndarray:
    """Runs a built project, bit by bit as the FPGA would, on images as the network sees them.

    Args:
        folder: what `export_hls4ml` wrote.
        images: (n, ...) float32.

    Returns:
        float32 (n, classes).

    Raises:
        InputError: no such project, images of another shape, or a project that was moved since it was built.
    """
    folder, images = Path(folder).absolute(), np.asarray(images, np.float32)
    library = next(iter(sorted(Path(folder, "firmware").glob("*.so"))), None)
    if library is None or not (folder / NOTE).is_file():
        raise InputError(f"{folder} holds no project that was built.", expected="a folder of the target hls4ml",
                         fix="export the model again")  # fmt: skip
    note = json.loads((folder / NOTE).read_text())
    if list(images.shape[1:]) != note["input"]:
        raise InputError(f"The images have shape {images.shape[1:]}.", expected=f"{tuple(note['input'])}",
                         fix="apply the Preprocess the network was trained with")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "images.npy"), images)
        request = note | {"library": str(library), "images": "images.npy", "outputs": "outputs.npy"}
        _job("run", request, scratch, f"The project in {folder} does not run; if it was moved, call `build` again")
        return np.load(Path(scratch, "outputs.npy"))


def count_adders(kernels: dict[str, np.ndarray], *, limit: int, seed: int = 0) -> dict[str, Any]:
    """Adders that each kernel takes as constant arithmetic, by da4ml, against the same kernel without zeros.

    The dense twin has seeded draws from the kernel's own non-zero weights in place of its zeros.

    Args:
        kernels: layer -> integers (inputs, outputs).
        limit: larger kernels are not run.
        seed: of the draws.

    Returns:
        layer -> {"adders", "dense_adders", "zeros"}, or {"not_run": why}.
    """
    small = {name: kernel for name, kernel in kernels.items() if kernel.size <= limit and kernel.any()}
    told: dict[str, Any] = {
        name: {"not_run": f"{kernel.size:,} weights; adder_limit is {limit:,}" if kernel.any() else "all zeros"}
        for name, kernel in kernels.items()
        if name not in small
    }
    try:
        require("da4ml", extra="fpga")
    except InputError as error:
        return told | {name: {"not_run": f"{error.what} {error.fix}"} for name in small}
    if not small:
        return told
    rng = np.random.default_rng(seed)
    twins = {n: np.where(k == 0, rng.choice(k[k != 0], k.shape), k) for n, k in small.items() if not k.all()}
    with tempfile.TemporaryDirectory() as scratch:
        arrays = {f"{n}/sparse": k for n, k in small.items()} | {f"{n}/dense": k for n, k in twins.items()}
        keys = {f"k{i}": name for i, name in enumerate(arrays)}
        numbered: dict[str, Any] = {key: arrays[name] for key, name in keys.items()}
        np.savez(Path(scratch, "kernels.npz"), **numbered)
        found = _job("adders", {"kernels": "kernels.npz"}, scratch, "da4ml fails on a kernel")
    cost = {keys[key]: count for key, count in found.items()}
    for name, kernel in small.items():
        zeros = int((kernel == 0).sum())
        told[name] = {
            "adders": cost[f"{name}/sparse"],
            "dense_adders": cost.get(f"{name}/dense", cost[f"{name}/sparse"]),
            "zeros": zeros,
        }
    return {name: told[name] for name in kernels}


def _job(job: str, request: dict[str, Any], scratch: str, failure: str) -> dict[str, Any]:
    """Runs a job of `build` in a process of its own, in the folder `scratch`."""
    Path(scratch, f"{job}.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "orbit_kd.exporters.hls4ml.build", job, f"{job}.json", "answer.json"]
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    env = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"{failure} ({last[:300]}).",
            expected="a small network of plain layers",
            fix="the messages of the tools are the `__cause__` of this error",
        ) from RuntimeError(done.stderr)
    return json.loads(Path(scratch, "answer.json").read_text())


def _check_options(
    io_type: str, strategy: str, reuse_factor: int, bits: int, weight_bits: int, samples: int, compare: int
) -> None:
    def need(good: bool, what: str, expected: str) -> None:
        if not good:
            raise InputError(f"{what}.", expected=expected, fix="leave it out for the default")

    need(io_type in ("io_stream", "io_parallel"), f"io_type={io_type!r}", '"io_stream" or "io_parallel"')
    need(strategy in ("resource", "latency"), f"strategy={strategy!r}", '"resource" or "latency"')
    need(reuse_factor >= 1, f"reuse_factor={reuse_factor}", "1 or more")
    need(2 <= bits <= 32 and 2 <= weight_bits <= 24, f"bits={bits}, weight_bits={weight_bits}", "2 to 32, and 2 to 24")
    need(samples >= 1 and compare >= 1, f"samples={samples}, compare={compare}", "at least 1 of each")


def _check_size(sizes: dict[str, int], plans: dict[str, dict[str, Any]], weight_bits: int, limit: int) -> None:
    """Raises InputError where a layer needs more multipliers than can be unrolled, or the weights do not fit."""
    need = sum(sizes.values()) * weight_bits
    if need > limit:
        name = max(sizes, key=lambda n: sizes[n])
        raise InputError(
            f"The network is too large for hls4ml: its weights take {need:,} bits of on-chip memory, the most of them "
            f"layer {name!r} ({sizes[name] * weight_bits:,}).",
            expected=f"at most max_weight_bits={limit:,}",
            fix="remove more filters, take fewer weight_bits, or set max_weight_bits to the block RAM of your part",
        )
    for name, size in sizes.items():
        used = plans[name]["ReuseFactor"]
        if math.ceil(size / used) > MAX_MULTIPLIERS:
            raise InputError(
                f"Layer {name!r} is too large for hls4ml: {size:,} weights at a reuse factor of {used} are "
                f"{math.ceil(size / used):,} multipliers.",
                expected=f"at most {MAX_MULTIPLIERS:,}, what Vivado unrolls",
                fix=f"strategy='resource', reuse_factor={math.ceil(size / MAX_MULTIPLIERS)} or more; or fewer filters",
            )
