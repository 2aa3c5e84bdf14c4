"""What 2:4 weights gain on an Arm Ethos-U NPU, by Vela's estimates. Writes docs/vela_sparsity.md.

    python benchmarks/vela_sparsity.py --data_dir=DATA --models_dir=MODELS --students_dir=out/benchmarks/sparsity

All cycles are estimates of Arm's compiler Vela for a batch of 1, not measurements on a chip; bytes are those it wrote.
The board is Vela's `Ethos_U85_SYS_DRAM_Mid` with `Sram_Only` (1 GHz, weights and feature maps on the chip) and
`--optimise Size` where nothing else is said; U55 is `Ethos_U55_High_End_Embedded` and U65 `Ethos_U65_Embedded`, weights
in flash (`Shared_Sram`). Networks take 64x64x1 images.

The students are quarter-width VGG-16s that were trained on MSTAR with the full VGG-16 as their teacher by
`benchmarks/sparsity_table.py` (rows dense/dst and 2:4/dst, seed 0), as int8 files calibrated on 256 training images.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import DOCS, STUDENTS_FROM, Runs, data_of, markdown, teacher_of, written_by

from orbit_kd.exporters import export
from orbit_kd.models.networks import build
from orbit_kd.models.saving import load_model
from orbit_kd.runtimes.execution import predict
from orbit_kd.sparsity.sparsify import sparsify, strip

FLAGS = flags.FLAGS
flags.DEFINE_string("students_dir", "out/benchmarks/sparsity", "Folder with the trained students.")

U85 = "vela:ethos-u85-256"
FLASH = {"system_config": "Ethos_U85_SYS_Flash_High", "memory_mode": "Shared_Sram"}
STUDENTS = {"dense": "student_mstar_dense_dst_0.keras", "2:4": "student_mstar_2_4_dst_0.keras"}
WIDTHS = {"vgg16, width 1": 1.0} | {f"vgg16, width 1/{n}": 1 / n for n in (2, 4, 8, 16)}
CHANNELS = {f"plain, {n} channels": n for n in (32, 24, 16, 8)}
KEPT = ("cycles", "npu_cycles", "inferences_per_second", "sram_bytes", "weight_bytes", "source_weight_bytes")
OP = ("index", "cycles", "weight_bytes", "runs_2_4")
MORE = ("runs_on", "cycles_dense", "cycles_2_4", "weight_bytes_dense", "why_not_2_4")
Row = dict[str, Any]


def plain(channels: int) -> keras.Model:
    """Nine convolutions of the same width on 64, 32 and 16 pixels, then the logits."""
    image = x = keras.Input((64, 64, 1))
    for _ in range(3):
        for _ in range(3):
            x = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def network(name: str, form: str) -> keras.Model:
    """A trained network, or a new one, 2:4 at one shot where asked: cycles do not depend on training."""
    if name == "teacher":
        return teacher_of("mstar")
    if name == "student":
        return load_model(Path(FLAGS.students_dir, STUDENTS[form]))
    keras.utils.set_random_seed(0)
    if name in CHANNELS:
        model = plain(CHANNELS[name])
    else:
        model = build(name.split(",")[0], (64, 64, 1), classes=10, width=WIDTHS.get(name, 0.5 if "," in name else 1.0))
    return model if form == "dense" else strip(sparsify(model, "2:4", schedule="one_shot"))


@functools.cache
def data() -> Any:
    return data_of("mstar")


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp())


@functools.cache
def int8(name: str, form: str) -> Any:
    trained = name in ("teacher", "student")
    path = folder() / f"{name}_{form}.tflite".replace("/", "_").replace(" ", "_")
    return export(
        network(name, form), "tflite_int8", path=path, calibration=data().train, samples=256 if trained else 8
    )


def compiled(name: str, form: str, npu: str, **options: Any) -> Row:
    """What Vela says of a network; of each operator with a kernel what the page shows."""
    source = int8(name, form)
    shown = (name == "student" or name in OTHERS) and npu == U85 and not options
    artifact = export(source, npu, path=folder() / "npu.tflite", both_forms=shown, **options)
    details = artifact.details
    rows = []
    for op in details["operators"]:
        if op["op"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            layer = op["name"].split(";")[-1].split("/")[-2:-1] or ["logits"]  # "vgg16/fc1/MatMul" is fc1
            label = {"name": layer[0], "depthwise": op["op"].startswith("DEPTH")}
            more = {key: op[key] for key in MORE if op.get(key)} if shown else {}
            rows.append(label | {key: op[key] for key in OP} | more)
    flash = details["on_chip_flash_bytes"] + details["off_chip_flash_bytes"]
    figures = {key: details[key] for key in KEPT}
    return {**figures, "flash_bytes": flash, "tflite_bytes": source.bytes, "bytes": artifact.bytes, "operators": rows}


def measured(name: str, form: str) -> Row:
    """Accuracy of the int8 file on the test split, and the bytes of the float file."""
    batches = list(data().test.as_numpy_iterator())
    logits = predict(int8(name, form).path, np.concatenate([x for x, _ in batches]), threads=2)
    float_file = export(network(name, form), "tflite_float32", path=folder() / "float.tflite")
    right = logits.argmax(-1) == np.concatenate([y for _, y in batches])
    return {"test": round(float(right.mean()), 5), "float_bytes": float_file.bytes}


def together(dense: Row, sparse: Row) -> tuple[float, float, int, int]:
    """Over the operators that run 2:4: cycles dense / 2:4, bytes 2:4 / dense, how many; and how many have kernels."""
    before = {op["index"]: op for op in dense["operators"]}
    pairs = [(before[op["index"]], op) for op in sparse["operators"] if op["runs_2_4"]]
    eligible = sum(not op["depthwise"] for op in sparse["operators"])
    if not pairs:
        return float("nan"), float("nan"), 0, eligible
    cycles = sum(d["cycles"] for d, _ in pairs) / sum(s["cycles"] for _, s in pairs)
    size = sum(s["weight_bytes"] for _, s in pairs) / sum(d["weight_bytes"] for d, _ in pairs)
    return cycles, size, len(pairs), eligible


def pair(runs: Runs, **settings: Any) -> tuple[Row, Row] | None:
    """The dense run and the 2:4 run of the same settings."""
    found = [runs.find(part="vela", form=form, **settings) for form in ("dense", "2:4")]
    return (found[0][0], found[1][0]) if all(found) else None


def summary(runs: Runs, cases: dict[str, Row]) -> str:
    body = []
    for label, settings in cases.items():
        if both := pair(runs, **settings):
            dense, sparse = both
            gain, size, n, of = together(dense, sparse)
            part = [f"{gain:.2f}x", f"{size:.3f}"] if n else ["-", "-"]
            body.append([label, f"{n} of {of}", *part, f"{dense['cycles']:,}",
                         f"{sparse['cycles']:,}", f"{dense['cycles'] / sparse['cycles']:.2f}x",
                         f"{sparse['weight_bytes'] / dense['weight_bytes']:.3f}",
                         f"{dense['sram_bytes'] / 1024:.0f} / {sparse['sram_bytes'] / 1024:.0f}"])  # fmt: skip
    head = ["", "run 2:4", "their cycles", "their bytes", "cycles, dense", "cycles, 2:4", "whole network",
            "all weight bytes", "SRAM KiB, dense / 2:4"]  # fmt: skip
    return markdown(head, body)


def operators(row: Row, dense: Row | None = None) -> str:
    """One line an operator; bytes of the dense student where it is given, of the dense form where not."""
    before = {op["index"]: op["weight_bytes"] for op in dense["operators"]} if dense else {}

    def line(op: Row) -> list[str]:
        small = before.get(op["index"], op.get("weight_bytes_dense"))
        numbers = (op.get("cycles_dense"), op.get("cycles_2_4"), small, op["weight_bytes"])
        shown = ["-" if n is None else f"{n:,}" for n in numbers]
        return [op["name"], "yes" if op["runs_2_4"] else "no", *shown, op.get("why_not_2_4", "")]

    other = "bytes, dense student" if dense else "bytes, dense form"
    head = ["operator", "runs 2:4", "cycles dense", "cycles 2:4", other, "bytes as compiled", "why not"]
    return markdown(head, map(line, row["operators"]))


def curve(runs: Runs) -> str:
    body = []
    for name in [*WIDTHS, *CHANNELS]:
        line: list[str] = [name]
        if both := pair(runs, network=name, npu=U85, options={}):
            gain, size, n, of = together(*both)
            line += [f"{both[0]['cycles']:,}", f"{n} of {of}", f"{gain:.2f}x", f"{size:.3f}",
                     f"{both[0]['cycles'] / both[1]['cycles']:.2f}x"]  # fmt: skip
            fast = pair(runs, network=name, npu=U85, options={"optimise": "Performance"})
            line.append(f"{fast[0]['cycles'] / fast[1]['cycles']:.2f}x" if fast else "-")
            line.append(f"{both[1]['weight_bytes'] / both[0]['weight_bytes']:.3f}")
            for npu in ("vela:ethos-u55-256", "vela:ethos-u65-512"):
                if other := pair(runs, network=name, npu=npu, options={}):
                    line.append(f"{other[0]['cycles'] / other[1]['cycles']:.2f}x, "
                                f"{other[1]['weight_bytes'] / other[0]['weight_bytes']:.3f}")  # fmt: skip
            body.append(line)
    head = ["network", "U85 cycles, dense", "run 2:4", "their cycles", "their bytes", "whole network",
            "with Performance", "all weight bytes", "U55-256: cycles, bytes", "U65-512: cycles, bytes"]  # fmt: skip
    return markdown(head, body)


def factors(runs: Runs) -> str:
    """Teacher -> quarter width -> 2:4, as cycles and as bytes."""
    steps = [("teacher", "dense"), ("student", "dense"), ("student", "2:4")]
    rows = [runs.find(part="vela", network=n, form=f, npu=U85, options={}) for n, f in steps]
    files = [runs.find(part="file", network=n, form=f) for n, f in steps]
    if not (all(rows) and all(files)):
        return "Not run yet: the trained 2:4 student is missing."
    (teacher, dense, sparse), info = [r[0] for r in rows], [f[0] for f in files]
    names = ("VGG-16 (teacher)", "dense student", "2:4 student")
    head = ["network", "float32 file", "int8 file", "compiled file", "encoded weights", "cycles", "inferences/s",
            "test accuracy of the int8 file, %"]  # fmt: skip
    table = [
        [name, f"{i['float_bytes']:,}", f"{r['tflite_bytes']:,}", f"{r['bytes']:,}", f"{r['weight_bytes']:,}",
         f"{r['cycles']:,}", f"{r['inferences_per_second']:,.0f}", f"{100 * i['test']:.2f}"]
        for name, i, r in zip(names, info, (teacher, dense, sparse), strict=True)
    ]  # fmt: skip
    cycles = [row["cycles"] for row in (teacher, dense, sparse)]
    stored = [info[0]["float_bytes"], *(row["bytes"] for row in (teacher, dense, sparse))]
    coded = teacher["tflite_bytes"] / stored[1]
    steps_body = [
        ["int8", "float32 VGG-16 -> int8", "-", f"{stored[0] / teacher['tflite_bytes']:.2f}x"],
        ["weight coder", "int8 file -> compiled file", "-", f"{coded:.2f}x"],
        ["filters", "VGG-16 -> student", f"{cycles[0] / cycles[1]:.2f}x", f"{stored[1] / stored[2]:.2f}x"],
        ["2:4", "dense student -> 2:4 student", f"{cycles[1] / cycles[2]:.2f}x", f"{stored[2] / stored[3]:.2f}x"],
        ["all", "", f"{cycles[0] / cycles[2]:.1f}x", f"{stored[0] / stored[3]:.1f}x"],
    ]
    return markdown(head, table) + "\n\n" + markdown(["step", "", "cycles", "stored bytes"], steps_body)


def verdict(runs: Runs) -> str:
    both = pair(runs, network="student", npu=U85, options={})
    if not both:
        return "**The trained 2:4 student has not been measured yet.**"
    gain, size, n, of = together(*both)
    return (
        f"Trained student, U85-256: {n} of {of} convolutions and dense layers run 2:4. Together they take {gain:.2f}x "
        f"fewer cycles (aim: 1.75, {'reached' if gain >= 1.75 else 'missed'}) and {size:.3f} of the encoded bytes of "
        f"the dense student (aim: 0.6, {'reached' if size <= 0.6 else 'missed'}). The whole network: "
        f"{both[0]['cycles'] / both[1]['cycles']:.2f}x fewer cycles. Bytes against the weights as they are in the int8 "
        f".tflite file, not coded: {both[1]['weight_bytes'] / both[1]['source_weight_bytes']:.3f}; of the dense "
        f"student {both[0]['weight_bytes'] / both[0]['source_weight_bytes']:.3f}, as Vela's coder does not shorten "
        "weights without zeros."
    )


CASES: dict[str, Row] = {
    "U85-256, all on the chip": {"npu": U85, "options": {}},
    "the same, Performance": {"npu": U85, "options": {"optimise": "Performance"}},
    "U85-256, weights in flash (0.5 GB/s)": {"npu": U85, "options": FLASH},
    "the same, Performance ": {"npu": U85, "options": FLASH | {"optimise": "Performance"}},
    **{f"U85-{n}, all on the chip": {"npu": f"vela:ethos-u85-{n}", "options": {}} for n in (128, 512, 1024, 2048)},
    "U55-256": {"npu": "vela:ethos-u55-256", "options": {}},
    "U65-512": {"npu": "vela:ethos-u65-512", "options": {}},
}
OTHERS = ("resnet20", "mobilenet_v1, half width")


def page(runs: Runs) -> str:
    intro = [p.replace("\n", " ").strip() for p in (__doc__ or "").split("\n\n")]
    student = {label: {"network": "student", **case} for label, case in CASES.items()}
    parts = [
        "# 2:4 weights on the Ethos-U",
        written_by(intro[1], "vela_sparsity") + " " + STUDENTS_FROM,
        *intro[2:],
        verdict(runs),
        "## Trained 2:4 student against the same student dense",
        "Cycles as dense / 2:4 (more is better), bytes as 2:4 / dense (less is better): first of the operators that "
        "run 2:4 (of all convolutions and dense layers), then of the whole network, pooling included. U55 and U65 have "
        "no 2:4; what they gain are bytes, and cycles where reading weights from flash is what takes the time. With "
        "`--optimise Performance` Vela may store weights in its fast format, which saves no bytes.",
        summary(runs, student),
    ]
    if both := pair(runs, network="student", npu=U85, options={}):
        parts += [
            "## Operator by operator, U85-256",
            "Both forms are Vela's: an operator that runs 2:4 was compiled once more with one group of its kernel "
            "broken, one that does not with 2:4 weights, and with `--optimise Performance` where Size prefers the "
            "dense form. The first convolution has one input channel: padded to four it keeps the rule in any network, "
            "and gains nothing.",
            operators(both[1], both[0]),
        ]
    parts += [
        "## How much is left to gain as filters get fewer",
        "Untrained networks, 2:4 at one shot: cycles do not depend on training; bytes do a little. `vgg16, width 1/4` "
        "is the shape of the students. `plain` is nine 3x3 convolutions of one width, a pooling after each three.",
        curve(runs),
        "Why the gain falls: an operator takes the longer of its multiplications and of its output stage (`mac_cycles` "
        "and `ao_cycles` in Vela's database), and 2:4 halves the first alone. With few input channels the second is "
        "the longer. The first convolution and pooling gain nothing in any network.",
    ]
    for name in OTHERS:
        if both := pair(runs, network=name, npu=U85, options={}):
            gain, size, n, of = together(*both)
            left = [op for op in both[1]["operators"] if not op["runs_2_4"]]
            parts += [
                f"### {name}: what does not run 2:4",
                f"Untrained, one shot, U85-256: {n} of {of} convolutions and dense layers run 2:4, {gain:.2f}x fewer "
                f"cycles and {size:.3f} of the bytes over them; the whole network "
                f"{both[0]['cycles'] / both[1]['cycles']:.2f}x. Where the dense form is smaller, `--optimise Size` "
                "takes it; `--optimise Performance` takes the one of fewer cycles.",
                operators({"operators": left}),
            ]
    parts += [
        "## The compressed student against the original VGG-16",
        "U85-256. The factors of a column multiply to its last line, up to rounding. The U85 runs no float, so int8 "
        "has no factor in cycles. The student has a quarter of the channels everywhere.",
        factors(runs),
    ]
    return "\n\n".join(parts) + "\n"


def main(_: list[str]) -> None:
    runs = Runs("vela_sparsity")

    def once(run: Callable[..., Row], part: str, name: str, form: str, **how: Any) -> None:
        if name == "student" and not Path(FLAGS.students_dir, STUDENTS[form]).is_file():
            print(f"{STUDENTS[form]} is not in --students_dir yet")
            return
        options = how.get("options", {})
        work = functools.partial(run, name, form, how["npu"], **options) if how else functools.partial(run, name, form)
        runs.once({"part": part, "network": name, "form": form, **how}, work)

    for form in STUDENTS:
        for name in [*WIDTHS, *CHANNELS]:
            for npu in (U85, "vela:ethos-u55-256", "vela:ethos-u65-512"):
                once(compiled, "vela", name, form, npu=npu, options={})
            once(compiled, "vela", name, form, npu=U85, options={"optimise": "Performance"})
        for name in OTHERS:
            once(compiled, "vela", name, form, npu=U85, options={})
        for case in CASES.values():
            once(compiled, "vela", "student", form, **case)
        once(measured, "file", "student", form)
    once(compiled, "vela", "teacher", "dense", npu=U85, options={})
    once(measured, "file", "teacher", "dense")
    (DOCS / "vela_sparsity.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
