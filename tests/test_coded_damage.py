"""Damaged coded files: told, or run in a process of their own first; this process lives."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from coded_mutations import mutated

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.exporters import Artifact, export
from orbit_kd.exporters.tflm import coded as target
from orbit_kd.tflite.nm_check import check_n_m
from orbit_kd.tflite.summary import read

PROGRAM = Path(__file__).with_name("coded_mutations.py")


@pytest.fixture(scope="module")
def coded(tmp_path_factory) -> Artifact:
    keras.utils.set_random_seed(0)
    image = keras.layers.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu")(image)
    x = keras.layers.Conv2D(16, 3)(x)
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    folder = tmp_path_factory.mktemp("damage")
    file = export(model, "tflite_int8", path=folder / "m.tflite", calibration=images)
    return export(file, target.NAME, path=folder / "c.tflite", checks=2)


def endings(coded: Artifact, first: int, count: int) -> dict[int, tuple[int, str]]:
    """What came of each mutation: seed -> (exit code, or signal as a negative number; what was said)."""
    paths = [str(PROGRAM.parent.parent), *sys.path]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(coded.path), str(first), str(count)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    return {int(seed): (int(code), said) for seed, code, said in lines}


def check(coded: Artifact, first: int, count: int) -> None:
    """Every mutation is told, runs, or is one that ends its process, which `load` then finds out in another."""
    found = endings(coded, first, count)
    assert sorted(found) == list(range(first, first + count))
    kinds = collections.Counter(code for code, _ in found.values())
    assert not [found[seed] for seed in found if found[seed][0] > 1], "something else than InputError was raised"
    assert kinds[0] and kinds[1]  # some changes do no harm, others are told
    for seed in [seed for seed, (code, _) in found.items() if code < 0][:3]:
        with pytest.raises(InputError, match="ends its process"):
            runtimes.load(mutated(coded.path.read_bytes(), seed), runtime="tflm")


def test_a_few_damaged_files(coded):
    check(coded, 0, 40)


@pytest.mark.slow
def test_a_thousand_damaged_files(coded):
    check(coded, 1000, 1000)


def test_figures_of_damaged_files_are_right_or_refused(coded):
    """Reading never ends in another exception than InputError."""
    data, told = coded.path.read_bytes(), 0
    for seed in range(120):
        damaged = mutated(data, seed)
        for reader in (read, check_n_m):
            try:
                reader(damaged)
            except InputError as error:
                told += bool(error.fix)
    assert told > 20


def test_a_file_is_tried_in_another_process_once(coded, monkeypatch):
    """Loading asks a process of its own the first time, and remembers."""
    data, asked = coded.path.read_bytes() + bytes(4), []
    monkeypatch.setattr(runtimes.tflm, "probe", lambda *args, **options: asked.append(args))
    for _ in range(2):
        runtimes.load(data, runtime="tflm")
    assert len(asked) == 1
