"""The undamaged file of a campaign: its images, what it says about them, and what that is worth."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd import runtimes
from orbit_kd.datasets.batches import as_batches, in_order
from orbit_kd.errors import InputError
from orbit_kd.evaluation.running import file_inputs
from orbit_kd.evaluation.task_of_files import task_of
from orbit_kd.flight.guard import repair
from orbit_kd.flight.halves import cuts, halve
from orbit_kd.flight.regions import spans
from orbit_kd.flight.worker import File, flipped
from orbit_kd.runtimes.tflm import ample_arena
from orbit_kd.support.digests import digest
from orbit_kd.tasks import Task

_MOST = 3_000_000_000  # bytes that activations of all images may take


class Subject:
    """The undamaged file, its images, and what it says about them."""

    def __init__(self, data: bytes, test: Any, *, runtime: str, task: str | Task, guard: bytes = b"") -> None:
        self.data, self.runtime, self._guard = data, runtime, guard
        if guard and not repair(data, guard).whole:
            raise InputError("The guard does not find its file whole.", expected="the guard of this file",
                             fix="make it again: okd.flight.guard.harden(file)")  # fmt: skip
        self._runner = runtimes.load(data, runtime=runtime)
        self.task = task_of([_Model(data, runtime)], None, test, task=task)
        parts: list[tuple[np.ndarray, ...]] = []
        self._truth: list[Any] = []
        inputs = file_inputs(data) or {"image": self._runner.inputs[0].shape}
        for given, y, _ in as_batches(test, what="test data", inputs=inputs):
            x = runtimes.one_or_all(tuple(np.asarray(part) for part in in_order(given, inputs)))
            raw = runtimes.quantized(self._runner, x)
            parts.append(raw if isinstance(raw, tuple) else (raw,))
            singles = range(len(parts[-1][0]))
            self._truth += [tf.nest.map_structure(lambda part, i=i: np.asarray(part)[i : i + 1], y) for i in singles]
        self.inputs = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.images = len(self.inputs[0])
        self.spans = spans(data)
        self.tail_names: tuple[str, ...] = ()
        clean = self._runner.raw(self.inputs if len(self.inputs) > 1 else self.inputs[0])
        self.clean = np.concatenate([
            self.records([i], tuple(array[i : i + 1] for array in _tuple(clean))) for i in range(self.images)
        ])  # fmt: skip
        self.whole = self.task.value(self.clean)

    @property
    def key(self) -> str:
        """Names images, labels and task."""
        return digest(self.task.config(), *self.inputs, self.clean, self._guard)

    def guarded(self, bits: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Which bits of the file are still turned round once its guard has repaired it, and how many flipped in all.

        The guard lies in the same memory: its own bits flip at the same rate.
        """
        if not self._guard:
            return bits, len(bits)
        size = 8 * len(self._guard)
        own = rng.choice(size, rng.binomial(size, rate), replace=False, shuffle=False)
        damaged = flipped(self.data, bits)
        with contextlib.suppress(InputError):  # a guard beyond repair repairs nothing
            damaged = repair(damaged, flipped(self._guard, own)).data
        left = np.frombuffer(damaged, np.uint8) ^ np.frombuffer(self.data, np.uint8)
        places = np.flatnonzero(left)
        rows, which = np.nonzero(np.unpackbits(left[places, None], axis=1, bitorder="little"))
        return 8 * places[rows] + which, len(bits) + len(own)

    def file(self) -> File:
        """The file for the workers."""
        arena = ample_arena(self.data) if self.runtime == "tflm" else 0
        return File(self.data, self.runtime, self.inputs, arena)

    def tails(self) -> dict[str, File]:
        """What comes after each cut, with what is alive there for all images.

        Raises:
            InputError: that would take too much memory, or the file cannot be cut.
        """
        found, held = dict[str, File](), 0
        for at in range(1, cuts(self.data) + 1):
            halves = halve(self.data, at)
            alive = runtimes.load(halves.head, runtime=self.runtime).raw(
                self.inputs if len(self.inputs) > 1 else self.inputs[0])  # fmt: skip
            held += sum(part.nbytes for part in _tuple(alive))
            if held > _MOST:
                raise InputError(
                    f"What is alive between operators takes more than {_MOST / 1e9:.0f} GB for {self.images:,} images.",
                    expected="a network and images that fit into memory, once for each worker",
                    fix="give fewer test images (--limit), or leave the region 'activations' out",
                )
            arena = ample_arena(halves.tail) if self.runtime == "tflm" else 0
            found[f"{at} {halves.layer}"] = File(halves.tail, self.runtime, _tuple(alive), arena)
        self.tail_names = tuple(found)
        self.alive = {name: sum(part[0].nbytes for part in f.inputs) for name, f in found.items()}
        return found

    def records(self, images: Sequence[int], outputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Of some images, from what a file put out; an image with an output that is no number counts as zeros."""
        real = tuple(
            np.nan_to_num(port.dequantize(array), posinf=0.0, neginf=0.0)
            for port, array in zip(self._runner.outputs, outputs, strict=True)
        )
        return np.concatenate([
            self.task.records(self.task.truth(self._truth[image]), tuple(array[i : i + 1] for array in real))
            for i, image in enumerate(images)
        ])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Model:
    model: bytes
    runtime: str


def _tuple(arrays: Any) -> tuple[np.ndarray, ...]:
    return arrays if isinstance(arrays, tuple) else (arrays,)
