"""Packs the schema's `ModelT` object, which `tflite_reader.parse` gives, into a .tflite file again."""

from __future__ import annotations

from typing import Any


def pack(model: Any) -> bytes:
    """The flatbuffer of a `ModelT`, with every constant at a multiple of 16 bytes.

    That is the schema's `force_align: 16`, which the Python generator drops; without it weights may start at any byte,
    and runtimes that read the file in place fault or slow down.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder: Any) -> int:
            if self.data is not None:
                builder.Prep(16, len(self.data))
            return super().Pack(builder)

    model.buffers = [AlignedBuffer(b.data, b.offset, b.size) for b in model.buffers]
    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    builder = flatbuffers.Builder(size + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
