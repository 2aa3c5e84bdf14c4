"""Ratios from a sensitivity scan: which groups to shrink, and how far, for a budget at the least predicted loss."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.search.allocation import allocate
from orbit_kd.search.scan import Scan


def ratios_for(
    scan: Scan, model: keras.Model, *, narrowest: float = 0.25, unknown: str = "error", round_to: int = 1,
    min_channels: int = 1, **budget: float | None,
) -> dict[str, float]:  # fmt: skip
    """Ratios for `plan_removal` that meet a budget at the least loss that the curves of a scan predict.

    What `allocate` does with filters alone. The source paper picks the ratios by eye from the same curves (its Fig. 6).

        ratios = okd.ratios_for(scan, teacher, keep_macs=0.2)
        plan = okd.plan_removal(teacher, ratios=ratios, ratio=0.0)

    Args:
        scan: of the filters of this model.
        model: the model.
        narrowest: as in `allocate`.
        unknown: as in the scan.
        round_to: widths are multiples of this (or the group stays whole).
        min_channels: no group shrinks below this many channels.
        **budget: one or more budgets of `plan_removal`.

    Returns:
        Group -> part of its channels that goes, of every group in the scan that may shrink.

    Raises:
        InputError: a scan of weights or of another model, no budget, one that no ratio within the scan meets.
    """
    if scan.of != "filters":
        raise InputError(
            f"The scan is of {scan.of}.", expected="a scan of the filters of this model",
            fix="run okd.sensitivity(model, data) on it, or give this scan to okd.allocate",
        )  # fmt: skip
    how: dict[str, Any] = {
        "unknown": unknown,
        "round_to": round_to,
        "min_channels": min_channels,
        **budget,
    }
    return allocate(model, [scan], narrowest=narrowest, **how).ratios
