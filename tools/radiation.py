"""Flips bits of an exported file at random, and measures what is left of its accuracy on the real runtime.

  python tools/radiation.py --model=student_tflite_int8.tflite --data_dir=images/ --output=out/radiation

Writes radiation.json, radiation.html and trials.jsonl, from which the same command goes on. --by=layer,bit gives cells
of their own to each layer and each bit of a number.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from absl import flags

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd_tools.common import FLAGS, define_data, given, load_data, required, run

flags.DEFINE_string("model", None, "The exported .tflite file.")
flags.DEFINE_string("output", None, "Folder of the results.")
flags.DEFINE_list(
    "regions",
    ["weights", "biases", "scales", "structure"],
    "Of these, constants (the first three together), or activations.",
)
flags.DEFINE_string(
    "guard", None, "The file's guard, as tools/harden.py wrote it: it is hit too, and repairs the file."
)
flags.DEFINE_list("rates", ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2"], "Probabilities of a flip, of each bit.")
flags.DEFINE_list("by", [], "layer, bit, or both: cells of their own.")
flags.DEFINE_list("layers", ["*"], "Patterns of the layers whose bits flip.")
flags.DEFINE_integer("images", 256, "Test images in a trial.", lower_bound=1)
flags.DEFINE_integer("trials", 200, "At most, of one region and rate.", lower_bound=1)
flags.DEFINE_float("tolerance", 0.005, "Half the width of the 95% interval that ends the trials of a cell.")
flags.DEFINE_string("runtime", "", "litert or tflm; by default the one that the file is made for.")
flags.DEFINE_integer("workers", None, "Processes; one a core where not given.", lower_bound=1)
define_data()


def main() -> None:
    required("model", "output")

    from orbit_kd.errors import InputError
    from orbit_kd.exporters.metadata import read_metadata
    from orbit_kd.flight.radiation import campaign
    from orbit_kd.reports.radiation import radiation_page
    from orbit_kd.support.files import write_file

    note = read_metadata(FLAGS.model)
    made_for = Preprocess(**note["preprocess"]) if note.get("preprocess") else None
    data, output = load_data(preprocess=given(Preprocess) or made_for), Path(FLAGS.output)
    try:
        rates = [float(rate) for rate in FLAGS.rates]
    except ValueError as error:
        raise InputError(f"--rates={','.join(FLAGS.rates)}.", expected="numbers, separated by commas",
                         fix="--rates=1e-5,1e-4") from error  # fmt: skip
    how = {name: getattr(FLAGS, name) for name in ("regions", "by", "layers", "images", "trials", "tolerance",
                                                   "runtime", "workers", "seed", "task", "guard")}  # fmt: skip
    found = campaign(FLAGS.model, data.test, rates=rates, path=output / "trials.jsonl", **how)
    command = shlex.join(["python", *sys.argv])
    write_file(output / "radiation.json", json.dumps(found.to_dict(), indent=1))
    write_file(output / "radiation.html", radiation_page(found.to_dict(), command=command))
    print(f"report: {output / 'radiation.html'}")


if __name__ == "__main__":
    run(main)
