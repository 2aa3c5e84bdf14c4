"""Opens a .tflite file: the flatbuffer as the objects of its schema."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orbit_kd.errors import InputError

DECODE = b"TFLM_DECODE"
_FILE_IDENTIFIER = b"TFL3"


def read_bytes(path_or_bytes: str | os.PathLike[str] | bytes) -> bytes:
    """The content of a file, or the bytes themselves.

    Raises:
        InputError: the file does not exist or cannot be read.
    """
    if isinstance(path_or_bytes, (bytes, bytearray)):
        return bytes(path_or_bytes)
    try:
        return Path(path_or_bytes).read_bytes()
    except TypeError as error:
        raise InputError(
            f"This is a {type(path_or_bytes).__name__}, not a file.",
            expected="the path or the bytes of an exported file",
            fix="export the model first: okd.export(model, 'tflite_float32', path='model.tflite')",
        ) from error
    except OSError as error:
        raise InputError(
            f"Cannot read {path_or_bytes}: {error.strerror or error}.",
            expected="a .tflite file",
            fix="check the path",
        ) from error


def parse(data: bytes) -> Any:
    """The flatbuffer as the schema's `ModelT` object.

    Raises:
        InputError: not a .tflite file, or a damaged one.
    """
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != _FILE_IDENTIFIER:
        raise _not_a_file(f"its bytes 4 to 7 are {data[4:8]!r}")
    with told_if_damaged():
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        if model.subgraphs and all(buffer.offset <= 1 for buffer in model.buffers):
            return model
    raise _not_a_file("it has no graph, or keeps its weights outside the flatbuffer")


@contextlib.contextmanager
def told_if_damaged() -> Iterator[None]:
    """Within it, whatever goes wrong is the fault of a damaged file, which sends its readers anywhere.

    Raises:
        InputError: something went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise _not_a_file(f"reading it fails with {type(error).__name__}: {error}") from error


def _not_a_file(problem: str) -> InputError:
    return InputError(
        f"Not a .tflite file: {problem}.",
        expected='a whole flatbuffer with the identifier b"TFL3"',
        fix="export the model again, for example okd.export(model, 'tflite_int8', path=..., calibration=...)",
    )


def operator_name(model: Any, op: Any) -> str:
    """What the schema calls a builtin operator of a parsed file, e.g. "CONV_2D"; "CUSTOM" for all others."""
    return code_name(model.operatorCodes[op.opcodeIndex])


def code_name(code: Any) -> str:
    """The same of an entry of the file's operator codes."""
    # The schema's first field for it has a byte: it holds the largest number there for operators that came later.
    return _operator_names()[code_number(code)]


def code_number(code: Any) -> int:
    """The number of a builtin operator in the schema, from an entry of the file's operator codes."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def is_decode(model: Any, op: Any) -> bool:
    """Whether an operator of a parsed file is TensorFlow Lite Micro's, that decodes constants."""
    return model.operatorCodes[op.opcodeIndex].customCode == DECODE


def only_tflm(model: Any) -> bool:
    """Whether only TensorFlow Lite Micro runs a parsed file, as it decodes constants or repeats a zero point.

    What the target "tflite_micro_coded" writes is of this kind.
    """
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    decodes = any(is_decode(model, op) for graph in model.subgraphs for op in graph.operators or [])
    return decodes or any(repeated_zero_point(tensor.quantization) for tensor in tensors)


def repeated_zero_point(quantization: Any) -> bool:
    """Whether one zero point is stored for several scales."""
    if quantization is None or quantization.scale is None or quantization.zeroPoint is None:
        return False
    return len(quantization.zeroPoint) == 1 < len(quantization.scale)


@functools.cache
def _operator_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
