"""A .tflite file for TensorFlow Lite Micro whose constants are coded, and decoded by its interpreter when they are due.

Zeros and few levels make such a file smaller. What TensorFlow Lite Micro does not read is left out of it, too.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import put_metadata, read_metadata
from orbit_kd.exporters.same_outputs import check_same_outputs, random_inputs, sample_for
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflm.memory import (
    arena_bytes,
    arena_margin,
    arena_size,
    check_arena,
    check_flash,
    require_dense,
)
from orbit_kd.exporters.tflm.operators import add_methods
from orbit_kd.support.extras import require
from orbit_kd.support.files import write_file
from orbit_kd.tflite.coded_model import Constant, codable, encode_constants, insert_decoders
from orbit_kd.tflite.coding import CODINGS, Coded
from orbit_kd.tflite.joined_biases import join_biases
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.trim import trim
from orbit_kd.tflite.writer import to_bytes

NAME = "tflite_micro_coded"
# How much of the arena's peak several kernels decoded at once may take. The planner does not always find the plan that
# would fit, so smaller parts are tried until the arena is as small as with a decoder for each layer.
_TOGETHER = (1.0, 0.7, 0.4, 0.0)


@target(NAME, made_of="tflite_int8", runtime="tflm")
def export_coded(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    samples: int = 256,
    seed: int = 0,
    coding: str | Mapping[str, str] = "auto",
    short_biases: bool = True,
    max_flash: int | None = None,
    max_arena: int | None = None,
    checks: int = 16,
    **options: Any,
) -> Artifact:
    """A coded file, which computes the same as the int8 file, bit for bit, or is not written.

    Args:
        model: an int8 or int16x8 .tflite file (path or Artifact), or a tf_keras model, which is converted to
            "tflite_int8" first.
        path: the .tflite file to write.
        calibration: inputs as the network sees them: for the conversion of a Keras model, and some of them, drawn with
            `seed`, to compare both files on. Without it these are random.
        metadata: stored in the file; None keeps the note of a file that has one.
        samples: calibration images for the conversion of a Keras model.
        seed: of these, and of the inputs that are compared.
        coding: "auto" (the smallest for each constant), "huffman", "pairs" (codes of two values each, for many zeros;
            it takes a copy of the kernel in the arena, and SQUEEZE in the firmware), "mask" (a bit for each value, and
            those that are not 0) or "none": for each kernel that it makes smaller. Or a mapping from patterns of
            kernels' names ("*conv2d_3/*") to these, of which the first that fits holds; a kernel that none fits is
            "auto". Biases are "auto", unless all is "none".
        short_biases: store the biases that fit as one int16 constant where that is smaller, which CAST and SPLIT_V
            unpack: fewer bytes in the file, more in the arena, and these two kernels in the firmware.
        max_flash: bytes the file may take.
        max_arena: bytes the tensor arena may take, with the margin of the target "tflm". "auto" does without "pairs"
            where they would take more.
        checks: how many inputs to compare both files on.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of the file. `details`: "arena_bytes" as measured and "tensor_arena_bytes" with the margin, "uncoded"
        (its "bytes" and "arena_bytes"), "compared" (inputs), "codings" (how many constants of each), and "bytes": what
        the "weights" take, their "tables", the "biases", "scales", "metadata", and the "structure", which is the rest.

    Raises:
        InputError: TFLM is not installed; a file that is coded already, sparse, or of float weights; an operator TFLM
            lacks; an unknown coding, or a pattern's that a kernel's type does not have or that makes the kernel larger;
            other outputs than the uncoded file's; too large for `max_flash` or `max_arena`; or what "tflite_int8"
            raises.
    """
    require("tflite_micro", extra="mcu")
    if checks < 1:
        raise InputError(f"checks={checks}.", expected="at least 1 input", fix="leave it out: 16")
    original, details = tflite_of(model, calibration=calibration, samples=samples, seed=seed, **options)
    add_methods(require_dense(original))
    constants = _constants(original)
    asked = _asked(constants, coding)
    note = metadata if metadata is not None else read_metadata(original)
    margin = arena_margin(original)
    runtimes.probe(original, runtime="tflm")
    for pairs in (True, False):
        coded = encode_constants(parse(original), asked, strict=not isinstance(coding, str), pairs=pairs)
        data, after = _smallest(original, coded, note, join=short_biases)
        arena = arena_bytes(after)
        if max_arena is None or arena_size(arena, margin) <= max_arena:
            break
    before = runtimes.load(original, runtime="tflm")
    compared = _compare(before, after, calibration, checks, seed)
    check_flash(data, max_flash, original=original)
    check_arena(data, arena, margin=margin, limit=max_arena)
    details |= {
        "arena_bytes": arena,
        "tensor_arena_bytes": arena_size(arena, margin),
        "uncoded": {"bytes": len(original), "arena_bytes": arena_bytes(before)},
        "compared": compared,
        "codings": {name: sum(_name(coded, c) == name for c in constants) for name in CODINGS},
        "bytes": _shares(data, constants, coded),
    }
    return Artifact.of(data, target=NAME, files=(write_file(path, data),), details=details)


def _constants(data: bytes) -> list[Constant]:
    """What can be coded of a file.

    Raises:
        InputError: no int8 kernel.
    """
    model = parse(data)
    constants, graph = codable(model), Subgraph(model)
    kernels = [c for c in constants if not c.bias]
    if not any(graph.dtype(c.tensor) == "int8" for c in kernels):
        kinds = sorted({graph.dtype(c.tensor) for c in kernels})
        raise InputError(
            f"The file's kernels are {' and '.join(kinds)}." if kinds else "The file has no layer with a kernel.",
            expected="an int8 file: few levels and zeros are what a code makes smaller",
            fix="export the Keras model with calibration=train, or hand over its tflite_int8 file",
        )
    return constants


def _asked(constants: list[Constant], coding: str | Mapping[str, str]) -> dict[int, str]:
    """Tensor -> what is asked for.

    Raises:
        InputError: a pattern that fits no kernel.
    """
    kernels = [c for c in constants if not c.bias]
    others = {c.tensor: "none" if coding == "none" else "auto" for c in constants if c.bias}
    if isinstance(coding, str):
        return {c.tensor: coding for c in kernels} | others
    for pattern in coding:
        if not any(fnmatch.fnmatchcase(c.name, pattern) for c in kernels):
            raise InputError(
                f"No kernel has a name like {pattern!r}.",
                expected=f"a pattern of names such as {', '.join(repr(c.name[:60]) for c in kernels[:4])}",
                fix="put a * for what may be anything: '*conv2d_3/*'",
            )
    fits = {c.tensor: [w for p, w in coding.items() if fnmatch.fnmatchcase(c.name, p)] for c in kernels}
    return {tensor: words[0] if words else "auto" for tensor, words in fits.items()} | others


def _smallest(original: bytes, coded: Mapping[int, Coded], note: dict[str, Any], *, join: bool) -> tuple[bytes, Any]:
    """The file with as few decoders as the arena of one for each layer permits, loaded.

    Raises:
        InputError: the interpreter does not run it.
    """
    files = []
    for together in _TOGETHER:
        model = parse(original)
        if join:
            join_biases(model, [c.tensor for c in codable(model) if c.bias and c.tensor not in coded])
        insert_decoders(model, coded, together=together)
        trim(model)
        if note:
            put_metadata(model, note, small=True)
        files.append(to_bytes(model, small=True))
    runtimes.load(files[-1], runtime="tflm")  # tried in a process of its own; the others are the same, regrouped
    for data in files:
        runtimes.trust(data)
    loaded = [(data, runtimes.load(data, runtime="tflm")) for data in dict.fromkeys(files)]
    limit = arena_bytes(loaded[-1][1])
    return next((data, runner) for data, runner in loaded if arena_bytes(runner) <= limit)


def _compare(before: Any, after: Any, calibration: Any, checks: int, seed: int) -> dict[str, Any]:
    """How many inputs both files were compared on, and what these were.

    Raises:
        InputError: the outputs differ.
    """
    if calibration is not None:
        given, origin = sample_for(before, calibration, samples=checks, seed=seed), "calibration data"
    else:
        given, origin = random_inputs(before, checks, seed=seed), "random"
    check_same_outputs(
        before, after, given, file="The coded file",
        fix=f"install the TensorFlow Lite Micro this package knows ({runtimes.MCU_HINT}), or export tflite_int8",
    )  # fmt: skip
    return {"inputs": len(given[0] if isinstance(given, tuple) else given), "origin": origin}


def _name(coded: Mapping[int, Coded], constant: Constant) -> str:
    return coded[constant.tensor].coding if constant.tensor in coded else "none"


def _shares(data: bytes, constants: list[Constant], coded: Mapping[int, Coded]) -> dict[str, int]:
    """Where the bytes of a coded file go; together they are the file."""
    model = parse(data)
    graph, main = Subgraph(model), model.subgraphs[0]
    buffers = {c.tensor: graph.stored(c.tensor)[0] for c in constants}
    content = {i: 0 if b.data is None else len(b.data) for i, b in enumerate(model.buffers)}
    kernels = {buffers[c.tensor] for c in constants if not c.bias}
    biases = {buffers[c.tensor] for c in constants if c.bias}
    scales = {np.asarray(t.quantization.scale).tobytes() for t in main.tensors if t.quantization is not None}
    shares = {
        "weights": sum(content[i] for i in kernels),
        "tables": sum(map(len, {one.ancillary for one in coded.values()})),
        "biases": sum(content[i] for i in biases),
        "scales": sum(map(len, scales)),
        "metadata": sum(content[entry.buffer] for entry in model.metadata or []),
    }
    return shares | {"structure": len(data) - sum(shares.values())}
