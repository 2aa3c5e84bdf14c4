"""orbit_kd: makes a trained Keras network fit a satellite payload, a microcontroller or an FPGA.

A map of the packages, each importing only those on lower levels:

    7  pipeline       compress: the whole job, its recipe, what it decides, its stages; distillation by command
    6  search         sensitivity scans, ratios from them, the smallest network within an accuracy
    6  flight         what a file meets in orbit: bit flips, manifest and signature, updates by uplink
    5  removal        which channels matter, the plan, budgets, surgery, rounds
    5  distillation   Distiller, losses, teachers and the cache of what they say, DST
    5  evaluation     exported files on the test set: metrics, latency, operators, parity
    5  quantization   training with the rounding of the int8 file
    4  exporters      one file a format, a folder where a target has several
    4  clustering     few distinct values a kernel
    3  channels       every channel has a name: ids, rules a layer type, the graph, costs
    3  runtimes       LiteRT, its reference kernels, TFLite Micro, onnxruntime, compiled code
    3  tasks          what a network is for: checks, loss, metric, comparison, pictures; one class a task
    3  training       fit, callbacks, resuming, workers
    3  sparsity       patterns, schedules, wrappers: N:M, UHP, magnitude
    2  datasets       builders, folders, preprocessing, labels, batches of any kind, samples
    2  models         Keras models as objects: graph walk, heads, Keras 3, saving, copies, wrappers
    2  tflite         .tflite files: reader, subgraphs, summary, layers with weights, N:M check, writer
    2  reports        report, words, tables, figures, page
    1  support        files, stages, digests, N:M groups, progress, text tables, extras
    0  registry, errors

The public names below are loaded on first use (PEP 562), so that importing the package, or asking a tool for --help,
does not load TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "channels.ids": ["channel_rule"],
    "channels.profiles": ["profile"],
    "clustering.cluster": ["cluster", "strip_clusters"],
    "datasets": ["Data", "load"],
    "datasets.augment": ["Augment"],
    "datasets.preprocessing": ["Preprocess"],
    "distillation": [
        "DST",
        "AttentionTransfer",
        "ChannelWiseDistillation",
        "ChannelWiseFeatures",
        "DecoupledDistillation",
        "DetectionDistillation",
        "DistillationLoss",
        "Distiller",
        "FeatureHints",
        "LogitsDistillation",
        "MAEDistillation",
        "MSEDistillation",
        "Piecewise",
        "RelationalDistillation",
        "SimilarityPreserving",
        "TeacherCache",
        "cache_teacher",
    ],
    "errors": ["InputError"],
    "evaluation.evaluate": ["evaluate"],
    "evaluation.prediction": ["predict"],
    "evaluation.preprocess_check": ["check_preprocess"],
    "evaluation.scenes": ["predict_scene"],
    "exporters": ["Artifact", "export"],
    "models.conversion": ["as_graph"],
    "models.saving": ["load_model", "save_model"],
    "pipeline.compress": ["compress"],
    "pipeline.recipe": ["Recipe"],
    "quantization.aware": ["quantize_aware", "strip_quantization"],
    "quantization.table": ["quantize_table"],
    "removal.plan": ["RemovalPlan"],
    "removal.planning": ["plan_removal"],
    "removal.rounds": ["remove_in_rounds"],
    "removal.surgery": ["recalibrate_batchnorm", "remove_filters"],
    "reports.report": ["Report"],
    "search.allocation": ["allocate"],
    "search.ratios": ["ratios_for"],
    "search.scan": ["Scan"],
    "search.sensitivity": ["sensitivity"],
    "search.smallest": ["smallest"],
    "sparsity.sparsify": ["keep_zeros", "sparsify", "strip"],
    "sparsity.table": ["sparsity_table"],
    "training.monitor": ["StopOnNonFinite"],
    "training.resume": ["Resume"],
}
# Modules with a registry, for extensions: `@okd.importance.criterion("mine")`.
_MODULES = {
    "budgets": "removal.budgets",
    "datasets": "datasets",
    "distillation": "distillation",
    "exporters": "exporters",
    "importance": "removal.importance",
    "networks": "models.networks",
    "runtimes": "runtimes",
    "sparsity_patterns": "sparsity.patterns",
}
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
        ChannelWiseDistillation,
        ChannelWiseFeatures,
        DecoupledDistillation,
        DetectionDistillation,
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
    from orbit_kd.evaluation.scenes import predict_scene
    from orbit_kd.exporters import Artifact, export
    from orbit_kd.models.conversion import as_graph
    from orbit_kd.models.saving import load_model, save_model
    from orbit_kd.pipeline.compress import compress
    from orbit_kd.pipeline.recipe import Recipe
    from orbit_kd.quantization.aware import quantize_aware, strip_quantization
    from orbit_kd.quantization.table import quantize_table
    from orbit_kd.removal.plan import RemovalPlan
    from orbit_kd.removal.planning import plan_removal
    from orbit_kd.removal.rounds import remove_in_rounds
    from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
    from orbit_kd.reports.report import Report
    from orbit_kd.search.allocation import allocate
    from orbit_kd.search.ratios import ratios_for
    from orbit_kd.search.scan import Scan
    from orbit_kd.search.sensitivity import sensitivity
    from orbit_kd.search.smallest import smallest
    from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
    from orbit_kd.sparsity.table import sparsity_table


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"orbit_kd.{_MODULES[name]}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'orbit_kd' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"orbit_kd.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_MODULE_OF])
