"""Reports: what they claim, how they look to a parser, how they survive bad data and bad folders."""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.reports import axes as report_axes
from orbit_kd.reports import figures
from orbit_kd.reports import words as text
from orbit_kd.reports.report import Report
from orbit_kd.reports.summary import headline, main_artifact


def fake_report(n_layers: int = 13, n_classes: int = 10, images: int = 2425) -> dict:
    """A realistic report; seeded. 13 layers and 10 classes are a VGG on MSTAR, 55 and 45 a ResNet on RESISC45."""
    rng = np.random.default_rng(n_layers)
    vgg = n_layers <= 16
    names = ["2S1", "BMP-2", "BRDM-2", "BTR-60", "BTR-70", "D7", "T-62", "T-72", "ZIL-131", "ZSU-23-4"]
    if n_classes != 10:
        words = ["airplane", "basketball_court", "chaparral", "dense_residential", "thermal_power_station"]
        names = [f"{words[i % 5]}_{i}" for i in range(n_classes)]

    def confusion(accuracy: float) -> np.ndarray:
        rows = []
        for i in range(n_classes):
            p = rng.dirichlet(np.full(n_classes, 0.15)) * (1 - accuracy)
            p[i] += accuracy
            rows.append(rng.multinomial(images // n_classes, p / p.sum()))
        return np.array(rows)

    layers, cin, cin_after = [], 1, 1
    for i in range(n_layers):
        width = (64, 128, 256, 512)[min(3, i * 4 // n_layers)]
        after = max(4, int(width * rng.uniform(0.05, 0.45)) // 4 * 4)
        hw = (64 >> min(4, i * 5 // n_layers)) ** 2
        density = 1.0 if i == 0 else 0.5 if i % 7 else 0.31
        params, params_after = 9 * cin * width + width, 9 * cin_after * after + after
        layers.append(
            {
                "name": f"block{i // 3 + 1}_conv{i % 3 + 1}" if vgg else f"conv{i // 11 + 2}_block{i % 11 + 1}_conv",
                "type": "Conv2D", "width_before": width, "width_after": after, "params_before": params,
                "params_after": params_after, "nonzero_after": int(params_after * density), "density": density,
                "pattern": "2:4" if i else None, "macs_before": params * hw, "macs_after": params_after * hw,
            }
        )  # fmt: skip
        cin, cin_after = width, after
    total = {k: sum(x[k] for x in layers) for k in layers[0] if k.startswith(("params", "nonzero", "macs"))}
    params, left, nonzero = total["params_before"], total["params_after"], total["nonzero_after"]
    cm_t, cm_s = confusion(0.978), confusion(0.974)
    acc_t, acc_s = (float(np.trace(c) / c.sum()) for c in (cm_t, cm_s))
    big, f32, int8 = 4 * params + 9_000, 4 * left + 9_300, left + 14_012

    def stage(name: str, epochs: int, start: float, end: float, loss: float) -> dict:
        t = np.arange(epochs) / max(1, epochs - 1)
        acc = end - (end - start) * np.exp(-4 * t) + rng.normal(0, 0.004, epochs)
        return {"stage": name, "epochs": list(range(epochs)), "loss": loss * np.exp(-2.5 * t) + 0.02,
                "val_loss": loss * np.exp(-2.2 * t) + 0.06 + rng.normal(0, 0.005, epochs),
                "accuracy": np.minimum(acc + 0.015, 1), "val_accuracy": np.minimum(acc, 1),
                "distillation_loss": loss * np.exp(-2 * t)}  # fmt: skip

    tflm = {"ran": True, "why": None, "arena_bytes": 61_240, "max_lsb": 1, "compared": 64}
    off = {"ran": False, "why": "float models are not compared", "arena_bytes": None, "max_lsb": None, "compared": 0}
    return {
        "schema": 1, "title": "VGG-16 on MSTAR, 10 classes" if vgg else "ResNet-56 on RESISC45, 45 classes",
        "command": "python tools/compress.py --flagfile=models/vgg16_mstar/recipe.flags --teacher=vgg16_mstar64.keras "
                   "--data_dir=/data/mstar10 --workdir=out/vgg16",
        "teacher": {"name": "vgg16_mstar64", "params": params, "macs": total["macs_before"], "accuracy": acc_t,
                    "tflite_bytes": big, "gzip_bytes": int(big * 0.92), "confusion": cm_t},
        "student": {"params": left, "nonzero_params": nonzero, "macs": total["macs_after"],
                    "macs_nonzero": total["macs_after"] * nonzero // left, "accuracy": acc_s + 0.0008,
                    "confusion": cm_s},
        "artifacts": [
            {"target": "tflite_float32", "path": "out/vgg16/student_float32.tflite", "bytes": f32,
             "gzip_bytes": int(f32 * 0.56), "accuracy": acc_s + 0.0008, "density": nonzero / left, "zeros_from_int8": 0,
             "confusion": cm_s, "latency": {"ratio": 21.437, "low": 20.9, "high": 22.3, "runs": 40,
             "against": "teacher tflite_float32"}, "latency_why": None, "tflm": off, "mcnemar_p": 0.41,
             "teacher_only_right": 15, "student_only_right": 10},
            {"target": "tflite_int8", "path": "out/vgg16/student_int8.tflite", "bytes": int8,
             "gzip_bytes": int(int8 * 0.71), "accuracy": acc_s, "density": nonzero / left - 0.003,
             "zeros_from_int8": 812, "confusion": cm_s, "latency": {"ratio": 18.29, "low": 17.7,
             "high": 19.05, "runs": 40, "against": "teacher tflite_int8"}, "latency_why": None, "tflm": tflm,
             "mcnemar_p": 0.3123, "teacher_only_right": 19, "student_only_right": 12},
            {"target": "c_array", "path": "out/vgg16/student_int8.cc", "bytes": int(int8 * 6.2),
             "gzip_bytes": int(int8 * 1.1), "latency": None, "latency_why": "a C array is run as its .tflite"},
        ],
        "ratios": {"params": params / left, "nonzero_params": params / nonzero, "parameters_gone": 1 - nonzero / params,
                   "bytes": big / int8, "gzip_bytes": 0.92 * big / (0.71 * int8),
                   "macs": total["macs_before"] / total["macs_after"], "float32_bytes": big / f32},
        "layers": layers,
        "history": [stage("removal 1", 6, 0.6, 0.95, 2.0), stage("removal 2", 6, 0.7, 0.965, 1.4),
                    stage("distill", 24, 0.9, 0.976, 0.9), stage("quantize", 2, 0.97, 0.975, 0.2)],
        "stages": [{"name": n, "seconds": s} for n, s in (("plan", 1.42), ("removal 1", 141.0), ("removal 2", 128.5),
                   ("distill", 611.2), ("quantize", 74.0), ("export", 9.3), ("evaluate", 58.8))],
        "recipe": {"criterion": "l1_norm", "ratio": 0.82, "rounds": 2, "sparsity": "2:4", "alpha": 0.8,
                   "temperature": 5.0, "epochs": 30, "max_drop": 0.01, "exclude": [], "ratios": None},
        "preprocess": {"crop": (64, 64), "resize": None, "scale": 1 / 255, "mean": (), "channels": 1},
        "class_names": names, "data": {"name": "mstar10", "train": 2_473, "val": 274, "test": images,
                                       "fingerprint": "9f2c1ab04d7e"},
        "versions": {"orbit_kd": "0.1.0", "tensorflow": "2.21.0", "tf_keras": "2.21.0", "python": "3.11.9"},
        "seed": 0,
        "notes": ["2:4 alone does not make this CPU faster: the speed comes from the removed filters.",
                  "The int8 file differs from the float student on 3 test images."],
    }  # fmt: skip


class Page(HTMLParser):
    """Collects what the tests ask about and fails on tags that do not balance."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, text):
        for tag in self.open:
            self.texts[tag] = self.texts.get(tag, "") + text


def saved(data: dict, folder: Path) -> tuple[Page, str]:
    html = Report(data).save(folder).read_text(encoding="utf-8")
    return Page(html), html


@pytest.mark.parametrize(("layers", "classes"), [(13, 10), (55, 45)])
def test_page_is_whole_self_contained_and_small(tmp_path, layers, classes):
    page, html = saved(fake_report(layers, classes), tmp_path)
    assert len(html.encode()) < 1_500_000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "xlink:href")]
    assert "http" not in html and "url(" not in html and "@import" not in html
    titles = page.texts["figcaption"]
    for title in ("Channels per layer", "Density per layer", "Training: accuracy", "Training: loss",
                  "Confusion: teacher", "Confusion: student, tflite_int8",
                  "Accuracy against bytes", "Time per stage"):  # fmt: skip
        assert title in titles
    alts = [v for tag, k, v in page.attributes if k == "aria-label"]
    assert len(alts) == page.tags.count("figure") == 8 and all(alts)


def test_every_layer_class_and_stage_is_on_the_page(tmp_path):
    data = fake_report(55, 45)
    _, html = saved(data, tmp_path)
    for layer in data["layers"]:
        assert f"{layer['name']}: {layer['width_before']:,} channels before, {layer['width_after']:,} after" in html
    assert all(f"true {name}, predicted {name}: " in html for name in data["class_names"])
    assert all(f"{i}: {h['stage']}" in html for i, h in enumerate(data["history"], 1))


def test_numbers_of_the_headline_are_those_of_the_json(tmp_path):
    page, _ = saved(fake_report(), tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    int8 = next(a for a in data["artifacts"] if a["target"] == "tflite_int8")
    ratio, before, after = (float(n) for n in re.findall(r"[\d.]+", page.texts["h1"]))
    assert 0 <= data["ratios"]["bytes"] - ratio < 0.1  # rounded down
    assert before == round(100 * data["teacher"]["accuracy"], 2)
    assert after == round(100 * int8["accuracy"], 2)
    lost = 100 * (data["teacher"]["accuracy"] - int8["accuracy"])
    assert f"loses {lost:.2f} points of accuracy on 2,425 test images (McNemar p = 0.31" in page.texts["p"]


def test_confusion_cells_are_the_counts(tmp_path):
    data = fake_report()
    page, _ = saved(data, tmp_path)
    counts = re.findall(r"true ([^,]+), predicted ([^:]+): (\d+) of", page.texts["title"])
    matrix, names = data["teacher"]["confusion"], data["class_names"]
    expected = [(names[i], names[j], str(matrix[i, j])) for i, j in np.argwhere(matrix)]
    assert counts[: len(expected)] == expected


def test_losses_and_growth_are_said_plainly():
    data = fake_report()
    int8 = data["artifacts"][1]
    int8.update(accuracy=0.90, mcnemar_p=1e-9, bytes=2 * data["teacher"]["tflite_bytes"])
    claim, verdict = headline(Report(data).data)
    assert claim.startswith("2.00x more bytes")
    assert "loses" in verdict and "p < 0.001: more than chance explains" in verdict
    int8.update(accuracy=data["teacher"]["accuracy"])
    assert "exactly as accurate" in headline(data)[1]
    int8.update(accuracy=0.999)
    assert "gains" in headline(data)[1]


def test_headline_is_about_int8_whatever_is_smaller():
    files = [{"target": t, "bytes": b} for t, b in (("c_array", 1), ("tflite_float32", 9), ("tflite_int8", 7))]
    assert main_artifact({"artifacts": files})["target"] == "tflite_int8"
    assert main_artifact({"artifacts": files[:2]})["target"] == "tflite_float32"
    assert main_artifact({"artifacts": files[:1]})["target"] == "c_array"
    assert main_artifact({}) == {}


def test_zeros_of_int8_rounding_are_not_claimed(tmp_path):
    data = fake_report()
    data["student"]["measured_from"] = "tflite_int8"
    page, _ = saved(data, tmp_path)
    assert "gone" not in page.texts["table"] and "of the parameters gone" not in page.texts["span"]
    assert "Non-zero parameters (tflite_float32 → tflite_int8)" in page.texts["table"]
    del data["student"]["measured_from"]
    page, _ = saved(data, tmp_path)
    assert "% gone" in page.texts["table"] and "of the parameters gone" in page.texts["span"]


def test_terminal_table_is_aligned_and_complete():
    lines = str(Report(fake_report())).splitlines()
    head, *rows = lines[3], *lines[5:]
    end = head.index("teacher") + len("teacher")
    assert all(row[end - 1] != " " and row[end : end + 2] == "  " for row in rows)
    labels = "\n".join(rows)
    for label in ("Parameters", "Non-zero parameters", "MACs", "File (tflite_float32 → tflite_int8)",
                  "Accuracy (tflite_float32 → tflite_int8)", "Speed (latency)", "TFLite Micro arena"):  # fmt: skip
        assert label in labels
    assert re.search(r"Speed \(latency\)\s+1x\s+18.2x\s+\(17.7x to 19.0x\)", labels)


def test_what_was_not_run_says_why(tmp_path):
    data = fake_report()
    data["artifacts"][1].update(
        latency=None, latency_why="no teacher file", tflm={"ran": False, "why": 'not run: pip install "orbit-kd[mcu]"'}
    )
    page, _ = saved(data, tmp_path)
    for shown in (str(Report(data)), page.texts["table"]):
        assert "not run: no teacher file" in shown
        assert 'not run: pip install "orbit-kd[mcu]"' in shown
        assert "not run: not run" not in shown


@pytest.mark.parametrize("section", sorted(set(fake_report()) - {"schema"}))
def test_any_section_may_be_missing(tmp_path, section):
    data = fake_report()
    del data[section]
    page, _ = saved(data, tmp_path)
    assert page.texts["h1"]
    assert str(Report(data))


def test_empty_report_claims_nothing(tmp_path):
    page, _ = saved({}, tmp_path)
    assert page.texts["h1"] == "Nothing was measured"
    assert "figure" not in page.tags and "table" not in page.tags


def test_nan_is_no_measurement(tmp_path):
    data = fake_report()
    data["teacher"].update(macs=math.nan, confusion=[[1, 2], [3]])
    data["layers"][3].update(density=np.float32("nan"), width_before=math.nan)
    data["history"][0]["val_loss"][2] = math.nan
    data["artifacts"][1]["mcnemar_p"] = math.inf
    page, html = saved(data, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["teacher"]["macs"] is None
    assert "nan" not in re.findall(r"[a-z]+", html.lower()) and "inf" not in re.findall(r"[a-z]+", html.lower())
    assert "Confusion: teacher" not in page.texts["figcaption"]  # not square
    assert "block2_conv1" in html and "Confusion: student" in page.texts["figcaption"]


def test_text_from_outside_is_escaped(tmp_path):
    evil = '<script>alert("1")</script>\'&'
    data = fake_report()
    data["class_names"][3] = data["title"] = data["command"] = data["notes"][0] = evil
    data["layers"][0].update(name=evil, type=evil, pattern=evil)
    data["history"][0]["stage"] = data["stages"][0]["name"] = data["recipe"][evil] = evil
    data["history"][1][evil] = [1.0]
    data["artifacts"][1].update(target=evil, path=evil, latency_why=evil, latency=None)
    page, html = saved(data, tmp_path)
    assert "script" not in page.tags and "<script" not in html
    assert evil in page.texts["title"] and not [k for _, k, _ in page.attributes if k.startswith("on")]


def test_load_gives_back_what_was_saved(tmp_path):
    report = Report(fake_report() | {"recipe": Preprocess(crop=64)})
    report.save(tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "report.json"):
        assert Report.load(path) == report
    assert report.recipe["crop"] == [64, 64]
    assert report.teacher["confusion"][0][0] == fake_report()["teacher"]["confusion"][0, 0]
    assert Report({}).artifacts == [] and Report({}).teacher == {}
    with pytest.raises(AttributeError, match="no_such_section"):
        _ = report.no_such_section


@pytest.mark.parametrize("failing", ["first write", "second write", "rename"])
def test_a_failure_midway_leaves_the_old_report(tmp_path, monkeypatch, failing):
    Report({"title": "old"}).save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write, calls = Path.write_text, []

    def full_disk(path, text, **kwargs):
        calls.append(path)
        if failing == ("", "first write", "second write")[len(calls)]:
            write(path, text[:100], **kwargs)
            raise OSError(28, "No space left on device")
        return write(path, text, **kwargs)

    def no_rename(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "write_text", full_disk)
    if failing == "rename":
        monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(InputError, match=r"No space left|not permitted"):
        Report({"title": "new"}).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unwritable_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file/out"):
        Report({}).save(tmp_path / "file" / "out")


def test_what_is_no_report_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{half")
    (tmp_path / "list.json").write_text("[1]")
    for path, message in ((tmp_path, "no JSON"), (tmp_path / "list.json", "no report"), (tmp_path / "none", "No such")):
        with pytest.raises(InputError, match=message):
            Report.load(path)
    for data, message in (({"layers": {}}, "'layers'"), ({"stages": [1]}, "'stages'"), ({"schema": 99}, "99")):
        with pytest.raises(InputError, match=message):
            Report(data)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.size(63_123_456), "63.1 MB"), (text.size(148_012), "148 KB"), (text.size(2_310), "2.31 KB"),
        (text.size(512), "512 B"), (text.times(345.99), "345x"), (text.times(16.58), "16.5x"),
        (text.times(1.999), "1.99x"), (text.percent(0.97691), "97.69%"), (text.percent(0.999999, down=True), "99.99%"),
        (text.percent(0.29, down=True), "29.00%"), (text.count(14_981_066), "14.98 M"), (text.count(43_210), "43,210"),
        (text.points(0.98, 0.977), "-0.30 points"), (text.points(0.9, 0.9), "no change"), (text.seconds(185), "3m05s"),
        (text.fewer(100, 101), "1.01x more"),
        (text.fewer(1000, 1004), "1.01x more"), (text.fewer(1000, 1010), "1.01x more"),
        (text.fewer(1, 2), "2.00x more"),
        (text.fewer(1004, 1000), "1.00x fewer"), (text.fewer(345.99, 1), "345x fewer"), (text.fewer(7, 7), "same"),
        (text.fewer(3, 1, "smaller", "larger"), "3.00x smaller"), (text.fewer(0, 5), text.NONE),
        (text.fewer(5, 0), text.NONE), (text.size(math.nan), text.NONE),
        (text.count(None), text.NONE), (text.p_value(0.0), "p < 0.001"), (text.p_value(0.314), "p = 0.31"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected


@pytest.mark.parametrize(("low", "high", "log"), [(0.97, 0.981, False), (0, 1, False), (3e2, 7e7, True),
                                                  (0.02, 0.9, True), (4e5, 6e5, True), (5, 5, False)])  # fmt: skip
def test_ticks_are_few_rise_and_stay_inside(low, high, log):
    marks = report_axes.ticks(low, high, log=log)
    assert 1 <= len(marks) <= 11 and marks == sorted(set(marks))
    assert all(low - 1e-9 <= m <= high + 1e-9 for m in marks)


def test_curves_break_where_a_value_is_missing():
    history = [{"stage": "a", "loss": [4.0, 3.0, None, 2.0, 1.0]}, {"stage": "b", "loss": [1.0]}]
    html = figures.curves(history, metric="loss")
    assert html.count("<polyline") == 2 and html.count("<circle") == 1
    assert figures.curves(history, metric="accuracy") == ""
    assert figures.series({"val_sparse_categorical_accuracy": [0.5]}, "val_accuracy") == [0.5]
