"""Every export target for every trained student in models/, built and run. Writes docs/export_targets.md.

    python benchmarks/export_targets.py --data_dir=DATA

Accuracy is of all 2,425 test chips of MSTAR-10. `differs` is the largest difference from Keras over those chips, as a
part of Keras' largest output. TFLite Micro and LiteRT's reference kernels are compared on 200 chips, in steps of the
int8 output (LSB). Vela's figures are its estimates for an Ethos-U85 with 256 MACs. hls4ml's C++ (16-bit activations,
12-bit weights) is compiled with g++ and runs bit by bit, on 500 chips drawn with a seed; a network that it does not
take is listed with the reason.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from experiments import DOCS, Runs, data_of, markdown, written_by

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.outputs import model_bytes
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.exporters import export, find, read_metadata
from orbit_kd.exporters.hls4ml.project import run_project
from orbit_kd.exporters.packed.reading import read_packed
from orbit_kd.models.saving import fingerprint, load_model
from orbit_kd.tflite.layers import int8_layers

FLAGS = flags.FLAGS
MODELS = Path(__file__).parent.parent / "models"
TARGETS = ("tflite_float32", "tflite_float16", "tflite_dynamic", "tflite_int8", "tflite_int16x8", "tflm",
           "vela:ethos-u85-256", "onnx", "packed", "hls4ml")  # fmt: skip
flags.DEFINE_list("targets", list(TARGETS), "Targets to run.")
Row = dict[str, Any]


def networks() -> list[str]:
    """The folders of models/ that hold a student for MSTAR."""
    return sorted(p.parent.name for p in MODELS.glob("*mstar*/student.keras"))


@functools.cache
def student(name: str) -> tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray]:
    """The network, its training images, the test chips, their labels, and what Keras says of them."""
    told = read_metadata(MODELS / name / "student_tflite_int8.tflite")["preprocess"]
    data = data_of("mstar", **told)
    images, labels = (np.concatenate(part) for part in zip(*data.test.as_numpy_iterator(), strict=True))
    model = load_model(MODELS / name / "student.keras")
    return model, data.train, images, labels, model.predict(images, verbose=0)


def compared(outputs: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> Row:
    right, in_keras = (np.argmax(v, -1) == labels for v in (outputs, expected))
    return {
        "images": len(labels),
        "accuracy": round(float(right.mean()), 5),
        "keras": round(float(in_keras.mean()), 5),
        "differs": float(np.abs(outputs - expected).max() / np.abs(expected).max()),
    }


def run(name: str, target: str) -> Row:
    model, train, images, labels, expected = student(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"student{find(target)[0].suffix}")
        try:
            made = export(model, target, path=path, calibration=train)
        except InputError as error:
            return {"refused": error.what}
        row: Row = {"bytes": made.bytes}
        if target == "hls4ml":
            chosen = np.random.default_rng(0).choice(len(images), 500, replace=False)
            outputs = run_project(made.path.parent.parent, images[chosen])
            row |= compared(outputs, expected[chosen], labels[chosen])
            return row | {"seconds_of": made.details["seconds"], "adders": made.details["adders"]}
        if target == "packed":
            plain = export(model, "tflite_int8", path=Path(folder, "plain.tflite"), calibration=train)
            same = zip(read_packed(made.path), int8_layers(plain.path.read_bytes()), strict=True)
            exact = all(np.array_equal(a.kernel, b.kernel) for a, b in same)
            return row | {"exact": exact, "details": _plain(made.details)}
        if target.startswith("vela"):
            sparse = sum(bool(op["runs_2_4"]) for op in made.details["operators"])
            return row | {"runs_2_4": sparse, "details": _plain(made.details)}
        if target == "tflm":
            chosen = np.random.default_rng(0).choice(len(images), 200, replace=False)
            parity = tflm_parity(model_bytes(made), images[chosen])
            return row | {"lsb": parity.max_lsb, "images": parity.compared, "arena": parity.arena_bytes}
        return row | compared(runtimes.predict(made.path, images, runtime=find(target)[0].runtime), expected, labels)


def _plain(details: dict[str, Any]) -> Row:
    """The single figures among the details."""
    return {k: v for k, v in details.items() if isinstance(v, (int, float, str)) or v is None}


def told(row: Row) -> str:
    """What a target has to say besides accuracy."""
    if "refused" in row:
        return row["refused"]
    details = row.get("details", {})
    if "lsb" in row:
        return f"at most {row['lsb']} LSB from LiteRT on {row['images']} chips, arena {row['arena']:,} bytes"
    if "runs_2_4" in row:
        return (f"{details['cycles']:,} cycles, {details['inferences_per_second']:.0f} inferences a second, "
                f"SRAM {details['sram_bytes']:,} bytes, operators that run 2:4: {row['runs_2_4']}")  # fmt: skip
    if "exact" in row:
        part = "" if details["packed_ratio"] is None else f"; {details['packed_ratio']:.3f} of them in 2:4 layers"
        return (f"kernels take {details['kernel_bytes']:,} of {details['dense_bytes']:,} bytes "
                f"({details['ratio']:.3f}{part}), unpacked {'exactly' if row['exact'] else 'NOT EXACTLY'}")  # fmt: skip
    if "seconds_of" in row:
        counted = [v for v in row["adders"].values() if "adders" in v]
        adders = f", {sum(v['adders'] for v in counted):,} adders in {len(counted)} small kernels" if counted else ""
        return f"on {row['images']} chips, where Keras has {row['keras']:.2%}{adders}"
    return ""


def page(runs: Runs) -> str:
    intro = [p.replace("\n", " ").strip() for p in (__doc__ or "").split("\n\n")[2:]]
    parts = [
        "# Every target on three networks",
        written_by("python benchmarks/export_targets.py --data_dir=DATA", "export_targets"),
        *intro,
    ]
    for name in networks():
        body = []
        for target in TARGETS:
            for row in runs.find(model=name, target=target)[-1:]:
                differs, accuracy = row.get("differs"), row.get("accuracy")
                body.append([f"`{target}`", f"{row['bytes']:,}" if "bytes" in row else "-",
                             "-" if accuracy is None else f"{accuracy:.2%}",
                             "-" if differs is None else f"{differs:.1e}", told(row)])  # fmt: skip
        if not body:
            continue
        keras_says = [r["keras"] for r in runs.find(model=name, target="tflite_float32")][-1:]
        title = f"## [{name}](../models/{name}/README.md)"
        title += "".join(f"\n\nKeras: {value:.2%}." for value in keras_says)
        parts.append(title + "\n\n" + markdown(["target", "bytes", "accuracy", "differs", ""], body))
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs = Runs("export_targets")
    for target in FLAGS.targets:
        for name in networks():
            digest = fingerprint(load_model(MODELS / name / "student.keras"))[:16]
            runs.once({"model": name, "weights": digest, "target": target}, functools.partial(run, name, target))
    (DOCS / "export_targets.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
