"""Every public function that takes data, with every kind of data that people hand over: right, or one clear refusal."""

from __future__ import annotations

import inspect
import itertools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers as L

import orbit_kd as okd
from orbit_kd.errors import InputError

N, SHAPE = 24, (6, 6, 1)
X = np.random.default_rng(0).uniform(0, 1, (N, *SHAPE)).astype("float32")
Y = np.arange(N) % 2
X[Y == 1, :3] += 1.0


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    x = inputs = L.Input(SHAPE)
    x = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x)))
    return keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    made = network()
    okd.recalibrate_batchnorm(made, plain())
    return made


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> okd.Artifact:
    return okd.export(model, "tflite_float32", path=tmp_path_factory.mktemp("file") / "m.tflite")


# kinds of data: all yield X, Y in batches of 8 in this order


def plain(x=X, y=Y) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


def listed() -> list:
    return [(X[i : i + 8], Y[i : i + 8]) for i in range(0, N, 8)]


class OurSequence(keras.utils.Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return listed()[i % 3]


class TheirDataset(keras3.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return listed()[i % 3]


def flow():
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    return ImageDataGenerator().flow(X, Y, batch_size=8, shuffle=False)


RIGHT = {"sequence": OurSequence, "pydataset": TheirDataset, "flow": flow, "list": listed}
BAD = {
    "endless": (lambda: plain().repeat(), "no end|for ever"),
    "unbatched": (lambda: tf.data.Dataset.from_tensor_slices((X, Y)), "single examples"),
}

# public functions: what they make of data, as numbers to compare


def of_data(model, data, tmp_path, file):
    train = okd.Data(data, plain(), plain()).train
    return [np.concatenate(part) for part in zip(*train.as_numpy_iterator(), strict=True)]


def of_cache(model, data, tmp_path, file):
    got = okd.cache_teacher(model, data).dataset
    rows = [(x, y["labels"], y["teacher"]["logits"][0]) for x, y in got.as_numpy_iterator()]
    return [np.concatenate(part) for part in zip(*rows, strict=True)]


def of_scan(model, data, tmp_path, file):
    scan = okd.sensitivity(model, data, ratios=(0.5,))
    return [scan.images, scan.accuracy, scan.loss, *(v for c in scan.curves for v in (*c.accuracy, *c.loss))]


def of_search(model, data, tmp_path, file):
    found = okd.smallest(model, lambda student, epochs, rate: None, data=data, max_drop=0.5, seconds=-1.0)
    return [found.target, found.images]


def of_evaluation(model, data, tmp_path, file):
    report = okd.evaluate(file, data, tflm_images=2).data
    return [report["student"]["accuracy"], report["data"]["test"], *np.ravel(report["student"]["confusion"])]


def of_export(model, data, tmp_path, file):
    made = okd.export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=data, samples=64)
    return [np.frombuffer(made.path.read_bytes(), np.uint8)]


def of_quantization(model, data, tmp_path, file):
    return okd.quantize_aware(model, calibration=data).get_weights()


def of_statistics(model, data, tmp_path, file):
    other = network()
    okd.recalibrate_batchnorm(other, data)
    return other.get_layer("norm").get_weights()


def of_plan(model, data, tmp_path, file):
    plan = okd.plan_removal(model, criterion="taylor", ratio=0.5, data=data)
    return [g.keep for g in plan.groups]


def of_rounds(model, data, tmp_path, file):
    small = okd.remove_in_rounds(model, lambda m, n: None, rounds=2, ratio=0.5, criterion="taylor", data=data)
    return small.get_weights()


def of_distiller(model, data, tmp_path, file):
    distiller = okd.Distiller(network(), model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)  # tracing takes longer than three steps
    distiller.fit(data, epochs=1, shuffle=False, verbose=0)
    return distiller.student.get_weights()


def of_dst(model, data, tmp_path, file):
    dst = okd.DST(network(), model, pattern="magnitude", sparsity=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    dst.compile(keras.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
    dst.fit(data, epochs=1, sparse_epochs=1, shuffle=False, verbose=0)
    return dst.student.get_weights()


def of_compress(model, data, tmp_path, file):
    return okd.compress(model, data, workdir=tmp_path)


TAKES = {
    "Data": of_data, "DST": of_dst, "Distiller": of_distiller, "cache_teacher": of_cache, "evaluate": of_evaluation,
    "export": of_export, "plan_removal": of_plan, "quantize_aware": of_quantization,
    "recalibrate_batchnorm": of_statistics, "remove_in_rounds": of_rounds, "sensitivity": of_scan,
    "smallest": of_search,
}  # fmt: skip
ARRAYS = {"predict"}  # images alone, as one array: test_field_runtimes.py
ONLY_DATA = {"compress": of_compress}  # takes an okd.Data, which is in the table above
NO_DATA = {
    "Artifact", "AttentionTransfer", "Augment", "DecoupledDistillation", "DistillationLoss", "FeatureHints",
    "InputError", "LogitsDistillation", "MAEDistillation", "MSEDistillation", "Piecewise", "Preprocess", "Recipe",
    "RelationalDistillation", "RemovalPlan", "Report", "Resume", "Scan", "SimilarityPreserving", "StopOnNonFinite",
    "TeacherCache", "as_graph", "channel_rule", "check_preprocess", "cluster", "allocate", "keep_zeros", "load",
    "load_model", "profile", "quantize_table", "ratios_for", "remove_filters", "save_model", "sparsify",
    "sparsity_table", "strip", "strip_clusters", "strip_quantization", "predict_scene", "ChannelWiseDistillation",
    "ChannelWiseFeatures", "DetectionDistillation",
}  # fmt: skip
JUDGES = ("evaluate", "sensitivity", "smallest")  # say how accurate a network is
ENDLESS = (  # look at the first batches, or the first 20,000 images
    "export", "plan_removal", "quantize_aware", "recalibrate_batchnorm", "remove_in_rounds",
)  # fmt: skip
ONCE = (
    "Distiller", "cache_teacher", "export", "plan_removal", "quantize_aware", "recalibrate_batchnorm", "sensitivity",
    "smallest",
)  # fmt: skip


@pytest.fixture(scope="module")
def expected(model, file, tmp_path_factory):
    made: dict = {}

    def of(name):
        if name not in made:
            made[name] = TAKES[name](model, plain(), tmp_path_factory.mktemp("plain"), file)
        return made[name]

    return of


def same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)


def test_every_public_name_is_in_the_walk():
    listed = {*TAKES, *ARRAYS, *ONLY_DATA, *NO_DATA}
    assert set(okd.__all__) == listed, "say in this file what the new name makes of data"
    for name in NO_DATA & set(okd.__all__):
        if not inspect.isclass(value := getattr(okd, name)):
            taken = {"data", "dataset", "calibration", "test", "x"} & set(inspect.signature(value).parameters)
            assert not taken, f"{name} takes {taken}"


@pytest.mark.parametrize(("kind", "name"), list(itertools.product(RIGHT, TAKES)))
def test_batches_of_any_kind_are_what_tf_data_is(kind, name, model, file, expected, tmp_path):
    same(TAKES[name](model, RIGHT[kind](), tmp_path, file), expected(name))


@pytest.mark.parametrize("name", TAKES)
def test_arrays_are_what_tf_data_is(name, model, file, expected, tmp_path):
    found = TAKES[name](model, (X, Y), tmp_path, file)
    if name in ("Distiller", "DST", "recalibrate_batchnorm"):  # one batch of all: other steps, other statistics
        wanted = TAKES[name](model, tf.data.Dataset.from_tensor_slices((X, Y)).batch(32), tmp_path, file)
    else:
        wanted = expected(name)
    same(found, wanted)


@pytest.mark.parametrize("name", TAKES)
def test_a_generator_is_read_where_one_pass_suffices(name, model, file, expected, tmp_path):
    def run():
        return TAKES[name](model, (batch for batch in listed()), tmp_path, file)

    if name in ONCE:
        same(run(), expected(name))
    else:
        with pytest.raises(InputError, match="read only once"):
            run()


@pytest.mark.parametrize(("kind", "name"), list(itertools.product(BAD, TAKES)))
def test_what_has_no_end_or_no_batches_is_refused(kind, name, model, file, expected, tmp_path):
    make, says = BAD[kind]
    if kind == "endless" and name in ENDLESS:
        found = TAKES[name](model, make(), tmp_path, file)
        assert np.isfinite(np.concatenate([np.ravel(np.asarray(v, float)) for v in found])).all()
        return
    with pytest.raises(InputError, match=says):
        TAKES[name](model, make(), tmp_path, file)


@pytest.mark.parametrize("name", JUDGES)
def test_accuracy_on_one_class_is_refused(name, model, file, tmp_path):
    with pytest.raises(InputError, match="one class only"):
        TAKES[name](model, plain(X[Y == 1], Y[Y == 1]), tmp_path, file)


@pytest.mark.parametrize("kind", [*RIGHT, *BAD])
def test_compress_takes_data_and_says_so(kind, model, tmp_path):
    make = RIGHT[kind] if kind in RIGHT else BAD[kind][0]
    with pytest.raises(InputError, match=r"compress got a[\s\S]*okd\.Data\(train, val, test\)"):
        okd.compress(model, make(), workdir=tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_compress_refuses_a_split_of_one_class(split, model, tmp_path):
    parts = {name: plain() for name in ("train", "val", "test")} | {split: plain(X[Y == 1], Y[Y == 1])}
    with pytest.raises(InputError, match=rf"{split} data holds one class only"):
        okd.compress(model, okd.Data(**parts), workdir=tmp_path)
