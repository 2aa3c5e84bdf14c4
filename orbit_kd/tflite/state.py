"""What a .tflite file keeps from one inference to the next."""

from __future__ import annotations

import enum
from typing import Any

from orbit_kd.tflite.reader import operator_name


class State(enum.Enum):
    """What a file keeps from one inference to the next.

    TENSORS: variable tensors (LSTM, SVDF), which begin as zeros and which runtimes can reset. RESOURCES: variables that
    operators read and assign (streaming networks), whose first values `CALL_ONCE` sets.
    """

    NONE = "none"
    TENSORS = "tensors"
    RESOURCES = "resources"


def state_of(model: Any) -> State:
    """What a parsed file keeps from one inference to the next."""
    if any(operator_name(model, op) == "VAR_HANDLE" for graph in model.subgraphs for op in graph.operators):
        return State.RESOURCES
    variable = any(tensor.isVariable for graph in model.subgraphs for tensor in graph.tensors)
    return State.TENSORS if variable else State.NONE
