"""One network of the search for the smallest: made from a larger one, and measured as the int8 file that it becomes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.evaluation.records import records_of
from orbit_kd.exporters import export
from orbit_kd.quantization.aware import plain_model, quantize_aware
from orbit_kd.removal import budgets
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.search.allocation import Allocation, is_coded
from orbit_kd.search.evaluator import Examples
from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
from orbit_kd.tasks import Task


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a network's file is.

    Attributes:
        accuracy: the task's metric on the validation images; of a classifier the share of right answers.
        cost: what is to be small.
        bytes: of the file.
        params: of the network.
        macs: of one image.
    """

    accuracy: float
    cost: float
    bytes: int
    params: int
    macs: float


@dataclasses.dataclass(frozen=True)
class Judge:
    """Measures networks as the files that they become.

    Attributes:
        task: what the networks are for.
        batches: validation images and labels.
        calibration: inputs that set the ranges of a network that has none.
        samples: how many of them.
        target: the file that bytes are of.
        shrink: what is to be small, as in `allocate`.
        unknown: as in `plan_removal`.
    """

    task: Task
    batches: Examples
    calibration: Any
    samples: int
    target: str
    shrink: str
    unknown: str

    def __call__(self, model: keras.Model) -> Reached:
        """What the file of a plain or quantization-aware network reaches and costs."""
        x = self.batches[0][0]
        open_size = len(model.inputs) == 1 and None in model.input_shape[1:]
        size = {"input_shape": x.shape[1:]} if open_size else {}
        with tempfile.TemporaryDirectory() as folder:
            file = export(model, "tflite_int8", path=Path(folder, "int8.tflite"), calibration=self.calibration,
                          samples=self.samples, **size)  # fmt: skip
            records = records_of({"student": file.path.read_bytes()}, list(self.batches), task=self.task)["student"]
            if is_coded(self.target):  # compared with the plain file on one image: the last one is, on more
                file = export(file, self.target, path=Path(folder, "coded.tflite"), checks=1)
        graph = ChannelGraph(plain_model(model), unknown=self.unknown)
        stays = graph.all_stay()
        if self.shrink == "bytes":
            cost = float(file.bytes)
        else:
            cost = budgets.costs.get(f"max_{self.shrink}").cost(graph, stays)
        return Reached(self.task.value(records), cost, file.bytes, graph.parameters(stays),
                       graph.macs(stays))  # fmt: skip


def shrunk(
    model: keras.Model, allocation: Allocation, *, criterion: str, train: Any, loss: Any, round_to: int,
    min_channels: int, exclude: Sequence[str], unknown: str, seed: int, pattern: str = "magnitude",
) -> keras.Model:  # fmt: skip
    """A plain copy without the filters that go, and with the zeros that come, which training keeps."""
    plan = plan_removal(
        model, criterion=criterion, ratio=0.0, ratios=allocation.ratios, round_to=round_to, min_channels=min_channels,
        exclude=exclude, unknown=unknown, data=train, loss=loss, seed=seed,
    )  # fmt: skip
    small = remove_filters(model, plan)
    if pattern != "magnitude":
        return strip(sparsify(small, pattern, schedule="one_shot"), finish=True)
    if allocation.sparsities:
        sparse = sparsify(small, "magnitude", sparsity=allocation.sparsities, schedule="one_shot")
        return strip(sparse, finish=True)
    return keep_zeros(small)


def with_bits(model: keras.Model, bits: Mapping[str, int], *, calibration: Any, samples: int) -> keras.Model:
    """The network that trains with the rounding of its file, where kernels have fewer than eight bits; else itself."""
    if not bits:
        return model
    return quantize_aware(model, bits=bits, calibration=calibration, samples=samples)


def takes_bits(model: keras.Model) -> bool:
    """Whether the network can be trained with fewer bits."""
    try:
        quantize_aware(model)
    except InputError:
        return False
    return True
