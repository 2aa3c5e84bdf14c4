"""Seconds of a sensitivity scan against the straightforward way. Writes docs/sensitivity_speed.md and a picture.

    python benchmarks/sensitivity_speed.py --data_dir=DATA --models_dir=MODELS

The full VGG-16 on MSTAR at 64x64, its 13 groups of convolution filters x 9 ratios, 300 validation images in batches of
50, one run. The straightforward way masks a copy of the model, compiles it and calls `evaluate`, for each of the 117
points. Claims: at least 2.3 times faster with the same numbers; at least 6 times where points below half of the whole
network's accuracy count as lost (`lost=0.5`), with curves within half a point wherever they are above that.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras
from absl import app, flags
from experiments import DOCS, RESULTS, data_of, markdown, teacher_of

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.removal.scorer import Scorer
from orbit_kd.search.scan import Scan
from orbit_kd.search.sensitivity import KINDS, RATIOS, sensitivity

FLAGS = flags.FLAGS
flags.DEFINE_list("measure", ["one", "three"], "What to measure anew: one scan's ways, and three scans for one.")
IMAGES, LOST, TOLERANCE = 300, 0.5, 0.1
SEARCH = {"images": 500, "ratios": (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96), "lost": LOST}  # what `compress` scans
WAYS = ("mask, compile, evaluate", "masks, from the input each time (memory=0)", "sensitivity",
        f"sensitivity, lost={LOST}")  # fmt: skip


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def straightforward(model: keras.Model, x: np.ndarray, y: np.ndarray, names: list[str]) -> dict[str, list[float]]:
    """Mask, compile, evaluate, for each point."""
    graph = ChannelGraph(model)
    score = Scorer(graph, name="l1_norm")
    found: dict[str, list[float]] = {}
    for group in graph.groups:
        if group.name not in names:
            continue
        order = np.argsort(score(group), kind="stable")
        for ratio in RATIOS:
            gone = order[: round(group.width * ratio)]
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            layer = copy.get_layer(group.name)
            kernel, *rest = layer.get_weights()
            kernel[..., gone] = 0
            layer.set_weights([kernel, *(np.where(np.isin(np.arange(len(v)), gone), 0, v) for v in rest)])
            norm = copy.get_layer(group.name.replace("conv", "bn"))
            gamma, beta, mean, variance = norm.get_weights()
            gamma[gone] = beta[gone] = 0
            norm.set_weights([gamma, beta, mean, variance])
            copy.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            found.setdefault(group.name, []).append(copy.evaluate(x, y, batch_size=50, verbose=0)[1])
    return found


def worst(scan: Scan, truth: dict[str, list[float]], floor: float) -> float:
    """Largest difference to the straightforward way in points, of what is above the floor there."""
    pairs = [(a, b) for name in truth for a, b in zip(scan[name].accuracy, truth[name], strict=True)]
    return 100 * max(abs(max(a, floor) - max(b, floor)) for a, b in pairs)


def measure() -> dict[str, Any]:
    model = teacher_of("mstar")
    x, y = (np.concatenate(v)[:IMAGES] for v in zip(*data_of("mstar").val.as_numpy_iterator(), strict=True))
    batches = [(x[i : i + 50], y[i : i + 50]) for i in range(0, IMAGES, 50)]
    names = [g.name for g in ChannelGraph(model).groups if "_conv" in g.name]
    others = [g.name for g in ChannelGraph(model).groups if g.name not in names]
    model(x[:50], training=False)  # warm-up
    slow, truth = timed(lambda: straightforward(model, x, y, names))
    fast, full = timed(lambda: sensitivity(model, batches, exclude=others))
    from_input, _ = timed(lambda: sensitivity(model, batches, exclude=others, memory=0))
    quick, early = timed(lambda: sensitivity(model, batches, exclude=others, lost=LOST))
    full.plot(DOCS / "sensitivity_mstar.png")
    seen = sum(sum(early[name].images) for name in names) / (len(names) * len(RATIOS) * IMAGES)
    differences = {WAYS[0]: 0.0, WAYS[2]: worst(full, truth, 0.0), WAYS[3]: worst(early, truth, LOST * full.accuracy)}
    return {"seconds": dict(zip(WAYS, (slow, from_input, fast, quick), strict=True)), "difference": differences,
            "seen": seen}  # fmt: skip


def measure_three() -> dict[str, Any]:
    """Filters alone with every point on every image, against filters, weights and bits with a tolerance."""
    model = teacher_of("mstar")
    batches = [(x, y) for x, y in data_of("mstar").val.as_numpy_iterator()]
    model(batches[0][0], training=False)  # warm-up
    alone, full = timed(lambda: sensitivity(model, batches, **SEARCH))
    seconds, scans = {}, {}
    for kind in KINDS:
        how = SEARCH | ({"ratios": None} if kind == "bits" else {})
        seconds[kind], scans[kind] = timed(lambda how=how, kind=kind: sensitivity(
            model, batches, of=kind, tolerance=TOLERANCE, **how))  # fmt: skip
    points = {kind: sum(len(c.ratios) for c in scan.curves) for kind, scan in scans.items()}
    return {"alone": alone, "points_alone": sum(len(c.ratios) for c in full.curves), "together": seconds,
            "points": points, "difference": apart(full, scans["filters"])}  # fmt: skip


def apart(full: Scan, sparse: Scan) -> float:
    """Largest difference in points between curves, read between their points, above the level that counts as lost."""
    floor, largest = LOST * full.accuracy, 0.0
    for a, b in zip(full.curves, sparse.curves, strict=True):
        read = np.interp(a.ratios, (0, *b.ratios), (sparse.accuracy, *b.accuracy)) if a.ratios else np.zeros(0)
        largest = max([largest, *np.abs(np.maximum(read, floor) - np.maximum(a.accuracy, floor))])
    return 100 * float(largest)


def three_in_words(result: dict[str, Any]) -> tuple[list[str], bool]:
    """The part of the page about three scans."""
    together = sum(result["together"].values())
    rows = [["filters, every point, on all images", f"{result['alone']:.1f}", result["points_alone"]]]
    rows += [[f"{kind}, tolerance={TOLERANCE}", f"{seconds:.1f}", result["points"][kind]]
             for kind, seconds in result["together"].items()]  # fmt: skip
    good = together <= result["alone"]
    return [
        "## Three scans for one",
        f"What `compress` scans: {len(SEARCH['ratios'])} ratios (2 to 6 bits), {SEARCH['images']} images, "
        f"lost={LOST}. With a tolerance the last point is measured first, others where the curve moves between two, "
        "and each on as many images as it takes to know the rise of the loss to the tolerance or a tenth.",
        markdown(["scan", "seconds", "points"], rows),
        f"Accuracy of the filters' curves, read between their points, is within {result['difference']:.1f} points "
        "above the level that counts as lost.",
        f"- filters, weights and bits together take no longer than filters did alone ({together:.1f} s): "
        + ("holds" if good else "does not hold"),
    ], good


def page(result: dict[str, Any]) -> tuple[str, bool]:
    """The page, and whether all claims hold."""
    seconds, difference = result["seconds"], result["difference"]
    slow, from_input, fast, quick = (seconds[way] for way in WAYS)
    body = [[way, f"{seconds[way]:.1f}", f"{slow / seconds[way]:.2f}",
             f"{difference[way]:.2f}" if difference.get(way) is not None else ""] for way in WAYS]  # fmt: skip
    causes = [
        ["no copy, compile and trace for each point: one traced function, masks", slow - from_input],
        ["what lies before the group is computed once and kept", from_input - fast],
        [f"lost points are stopped early ({result['seen']:.0%} of the images of all points were computed)",
         fast - quick],
    ]  # fmt: skip
    claims = {
        "at least 2.3 times faster": slow / fast >= 2.3,
        "with the same numbers": difference[WAYS[2]] <= 1e-3,
        "at least 6 times with lost points": slow / quick >= 6,
        "within half a point above the lost level": difference[WAYS[3]] <= 0.5,
    }
    text = [
        "# How long a sensitivity scan takes",
        "Written by `python benchmarks/sensitivity_speed.py --data_dir=DATA --models_dir=MODELS`.",
        (__doc__ or "").split("\n\n")[2].strip().replace("\n", " "),
        markdown(["way", "seconds", "times faster", "largest difference, points"], body),
        "The difference of the last line is taken above the level that counts as lost.",
        markdown(["what saves", "seconds"], [[cause, f"{saved:.1f}"] for cause, saved in causes]),
        "\n".join(f"- {claim}: {'holds' if good else 'does not hold'}" for claim, good in claims.items()),
        "![Sensitivity of VGG-16 on MSTAR](sensitivity_mstar.png)",
    ]
    more, good = three_in_words(result["three"]) if "three" in result else ([], True)
    return "\n\n".join([*text, *more]) + "\n", all(claims.values()) and good


def main(_: list[str]) -> None:
    file = RESULTS / "sensitivity_speed.jsonl"
    result = json.loads(file.read_text()) if file.is_file() else {}
    if "one" in FLAGS.measure:
        result |= measure()
    if "three" in FLAGS.measure:
        result["three"] = measure_three()
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    text, good = page(result)
    (DOCS / "sensitivity_speed.md").write_text(text, encoding="utf-8")
    print(text, "pass" if good else "fail", sep="\n")
    sys.exit(not good)


if __name__ == "__main__":
    app.run(main)
