"""The TensorFlow Lite converter: a model's graph for a batch of 1 becomes a file, quietly, and its errors ours."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.requirements import check_finite
from orbit_kd.exporters.tflite.mending import mend_scales
from orbit_kd.support.files import write_file
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.writer import to_bytes

_MANY_WEIGHTS = 8_000_000  # from where on the way over the disk is the faster one
_ONLY_LONG = ("Assign", "ResourceGather")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model's graph for a batch of 1, and what keeps its variables alive for the converter."""

    model: Any
    function: Any
    holder: Any

    def calibration(self, images: np.ndarray) -> Callable[[], Iterator[list[np.ndarray]]]:
        """What the converter takes for a representative data set."""
        batches = images[:, None].astype(self.function.inputs[0].dtype.as_numpy_dtype)
        return lambda: ([batch] for batch in batches)


def trace(model: Any, shape: tuple[int, ...], *, dtype: Any = "float32") -> Traced:
    """The graph of a model with finite weights, for one image of a shape.

    Raises:
        InputError: weights that are not finite, or a layer that cannot be traced.
    """
    import tensorflow as tf

    check_finite(model)
    function = tf.function(lambda image: model(image, training=False), autograph=False)
    # The holder keeps the variables alive for the converter, and nothing else: saving the whole Keras model would trace
    # every layer again.
    holder = tf.Module()
    holder.variables_ = list(model.variables)
    with _converting(model):
        signature = tf.TensorSpec((1, *shape), dtype, name="image")
        return Traced(model, function.get_concrete_function(signature), holder)


def convert(traced: Traced, settings: Callable[[Any], None] = lambda converter: None) -> bytes:
    """Runs the converter, quietly, mends what it does wrong, and packs it closer; `settings` sets its options.

    Raises:
        InputError: as `export_float32`.
    """
    import tensorflow as tf

    short = _goes_the_short_way(traced.function)
    with _converting(traced.model):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.function], traced.holder)
        converter.experimental_lower_to_saved_model = not short
        settings(converter)
        data = converter.convert()
    file = parse(data)
    if short:
        _rename(file)
    mend_scales(file)
    return to_bytes(file)


def _goes_the_short_way(function: Any) -> bool:
    """Whether the converter comes to the same without its way over a SavedModel on disk, which takes three times as
    long for all but the largest networks.

    That way alone keeps together what is a function in the graph, such as an LSTM, knows variables that are assigned,
    and names what an Embedding looks up without a number that counts the process's graphs.
    """
    import tensorflow as tf

    weights = sum(v.shape.num_elements() for v in function.variables)
    if not (0 < weights < _MANY_WEIGHTS and isinstance(function.structured_outputs, tf.Tensor)):
        return False
    graph = function.graph.as_graph_def()
    return not graph.library.function and not any(node.op.startswith(_ONLY_LONG) for node in graph.node)


def _rename(file: Any) -> None:
    """Gives the tensors of a parsed file, and its one signature, the names of the way over a SavedModel."""
    from ai_edge_litert import schema_py_generated as schema

    graph = file.subgraphs[0]
    for tensor in graph.tensors:
        name = re.sub(rb"^image(?=_|$)", b"serving_default_image:0", tensor.name)
        name = re.sub(rb"^Identity(?=\d|_|$)", b"StatefulPartitionedCall:0", name)
        tensor.name = name.replace(b"/ReadVariableOp/resource", b"/ReadVariableOp")
    ports = [schema.TensorMapT(b"image", graph.inputs[0])], [schema.TensorMapT(b"output_0", graph.outputs[0])]
    file.signatureDefs = [schema.SignatureDefT(*ports, b"serving_default", 0)]


@contextlib.contextmanager
def _converting(model: Any) -> Iterator[None]:
    """Quiet; what fails within it becomes an InputError."""
    with quiet(), native_stderr() as log:
        try:
            yield
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error))
            if "AssignVariable" in str(error):
                raise InputError(
                    f"Model {model.name!r} keeps state from one call to the next, in a variable that it assigns.",
                    expected="a network that sees each input by itself",
                    fix="build recurrent layers with stateful=False, and set the same weights; other state has to "
                    "come in as part of the input",
                ) from error
            raise InputError(
                f"TFLite cannot hold model {model.name!r}: {reason.strip()[:300]}",
                expected="layers made of TFLite's builtin operators, with shapes known for a batch of 1",
                fix="replace that layer; the converter's whole report is the `__cause__` of this error",
            ) from RuntimeError(f"{error}\n{log.text}")


def save(
    data: bytes,
    path: str | os.PathLike[str],
    *,
    target: str,
    metadata: dict[str, Any] | None,
    details: dict[str, Any] | None = None,
) -> Artifact:
    """Writes a .tflite file, with its metadata."""
    if metadata is not None:
        data = add_metadata(data, metadata)
    return Artifact.of(data, target=target, files=(write_file(path, data),), details=details or {})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No Python warnings or log lines of the converter, for this block only."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
