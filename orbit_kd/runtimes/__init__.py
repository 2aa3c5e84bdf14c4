"""Runs exported files: LiteRT, its reference kernels, TFLite Micro, onnxruntime, hls4ml, C99. A file a runtime."""

from orbit_kd.runtimes import c99, hls4ml, litert, onnx, tflm  # noqa: F401  each files its runtimes
from orbit_kd.runtimes.execution import load, predict, probe, quantized, run, yardstick
from orbit_kd.runtimes.ports import Port, named_shapes, one_or_all, parts_of
from orbit_kd.runtimes.runner import Model, Runner, made_for, port_names, refuse_coded, runtimes
from orbit_kd.runtimes.tflm import MCU_HINT, has_tflm
from orbit_kd.runtimes.trusted import trust

__all__ = [
    "MCU_HINT",
    "Model",
    "Port",
    "Runner",
    "has_tflm",
    "load",
    "made_for",
    "named_shapes",
    "one_or_all",
    "parts_of",
    "port_names",
    "predict",
    "probe",
    "quantized",
    "refuse_coded",
    "run",
    "runtimes",
    "trust",
    "yardstick",
]
