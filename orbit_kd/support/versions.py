"""What a figure or a file was made with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

MADE_WITH = ("orbit-kd", "tensorflow", "tf_keras")  # what decides the bytes of an exported file
MEASURED_WITH = (*MADE_WITH, "tensorflow-model-optimization", "ai-edge-litert", "tflite-micro", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that are installed."""
    return {"python": platform.python_version(), "platform": platform.platform(), **versions_of(MEASURED_WITH)}


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed, by their names with _ for -."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package.replace("-", "_")] = importlib.metadata.version(package)
    return found
