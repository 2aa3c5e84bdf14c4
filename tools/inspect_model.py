"""Prints what a model file costs, layer by layer, and which channels must be removed together.

python tools/inspect_model.py --model=model.keras
"""

from __future__ import annotations

from absl import flags

from orbit_kd_tools.common import FLAGS, define_trust, load, required, run

flags.DEFINE_string("model", None, "A .keras or .h5 file, a SavedModel folder, or a .tflite file.")
define_trust()


def main() -> None:
    required("model")
    if FLAGS.model.endswith(".tflite"):
        from orbit_kd.tflite.summary import read

        print(read(FLAGS.model))
        return

    from orbit_kd.channels.profiles import profile
    from orbit_kd.removal.planning import plan_removal

    model = load(FLAGS.model)
    print(profile(model), "\n\ncoupled groups", plan_removal(model, unknown="keep"), sep="\n")


if __name__ == "__main__":
    run(main)
