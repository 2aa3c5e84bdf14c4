"""The model as a C array: `<name>.h` and `<name>.cc`, for firmware that links it into flash."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.support.files import write_file
from orbit_kd.tflite.reader import read_bytes

_HEADER = """\
// {title}
#ifndef {guard}
#define {guard}

#include <cstddef>

// A TensorFlow Lite flatbuffer; 16-byte alignment is what TFLite Micro reads it with, in place.
extern const unsigned char {name}[];
constexpr std::size_t {name}_len = {length};

#endif  // {guard}
"""
_SOURCE = """\
// {title}
#include "{header}"

alignas(16) const unsigned char {name}[{name}_len] = {{
{rows}
}};
"""


@target("c_array", suffix=".cc", made_of="tflite_int8")
def export_c_array(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    **options: Any,
) -> Artifact:
    """A constant, 16-byte aligned array with an include guard and its length, in two files.

    Args:
        model: a .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first.
        path: of either file, or without suffix; `<stem>.cc` and `<stem>.h` are written beside each other, and the array
            is called like the stem.
        calibration: for the conversion of a Keras model.
        metadata: stored in the flatbuffer.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of the .cc file; `bytes` is the length of the array, which is the flash it takes.

    Raises:
        InputError: not a .tflite file; or what "tflite_int8" raises.
    """
    stem = Path(path).with_suffix("")
    data, details = tflite_of(model, calibration=calibration, coded=True, **options)
    if metadata is not None:
        data = add_metadata(data, metadata)
    name = re.sub(r"\W", "_", stem.name, flags=re.ASCII)
    name = f"model_{name}" if name[:1].isdigit() or not name.strip("_") else name
    header, source = stem.with_name(f"{stem.name}.h"), stem.with_name(f"{stem.name}.cc")
    title = f"{stem.name}: {len(data):,} bytes, written by orbit_kd. Do not edit."
    # decimal and without blanks: a little over half the text of "0x1f, "
    rows = "\n".join("".join(f"{byte}," for byte in data[i : i + 32]) for i in range(0, len(data), 32))
    guard = f"ORBIT_KD_{name.upper()}_H_"
    write_file(header, _HEADER.format(title=title, guard=guard, name=name, length=len(data)))
    write_file(source, _SOURCE.format(title=title, header=header.name, name=name, rows=rows))
    return Artifact.of(data, target="c_array", files=(source, header), details=details | {"symbol": name})


def read_c_array(path: str | os.PathLike[str]) -> bytes:
    """The bytes of the array in a .cc file that `export_c_array` wrote.

    Raises:
        InputError: there is no such array in the file.
    """
    text = read_bytes(path).decode(errors="replace")
    body = re.search(r"alignas\(16\)[^{]*\{([^}]*)\}", text)
    if body is None:
        raise InputError(
            f"{path} holds no model array.", expected="a .cc file of the target c_array", fix="export it again"
        )
    return bytes(map(int, re.findall(r"\d+", body[1])))
