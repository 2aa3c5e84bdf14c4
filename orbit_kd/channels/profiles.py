"""What a Keras model costs, layer by layer: parameters, non-zeros, MACs, activations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.channels.ids import Channels
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.unwrapping import unwrapped_copy, wrappers_in
from orbit_kd.support.text_table import aligned


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer: `width` is its output channels, `macs` is NaN where the image size is not known."""

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    width: int
    params: int
    nonzero_params: int
    macs: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The costs of a Keras model; prints as a table.

    Attributes:
        layers: one row a layer with weights, in call order.
        params: elements of all Keras variables (BatchNormalization not folded; the exported file has fewer).
        nonzero_params: those that are not 0.
        macs: multiply-accumulates of convolutions, dense, recurrent and attention layers for one image; NaN for an
            unknown image size or number of time steps.
        bytes: the variables as float32.
        activation_bytes: the most that tensors alive at one time take for one image, at one byte (int8) an element.
    """

    layers: tuple[LayerProfile, ...]
    params: int
    nonzero_params: int
    macs: float
    bytes: int
    activation_bytes: float

    def __str__(self) -> str:
        rows = [("layer", "type", "output", "params", "non-zero", "MACs")]
        for la in self.layers:
            shape = "x".join("?" if n is None else str(n) for n in la.output_shape)
            rows.append((la.name, la.type, shape, f"{la.params:,}", f"{la.nonzero_params:,}", _count(la.macs)))
        rows.append(("total", "", "", f"{self.params:,}", f"{self.nonzero_params:,}", _count(self.macs)))
        lines = aligned(rows, "<<<>>>")
        lines.append(f"{self.bytes:,} bytes as float32; {_count(self.activation_bytes)} bytes of int8 activations")
        return "\n".join(lines)


def profile(model: keras.Model) -> Profile:
    """The costs of a model, from its layers and shapes; the exported file's own figures come from `evaluate`.

    Args:
        model: a Functional or Sequential model. Layers without a channel rule count no MACs; wrappers (sparsity,
            clustering, quantization, tfmot's) are looked through, so that the figures are those after `okd.strip`.

    Raises:
        InputError: the model has no layer graph.
    """
    model = as_tf_keras(model, refuse=())
    if wrappers_in(model):
        model = unwrapped_copy(model)
    graph = ChannelGraph(model, unknown="keep")
    stays, rows = graph.all_stay(), []
    outputs = {path: out for _, out, path in reversed(graph.steps)}
    for record in graph.layers.values():
        values = [] if isinstance(record.layer, keras.Model) else record.layer.get_weights()
        if not values:
            continue
        out = outputs[record.path][0]
        rows.append(
            LayerProfile(
                name=record.path,
                type=type(record.layer).__name__,
                output_shape=out.shape,
                width=len(out.ids),
                params=sum(v.size for v in values),
                nonzero_params=sum(int(np.count_nonzero(v)) for v in values),
                macs=record.macs + sum(w.uses * math.prod(w.shape) for w in record.weights.values() if w.uses),
            )
        )
    params = sum(r.params for r in rows)
    return Profile(
        layers=tuple(rows),
        params=params,
        nonzero_params=sum(r.nonzero_params for r in rows),
        macs=graph.macs(stays),
        bytes=4 * params,
        activation_bytes=activation_bytes(graph, stays),
    )


def activation_bytes(graph: ChannelGraph, stays: np.ndarray) -> float:
    """The most that tensors alive at one time take, in int8 bytes for one image; NaN for an unknown image size.

    A tensor lives from the call that makes it to the last call that reads it; calls run in graph order. Elementwise
    layers (which a converter mostly folds away) write over an input that dies with them.
    """

    def size(x: Channels) -> float:
        others = [n for i, n in enumerate(x.shape) if i != x.axis]
        return math.nan if None in others else math.prod(n or 0 for n in others) * stays[graph.unit_of[x.ids]].sum()

    multiplies = {la.path for la in graph.layers.values() if la.macs or any(w.uses for w in la.weights.values())}
    last = {id(x): i for i, (inputs, _, _) in enumerate(graph.steps) for x in inputs}
    alive: dict[int, float] = {id(x): size(x) for inputs, _, _ in graph.steps[:1] for x in inputs}
    peak = sum(alive.values())
    for i, (inputs, outputs, path) in enumerate(graph.steps):
        made = {id(x): size(x) for x in outputs}
        dying = [x for x in inputs if last[id(x)] == i and id(x) in alive]
        # an elementwise layer may write over an input that nobody reads any more
        over = [x for x in dying if path not in multiplies and x.shape == outputs[0].shape
                and np.array_equal(x.ids, outputs[0].ids)]  # fmt: skip
        alive.update(made)
        peak = max(peak, sum(alive.values()) - sum(alive[id(x)] for x in over[:1]))
        for key in [k for k in alive if last.get(k, -1) <= i and k not in made]:
            del alive[key]
    return peak


def _count(n: float) -> str:
    return "?" if math.isnan(n) else f"{n:,.0f}"
