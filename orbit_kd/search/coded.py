"""The bytes that a network's coded int8 file will have, predicted from its kernels, whatever goes of them."""

from __future__ import annotations

import functools

import numpy as np

from orbit_kd.channels.ids import Layer
from orbit_kd.quantization.rounding import channel_axes, to_levels
from orbit_kd.search.changes import bits_left
from orbit_kd.search.moves import Kernel, Moves, State

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
        counts = _histogram(self.moves.kernels[layer], sparsity, bits)
        whole, half = coded_size_of(counts), coded_size_of(counts // 2)
        total = max(int(counts.sum()), 1)
        return max(2.0 * half - whole, 0.0), min(2 * (whole - half) / total, 1.0)


def _histogram(kernel: Kernel, sparsity: float, bits: int) -> np.ndarray:
    """(256,) how often each int8 value occurs in a kernel that is made so sparse and so coarse."""
    codes, _ = to_levels(kernel.value, bits, axes=channel_axes(kernel.layer))
    size = np.abs(kernel.value).ravel()
    step = -(-len(size) // _SEEN)
    codes, size = codes.ravel()[::step], size[::step]
    codes[np.argsort(size, kind="stable")[: round(len(size) * sparsity)]] = 0
    return np.bincount(codes.view(np.uint8), minlength=256)


def coded_size_of(counts: np.ndarray) -> float:
    """Bytes of values that occur so often: their entropy, a table, and a header."""
    total = counts.sum()
    parts = counts[counts > 0] / max(total, 1)
    return min(float(total), float(-(parts * np.log2(parts)).sum()) * total / 8 + 16 + 2 * max(32, len(parts)) + 76)
