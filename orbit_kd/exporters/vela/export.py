"""Arm Ethos-U: the model compiled by Vela, with the cycles and bytes it estimates for every operator.

The Ethos-U85 runs 2:4 weights natively: two multiplications in place of four. Vela, Arm's compiler, chooses the form of
each operator by itself: with `--optimise Size` the one of fewer bytes, with `Performance` the one of fewer cycles.
`details["operators"]` says which operators run 2:4, and why each of the others does not. Cycles are Vela's estimates.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.source import tflite_of
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.vela.report import VelaOp, VelaReport, read_report
from orbit_kd.exporters.vela.twins import dense_twin, first_bad_group, kernels, sparse_twin
from orbit_kd.support.extras import require
from orbit_kd.support.files import write_file
from orbit_kd.tflite.nm_check import NMCheck, check_n_m
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.summary import Op, read
from orbit_kd.tflite.writer import to_bytes

ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
# The usual board of each family. U55 and U65: weights in flash, feature maps in SRAM. U85: all of a small network in
# SRAM, so that the cycles are those of the NPU and not of a flash chip.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_Embedded", "Shared_Sram"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Sram_Only"),
}


@target("vela", made_of="tflite_int8", runtime="")
def export_vela(
    model: Any,
    *,
    path: str | os.PathLike[str],
    variant: str = "",
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    system_config: str | None = None,
    memory_mode: str | None = None,
    config: str = "Arm/vela.ini",
    optimise: str = "Size",
    both_forms: bool = True,
    **options: Any,
) -> Artifact:
    """A .tflite file whose operators are replaced by command streams for an Ethos-U.

    Args:
        model: an int8 .tflite file (path or Artifact), or a tf_keras model, which is converted to "tflite_int8" first.
        path: the .tflite file to write.
        variant: one of `ACCELERATORS`; the number is the multiply-accumulates a cycle.
        calibration: for the conversion of a Keras model.
        metadata: stored in the compiled file.
        system_config: clock and bandwidths, a name in `config`; None for the family's in `SYSTEMS`.
        memory_mode: where weights and feature maps are kept, a name in `config`; None for the family's.
        config: Vela's configuration file: its own, or the path of yours.
        optimise: "Size" (few bytes of weights and of SRAM) or "Performance" (few cycles).
        both_forms: on an Ethos-U85, compile twins of the file too, for the cycles of each operator's other form.
        **options: of "tflite_int8", for the conversion of a Keras model.

    Returns:
        Artifact of the compiled file. Its details hold the fields of `VelaReport`, and in `operators`, for each one of
        the source file that was compiled by itself or left to the CPU: `index`, `name`, `op`, `runs_on`, `macs`,
        `cycles`, `npu_cycles`, `weight_bytes`, `runs_2_4`, `why_not_2_4`, and where they are known `cycles_dense`,
        `cycles_2_4`, `weight_bytes_dense`, `weight_bytes_2_4`.

    Raises:
        InputError: Vela is not installed; an unknown variant, system configuration or memory mode; a file that is
            sparse-encoded, or of which nothing runs on the NPU; what Vela refuses; or what "tflite_int8" raises.
    """
    if variant not in ACCELERATORS:
        raise InputError(
            f"Unknown Ethos-U configuration {variant!r}." if variant else "The target vela is for one Ethos-U.",
            expected=f"one of: {', '.join(ACCELERATORS)}",
            fix="write vela:ethos-u85-256, for example",
        )
    require("ethosu", extra="npu")
    data, details = tflite_of(model, calibration=calibration, **options)
    summary = read(data)
    if summary.sparse:
        raise InputError(
            "The file is sparse-encoded (DENSIFY), which Vela ignores: it would compile other weights.",
            expected="a dense file; zeros in it are what Vela turns into 2:4",
            fix="convert without Optimize.EXPERIMENTAL_SPARSITY",
        )
    family = variant.rsplit("-", 1)[0]
    system, mode = system_config or SYSTEMS[family][0], memory_mode or SYSTEMS[family][1]
    config = str(Path(config).resolve()) if Path(config).is_file() else config  # Vela runs in a folder of its own
    flags = {"accelerator-config": variant, "system-config": system, "memory-mode": mode, "config": config}
    compiled, report = compile_with_vela(data, flags | {"optimise": optimise})
    if not any(op.on_npu for op in report.ops):
        raise InputError(
            "No operator of the file runs on the NPU.",
            expected="a full-integer file: int8 weights and activations",
            fix="export the Keras model with calibration=train, or hand over its tflite_int8 file",
        )
    rows = _rows(data, report)
    if family == "ethos-u85" and both_forms:
        _add_other_forms(rows, data, flags, optimise)
    elif family != "ethos-u85":
        for row in rows:
            row["why_not_2_4"] = row["why_not_2_4"] and f"{family} has no 2:4"
    if metadata is not None:
        compiled = add_metadata(compiled, metadata)
    figures = {k: v for k, v in vars(report).items() if k != "ops"}
    setting = {
        "vela": importlib.metadata.version("ethos-u-vela"),
        "accelerator": variant,
        "system_config": system,
        "memory_mode": mode,
        "optimise": optimise,
    }
    return Artifact.of(
        compiled,
        target=f"vela:{variant}",
        files=(write_file(path, compiled),),
        details=details | setting | figures | {"operators": rows},
    )


def compile_with_vela(data: bytes, flags: dict[str, str]) -> tuple[bytes, VelaReport]:
    """Runs Vela in a process of its own.

    Args:
        data: a .tflite file.
        flags: of Vela's command line, without the dashes.

    Returns:
        The compiled file, and what Vela estimates for it.

    Raises:
        InputError: Vela ends with an error; the message holds what it says.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(data)
        command = [sys.executable, "-m", "ethosu.vela", "model.tflite", "--output-dir", "out", "--enable-debug-db"]
        child = subprocess.run(
            command + [part for name, value in flags.items() for part in (f"--{name}", value)],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        written = Path(folder, "out", "model_vela.tflite")
        if child.returncode or not written.is_file():
            said = [line for line in (child.stdout + child.stderr).splitlines() if line.strip()]
            raise InputError(
                f"Vela does not compile the file: {' '.join(said[-3:])[:400] or f'exit code {child.returncode}'}",
                expected="an int8 .tflite file, and names that are in Vela's configuration file",
                fix="see `vela --list-configs Arm/vela.ini` for --system-config and --memory-mode",
            )
        return _in_order(written.read_bytes(), data), read_report(written.parent)


def _in_order(compiled: bytes, source: bytes) -> bytes:
    """The compiled file with inputs and outputs in the order of its source: Vela keeps their names, not always that.

    Raises:
        InputError: the names have changed.
    """
    before, file = parse(source).subgraphs[0], parse(compiled)
    graph, changed = file.subgraphs[0], False
    for side in ("inputs", "outputs"):
        names = [before.tensors[tensor].name for tensor in getattr(before, side)]
        tensors = [int(tensor) for tensor in getattr(graph, side)]
        found = [graph.tensors[tensor].name for tensor in tensors]
        if len(names) == 1 == len(found) or found == names:
            continue
        if sorted(found) != sorted(names) or len(set(names)) < len(names):
            raise InputError(
                f"Vela has made the {side} {found} of {names}.",
                expected="the same, under their names",
                fix="compile a network with a single input and output, or report the file",
            )
        setattr(graph, side, np.asarray([tensors[found.index(name)] for name in names], np.int32))
        changed = True
    return to_bytes(file) if changed else compiled


def _rows(data: bytes, report: VelaReport) -> list[dict[str, Any]]:
    model = parse(data)
    graph, names = model.subgraphs[0], Subgraph(model)
    known = {op.name: op for op in read(data).ops if not op.graph}
    checks = {check.name: check for check in check_n_m(data)}
    arrays = kernels(data)
    rows = []
    for op in report.ops:
        name = names.output_name(graph.operators[op.index])
        source = known.get(name)
        rows.append(
            {
                "index": op.index,
                "name": name,
                "op": source.op if source else "",
                "runs_on": "NPU" if op.on_npu else "CPU",
                "macs": source.macs if source else 0,
                "cycles": op.cycles,
                "npu_cycles": op.npu_cycles,
                "weight_bytes": op.weight_bytes,
                "runs_2_4": op.runs_2_4,
                "why_not_2_4": _why_not(op, source, checks.get(name), arrays.get(op.index)),
            }
        )
    return rows


def _why_not(op: VelaOp, source: Op | None, check: NMCheck | None, kernel: Any) -> str:
    """Why an operator with a kernel does not run 2:4; "" where it does, or has no kernel."""
    if op.runs_2_4 or source is None or not source.weight_shape:
        return ""
    if not op.on_npu:
        return "runs on the CPU"
    if source.op == "DEPTHWISE_CONV_2D":
        return "depthwise: one input channel a filter"
    if check is None:
        return f"{source.op} has no 2:4"
    if check.bad_groups:
        first = None if kernel is None else first_bad_group(kernel)
        where = "" if first is None else f", the first at (out, ..., in) = {first}"
        return f"{check.bad_groups} of {check.groups} groups have more than 2 non-zeros{where}"
    if check.minus_128:
        return f"{check.minus_128} weights of -128"
    return _KEPT


_KEPT = "keeps the rule, but Vela takes the dense form"


def _add_other_forms(rows: list[dict[str, Any]], data: bytes, flags: dict[str, str], optimise: str) -> None:
    """Adds cycles and bytes of both forms, from twins in which every kernel keeps, or breaks, the rule.

    An operator that keeps the rule but is left dense for its bytes shows its 2:4 form under "Performance".
    """
    candidates = set(kernels(data))
    for row in rows:
        form = "2_4" if row["runs_2_4"] else "dense"
        if row["runs_2_4"] or row["why_not_2_4"]:
            row |= {f"cycles_{form}": row["cycles"], f"weight_bytes_{form}": row["weight_bytes"]}
    twins = [(False, dense_twin, optimise), (True, sparse_twin, optimise), (True, sparse_twin, "Performance")]
    for is_2_4, twin, strategy in twins:
        form = "2_4" if is_2_4 else "dense"
        wanted = [r for r in rows if r["index"] in candidates and r["runs_on"] == "NPU" and f"cycles_{form}" not in r]
        if wanted:
            found = {op.index: op for op in compile_with_vela(twin(data), flags | {"optimise": strategy})[1].ops}
            for row in wanted:
                op = found[row["index"]]
                if op.runs_2_4 == is_2_4:
                    row |= {f"cycles_{form}": op.cycles, f"weight_bytes_{form}": op.weight_bytes}
    for row in (r for r in rows if r["why_not_2_4"] == _KEPT):
        dense, sparse = row["weight_bytes"], row.get("weight_bytes_2_4")
        if sparse is None:
            row["why_not_2_4"] += ": it estimates no gain in cycles"
        elif optimise == "Size" and dense < sparse:
            row["why_not_2_4"] += f", which is smaller: {dense:,} against {sparse:,} bytes of weights"
