"""orbit_kd: makes a trained Keras CNN fit a satellite payload, a microcontroller or an FPGA.

The public surface is listed here by name and loaded on first use (PEP 562), so that importing the package, or asking a
tool for --help, does not load TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "channels": ["channel_rule"],
    "clustering": ["cluster", "strip_clusters"],
    "conversion": ["as_graph"],
    "datasets": ["Data", "load"],
    "distillation": [
        "DST",
        "AttentionTransfer",
        "DecoupledDistillation",
        "DistillationLoss",
        "Distiller",
        "FeatureHints",
        "LogitsDistillation",
        "MAEDistillation",
        "MSEDistillation",
        "Piecewise",
        "RelationalDistillation",
        "Resume",
        "SimilarityPreserving",
        "StopOnNonFinite",
        "TeacherCache",
        "cache_teacher",
    ],
    "errors": ["InputError"],
    "evaluation": ["evaluate"],
    "exporters": ["Artifact", "export"],
    "iterative": ["remove_in_rounds"],
    "model_io": ["load_model", "save_model"],
    "pipeline": ["compress"],
    "planning": ["RemovalPlan", "plan_removal"],
    "preprocess_check": ["check_preprocess"],
    "prediction": ["predict"],
    "preprocessing": ["Augment"],
    "profiling": ["profile"],
    "quantization": ["quantize_aware", "quantize_table", "strip_quantization"],
    "ratios": ["hybrid_for", "ratios_for"],
    "recipe": ["Preprocess", "Recipe"],
    "reporting": ["Report"],
    "scan": ["Scan"],
    "scanning": ["sensitivity"],
    "search": ["smallest"],
    "sparsity": ["keep_zeros", "sparsify", "strip"],
    "sparsity_report": ["sparsity_table"],
    "surgery": ["recalibrate_batchnorm", "remove_filters"],
}
# Modules with a registry, for extensions: `@okd.importance.criterion("mine")`.
_MODULES = (
    "budgets",
    "datasets",
    "distillation",
    "exporters",
    "importance",
    "networks",
    "runtimes",
    "sparsity_patterns",
)
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from orbit_kd.channels.ids import channel_rule
    from orbit_kd.channels.profiles import profile
    from orbit_kd.clustering.cluster import cluster, strip_clusters
    from orbit_kd.datasets import Data, load
    from orbit_kd.datasets.augment import Augment
    from orbit_kd.datasets.preprocessing import Preprocess
    from orbit_kd.distillation import (
        DST,
        AttentionTransfer,
        DecoupledDistillation,
        DistillationLoss,
        Distiller,
        FeatureHints,
        LogitsDistillation,
        MAEDistillation,
        MSEDistillation,
        Piecewise,
        RelationalDistillation,
        Resume,
        SimilarityPreserving,
        StopOnNonFinite,
        TeacherCache,
        cache_teacher,
    )
    from orbit_kd.errors import InputError
    from orbit_kd.evaluation.evaluate import evaluate
    from orbit_kd.evaluation.prediction import predict
    from orbit_kd.evaluation.preprocess_check import check_preprocess
    from orbit_kd.exporters import Artifact, export
    from orbit_kd.models.conversion import as_graph
    from orbit_kd.models.saving import load_model, save_model
    from orbit_kd.pipeline.compress import compress
    from orbit_kd.pipeline.recipe import Recipe
    from orbit_kd.quantization.aware import quantize_aware, quantize_table, strip_quantization
    from orbit_kd.removal.plan import RemovalPlan
    from orbit_kd.removal.planning import plan_removal
    from orbit_kd.removal.rounds import remove_in_rounds
    from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
    from orbit_kd.reports.report import Report
    from orbit_kd.search.ratios import hybrid_for, ratios_for
    from orbit_kd.search.scan import Scan
    from orbit_kd.search.sensitivity import sensitivity
    from orbit_kd.search.smallest import smallest
    from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
    from orbit_kd.sparsity.table import sparsity_table


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"orbit_kd.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'orbit_kd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"orbit_kd.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_MODULE_OF])
