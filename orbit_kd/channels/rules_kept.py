"""Layers whose channels stay, attention, recurrent and wrapper layers, and the multiply-accumulates they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from orbit_kd.channels.ids import Call, Channels, Ids, Layer, channel_rule, rule_for
from orbit_kd.channels.rules import positions

Shape = tuple[int | None, ...]


def _stay(call: Call, macs: float) -> list[Channels]:
    call.multiplies(macs)
    return call.keep_all(f"{type(call.layer).__name__} keeps its channels")


@channel_rule(layers.RNN, layers.LSTM, layers.GRU, layers.SimpleRNN)
@channel_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def recurrent(call: Call) -> list[Channels]:
    """Both kernels of each cell work once a time step; of a convolutional one, at every output position of it."""
    layer = call.layer
    where: float = 1
    if rank := getattr(layer.cell, "rank", 0):
        image = call.output_shapes[0][-rank - 1 :]
        where = positions(image, 0 if layer.cell.data_format == "channels_first" else rank)
    cells = getattr(layer.cell, "cells", [layer.cell])
    steps = math.nan if layer.time_major else _size(call.x.shape[:1])
    return _stay(call, steps * where * sum(map(_cell_weights, cells)))


def _cell_weights(cell: Any) -> float:
    """Elements of the two kernels of a cell; NaN for a cell of another kind that has weights."""
    if hasattr(cell, "kernel") and hasattr(cell, "recurrent_kernel"):
        return math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape)
    return math.nan if cell.weights else 0


@channel_rule(layers.Bidirectional)
def bidirectional(call: Call) -> list[Channels]:
    """One layer forwards and one backwards."""
    directions = call.layer.forward_layer, call.layer.backward_layer
    return _stay(call, sum(_macs_inside(call.graph, layer, call.x.shape) for layer in directions))


@channel_rule(layers.TimeDistributed)
def time_distributed(call: Call) -> list[Channels]:
    """The same layer at every time step."""
    return _stay(call, _size(call.x.shape[:1]) * _macs_inside(call.graph, call.layer.layer, call.x.shape[1:]))


@channel_rule(layers.MultiHeadAttention)
def multi_head_attention(call: Call) -> list[Channels]:
    """Four projections, and two products of what they give."""
    layer, query, value = call.layer, call.x.shape, call.inputs[min(1, len(call.inputs) - 1)].shape
    here, there = _size(query[:-1]), _size(value[:-1])
    size = {name: math.prod(getattr(layer, f"_{name}_dense").kernel.shape) for name in ("query", "key", "value")}
    out = math.prod(layer._output_dense.kernel.shape)
    products = layer._num_heads * here * there * (layer._key_dim + layer._value_dim)
    return _stay(call, here * (size["query"] + out) + there * (size["key"] + size["value"]) + products)


@channel_rule(layers.Attention, layers.AdditiveAttention)
def attention(call: Call) -> list[Channels]:
    """Products of query and key (a sum of theirs, where it is additive), and of the scores and the value."""
    query, value = call.x.shape, call.inputs[min(1, len(call.inputs) - 1)].shape
    key = call.inputs[-1].shape
    widths = (0 if isinstance(call.layer, layers.AdditiveAttention) else key[-1] or math.nan) + (value[-1] or math.nan)
    return _stay(call, _size(query[:-1]) * (value[-2] or math.nan) * widths)


def _size(shape: Shape) -> float:
    return math.nan if None in shape else math.prod(n for n in shape if n is not None)


class _Apart:
    """What a rule writes to for a layer inside another one, whose channels stay anyway: it is forgotten again."""

    def __init__(self, macs_of: Callable[[keras.Model, Shape], float]) -> None:
        self.macs_of = macs_of
        self.pairs: list[Any] = []
        self.kept: list[Any] = []
        self.arguments: dict[int, Any] = {}
        self._count = 0

    def new_ids(self, n: int, path: str) -> Ids:
        self._count += n
        return np.arange(self._count - n, self._count, dtype=np.int64)


class _Node:
    """The call of a layer inside another one, which is in no graph."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs


def _macs_inside(graph: Any, layer: keras.layers.Layer, shape: Shape) -> float:
    """Multiply-accumulates of a layer inside another, for an input of this shape; NaN where they are not known."""
    if isinstance(layer, keras.Model):
        return graph.macs_of(layer, shape)
    rule = rule_for(layer)
    if rule is None:
        return math.nan if layer.weights else 0
    outputs = layer.compute_output_shape((None, *shape))
    node = _Node([tf.TensorSpec(s) for s in (outputs if isinstance(outputs, list) else [outputs])])
    record, apart = Layer(layer, layer.name), _Apart(graph.macs_of)
    named = Channels(apart.new_ids(shape[-1] or 1, ""), len(shape) - 1, shape)
    rule(Call(cast(Any, apart), record, cast(Any, node), [named]))
    return record.macs + sum(w.uses * math.prod(w.shape) for w in record.weights.values() if w.uses)
