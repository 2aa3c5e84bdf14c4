"""The guard beside a file: what it finds, what it undoes, and its twin in C."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

import orbit_kd as okd
from orbit_kd.flight import guard, secded
from orbit_kd.flight.guard import LEVELS, harden, repair, table_of
from orbit_kd.flight.regions import spans
from orbit_kd.flight.worker import flipped

SCRUBBER = Path(guard.__file__).parent / "scrubber"
MAIN = """
#include <stdio.h>
#include "orbit_scrub.h"
static uint8_t file[1 << 20], stored[1 << 20];
int main(int count, char **names) {
  uint32_t sizes[2];
  uint8_t *into[2] = {file, stored};
  (void)count;
  for (int i = 0; i < 2; ++i) {
    FILE *f = fopen(names[1 + i], "rb");
    if (!f) return 9;
    sizes[i] = (uint32_t)fread(into[i], 1, sizeof file, f);
    fclose(f);
  }
  orbit_scrub scrub;
  if (orbit_scrub_open(&scrub, file, sizes[0], stored, sizes[1])) { puts("none"); return 0; }
  unsigned const damaged = orbit_scrub_verify(&scrub), left = orbit_scrub_repair(&scrub);
  printf("%u %u %u\\n", damaged, left, (unsigned)sizeof scrub);
  FILE *f = fopen(names[3], "wb");
  if (!f || fwrite(file, 1, sizes[0], f) != sizes[0]) return 9;
  return fclose(f);
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small int8 file: convolutions of 3 and 5 filters, a dense layer."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3, activation="relu"), layers.Conv2D(5, 2),
                              layers.Flatten(), layers.Dense(4)])  # fmt: skip
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
    path = tmp_path_factory.mktemp("guard") / "small.tflite"
    return okd.export(model, "tflite_int8", path=path, calibration=[x]).path.read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_one_flip_of_a_word_is_undone_wherever_it_is(data, draw):
    array = np.frombuffer(data, np.uint8)
    checks = secded.encode(array)
    words = len(checks)
    for number in range(words):  # one flip each in data and check byte of every word
        bit = draw.draw(st.integers(0, 8 * min(8, len(data) - 8 * number) + 7))
        size = 8 * min(8, len(data) - 8 * number)
        array, checks = (
            (np.frombuffer(flipped(array.tobytes(), np.array([64 * number + bit])), np.uint8), checks) if bit < size
            else (array, np.frombuffer(flipped(checks.tobytes(), np.array([8 * number + bit - size])), np.uint8))
        )  # fmt: skip
    mended, found, bad = secded.correct(array, checks)
    assert mended.tobytes() == data and found == words and not len(bad)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=8, max_size=8), st.sets(st.integers(0, 71), min_size=2, max_size=2))
def test_two_flips_of_a_word_are_noticed(data, bits):
    array = np.frombuffer(data, np.uint8)
    word = flipped(data + secded.encode(array).tobytes(), np.array(sorted(bits)))
    mended, found, bad = secded.correct(np.frombuffer(word[:8], np.uint8), np.frombuffer(word[8:], np.uint8))
    assert list(bad) == [0] and not found and mended.tobytes() == word[:8]


def test_columns_are_distinct_and_of_odd_weight():
    assert len(set(secded.columns())) == 64 and {c.bit_count() for c in secded.columns()} == {3, 5}


@pytest.mark.parametrize("level", LEVELS)
def test_every_flip_of_one_bit_is_found_and_undone_where_the_level_says(file, level):
    stored = harden(file, level=level)
    guarded = {"small": ("biases", "scales"), "constants": ("biases", "scales", "weights")}.get(level, ())
    regions = {b: s.region for s in spans(file) for b in range(s.start, s.stop)}
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(file), 300, replace=False):
        found = repair(flipped(file, np.array([bit])), stored)
        if level == "file" or regions[bit >> 3] in guarded:
            assert found.whole and found.data == file and found.mended == 1
        else:
            assert found.whole == (found.data == file) and (found.mended == 1) == found.whole
            if not found.whole:
                assert any(start <= bit >> 3 < start + size for start, size in found.damaged)


@pytest.mark.slow
def test_every_single_flip_of_a_file_is_found(file):
    """All of them, at the level that undoes none, and at the one that undoes all."""
    found, undone = harden(file, level="checksums"), harden(file, level="file")
    for bit in range(8 * len(file)):
        damaged = flipped(file, np.array([bit]))
        assert not repair(damaged, found).whole
        assert repair(damaged, undone).data == file


def test_a_file_at_one_flip_in_a_thousand_bits_keeps_all_that_is_small(file):
    stored, rng = harden(file, level="file"), np.random.default_rng(1)
    places = {b for s in spans(file) if s.region in ("biases", "scales") for b in range(s.start, s.stop)}
    for _ in range(30):
        size = 8 * (len(file) + len(stored))
        bits = rng.choice(size, rng.binomial(size, 1e-3), replace=False)
        both = flipped(file + stored, bits)
        found = repair(both[: len(file)], both[len(file) :])
        assert all(found.data[b] == file[b] for b in places)
        assert found.whole == (found.data == file)


def test_guards_cost_what_they_say(file):
    sizes = {s: sum(span.size for span in spans(file) if span.region == s) for s in ("weights", "structure")}
    payload = {}
    for level in LEVELS:
        stored = harden(file, level=level)
        payload[level] = len(stored) - min([len(stored), *(s.offset for s in table_of(stored)[1])])
    assert payload["checksums"] == 0
    assert payload["constants"] - payload["small"] == pytest.approx(sizes["weights"] / 8, abs=8)
    assert payload["file"] - payload["constants"] == pytest.approx(2.125 * sizes["structure"], rel=0.2)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda stored: b"", "ends too early"),
        (lambda stored: b"x" * len(stored), "no size that is possible"),
        (lambda stored: stored[:200], "no size that is possible"),
        (lambda stored: stored[:12] + bytes(len(stored) - 12), "not whole"),
        (lambda stored: stored[:-40], "ends too early"),
    ],
)
def test_what_is_no_guard_is_refused(file, damage, words):
    stored, weight = harden(file), next(s.start for s in spans(file) if s.region == "weights")
    bits = 8 * np.array([s.start for s in spans(file) if s.region == "weights"])
    with pytest.raises(okd.InputError, match=words):
        repair(flipped(file, bits), damage(stored))
    assert weight


def test_a_guard_of_another_file_is_refused(file):
    with pytest.raises(okd.InputError, match="the guard is of one with"):
        repair(file + b"more", harden(file))
    with pytest.raises(okd.InputError, match="checksums, small, constants, file"):
        harden(file, level="all")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_guard_is_refused_or_does_no_harm_unseen(file, draw):
    stored = bytearray(harden(file))
    for _ in range(draw.draw(st.integers(1, 4))):
        stored[draw.draw(st.integers(0, len(stored) - 1))] = draw.draw(st.integers(0, 255))
    damaged = flipped(file, np.array([draw.draw(st.integers(0, 8 * len(file) - 1))]))
    try:
        found = repair(damaged, bytes(stored[: draw.draw(st.integers(0, len(stored)))]))
    except okd.InputError:
        return
    assert not found.whole or found.data == file


def compiled(folder: Path, *flags: str) -> Path:
    """The scrubber with a main, by the host's compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: Debian's package gcc has one")
    source, program = folder / "main.c", folder / "scrub"
    source.write_text(MAIN)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wpedantic", "-O1", *flags]
    sources = [str(source), str(SCRUBBER / "orbit_scrub.c")]
    done = subprocess.run([compiler, *strict, f"-I{SCRUBBER}", *sources, "-o", str(program)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return program


def scrubbed(program: Path, folder: Path, data: bytes, stored: bytes) -> tuple[list[int] | None, bytes]:
    """(sections damaged before and after, bytes of state) or None without a guard, and the file as it is then."""
    paths = [folder / name for name in ("file", "guard", "out")]
    paths[0].write_bytes(data)
    paths[1].write_bytes(stored)
    done = subprocess.run([str(program), *map(str, paths)], capture_output=True, check=True)
    assert not done.stderr, done.stderr.decode()
    return (None, data) if done.stdout == b"none\n" else ([int(v) for v in done.stdout.split()], paths[2].read_bytes())


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1e-2])
def test_the_scrubber_in_c_does_what_python_does(file, rate, tmp_path):
    program, rng = compiled(tmp_path, "-fsanitize=address,undefined"), np.random.default_rng(0)
    for level in LEVELS:
        stored = harden(file, level=level)
        size = 8 * (len(file) + len(stored))
        both = flipped(file + stored, rng.choice(size, rng.binomial(size, rate), replace=False))
        said, after = scrubbed(program, tmp_path, both[: len(file)], both[len(file) :])
        try:
            found = repair(both[: len(file)], both[len(file) :])
        except okd.InputError:
            assert said is None
            continue
        assert said is not None and after == found.data and (said[1] == 0) == found.whole
        assert said[2] <= 64  # bytes of state


def test_the_scrubber_refuses_what_python_refuses(file, tmp_path):
    program, stored = compiled(tmp_path, "-fsanitize=address,undefined"), harden(file)
    for bad in (b"", stored[:100], stored[:-40], b"x" * len(stored), struct.pack("<3I", *[20] * 3) + bytes(200)):
        assert scrubbed(program, tmp_path, file, bad)[0] is None
    assert scrubbed(program, tmp_path, file + b"more", stored)[0] is None
