"""What each way to compress gains on each runtime, every cell measured. Writes docs/runtimes.md.

    python benchmarks/runtime_patterns.py --data_dir=DATA

A quarter-width VGG-16, trained on MSTAR at 32x32, changed at one shot and not retrained: sizes, cycles and milliseconds
do not ask for accuracy. Each cell is the unchanged network's figure divided by the changed one's: 2 is half the bytes,
or twice as fast; 1 is nothing gained.

int8 file and gzip: the `tflite_int8` file. CPU: LiteRT with XNNPACK on one thread of this machine, batch 1, the files
in turn in one process, the median of the ratios within a turn, with its quartiles. sparse-encoded: the same weights
converted with `Optimize.EXPERIMENTAL_SPARSITY` (never hand such a file to TFLite Micro or Vela). TFLM: arena and flash
as TFLite Micro measures them, flash also with its lookup-table compression. Vela: estimates of Arm's compiler,
`--optimise Size`. packed: `weights.bin` of the target `packed` in the pattern that fits. adders: da4ml's count of the
kernels with at most 5,000 weights.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from absl import app, flags
from experiments import DOCS, Runs, markdown, small_setting, written_by

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.evaluation.latency import latency
from orbit_kd.exporters import export
from orbit_kd.exporters.hls4ml.adders import count_adders
from orbit_kd.exporters.packed.reading import read_packed

FLAGS = flags.FLAGS
flags.DEFINE_integer("runs", 200, "Rounds of the timing.")
flags.DEFINE_list("parts", ["sizes", "times"], "sizes, times (on a machine that does nothing else).")

WAYS = (
    "dense",
    "half of the filters",
    "2:4",
    "uhp 4:8",
    "80% magnitude",
    "16 values a channel",
    "2:4 and half of the filters",
)
PACKED = {
    "2:4": "packed:2:4",
    "uhp 4:8": "packed:4:8",
    "80% magnitude": "packed:2:4",
    "2:4 and half of the filters": "packed:2:4",
}
ADDER_LIMIT = 5_000
CELLS = {
    "int8": "int8 file", "gzip": "int8 file, gzip", "float": "float32 file", "encoded": "float32 file, sparse-encoded",
    "tflm": "TFLM flash", "tflm_lut": "TFLM flash, lookup tables", "arena": "TFLM arena",
    "arena_lut": "TFLM arena, lookup tables",
    "u85_cycles": "U85-256 cycles", "u85_bytes": "U85-256 weight bytes", "u55_cycles": "U55-128 cycles",
    "u55_bytes": "U55-128 weight bytes", "packed": "packed weights", "adders": "FPGA adders",
}  # fmt: skip


@functools.cache
def changed(way: str) -> keras.Model:
    teacher = small_setting("vgg16")[1]
    model = teacher
    if "half of the filters" in way:
        model = okd.remove_filters(teacher, okd.plan_removal(teacher, ratio=0.5, round_to=8))
    if way.startswith("16 values"):
        return okd.strip_clusters(okd.cluster(model, clusters=16))
    pattern = {"2:4": ("2:4", {}), "uhp 4:8": ("uhp", {}), "80% magnitude": ("magnitude", {"sparsity": 0.8})}
    found = next((v for k, v in pattern.items() if way.startswith(k)), None)
    return okd.strip(okd.sparsify(model, found[0], **found[1]), finish=True) if found else model


def sparse_encoded(model: keras.Model, folder: str) -> int:
    """Bytes of a float file with TFLite's own encoding of zeros."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    return Path(folder, "encoded.tflite").write_bytes(converter.convert())


def sizes(way: str) -> dict[str, float | None]:
    model, images = changed(way), small_setting("vgg16")[0].train
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        int8 = export(model, "tflite_int8", path=Path(folder, "m.tflite"), calibration=images)
        found |= {"int8": int8.bytes, "gzip": len(gzip.compress(int8.path.read_bytes(), 9))}
        found["float"] = export(model, "tflite_float32", path=Path(folder, "f.tflite")).bytes
        found["encoded"] = sparse_encoded(model, folder)
        micro = export(int8, "tflm", path=Path(folder, "tflm"))
        found |= {"tflm": micro.bytes, "arena": micro.details["arena_bytes"]}
        try:
            tables = export(int8, "tflm", path=Path(folder, "lut"), compress=True)
            found |= {"tflm_lut": tables.bytes, "arena_lut": tables.details["arena_bytes"]}
        except InputError:  # no kernel has few enough values
            found |= {"tflm_lut": None, "arena_lut": None}
        for key, name in (("u85", "vela:ethos-u85-256"), ("u55", "vela:ethos-u55-128")):
            npu = export(int8, name, path=Path(folder, f"{key}.tflite"), both_forms=False)
            found |= {f"{key}_cycles": npu.details["cycles"], f"{key}_bytes": npu.details["weight_bytes"]}
        packed = export(int8, PACKED.get(way, "packed"), path=Path(folder, "packed"), images=False)
        found["packed"] = packed.bytes
        kernels = {la.name: la.kernel.reshape(len(la.kernel), -1).T for la in read_packed(packed.path)}
    if way != "dense" and "filters" not in way:
        counted = count_adders(kernels, limit=ADDER_LIMIT)
        both = [c for c in counted.values() if "adders" in c]
        found["adders"] = sum(c["adders"] for c in both) / sum(c["dense_adders"] for c in both)  # against its own twin
    return found


def times(kind: str) -> dict[str, Any]:
    images = small_setting("vgg16")[0].train
    with tempfile.TemporaryDirectory() as folder:
        files = [export(changed(way), kind, path=Path(folder, f"{i}.tflite"), calibration=images).path
                 for i, way in enumerate(WAYS)]  # fmt: skip
        measured = latency(files, runs=FLAGS.runs, threads=1)
    return {way: dataclasses.asdict(t) for way, t in zip(WAYS, measured, strict=True)}


def page(runs: Runs) -> str:
    base = runs.find(part="sizes", way="dense")
    body = []
    for way in WAYS[1:]:
        found = runs.find(part="sizes", way=way)
        if not base or not found:
            continue
        line = [way]
        for key in CELLS:
            value, dense = found[-1].get(key), base[-1].get(key)
            if key == "adders":
                line.append(f"{1 / value:.2f}" if value else "-")
            elif key.endswith("_lut"):
                line.append(f"{base[-1][{'tflm_lut': 'tflm'}.get(key, 'arena')] / value:.2f}" if value else "-")
            else:
                line.append(f"{dense / value:.2f}" if value and dense else "-")
        body.append(line)
    clocks = []
    for kind, title in (("tflite_float32", "float32"), ("tflite_int8", "int8")):
        for row in runs.find(part="times", kind=kind)[-1:]:
            clocks.append(
                [title, *(f"{row[w]['ratio']:.2f} ({row[w]['low']:.2f} to {row[w]['high']:.2f})" for w in WAYS[1:])]
            )
    intro = (__doc__ or "").split("\n\n")
    turned = [list(line) for line in zip(*[["", *CELLS.values()], *body], strict=True)]
    parts = [
        "# Runtime by pattern: what really gets smaller or faster",
        written_by("python benchmarks/runtime_patterns.py --data_dir=DATA", "runtime_patterns"),
        *(p.replace("\n", " ").strip() for p in intro[2:]),
        "## Sizes and cycles",
        markdown(turned[0], turned[1:]),
        "`-`: does not apply. Adders of the zeros are against the same kernels without zeros; filters change the "
        "shapes, so that there is no such twin. TFLM with lookup tables is against TFLM without. Recorded before equal "
        "vectors were stored once in a .tflite file, on both sides of each ratio.",
        "## Milliseconds on a CPU",
        markdown(["file", *WAYS[1:]], clocks) if clocks else "Not run yet.",
        READING.strip(),
    ]
    return "\n\n".join(parts) + "\n"


READING = """## How to read it

- Removing filters is the one thing that pays everywhere: files, arena, every processor, every compiler.
- 2:4 halves the cycles of an Ethos-U85; uniform 4:8 and unstructured zeros do not, as its hardware knows 2:4 alone. On
  a U55 any zeros save cycles here, because reading coded weights from flash is what takes the time.
- Zeros of any kind make no int8 file, no TFLite Micro image and no arena smaller, and no CPU faster. They show in
  `tflite_micro_coded` ([coded files](coded_files.md), not in these tables), after gzip, in Vela's coded weights, in
  packed weights where the pattern fits, and in adders; the column of 80% has more of them than the others and is not to
  be ranked with these.
- Few values pay after gzip and in TFLite Micro's lookup tables; there they cost RAM, as kernels are decoded into the
  arena.
"""


def main(_: list[str]) -> None:
    runs = Runs("runtime_patterns")
    for way in WAYS if "sizes" in FLAGS.parts else ():
        runs.once({"part": "sizes", "way": way}, functools.partial(sizes, way))
    for kind in ("tflite_float32", "tflite_int8") if "times" in FLAGS.parts else ():
        runs.once({"part": "times", "kind": kind, "runs": FLAGS.runs}, functools.partial(times, kind))
    (DOCS / "runtimes.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
