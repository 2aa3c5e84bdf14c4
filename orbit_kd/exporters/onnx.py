"""ONNX: the float network for toolchains that read it (FINN, Vitis AI, onnxruntime), checked against Keras.

Specification: https://onnx.ai/onnx/intro/concepts.html; conversion by tf2onnx (extra `fpga`).
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orbit_kd.datasets.samples import calibration_images, calibration_sample
from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.exporters.metadata import to_text
from orbit_kd.exporters.requirements import Shape, check_finite, fixed_shapes, output_names
from orbit_kd.exporters.targets import target
from orbit_kd.exporters.tflite.convert import quiet
from orbit_kd.exporters.tflite.quantization_aware import refuse_quantization_aware
from orbit_kd.runtimes.onnx import load_onnx
from orbit_kd.runtimes.ports import one_or_all
from orbit_kd.support.extras import require
from orbit_kd.support.files import write_file
from orbit_kd.support.native_log import native_stderr
from orbit_kd.tflite.reader import read_bytes

TOLERANCE = 1e-5


@target("onnx", suffix=".onnx", runtime="onnx")
def export_onnx(
    model: Any,
    *,
    path: str | os.PathLike[str],
    calibration: Any = None,
    metadata: dict[str, Any] | None = None,
    opset: int = 17,
    batch: int | None = 1,
    samples: int = 16,
    seed: int = 0,
) -> Artifact:
    """A float32 ONNX file with the model's own inputs and outputs, in names, order and layout (batch, ..., channels).

    Args:
        model: tf_keras model, inputs (batch, ...) float32.
        path: the .onnx file to write.
        calibration: images to compare on, see `export`; without any, seeded noise of 0 to 255.
        metadata: stored as metadata_props, one entry each: text as it is, anything else as JSON.
        opset: ONNX operator set, 13 or later.
        batch: images a call takes; None leaves it open.
        samples: number of images to compare on.
        seed: which ones.

    Returns:
        Artifact; details: opset, batch, operators (name -> count), max_difference (onnxruntime against Keras,
        absolute), relative_difference (to the largest output), compared (images).

    Raises:
        InputError: the extra is missing, no tf_keras model with inputs of fixed sizes, an operator that tf2onnx or
            onnxruntime lacks, metadata JSON cannot hold, or results more than 1e-5 of the largest output apart.
    """
    require("tf2onnx", "onnx", "onnxruntime", extra="fpga")
    refuse_quantization_aware(model, "ONNX has no operator for its rounding of kernels")
    shapes = fixed_shapes(model)
    check_finite(model)
    if opset < 13 or (batch is not None and batch < 1):
        raise InputError(
            f"opset={opset}, batch={batch}.", expected="an opset of 13 or later, a batch of 1 or more, or None",
            fix="leave both out: opset 17, batch 1",
        )  # fmt: skip
    entries = {k: v if isinstance(v, str) else to_text(v) for k, v in (metadata or {}).items()}
    proto = _convert(model, shapes, opset=opset, batch=batch)
    for key, text in entries.items():
        proto.metadata_props.add(key=key, value=text)
    data = proto.SerializeToString()
    images = _images(calibration, model, shapes, samples=samples, seed=seed)
    details = {
        "opset": opset,
        "batch": batch,
        "operators": _counts([node.op_type for node in proto.graph.node]),
        **_compare(data, model, images),
    }
    return Artifact.of(data, target="onnx", files=(write_file(path, data),), details=details)


def read_onnx_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of `export_onnx`, with JSON read back.

    Raises:
        InputError: the extra is missing, or not an ONNX file.
    """
    require("onnx", extra="fpga")
    import onnx

    try:
        proto = onnx.load_model_from_string(read_bytes(path))
    except Exception as error:  # protobuf's DecodeError, which has moved between its versions
        raise InputError(f"{Path(path)} is no ONNX file.", expected="an .onnx file", fix="export the model") from error
    return {entry.key: _read_entry(entry.value) for entry in proto.metadata_props}


def _read_entry(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(model: Any, shapes: Sequence[Shape], *, opset: int, batch: int | None) -> Any:
    """The ONNX model; outputs and inputs are called as in Keras, and in its order."""
    import tensorflow as tf
    import tf2onnx

    names = output_names(model, len(model.outputs))

    def call(*images: Any) -> dict[str, Any]:
        found = tf.nest.flatten(model(images[0] if len(images) == 1 else list(images), training=False))
        return dict(zip(names, found, strict=True))

    function = tf.function((lambda image: call(image)) if len(shapes) == 1 else call, autograph=False)
    signature = [
        tf.TensorSpec((batch, *shape), tf.float32, name=name)
        for shape, name in zip(shapes, model.input_names, strict=True)
    ]
    with quiet(), native_stderr():
        try:
            proto, _ = tf2onnx.convert.from_function(function, signature, opset=opset)
        except Exception as error:  # tf2onnx raises nearly anything on what it does not know
            raise InputError(
                f"tf2onnx cannot convert model {model.name!r}: {str(error).strip()[:300]}",
                expected=f"layers made of operators that ONNX opset {opset} has",
                fix="replace that layer, or try a later opset",
            ) from error
    _put_in_order(proto.graph.input, model.input_names, model.name)
    _put_in_order(proto.graph.output, names, model.name)
    if batch is None:
        for end in (*proto.graph.input, *proto.graph.output):
            end.type.tensor_type.shape.dim[0].dim_param = "batch"
    _steady_names(proto.graph, model.name)
    return proto


def _put_in_order(ends: Any, names: Sequence[str], model: str) -> None:
    """Sorts a graph's inputs or outputs, of which tf2onnx sorts those of a dict by name."""
    if len(ends) == len(names) == 1:
        return
    found = {end.name: end for end in ends}
    if set(found) != set(names):
        raise InputError(
            f"tf2onnx has made {', '.join(found)} of the inputs or outputs {', '.join(names)} of model {model!r}.",
            expected="each of them, under its name",
            fix="leave out inputs that nothing reads, and name layers with letters, digits and _",
        )
    ordered = [copy.deepcopy(found[name]) for name in names]
    del ends[:]
    ends.extend(ordered)


def _steady_names(graph: Any, name: str) -> None:
    """Names by the place in the graph, so that a model gives the same file each time.

    tf2onnx's own counters go on from one export to the next, and of equal constants it keeps any one's name.
    """
    graph.name, graph.doc_string = name, ""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a graph inside (a loop) may use names of this one
    rename = _renamer([])
    for node in graph.node:
        node.name = rename(node.name)
    constants = {value.name: value for value in graph.initializer}
    rename = _renamer(["", *(end.name for end in (*graph.input, *graph.output))])
    used = {}
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value in constants and value not in used:
                used[value] = f"{node.name}:in{place}"
            node.input[place] = used.get(value) or rename(value)
        node.output[:] = [rename(value) for value in node.output]
    for value in graph.value_info:
        value.name = rename(value.name)
    del graph.initializer[:]
    for old, new in used.items():
        constants[old].name = new
        graph.initializer.append(constants[old])


def _renamer(kept: list[str]) -> Callable[[str], str]:
    """Old name -> the same without tf2onnx's "__123", made unique; `kept` stay as they are."""
    new = {name: name for name in kept}

    def rename(old: str) -> str:
        if old not in new:
            plain, taken = re.sub(r"__\d+", "", old), set(new.values())
            tries = (f"{plain}__{i}" if i else plain for i in itertools.count())
            new[old] = next(name for name in tries if name not in taken)
        return new[old]

    return rename


def _images(calibration: Any, model: Any, shapes: Sequence[Shape], *, samples: int, seed: int) -> list[np.ndarray]:
    """What to compare on, (n, ...) float32, one array an input."""
    if calibration is None:
        rng = np.random.default_rng(seed)
        return [rng.uniform(0, 255, (samples, *shape)).astype(np.float32) for shape in shapes]
    if len(shapes) == 1:
        return [calibration_images(calibration, shape=shapes[0], samples=samples, seed=seed)]
    inputs = dict(zip(model.input_names, shapes, strict=True))
    return calibration_sample(calibration, samples=samples, seed=seed, inputs=inputs)


def _compare(data: bytes, model: Any, images: list[np.ndarray]) -> dict[str, Any]:
    """Runs both on the same images, and tells of the output that differs most.

    Raises:
        InputError: they differ.
    """
    import tensorflow as tf

    expected = tf.nest.flatten(model.predict(one_or_all(images), verbose=0))
    found = load_onnx(data, 1).raw(one_or_all(images))
    apart = [_difference(a, b) for a, b in zip(found if len(expected) > 1 else (found,), expected, strict=True)]
    difference, relative = max(apart, key=lambda pair: np.nan_to_num(pair[1], nan=np.inf))
    if not relative <= TOLERANCE:  # NaN must not pass
        raise InputError(
            f"The ONNX file of model {model.name!r} gives other results than Keras: {difference:.3g} apart, which is "
            f"{relative:.2g} of the largest output.",
            expected=f"at most {TOLERANCE:g} of it, over {len(images[0])} images",
            fix="compare on real images (calibration=...); if it stays, replace the layer that ONNX computes otherwise",
        )
    return {"max_difference": difference, "relative_difference": relative, "compared": len(images[0])}


def _difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference, and its share of the largest value."""
    difference = float(np.abs(found.astype(np.float64) - expected).max())  # of truth values, too
    largest = float(np.abs(expected).max())
    return difference, difference / largest if largest else difference


def _counts(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
