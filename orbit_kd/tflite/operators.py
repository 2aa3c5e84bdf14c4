"""What is known of TFLite's operators by their names: where their kernels and biases stand, which call others."""

from __future__ import annotations

import functools

# Where the kernel and the bias stand in the inputs of the operators that multiply and accumulate.
KERNEL_AND_BIAS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "CONV_3D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
    "BATCH_MATMUL": (1, None),
}
# The same of recurrent operators, which have several of each, and multiply them at every time step.
_LSTM = ((*range(1, 9), 16), (*range(12, 16), 17))
RECURRENT: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "LSTM": _LSTM,
    "BASIC_LSTM": ((2,), (3,)),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (
        (*range(1, 9), 16, *range(18, 26), 33, *range(40, 48)),
        (*range(12, 16), 17, *range(29, 33), 34),
    ),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), (3,)),
    "BIDIRECTIONAL_SEQUENCE_RNN": ((1, 2, 5, 6, 10, 11), (3, 7)),
    "RNN": ((1, 2), (3,)),
    "SVDF": ((1, 2), (3,)),
}
# Operators whose inputs are those of other subgraphs; what is constant among them counts where it is computed with.
CALLS = {"WHILE", "IF", "CALL_ONCE", "CALL", "STABLEHLO_COMPOSITE"}


def places(name: str, *, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where kernels and biases stand among the inputs of an operator.

    Args:
        name: of the operator.
        inputs: how many it has.
    """
    kernel, bias = KERNEL_AND_BIAS.get(name, (None, None))
    one = (() if kernel is None else (kernel,), () if bias is None else (bias,))
    return RECURRENT.get("BASIC_LSTM" if name == "LSTM" and inputs == 5 else name, one)


def dtype_name(number: int) -> str:
    """What NumPy calls a type of the schema, or the schema in small letters."""
    return _type_names()[number]


@functools.cache
def _type_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
