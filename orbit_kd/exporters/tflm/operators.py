"""Which operators TensorFlow Lite Micro has, and what they are called in its `MicroMutableOpResolver`."""

from __future__ import annotations

from typing import Any

from orbit_kd.errors import InputError
from orbit_kd.tflite.reader import operator_name

# The operator's name in TFLite's schema : the method without "Add".
_TABLE = """
ABS:Abs ADD:Add ADD_N:AddN ARG_MAX:ArgMax ARG_MIN:ArgMin ASSIGN_VARIABLE:AssignVariable
AVERAGE_POOL_2D:AveragePool2D BATCH_MATMUL:BatchMatMul BATCH_TO_SPACE_ND:BatchToSpaceNd BROADCAST_ARGS:BroadcastArgs
BROADCAST_TO:BroadcastTo CALL_ONCE:CallOnce CAST:Cast CEIL:Ceil CONCATENATION:Concatenation CONV_2D:Conv2D COS:Cos
CUMSUM:CumSum DEPTHWISE_CONV_2D:DepthwiseConv2D DEPTH_TO_SPACE:DepthToSpace DEQUANTIZE:Dequantize DIV:Div
DYNAMIC_UPDATE_SLICE:DynamicUpdateSlice ELU:Elu EMBEDDING_LOOKUP:EmbeddingLookup EQUAL:Equal EXP:Exp
EXPAND_DIMS:ExpandDims FILL:Fill FLOOR:Floor FLOOR_DIV:FloorDiv FLOOR_MOD:FloorMod FULLY_CONNECTED:FullyConnected
GATHER:Gather GATHER_ND:GatherNd GREATER:Greater GREATER_EQUAL:GreaterEqual HARD_SWISH:HardSwish IF:If
L2_NORMALIZATION:L2Normalization L2_POOL_2D:L2Pool2D LEAKY_RELU:LeakyRelu LESS:Less LESS_EQUAL:LessEqual LOG:Log
LOGICAL_AND:LogicalAnd LOGICAL_NOT:LogicalNot LOGICAL_OR:LogicalOr LOGISTIC:Logistic LOG_SOFTMAX:LogSoftmax
MAXIMUM:Maximum MAX_POOL_2D:MaxPool2D MEAN:Mean MINIMUM:Minimum MIRROR_PAD:MirrorPad MUL:Mul NEG:Neg
NOT_EQUAL:NotEqual PACK:Pack PAD:Pad PADV2:PadV2 PRELU:Prelu QUANTIZE:Quantize READ_VARIABLE:ReadVariable
REDUCE_ALL:ReduceAll REDUCE_MAX:ReduceMax REDUCE_MIN:ReduceMin RELU:Relu RELU6:Relu6 RESHAPE:Reshape
RESIZE_BILINEAR:ResizeBilinear RESIZE_NEAREST_NEIGHBOR:ResizeNearestNeighbor REVERSE_V2:ReverseV2 ROUND:Round
RSQRT:Rsqrt SELECT_V2:SelectV2 SHAPE:Shape SIN:Sin SLICE:Slice SOFTMAX:Softmax SPACE_TO_BATCH_ND:SpaceToBatchNd
SPACE_TO_DEPTH:SpaceToDepth SPLIT:Split SPLIT_V:SplitV SQRT:Sqrt SQUARE:Square SQUARED_DIFFERENCE:SquaredDifference
SQUEEZE:Squeeze STRIDED_SLICE:StridedSlice SUB:Sub SUM:Sum SVDF:Svdf TANH:Tanh TRANSPOSE:Transpose
TRANSPOSE_CONV:TransposeConv UNIDIRECTIONAL_SEQUENCE_LSTM:UnidirectionalSequenceLSTM UNPACK:Unpack
VAR_HANDLE:VarHandle WHILE:While ZEROS_LIKE:ZerosLike
"""
ADD_METHODS = {name: f"Add{method}" for name, method in (pair.split(":") for pair in _TABLE.split())}
# Operators that the schema does not have: TFLM's own.
_CUSTOM = {"TFLM_DECODE": "AddDecode"}


def operator_names(model: Any) -> list[str]:
    """The operators of all graphs of a file, each once, in the order they first run; custom ones by their code.

    Args:
        model: as `reader.parse` returns it.
    """
    names = []
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        name, custom = operator_name(model, operator), model.operatorCodes[operator.opcodeIndex].customCode
        names.append(custom.decode() if name == "CUSTOM" and custom else name)
    return list(dict.fromkeys(names))


def add_methods(model: Any) -> list[str]:
    """The methods that register the operators of a file, each once.

    Args:
        model: as `reader.parse` returns it.

    Raises:
        InputError: an operator that TFLM lacks.
    """
    known = ADD_METHODS | _CUSTOM
    names = operator_names(model)
    if missing := [name for name in names if name not in known]:
        raise InputError(
            f"TensorFlow Lite Micro has no operator {' and no '.join(missing)}.",
            expected=f"operators it has: {', '.join(ADD_METHODS)}",
            fix="replace the layer it comes from, for example GELU by ReLU or HardSwish",
        )
    return [known[name] for name in names]
