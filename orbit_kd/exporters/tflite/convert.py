"""The TensorFlow Lite converter: a model's graph for a batch of 1 becomes a file, quietly, and its errors ours."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import add_metadata
from orbit_kd.exporters.requirements import Shape, check_finite
from orbit_kd.exporters.tflite.mending import mend_scales
from orbit_kd.exporters.tflite.ports import input_keys, put_in_order
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
    inputs: int

    @property
    def dtypes(self) -> list[Any]:
        """Of the inputs, TensorFlow's."""
        return [tensor.dtype for tensor in self.function.inputs[: self.inputs]]

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return len(self.function.structured_outputs) if isinstance(self.function.structured_outputs, tuple) else 1

    def calibration(self, images: Sequence[np.ndarray]) -> Callable[[], Iterator[Any]]:
        """What the converter takes for a representative data set.

        Args:
            images: (n, ...), one array an input, in the model's order.
        """
        parts = [x[:, None].astype(kind.as_numpy_dtype) for x, kind in zip(images, self.dtypes, strict=True)]
        if len(parts) == 1:
            return lambda: ([batch] for batch in parts[0])
        # by name, as a list would be taken in the order that the converter has given the file
        keys = input_keys(len(parts))
        return lambda: (dict(zip(keys, batches, strict=True)) for batches in zip(*parts, strict=True))


def trace(model: Any, shapes: Sequence[Shape], *, dtypes: Sequence[Any] | None = None) -> Traced:
    """The graph of a model with finite weights, for one image.

    Args:
        model: a tf_keras model.
        shapes: of its inputs without the batch, in its order.
        dtypes: likewise; None for float32.

    Raises:
        InputError: weights that are not finite, or a layer that cannot be traced.
    """
    import tensorflow as tf

    def call(*images: Any) -> Any:
        found = model(images[0] if len(images) == 1 else list(images), training=False)
        flat = tf.nest.flatten(found)
        return found if len(flat) == 1 else tuple(flat)

    check_finite(model)
    function = tf.function((lambda image: call(image)) if len(shapes) == 1 else call, autograph=False)
    # The holder keeps the variables alive for the converter, and nothing else: saving the whole Keras model would trace
    # every layer again.
    holder = tf.Module()
    holder.variables_ = list(model.variables)
    with _converting(model):
        kinds = dtypes or ["float32"] * len(shapes)
        keys = input_keys(len(shapes))
        signature = [tf.TensorSpec((1, *s), k, name=n) for s, k, n in zip(shapes, kinds, keys, strict=True)]
        return Traced(model, function.get_concrete_function(*signature), holder, len(shapes))


def convert(traced: Traced, settings: Callable[[Any], None] = lambda converter: None) -> bytes:
    """Runs the converter, quietly, mends what it does wrong, and packs it closer; `settings` sets its options.

    Raises:
        InputError: as `export_float32`.
    """
    import tensorflow as tf

    single = (traced.inputs, traced.outputs) == (1, 1)
    short = single and _goes_the_short_way(traced.function)  # which loses the names of several inputs and outputs
    with _converting(traced.model):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.function], traced.holder)
        converter.experimental_lower_to_saved_model = not short
        settings(converter)
        data = converter.convert()
    file = parse(data)
    if short:
        _rename(file)
    if not single:
        put_in_order(file, traced.model, inputs=traced.inputs, outputs=traced.outputs)
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
