"""Runs exported files on a test set: accuracy, bytes, zeros, latency, TFLite Micro, against the teacher.

python tools/evaluate.py --models=a.tflite,b.tflite --teacher=model.keras --data=images/ --output=out/evaluation
"""

from __future__ import annotations

from absl import flags

from orbit_kd_tools.common import FLAGS, define_data, load_data, load_teacher, required, run

flags.DEFINE_list("models", [], "Exported files (.tflite, or .cc of a C array), comma-separated.")
flags.DEFINE_string("output", "", "Folder for report.json and report.html; empty for none.")
define_data()


def main() -> None:
    required("models")
    data = load_data()

    from orbit_kd.evaluation import evaluate

    teacher = load_teacher() if FLAGS.teacher else None
    report = evaluate(FLAGS.models, data.test, teacher=teacher, class_names=data.class_names)
    print(report)
    if FLAGS.output:
        print(f"report: {report.save(FLAGS.output)}")


if __name__ == "__main__":
    run(main)
