"""Which layers of a model are sparse, how much, and why the others are not: a table read off the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import tf_keras as keras

from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import has_matrix, named_layers
from orbit_kd.models.unwrapping import unwrapped_copy, wrappers_in
from orbit_kd.models.wrappers import kernel_rule
from orbit_kd.sparsity.layers import SparseLayer, reason_dense
from orbit_kd.sparsity.patterns import Magnitude, NofM, Pattern, SharedNofM
from orbit_kd.support.text_table import aligned


@dataclasses.dataclass(frozen=True)
class SparsityRow:
    """One layer of a `SparsityTable`.

    Attributes:
        layer: its name, "outer/inner" within a nested model.
        pattern: such as "2:4"; "" for a dense layer. For a plain model, the tightest one its zeros fulfil.
        density: fraction of kernel weights not zero in the forward pass; of all matrices where there is no kernel.
        weights: number of these weights.
        dense_because: why the layer is not sparse; "" where it is.
    """

    layer: str
    pattern: str
    density: float
    weights: int
    dense_because: str


@dataclasses.dataclass(frozen=True)
class SparsityTable:
    """The layers with weight matrices, and which are sparse how. Prints as a table; iterates over its rows."""

    rows: tuple[SparsityRow, ...]

    def __iter__(self) -> Iterator[SparsityRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str) -> SparsityRow:
        return next(row for row in self.rows if row.layer == layer)

    @property
    def density(self) -> float:
        """Fraction of weights that are not zero, over all rows."""
        return sum(r.density * r.weights for r in self.rows) / max(sum(r.weights for r in self.rows), 1)

    def __str__(self) -> str:
        head = ("layer", "pattern", "density", "weights", "dense because")
        cells = [
            head,
            *((r.layer, r.pattern or "-", f"{r.density:.3f}", str(r.weights), r.dense_because) for r in self),
        ]
        cells.append(("all", "", f"{self.density:.3f}", str(sum(r.weights for r in self)), ""))
        return "\n".join(aligned(cells, "<<>><"))


def sparsity_table(model: keras.Model) -> SparsityTable:
    """Which layers of a model are sparse, how much, and why the others are not.

    Args:
        model: wrapped by `sparsify`, stripped, or any other built model; other wrappers (clustering, quantization,
            tfmot's) are looked through.

    Raises:
        InputError: no model whose layers can be looked at.
    """
    model = as_tf_keras(model, refuse=())
    if not all(isinstance(layer, SparseLayer) for layer in wrappers_in(model)):
        model = unwrapped_copy(model)
    layers = [(name, layer) for name, layer in named_layers(model) if has_matrix(layer)]
    wrapped = next((layer.pattern for _, layer in layers if isinstance(layer, SparseLayer)), None)
    return SparsityTable(tuple(_row(name, layer, wrapped) for name, layer in layers))


def _row(name: str, layer: keras.layers.Layer, wrapped: Pattern | None) -> SparsityRow:
    if isinstance(layer, SparseLayer):
        kernel = layer.masked_kernel()
        return SparsityRow(name, layer.pattern.label, _density(kernel), kernel.size, "")
    rule = kernel_rule(layer)
    if isinstance(rule, str):
        matrices = [w.numpy() for w in layer.weights if w.shape.rank >= 2]
        size, kept = sum(m.size for m in matrices), sum(int(np.count_nonzero(m)) for m in matrices)
        return SparsityRow(name, "", kept / size, size, rule)
    kernel = getattr(layer, rule.kernel).numpy()
    density = _density(kernel)
    label = _fulfilled(kernel, rule.axis) if wrapped is None else ""
    if label:
        return SparsityRow(name, label, density, kernel.size, "")
    why = "not sparsified" if wrapped is None else reason_dense(layer, wrapped) or "excluded, or given no sparsity"
    return SparsityRow(name, "", density, kernel.size, why)


def _density(kernel: np.ndarray) -> float:
    return int(np.count_nonzero(kernel)) / kernel.size


def _fulfilled(kernel: np.ndarray, axis: int) -> str:
    """The tightest pattern that a plain kernel's zeros fulfil, "" for a dense one."""
    for m in (4, 8, 16):
        for n in range(1, m // 2 + 1):
            if NofM(n, m).reason_dense(kernel.shape[axis]) or NofM(n, m).violation(kernel, axis=axis):
                continue
            shared = SharedNofM(n, m)
            several_taps = kernel[..., 0, 0].size > 1
            return shared.label if several_taps and not shared.violation(kernel, axis=axis) else NofM(n, m).label
    zeros = 1 - _density(kernel)
    # A few exact zeros are no sparsity pattern.
    return Magnitude(min(zeros, 0.999)).label if zeros >= 0.01 else ""
