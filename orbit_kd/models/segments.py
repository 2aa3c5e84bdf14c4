"""A graph model as one list of layer calls, through nested models, that can be run in pieces."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.walk import Node, arguments, carry, conform, fed, require_graph


@dataclasses.dataclass(frozen=True)
class _Ref:
    """Stands for a tensor in the arguments of a call."""

    key: int


@dataclasses.dataclass(frozen=True)
class _Call:
    layer: Callable[..., Any]  # a layer, or what makes tensors fit the inputs of a nested model
    args: Any
    kwargs: Any
    reads: tuple[int, ...]
    makes: tuple[int, ...]


class Segments:
    """The layer calls of a model in the order of execution; `run` computes any stretch of them, in inference mode.

    A position p in 0..len(calls) lies before call p. The tensors *live* there are those made before it and read after
    it: with their values the rest can be computed without what lies before.

    Args:
        model: a Functional or Sequential model.

    Raises:
        InputError: the model has no layer graph.
    """

    def __init__(self, model: keras.Model) -> None:
        require_graph(model)
        self.calls: list[_Call] = []
        self._count = len(model.inputs)
        self._inputs = list(range(self._count))
        self._outputs = carry(model, self._inputs, self._call, enter=self._enter)
        last: dict[int, int] = {key: len(self.calls) for key in self._outputs}
        for i, call in enumerate(self.calls):
            for key in call.reads:
                last[key] = max(last.get(key, 0), i)
        self._last = last

    def _call(self, node: Node, path: str, reads: list[int]) -> list[int]:
        args, kwargs = arguments(node, [_Ref(key) for key in reads])
        if node.layer._expects_training_arg:
            kwargs = {**kwargs, "training": False}
        return self._add(node.layer, args, kwargs, reads, makes=len(tf.nest.flatten(node.outputs)))

    def _enter(self, node: Node, path: str, given: list[int]) -> list[int]:
        """The inputs of a nested model: what it is given, but for a call that makes it fit where it does not."""
        model = node.layer
        fits = all(t.dtype == own.dtype and t.shape.rank == own.shape.rank
                   for t, own in zip(fed(node), model.inputs, strict=True))  # fmt: skip
        if fits:
            return given
        return self._add(functools.partial(conform, model), [[_Ref(key) for key in given]], {}, given, makes=len(given))

    def _add(self, function: Callable[..., Any], args: Any, kwargs: Any, reads: list[int], *, makes: int) -> list[int]:
        made = list(range(self._count, self._count + makes))
        self._count += makes
        self.calls.append(_Call(function, args, kwargs, tuple(reads), tuple(made)))
        return made

    def first_call(self, layers: Iterable[keras.layers.Layer]) -> int:
        """The position before the first call of any of the layers; the end where none is called."""
        wanted = {id(layer) for layer in layers}
        return next((i for i, call in enumerate(self.calls) if id(call.layer) in wanted), len(self.calls))

    def live(self, position: int) -> list[int]:
        """Keys of the tensors that are live at a position, ascending."""
        made = [*self._inputs, *(key for call in self.calls[:position] for key in call.makes)]
        return sorted(key for key in made if self._last.get(key, -1) >= position)

    def run(self, start: int, stop: int, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """From the values of `live(start)` to those of `live(stop)`."""
        tensors: dict[int, tf.Tensor] = dict(zip(self.live(start), values, strict=True))

        def value(part: Any) -> Any:
            return tensors[part.key] if isinstance(part, _Ref) else part

        for call in self.calls[start:stop]:
            args, kwargs = tf.nest.map_structure(value, (call.args, call.kwargs))
            outputs = tf.nest.flatten(call.layer(*args, **kwargs))
            tensors.update(zip(call.makes, outputs, strict=True))
        return [tensors[key] for key in self.live(stop)]

    def outputs(self, start: int, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The model's outputs, in its order, from the values of `live(start)`."""
        end = len(self.calls)
        made = dict(zip(self.live(end), self.run(start, end, values), strict=True))
        return [made[key] for key in self._outputs]
