"""Whether the kernels of a .tflite file keep an N:M pattern, group by group."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from orbit_kd.support.n_of_m import nonzeros
from orbit_kd.tflite.reader import parse, read_bytes, told_if_damaged
from orbit_kd.tflite.subgraph import Subgraph


@dataclasses.dataclass(frozen=True)
class NMCheck:
    """How a kernel stands to the N:M rule.

    Attributes:
        name: name of the operator's output tensor.
        groups: aligned groups of M input channels, for each (out, ky, kx), or each out where they are shared by all
            taps; the last one may be short.
        bad_groups: those with more than N non-zeros.
        minus_128: int8 weights of -128, which NPUs' symmetric formats do not have.
    """

    name: str
    groups: int
    bad_groups: int
    minus_128: int

    @property
    def ok(self) -> bool:
        """The kernel keeps the rule and has no -128."""
        return not self.bad_groups and not self.minus_128


@told_if_damaged()
def check_n_m(
    path_or_bytes: str | os.PathLike[str] | bytes, *, n: int = 2, m: int = 4, shared: bool = False
) -> tuple[NMCheck, ...]:
    """Checks every convolution and dense kernel for N:M sparsity along its input channels.

    Groups are M consecutive input channels, aligned at 0, for each (out, ky, kx): the rule of Ethos-U85 and of NVIDIA's
    sparse tensor cores. Channels missing from the last group count as zeros. Depthwise kernels have one input channel
    each and are left out.

    Args:
        path_or_bytes: the .tflite file.
        n: non-zeros in a group, at most.
        m: channels of a group.
        shared: tap-shared N:M: a channel counts that has a non-zero at any tap of the output channel's kernel.

    Raises:
        InputError: no .tflite file, or a sparse-encoded one.
    """
    graph = Subgraph(parse(read_bytes(path_or_bytes)))
    checks = []
    for op in graph.operators:
        kernel = graph.kernel(op)
        if kernel is None or graph.name(op) in ("DEPTHWISE_CONV_2D", "BATCH_MATMUL"):
            continue
        weights = graph.dense(kernel)
        if graph.name(op) == "CONV_3D":  # stored (d, h, w, in, out), unlike the others
            weights = np.moveaxis(weights, -1, 0)
        places = weights != graph.zero_point(kernel)
        kept = nonzeros(places.any(axis=tuple(range(1, places.ndim - 1))) if shared else places, m)
        minus_128 = int((weights == -128).sum()) if weights.dtype == np.int8 else 0
        checks.append(NMCheck(graph.output_name(op), kept.size, int((kept > n).sum()), minus_128))
    return tuple(checks)
