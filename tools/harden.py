"""Writes a guard beside an exported file, which finds and undoes flipped bits, and the C code that uses it in flight.

  python tools/harden.py --model=student_tflite_int8.tflite --level=constants

Writes <model>.guard, orbit_scrub.h and orbit_scrub.c beside the file. With --check it tells whether the file is as it
was, with --repair it mends it.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from absl import flags

from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_string("model", None, "The exported .tflite file.")
flags.DEFINE_string(
    "level", "constants", "What is guarded: checksums (found, not undone), small (biases, scales and zero points), "
    "constants (weights too), file (all of it).",
)  # fmt: skip
flags.DEFINE_bool("check", False, "Only say whether the file is as it was.")
flags.DEFINE_bool("repair", False, "Mend the file in place.")


def main() -> None:
    required("model")

    from orbit_kd.flight.guard import harden
    from orbit_kd.support.files import write_file

    model = Path(FLAGS.model)
    guard = model.with_name(f"{model.name}.guard")
    if FLAGS.check or FLAGS.repair:
        print(mended(model, guard))
        return
    stored = harden(model, level=FLAGS.level)
    write_file(guard, stored)
    for name in ("orbit_scrub.h", "orbit_scrub.c"):
        with as_file(files("orbit_kd.flight").joinpath("scrubber", name)) as source:
            shutil.copyfile(source, model.with_name(name))
    print(f"{guard}: {len(stored):,} bytes, {len(stored) / model.stat().st_size:.1%} of the file")


def mended(model: Path, guard: Path) -> str:
    """What --check and --repair have to say of a file.

    Raises:
        InputError: it is damaged, and not mended.
    """
    from orbit_kd.errors import InputError
    from orbit_kd.flight.guard import repair
    from orbit_kd.support.files import write_file

    found = repair(model, guard)
    if found.mended and FLAGS.repair:
        write_file(model, found.data)
    if not found.whole:
        places = ", ".join(f"{start} to {start + size}" for start, size in found.damaged[:5])
        raise InputError(f"{model} is damaged, beyond what its guard mends, in the bytes {places}.",
                         expected="a file that is whole", fix="send it again")  # fmt: skip
    if found.mended and not FLAGS.repair:
        raise InputError(f"{model} is damaged in {found.mended} bytes, which its guard can mend.",
                         expected="a file that is whole", fix="give --repair in place of --check")  # fmt: skip
    return f"{model}: whole" + f", {found.mended} bytes mended" * bool(found.mended)


if __name__ == "__main__":
    run(main)
