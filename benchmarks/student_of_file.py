"""A Keras network to train on, out of a published int8 file of a VGG: what the converter folded is taken apart again.

models/vgg16_aid15a has no student.keras. The kernels and biases of its file go into the pruned layers of the teacher; a
BatchNormalization gets the statistics that the outputs of its convolution have on training images, and the scale and
offset that undo them, so that training finds it as it would have been.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tf_keras as keras

from orbit_kd.datasets import Data
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph

_BATCHES = 40


def student_of_file(teacher: keras.Model, folder: Path, data: Data) -> keras.Model:
    """The student whose int8 file and recipe.flags are in a folder of models/."""
    flags = dict(line[2:].split("=", 1) for line in (folder / "recipe.flags").read_text().splitlines() if "=" in line
                 and line.startswith("--"))  # fmt: skip
    ratios = {name: float(ratio) for name, ratio in (item.rsplit(":", 1) for item in flags["ratios"].split(","))}
    student = remove_filters(teacher, plan_removal(teacher, ratios=ratios, ratio=0.0))
    graph = Subgraph(parse((folder / "student_tflite_int8.tflite").read_bytes()))
    stored = [(graph.kernel(op), int(op.inputs[2])) for op in graph.operators if graph.kernel(op) is not None]
    order = [layer for layer in student.layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))]
    behind = dict(zip(student.layers, student.layers[1:], strict=False))
    folded: list[tuple[keras.layers.Layer, keras.layers.Layer, np.ndarray]] = []
    scale = next(layer.scale for layer in student.layers if isinstance(layer, keras.layers.Rescaling))
    for layer, (kernel, bias) in zip(order, stored, strict=True):
        values, offset = _floats(graph, kernel), _floats(graph, bias)
        if isinstance(layer, keras.layers.Dense):
            layer.set_weights([values.T, offset])
            continue
        values = np.transpose(values, (1, 2, 3, 0)) / (scale if layer is order[0] else 1)  # it is in the first kernel
        layer.set_weights([values] if not layer.use_bias else [values, np.zeros_like(offset)])
        folded.append((layer, behind[layer], offset))
    for _, norm, offset in folded:  # computes what the file does, for the outputs below
        norm.set_weights([np.ones_like(offset), offset, np.zeros_like(offset), np.ones_like(offset) - norm.epsilon])
    x = np.concatenate([np.asarray(batch[0]) for batch, _ in zip(data.train, range(_BATCHES), strict=False)])
    outputs = keras.Model(student.inputs, [layer.output for layer, *_ in folded]).predict(x, verbose=0)
    for (_, norm, offset), y in zip(folded, outputs, strict=True):
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        norm.set_weights([np.sqrt(variance + norm.epsilon), mean + offset, mean, variance])
    return student


def _floats(graph: Subgraph, index: int) -> np.ndarray:
    """A constant as numbers."""
    quantization, values = graph.tensors[index].quantization, graph.dense(index).astype(np.float64)
    shape = [1] * values.ndim
    shape[quantization.quantizedDimension] = -1
    return values * np.asarray(quantization.scale, np.float64).reshape(shape)
