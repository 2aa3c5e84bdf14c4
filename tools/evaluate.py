"""Runs exported files on a test set: accuracy, bytes, zeros, latency, TFLite Micro, against the teacher.

python tools/evaluate.py --models=a.tflite,b.tflite --teacher=model.keras --data=images/ --output=out/evaluation

Files know how images reach them (crop, resize, loader, ...); flags that say otherwise are followed, with a warning.
With --expected_accuracy (and no --models) it measures the teacher alone, and finds out how the images have to be read:

python tools/evaluate.py --teacher=model.keras --data_dir=images/ --resize=96 --expected_accuracy=0.65
"""

from __future__ import annotations

import sys
import tempfile

from absl import flags

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.support.progress import log
from orbit_kd_tools.common import FLAGS, collect, data_flags, define_data, given, load_data, load_teacher, required, run

flags.DEFINE_list("models", [], "Exported files (.tflite, or .cc of a C array), comma-separated.")
flags.DEFINE_string("output", "", "Folder for report.json and report.html; empty for none.")
flags.DEFINE_string("expected_accuracy", None, "What Keras says of the teacher on these images: 0.65, or 65%.")
flags.DEFINE_enum(
    "split", "", ["", "train", "val", "test", "all"], "Which images --expected_accuracy is of; by default the test "
    "split where the data has one, else all.",
)  # fmt: skip
define_data()


def main() -> None:
    if FLAGS.expected_accuracy:
        check()
        if not FLAGS.models:
            return
    required("models")

    from orbit_kd.evaluation.evaluate import evaluate
    from orbit_kd.exporters import export_all, open_artifact
    from orbit_kd.exporters.metadata import read_metadata

    artifacts = [open_artifact(path) for path in FLAGS.models]
    notes = {str(a.path): read_metadata(a.path) for a in artifacts if a.path.suffix == ".tflite"}
    made_for = {path: Preprocess(**note["preprocess"]) for path, note in notes.items() if note.get("preprocess")}
    preprocess = given(Preprocess) or next(iter(made_for.values()), None)
    data = load_data(preprocess=preprocess)
    for path, own in made_for.items():
        if own != data.preprocess:
            log.warning("%s was made for %s, and is measured with %s", path, own, data.preprocess)
    for path, note in notes.items():
        if (names := note.get("class_names")) and names != list(data.class_names):
            log.warning("%s names its classes %s, the data %s", path, names, list(data.class_names))
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
            task=FLAGS.task,
        )
    print(report)
    if FLAGS.output:
        print(f"report: {report.save(FLAGS.output)}")


def check() -> None:
    """Measures the teacher against --expected_accuracy; exit code 1 where the figures differ."""
    required("teacher")
    from orbit_kd.evaluation.preprocess_check import check_preprocess

    name, where = data_flags()
    where.pop("task")  # it is classes that --expected_accuracy is of
    preprocess = collect(Preprocess)
    expected = FLAGS.expected_accuracy
    found = check_preprocess(
        load_teacher(), name, expected_accuracy=expected, preprocess=preprocess, split=FLAGS.split, **where
    )
    print(found)
    if not found.agrees:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
