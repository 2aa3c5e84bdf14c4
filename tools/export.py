"""Writes a Keras model in the formats of other runtimes.

python tools/export.py --model=student.keras --targets=tflite_float32,tflite_int8,c_array --data=images/ --output=out/
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from orbit_kd_tools.common import FLAGS, define_data, load_data, required, run

flags.DEFINE_string("model", None, "A .keras or .h5 file or a SavedModel folder.")
flags.DEFINE_list("targets", ["tflite_float32", "tflite_int8"], "Export targets, comma-separated.")
flags.DEFINE_string("output", "out", "Folder to write to.")
flags.DEFINE_integer("calibration", 256, "Training images that set the int8 ranges.", lower_bound=1)
define_data(teacher=False)


def main() -> None:
    required("model")

    from orbit_kd.exporters import export_all, find
    from orbit_kd.model_io import load_model

    for target in FLAGS.targets:
        find(target)
    model = load_model(FLAGS.model, trust_code=FLAGS.trust_model_code)
    images = load_data().train if any(t != "tflite_float32" for t in FLAGS.targets) else None
    for artifact in export_all(
        model,
        FLAGS.targets,
        folder=FLAGS.output,
        stem=Path(FLAGS.model).stem,
        calibration=images,
        samples=FLAGS.calibration,
    ):
        print(f"{artifact.target}: {artifact.path} ({artifact.bytes:,} bytes, {artifact.gzip_bytes:,} after gzip)")


if __name__ == "__main__":
    run(main)
