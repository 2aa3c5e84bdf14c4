"""What coding saves of the published students, as they are and with coarser weights: the table of docs/coded_files.md.

    python benchmarks/coded_bytes.py

The coarser ones are not retrained: the smallest weights of each kernel become 0, the others go to few levels. Their
rows are about bytes, not about accuracy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import markdown

from orbit_kd.exporters import export
from orbit_kd.tflite.reader import parse, read_bytes
from orbit_kd.tflite.subgraph import Subgraph
from orbit_kd.tflite.writer import set_constant, to_bytes

flags.FLAGS["data_dir"].value = ""  # no images are read

MODELS = Path(__file__).parent.parent / "models"
KINDS = {"as trained": None, "31 levels, 80% zeros": (15, 0.8), "15 levels, 90% zeros": (7, 0.9)}
_PARTS = ("biases", "scales", "metadata", "structure")


def coarser(data: bytes, most: int, zeros: float) -> bytes:
    """The int8 file with kernels of values -most..most, of which a part is zero."""
    model = parse(data)
    graph = Subgraph(model)
    for kernel in {graph.kernel(op) for op in graph.operators} - {None}:
        values = graph.dense(kernel).astype(float)
        small = np.abs(values) <= np.quantile(np.abs(values), zeros)
        set_constant(
            model, graph.tensors[kernel], values=np.where(small, 0, np.rint(values / 127 * most)).astype(np.int8)
        )
    return to_bytes(model)


def row(name: str, kind: str, folder: Path) -> tuple[Any, ...]:
    """One line of the table."""
    data = read_bytes(MODELS / name / "student_tflite_int8.tflite")
    plain = folder / "plain.tflite"
    plain.write_bytes(data if KINDS[kind] is None else coarser(data, *KINDS[kind]))
    file = export(plain, "tflite_micro_coded", path=folder / "coded.tflite", checks=3)
    parts, before = file.details["bytes"], file.details["uncoded"]
    return (
        name, kind, f"{before['bytes']:,}", f"{file.bytes:,}", f"{parts['weights'] + parts['tables']:,}",
        *(f"{parts[part]:,}" for part in _PARTS), f"{before['arena_bytes']:,}, {file.details['arena_bytes']:,}",
    )  # fmt: skip


def main(_: list[str]) -> None:
    names = sorted(path.parent.name for path in MODELS.glob("*/student_tflite_int8.tflite"))
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, kind, Path(folder)) for kind in KINDS for name in names
                if KINDS[kind] is None or not name.endswith(("1500", "2500"))]  # fmt: skip
    head = ("network", "weights are", "int8 file", "coded", "weights, tables", *_PARTS, "arena before, after")
    print(markdown(head, rows))


if __name__ == "__main__":
    app.run(main)
