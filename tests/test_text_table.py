"""Tables for the screen."""

from orbit_kd.removal.plan import PlannedGroup, RemovalPlan
from orbit_kd.search.scan import Curve, Scan
from orbit_kd.search.trial import Reached
from orbit_kd.search.trials import Found, Trial
from orbit_kd.support.text_table import aligned


def test_columns_stand_below_each_other():
    assert aligned([("layer", "params"), ("a_long_name", "1"), ("b", "1,234,567")], "<>") == [
        "layer           params",
        "a_long_name          1",
        "b            1,234,567",
    ]


def test_a_remark_begins_in_its_column_and_does_not_widen_it():
    assert aligned([("layer", "10%", "20%"), ("a", "not scanned: an output"), ("b", "9%", "8%")], "<>>") == [
        "layer  10%  20%",
        "a      not scanned: an output",
        "b       9%   8%",
    ]


def test_a_row_that_is_a_remark_alone_and_a_table_of_heads():
    assert aligned([("x", "y"), ("all of it",)], "<<") == ["x  y", "all of it"]
    assert aligned([("x", "y")], "<>") == ["x  y"]


def test_plans_scans_and_searches_print_as_tables():
    groups = (
        PlannedGroup("conv", {"conv": 64}, 64, tuple(range(8))),
        PlannedGroup("logits", {"logits": 5}, 5, tuple(range(5)), reason="model output"),
    )
    assert str(RemovalPlan(groups, (1000, 100), (float("nan"), float("nan")))).splitlines() == [
        "group   width         made by",
        "conv       64  ->  8  conv",
        "logits      5  ->  5  kept: model output",
        "params: 1,000 -> 100 (10.0x fewer)",
    ]
    curves = (
        Curve("conv", ("conv",), 64, (0.25, 0.5), (0.5, 0.0), (1.0, 0.0), (8, 0)),
        Curve("logits", ("logits",), 5, reason="model output"),
    )
    assert str(Scan("filters", 0.75, 0.5, 8, curves)).splitlines() == [
        "group     25%   50%",
        "conv    50.0%  lost",
        "logits  model output",
        "whole network: 75.0% of 8 images",
    ]
    common = {"cost": 1.0, "seconds": 1.0, "training": 1.0, "patience": 0}
    trials = (
        Trial(params=1000, macs=2e6, bytes=1500, accuracy=0.5, accepted=False, factor=4, epochs=6, **common),
        Trial(params=64_000, macs=2e7, bytes=70_000, accuracy=1.0, accepted=True, factor=2, epochs=24, **common),
    )
    whole, best = Reached(1.0, 1.0, 90_000, 80_000, 4e7), Reached(1.0, 1.0, 70_000, 64_000, 2e7)
    assert str(Found(None, 0.75, 8, whole, best, trials)).splitlines() == [
        "at least 75.00% of 8 validation images; the teacher's own int8 file: 90,000 bytes, 100.00%",
        " 1,000 parameters   2,000,000 MACs   1,500 bytes   6 epochs   50.00%  too small",
        "64,000 parameters  20,000,000 MACs  70,000 bytes  24 epochs  100.00%  taken",
        "as asked",
    ]


def test_a_scan_of_one_ratio_and_one_of_none():
    point, reason = Curve("a", ("a",), 4, (0.5,), (1.0,), (0.0,), (8,)), Curve("b", ("b",), 5, reason="output")
    assert str(Scan("filters", 1.0, 0.0, 8, (point, reason))).splitlines()[:3] == [
        "group     50%",
        "a      100.0%",
        "b      output",
    ]
    assert str(Scan("filters", 1.0, 0.0, 8, (reason,))).splitlines()[:2] == ["group", "b      output"]
