"""Campaigns of bit flips: where a file's bytes lie, files cut in two, trials that die, results that hold."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.flight import radiation, subject, worker
from orbit_kd.flight.guard import harden
from orbit_kd.flight.halves import cuts, halve
from orbit_kd.flight.intervals import mean_interval
from orbit_kd.flight.radiation import campaign
from orbit_kd.flight.regions import Field, Span, spans
from orbit_kd.flight.worker import File, Trial, flipped, isolated
from orbit_kd.flight.workers import Workers
from orbit_kd.reports.radiation import radiation_page
from orbit_kd.tflite.reader import parse
from orbit_kd.tflite.subgraph import Subgraph

layers = keras.layers
NONE = np.zeros(0, np.int64)
# a process with threads forks here, which Python 3.12 warns of; the real one, `worker`, has none
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(0).uniform(0, 1, (40, 8, 8, 1)).astype("float32")
    x[:20, :4] *= 0.1  # what the two classes differ by
    return x, np.repeat([0, 1], 20)


@pytest.fixture(scope="module")
def file(images, tmp_path_factory):
    """A network that is right on all images, as int8: the mean of the upper half against that of the lower."""
    image = keras.Input((8, 8, 1))
    left = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(image)
    x = layers.Add()([left, layers.Conv2D(4, 1, name="right")(image)])
    model = keras.Model(image, layers.Dense(2, name="scores")(layers.Flatten()(layers.AveragePooling2D(4)(x))))
    keras.utils.set_random_seed(1)
    model.compile(keras.optimizers.Adam(0.03), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*images, epochs=40, batch_size=40, verbose=0)
    data = tf.data.Dataset.from_tensor_slices(images[0]).batch(10)
    path = tmp_path_factory.mktemp("radiation") / "small.tflite"
    return okd.export(model, "tflite_int8", path=path, calibration=data).path


def test_every_byte_is_in_one_span_and_constants_are_where_they_say(file):
    data = file.read_bytes()
    found = spans(data)
    assert [s.start for s in found[1:]] == [s.stop for s in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, len(data))
    graph = Subgraph(parse(data))
    kernels = {graph.output_name(op): graph.dense(graph.kernel(op)) for op in graph.operators if graph.kernel(op)}
    assert len(kernels) == 3
    for layer, kernel in kernels.items():
        span = next(s for s in found if s.region == "weights" and s.layer == layer)
        assert data[span.start : span.stop] == kernel.tobytes()
    assert sum(s.size for s in found if s.region == "biases") == 4 * (4 + 4 + 2)


def test_a_float_files_biases_are_no_weights(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, bias_initializer="ones")])
    path = okd.export(model, "tflite_float32", path=tmp_path / "f.tflite").path
    found = spans(path.read_bytes())
    sizes = {region: sum(s.size for s in found if s.region == region) for region in radiation.REGIONS}
    assert (sizes["weights"], sizes["biases"], sizes["scales"]) == (48, 12, 0)


def test_something_else_is_refused():
    with pytest.raises(okd.InputError, match=r"Not a \.tflite file"):
        spans(b"no flatbuffer at all")


def test_a_file_cut_anywhere_gives_the_same_outputs(file, images):
    data = file.read_bytes()
    runner = runtimes.load(data)
    x = runner.input.quantize(images[0][:4])
    places = range(1, cuts(data) + 1)
    assert len(places) >= 4
    for at in places:
        halves = halve(data, at)
        alive = runtimes.load(halves.head).raw(x)
        np.testing.assert_array_equal(runtimes.load(halves.tail).raw(alive), runner.raw(x))
    with pytest.raises(okd.InputError, match="1 to"):
        halve(data, len(places) + 1)


def test_a_file_with_variables_is_not_cut(tmp_path):
    model = keras.Sequential([keras.Input((3, 2)), layers.LSTM(2, unroll=False)])
    path = okd.export(model, "tflite_float32", path=tmp_path / "lstm.tflite").path
    with pytest.raises(okd.InputError, match="leave the region 'activations' out"):
        cuts(path.read_bytes())


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.data())
def test_flips_are_undone_by_the_same_flips(data, draw):
    bits = np.array(draw.draw(st.lists(st.integers(0, 8 * len(data) - 1), unique=True)), np.int64)
    once = flipped(data, bits)
    assert flipped(once, bits) == data
    assert sum((a ^ b).bit_count() for a, b in zip(data, once, strict=True)) == len(bits)


def test_a_field_draws_its_own_bits_only():
    field, rng = Field([Span(2, 4, "weights", "a", 1), Span(9, 10, "weights", "b", 1)], None), np.random.default_rng(0)
    assert field.size == 24
    assert set(field.drawn(1.0, rng)) == {*range(16, 32), *range(72, 80)}
    assert len(field.drawn(0.0, rng)) == 0
    high = Field([Span(4, 12, "biases", "a", 4)], 31)  # of two int32
    assert list(high.drawn(1.0, rng)) == [8 * 7 + 7, 8 * 11 + 7]


@FORKS
@pytest.mark.parametrize(
    "does, end",
    [
        (lambda file, trial: (np.zeros(2),), "ran"),
        (lambda file, trial: 1 / 0, "refused"),
        (lambda file, trial: os.kill(os.getpid(), signal.SIGKILL), "killed"),
        (lambda file, trial: time.sleep(60), "hangs"),
    ],
)
def test_however_a_trial_ends_it_is_an_outcome(does, end, monkeypatch):
    monkeypatch.setattr(worker, "run", does)
    found = isolated(File(b"", "litert", ()), Trial("", NONE, NONE, seconds=1.0 if end == "hangs" else 30.0))
    assert found.end == end
    assert [list(array) for array in found.outputs] == ([[0.0, 0.0]] if end == "ran" else [])


@FORKS
def test_a_damaged_structure_ends_a_trial_and_no_process(file):
    data = file.read_bytes()
    ends = {
        isolated(File(data, "litert", (np.zeros((1, 8, 8, 1), np.int8),)), Trial("", np.array([0]), bits)).end
        for bits in (np.arange(32), np.arange(64, 8 * 200), NONE)  # the root's offset; the beginning; nothing
    }
    assert "ran" in ends and len(ends) >= 2


def test_a_campaign_finds_that_biases_are_what_hurts(file, images, tmp_path):
    how = {"rates": [0.02], "trials": 24, "images": 20, "seed": 3, "path": tmp_path / "trials.jsonl"}
    found = campaign(file, [images], regions=["weights", "biases", "activations"], workers=2, **how)
    assert found.whole == 1.0 and found.metric.key == "accuracy" and found.images == 20
    weights, biases, activations = found.rows
    assert weights.bits == 8 * (36 + 4 + 32) and biases.bits == 32 * 10
    assert biases.mean.value < 0.9 and biases.mean.low <= biases.mean.value <= biases.mean.high
    assert biases.mean.value < weights.mean.value and biases.mean.value < activations.mean.value
    assert biases.mean.worst <= biases.mean.low
    assert [row.ends["ran"] for row in found.rows] == [24] * 3
    assert 0 < weights.flips < 0.1 * weights.bits
    again = campaign(file, [images], regions=["biases"], workers=1, **{**how, "path": None})
    assert again.rows[0].to_dict() == biases.to_dict()  # whatever the number of workers


@pytest.mark.skipif(not runtimes.has_tflm(), reason="TensorFlow Lite Micro is not installed: the extra `mcu`")
def test_a_file_coded_for_tflm_runs_there_in_campaigns(file, images, tmp_path):
    coded = okd.export(file, "tflite_micro_coded", path=tmp_path / "coded.tflite").path
    how = {"regions": ["weights", "activations"], "rates": [0.0, 0.4], "trials": 6, "images": 20, "workers": 1}
    found = campaign(coded, [images], **how)
    assert found.runtime == "tflm" and found.whole == 1.0
    assert [row.mean.value for row in found.rows if not row.cell.rate] == [1.0, 1.0]
    assert [row.mean.value < 0.9 for row in found.rows] == [False, True, False, True]


def test_a_campaign_goes_on_where_it_was_killed(file, images, tmp_path, monkeypatch):
    path, seen = tmp_path / "trials.jsonl", []
    how = {"regions": ["biases"], "rates": [0.01], "trials": 24, "images": 8, "workers": 1, "path": path}
    whole = campaign(file, [images], **how)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-6]) + '\n{"key": "cut off')
    run = Workers.outcomes

    def watched(self, trials):
        seen.extend(t for t in trials if len(t.bits))
        return run(self, trials)

    monkeypatch.setattr(Workers, "outcomes", watched)
    assert campaign(file, [images], **how).to_dict() == whole.to_dict()
    assert 0 < len(seen) <= 6
    seen.clear()
    campaign(file, [images], **{**how, "seed": 1})
    assert len(seen) > 6  # other flips


def test_trials_end_once_the_mean_is_known(file, images):
    found = campaign(file, [images], regions=["weights"], rates=[0.0], trials=500, workers=1)
    assert found.rows[0].trials == 24 and found.rows[0].flips == 0 and found.rows[0].mean.value == 1.0


def test_cells_of_layers_and_bits(file, images):
    last = [s.layer for s in spans(file.read_bytes()) if s.region == "biases"][-1]
    found = campaign(file, [images], regions=["biases"], rates=[1e-4], by=["layer", "bit"], layers=[last],
                     trials=2, images=4, workers=1)  # fmt: skip
    assert [(row.cell.bit, row.bits) for row in found.rows] == [(bit, 2) for bit in range(32)]
    assert {row.cell.layer for row in found.rows} == {last}
    page = radiation_page({**found.to_dict(), "file": "<b>&"})
    assert "Layers and bits" in page and "&lt;b&gt;&amp;" in page and "<b>&" not in page


def test_a_file_that_nothing_is_left_of_is_told_so(file, images):
    found = campaign(file, [images], regions=["structure"], rates=[0.5], trials=3, images=2, workers=1)
    row = found.rows[0]
    assert row.mean is None and row.failed[0] == 1.0 and row.failed[1] < 1.0
    page = radiation_page(found.to_dict(), command="python tools/radiation.py")
    assert "no trial runs" in page and "python tools/radiation.py" in page


def test_a_guarded_file_keeps_its_accuracy_where_a_bare_one_loses_it(file, images):
    how = {"regions": ["constants"], "rates": [5e-3], "trials": 24, "images": 20, "workers": 1, "seed": 2}
    bare = campaign(file, [images], **how).rows[0]
    guarded = campaign(file, [images], guard=harden(file), **how).rows[0]
    assert bare.mean.value < guarded.mean.value - 0.02 and guarded.mean.value > 0.98, (bare, guarded)
    assert guarded.flips > bare.flips  # those in the guard count
    with pytest.raises(okd.InputError, match="the guard is of one with"):
        campaign(file, [images], guard=harden(halve(file.read_bytes(), 1).head), **how)


def test_the_harden_tool_writes_checks_and_mends(file, tmp_path, tool):
    model = tmp_path / "model.tflite"
    model.write_bytes(file.read_bytes())
    flag = f"--model={model}"
    assert "% of the file" in tool("harden", flag, "--level=file").stdout
    assert (tmp_path / "orbit_scrub.c").is_file() and (tmp_path / "model.tflite.guard").is_file()
    assert tool("harden", flag, "--check").stdout.endswith("whole\n")
    model.write_bytes(flipped(file.read_bytes(), np.array([1000])))
    refused = tool("harden", flag, "--check")
    assert refused.returncode and "give --repair" in refused.stderr
    assert "1 bytes mended" in tool("harden", flag, "--repair").stdout
    assert model.read_bytes() == file.read_bytes()
    tool("harden", flag, "--level=checksums")
    model.write_bytes(flipped(file.read_bytes(), np.array([1000])))
    assert "send it again" in tool("harden", flag, "--repair").stderr


@pytest.mark.parametrize(
    "how, words",
    [
        ({"regions": ["kernels"]}, "weights, biases, scales, structure, constants, activations"),
        ({"rates": [2.0]}, "between 0 and 1"),
        ({"rates": []}, "between 0 and 1"),
        ({"by": ["channel"]}, "layer"),
        ({"images": 0}, "at least 1"),
        ({"layers": ["nothing*"], "regions": ["weights"]}, "has no weights in the layers nothing"),
        ({"runtime": "onnx"}, "litert"),
    ],
)
def test_what_makes_no_sense_is_refused(file, images, how, words):
    with pytest.raises(okd.InputError, match=words):
        campaign(file, [images], workers=1, **how)


def test_activations_that_do_not_fit_into_memory_are_refused(file, images, monkeypatch):
    monkeypatch.setattr(subject, "_MOST", 1000)
    with pytest.raises(okd.InputError, match="give fewer test images"):
        campaign(file, [images], regions=["activations"], workers=1)


def test_an_interval_holds_the_mean():
    values = [0.9] * 20 + [0.1] * 4
    low, high = mean_interval(values)
    assert low < np.mean(values) < high and mean_interval([0.5] * 9) == (0.5, 0.5)


def test_the_tool_writes_its_page_and_goes_on(file, images, tmp_path, tool):
    from PIL import Image

    for split in ("train", "val", "test"):
        for number in (0, 1):
            folder = tmp_path / "images" / split / f"class{number}"
            folder.mkdir(parents=True)
            for i in range(3):
                pixels = np.uint8(255 * images[0][20 * number + i, ..., 0])
                Image.fromarray(pixels).save(folder / f"{i}.png")
    flags = [f"--model={file}", f"--data_dir={tmp_path / 'images'}", f"--output={tmp_path / 'out'}", "--images=2",
             "--trials=2", "--rates=1e-3,0.1", "--regions=weights", "--workers=1"]  # fmt: skip
    done = tool("radiation", *flags)
    assert done.returncode == 0, done.stderr
    assert "radiation.html" in done.stdout and (tmp_path / "out" / "radiation.json").is_file()
    assert len((tmp_path / "out" / "trials.jsonl").read_text().splitlines()) == 4
    assert "numbers, separated by commas" in tool("radiation", *flags, "--rates=often").stderr
