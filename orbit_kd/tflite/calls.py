"""Loops, branches and calls in a .tflite file: which subgraphs an operator runs, and how often.

`WHILE` is what a GRU, a SimpleRNN or a ConvLSTM becomes. A loop that counts from a constant to a constant, as these do,
has a known number of turns; of all others, and of the branches of `IF`, nobody can say how often they run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from orbit_kd.tflite.operators import CALLS
from orbit_kd.tflite.subgraph import Subgraph


def walk(graph: Subgraph, times: float = 1, *, above: tuple[int, ...] = ()) -> Iterator[tuple[Subgraph, Any, float]]:
    """(graph, operator, how often it runs for one image) of a graph and all it calls; NaN where that is not known.

    What `CALL_ONCE` runs, which sets variables to their first values, runs 0 times.
    """
    for op in graph.operators:
        yield graph, op, times
        for inner, turns in _called(graph, op):
            if inner.index not in above:  # a damaged file might call itself
                yield from walk(inner, times * turns, above=(*above, inner.index))


def _called(graph: Subgraph, op: Any) -> list[tuple[Subgraph, float]]:
    """The subgraphs an operator runs, with the constants it hands them put in place, and how often each runs."""
    name = graph.name(op)
    options = op.builtinOptions if name != "STABLEHLO_COMPOSITE" else op.builtinOptions2
    if name not in CALLS or options is None:
        return []
    if name == "WHILE":
        cond, body = graph.other(options.condSubgraphIndex), graph.other(options.bodySubgraphIndex)
        stays = [a == b for a, b in zip(body.inputs_of_graph, body.outputs_of_graph, strict=False)]
        for inner in (cond, body):
            _hand_over(graph, op, inner, stays)
        turns = _turns(graph, op, cond, body)
        return [(cond, turns + 1), (body, turns)]
    if name == "IF":
        branches = [graph.other(options.thenSubgraphIndex), graph.other(options.elseSubgraphIndex)]
        for branch in branches:
            _hand_over(graph, op, branch, first=1)
        return [(branch, math.nan) for branch in branches]
    if name == "CALL_ONCE":
        return [(graph.other(options.initSubgraphIndex), 0)]
    inner = graph.other(options.subgraph if name == "CALL" else options.decompositionSubgraphIndex)
    _hand_over(graph, op, inner)
    return [(inner, 1)]


def _hand_over(graph: Subgraph, op: Any, inner: Subgraph, stays: list[bool] | None = None, *, first: int = 0) -> None:
    """Puts an operator's constant inputs, those that no turn changes, in the place of the subgraph's own inputs."""
    constants = dict(graph.inputs(op))
    for place, tensor in enumerate(inner.inputs_of_graph):
        if place + first in constants and (stays is None or (place < len(stays) and stays[place])):
            inner.tensors[tensor] = graph.tensors[constants[place + first]]


def _turns(graph: Subgraph, op: Any, cond: Subgraph, body: Subgraph) -> float:
    """How often a loop runs: its condition holds as long as all its counters are below their limits."""
    constants = dict(graph.inputs(op))

    def below(tensor: int) -> float:
        test = _maker(cond, tensor)
        name = "" if test is None else cond.name(test)
        if test is not None and name == "LOGICAL_AND":
            limits = [below(int(i)) for i in test.inputs]
            return math.nan if any(map(math.isnan, limits)) else min(limits)
        if test is None or name not in ("LESS", "GREATER"):
            return math.nan
        counter, limit = map(int, test.inputs if name == "LESS" else test.inputs[::-1])
        if counter not in cond.inputs_of_graph:
            return math.nan
        place = cond.inputs_of_graph.index(counter)
        last = _number(cond, limit)
        begin = _number(graph, constants.get(place, -1))
        step = _step(body, place)
        return max(0, math.ceil((last - begin) / step)) if step > 0 and not math.isnan(last - begin) else math.nan

    return below(cond.outputs_of_graph[0]) if cond.outputs_of_graph else math.nan


def _step(body: Subgraph, place: int) -> float:
    """What a turn adds to a loop variable; NaN where it does something else with it."""
    add = _maker(body, body.outputs_of_graph[place])
    if add is None or body.name(add) != "ADD":
        return math.nan
    terms = [int(i) for i in add.inputs]
    others = [i for i in terms if i != body.inputs_of_graph[place]]
    return _number(body, others[0]) if len(others) == 1 else math.nan


def _maker(graph: Subgraph, tensor: int) -> Any:
    return next((op for op in graph.operators if tensor in graph.outputs(op)), None)


def _number(graph: Subgraph, index: int) -> float:
    """The value of a constant with one element; NaN for anything else."""
    if index < 0 or graph.data(index) is None or math.prod(graph.shape(index)) != 1:
        return math.nan
    return float(graph.dense(index).reshape(-1)[0])
