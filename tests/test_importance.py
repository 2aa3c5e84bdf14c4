"""Criteria against scores worked out by hand, and what a scorer learns from data."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.removal.importance import Member, combine, criteria
from orbit_kd.removal.scorer import Scorer


def member(values: list, *, attribute: str = "kernel", makes: bool = True) -> Member:
    return Member("layer", attribute, makes, np.array(values, float))


def test_members_count_alike_whatever_their_size():
    np.testing.assert_allclose(combine([np.array([1.0, 3.0]), np.array([300.0, 100.0])]), [1.0, 1.0])
    np.testing.assert_allclose(combine([np.array([1.0, 3.0]), np.array([100.0, 100.0])]), [0.75, 1.25])
    np.testing.assert_allclose(combine([np.zeros(2), np.array([1.0, 3.0])]), [0.25, 0.75])
    assert combine([]).shape == (0,)


@pytest.mark.parametrize(
    ("name", "members", "scores"),
    [
        ("l1_norm", [member([[1, -1], [3, -3]])], [0.5, 1.5]),
        ("l1_norm", [member([[1, -1], [3, -3]]), member([[9, 9], [0, 0]], makes=False)], [0.5, 1.5]),
        ("l1_norm", [member([[1, -1], [3, -3]]), member([[-60], [20]])], [1.0, 1.0]),
        ("l2_norm", [member([[3, -4], [6, 8]])], [2 / 3, 4 / 3]),
        ("bn_scale", [member([[-3], [1]], attribute="gamma", makes=False), member([[1], [9]])], [1.5, 0.5]),
        ("bn_scale", [member([[1, -1], [3, -3]])], [0.5, 1.5]),
        ("geometric_median", [member([[0, 0], [3, 4], [3, 0]])], [1.0, 1.125, 0.875]),  # 5 + 3, 5 + 4, 3 + 4
        ("apoz", [member([[0.2], [0.6]], attribute="activation", makes=False), member([[1], [9]])], [0.5, 1.5]),
        ("apoz", [member([[1.0], [1.0]], attribute="activation", makes=False), member([[1], [3]])], [0.5, 1.5]),
    ],
)
def test_scores_by_hand(name, members, scores):
    np.testing.assert_allclose(criteria.get(name)(members), scores)


def test_random_scores_are_of_the_seed_and_of_the_group():
    draw = criteria.get("random")
    one, other = member([[0.0]] * 5), Member("other", "kernel", True, np.zeros((5, 1)))
    assert np.array_equal(draw([one], seed=3), draw([one, other], seed=3))
    assert not np.array_equal(draw([one], seed=3), draw([one], seed=4))
    assert not np.array_equal(draw([one], seed=3), draw([other], seed=3))


@pytest.mark.parametrize("name", ["taylor", "apoz"])
def test_what_is_learned_is_of_all_batches_and_of_inference(name):
    image = keras.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, name="c")(image))
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 6, 6, 2)).astype("float32"), np.arange(8) % 3

    def scores(*parts: slice, batches: int = 8) -> np.ndarray:
        order = np.concatenate([np.arange(8)[p] for p in parts])
        data = tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(4)
        graph = ChannelGraph(model)
        return Scorer(graph, name=name, data=data, batches=batches)(next(g for g in graph.groups if g.name == "c"))

    first, second = slice(0, 4), slice(4, 8)
    before = [w.copy() for w in model.get_weights()]
    both = scores(first, second)
    np.testing.assert_allclose(both, scores(second, first), rtol=1e-4)
    assert not np.allclose(both, scores(first), rtol=1e-3) and not np.allclose(both, scores(second), rtol=1e-3)
    np.testing.assert_allclose(scores(first, second, batches=1), scores(first), rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
