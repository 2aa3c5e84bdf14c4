"""Compresses a trained Keras network: filter removal, sparsity, distillation, int8, report.

  python tools/compress.py --teacher=model.keras --data=images/ --ratio=0.7 --workdir=out/run
  python tools/compress.py --teacher=unet.keras --data=tiles/ --bands=rgb,nir_swir --max_drop=0.01 --workdir=out/water
  python tools/compress.py --flagfile=models/vgg16_mstar/recipe.flags --teacher=... --data_dir=... --workdir=...

The same command goes on where a killed run stopped.
"""

from __future__ import annotations

import shlex
import sys

from absl import flags

from orbit_kd.datasets.augment import Augment
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd_tools.common import FLAGS, collect, define, define_data, load, load_data, load_teacher, required, run

flags.DEFINE_string("workdir", None, "Folder for all results.")
flags.DEFINE_string("student", None, "A network made of the teacher before, to go on from.")
flags.DEFINE_string("sign_key", None, "Private key (PEM) to sign the manifest of the files with (docs/integrity.md).")
flags.DEFINE_string("title", "", "Title of the report.")
define_data()
define(Recipe, skip=("seed", "task"))
define(Augment)


def main() -> None:
    required("teacher", "workdir")
    if FLAGS.sign_key:
        from orbit_kd.flight.signature import check_private_key

        check_private_key(FLAGS.sign_key)
    recipe, augment = collect(Recipe), collect(Augment)
    data = load_data()
    teacher = load_teacher()
    student = load(FLAGS.student) if FLAGS.student else None

    from orbit_kd.pipeline.compress import compress

    command = shlex.join(["python", *sys.argv])
    result = compress(
        teacher, data, recipe=recipe, augment=augment, student=student, workdir=FLAGS.workdir, title=FLAGS.title,
        command=command,
    )  # fmt: skip
    print(f"\n{result.report}\n\nreport: {FLAGS.workdir}/report.html")
    for artifact in result.artifacts:
        print(f"{artifact.target}: {artifact.path} ({artifact.bytes:,} bytes)")
    if FLAGS.sign_key:
        from orbit_kd.flight.signature import sign

        print(f"signature: {sign(FLAGS.workdir, FLAGS.sign_key)}")


if __name__ == "__main__":
    run(main)
