"""A folder of plain C99 for one network: no library, no interpreter, no memory but what its context holds."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.c99 import arena, operators  # noqa: F401  files the operators
from orbit_kd.exporters.c99.network import Network, read_network
from orbit_kd.exporters.c99.packing import PREFERENCES
from orbit_kd.exporters.c99.readme import readme
from orbit_kd.exporters.c99.sources import Golden, model_files
from orbit_kd.exporters.c99.steps import Choice, Step, lower
from orbit_kd.exporters.same_outputs import random_inputs, sample_for
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.runtimes.c99 import FORMAT, MANIFEST, is_c99
from orbit_kd.support.digests import sha256
from orbit_kd.support.files import write_folder
from orbit_kd.support.versions import MADE_WITH, versions_of


@target("c99", suffix="", made_of="tflite_int8", runtime="c99")
def export_c99(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    name: str = "model",
    prefer: str = "speed",
    samples: int = 256,
    seed: int = 0,
    max_flash: int | None = None,
    max_arena: int | None = None,
    **options: Any,
) -> Artifact:
    """model.c/.h, orbit_kernels.c/.h, golden.h, main.c, manifest.json and a README.

    The numbers that come out are, bit for bit, those of LiteRT's reference kernels on the int8 file.

    Args:
        model: an int8 .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first.
        path: the folder; an export that is there already is replaced.
        calibration: inputs as the network sees them: for the conversion of a Keras model, and one of them, drawn with
            `seed`, becomes the golden input. Without it that is random.
        name: how the C functions and types begin.
        prefer: each layer's weights in the format that is fastest, "speed" (on a core with vectors, Cortex-M55,
            "vectors"), or smallest, "bytes".
        samples: calibration images for the conversion of a Keras model.
        seed: of these, and of the golden input.
        max_flash: bytes the constants may take; the code of the kernels comes on top.
        max_arena: bytes the arena may take.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of model.c; `bytes` is what its constants take of a 32-bit core's flash. Details: arena_bytes,
        arena_least (see `arena.Plan`), layers (operator, name, format of weights), kernels (C functions), golden.

    Raises:
        InputError: no int8 .tflite file, an operator without a kernel, int16 activations, a sum that could overflow,
            too large for `max_flash` or `max_arena`, a folder that holds something else; or what "tflite_int8" raises.
    """
    folder = Path(path)
    _check_options(name, prefer)
    _check_folder(folder)
    data, details = tflite_of(model, calibration=calibration, samples=samples, seed=seed, **options)
    network = read_network(data)
    steps = lower(network, Choice(prefer))
    outside = {tensor.index for tensor in (*network.inputs, *network.outputs)}
    plan = arena.plan(steps, outside=outside)
    arena.check(plan, steps, limit=max_arena)
    golden = _golden(data, network, calibration, seed)
    texts, constants = model_files(name, steps, plan, network.inputs, network.outputs, golden)
    _check_flash(steps, len(constants), limit=max_flash)
    details |= {
        "arena_bytes": plan.bytes,
        "arena_least": plan.least,
        "layers": [{"operator": s.operator, "name": s.layer, "kernel": s.kernel, **s.details} for s in steps],
        "golden": golden.origin,
    }
    texts["README.md"] = readme(name, network, constants=len(constants), arena=plan.bytes)
    files = tuple(folder / file for file in ("model.c", *(f for f in texts if f != "model.c"), MANIFEST))
    artifact = Artifact.of(constants, target="c99", files=files, details=details)
    texts[MANIFEST] = _manifest(name, data, artifact, texts, folder)
    write_folder(folder, texts)
    return artifact


def _check_options(name: str, prefer: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(
            f"name={name!r}.", expected="a C identifier, for example 'model'", fix="use letters, digits and _ only"
        )
    if prefer not in PREFERENCES:
        raise InputError(f"prefer={prefer!r}.", expected=f"one of: {', '.join(PREFERENCES)}", fix="'speed' is fastest")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and (is_c99(folder) or not any(folder.iterdir()))):
        raise InputError(
            f"{folder} holds something else.",
            expected="a new folder, or one that this target wrote",
            fix="choose another path",
        )


def _check_flash(steps: list[Step], size: int, *, limit: int | None) -> None:
    """Raises InputError for constants that take more than `limit` bytes, and names the largest layer."""
    if limit is None or size <= limit:
        return
    sizes = [(sum(v.nbytes for v in step.fields.values() if isinstance(v, np.ndarray)), step) for step in steps]
    largest, step = max(sizes, key=lambda pair: pair[0])
    raise InputError(
        f"The constants take {size:,} bytes of flash, without the code. The largest layer is {step.layer!r} "
        f"({step.operator}): {largest:,} bytes, {largest / size:.0%} of all.",
        expected=f"at most {limit:,} bytes (max_flash)",
        fix="remove filters of that layer or of the one before it, make its weights sparse (2:4) with prefer='bytes', "
        "or raise max_flash",
    )


def _golden(data: bytes, network: Network, calibration: Any, seed: int) -> Golden:
    """An input, and what LiteRT's reference kernels make of it.

    Raises:
        InputError: the file does not run there, or gives outputs of other shapes than it says.
    """
    against = "litert_reference"
    runtimes.probe(data, runtime=against)
    runner = runtimes.load(data, runtime=against)
    for port, tensor in zip((*runner.inputs, *runner.outputs), (*network.inputs, *network.outputs), strict=True):
        if port.shape != tensor.shape[1:]:
            raise InputError(
                f"The file says that {tensor.name[:80]!r} has the shape {tensor.shape[1:]}, and LiteRT that it has "
                f"{port.shape}.",
                expected="the shapes that its operators make",
                fix="export the model again",
            )
    if calibration is None:
        origin = f"A random input, seed {seed}, as no calibration data was given"
        given = random_inputs(runner, 1, seed=seed)
    else:
        origin = f"An image of the calibration data, drawn with seed {seed}"
        given = sample_for(runner, calibration, samples=1, seed=seed)
    found = runner.raw(given)
    sides = (given, runner.inputs), (found, runner.outputs)
    took, gave = (tuple(x[0] for x in (side if len(side_ports) > 1 else (side,))) for side, side_ports in sides)
    return Golden(took, gave, origin)


def _manifest(name: str, data: bytes, artifact: Artifact, texts: dict[str, str], folder: Path) -> str:
    """What is in the folder, as JSON: ports for the runtime, digests of the files, versions, the artifact."""
    runner = runtimes.load(data, runtime="litert_reference")

    def told(ports: tuple[runtimes.Port, ...]) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(port), "shape": list(port.shape), "dtype": port.dtype.name} for port in ports]

    values = {
        "format": FORMAT,
        "version": 1,
        "name": name,
        "inputs": told(runner.inputs),
        "outputs": told(runner.outputs),
        "sha256": {file: sha256(text.encode()).hex() for file, text in texts.items()},
        "tflite_sha256": sha256(data).hex(),
        "versions": versions_of((*MADE_WITH, "ai-edge-litert")),
        "artifact": artifact.to_dict(folder),
    }
    return json.dumps(values, indent=1) + "\n"
