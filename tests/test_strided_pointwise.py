"""Gradients of 1x1 convolutions with strides: oneDNN's own write past their workspace (oneDNN issue 6035)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import orbit_kd as okd
from orbit_kd.models.strided_pointwise import strides_first

layers = keras.layers


def shortcut(channels: int = 6, side: int = 9, **options) -> keras.Model:
    """A block with a strided 1x1 shortcut, as a ResNet has them."""
    image = keras.Input((side, side, channels))
    left = layers.Conv2D(8, 3, 2, padding="same", name="left")(image)
    right = layers.Conv2D(8, 1, 2, padding="same", name="right", **options)(image)
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Add()([left, right]))))


def strides_of_gradients(function: tf.types.experimental.ConcreteFunction, size: int) -> list[list[int]]:
    """Strides of the convolutions whose kernel gradients a traced function computes, of kernels of a size."""
    graphs = [function.graph, *(f.graph for f in function.graph._functions.values() if hasattr(f, "graph"))]
    ops = [op for graph in graphs for op in graph.get_operations() if op.type == "Conv2DBackpropFilter"]
    return [list(op.get_attr("strides")) for op in ops if _size(op) == size]


def _size(op: tf.Operation) -> int:
    """Of the kernel, which the operator's second input gives the shape of."""
    shape = op.inputs[1]  # of ShapeN, for image and kernel
    return int(shape.op.inputs[shape.value_index].shape[0])


def trained(model: keras.Model) -> tf.types.experimental.ConcreteFunction:
    """One step of a Distiller, traced."""
    distiller = okd.Distiller(model, teacher=shortcut())
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.zeros((4, *model.input_shape[1:]), "float32"), np.arange(4) % 3
    distiller.fit(x, y, verbose=0)
    return tf.function(lambda: distiller.train_step((tf.constant(x), tf.constant(y)))).get_concrete_function()


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kind, strides, side", [("Conv1D", 3, 10), ("Conv2D", (2, 3), 7), ("Conv2D", 2, 8)])
def test_outputs_and_gradients_are_those_of_the_layer(kind, strides, side, padding):
    layer = getattr(layers, kind)(5, 1, strides, padding=padding, activation="relu")
    image = keras.Input((side, 4) if kind == "Conv1D" else (side, side, 4))
    model = keras.Model(image, layer(image))
    x = tf.random.normal((3, *model.input_shape[1:]))

    def both() -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            out = model(x)
            loss = tf.reduce_sum(out**2)
        return [out.numpy(), *(g.numpy() for g in tape.gradient(loss, model.trainable_variables))]

    plain = both()
    with strides_first(model):
        for a, b in zip(plain, both(), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    assert "convolution_op" not in layer.__dict__


def test_training_with_a_teacher_takes_no_strided_gradient():
    assert strides_of_gradients(trained(shortcut()), 1) == [[1, 1, 1, 1]]
    assert strides_of_gradients(trained(shortcut()), 3) == [[1, 2, 2, 1]]  # which are sound


@pytest.mark.parametrize("how", ["sparse", "levels"])
def test_nor_does_it_in_wrappers(how):
    x = np.random.default_rng(0).normal(size=(8, 9, 9, 6)).astype("float32")
    student = shortcut()
    student = okd.sparsify(student, "magnitude", sparsity=0.5) if how == "sparse" else okd.quantize_aware(
        student, calibration=tf.data.Dataset.from_tensor_slices(x).batch(4))  # fmt: skip
    assert strides_of_gradients(trained(student), 1) == [[1, 1, 1, 1]]


def test_layers_that_are_sound_stay_as_they_are():
    model = keras.Sequential([
        keras.Input((8, 8, 16)), layers.Conv2D(4, 1, 2), layers.Conv2D(4, 1), layers.Conv2D(4, 2, 2),
        layers.DepthwiseConv2D(1, 2), layers.Conv2DTranspose(4, 1, 2),
    ])  # fmt: skip
    with strides_first(model):
        assert not [la.name for la in model.layers if "convolution_op" in la.__dict__]


@pytest.mark.slow
def test_a_network_that_killed_the_process_trains():
    """14 channels at 80x80 end a process with AVX-512 by a damaged heap, unless pixels are left out first."""
    code = (
        "import numpy as np, tf_keras as keras, orbit_kd as okd; from tests.test_strided_pointwise import shortcut;"
        "student = shortcut(14, 80); d = okd.Distiller(student, teacher=shortcut(14, 80)); d.compile('sgd', 'mse');"
        "d.fit(np.ones((32, 80, 80, 14), 'f'), np.ones((32, 3), 'f'), batch_size=16, epochs=5, verbose=0)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert child.returncode == 0, child.stderr.decode()[-500:]
