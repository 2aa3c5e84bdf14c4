"""Writes a Keras model in the formats of other runtimes.

python tools/export.py --model=student.keras --targets=tflite_float32,tflite_int8,tflm --data=images/ --output=out/
python tools/export.py --model=student_tflite_int8.tflite --targets=tflm --max_flash=262144 --max_arena=65536
python tools/export.py --model=student_tflite_int8.tflite --targets=tflite_micro_coded --output=out/
python tools/export.py --model=out/student_tflite_int8_tflite_micro_coded.tflite --targets=tflm --output=out/
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from orbit_kd.errors import InputError
from orbit_kd_tools.common import FLAGS, define_data, load, load_data, required, run

flags.DEFINE_string(
    "model", None, "A .keras or .h5 file or a SavedModel folder; a .tflite file for targets made of one."
)
flags.DEFINE_list("targets", ["tflite_float32", "tflite_int8"], "Export targets, comma-separated.")
flags.DEFINE_string("output", "out", "Folder to write to.")
flags.DEFINE_integer("calibration", 256, "Training images that set the int8 ranges.", lower_bound=1)
flags.DEFINE_integer(
    "max_flash", None, "Bytes the model may take of a microcontroller's flash (tflm*, c99).", lower_bound=1
)
flags.DEFINE_integer(
    "max_arena", None, "Bytes the tensor arena may take of its RAM (tflm, ..coded, c99).", lower_bound=1
)
flags.DEFINE_string(
    "prefer",
    None,
    "c99: each layer's weights in the format that is fastest, speed (on Cortex-M55: vectors), or smallest, bytes.",
)
flags.DEFINE_string("coding", None, "tflite_micro_coded: auto, huffman, pairs, mask or none, for all kernels.")
flags.DEFINE_boolean("compress", None, "Store clustered weights as indices into a table (tflm).")
flags.DEFINE_integer("tolerance", None, "Steps by which TFLite Micro may differ from LiteRT (tflm).", lower_bound=0)
flags.DEFINE_string("sign_key", None, "Private key (PEM) to sign the manifest of the files with (docs/integrity.md).")
define_data(teacher=False)

_OPTIONS = ("max_flash", "max_arena", "prefer", "coding", "compress", "tolerance")  # of single targets
_NO_DATA = {"tflite_float32", "tflite_float16", "tflite_dynamic"}  # nothing in them is calibrated


def main() -> None:
    required("model")

    from orbit_kd.exporters import export_all, find
    from orbit_kd.exporters.metadata import note
    from orbit_kd.flight.manifest import write_manifest
    from orbit_kd.flight.signature import check_private_key, sign

    if FLAGS.sign_key:
        check_private_key(FLAGS.sign_key)

    options = given_options(find(target)[0].options for target in FLAGS.targets)
    if FLAGS.model.endswith(".tflite"):  # its ranges are set; an image of the data, where given, is the golden input
        model, calibrate = FLAGS.model, bool(FLAGS.data or FLAGS.data_dir)
    else:
        model = load(FLAGS.model)
        calibrate = not set(FLAGS.targets) <= _NO_DATA
    data = load_data() if calibrate else None
    if data and not isinstance(model, str):  # a file keeps the note it has
        options["metadata"] = note(data.class_names, data.preprocess)
    files = []
    for artifact in export_all(
        model,
        FLAGS.targets,
        folder=FLAGS.output,
        stem=Path(FLAGS.model).stem,
        calibration=data and data.train,
        samples=FLAGS.calibration,
        **options,
    ):
        print(f"{artifact.target}: {artifact.path} ({artifact.bytes:,} bytes, {artifact.gzip_bytes:,} after gzip)")
        files += artifact.files
    write_manifest(FLAGS.output, files, data=data and data.key, keep=True)
    if FLAGS.sign_key:
        print(f"signature: {sign(FLAGS.output, FLAGS.sign_key)}")


def given_options(known: Iterable[frozenset[str]]) -> dict[str, Any]:
    """The options of single targets that were given.

    Raises:
        InputError: one that none of the targets knows.
    """
    options = {name: FLAGS[name].value for name in _OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    taken = frozenset().union(*known)
    for name in options:
        if name not in taken:
            raise InputError(
                f"None of the targets {', '.join(FLAGS.targets)} looks at --{name}.",
                expected="a target for microcontrollers",
                fix="add tflm or tflite_micro_coded to --targets",
            )
    return options


if __name__ == "__main__":
    run(main)
