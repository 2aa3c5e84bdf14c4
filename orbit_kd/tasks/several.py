"""Several outputs, each with a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tasks.fitting import fitting
from orbit_kd.tasks.network import output_names, part_of
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, from_config, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data


@tasks.register("several")
class Several(Task):
    """A task for each output. A record is an array of their records, one an output (dtype object).

    The metric is the mean of theirs, by `weights`.

    Attributes:
        parts: name of the output -> its task, in the order of the outputs.
        weights: of each in the metric and in the loss.
    """

    name = "several"
    metric = Metric("mean_metric", "mean of the outputs' metrics")

    def __init__(
        self, parts: Mapping[str, Task | Mapping[str, Any]], *, weights: Mapping[str, float] | None = None
    ) -> None:
        self.parts = {name: part if isinstance(part, Task) else from_config(part) for name, part in parts.items()}
        self.weights: dict[str, float] = {name: float((weights or {}).get(name, 1.0)) for name in parts}
        self.losses = ()  # each output gets the one that fits it
        if strange := set(weights or ()) - set(parts):
            raise InputError(
                f"There are weights for {', '.join(sorted(strange))}, and no such outputs.",
                expected=f"names of outputs: {', '.join(parts)}",
                fix="mend the names",
            )

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Several:
        return cls.for_outputs(model, data, names={})

    @classmethod
    def for_outputs(
        cls, model: keras.Model, data: Data | None = None, *, names: Mapping[str, str],
        weights: Mapping[str, float] | None = None,
    ) -> Several:  # fmt: skip
        """The tasks of a network's outputs.

        Args:
            model: with several outputs.
            data: its data.
            names: of the task of an output, where its shape, its last activation and its labels do not tell.
            weights: of outputs; 1 for those that are not named.

        Raises:
            InputError: an output that fits no task, or whose labels are missing.
        """
        ends, found = output_names(model), {}
        labels = None if data is None else data.val.element_spec[1]
        for i, name in enumerate(ends):
            part = None if labels is None else part_of(labels, i, ends)
            if labels is not None and part is None:
                raise InputError(
                    f"The data has no labels for output {name!r}.",
                    expected=f"labels for each output: {', '.join(ends)}",
                    fix="give y as a dict by the names of the outputs, or as a tuple in their order",
                )
            alone = _alone(model, i)
            found[name] = tasks.get(names.get(name) or fitting(alone, part)).of(alone)
        return cls(found, weights=weights)

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        return {name: part.loss(_alone(model, i)) for i, (name, part) in enumerate(self.parts.items())}

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        return {name: part.keras_metrics(_alone(model, i)) for i, (name, part) in enumerate(self.parts.items())}  # type: ignore[return-value]

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        losses = [part.sample_loss(_alone(model, i)) for i, part in enumerate(self.parts.values())]
        weights = list(self.weights.values())

        def total(y: Any, outputs: Sequence[Any]) -> Any:
            import tensorflow as tf

            terms = zip(losses, weights, y, outputs, strict=True)
            return tf.add_n([w * tf.cast(loss(part, [out]), tf.float32) for loss, w, part, out in terms])

        return total

    def truth(self, y: Any) -> tuple[Any, ...]:
        names = list(self.parts)
        return tuple(part.truth(part_of(y, i, names)) for i, part in enumerate(self.parts.values()))

    def records(self, truth: Any, outputs: Outputs) -> Records:
        parts = [
            part.records(y, (out,)) for part, y, out in zip(self.parts.values(), truth, outputs, strict=True)
        ]  # fmt: skip
        found = np.empty((len(parts[0]), len(parts)), object)
        for i, rows in enumerate(parts):
            for j, row in enumerate(rows):
                found[j, i] = row
        return found

    def _of(self, records: Records, i: int) -> Records:
        rows = list(records[:, i])
        if not isinstance(rows[0], tuple):
            return np.stack(rows)
        found = np.empty(len(rows), object)  # of tuples, which numpy would take apart
        for j, row in enumerate(rows):
            found[j] = row
        return found

    def value(self, records: Records) -> float:
        values = [part.value(self._of(records, i)) for i, part in enumerate(self.parts.values())]
        return float(np.average(np.array(values), weights=np.array(list(self.weights.values()))))

    def details(self, records: Records) -> dict[str, Any]:
        return {
            "outputs": {
                name: {"task": part.name, "metric": part.metric.name, **part.details(self._of(records, i))}
                for i, (name, part) in enumerate(self.parts.items())
            }
        }

    def arguments(self) -> dict[str, Any]:
        return {"parts": {name: part.config() for name, part in self.parts.items()}, "weights": self.weights}


def _alone(model: keras.Model, i: int) -> Any:
    """The network with one of its outputs, and what it was compiled with for that."""
    import tf_keras as keras

    from orbit_kd.models.outputs import compiled_losses

    alone = keras.Model(model.inputs, model.outputs[i], name=model.name)
    if loss := compiled_losses(model)[i]:
        alone.compile(loss=loss)
    return alone
