"""What hls4ml's templates and the FPGA tools take: options, sizes, reuse factors."""

from __future__ import annotations

import math
from typing import Any

from orbit_kd.errors import InputError

MAX_MULTIPLIERS = 4096  # Vivado unrolls and partitions up to so many elements (hls4ml's documentation, "reuse factor")


def check_options(
    *, io_type: str, strategy: str, reuse_factor: int, bits: int, weight_bits: int, samples: int, compare: int
) -> None:
    """Raises InputError for an option of the target that hls4ml does not take."""

    def need(good: bool, what: str, expected: str) -> None:
        if not good:
            raise InputError(f"{what}.", expected=expected, fix="leave it out for the default")

    need(io_type in ("io_stream", "io_parallel"), f"io_type={io_type!r}", '"io_stream" or "io_parallel"')
    need(strategy in ("resource", "latency"), f"strategy={strategy!r}", '"resource" or "latency"')
    need(reuse_factor >= 1, f"reuse_factor={reuse_factor}", "1 or more")
    need(2 <= bits <= 32 and 2 <= weight_bits <= 24, f"bits={bits}, weight_bits={weight_bits}", "2 to 32, and 2 to 24")
    need(samples >= 1 and compare >= 1, f"samples={samples}, compare={compare}", "at least 1 of each")


def check_size(sizes: dict[str, int], plans: dict[str, dict[str, Any]], *, weight_bits: int, limit: int) -> None:
    """Raises InputError where a layer needs more multipliers than can be unrolled, or the weights do not fit."""
    need = sum(sizes.values()) * weight_bits
    if need > limit:
        name = max(sizes, key=lambda n: sizes[n])
        raise InputError(
            f"The network is too large for hls4ml: its weights take {need:,} bits of on-chip memory, the most of them "
            f"layer {name!r} ({sizes[name] * weight_bits:,}).",
            expected=f"at most max_weight_bits={limit:,}",
            fix="remove more filters, take fewer weight_bits, or set max_weight_bits to the block RAM of your part",
        )
    for name, size in sizes.items():
        used = plans[name]["ReuseFactor"]
        if math.ceil(size / used) > MAX_MULTIPLIERS:
            raise InputError(
                f"Layer {name!r} is too large for hls4ml: {size:,} weights at a reuse factor of {used} are "
                f"{math.ceil(size / used):,} multipliers.",
                expected=f"at most {MAX_MULTIPLIERS:,}, what Vivado unrolls",
                fix=f"strategy='resource', reuse_factor={math.ceil(size / MAX_MULTIPLIERS)} or more; or fewer filters",
            )


def reuse_plans(network: Any, *, strategy: str, reuse_factor: int) -> dict[str, dict[str, Any]]:
    """Layer -> its ReuseFactor and Strategy, for each kernel of a network of `network.plain`."""
    from orbit_kd.exporters.hls4ml.network import is_depthwise, kernels

    plans: dict[str, dict[str, Any]] = {}
    for layer, matrix in kernels(network):
        # hls4ml's depthwise template for "resource" (https://github.com/fastmachinelearning/hls4ml/pull/1079) asserts
        # that the reuse factor is a multiple of the channels; its own choice of a factor is not. These kernels are
        # small, so they get a multiplier for each weight.
        if strategy == "latency" or is_depthwise(layer):
            plans[layer.name] = {"ReuseFactor": 1, "Strategy": "Latency"}
        else:
            factor = fitting_reuse_factor(*matrix.shape, wanted=reuse_factor)
            plans[layer.name] = {"ReuseFactor": factor, "Strategy": strategy.capitalize()}
    return plans


def fitting_reuse_factor(inputs: int, outputs: int, *, wanted: int) -> int:
    """The factor nearest to `wanted` that hls4ml's templates for "resource" take for a kernel (inputs, outputs).

    A divisor of `inputs`, or a multiple of it that divides all weights. hls4ml rounds to one of these itself, but not
    for 1x1 convolutions, where any other names a template that is not there (DenseResource_rf_gt_nin, hls4ml 1.3).
    """
    few = (k for k in range(1, inputs + 1) if inputs % k == 0)
    many = (inputs * k for k in range(1, outputs + 1) if outputs % k == 0)
    return min((*few, *many), key=lambda factor: (abs(factor - wanted), factor))
