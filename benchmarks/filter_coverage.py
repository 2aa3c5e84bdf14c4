"""Filter removal on every family of tf_keras.applications, at ratio 0.5, against the oracle: docs/filter_coverage.md.

    python benchmarks/filter_coverage.py [NAME ...]

Random weights (batch statistics and biases too); "difference" is max|a - b| / max|a| between the original with the
removed channels set to zero and the small network. The small network is also saved, loaded and converted to TFLite.
One JSON line per finished family under results/; finished ones are not run again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import numpy as np
import tf_keras as keras
from oracle import difference, inputs_of, randomize

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.exporters import export
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters

RESULTS, PAGE = HERE / "results" / "filter_coverage.jsonl", HERE.parent / "docs" / "filter_coverage.md"
FAMILIES = {
    "VGG16": 64, "ResNet50": 64, "ResNet50V2": 64, "ResNetRS50": 64, "RegNetX002": 64, "RegNetY002": 64,
    "MobileNet": 64, "MobileNetV2": 64, "MobileNetV3Small": 64, "MobileNetV3Large": 64, "DenseNet121": 64,
    "EfficientNetB0": 64, "EfficientNetV2B0": 64, "Xception": 96, "InceptionV3": 96, "InceptionResNetV2": 96,
    "NASNetMobile": 224, "ConvNeXtTiny": 64,
}  # fmt: skip
HEAD = """# Filter removal over `tf_keras.applications`

Written by `python benchmarks/filter_coverage.py`: ratio 0.5, every variable random. `difference` is the oracle's
max|a - b| / max|a|; "loads" and "TFLite": the small network was saved, loaded to equal outputs, and converted.

Seconds are of one run each, beside other work; docs/filter_removal.md has ratios from interleaved runs.

| network | layers | groups | trace s | plan s | rebuild s | difference | params | MACs | loads | TFLite | kept whole |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def seconds(function) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def reloads(model: keras.Model, folder: str) -> str:
    """Saves and loads a model, and compares the outputs."""
    model.save(f"{folder}/m.keras")
    try:
        loaded = keras.models.load_model(f"{folder}/m.keras", compile=False)
    except (TypeError, ValueError):
        return "differ"
    (x,) = inputs_of(model, batch=2)
    return "equal" if np.array_equal(loaded(x, training=False), model(x, training=False)) else "differ"


def measure(name: str) -> dict:
    size = FAMILIES[name]
    head = {} if name == "NASNetMobile" else {"classifier_activation": None}
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10, **head)
    randomize(model)
    trace, graph = seconds(lambda: ChannelGraph(model))
    plan_seconds, plan = seconds(lambda: plan_removal(model, ratio=0.5))
    rebuild, student = seconds(lambda: remove_filters(model, plan))
    with tempfile.TemporaryDirectory() as folder:
        loads = reloads(student, folder)
        if loads != "equal" and reloads(model, folder) != "equal":
            loads = "neither does the original"  # a fault of tf_keras, not of the removal
        tflite = export(student, "tflite_float32", path=f"{folder}/s.tflite").bytes
    return {
        "name": name,
        "layers": len(graph.layers),
        "groups": len(graph.groups),
        "trace": trace,
        "plan": plan_seconds,
        "rebuild": rebuild,
        "difference": difference(model, student, plan),
        "params": plan.params,
        "macs": plan.macs,
        "loads": loads,
        "tflite_bytes": tflite,
        "kept": sorted({g.reason.split(": ")[-1] for g in plan.groups if g.reason}),
    }


def page(rows: list[dict]) -> str:
    lines = [HEAD]
    for r in rows:
        ok = r["difference"] <= 1e-4 and r["params"][1] <= 0.55 * r["params"][0] and r["loads"] != "differ"
        lines.append(
            f"| {r['name']}{'' if ok else ' (fails)'} | {r['layers']} | {r['groups']} | {r['trace']:.2f} "
            f"| {r['plan']:.2f} | {r['rebuild']:.2f} | {r['difference']:.0e} | {r['params'][1] / r['params'][0]:.3f} "
            f"| {r['macs'][1] / r['macs'][0]:.3f} | {r['loads']} "
            f"| {r['tflite_bytes']:,} bytes | {', '.join(r['kept'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    done = {r["name"]: r for r in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.is_file() else {}
    for name in sys.argv[1:] or FAMILIES:
        if name in done:
            continue
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        done[name] = measure(name)
        with RESULTS.open("a") as file:
            file.write(json.dumps(done[name]) + "\n")
        print(json.dumps(done[name]), flush=True)
    PAGE.write_text(page([done[n] for n in FAMILIES if n in done]))


if __name__ == "__main__":
    main()
