"""Every public function that takes a model, with whatever people hand over: right, or refused in one clear message."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.pipeline import compress as pipeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow_model_optimization as tfmot

X = np.random.default_rng(0).normal(size=(12, 6, 6, 2)).astype("float32")
Y = np.arange(12) % 3
DATA = [(X[:6], Y[:6]), (X[6:], Y[6:])]


def batches():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(6)


class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(name="net", **kwargs)
        self.all = [keras.layers.deserialize(c) for c in layers_of(keras)]

    def call(self, x, training=None):
        for layer in self.all:
            x = layer(x)
        return x


def layers_of(k):
    """Configurations of the same layers, of tf_keras; or the layers, of Keras 3."""
    made = [
        k.layers.Conv2D(4, 3, name="c1"),
        k.layers.BatchNormalization(name="bn"),
        k.layers.ReLU(name="r"),
        k.layers.Conv2D(8, 3, name="c2"),
        k.layers.GlobalAveragePooling2D(name="g"),
        k.layers.Dense(3, name="d"),
    ]
    return [keras.layers.serialize(la) for la in made] if k is keras else made


def functional(k):
    image = x = k.Input((6, 6, 2))
    for layer in layers_of(k):
        x = (keras.layers.deserialize(layer) if k is keras else layer)(x)
    return k.Model(image, x, name="net")


def make(form: str, folder: Path):
    """The model in one form, always with the same weights."""
    keras.utils.set_random_seed(3)
    plain = functional(keras)
    plain.set_weights([w + 0.1 * np.random.default_rng(i).random(w.shape) for i, w in enumerate(plain.get_weights())])
    if form == "keras3":
        model = functional(keras3)
        model.set_weights(plain.get_weights())
        return model
    if form == "subclassed":
        model = Net()
        model(X[:1])
        for layer, twin in zip(model.all, plain.layers[1:], strict=True):
            layer.set_weights(twin.get_weights())
        return model
    if form == "sparse":
        return okd.sparsify(plain, "2:4")
    if form == "tfmot":
        return tfmot.sparsity.keras.prune_low_magnitude(
            plain, pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0)
        )
    if form == "path":
        return okd.save_model(plain, folder / "plain.keras")
    return plain if form == "plain" else tf.Module()


def outputs(model):
    return np.asarray(model(X, training=False))


def recalibrated(model, c):
    okd.recalibrate_batchnorm(model, batches())
    return outputs(model)


def exported(model, c):
    artifact = okd.export(model, "tflite_float32", path=c.folder / "m.tflite")
    from orbit_kd import runtimes

    return {"bytes": artifact.bytes, "out": runtimes.predict(artifact.path, X)}


def evaluated(model, c):
    report = okd.evaluate(c.file, DATA, teacher=model, latency_runs=1, tflm_images=1)
    return {key: report.data["teacher"][key] for key in ("params", "nonzero_params", "accuracy")}


def compressed(model, c):
    """The teacher that the whole run would start from."""

    class Seen(Exception):
        pass

    def check(teacher, *_):
        raise Seen(outputs(teacher))

    c.monkeypatch.setattr(pipeline, "check_job", check)
    try:
        okd.compress(model, None, workdir=c.folder)
    except Seen as seen:
        return seen.args[0]


def cached(model, c):
    (_, y), *_ = okd.cache_teacher(model, batches()).dataset
    return np.asarray(y["teacher"]["logits"][0])


def saved(model, c):
    return outputs(okd.load_model(okd.save_model(model, c.folder / "saved.keras"), custom_objects={"Net": Net}))


def costs(model, c):
    p = okd.profile(model)
    return [p.params, p.nonzero_params, p.macs, p.activation_bytes]


def curves(model, c):
    return [(v.name, *v.accuracy) for v in okd.sensitivity(model, DATA, ratios=(0.5,)).curves]


# Name, or name(argument) -> what of the result is compared.
TAKES = {
    "DST(student)": lambda m, c: outputs(okd.DST(m, c.plain, pattern="2:4").dense),
    "DST(teacher)": lambda m, c: outputs(okd.DST(c.student, m, pattern="2:4")._distiller(c.student).teachers[0]),
    "Distiller(student)": lambda m, c: outputs(okd.Distiller(m, c.plain)),
    "Distiller(teacher)": lambda m, c: outputs(okd.Distiller(c.student, m).teachers[0]),
    "as_graph": lambda m, c: outputs(okd.as_graph(m)),
    "cache_teacher": cached,
    "cluster": lambda m, c: outputs(okd.cluster(m, clusters=4)),
    "compress": compressed,
    "evaluate": evaluated,
    "export": exported,
    "allocate": lambda m, c: okd.allocate(m, [c.scan, c.weights], keep_params=0.6).ratios,
    "keep_zeros": lambda m, c: outputs(okd.keep_zeros(m)),
    "load_model": lambda m, c: outputs(okd.load_model(m)),
    "plan_removal": lambda m, c: okd.plan_removal(m, ratio=0.5).to_json(),
    "profile": costs,
    "quantize_aware": lambda m, c: outputs(okd.quantize_aware(m, calibration=X)),
    "quantize_table": lambda m, c: str(okd.quantize_table(m)),
    "ratios_for": lambda m, c: okd.ratios_for(c.scan, m, keep_macs=0.8),
    "recalibrate_batchnorm": recalibrated,
    "remove_filters": lambda m, c: outputs(okd.remove_filters(m, okd.plan_removal(c.plain, ratio=0.5))),
    "remove_in_rounds": lambda m, c: outputs(okd.remove_in_rounds(m, lambda s, n: None, rounds=1, ratio=0.5)),
    "save_model": saved,
    "sensitivity": curves,
    "smallest": lambda m, c: outputs(okd.smallest(m, lambda s, n, r: None, data=DATA, max_drop=0.1, seconds=0).student),
    "sparsify": lambda m, c: outputs(okd.sparsify(m, "2:4")),
    "sparsity_table": lambda m, c: [(row.layer, row.density) for row in okd.sparsity_table(m)],
    "strip": lambda m, c: outputs(okd.strip(m)),
    "strip_clusters": lambda m, c: outputs(okd.strip_clusters(m)),
    "strip_quantization": lambda m, c: outputs(okd.strip_quantization(m)),
}  # fmt: skip
TAKES_NONE = {
    "Artifact", "AttentionTransfer", "Augment", "Data", "DecoupledDistillation", "DistillationLoss", "FeatureHints",
    "InputError", "LogitsDistillation", "MAEDistillation", "MSEDistillation", "Piecewise", "Preprocess", "Recipe",
    "RelationalDistillation", "RemovalPlan", "Report", "Resume", "Scan", "SimilarityPreserving", "StopOnNonFinite",
    "TeacherCache", "channel_rule", "load", "predict", "predict_scene", "ChannelWiseDistillation",
    "ChannelWiseFeatures", "DetectionDistillation",
}  # fmt: skip
LOADS = {"check_preprocess"}  # hands what it gets to load_model, which is in the walk
# What makes another network of a model wants it plain; wrappers of sparsity are looked through elsewhere.
WANTS_PLAIN = {
    "DST(student)", "cluster", "compress", "allocate", "plan_removal", "quantize_aware", "quantize_table",
    "ratios_for", "remove_filters", "remove_in_rounds", "sensitivity", "smallest", "sparsify", "strip_clusters",
    "strip_quantization",
}  # fmt: skip
IN_PLACE = {"DST(student)", "recalibrate_batchnorm"}
# Form -> who refuses it, and the words that say what to do instead. All others are right.
REFUSED = {
    "keras3": (IN_PLACE | {"Distiller(student)"}, "okd.as_graph"),
    "subclassed": (IN_PLACE, "okd.as_graph"),
    "sparse": (WANTS_PLAIN, "okd.strip(model)"),
    "tfmot": (WANTS_PLAIN | {"recalibrate_batchnorm"}, "okd.strip(model)"),
    "path": (set(TAKES) - {"load_model", "compress"}, "okd.load_model("),
    "no model": (set(TAKES), "expected: a model of tf_keras or Keras 3"),
}
MODEL_ARGUMENTS = {"model", "teacher", "student", "sparse", "clustered", "quantized"}


class Context:
    """What the calls need beside the model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, {}
        self.plain = make("plain", folder)
        self.student = keras.models.clone_model(self.plain)
        self.scan = okd.sensitivity(self.plain, DATA, ratios=(0.25, 0.5, 0.75))
        self.weights = okd.sensitivity(self.plain, DATA, ratios=(0.5, 0.9), of="weights")
        self.file = okd.export(self.plain, "tflite_float32", path=folder / "student.tflite")

    def model(self, form: str):
        if form not in self.made:
            self.made[form] = make(form, self.folder)
        return self.made[form]

    def reference(self, form: str):
        """A plain tf_keras model that computes the same."""
        return okd.strip(make(form, self.folder)) if form in ("sparse", "tfmot") else make("plain", self.folder)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return Context(tmp_path_factory.mktemp("surface"))


def test_every_public_name_is_in_the_walk():
    names = {name.split("(")[0] for name in TAKES}
    assert names | LOADS | TAKES_NONE == set(okd.__all__) and not names & TAKES_NONE
    for name in LOADS:
        with pytest.raises(InputError, match="model of tf_keras or Keras 3"):
            getattr(okd, name)(tf.Module(), "images/", expected_accuracy=0.5)
    for name in TAKES_NONE:
        given = getattr(okd, name)
        if inspect.isfunction(given) or (inspect.isclass(given) and "__init__" in vars(given)):
            parameters = inspect.signature(given).parameters.values()
            assert not [p for p in parameters if p.name in MODEL_ARGUMENTS and p.annotation != "str"], name


@pytest.mark.parametrize("name", sorted(TAKES))
def test_a_public_function_is_right_or_refuses(name, context, monkeypatch):
    context.monkeypatch, run, right = monkeypatch, TAKES[name], {}
    for form, (refusers, way_out) in REFUSED.items():
        fresh = name in ("recalibrate_batchnorm", "Distiller(student)")
        model = make(form, context.folder) if fresh else context.model(form)
        if name in refusers:
            with pytest.raises(InputError) as refused:
                run(model, context)
            words = ".tflite" if (name, form) == ("evaluate", "path") else way_out
            assert words in str(refused.value), (form, str(refused.value))
            continue
        key = form if form in ("sparse", "tfmot") else "plain"
        if key not in right:
            right[key] = outcome(run, context.reference(form), context)
        same(outcome(run, model, context), right[key], form)


def outcome(run, model, context):
    """The result, or the words of a refusal that the plain model gets too."""
    try:
        return run(model, context)
    except InputError as error:
        return error.fix


def same(got, expected, form):
    if isinstance(expected, (str, list, tuple)) and not isinstance(expected, np.ndarray):
        assert got == expected, form
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), form
        for key in expected:
            same(got[key], expected[key], form)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=form)
