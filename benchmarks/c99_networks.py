"""Whole networks in plain C99 on small cores, beside TensorFlow Lite Micro's figures. Writes docs/c99_networks.md.

    python benchmarks/c99_networks.py

Each row is one network, one core under QEMU and one choice of formats: instructions of one inference (never cycles),
flash (code and constants) and RAM (context, input, outputs, stack), where the outputs are LiteRT's, bit for bit. Beside
it the size of the .tflite file that TFLite Micro would hold in flash, without its own code, and the arena that its
interpreter takes. Networks: the int8 files of models/, and the ResNet-8 of MLPerf Tiny with random weights, dense and
cut to 2:4.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from orbit_kd import runtimes
from orbit_kd.exporters import export
from orbit_kd.exporters.c99 import qemu
from orbit_kd.tflite.summary import read

FLAGS = flags.FLAGS
flags.DEFINE_list("cores", ["cortex-m4", "cortex-m3"], "Cores to run.")
flags.DEFINE_list("prefer", ["speed", "bytes"], "Choices of formats.")
flags.DEFINE_list("networks", None, "Names of rows to run; by default all.")
flags.DEFINE_boolean("page_only", False, "Write the page from the rows that are there.")

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/c99_networks.jsonl"
PAGE = ROOT / "docs/c99_networks.md"
HEAD = (
    "network",
    "MMACs",
    "core",
    "prefer",
    "M instructions",
    "a MAC",
    "flash",
    "of TFLM's file",
    "RAM",
    "of its arena",
)
_PAGE = """\
# Whole networks in plain C99

Written by `python benchmarks/c99_networks.py` from `benchmarks/results/c99_networks.jsonl`; rows that are there are not
run again.

Instructions of one inference under QEMU, in millions and for each multiply-accumulate of the dense network: they are no
cycles, as there is no pipeline and no flash to wait for. Flash: code and constants of everything, bytes. RAM: context,
input, outputs and the stack, bytes. Every row's outputs are those of LiteRT's reference kernels, bit for bit. TFLM's
file is the int8 .tflite file alone, without the interpreter and its kernels (some tens of KB more); its arena is
measured by TFLite Micro's own allocator on a 64-bit host, where its tables are larger than on a device.

Unless a name says otherwise a network is the int8 file of `models/`; the ResNet-8 of MLPerf Tiny has random weights.
`speed` and `bytes` choose the format of each layer's weights ([C99](c99.md)).

{table}
"""


def resnet8(*, pattern: bool) -> bytes:
    """MLPerf Tiny's ResNet-8 (32x32x3, 12.5 M MACs) as an int8 file, weights random; with `pattern` 2:4 where four
    channels come in.
    """
    import tf_keras as keras
    from tf_keras import layers

    keras.utils.set_random_seed(0)
    image = layers.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(filters, 3, strides=stride, padding="same", activation="relu")(x)
        y = layers.Conv2D(filters, 3, padding="same")(y)
        if stride > 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(layers.AveragePooling2D(8)(x))))
    for layer in model.layers if pattern else ():
        weights = layer.get_weights()
        if weights and weights[0].shape[-2] % 4 == 0:
            layer.set_weights([_two_of_four(weights[0]), *weights[1:]])
    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        return export(model, "tflite_int8", path=Path(folder, "m.tflite"), calibration=images).path.read_bytes()


def _two_of_four(kernel: np.ndarray) -> np.ndarray:
    """The larger two of every four input channels."""
    groups = np.moveaxis(kernel, -2, -1)
    groups = groups.reshape(*groups.shape[:-1], -1, 4)
    kept = groups * (np.argsort(np.argsort(np.abs(groups), axis=-1), axis=-1) >= 2)
    return np.moveaxis(kept.reshape(*kept.shape[:-2], -1), -1, -2)


def networks() -> dict[str, Callable[[], bytes]]:
    """Name -> what reads or makes the file."""
    files = sorted((ROOT / "models").glob("*/student_tflite_int8.tflite"))
    return {
        "ResNet-8, dense": lambda: resnet8(pattern=False),
        "ResNet-8, 2:4": lambda: resnet8(pattern=True),
        **{file.parent.name: file.read_bytes for file in files},
    }


def rows_there() -> list[dict[str, Any]]:
    """Finished rows."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def run(name: str, make: Callable[[], bytes]) -> None:
    """Runs what is not there of one network."""
    there = {(row["network"], row["core"], row["prefer"]) for row in rows_there()}
    todo = [(core, prefer) for prefer in FLAGS.prefer for core in FLAGS.cores if (name, core, prefer) not in there]
    if not todo:
        return
    data = make()
    arena = getattr(runtimes.load(data, runtime="tflm"), "arena_bytes", None)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "model.tflite")
        file.write_bytes(data)
        for core, prefer in todo:
            folder = export(file, "c99", path=Path(place, "c"), prefer=prefer).path.parent
            found = qemu.measure(folder, core)
            if not found.right:
                raise RuntimeError(f"{name} on {core}: other outputs than LiteRT's")
            given = sum(port["size"] for port in _inputs(folder))
            row = {
                "network": name, "core": core, "prefer": prefer, "macs": read(data).macs,
                "instructions": found.instructions, "flash": found.flash, "ram": found.ram + given,
                "stack": found.stack, "tflite_bytes": len(data), "tflm_arena": arena,
            }  # fmt: skip
            with RESULTS.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def _inputs(folder: Path) -> list[dict[str, int]]:
    ports = json.loads((folder / "manifest.json").read_text())["inputs"]
    return [{"size": int(np.prod(p["shape"])) * np.dtype(p["dtype"]).itemsize} for p in ports]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of finished rows."""
    cells = [
        (
            row["network"], f"{row['macs'] / 1e6:.1f}", row["core"], row["prefer"], f"{row['instructions'] / 1e6:.2f}",
            f"{row['instructions'] / row['macs']:.2f}", f"{row['flash']:,}",
            f"{row['flash'] / row['tflite_bytes']:.2f}", f"{row['ram']:,}", f"{row['ram'] / row['tflm_arena']:.2f}",
        )
        for row in sorted(rows, key=lambda row: (row["core"], row["network"], row["prefer"]))
    ]  # fmt: skip
    lines = ["| " + " | ".join(cell) + " |" for cell in (HEAD, ("---",) * len(HEAD), *cells)]
    return _PAGE.format(table="\n".join(lines))


def main(_: Sequence[str]) -> None:
    for core in FLAGS.cores if not FLAGS.page_only else ():
        qemu.require(qemu.cores.get(core))
    for name, make in networks().items() if not FLAGS.page_only else ():
        if FLAGS.networks is None or name in FLAGS.networks:
            run(name, make)
    PAGE.write_text(page(rows_there()), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
