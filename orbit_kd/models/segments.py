"""A graph model as one list of layer calls, through nested models, that can be run in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.models.walk import require_graph, walk


@dataclasses.dataclass(frozen=True)
class _Ref:
    """Stands for a tensor in the arguments of a call."""

    key: int


@dataclasses.dataclass(frozen=True)
class _Call:
    layer: keras.layers.Layer
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
        self._outputs = self._add(model, self._inputs)
        last: dict[int, int] = {key: len(self.calls) for key in self._outputs}
        for i, call in enumerate(self.calls):
            for key in call.reads:
                last[key] = max(last.get(key, 0), i)
        self._last = last

    def _add(self, model: keras.Model, given: Sequence[int]) -> list[int]:
        """Appends the calls of a (nested) model on the tensors `given`; returns its outputs."""
        keys = dict(zip(map(id, model.inputs), given, strict=True))

        def ref(value: Any) -> Any:
            return _Ref(keys[id(value)]) if id(value) in keys else value

        for node in walk(model):
            reads = [keys[id(t)] for t in node.keras_inputs]
            outputs = tf.nest.flatten(node.outputs)
            if isinstance(node.layer, keras.Model):
                require_graph(node.layer)
                makes = self._add(node.layer, reads)
            else:
                makes = list(range(self._count, self._count + len(outputs)))
                self._count += len(outputs)
                args, kwargs = tf.nest.map_structure(ref, (node.call_args, node.call_kwargs))
                if node.layer._expects_training_arg:
                    kwargs = {**kwargs, "training": False}
                self.calls.append(_Call(node.layer, args, kwargs, tuple(reads), tuple(makes)))
            keys.update(zip(map(id, outputs), makes, strict=True))
        return [keys[id(t)] for t in model.outputs]

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
