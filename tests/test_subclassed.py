"""Subclassed models become graphs with equal outputs, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from oracle import difference, randomize
from tf_keras import layers

import orbit_kd as okd
from orbit_kd.errors import InputError


class Block(keras.Model):
    def __init__(self, filters):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.2)

    def call(self, x, training=None):
        return tf.nn.relu(self.drop(self.norm(self.conv(x), training=training), training=training))


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.blocks = [Block(8), Block(8), Block(16)]
        self.head = layers.Dense(3, name="head")

    def call(self, x, training=None):
        x = self.blocks[0](x, training=training)
        x = x + self.blocks[1](x, training=training)
        x = self.blocks[2](x, training=training)
        return self.head(tf.reduce_mean(x, [1, 2]))


@pytest.fixture
def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = Net()
    model(tf.zeros((1, 8, 8, 3)))
    return randomize(model)


def test_its_layers_appear_one_by_one_with_equal_outputs_and_the_original_is_left_alone(net):
    x = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("float32")
    before, names = net(x).numpy(), [la.name for la in net._flatten_layers()]
    graph = okd.as_graph(net)
    np.testing.assert_allclose(graph(x), before, rtol=1e-5, atol=1e-6)
    assert {"conv_1", "conv_2", "conv_3", "head"} <= {la.name for la in graph.layers}
    graph.set_weights([0 * w for w in graph.get_weights()])
    np.testing.assert_array_equal(net(x), before)
    assert names == [la.name for la in net._flatten_layers()] and "__call__" not in vars(Block)


def test_filters_are_removed_from_it_and_batchnorm_still_learns(net):
    graph = okd.as_graph(net)
    plan = okd.plan_removal(graph, ratio=0.5)
    assert [g.after for g in plan.groups] == [4, 8, 3]  # the sum couples the first two blocks
    assert difference(graph, okd.remove_filters(graph, plan), plan) <= 1e-4
    norm = graph.get_layer("norm_1").moving_mean.numpy()
    graph.compile("sgd", "mse")
    graph.fit(np.ones((4, 8, 8, 3)), np.ones((4, 3)), verbose=0)
    assert not np.array_equal(norm, graph.get_layer("norm_1").moving_mean)


def test_load_model_turns_it_and_a_graph_stays_the_same_object(net):
    assert okd.load_model(net).get_layer("conv_3").filters == 16
    graph = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert okd.load_model(graph) is graph and okd.as_graph(graph) is graph


def test_what_was_never_called_needs_a_shape():
    with pytest.raises(InputError, match="no single known input"):
        okd.as_graph(Net())
    assert okd.as_graph(Net(), input_shape=(8, 8, 3)).input_shape == (None, 8, 8, 3)


def test_a_call_that_no_graph_can_hold_is_refused():
    class Python(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x * float(np.asarray(x).mean()))

    class Loose(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x, training=None):
            return self.dense(x) * (1.0 if isinstance(x, tf.Tensor) else 2.0)

    for kind in (Python, Loose):
        model = kind()
        with pytest.raises(InputError, match="cannot be turned into a layer graph"):
            okd.as_graph(model, input_shape=(4,))
