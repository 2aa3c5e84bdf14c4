"""Finds code in a model file without loading it: what a loader would import or run is told before it does."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_OWN_MODULES = ("keras", "tf_keras", "tensorflow_model_optimization", "orbit_kd")
_OPS_BEYOND_ARITHMETIC = ("io.", "raw_ops.", "py_function", "numpy_function", "load_", "compat.v1.", "autograph.")
# the names that Keras writes for tf.transpose and others, which call their older forms
_HARMLESS = {f"compat.v1.{name}" for name in ("floor_div", "gather", "pad", "squeeze", "transpose")}


def read_config(path: Path) -> tuple[list[Any], str]:
    """The layer configurations in a model file, and the Keras version that wrote it.

    Args:
        path: a .keras or HDF5 file, or a SavedModel folder.

    Returns:
        Configurations (JSON values; empty where the file has none) and the version ("" if not told).

    Raises:
        ValueError: this is no model file.
    """
    if path.is_dir():
        return _saved_model_config(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            if "config.json" not in z.namelist():
                raise ValueError("a zip file without config.json")
            metadata = json.loads(z.read("metadata.json")) if "metadata.json" in z.namelist() else {}
            config = json.loads(z.read("config.json"))
            config.pop("compile_config", None)  # never loaded
            return [config], str(metadata.get("keras_version", ""))
    import h5py

    if h5py.is_hdf5(path):
        with h5py.File(path) as f:
            if "model_config" not in f.attrs:
                raise ValueError("an HDF5 file without model_config (weights only?)")
            return [json.loads(f.attrs["model_config"])], str(f.attrs.get("keras_version", ""))
    raise ValueError("neither a zip file, nor HDF5, nor a SavedModel folder")


def _saved_model_config(path: Path) -> tuple[list[Any], str]:
    if not (path / "saved_model.pb").is_file():
        raise ValueError("a folder without saved_model.pb")
    file = path / "keras_metadata.pb"
    if not file.is_file():
        if not _has_layers(path / "saved_model.pb"):
            raise ValueError("a SavedModel of functions alone, without layers (as model.export writes it)")
        return [], ""
    from tf_keras.protobuf import saved_metadata_pb2

    nodes = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes()).nodes
    return [json.loads(node.metadata) for node in nodes], ""


def _has_layers(file: Path) -> bool:
    """Whether a SavedModel holds Keras objects: those of Keras before 2.5 do, with no file of metadata beside them."""
    from tensorflow.core.protobuf import saved_model_pb2

    graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    return any(
        node.user_object.identifier.startswith("_tf_keras") for graph in graphs for node in graph.object_graph_def.nodes
    )


def code_in(config: Any, known: tuple[str, ...] = ()) -> list[str]:
    """What in a configuration could run code: Lambda layers, foreign modules, operations that touch files.

    Args:
        config: a JSON value from `read_config`.
        known: class names that the caller supplies, or has registered with Keras, and so vouches for.

    Returns:
        One short description each; empty where all is plain layers.
    """
    return sorted(set(_findings(config, known)))


def _findings(node: Any, known: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, dict):
        name, module = node.get("class_name"), node.get("module")
        inner = node.get("config")
        if name in ("Lambda", "__lambda__") or node.get("function_type") == "lambda":
            yield "a Lambda layer"
        elif isinstance(module, str) and name not in known and node.get("registered_name") not in known:
            if module == "builtins" and name == "function":
                if not _keras_function(inner):
                    yield f"function {inner!r}"
            elif module.split(".")[0] not in _OWN_MODULES and module != "builtins":
                yield f"{name} from module {module!r}"
        if name in ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod") and isinstance(inner, dict):
            symbol = str(inner.get("function") or inner.get("cls_symbol") or "")
            if symbol.startswith(_OPS_BEYOND_ARITHMETIC) and symbol not in _HARMLESS:
                yield f"operation tf.{symbol}"
        for value in node.values():
            yield from _findings(value, known)
    elif isinstance(node, list):
        for value in node:
            yield from _findings(value, known)


def _keras_function(name: Any) -> bool:
    import tf_keras as keras

    return isinstance(name, str) and any(hasattr(m, name) for m in (keras.activations, keras.losses, keras.metrics))
