"""Recurrent layers and other loops, which the converter cannot quantize: refused before it tries.

TensorFlow's converter (2.21) ends the process with a segmentation fault on nearly every loop that is to become int8 or
int16x8: SimpleRNN, GRU (https://github.com/tensorflow/tensorflow/issues/87468), ConvLSTM, an LSTM that it does not
know as one (another activation, a Masking before it), tf.map_fn. Whether a loop is left shows in the float32 file of
the same graph, whose conversion is safe.
"""

from __future__ import annotations

from typing import Any

import tf_keras as keras
from tf_keras.src.layers.rnn.base_conv_rnn import ConvRNN

from orbit_kd.errors import InputError
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph

_LOOPS = ("While", "StatelessWhile")


def has_loop(function: Any) -> bool:
    """Whether a loop is in the graph of a concrete function, or of one that it calls."""
    graph = function.graph.as_graph_def()
    nodes = (graph.node, *(inner.node_def for inner in graph.library.function))
    return any(node.op in _LOOPS for part in nodes for node in part)


def refuse_loops(model: Any, float_file: bytes, *, target: str) -> None:
    """Raises InputError where the float32 file of a model holds what the converter cannot quantize.

    Args:
        model: the tf_keras model.
        float_file: its "tflite_float32" file.
        target: "tflite_int8" or "tflite_int16x8".
    """
    # the whole LSTM as one operator exists in int8, but not with int16 activations (tensorflow/tensorflow issue 59626)
    kinds = {"WHILE"} | ({"UNIDIRECTIONAL_SEQUENCE_LSTM"} if target == "tflite_int16x8" else set())
    graph = Subgraph(parse(float_file))
    found = [op for op in graph.operators if graph.name(op) in kinds]
    if not found:
        return
    rolled = [layer for layer in _recurrent(model) if target == "tflite_int16x8" or not _is_fused(layer, model)]
    if rolled:
        names = ", ".join(f"{layer.name!r} ({_kind(layer)})" for layer in rolled)
        what = f"Model {model.name!r} cannot become {target}: TFLite keeps a loop for the recurrent layer {names}."
    else:
        name = graph.output_name(found[0])
        what = f"Model {model.name!r} cannot become {target}: its loop {name[:80]!r} stays one in TFLite."
    if rolled and not isinstance(rolled[0], ConvRNN):
        fix = "build the network with unroll=True in that layer and give it the same weights (set_weights)"
        if target == "tflite_int16x8" and all(_is_fused(layer, model) for layer in rolled):
            fix += "; or export tflite_int8, which has this LSTM as one operator"
    else:
        fix = "export tflite_float32 or tflite_float16, which keep the loop; or replace what loops"
        fix += "" if rolled else ", tf.map_fn for example by tf.vectorized_map"
    raise InputError(what, expected="layers without a loop, which integer arithmetic does not reach into", fix=fix)


def _recurrent(model: Any) -> list[keras.layers.RNN]:
    """Recurrent layers that are not unrolled, through wrappers, nested models and layers of one's own."""
    # a Bidirectional keeps the layer that it copied for both directions
    unused = {id(module.layer) for module in model.submodules if isinstance(module, keras.layers.Bidirectional)}
    inner = (module for module in model.submodules if isinstance(module, keras.layers.RNN))
    return [layer for layer in inner if not layer.unroll and id(layer) not in unused]


def _is_fused(layer: keras.layers.RNN, model: Any) -> bool:
    """Whether TFLite has an operator for it: an LSTM with the usual activations and no mask."""
    masks = any(isinstance(m, keras.layers.Masking) or getattr(m, "mask_zero", False) for m in model.submodules)
    return isinstance(layer, keras.layers.LSTM) and layer._could_use_gpu_kernel and not masks


def _kind(layer: keras.layers.RNN) -> str:
    cell = "" if type(layer) is not keras.layers.RNN else f" of {type(layer.cell).__name__}"
    return type(layer).__name__ + cell
