"""Models that were trained with quantization bring their activations' ranges; whether they do, for every tensor."""

from __future__ import annotations

from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.tflite.summary import read


def is_quantization_aware(model: Any) -> bool:
    """Whether tfmot's quantization wrappers are in the model, or those of `quantize_aware`."""
    return any(hasattr(module, "quantize_config") for module in getattr(model, "submodules", ()))


def few_levels(model: Any) -> int:
    """The largest whole number on the grids of kernels of fewer than 8 bits; 0 where there is none."""
    few = [m.bits for m in model.submodules if hasattr(m, "quantize_config") and 0 < getattr(m, "bits", 8) < 8]
    return 2 ** (max(few) - 1) - 1 if few else 0


def refuse_quantization_aware(model: Any, why: str) -> None:
    """Raises InputError for a quantization-aware model; `why` says what would go wrong."""
    if is_quantization_aware(model):
        raise InputError(
            f"Model {model.name!r} is quantization-aware: {why}.",
            expected="a plain model",
            fix="export okd.strip_quantization(model), or the target 'tflite_int8'",
        )


def check_ranges(model: Any) -> None:
    """Raises InputError where a quantization-aware model has not seen any data."""
    if blank := [m.name for m in model.submodules if hasattr(m, "quantize_config") and not getattr(m, "ready", True)]:
        raise InputError(
            f"The activations of layer {blank[0]!r} have no range yet.",
            expected="a quantization-aware model that was trained for a step at least",
            fix="fit it, or give quantize_aware(model, calibration=train)",
        )


def check_all_int8(data: bytes, model: Any) -> None:
    """Raises InputError where an operator still computes in float, for want of a range."""
    if left := [op for op in read(data).ops if op.output_dtype.startswith("float")]:
        raise InputError(
            f"The int8 file of model {model.name!r} would compute {left[0].op} ({left[0].name[:80]!r}) in float.",
            expected="layers that TFLite runs as one operator each, so that every tensor has a trained range",
            fix="replace that layer, or quantize after training: export the plain model with calibration=train",
        )
