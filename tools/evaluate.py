"""Runs exported files on a test set: accuracy, bytes, zeros, latency, TFLite Micro, against the teacher.

python tools/evaluate.py --models=a.tflite,b.tflite --teacher=model.keras --data=images/ --output=out/evaluation
"""

from __future__ import annotations

import tempfile

from absl import flags

from orbit_kd_tools.common import FLAGS, define_data, load_data, load_teacher, required, run

flags.DEFINE_list("models", [], "Exported files (.tflite, or .cc of a C array), comma-separated.")
flags.DEFINE_string("output", "", "Folder for report.json and report.html; empty for none.")
define_data()


def main() -> None:
    required("models")
    data = load_data()

    from orbit_kd.evaluation import evaluate
    from orbit_kd.exporters import export_all, open_artifact

    artifacts = [open_artifact(path) for path in FLAGS.models]
    with tempfile.TemporaryDirectory() as folder:
        originals = []
        if FLAGS.teacher:  # in the types of the models, so that like is timed against like
            found = {a.target for a in artifacts if a.target.startswith("tflite")}
            kinds = ["tflite_float32", *sorted(found - {"tflite_float32"})]
            originals = export_all(load_teacher(), kinds, folder=folder, stem="teacher", calibration=data.train)
        report = evaluate(
            artifacts,
            data.test,
            teacher=next(iter(originals), None),
            teacher_artifacts=originals,
            class_names=data.class_names,
        )
    print(report)
    if FLAGS.output:
        print(f"report: {report.save(FLAGS.output)}")


if __name__ == "__main__":
    run(main)
