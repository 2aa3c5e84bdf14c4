"""Runs the teacher over a rendering of the data, batch by batch, but where the answer is on disk already."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from orbit_kd.datasets.batches import Batches
from orbit_kd.datasets.contents import digests, total
from orbit_kd.distillation import chunks
from orbit_kd.distillation.teachers import Teachers
from orbit_kd.errors import InputError
from orbit_kd.models.tracing import traced
from orbit_kd.support.files import write_file
from orbit_kd.support.progress import track

_VERSION = "1"


@dataclasses.dataclass(frozen=True)
class Structure:
    """How the flat list of fields makes an element of the data set.

    Attributes:
        sample: (x, labels, sample weight), each any nested structure; () where there is none.
        outputs: number of the teacher's outputs.
        features: names of the teacher layers that are kept.
        dtypes: of each field as it is given out.
    """

    sample: Any
    outputs: int
    features: tuple[str, ...]
    dtypes: tuple[str, ...]

    def element(self, flat: Sequence[Any]) -> Any:
        """The element (x, y) or (x, y, sample_weight) of the fields."""
        count = len(tf.nest.flatten(self.sample))
        x, labels, weight = tf.nest.pack_sequence_as(self.sample, flat[:count])
        logits = tuple(flat[count : count + self.outputs])
        features = dict(zip(self.features, flat[count + self.outputs :], strict=True))
        y: dict[str, Any] = {"teacher": {"logits": logits, "features": features}}
        if self.sample[1] != ():
            y["labels"] = labels
        return (x, y) if self.sample[2] == () else (x, y, weight)


@dataclasses.dataclass(frozen=True)
class View:
    chunks: list[np.ndarray]
    names: list[str]
    labels: str
    examples: str  # digest of samples and labels, whatever their order; "" where it is not known
    total: int  # samples of all shards
    structure: Structure
    batch_size: int


class Filler:
    """Makes views, chunk by chunk: from the folder where the chunk is there, else from the teacher."""

    def __init__(
        self, teachers: Teachers, layers: tuple[str, ...], folder: Path | None, shard: tuple[int, int]
    ) -> None:
        self._layers, self._folder, self.ran = tuple(sorted(set(layers))), folder, 0
        self._index_of_shard, self._shards = shard
        self._outputs = len(teachers.heads)

        def run(x: Any) -> list[tf.Tensor]:
            taught = teachers(x, layers=self._layers)
            return [*taught.logits, *(taught.features[name] for name in self._layers)]

        self._teach = traced(run, autograph=False)

    def view(self, source: Batches, label: str, data_key: str | None) -> View:
        """One pass over one rendering of the data; over its first batch alone where `data_key` vouches for it."""
        batches = iter(source)
        first = next(batches)
        if self._shards > 1:
            _check_order(first, source)
        structure = self._structure(_sample(first))
        batch_size = -(-_rows(_sample(first)) // self._shards)
        index = self._index(data_key)
        known = self._known(index)
        if known is not None:
            return View(*known, structure, batch_size)
        found, names, labels, examples, rows = [], [], hashlib.sha256(), 0, 0
        for batch in track(itertools.chain([first], batches), label, total=source.count):
            sample = _sample(batch)
            rows, before = rows + _rows(sample), rows
            if self._shards > 1:
                sample = self._part(sample, before)
                if not _rows(sample):
                    continue
            flat = [np.asarray(v) for v in tf.nest.flatten(sample)]
            for values in tf.nest.flatten(sample[1]):
                labels.update(np.ascontiguousarray(values).data)
            examples = total([examples, *digests(*flat)])
            names.append(chunks.digest(flat, salt=repr((_VERSION, self._layers))))
            found.append(self._chunk(names[-1], sample[0], flat))
        if not found:
            raise InputError(
                f"{rows} samples for {self._shards} workers.",
                expected="at least one sample for each",
                fix="start fewer workers",
            )
        told = f"{examples:032x}"
        if index is not None:
            about = {"names": names, "labels": labels.hexdigest(), "examples": told, "total": rows}
            write_file(index, json.dumps(about))
        return View(found, names, labels.hexdigest(), told, rows, structure, batch_size)

    def _part(self, sample: Any, before: int) -> Any:
        """This shard's samples of a batch that comes after `before` others."""
        start = (self._index_of_shard - before) % self._shards
        return tf.nest.map_structure(lambda values: values[start :: self._shards], sample)

    def _chunk(self, name: str, x: Any, flat: Sequence[np.ndarray]) -> np.ndarray:
        path = None if self._folder is None else self._folder / f"{name}.npy"
        records = None if path is None else chunks.load(path)
        if records is None:
            self.ran += 1
            records = chunks.as_records(flat, [v.numpy() for v in self._teach(x)])
            if path is not None:
                chunks.save(path, records)
                return np.load(path, mmap_mode="r", allow_pickle=False)
        return records

    def _structure(self, sample: Any) -> Structure:
        kinds = [np.asarray(v).dtype.name for v in tf.nest.flatten(sample)]
        kinds += ["float32"] * (self._outputs + len(self._layers))
        return Structure(tf.nest.map_structure(lambda _: 0, sample), self._outputs, self._layers, tuple(kinds))

    def _index(self, data_key: str | None) -> Path | None:
        if data_key is None or self._folder is None:
            return None
        shard = () if self._shards == 1 else (self._index_of_shard, self._shards)
        salt = repr((_VERSION, self._layers, data_key, *shard)).encode()
        return self._folder / f"{hashlib.sha256(salt).hexdigest()}.json"

    def _known(self, index: Path | None) -> tuple[list[np.ndarray], list[str], str, str, int] | None:
        """The chunks that an index lists, if all are there, with what else a view holds of them."""
        if index is None or self._folder is None or not index.is_file():
            return None
        listed = json.loads(index.read_text())
        found = [chunks.load(self._folder / f"{name}.npy") for name in listed["names"]]
        whole = [c for c in found if c is not None]
        rows = listed.get("total", sum(map(len, whole)))  # not listed by version 0.1, as the examples
        about = listed["names"], listed["labels"], listed.get("examples", ""), rows
        return (whole, *about) if len(whole) == len(found) else None


def _sample(batch: Any) -> tuple[Any, Any, Any]:
    """(x, labels, weight) of a batch, () for what it has not."""
    x, y, weight = batch
    return x, () if y is None else y, () if weight is None else weight


def _check_order(first: Any, source: Batches) -> None:
    """Raises InputError where workers would shuffle samples into each other's parts."""
    if source.once:
        return
    once, twice = ([np.asarray(v) for v in tf.nest.flatten(b[1])] for b in (first, next(iter(source))))
    if not all(map(np.array_equal, once, twice)):
        raise InputError(
            "The data comes in another order at each pass, and is to be shared among workers.",
            expected="one order for all workers, or a sample would be two workers' or none's",
            fix="leave .shuffle() out: TeacherCache.epochs shuffles in each epoch",
        )


def _rows(sample: Any) -> int:
    return len(tf.nest.flatten(sample)[0])
