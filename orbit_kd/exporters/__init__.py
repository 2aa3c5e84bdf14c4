"""From a Keras model to a file that a runtime reads. One function a target, filed in `targets`."""

from orbit_kd.exporters import c_array, onnx  # noqa: F401  each files its targets
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.c99 import export as _c99  # noqa: F401
from orbit_kd.exporters.hls4ml import export as _hls4ml  # noqa: F401
from orbit_kd.exporters.metadata import read_metadata
from orbit_kd.exporters.opening import open_artifact
from orbit_kd.exporters.packed import export as _packed  # noqa: F401
from orbit_kd.exporters.targets import Target, check, export, export_all, file_of, find, target, targets
from orbit_kd.exporters.tflite import floats, int4, integers  # noqa: F401
from orbit_kd.exporters.tflm import coded as _coded  # noqa: F401
from orbit_kd.exporters.tflm import export as _tflm  # noqa: F401
from orbit_kd.exporters.vela import export as _vela  # noqa: F401

__all__ = [
    "Artifact",
    "Target",
    "check",
    "export",
    "export_all",
    "file_of",
    "find",
    "open_artifact",
    "read_metadata",
    "target",
    "targets",
]
