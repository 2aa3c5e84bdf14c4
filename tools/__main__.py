"""`orbit-kd TOOL --flags`: the same programs as `python tools/TOOL.py --flags`, for an installed wheel."""

from __future__ import annotations

import runpy
import sys

TOOLS = ("train", "sensitivity", "prune", "distill", "compress", "evaluate", "predict", "export", "benchmark",
         "inspect_model", "radiation", "harden", "uplink", "verify")  # fmt: skip


def main() -> None:
    """Runs the tool that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        ask = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help", "help")
        text = f"usage: orbit-kd TOOL --flags\ntools: {', '.join(TOOLS)}\norbit-kd TOOL --help shows the flags of one"
        sys.exit(print(text) if ask else f"error: {text}")
    name = sys.argv.pop(1)
    sys.argv[0] = f"orbit-kd {name}"
    runpy.run_module(f"orbit_kd_tools.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
