"""An hls4ml project of a small network for an FPGA, built with g++ and compared with Keras (extra `fpga`).

hls4ml (https://fastmachinelearning.org/hls4ml, arXiv:2103.05579) writes C++ for Vitis HLS. Every layer becomes hardware
of its own, and all weights stay on the chip: it is for networks of some ten thousand weights. da4ml (arXiv:2507.04535)
counts the adders of a kernel that is computed without multipliers, where zeros are gone for nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_images
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.hls4ml.adders import count_adders
from orbit_kd.exporters.hls4ml.jobs import run_job
from orbit_kd.exporters.hls4ml.limits import check_options, check_size, reuse_plans
from orbit_kd.exporters.hls4ml.project import build, run_project
from orbit_kd.exporters.packed.packing import pack_bits
from orbit_kd.exporters.requirements import input_shape
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.quantization_aware import refuse_quantization_aware
from orbit_kd.runtimes.compiled import NOTE
from orbit_kd.support.extras import require
from orbit_kd.support.files import unwritable, write_file

PROJECT = "orbit_kd_network"


@target("hls4ml", suffix="", runtime="hls4ml")
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
        model: tf_keras model, one input (batch, ...) float32; layers as in `network.SUPPORTED`.
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
    check_options(
        io_type=io_type,
        strategy=strategy,
        reuse_factor=reuse_factor,
        bits=bits,
        weight_bits=weight_bits,
        samples=samples,
        compare=compare,
    )
    refuse_quantization_aware(model, "hls4ml sets widths of its own (bits, weight_bits)")
    shape, folder = input_shape(model), Path(path)
    if folder.exists() and not (folder.is_dir() and ((folder / NOTE).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder} holds something else.", expected="a new folder, or one that this target wrote",
                         fix="choose another path")  # fmt: skip
    from orbit_kd.exporters.hls4ml.network import kernels, plain
    from orbit_kd.exporters.hls4ml.precision import precisions, ranges

    network = plain(model)
    matrices = {layer.name: matrix for layer, matrix in kernels(network)}
    plans = reuse_plans(network, strategy=strategy, reuse_factor=reuse_factor)
    check_size({n: m.size for n, m in matrices.items()}, plans, weight_bits=weight_bits, limit=max_weight_bits)
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
        converted = run_job("convert", request, scratch=scratch, failure="hls4ml cannot convert the network")
        seconds["convert"] = time.monotonic() - start
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch, "project"), folder)
        except OSError as error:
            raise unwritable(folder, error) from error
    expected = model.predict(images[:compare], verbose=0)
    note: dict[str, Any] = {"project": PROJECT, "input": list(shape), "classes": int(expected.shape[-1])}
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
    artifact = Artifact.of(data, target="hls4ml", files=files, details=details)
    write_file(note_file, json.dumps(note | {"artifact": artifact.to_dict(folder)}))
    return artifact
