"""What of each layer is computed in 8 bits, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import named_layers
from orbit_kd.models.unwrapping import CLUSTERED, SPARSE, refuse_wrapped, wrappers_in
from orbit_kd.quantization.layers import QuantizedLayer
from orbit_kd.quantization.placement import PASS_ON, has_fixed_range
from orbit_kd.support.text_table import aligned


@dataclasses.dataclass(frozen=True)
class QuantizationRow:
    """One layer of a `QuantizationTable`.

    Attributes:
        layer: its name, "outer/inner" within a nested model.
        kind: its class.
        quantized: what of it is rounded to 8 bits: some of "inputs", "kernel", "preactivation", "output".
        density: fraction of kernel weights that are not zero; None for layers without a kernel.
        note: why nothing of it is rounded, or why its output is not.
    """

    layer: str
    kind: str
    quantized: tuple[str, ...]
    density: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class QuantizationTable:
    """What of each layer is computed in 8 bits. Prints as a table; iterates over its rows."""

    rows: tuple[QuantizationRow, ...]

    def __iter__(self) -> Iterator[QuantizationRow]:
        return iter(self.rows)

    def __getitem__(self, layer: str) -> QuantizationRow:
        return next(row for row in self.rows if row.layer == layer)

    def __str__(self) -> str:
        cells = [("layer", "class", "density", "8 bits", "note")]
        for r in self.rows:
            density = "" if r.density is None else f"{r.density:.3f}"
            cells.append((r.layer, r.kind, density, ", ".join(r.quantized) or "-", r.note))
        return "\n".join(aligned(cells, "<<><<"))


def quantize_table(model: keras.Model) -> QuantizationTable:
    """What each layer of a model of `quantize_aware` computes in 8 bits.

    Raises:
        InputError: the model has no layers that can be looked at.
    """
    model = as_tf_keras(model, refuse=SPARSE + CLUSTERED)
    if not all(isinstance(layer, QuantizedLayer) for layer in wrappers_in(model)):
        refuse_wrapped(model)
    return QuantizationTable(
        tuple(
            _row(name, layer) for name, layer in named_layers(model) if not isinstance(layer, keras.layers.InputLayer)
        )
    )


def _row(name: str, layer: keras.layers.Layer) -> QuantizationRow:
    if not isinstance(layer, QuantizedLayer):
        return QuantizationRow(name, type(layer).__name__, (), None, _why_no_output(layer) or "no floats, or several")
    inner, parts, density = layer.layer, tuple(layer.ranges), None
    if layer.kernel is not None:
        density = float(np.mean(layer.kernel.numpy() != 0))
        parts = parts if layer.channel_axes is None else ("kernel", *parts)
    note = "" if "output" in parts else _why_no_output(inner) or "the next layer is fused into it"
    if layer.folded:
        note = "folded into the layer before"
    if not layer.ready:
        note = "no ranges yet; " + note if note else "no ranges yet"
    return QuantizationRow(name, type(inner).__name__, parts, density, note)


def _why_no_output(layer: keras.layers.Layer) -> str:
    if isinstance(layer, PASS_ON):
        return "its output has the scale of its input"
    return "its output has a fixed scale" if has_fixed_range(layer) else ""
