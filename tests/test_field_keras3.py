"""What people bring from Keras 3: recurrent and attention layers, new augmentation, `keras.ops`, optimizers."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers, ops

from orbit_kd.distillation import DST, Distiller
from orbit_kd.errors import InputError
from orbit_kd.models.keras3.objects import to_tf_keras
from orbit_kd.models.keras3.operations import OPERATIONS
from orbit_kd.models.keras3.twin import from_keras3
from orbit_kd.models.saving import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras saving
    pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning"),
]


def randomize(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    for variable in model.weights:
        low, high = (0.5, 1.5) if "variance" in variable.path else (-0.6, 0.6)
        variable.assign(rng.uniform(low, high, variable.shape))
    return model


def inputs_of(model: keras.Model, *, whole: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = [(3, *(n or 7 for n in t.shape[1:])) for t in model.inputs]
    return [
        rng.integers(0, whole, s).astype("float32") if whole else rng.normal(0, 1, s).astype("float32") for s in shapes
    ]


def equal(model: keras.Model, *, whole: int = 0, tolerance: float = 1e-5) -> tf_keras.Model:
    """The twin, after its outputs on normal or whole inputs were compared with the Keras 3 model's."""
    twin = from_keras3(model)
    x = inputs_of(model, whole=whole)
    expected = tf.nest.flatten(keras.Model(model.inputs, model.outputs)(x, training=False))
    found = tf.nest.flatten(twin(x[0] if len(x) == 1 else x, training=False))
    for a, b in zip(expected, found, strict=True):
        assert np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max() <= tolerance
    assert np.ptp(np.asarray(expected[0], "float64"), axis=0).max() > 0
    return twin


def applied(layer, *shapes) -> keras.Model:
    tensors = [keras.Input(s) for s in shapes]
    return randomize(keras.Model(tensors, layer(*tensors)))


SEQUENCE, VIDEO = (4, 3), (3, 5, 5, 2)


# -- recurrent layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(4),
        lambda: layers.LSTM(4, unit_forget_bias=False, use_bias=False, dropout=0.2, recurrent_dropout=0.2),
        lambda: layers.GRU(4, return_sequences=True, go_backwards=True),
        lambda: layers.GRU(4, reset_after=False, unroll=True),
        lambda: layers.SimpleRNN(4, return_state=True),
        lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        lambda: layers.Bidirectional(
            layers.GRU(4), backward_layer=layers.GRU(4, go_backwards=True, activation="relu"), merge_mode="sum"
        ),
        lambda: layers.RNN(layers.GRUCell(4), return_sequences=True),
        lambda: layers.RNN([layers.LSTMCell(4), layers.LSTMCell(3)]),
        lambda: layers.TimeDistributed(layers.Dense(5, activation="hard_silu")),
    ],
    ids=["lstm", "no_bias", "gru", "reset_before", "states", "both", "two", "cell", "stacked", "time"],
)
def test_recurrent_layers_and_wrappers(layer):
    equal(applied(layer(), SEQUENCE))


@pytest.mark.parametrize("kind", [layers.ConvLSTM1D, layers.ConvLSTM2D])
def test_convolutional_lstm(kind):
    equal(applied(kind(2, 3, padding="same", return_sequences=True), VIDEO[: 3 if kind is layers.ConvLSTM1D else 4]))


def test_a_network_at_each_step_and_states_handed_on():
    frame = keras.Input(VIDEO[1:])
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(frame))
    eye = keras.Model(frame, layers.GlobalAveragePooling2D()(y), name="eye")
    video = keras.Input((None, *VIDEO[1:]))
    steps = layers.TimeDistributed(eye)(video)
    _, *states = layers.LSTM(3, return_state=True)(steps)
    equal(randomize(keras.Model(video, layers.LSTM(3)(steps, initial_state=states))))


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_masked_words(kind):
    words = keras.Input((5,))
    x = layers.Embedding(6, 3, mask_zero=True)(words)
    layer = kind(2, return_sequences=True, zero_output_for_mask=kind is layers.LSTM)
    y = layer(x) if kind is layers.LSTM else layers.Bidirectional(layer)(x)  # which sets it by itself
    twin = equal(randomize(keras.Model(words, y)), whole=3)
    padded = np.array([[1, 2, 0, 0, 0]], "float32")
    assert not twin(padded).numpy()[0, 2:].any()  # zero_output_for_mask went with it


def test_state_that_lasts_and_activations_unknown_to_recurrent_layers_are_refused():
    steps = keras.Input(batch_shape=(2, 4, 3))
    model = keras.Model(steps, layers.GRU(2, stateful=True, name="lasting")(steps))
    with pytest.raises(InputError, match=r"'lasting'.*stateful"):
        from_keras3(model)
    # the way out: the same network without it, with the same weights
    again = applied(layers.GRU(2), SEQUENCE)
    again.set_weights(model.get_weights())
    equal(again)
    with pytest.raises(InputError, match="recurrent_activation=hard_sigmoid"):
        from_keras3(applied(layers.LSTM(2, recurrent_activation="hard_sigmoid"), SEQUENCE))


# -- attention ---------------------------------------------------------------------------------------------------------


ATTENTION = {
    "heads": lambda q, v: layers.MultiHeadAttention(2, 3, value_dim=4, output_shape=5)(q, v),
    "causal": lambda q, v: layers.MultiHeadAttention(2, 3, dropout=0.1)(q, q, use_causal_mask=True) + v[:, :1],
    "scores": lambda q, v: layers.MultiHeadAttention(2, 3)(q, v, key=v, return_attention_scores=True),
    "grouped": lambda q, v: layers.GroupQueryAttention(3, 4, 2)(q, v),
    "grouped causal": lambda q, v: layers.GroupQueryAttention(3, 4, 2)(q, q, use_causal_mask=True) + v[:, :1],
    "dot": lambda q, v: layers.Attention(use_scale=True)([q, v]),
    "additive": lambda q, v: layers.AdditiveAttention()([q, v]),
    "einsum": lambda q, v: (
        layers.EinsumDense("abc,cd->abd", output_shape=(None, 3), bias_axes="d", activation="relu6")(q) + v[:, :1]
    ),
    "rms": lambda q, v: layers.RMSNormalization()(q) + v[:, :1],
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, tmp_path):
    model = applied(ATTENTION[name], SEQUENCE, (3, 3))
    twin = equal(model)
    assert twin.count_params() == model.count_params()
    twin.save(tmp_path / "twin.keras")
    x = inputs_of(model)
    for a, b in zip(tf.nest.flatten(load_model(tmp_path / "twin.keras")(x)), tf.nest.flatten(twin(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_transformer_block_over_masked_words():
    words = keras.Input((5,))
    x = layers.Embedding(6, 4, mask_zero=True)(words)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)]))
    equal(randomize(keras.Model(words, layers.GlobalAveragePooling1D()(x))), whole=3)


def test_gates_and_windows_are_refused_by_name():
    for option in ({"use_gate": True}, {"sliding_window": 2}):
        attention = layers.MultiHeadAttention(2, 3, name="look", **option)
        with pytest.raises(InputError, match=f"'look'.*{next(iter(option))}"):
            from_keras3(applied(lambda x, a=attention: a(x, x), SEQUENCE))


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_new_augmentation_rests_and_is_told(caplog):
    image = keras.Input((8, 8, 3))
    x = layers.RandomErasing(name="erase")(image)
    x = layers.Pipeline([layers.RandomFlip(), layers.RandAugment(name="rand"), layers.RandomHue(0.2)])(x)
    x = layers.MixUp()(layers.CutMix()(layers.AugMix()(x)))
    x = layers.RandomColorJitter(value_range=(0, 255), brightness_factor=0.3)(layers.RandomGaussianBlur()(x))
    model = randomize(keras.Model(image, layers.Conv2D(2, 3)(x)))
    with caplog.at_level(logging.WARNING, "orbit_kd"):
        twin = equal(model)
    assert "'erase' (RandomErasing)" in caplog.text and "'rand' (RandAugment)" in caplog.text
    assert [type(la).__name__ for la in twin.layers] == ["InputLayer", "RandomFlip", "Conv2D"]


def test_random_crop_is_what_it_is_in_keras_3():
    image = keras.Input((8, 8, 3))
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.RandomCrop(5, 6)(image)))
    equal(randomize(keras.Model(image, y)))


def test_a_model_that_keras_3_cannot_run_is_refused():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.RandomCrop(5, 6)(image))))
    try:
        model(np.zeros((2, 8, 8, 3)), training=False)
    except ValueError:  # as in Keras 3.15, which leaves the size as it is in inference
        with pytest.raises(InputError, match="could not be run"):
            from_keras3(model)


# -- operations --------------------------------------------------------------------------------------------------------

ONE = {
    "clip": lambda x: ops.clip(x, -0.5, 0.5),
    "cast": lambda x: ops.cast(ops.cast(x * 3, "int32"), "float32"),
    "whole and broken": lambda x: (ops.cast(x * 3, "int32") + 1.5) * (ops.cast(x * 3, "int32") / 2),
    "conditions": lambda x: ops.where(ops.logical_or(x > 0.5, x <= -0.5), x, 0.1 * x) + ops.cast(x > 0, "float32"),
    "pad": lambda x: ops.pad(
        ops.pad(x, [[0, 0], [1, 2], [0, 0]], constant_values=2.0), [[0, 0], [2, 1], [1, 1]], mode="reflect"
    ),
    "powers": lambda x: ops.power(x, 2) + x**3 + 2.0**x + 1 / (ops.abs(x) + 1) + (1 - x) % 0.3,
    "constants": lambda x: ops.maximum(x * np.arange(3.0), np.full((1, 3), 0.2)) - np.float64(2.5),
    "matmul": lambda x: ops.matmul(ops.swapaxes(x, 1, 2), x) @ ops.convert_to_tensor(np.eye(3, 2, dtype="float32")),
    "einsum": lambda x: ops.einsum("bij,bkj->bik", x, x),
    "parts": lambda x: ops.concatenate([*ops.split(x, 2, axis=1), *ops.split(x, [1, 3], axis=1)], axis=1),
    "moved": lambda x: ops.roll(ops.flip(ops.tile(ops.repeat(x, 2, axis=1), (1, 2, 1)), axis=1), 1, axis=1),
    "axes": lambda x: ops.squeeze(ops.moveaxis(ops.expand_dims(x, (1, -1)), 2, 3), 1),
    "logs": lambda x: ops.log(ops.abs(x) + 1) + ops.log1p(x * x) + ops.log_softmax(x) + ops.logsumexp(x, 1, True),
    "curves": lambda x: ops.softplus(x) + ops.leaky_relu(x, 0.3) + ops.elu(x, 0.7) + ops.celu(x) + ops.selu(x),
    "more curves": lambda x: ops.hard_tanh(x) + ops.squareplus(x) + ops.log_sigmoid(x) + ops.softsign(x),
    "normalize": lambda x: ops.normalize(x, axis=-1) + ops.norm(x, axis=-1, keepdims=True) + ops.rms_normalization(x),
    "spread": lambda x: ops.std(x, axis=1) + ops.var(x, axis=1) + ops.prod(x, axis=1) + ops.min(x, axis=1),
    "sums": lambda x: ops.cumsum(x, axis=1) + ops.cumprod(x, axis=-1),
    "argmax": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 3) + ops.cast(ops.argmin(x, 1, True)[:, None], "float32"),
    "best": lambda x: ops.top_k(x, 2)[0] + ops.sort(x, axis=1)[..., :2] + ops.take(x, np.array([0, 2]), axis=2),
}


@pytest.mark.parametrize("name", ONE)
def test_operations(name, tmp_path):
    twin = equal(applied(ONE[name], SEQUENCE), tolerance=2e-5)
    twin.save(tmp_path / "twin.keras")
    x = np.random.default_rng(2).normal(0, 1, (2, *SEQUENCE)).astype("float32")
    np.testing.assert_array_equal(load_model(tmp_path / "twin.keras")(x), twin(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.image.resize(x, (5, 4)),
        lambda x: ops.image.resize(x, (3, 3), interpolation="bicubic", antialias=True),
        lambda x: ops.max_pool(ops.average_pool(x, 2, 1, padding="same"), 2),
        lambda x: ops.image.pad_images(ops.image.crop_images(ops.image.rgb_to_grayscale(x), 1, 0, 1, 2), 1, 2, 0, 0),
    ],
)
def test_operations_on_images(call):
    equal(applied(call, (8, 8, 3)))


def test_options_without_a_twin_are_refused_and_an_operation_can_be_added():
    with pytest.raises(InputError, match="pad_to_aspect_ratio"):
        from_keras3(applied(lambda x: ops.image.resize(x, (5, 4), pad_to_aspect_ratio=True), (8, 8, 3)))
    with pytest.raises(InputError, match="Argsort") as error:
        from_keras3(applied(lambda x: ops.argsort(x, axis=1), SEQUENCE))
    assert "keras3.operations.OPERATIONS" in error.value.fix
    with OPERATIONS.temporary("Argsort", lambda op, x: tf.argsort(x, op.axis)):
        equal(applied(lambda x: ops.argsort(x, axis=1), SEQUENCE))


@pytest.mark.parametrize(
    "activation", ["hard_sigmoid", "hard_silu", "silu", "relu6", "mish", "leaky_relu", "log_softmax"]
)
def test_activations_inside_layers(activation):
    model = applied(layers.Dense(4, activation=activation, name="last"), SEQUENCE)
    assert equal(model).get_layer("last").get_config()["activation"] in ("linear", "swish")


def test_a_layer_as_an_activation():
    equal(applied(layers.Dense(4, activation=layers.LeakyReLU(negative_slope=0.3)), SEQUENCE))


# -- the output check --------------------------------------------------------------------------------------------------


def wrong():
    return OPERATIONS.temporary("Tanh", lambda op, x: tf.tanh(x) * 1.01)


def test_a_twin_that_differs_is_refused_with_the_layer_and_by_how_much():
    model = applied(lambda x: layers.Dense(2)(ops.tanh(layers.Dense(3)(x))), SEQUENCE)
    from_keras3(model)
    with (
        wrong(),
        pytest.raises(InputError, match=r"'tanh.*' \(Tanh\) is the first that differs, by 0\.01 of its largest"),
    ):
        from_keras3(model)


def test_every_sample_of_every_output_is_compared():
    model = applied(lambda a, b: [ops.relu(a), ops.tanh(b) * 1e-4], SEQUENCE, SEQUENCE)
    equal(model)
    with wrong(), pytest.raises(InputError, match="Tanh"):
        from_keras3(model)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8, 3), "uint8"), ((None, None, 3), "float32"), ((None, 3), "float32"), ((6,), "int32")]
)
def test_the_check_finds_inputs(shape, dtype):
    x = keras.Input(shape, dtype=dtype)
    if len(shape) == 3:
        y = layers.GlobalMaxPooling2D()(layers.Conv2D(2, 3 if shape[0] else 40)(layers.Rescaling(1 / 255)(x)))
    else:
        y = layers.Flatten()(layers.Embedding(3, 2)(x)) if shape == (6,) else layers.LSTM(3)(x)
    model = randomize(keras.Model(x, layers.Dense(2)(ops.tanh(y))))
    assert isinstance(from_keras3(model), tf_keras.Model)
    with wrong(), pytest.raises(InputError, match="Tanh"):
        from_keras3(model)


def test_the_check_changes_neither_statistics_nor_random_states():
    image = keras.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.MixUp()(layers.Dropout(0.5)(image, training=True)), training=True)
    model = randomize(keras.Model(image, layers.Conv2D(2, 3)(x)))
    before = [np.array(v) for v in model.variables]
    twin = from_keras3(model)
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    # training=True in a call: `predict` of Keras 3 overrules it, and so does the twin
    x = np.random.default_rng(0).normal(0, 1, (2, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(twin.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_random_outputs_in_inference_are_refused():
    draw = layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)), output_shape=SEQUENCE)
    with pytest.raises(InputError, match="other outputs at each call"):
        from_keras3(applied(draw, SEQUENCE))


# -- files that hold code ----------------------------------------------------------------------------------------------


def test_a_trusted_lambda_loads(tmp_path):
    x = keras.Input((4,))
    model = randomize(keras.Model(x, layers.Lambda(lambda t: t * 2 + 1)(layers.Dense(3)(x))))
    model.save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="Lambda"):
        load_model(tmp_path / "m.keras")
    twin = load_model(tmp_path / "m.keras", trust_code=True)
    data = np.random.default_rng(0).normal(0, 1, (3, 4)).astype("float32")
    np.testing.assert_allclose(twin(data), model(data), atol=1e-5)


@pytest.mark.parametrize("trust", [False, True])
def test_an_exported_folder_is_refused_with_what_helps(tmp_path, trust):
    applied(layers.Dense(2), (4,)).export(tmp_path / "folder", verbose=False)
    with pytest.raises(InputError, match="functions alone") as error:
        load_model(tmp_path / "folder", trust_code=trust)
    assert "model.save" in error.value.fix


# -- objects of Keras 3 in training ------------------------------------------------------------------------------------


def student() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])


def data():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (16, 4)).astype("float32"), rng.integers(0, 3, 16)


def compiled_by(package, *, alpha=None):
    schedule = package.optimizers.schedules
    distiller = Distiller(student(), student(), alpha=alpha or schedule.PolynomialDecay(0.9, 6, 0.1))
    distiller.compile(
        package.optimizers.AdamW(schedule.CosineDecay(0.1, 8), weight_decay=0.01, clipnorm=1.0),
        loss=package.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[package.metrics.SparseTopKCategoricalAccuracy(k=2, name="top"), "accuracy"],
    )
    return distiller


def test_a_distiller_takes_optimizer_schedule_loss_and_metrics_of_keras_3():
    x, y = data()
    theirs, ours = (compiled_by(package).fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0).history
                    for package in (keras, tf_keras))  # fmt: skip
    assert theirs.keys() == ours.keys()
    for key in ours:
        np.testing.assert_allclose(theirs[key], ours[key], rtol=1e-5)


def test_dst_takes_them_too(tmp_path):
    x, y = data()

    def weights(package):
        dst = DST(student(), student(), pattern="1:2")
        loss = package.losses.SparseCategoricalCrossentropy(from_logits=True)
        dst.compile(package.optimizers.SGD(0.1), loss=loss, run_eagerly=True)
        dst.fit(x, epochs=1, sparse_epochs=1, y=y, batch_size=4, shuffle=False, verbose=0)
        return dst.student.get_weights()

    for a, b in zip(weights(keras), weights(tf_keras), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_options_and_structures_survive():
    adam = to_tf_keras(keras.optimizers.Adam(0.01, beta_1=0.5, global_clipnorm=2.0, use_ema=True))
    assert isinstance(adam, tf_keras.optimizers.Adam)
    assert (float(adam.learning_rate), adam.beta_1, adam.global_clipnorm, adam.use_ema) == (
        pytest.approx(0.01), 0.5, 2.0, True,
    )  # fmt: skip
    found = to_tf_keras(
        {"a": keras.losses.Huber(delta=2.0, reduction=None), "b": [keras.losses.mean_squared_error, "mae"]}
    )
    assert found["a"]([[0.0], [0.0]], [[1.0], [4.0]]).numpy().tolist() == [0.5, 6.0]
    assert found["b"] == [tf_keras.losses.mean_squared_error, "mae"]
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 50), rng.uniform(0, 1, 50)
    for theirs in (
        keras.metrics.AUC(num_thresholds=20),
        keras.metrics.Precision(thresholds=0.4),
        keras.metrics.MeanSquaredError(),
    ):
        ours = to_tf_keras(theirs)
        assert type(ours).__module__.startswith("tf_keras")
        theirs.update_state(y, p), ours.update_state(y, p)
        assert float(ours.result()) == pytest.approx(float(theirs.result()), abs=1e-6)


def test_what_tf_keras_lacks_is_refused_by_name():
    class Mine(keras.callbacks.Callback):
        pass

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

        def get_config(self):
            return {}

    used = keras.optimizers.SGD(0.1)
    variable = keras.Variable(np.ones(2, "float32"))
    used.apply([np.ones(2, "float32")], [variable])
    for value, name in [
        (keras.optimizers.Muon(), "Muon"),
        (keras.optimizers.SGD(gradient_accumulation_steps=4), "gradient_accumulation_steps"),
        (keras.optimizers.SGD(Rate()), "Rate"),
        (used, "trained 1 steps"),
        (keras.losses.Dice(), "Dice"),
        (keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"), "mean_with_sample_weight"),
        ([keras.metrics.PearsonCorrelation()], "PearsonCorrelation"),
    ]:
        with pytest.raises(InputError, match=name):
            to_tf_keras(value)
    distiller = Distiller(student(), student(), losses=["logits"])
    distiller.compile("sgd")
    for callback, fix in [(keras.callbacks.EarlyStopping(), "tf_keras.callbacks.EarlyStopping"), (Mine(), "derive")]:
        with pytest.raises(InputError, match=fix):
            distiller.fit(data()[0], callbacks=[callback], verbose=0)
        with pytest.raises(InputError, match=fix):
            distiller.evaluate(data()[0], callbacks=[callback], verbose=0)
