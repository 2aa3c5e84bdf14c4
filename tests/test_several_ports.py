"""Files with several inputs or outputs: the ports come in the Keras model's order, on every runtime."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers as L

import orbit_kd as okd
from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.latency import latency
from orbit_kd.evaluation.outputs import logits
from orbit_kd.evaluation.parity import tflm_parity
from orbit_kd.evaluation.running import collected, outputs_of
from orbit_kd.exporters import export
from orbit_kd.exporters.tflite import convert as converter
from orbit_kd.exporters.tflite import order_check

RNG = np.random.default_rng(0)
LITERT, TFLM = "litert", "tflm"
INT8_RUNTIMES = (LITERT, "litert_reference", TFLM)


def pair() -> keras.Model:
    """Two inputs and three outputs of the same shapes; names out of alphabetical order; "z" far wider than "a"."""
    keras.utils.set_random_seed(1)
    z, a = L.Input((4,), name="z"), L.Input((4,), name="a")
    both = L.Concatenate()([L.Dense(6, activation="relu")(z), L.Dense(5)(a)])
    outputs = [L.Dense(3, name=name, bias_initializer=keras.initializers.Constant(bias))(both)
               for name, bias in (("zz", 1.0), ("mm", -3.0), ("aa", 0.0))]  # fmt: skip
    return keras.Model([z, a], outputs)


def heads() -> keras.Model:
    """A detector's three maps, two of them of one shape."""
    keras.utils.set_random_seed(2)
    x = L.Input((8, 8, 3), name="picture")
    y = L.Conv2D(8, 3, padding="same", activation="relu")(x)
    small = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(y)
    return keras.Model(x, {"where": L.Conv2D(4, 1, name="where")(small), "large": L.Conv2D(2, 1, name="large")(y),
                           "extra": L.Conv2D(4, 1, name="extra")(small)})  # fmt: skip


def inputs_of_pair(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return RNG.uniform(-20, 20, (count, 4)).astype("float32"), RNG.uniform(-0.2, 0.1, (count, 4)).astype("float32")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return pair()


@pytest.fixture(scope="module")
def x() -> tuple[np.ndarray, np.ndarray]:
    return inputs_of_pair()


@pytest.fixture(scope="module")
def files(model, x, tmp_path_factory) -> dict[str, okd.Artifact]:
    folder = tmp_path_factory.mktemp("files")
    names = ("tflite_float32", "tflite_float16", "tflite_dynamic", "tflite_int8", "tflite_int16x8")
    return {name: export(model, name, path=folder / f"{name}.tflite", calibration=x) for name in names}


def off(found, expected) -> float:
    """The largest error of an output, relative to its largest value."""
    assert isinstance(found, tuple) and len(found) == len(expected)
    assert [f.shape for f in found] == [e.shape for e in expected]
    return max(float(np.abs(f - e).max() / np.abs(e).max()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("target", "tolerance", "where"),
    [("tflite_float32", 1e-5, INT8_RUNTIMES), ("tflite_float16", 5e-3, (LITERT,)), ("tflite_dynamic", 2e-2, (LITERT,)),
     ("tflite_int8", 4e-2, INT8_RUNTIMES), ("tflite_int16x8", 1e-2, INT8_RUNTIMES)],
)  # fmt: skip
def test_every_target_and_runtime_has_the_order_of_keras(target, tolerance, where, model, files, x):
    expected = [part.numpy() for part in model(list(x))]
    for runtime in where:
        runner = runtimes.load(files[target].path, runtime=runtime)
        assert [p.name for p in runner.inputs] == ["z", "a"] and [p.name for p in runner.outputs] == ["zz", "mm", "aa"]
        assert (runner.input, runner.output) == (runner.inputs[0], runner.outputs[0])
        assert off(runtimes.run(runner, x), expected) < tolerance, runtime
        assert off(okd.predict(files[target], {"a": x[1], "z": x[0]}, runtime=runtime), expected) < tolerance
        assert off(okd.predict(files[target], list(x), runtime=runtime), expected) < tolerance


def test_both_outputs_and_inputs_are_told_apart_at_all(model, x):
    expected = [part.numpy() for part in model(list(x))]
    assert off(tuple(expected[i] for i in (1, 0, 2)), expected) > 0.3
    assert off(tuple(part.numpy() for part in model([x[1], x[0]])), expected) > 0.3


def test_twelve_outputs_are_not_sorted_as_text(tmp_path):
    keras.utils.set_random_seed(0)
    image = L.Input((5,))
    model = keras.Model(image, [L.Dense(2)(image) for _ in range(12)])
    x = RNG.normal(size=(33, 5)).astype("float32")
    for target, tolerance in (("tflite_float32", 1e-5), ("tflite_int8", 5e-2)):
        made = export(model, target, path=tmp_path / target, calibration=x)
        for runtime in (LITERT, TFLM):
            assert off(okd.predict(made, x, runtime=runtime), [p.numpy() for p in model(x)]) < tolerance


def test_maps_of_a_detector_given_as_a_dict_come_in_the_order_of_model_outputs(tmp_path):
    model = heads()
    x = RNG.normal(size=(40, 8, 8, 3)).astype("float32")
    expected = tf.nest.flatten(model(x))
    for target, tolerance in (("tflite_float32", 1e-5), ("tflite_int8", 6e-2)):
        made = export(model, target, path=tmp_path / target, calibration=x)
        for runtime in INT8_RUNTIMES:
            assert off(okd.predict(made, x, runtime=runtime), [p.numpy() for p in expected]) < tolerance
    one = okd.predict(made, x[0])
    assert [part.shape for part in one] == [tuple(part.shape[1:]) for part in expected]
    raw = okd.predict(made, x, raw=True)
    assert all(part.dtype == np.int8 for part in raw)


@pytest.mark.parametrize("form", ["tuple", "dict", "labelled", "batches by name"])
def test_calibration_goes_to_the_input_that_it_is_of(form, model, x, tmp_path):
    named, y = {"a": x[1], "z": x[0]}, np.zeros(len(x[0]))
    data = {"tuple": x, "dict": named, "labelled": (x, y),
            "batches by name": tf.data.Dataset.from_tensor_slices((named, y)).batch(7)}[form]  # fmt: skip
    made = export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=data, samples=40)
    for port, part in zip(runtimes.load(made.path).inputs, x, strict=True):
        np.testing.assert_allclose(port.scale, (part.max() - part.min()) / 255, rtol=0.02)
    assert made.details["calibration_images"] == 40


def test_a_file_whose_ports_are_exchanged_is_refused(model, x, tmp_path, monkeypatch):
    real = converter.put_in_order
    for side in ("inputs", "outputs"):

        def exchanged(file, network, *, inputs, outputs, side=side):
            real(file, network, inputs=inputs, outputs=outputs)
            tensors = getattr(file.subgraphs[0], side)
            tensors[[0, 1]] = tensors[[1, 0]]

        monkeypatch.setattr(converter, "put_in_order", exchanged)
        for target in ("tflite_float32", "tflite_int8"):
            with pytest.raises(InputError, match=r"in each other's place|report the model"):
                export(model, target, path=tmp_path / "m.tflite", calibration=x)


def test_an_input_that_nothing_reads(tmp_path):
    a, b = L.Input((3,), name="a"), L.Input((3,), name="b")
    model = keras.Model([a, b], L.Dense(2)(a))
    x = tuple(RNG.normal(size=(2, 5, 3)).astype("float32"))
    made = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    for runtime in (LITERT, TFLM):
        np.testing.assert_allclose(okd.predict(made, x, runtime=runtime), model(list(x)), atol=1e-5)
    with pytest.raises(InputError, match=r"input 'b' .* would stay float32"):
        export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=x)


def test_one_tensor_may_be_two_outputs_and_an_input_one(tmp_path):
    a, b = L.Input((3,), name="a"), L.Input((3,), name="b")
    y = L.Dense(3, name="y")(L.Subtract()([a, b]))
    x = tuple(RNG.normal(size=(2, 40, 3)).astype("float32"))
    for target, tolerance in (("tflite_float32", 1e-5), ("tflite_int8", 5e-2)):
        for model in (keras.Model([a, b], [y, y]), keras.Model([a, b], [y, a])):
            made = export(model, target, path=tmp_path / "m.tflite", calibration=x)
            for runtime in (LITERT, TFLM):
                assert off(okd.predict(made, x, runtime=runtime), [p.numpy() for p in model(list(x))]) < tolerance
    with pytest.raises(InputError, match="would stay float32"):
        export(keras.Model([a, b], [b, a]), "tflite_int8", path=tmp_path / "m.tflite", calibration=x)


def test_outputs_without_the_batch_and_of_types_that_tflm_lacks_are_told(tmp_path):
    a, b = L.Input((3,), name="a"), L.Input((3,), name="b")
    y = L.Dense(3, name="y")(L.Subtract()([a, b]))
    x = tuple(RNG.normal(size=(2, 5, 3)).astype("float32"))
    with pytest.raises(InputError, match=r"Output 2 of 2 has the shape \(\)"):
        whole = keras.Model([a, b], [y, L.Lambda(tf.reduce_sum)(a)])
        okd.predict(export(whole, "tflite_float32", path=tmp_path / "m.tflite"), x)
    best = keras.Model([a, b], [y, L.Lambda(lambda t: tf.argmax(t, -1))(y)])
    made = export(best, "tflite_float32", path=tmp_path / "m.tflite")
    np.testing.assert_array_equal(okd.predict(made, x)[1], best(list(x))[1])
    with pytest.raises(InputError, match="INT64"):
        okd.predict(made, x, runtime=TFLM)


def test_indices_beside_amounts(tmp_path):
    keras.utils.set_random_seed(3)
    words, amounts = L.Input((4,), dtype="int32", name="words"), L.Input((4,), name="amounts")
    y = L.Concatenate()([L.Flatten()(L.Embedding(50, 3)(words)), amounts])
    model = keras.Model([words, amounts], [L.Dense(2)(y), L.Dense(2)(y)])
    x = RNG.integers(0, 50, (40, 4)), RNG.normal(size=(40, 4)).astype("float32")
    for target, tolerance in (("tflite_float32", 1e-5), ("tflite_int8", 5e-2)):
        made = export(model, target, path=tmp_path / target, calibration=x)
        expected = [p.numpy() for p in model([x[0].astype("int32"), x[1]])]
        assert off(okd.predict(made, x), expected) < tolerance
    with pytest.raises(InputError, match="Embedding"):
        floats = L.Input((4,), name="floats")
        y = L.Concatenate()([L.Flatten()(L.Embedding(50, 3)(floats)), amounts])
        other = keras.Model([floats, amounts], L.Dense(2)(y))
        export(other, "tflite_int8", path=tmp_path / "m.tflite", calibration=x)


def test_a_quantization_aware_model_of_two_inputs(x, tmp_path):
    model = okd.quantize_aware(pair(), calibration=x)
    made = export(model, "tflite_int8", path=tmp_path / "m.tflite")
    expected = [p.numpy() for p in model(list(x))]
    for runtime in INT8_RUNTIMES:
        assert off(okd.predict(made, x, runtime=runtime), expected) < 5e-2


def test_open_sizes_are_fixed_by_name_or_in_order(tmp_path):
    a, b = L.Input((None, 3), name="a"), L.Input((4,), name="b")
    y = L.Concatenate()([L.GlobalAveragePooling1D()(L.Conv1D(4, 3)(a)), b])
    model = keras.Model([a, b], L.Dense(2)(y))
    path = tmp_path / "m.tflite"
    x = RNG.normal(size=(3, 6, 3)).astype("float32"), RNG.normal(size=(3, 4)).astype("float32")
    for shapes in ({"b": (4,), "a": (6, 3)}, [(6, 3), (4,)]):
        made = export(model, "tflite_float32", path=path, input_shape=shapes)
        np.testing.assert_allclose(okd.predict(made, x), model(list(x)), atol=1e-5)
    with pytest.raises(InputError, match="'a'"):
        export(model, "tflite_float32", path=path)
    for wrong in ((6, 3), {"a": (6, 3)}, {"a": (6, 3), "c": (4,)}):
        with pytest.raises(InputError, match="does not name a shape for each"):
            export(model, "tflite_float32", path=path, input_shape=wrong)


@pytest.mark.parametrize("runtime", INT8_RUNTIMES)
def test_wrong_inputs_are_refused(runtime, files, x):
    z, a = x
    file = files["tflite_int8"]

    def refused(given, match):
        with pytest.raises(InputError, match=match) as error:
            okd.predict(file, given, runtime=runtime)
        assert "'z'" in f"{error.value.expected} {error.value.fix}" and error.value.fix

    refused(z, "2 inputs, and one ndarray")
    refused((z,), "2 inputs, and 1 arrays")
    refused((z, a, a), "2 inputs, and 3 arrays")
    refused((z, a[:, :3]), r"of input 2, 'a', have shape \(3,\)")
    refused((z, a[:7]), "40 and 7 examples")
    refused({"z": z, "b": a}, "keys 'z', 'b'")
    refused({"z": z}, "keys 'z'")
    with pytest.raises(InputError, match="input 2, 'a', hold NaN"):
        okd.predict(file, (z, a * np.nan), runtime=runtime)
    with pytest.raises(InputError, match="2 inputs"):
        runtimes.load(file.path, runtime=runtime).raw(np.zeros((1, 4), np.int8))
    with pytest.raises(InputError, match="quantized already"):
        okd.predict(file, (z, a.astype(np.int8)), runtime=runtime)


def test_no_images_and_one_image(files, x):
    for runtime in INT8_RUNTIMES:
        none = okd.predict(files["tflite_int8"], tuple(part[:0] for part in x), runtime=runtime)
        assert [part.shape for part in none] == [(0, 3)] * 3
        one = okd.predict(files["tflite_int8"], tuple(part[0] for part in x), runtime=runtime)
        assert [part.shape for part in one] == [(3,)] * 3


def test_a_dict_for_a_file_of_one_input_goes_by_its_name(tmp_path):
    image = L.Input((4,))
    made = export(keras.Model(image, L.Dense(2)(image)), "tflite_float32", path=tmp_path / "m.tflite")
    z = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(okd.predict(made, {"image": z}), okd.predict(made, z))
    with pytest.raises(InputError, match="keys 'other'"):
        okd.predict(made, {"other": z})


def test_foreign_files_come_as_they_are():
    a, b = L.Input((3,), name="a"), L.Input((3,), name="b")
    model = keras.Model([a, b], L.Subtract()([a, b]))
    data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    runner = runtimes.load(data)
    x = {port.name: RNG.normal(size=(5, 3)).astype("float32") for port in runner.inputs}
    values = list(x.values())
    sign = 1 if "a" in runner.inputs[0].name else -1
    np.testing.assert_allclose(okd.predict(data, x), sign * (values[0] - values[1]), atol=1e-6)


def test_c_array_and_coded_files(files, x, tmp_path):
    expected = okd.predict(files["tflite_int8"], x, runtime=TFLM)
    array = export(files["tflite_int8"], "c_array", path=tmp_path / "m.cc")
    coded = export(files["tflite_int8"], "tflite_micro_coded", path=tmp_path / "m.tflite", calibration=x)
    assert coded.details["compared"] == {"inputs": 16, "origin": "calibration data"}
    again = export(files["tflite_int8"], "tflite_micro_coded", path=tmp_path / "n.tflite")
    for made in (array, coded, again):
        for a, b in zip(okd.predict(made, x, runtime=TFLM), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert tflm_parity(coded.path.read_bytes(), x).max_lsb <= 1
    with pytest.raises(InputError, match="keys"):  # it keeps no names
        okd.predict(coded, {"z": x[0], "a": x[1]})


def test_int4(tmp_path):
    network = heads()
    x = RNG.normal(size=(40, 8, 8, 3)).astype("float32")
    model = okd.quantize_aware(network, bits=4, calibration=x)
    int8 = export(model, "tflite_int8", path=tmp_path / "8.tflite")
    made = export(int8, "tflite_int4", path=tmp_path / "4.tflite")
    for a, b in zip(*(okd.predict(file, x, runtime="litert_reference") for file in (int8, made)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_sources_for_tflm_check_every_output(files, x, tmp_path):
    made = export(files["tflite_int8"], "tflm", path=tmp_path / "tflm", calibration=x)
    texts = {path.name: path.read_text() for path in made.files}
    settings, main = texts["model_settings.h"], texts["main.cc"]
    for place, name in enumerate("za"):
        assert f"kInput{place}Size = 4;  // 4, '{name}'" in settings and f"interpreter.input({place})" in main
    for place, name in enumerate(("zz", "mm", "aa")):
        assert f"kOutput{place}Size = 3;  // 3, '{name}'" in settings and f'Fail("another output{place}")' in main
    assert main.count("memcpy") == 2 and texts["golden.cc"].count("alignas(16)") == 5
    stub = Path(__file__).parent / "tflm_stub"
    for name in ("main.cc", "golden.cc"):
        subprocess.run(["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{stub}", f"-I{made.path.parent}",
                        str(made.path.parent / name)], check=True)  # fmt: skip
    export(files["tflite_int8"], "tflm", path=tmp_path / "random")
    with pytest.raises(InputError, match="float32"):
        export(files["tflite_float32"], "tflm", path=tmp_path / "float")


@pytest.mark.parametrize("batch", [1, None, 3])
def test_onnx(model, x, tmp_path, batch):
    made = export(model, "onnx", path=tmp_path / "m.onnx", calibration=x, batch=batch)
    runner = runtimes.load(made.path, runtime="onnx")
    assert [p.name for p in runner.inputs] == ["z", "a"] and [p.name for p in runner.outputs] == ["zz", "mm", "aa"]
    expected = [part.numpy() for part in model(list(x))]
    assert off(okd.predict(made, x), expected) < 1e-5
    assert off(okd.predict(made, {"a": x[1], "z": x[0]}), expected) < 1e-5
    export(model, "onnx", path=tmp_path / "m.onnx")


def test_vela_keeps_the_order(tmp_path):
    from orbit_kd.tflite.reader import parse

    model = heads()
    x = RNG.normal(size=(20, 8, 8, 3)).astype("float32")
    int8 = export(model, "tflite_int8", path=tmp_path / "8.tflite", calibration=x)
    made = export(int8, "vela:ethos-u55-128", path=tmp_path / "v.tflite")
    names = [
        [graph.tensors[t].name for t in graph.outputs]
        for graph in (parse(file.path.read_bytes()).subgraphs[0] for file in (int8, made))
    ]
    assert names[0] == names[1] and len(names[0]) == 3


def test_hls4ml_takes_one_input_and_output_and_says_so(model, x, tmp_path):
    with pytest.raises(InputError, match="2 inputs and 3 outputs"):
        export(model, "hls4ml", path=tmp_path / "out", calibration=x)


def test_outputs_of_runs_all_files_in_one_pass(files, model, x):
    y = {"boxes": np.arange(40), "more": np.arange(80).reshape(40, 2)}
    passes = []

    class Counted(keras.utils.Sequence):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            passes.append(i)
            rows = slice(10 * i, 10 * i + 10)
            return {"a": x[1][rows], "z": x[0][rows]}, {k: v[rows] for k, v in y.items()}

    some = {name: files[name].path for name in ("tflite_float32", "tflite_int8")}
    labels, outputs = collected(outputs_of(some, Counted()))
    assert passes.count(3) == 1 and len(labels) == 4
    np.testing.assert_array_equal(np.concatenate([part["more"] for part in labels]), y["more"])
    assert list(outputs) == list(some)
    expected = [part.numpy() for part in model(list(x))]
    for name, tolerance in (("tflite_float32", 1e-5), ("tflite_int8", 4e-2)):
        assert off(outputs[name], expected) < tolerance and outputs[name][0].dtype == np.float32


def test_outputs_of_keeps_shapes_and_ragged_labels(tmp_path):
    model = heads()
    x = RNG.normal(size=(6, 8, 8, 3)).astype("float32")
    made = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    boxes = tf.ragged.constant([[1.0], [], [2.0, 3.0], [], [], [4.0]])
    data = tf.data.Dataset.from_tensor_slices((x, boxes)).batch(4)
    labels, outputs = collected(outputs_of({"m": made.path}, data))
    assert [part.to_list() for part in labels] == [[[1], [], [2, 3], []], [[], [4]]]
    assert [part.shape for part in outputs["m"]] == [(6, *p.shape[1:]) for p in tf.nest.flatten(model(x))]
    bare = list(outputs_of({"m": made.path}, [x[:2]], labels=False))
    assert bare[0][1] is None and bare[0][0][0].shape == (2, *x.shape[1:])
    with pytest.raises(InputError, match="empty"):
        list(outputs_of({"m": made.path}, []))
    with pytest.raises(InputError, match="no labels"):
        list(outputs_of({"m": made.path}, [x[:2]]))


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    a = L.Input((2,))
    model = keras.Model(a, [L.Dense(2)(a), L.Lambda(tf.math.log)(a)])
    made = export(model, "tflite_float32", path=tmp_path / "m.tflite")
    with pytest.raises(InputError, match="Model m puts out NaN"):
        list(outputs_of({"m": made.path}, [(np.full((2, 2), -1.0), np.zeros(2))]))


def test_logits_take_one_output(files, x, tmp_path):
    with pytest.raises(InputError, match="3 outputs"):
        logits({"m": files["tflite_int8"].path}, (x, np.zeros(40)))
    z, a = L.Input((4,), name="z"), L.Input((4,), name="a")
    model = keras.Model([z, a], L.Dense(3)(L.Concatenate()([z, a])))
    made = [export(model, t, path=tmp_path / f"{t}.tflite", calibration=x) for t in ("tflite_float32", "tflite_int8")]
    labels = np.arange(40) % 3
    for data in ((x, labels), ({"a": x[1], "z": x[0]}, labels)):
        truth, outputs = logits({"m": made[0].path}, data)
        np.testing.assert_array_equal(truth, labels)
        np.testing.assert_allclose(outputs["m"], model(list(x)), atol=1e-4)
        report = okd.evaluate(made, data, latency_runs=2)
        assert report.data["artifacts"][1]["tflm"]["max_lsb"] <= 1


def test_parity_latency_and_probe(files, x):
    parity = tflm_parity(files["tflite_int8"].path, x)
    assert parity.ran and parity.max_lsb <= 1 and parity.compared == 40
    assert "3 of 3" in tflm_parity(files["tflite_float32"].path, x).why
    assert len(latency([files[name].path for name in ("tflite_float32", "tflite_int8")], runs=2)) == 2
    for runtime in INT8_RUNTIMES:
        runtimes.probe(files["tflite_int8"].path, runtime=runtime)


def test_parity_takes_the_worst_output(files, x, monkeypatch):
    from orbit_kd.runtimes import tflm

    real = tflm._Tflm.raw

    def off_by_three(self, given):
        first, *others, last = real(self, given)
        return (first, *others, np.where(last > 0, last - 3, last + 3).astype(last.dtype))

    monkeypatch.setattr(tflm._Tflm, "raw", off_by_three)
    assert 2 <= tflm_parity(files["tflite_int8"].path, x).max_lsb <= 4


def test_order_check_stays_quiet_on_equal_outputs(tmp_path):
    a, b = L.Input((3,)), L.Input((3,))
    y = L.Add()([a, b])
    dense = L.Dense(2)
    model = keras.Model([a, b], [dense(y), dense(y)])
    x = tuple(RNG.normal(size=(2, 20, 3)).astype("float32"))
    for target in ("tflite_float32", "tflite_int8", "tflite_int16x8"):
        export(model, target, path=tmp_path / "m.tflite", calibration=x)
    assert order_check._apart(np.array([np.nan]), np.array([1.0])) == 0
