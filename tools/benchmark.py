"""Times exported files against the first of them, interleaved in one process, and operator by operator.

python tools/benchmark.py --models=teacher.tflite,student.tflite --threads=1,2 --runs=50 --per_op
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from absl import flags

from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_list(
    "models", None, "Exported .tflite files, comma-separated; the first is what the others are compared to."
)
flags.DEFINE_list("threads", ["1"], "LiteRT threads, comma-separated.")
flags.DEFINE_list("delegates", ["xnnpack"], "xnnpack, or none for LiteRT's own kernels; comma-separated.")
flags.DEFINE_integer("runs", 50, "Rounds; each times every file once.", lower_bound=1)
flags.DEFINE_boolean("per_op", False, "Time every operator, too, each in a file of its own.")


def files(macs: list[float], times: Any) -> None:
    """One line a file: how the speed-up compares to what the MACs promise."""
    from orbit_kd.tflite.summary import count_text

    print(f"{'file':<44}{'MACs':>14}{'ms':>10}{'faster':>9}{'quartiles':>15}{'MACs ratio':>12}{'of it':>7}")
    for path, count, time in zip(FLAGS.models, macs, times, strict=True):
        promised = macs[0] / count if count else float("nan")
        print(
            f"{path[-43:]:<44}{count_text(count):>14}{time.milliseconds:>10.3f}{time.ratio:>8.2f}x"
            f"{f'{time.low:.2f}-{time.high:.2f}':>15}{promised:>11.2f}x{time.ratio / promised:>7.2f}"
        )


def operators(times: Any) -> None:
    """Operators side by side: the first file's, and against it each other file's."""
    from orbit_kd.tflite.summary import count_text

    for path, file in zip(FLAGS.models, times, strict=True):
        print(f"\n{path}: operators, each timed alone; their sum is {file.covered:.2f} of the whole file's time")
        print(f"{'operator':<20}{'output':<34}{'MACs':>14}{'ms':>10}{'faster':>9}{'MACs ratio':>12}{'of it':>7}")
        for op, first in zip_longest(file.ops, times[0].ops):
            if op is None:
                continue
            line = f"{op.op:<20}{op.name.split(';')[-1][-33:]:<34}{count_text(op.macs):>14}{op.milliseconds:>10.4f}"
            if file is not times[0] and first is not None and first.op == op.op:
                faster = first.milliseconds / op.milliseconds
                line += f"{faster:>8.2f}x"
                if op.macs:
                    line += f"{first.macs / op.macs:>11.2f}x{faster * op.macs / first.macs:>7.2f}"
            print(line)


def main() -> None:
    required("models")

    from orbit_kd.errors import InputError
    from orbit_kd.evaluation.latency import delegates, latency
    from orbit_kd.evaluation.operators import op_latency
    from orbit_kd.tflite.summary import read

    wrong = next((t for t in FLAGS.threads if not t.isdigit() or t == "0"), None)
    if wrong is not None:
        raise InputError(f"--threads={wrong} is no number of threads.", expected="--threads=1,2", fix="give numbers")
    for delegate in FLAGS.delegates:
        delegates.get(delegate)
    macs = [read(path).macs for path in FLAGS.models]
    for delegate in FLAGS.delegates:
        for threads in map(int, FLAGS.threads):
            print(f"\n{threads} thread{'s'[: threads > 1]}, delegate {delegate}, {FLAGS.runs} rounds")
            how = {"runs": FLAGS.runs, "threads": threads, "delegate": delegate}
            files(macs, latency(FLAGS.models, **how))
            if FLAGS.per_op:
                operators(op_latency(FLAGS.models, **how))


if __name__ == "__main__":
    run(main)
