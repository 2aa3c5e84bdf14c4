"""From a Keras model to a file that a runtime reads. One function a target, filed in `targets`.

A new target is one function and its registration:

    @target("my_format", suffix=".bin")
    def export_my_format(model, *, path, calibration=None) -> Artifact: ...
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.exporters import (  # noqa: F401  each files its targets
    c_array,
    hls4ml_project,
    onnx_file,
    packed,
    tflite,
    tflite_variants,
    tflm,
    vela,
)
from orbit_kd.exporters.artifact import Artifact, Target, find, target, targets
from orbit_kd.exporters.metadata import read_metadata
from orbit_kd.models.conversion import to_export
from orbit_kd.tflite.reader import read, read_bytes

__all__ = [
    "Artifact",
    "Target",
    "check",
    "export",
    "export_all",
    "file_of",
    "find",
    "open_artifact",
    "read_metadata",
    "target",
    "targets",
]

# (type of the kernels, type of the activations) -> target
_KINDS = {
    ("float32", "float32"): "tflite_float32",
    ("float16", "float32"): "tflite_float16",
    ("int8", "float32"): "tflite_dynamic",
    ("int8", "int8"): "tflite_int8",
    ("int8", "int16"): "tflite_int16x8",
}


def export(
    model: Any, target: str, *, path: str | os.PathLike[str], calibration: Any = None, **options: Any
) -> Artifact:
    """Writes `model` in the format `target`.

    Args:
        model: a model of tf_keras or Keras 3 with one input, (batch, ...) float32; it is not changed. Wrappers of
            sparsity and clustering are taken off a copy. Targets that are made of a .tflite file ("c_array", "vela",
            ...) also take that file, or its Artifact.
        target: a name in `targets`: "tflite_float32", "tflite_int8", "c_array", ...; with a variant where the target
            has some: "vela:ethos-u85-256".
        path: the file to write; folders are made.
        calibration: for integer targets, inputs as the network sees them (after Preprocess): a tf.data.Dataset of
            batches x or (x, y), or an array (n, ...).
        **options: the target's own, e.g. `metadata={...}`, `float_io=True`.

    Raises:
        InputError: unknown target or option; missing or unusable calibration data; a path that cannot be written.
    """
    form, variant = find(target)
    if not (form.made_of and isinstance(model, (Artifact, str, os.PathLike))):
        model = to_export(model, quantized="tflite_int8" in (target, form.made_of))
    arguments = dict(options, path=path, calibration=calibration) | ({"variant": variant} if variant else {})
    known = inspect.signature(form.write).parameters
    unknown = [name for name in options if name not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise InputError(
            f"Export target {target!r} has no option {unknown[0]!r}.",
            expected=f"one of: {', '.join(sorted(set(known) - {'model', 'path', 'calibration', 'variant'}))}",
            fix="leave it out, or correct its name",
        )
    return form.write(model, **arguments)


def check(model: Any, names: Iterable[str]) -> None:
    """Refuses a model that a target cannot hold, before data are read or hours are spent; nothing is written.

    Args:
        model: a tf_keras model.
        names: targets. Of one that is made of another's file, that one is asked.

    Raises:
        InputError: as `export`, where it is the model's fault.
    """
    for name in dict.fromkeys(find(name)[0].made_of or name for name in names):
        find(name)[0].check(model)


def file_of(target: str, folder: str | os.PathLike[str], *, stem: str) -> Path:
    """The file that `export_all` writes for a target."""
    return Path(folder, f"{stem}_{target.replace(':', '_')}{find(target)[0].suffix}")


def export_all(
    model: Any, names: Sequence[str], *, folder: str | os.PathLike[str], stem: str, **options: Any
) -> list[Artifact]:
    """Writes a model for several targets, `folder/stem_target.*`; a target made of another's file takes that.

    Args:
        model: as for `export`.
        names: targets, in the order of the result.
        folder: where to write.
        stem: how the files begin.
        **options: for `export`; a target gets those it knows.

    Raises:
        InputError: as `export`.
    """
    written: dict[str, Artifact] = {}
    for name in sorted(names, key=lambda n: bool(find(n)[0].made_of)):
        form = find(name)[0]
        known = inspect.signature(form.write).parameters
        source = written.get(form.made_of, model)
        given = {k: v for k, v in options.items() if k in known}
        written[name] = export(source, name, path=file_of(name, folder, stem=stem), **given)
    return [written[name] for name in names]


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """The artifact of a .tflite or .onnx file, or of a .cc file of "c_array", that is on disk already.

    Raises:
        InputError: it does not exist, is none of them, or holds no convolution or dense layer to tell its target from.
    """
    path = Path(path)
    if path.suffix == ".cc":
        data, files = c_array.read_c_array(path), (path, path.with_suffix(".h"))
        return Artifact.of(data, target="c_array", files=files, details={})
    data = read_bytes(path)
    if path.suffix == ".onnx":
        return Artifact.of(data, target="onnx", files=(path,), details={})
    kinds = [_KINDS.get((op.dtype, op.output_dtype)) for op in read(data).ops if op.weight_shape]
    if not kinds or kinds[0] is None:
        raise InputError(
            f"{path} is of no kind this package exports.",
            expected=f"one of: {', '.join(_KINDS.values())}",
            fix="export the model with okd.export",
        )
    # dynamic-range quantization leaves small kernels in float
    target = "tflite_dynamic" if "tflite_dynamic" in kinds else kinds[0]
    return Artifact.of(data, target=target, files=(path,), details={})
