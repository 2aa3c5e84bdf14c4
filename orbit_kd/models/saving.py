"""Model files in and out: nothing in a file runs unless the caller trusts it, and nothing is half-written."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras, in_full_precision
from orbit_kd.models.keras3.twin import load_keras3
from orbit_kd.models.safety import code_in, read_config
from orbit_kd.support.digests import digest
from orbit_kd.support.files import replace_file

_TFMOT = ("PruneLowMagnitude", "ClusterWeights", "QuantizeWrapper", "QuantizeLayer", "QuantizeAnnotate")
_REGISTERED_BY = {
    "ClusteredLayer": "orbit_kd.clustering.layer",
    "Distiller": "orbit_kd.distillation",
    "QuantizedLayer": "orbit_kd.quantization.layers",
    "SparseLayer": "orbit_kd.sparsity.sparsify",
}


def load_model(
    model: str | os.PathLike[str] | keras.Model,
    *,
    trust_code: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Reads a trained model, not compiled.

    Args:
        model: a .keras or .h5 file of tf_keras or Keras 3, a SavedModel folder with Keras metadata, a tf_keras model
            (returned as it is; a subclassed one as its graph, see `as_graph`; one of mixed precision as a copy that
            computes as precisely as its weights are), or a Keras 3 model (its tf_keras twin).
        trust_code: load files that could run code of their author: Lambda layers, classes from other modules, a
            SavedModel without Keras metadata.
        custom_objects: classes of your own layers, by name.

    Raises:
        InputError: no such file, no model file, a file that could run code, or a layer that is not known.
    """
    if not isinstance(model, (str, os.PathLike)):
        return in_full_precision(as_tf_keras(model, refuse=()))
    path = Path(model)
    if not path.exists():
        raise InputError(f"There is no model at {path}.", expected="a .keras or .h5 file or a SavedModel folder",
                         fix="check the path")  # fmt: skip
    known = (*(custom_objects or ()), *keras.saving.get_custom_objects())
    try:
        configs, version = read_config(path)
    except (ValueError, OSError) as e:
        raise InputError(f"{path} is no Keras model file: {e}.", expected="a .keras or .h5 file or a SavedModel folder",
                         fix="save the model with model.save('model.keras')") from e  # fmt: skip
    found = [f for config in configs for f in code_in(config, known)]
    if not configs:
        found = ["a SavedModel without Keras metadata"]
    if found and not trust_code:
        raise InputError(
            f"{path} could run code when it is loaded: {', '.join(sorted(set(found))[:5])}.",
            expected="a model of plain Keras layers",
            fix="if you trust its author: load_model(..., trust_code=True) (tools: --trust_model_code)",
        )
    custom = dict(custom_objects or {})
    _register(configs)
    try:
        if version.startswith("3"):
            loaded = load_keras3(str(path), trust_code=trust_code, custom_objects=custom)
        else:
            safety = {"safe_mode": False} if trust_code else {}
            with _tfmot_scopes(configs):
                loaded = keras.models.load_model(path, custom_objects=custom, compile=False, **safety)
    except InputError:
        raise
    except Exception as e:  # the loaders raise nearly anything on a bad file
        # The layers are built twice, and the file's weights no longer match: tensorflow/model-optimization pull 1123.
        if "QuantizeWrapper" in json.dumps(configs) and zipfile.is_zipfile(path):
            raise InputError(
                f"{path} holds a model of tfmot's quantize_model, whose weights a .keras file does not give back.",
                expected="an .h5 file of it, or the plain model",
                fix="where the model still is: model.save('model.h5'), or "
                "okd.save_model(okd.strip_quantization(model), 'model.keras')",
            ) from e
        raise InputError(
            f"{path} could not be loaded: {type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''}",
            expected="a model whose layers tf_keras knows",
            fix="give your own layer classes as custom_objects={'MyLayer': MyLayer}; else save the model again",
        ) from e
    if hasattr(type(loaded), "network_behind"):  # a Distiller: what it trained
        loaded = loaded.student
    if not isinstance(loaded, keras.Model):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a Keras model.", expected="a Keras model",
                         fix="save the model with model.save('model.keras')")  # fmt: skip
    return in_full_precision(as_tf_keras(loaded, refuse=()))


def _register(configs: list[Any]) -> None:
    """Imports what registers the classes of this library that a file names: Keras looks none of them up by itself."""
    text = json.dumps(configs)
    for name, module in _REGISTERED_BY.items():
        if f"orbit_kd>{name}" in text:
            importlib.import_module(module)


@contextlib.contextmanager
def _tfmot_scopes(configs: list[Any]) -> Iterator[None]:
    """Within it, tf_keras knows the wrappers of tfmot, where a file has some: tfmot registers none of its classes."""
    text = json.dumps(configs)
    if not any(name in text for name in _TFMOT):
        yield
        return
    import tensorflow_model_optimization as tfmot

    prune, cluster = tfmot.sparsity.keras.prune_scope(), tfmot.clustering.keras.cluster_scope()
    with prune, cluster, tfmot.quantization.keras.quantize_scope():
        yield


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Writes a .keras file of tf_keras, whole or not at all; returns its path.

    Args:
        model: of tf_keras, with its wrappers where it has some; a subclassed one is written as its graph, one of Keras
            3 as its tf_keras twin, so that the file loads without their code.
        path: of the file, *.keras.

    Raises:
        InputError: no model, the folder cannot be written, or the name ends otherwise.
    """
    model = as_tf_keras(model, refuse=())
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"{path} does not end in .keras.", expected="a .keras file", fix=f"write {path.stem}.keras")
    return replace_file(path, lambda file: model.save(file, save_format="keras"))


def fingerprint(model: keras.Model) -> str:
    """sha256 over the architecture and the weights, as hex."""
    return digest(model.to_json(), model.get_weights())
