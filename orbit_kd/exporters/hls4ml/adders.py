"""Adders that a kernel takes as constant arithmetic, without multipliers (da4ml, arXiv:2507.04535)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.hls4ml.jobs import run_job
from orbit_kd.support.extras import require


def count_adders(kernels: dict[str, np.ndarray], *, limit: int, seed: int = 0) -> dict[str, Any]:
    """Adders that each kernel takes as constant arithmetic, by da4ml, against the same kernel without zeros.

    The dense twin has seeded draws from the kernel's own non-zero weights in place of its zeros.

    Args:
        kernels: layer -> integers (inputs, outputs).
        limit: larger kernels are not run.
        seed: of the draws.

    Returns:
        layer -> {"adders", "dense_adders", "zeros"}, or {"not_run": why}.
    """
    small = {name: kernel for name, kernel in kernels.items() if kernel.size <= limit and kernel.any()}
    told: dict[str, Any] = {
        name: {"not_run": f"{kernel.size:,} weights; adder_limit is {limit:,}" if kernel.any() else "all zeros"}
        for name, kernel in kernels.items()
        if name not in small
    }
    try:
        require("da4ml", extra="fpga")
    except InputError as error:
        return told | {name: {"not_run": f"{error.what} {error.fix}"} for name in small}
    if not small:
        return told
    rng = np.random.default_rng(seed)
    twins = {n: np.where(k == 0, rng.choice(k[k != 0], k.shape), k) for n, k in small.items() if not k.all()}
    with tempfile.TemporaryDirectory() as scratch:
        arrays = {f"{n}/sparse": k for n, k in small.items()} | {f"{n}/dense": k for n, k in twins.items()}
        keys = {f"k{i}": name for i, name in enumerate(arrays)}
        numbered: dict[str, Any] = {key: arrays[name] for key, name in keys.items()}
        np.savez(Path(scratch, "kernels.npz"), **numbered)
        found = run_job("adders", {"kernels": "kernels.npz"}, scratch=scratch, failure="da4ml fails on a kernel")
    cost = {keys[key]: count for key, count in found.items()}
    for name, kernel in small.items():
        zeros = int((kernel == 0).sum())
        told[name] = {
            "adders": cost[f"{name}/sparse"],
            "dense_adders": cost.get(f"{name}/dense", cost[f"{name}/sparse"]),
            "zeros": zeros,
        }
    return {name: told[name] for name in kernels}
