"""Times exported files against the first of them, interleaved in one process, and operator by operator.

python tools/benchmark.py --models=teacher.tflite,student.tflite --threads=1,2 --runs=50 --per_op

Or counts the instructions of folders of the target c99 on a small core, under QEMU, with their flash and RAM:

python tools/benchmark.py --models=dense_c99,sparse_c99 --target=qemu:cortex-m4
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from absl import flags

from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_list(
    "models",
    None,
    "Exported .tflite files (with --target: folders), comma-separated; the first is what the others are compared to.",
)
flags.DEFINE_list("threads", ["1"], "LiteRT threads, comma-separated.")
flags.DEFINE_list("delegates", ["xnnpack"], "xnnpack, or none for LiteRT's own kernels; comma-separated.")
flags.DEFINE_string(
    "target", "", 'Run folders of the target c99 on "qemu:CORE": cortex-m3, cortex-m4, cortex-m55, rv32, leon3.'
)
flags.DEFINE_integer("runs", 50, "Rounds; each times every file once.", lower_bound=1)
flags.DEFINE_boolean("per_op", False, "Time every operator, too, each in a file of its own.")


def files(macs: list[float], times: Any) -> None:
    """One line a file: how the speed-up compares to what the MACs promise."""
    from orbit_kd.support.text_table import aligned
    from orbit_kd.tflite.summary import count_text

    rows = [("file", "MACs", "ms", "faster", "quartiles", "MACs ratio", "of it")]
    for path, count, time in zip(FLAGS.models, macs, times, strict=True):
        promised = macs[0] / count if count else float("nan")
        rows.append(
            (
                path[-43:],
                count_text(count),
                f"{time.milliseconds:.3f}",
                f"{time.ratio:.2f}x",
                f"{time.low:.2f}-{time.high:.2f}",
                f"{promised:.2f}x",
                f"{time.ratio / promised:.2f}",
            )
        )
    print("\n".join(aligned(rows, "<>>>>>>")))


def operators(times: Any) -> None:
    """Operators side by side: the first file's, and against it each other file's."""
    from orbit_kd.support.text_table import aligned
    from orbit_kd.tflite.summary import count_text

    for path, file in zip(FLAGS.models, times, strict=True):
        print(f"\n{path}: operators, each timed alone; their sum is {file.covered:.2f} of the whole file's time")
        rows = [("operator", "output", "MACs", "ms", "faster", "MACs ratio", "of it")]
        for op, first in zip_longest(file.ops, times[0].ops):
            if op is None:
                continue
            faster = ratio = reached = ""
            if file is not times[0] and first is not None and first.op == op.op:
                times_faster = first.milliseconds / op.milliseconds
                faster = f"{times_faster:.2f}x"
                if op.macs:
                    ratio, reached = f"{first.macs / op.macs:.2f}x", f"{times_faster * op.macs / first.macs:.2f}"
            output = op.name.split(";")[-1][-33:]
            rows.append((op.op, output, count_text(op.macs), f"{op.milliseconds:.4f}", faster, ratio, reached))
        print("\n".join(aligned(rows, "<<>>>>>")))


def on_core(target: str) -> None:
    """One line a folder: what an inference takes on a core."""
    from orbit_kd.errors import InputError
    from orbit_kd.exporters.c99.qemu import measure
    from orbit_kd.support.text_table import aligned

    emulator, _, core = target.partition(":")
    if emulator != "qemu":
        raise InputError(f"--target={target}.", expected="qemu:CORE", fix="use for example --target=qemu:cortex-m4")
    rows, first = [("folder", "instructions (QEMU)", "fewer", "flash", "RAM", "of it stack", "golden output")], None
    for path in FLAGS.models:
        found = measure(path, core)
        first = first or found
        rows.append(
            (
                path[-43:],
                f"{found.instructions:,}",
                f"{first.instructions / found.instructions:.2f}x",
                f"{found.flash:,}",
                f"{found.ram:,}",
                f"{found.stack:,}",
                "equal" if found.right else "NOT EQUAL",
            )
        )
    print("\n".join(aligned(rows, "<>>>>><")))


def main() -> None:
    required("models")
    if FLAGS.target:
        on_core(FLAGS.target)
        return

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
