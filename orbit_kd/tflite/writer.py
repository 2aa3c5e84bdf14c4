"""Changes a parsed .tflite file, and makes a file of it again: the only place that writes the format."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np


def set_constant(model: Any, tensor: Any, *, values: np.ndarray) -> None:
    """Puts other values into a tensor, or a note of the metadata, of a parsed file, and into all that share them."""
    model.buffers[tensor.buffer].data = _stored(values)


def add_constant(model: Any, values: np.ndarray) -> int:
    """Adds values to a parsed file; returns their number, the `buffer` of tensors and metadata."""
    from ai_edge_litert import schema_py_generated as schema

    model.buffers.append(schema.BufferT(data=_stored(values)))
    return len(model.buffers) - 1


def _stored(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def renumber_codes(model: Any) -> None:
    """Leaves the operator codes that are used, the most frequent first: its number is 0, which takes no bytes."""
    operators = [op for graph in model.subgraphs for op in graph.operators]
    order = [index for index, _ in collections.Counter(op.opcodeIndex for op in operators).most_common()]
    for op in operators:
        op.opcodeIndex = order.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in order]


def to_bytes(model: Any, *, small: bool = False) -> bytes:
    """The file of what `reader.parse` gave: every constant at a multiple of 16 bytes, equal vectors stored once.

    Constants that no tensor and no note uses any more are left out.

    The alignment is the schema's `force_align: 16`, which the Python generator drops
    (https://github.com/google/flatbuffers/issues/5839); without it weights may start at any byte, and runtimes that
    read the file in place fault or slow down. Sharing vectors is what the FlatBuffers format allows and the converter
    does not do: the zero points of a per-channel int8 kernel alone are 8 bytes a channel, all zero, once for the
    kernel and once for its bias.

    Args:
        model: as `reader.parse` gives it, or changed.
        small: share equal tables too, and align constants to 4 bytes, which is what int32 biases and coded constants
            need: for files of which the interpreter decodes the kernels into memory that it aligns itself.
    """
    from ai_edge_litert import schema_py_generated as schema

    from orbit_kd.tflite.builder import SharingBuilder

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder: Any) -> int:
            if self.data is not None:
                builder.Prep(16, len(self.data))
            return super().Pack(builder)

    used = {int(t.buffer) for graph in model.subgraphs for t in graph.tensors}
    used |= {int(entry.buffer) for entry in model.metadata or ()}
    kind = schema.BufferT if small else AlignedBuffer
    model.buffers = [kind(b.data if i in used else None, b.offset, b.size) for i, b in enumerate(model.buffers)]
    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    builder = SharingBuilder(size + 4096, tables=small)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
