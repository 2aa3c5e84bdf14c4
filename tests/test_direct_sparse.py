"""DST: dense distillation, then the teacher teaches the sparse student."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

import orbit_kd as okd
from orbit_kd.errors import InputError


def net(width: float, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = x = keras.Input((8, 8, 4))
    for i in range(1, 4):
        x = layers.Conv2D(int(32 * width), 3, 1 + i % 2, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def data() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (48, 8, 8, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 3, 48))).batch(16)


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {la.name: la.get_weights()[0] for la in model.layers if isinstance(la, keras.layers.Conv2D)}


def prepared(refresh: bool = False, graph: bool = False, **how) -> okd.DST:
    """Three steps an epoch, which take less time than to trace them."""
    dst = okd.DST(net(0.5, 1), net(0.5, 2), refresh=refresh, **how)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    dst.compile("adam", loss=loss, metrics=["accuracy"], run_eagerly=not graph)
    return dst


@pytest.mark.parametrize("refresh", [False, True])
def test_the_student_is_exactly_in_the_pattern_and_was_taught_in_it(data, refresh):
    dst = prepared(refresh, graph=not refresh, pattern="2:4")
    lessons = okd.cache_teacher(dst.teacher, data)
    history = dst.fit(lessons, epochs=1, sparse_epochs=2, validation_data=data, verbose=0)
    assert len(history["dense"]["loss"]) == 1 and len(history["sparse"]["val_accuracy"]) == 2
    before, after = kernels(dst.dense), kernels(dst.student)
    table = {row.layer: row.density for row in okd.sparsity_table(dst.student)}
    changed = 0
    for name, kernel in after.items():
        assert np.mean(kernel != 0) == 0.5 == table[name]
        assert (np.count_nonzero(kernel.reshape(-1, kernel.shape[2] // 4, 4, kernel.shape[3]), axis=2) == 2).all()
        changed += not np.array_equal(kernel[kernel != 0], before[name][kernel != 0])
    assert changed == 3  # what is left has gone on learning


def test_a_shared_pattern_holds_at_all_taps_and_in_what_is_taught(data):
    dst = prepared(pattern="2:4:shared")
    dst.fit(data, epochs=0, sparse_epochs=1, verbose=0)
    for kernel in kernels(dst.student).values():
        used = (kernel != 0).any((0, 1))
        assert (np.count_nonzero(used.reshape(-1, 4, used.shape[1]), axis=1) == 2).all()
        assert np.mean(kernel != 0) == 0.5


def test_fixed_masks_stay_those_of_the_distilled_student_and_refreshed_ones_may_move(data):
    dst = prepared(pattern="2:4")
    dst.fit(data, epochs=0, sparse_epochs=2, verbose=0)
    kernel, dense = kernels(dst.student)["conv2"], kernels(dst.dense)["conv2"]
    groups = np.abs(dense).reshape(*dense.shape[:2], -1, 4, dense.shape[3])
    largest = groups >= np.sort(groups, axis=3)[:, :, :, 2:3]
    assert np.array_equal((kernel != 0).reshape(largest.shape), largest)


def test_an_interrupted_run_goes_on_to_the_same_student(data, tmp_path):
    tf.config.experimental.enable_op_determinism()
    whole = prepared(pattern="uhp", group_size=8)
    whole.fit(okd.cache_teacher(whole.teacher, data), epochs=1, sparse_epochs=2, path=tmp_path / "a", verbose=0)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    for callbacks in ([Stop()], []):
        again = prepared(pattern="uhp", group_size=8)
        lessons = okd.cache_teacher(again.teacher, data)
        how = {"epochs": 1, "sparse_epochs": 2, "path": tmp_path / "b", "verbose": 0, "callbacks": callbacks}
        if callbacks:
            with pytest.raises(KeyboardInterrupt):
                again.fit(lessons, **how)
        else:
            history = again.fit(lessons, **how)
            assert len(history["sparse"]["loss"]) == 2
    for a, b in zip(whole.student.get_weights(), again.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_teacher_is_left_alone(data):
    dst = prepared(pattern="magnitude", sparsity=0.8)
    before = [w.copy() for w in dst.teacher.get_weights()]
    dst.fit(data, epochs=1, sparse_epochs=1, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, dst.teacher.get_weights(), strict=True))
    assert dst.teacher.trainable


def test_what_cannot_work_is_refused_at_once():
    with pytest.raises(InputError, match="pattern"):
        okd.DST(net(0.5, 1), net(0.5, 2), pattern="3:2:1")
    with pytest.raises(InputError, match="sparse_epochs=0"):
        prepared(pattern="2:4").fit(None, epochs=1, sparse_epochs=0)
    with pytest.raises(InputError, match="not compiled"):
        okd.DST(net(0.5, 1), net(0.5, 2), pattern="2:4").fit(None, epochs=1, sparse_epochs=1)
    with pytest.raises(InputError, match="no sparse student"):
        _ = prepared(pattern="2:4").student
