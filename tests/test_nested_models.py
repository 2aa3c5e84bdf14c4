"""Every walk over a graph goes through nested models the same way, and computes what Keras computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from oracle import difference, randomize

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models.copies import clone_with, copy_layer, named_layers
from orbit_kd.models.heads import heads
from orbit_kd.models.integer_inputs import _reads_indices
from orbit_kd.models.segments import Segments
from orbit_kd.models.walk import replay
from orbit_kd.quantization.placement import _calls
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters

L = keras.layers


def block(channels: int = 4, *, size: tuple[int | None, ...] = (6, 6, 4), name: str = "block") -> keras.Model:
    """A convolution with a normalization, as a model of its own."""
    image = keras.Input(size)
    x = L.Conv2D(channels, 3, padding="same", name="conv")(image)
    return keras.Model(image, L.BatchNormalization(name="norm")(x), name=name)


def head(x: keras.KerasTensor) -> keras.KerasTensor:
    return L.Dense(3, name="scores")(L.GlobalAveragePooling2D(name="pool")(x))


def sequential_in_functional() -> keras.Model:
    image = keras.Input((6, 6, 4))
    inner = keras.Sequential([L.Conv2D(4, 3, name="conv"), L.ReLU(name="relu")], name="inner")
    return keras.Model(image, head(inner(image)))


def functional_in_sequential() -> keras.Model:
    return keras.Sequential([keras.Input((6, 6, 4)), block(), L.Flatten(), L.Dense(3, name="scores")])


def used_twice() -> keras.Model:
    image, inner = keras.Input((6, 6, 4)), block()
    return keras.Model(image, head(L.Add(name="add")([inner(image), inner(inner(image))])))


def two_deep() -> keras.Model:
    image = keras.Input((6, 6, 4))
    middle = keras.Model(image, L.ReLU(name="relu")(block(8, name="inner")(image)), name="middle")
    outer = keras.Input((6, 6, 4))
    return keras.Model(outer, head(middle(L.Conv2D(4, 3, padding="same", name="first")(outer))))


def in_time_distributed() -> keras.Model:
    images = keras.Input((2, 6, 6, 4))
    inner = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(4, 3, name="conv"), L.GlobalMaxPooling2D()])
    return keras.Model(images, L.Dense(3, name="scores")(L.Flatten()(L.TimeDistributed(inner, name="each")(images))))


def with_calls_elsewhere() -> keras.Model:
    """The nested model and the layers around it are used by another model too, before and after."""
    inner, pool, dense = block(), L.GlobalAveragePooling2D(name="pool"), L.Dense(3, name="scores")
    other = keras.Input((6, 6, 4))
    keras.Model(other, dense(pool(inner(inner(other)))))
    image = keras.Input((6, 6, 4))
    whole = keras.Model(image, dense(pool(inner(L.ReLU(name="relu")(image)))))
    inner(keras.Input((6, 6, 4)))
    return whole


def cut_out() -> keras.Model:
    """The end of a larger network, whose layers have calls that are not part of it."""
    whole = two_deep()
    return keras.Model(whole.get_layer("first").output, whole.output)


def by_name() -> keras.Model:
    """A nested model of two inputs, called with a mapping whose keys are sorted otherwise than its inputs."""
    b, a = keras.Input((6, 6, 4), name="b"), keras.Input((6, 6, 4), name="a")
    y = L.Subtract(name="minus")([L.Conv2D(4, 1, name="of_b")(b), L.ReLU(name="of_a")(a)])
    inner = keras.Model([b, a], y, name="inner")
    image = keras.Input((6, 6, 4))
    x = L.Conv2D(4, 3, padding="same", name="conv")(image)
    return keras.Model(image, head(inner({"b": image, "a": x})))


def of_bytes() -> keras.Model:
    """Grey levels go straight into a nested model that takes float32, as pretrained networks are often used."""
    image = keras.Input((6, 6, 4), dtype="uint8")
    return keras.Model(image, head(block()(image)))


def without_channel_axis() -> keras.Model:
    """Keras adds the last axis of 1 on the way into a nested model."""
    image, inner = keras.Input((6, 6)), block(size=(6, 6, 1))
    return keras.Model(image, head(inner(image)))


MODELS: list[Callable[[], keras.Model]] = [
    sequential_in_functional, functional_in_sequential, used_twice, two_deep, in_time_distributed,
    with_calls_elsewhere, cut_out, by_name, of_bytes, without_channel_axis,
]  # fmt: skip


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def case(request) -> tuple[keras.Model, tf.Tensor]:
    """A network, every variable random, and a batch for it."""
    model, rng = request.param(), np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1.0, weight.shape))
    x = rng.uniform(0, 255, (2, *model.input_shape[1:]))
    return model, tf.cast(x, model.inputs[0].dtype)


def test_replay_computes_what_keras_computes(case):
    model, x = case
    np.testing.assert_allclose(replay(model, x)[0], model(x), rtol=1e-5)


def test_a_model_runs_in_any_two_pieces(case):
    model, x = case
    pieces = Segments(model)
    for position in range(len(pieces.calls) + 1):
        values = pieces.run(0, position, [x])
        np.testing.assert_allclose(pieces.outputs(position, values)[0], model(x), rtol=1e-5)


def test_a_converted_copy_computes_the_same(case):
    model, x = case
    copy, pairs = clone_with(model, copy_layer)
    for layer, new in pairs:
        new.set_weights(layer.get_weights())
    np.testing.assert_allclose(copy(x), model(x), rtol=1e-5)


def test_the_smaller_network_is_the_one_with_zeros(case):
    model, _ = case
    plan = plan_removal(randomize(model), ratio=0.5)
    assert difference(model, remove_filters(model, plan), plan) <= 1e-4


def test_channels_and_ranges_see_the_same_calls(case):
    model, _ = case
    names = [path.rsplit("/", 1)[-1] for _, _, path in ChannelGraph(model).steps]
    assert names == [call.layer.name for call in _calls(model)]
    assert {layer.name for _, layer in named_layers(model) if not isinstance(layer, L.InputLayer)} == set(names)


def test_an_embedding_is_found_behind_any_input_of_a_nested_model():
    """uint8 indices of an Embedding are no amounts: taken for grey levels, its file would name other rows."""
    ids, other = keras.Input((5,), name="ids"), keras.Input((3,), name="other")
    table = L.Flatten()(L.Embedding(7, 2)(ids))
    for inputs in ([other, ids], {"z": ids, "a": other}):
        inner = keras.Model(inputs, L.Concatenate()([table, other]))
        words = keras.Input((5,))
        given = L.Dense(3)(words)
        nested = inner([given, words] if isinstance(inputs, list) else {"z": words, "a": given})
        assert _reads_indices(keras.Model(words, L.Dense(2)(nested)))


def test_a_head_is_found_through_a_nested_model_that_is_called_by_name():
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    inner = keras.Model([b, a], [L.Dropout(0.1)(b), L.Dense(2)(a)])
    image = keras.Input((3,))
    scores, _ = inner({"b": L.Softmax()(image), "a": image})
    assert heads(keras.Model(image, scores)) == ("softmax",)


class Opaque(keras.Model):
    """A part without a layer graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(4, 3, name="conv")

    def call(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    "walk",
    [lambda model: replay(model, tf.ones((1, 6, 6, 4))), Segments, ChannelGraph,
     lambda model: recalibrate_batchnorm(model, np.ones((2, 6, 6, 4), "float32"))],
    ids=["replay", "segments", "channels", "statistics"],
)  # fmt: skip
def test_a_nested_model_without_a_graph_is_refused_by_its_path(walk):
    image, outer = keras.Input((6, 6, 4)), keras.Input((6, 6, 4))
    middle = keras.Model(image, L.BatchNormalization()(Opaque(name="part")(image)), name="middle")
    with pytest.raises(InputError, match="'middle/part' has no layer graph"):
        walk(keras.Model(outer, head(middle(outer))))


def test_there_is_one_walk_and_one_training_job():
    """Written a second time, they drift."""
    root = Path(__file__).parent.parent
    files = [p for room in ("orbit_kd", "tools", "benchmarks") for p in (root / room).rglob("*.py")]

    def using(pattern: str) -> set[str]:
        return {p.relative_to(root).as_posix() for p in files if re.search(pattern, p.read_text())}

    # twin.py reads graphs of Keras 3; distillation_speed.py times a cache beside other ways to train
    assert using(r"\._nodes_by_depth\b") == {"orbit_kd/models/walk.py", "orbit_kd/models/keras3/twin.py"}
    assert using(r"(=|return) cache_teacher\(") == {"orbit_kd/distillation/job.py", "benchmarks/distillation_speed.py"}
