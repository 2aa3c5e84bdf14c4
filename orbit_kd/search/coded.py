"""The bytes that a network's coded int8 file will have, predicted from its kernels, whatever goes of them."""

from __future__ import annotations

import functools

import numpy as np

from orbit_kd.channels.ids import Layer
from orbit_kd.quantization.rounding import channel_axes, to_levels
from orbit_kd.search.changes import bits_left
from orbit_kd.search.moves import Moves, State
from orbit_kd.tflite.coding import coded_size_of, histogram

_CHANNEL = 8  # bytes of an output channel: bias and scale
_LAYER = 400  # bytes of a layer's operator, tensors and buffers
_SEEN = 1 << 16  # weights of a kernel that stand for all


class CodedSize:
    """A cost: state -> bytes of the file in which constants are entropy-coded.

    A kernel takes what the values it has take at this sparsity and with these bits, for as many as the filters leave.

    Args:
        moves: of the network.
    """

    def __init__(self, moves: Moves) -> None:
        self.moves, graph = moves, moves.graph
        self._known: dict[tuple[str, tuple[float, ...]], float] = {}
        group_of = {int(unit): name for name, group in moves.groups.items() for unit in group.units}
        self._layers: list[tuple[Layer, list[tuple[str, str]]]] = []
        for record in graph.layers.values():
            if any(weight.uses for weight in record.weights.values()):
                ids = [axis for weight in record.weights.values() for axis in weight.axes if axis is not None]
                touched = {group_of[u] for axis in ids for u in graph.unit_of[axis].tolist() if u in group_of}
                about = [("filters", name) for name in sorted(touched)]
                self._layers.append((record, [*about, ("weights", record.path), ("bits", record.path)]))

    def __call__(self, gone: State) -> float:
        """Bytes in this state."""
        return sum(self._layer(record, tuple(gone.get(name, 0.0) for name in about), gone)
                   for record, about in self._layers)  # fmt: skip

    def _layer(self, record: Layer, about: tuple[float, ...], gone: State) -> float:
        if (record.path, about) not in self._known:
            graph, stays = self.moves.graph, self.moves.stays(gone)
            kernel, size = self.moves.kernels.get(record.path), float(_LAYER)
            for weight in record.weights.values():
                if not weight.uses:
                    continue
                count = graph.size(weight, stays)
                ids = None if weight.out_axis is None else weight.axes[weight.out_axis]
                size += _CHANNEL * (0 if ids is None else int(stays[graph.unit_of[ids]].sum()))
                if kernel is None or weight is not kernel.weight:
                    size += count
                    continue
                fixed, each = self._rate(record.path, about[-2], bits_left(about[-1]))
                size += min(fixed + each * count, count)
            self._known[record.path, about] = size
        return self._known[record.path, about]

    @functools.cache  # noqa: B019  (lives as long as the moves, which are one step's)
    def _rate(self, layer: str, sparsity: float, bits: int) -> tuple[float, float]:
        """Bytes of a kernel whatever its size, and of each of its weights."""
        codes = self._sample(layer, bits).copy()
        codes[: round(len(codes) * sparsity)] = 0
        total = self.moves.kernels[layer].value.size
        counts = histogram(codes) * (total / len(codes))
        whole, half = (coded_size_of(np.rint(part * counts).astype(int)) for part in (1.0, 0.5))
        return max(2.0 * half - whole, 0.0), min(2 * (whole - half) / total, 1.0)

    @functools.cache  # noqa: B019
    def _sample(self, layer: str, bits: int) -> np.ndarray:
        """Weights of all channels of a kernel, as whole numbers of so many bits, the smallest weight first."""
        kernel = self.moves.kernels[layer]
        axes = [axis % kernel.value.ndim for axis in channel_axes(kernel.layer)]
        channels = np.moveaxis(kernel.value, axes, range(len(axes)))
        rows = channels.reshape(np.prod(channels.shape[: len(axes)]), -1)
        rows = rows[:, :: -(-rows.size // _SEEN)]
        return to_levels(rows, bits, axes=(-2,))[0].ravel()[np.argsort(np.abs(rows).ravel(), kind="stable")]
