"""The .tflite file that targets made of one start from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.targets import export
from orbit_kd.tflite.reader import only_tflm, parse, read_bytes


def tflite_of(
    model: Any, *, calibration: Any = None, coded: bool = False, **options: Any
) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a .tflite file, and what is known about it.

    Args:
        model: a .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first.
        calibration: for that conversion.
        coded: a file that only TensorFlow Lite Micro runs will do.
        **options: of "tflite_int8".

    Raises:
        InputError: not a .tflite file, a coded one; or what the conversion raises.
    """
    if isinstance(model, Artifact):
        data, details = read_bytes(model.path), dict(model.details)
    elif isinstance(model, (str, os.PathLike)):
        data, details = read_bytes(model), {}
    else:
        with tempfile.TemporaryDirectory() as folder:
            made = export(model, "tflite_int8", path=Path(folder, "model.tflite"), calibration=calibration, **options)
            return made.path.read_bytes(), dict(made.details)
    if only_tflm(parse(data)) and not coded:
        raise InputError(
            "The constants of the file are coded for TensorFlow Lite Micro already.",
            expected="a file whose constants are stored plainly",
            fix="hand over the tflite_int8 file that it was made of",
        )
    return data, details
