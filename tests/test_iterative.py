"""Filter removal in rounds."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from oracle import randomize

from orbit_kd.channels.profiles import profile
from orbit_kd.errors import InputError
from orbit_kd.models import networks
from orbit_kd.removal.rounds import ratio_of_round, remove_in_rounds


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(4)
    return randomize(networks.build("vgg16", (32, 32, 1), classes=4, width=0.25))


def widths(model: keras.Model) -> list[int]:
    return [la.filters for la in model.layers if isinstance(la, keras.layers.Conv2D)]


def test_each_round_trains_a_smaller_network_and_the_last_one_has_the_ratio(network):
    seen = []
    before = [w.copy() for w in network.get_weights()]
    small = remove_in_rounds(network, lambda m, n: seen.append((n, m.count_params())), rounds=3, ratio=0.75)
    assert [n for n, _ in seen] == [1, 2, 3]
    assert seen[0][1] > seen[1][1] > seen[2][1] == small.count_params()
    for old, new in zip(widths(network), widths(small), strict=True):
        assert abs(new - 0.25 * old) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))


@pytest.mark.parametrize("how", [{"keep_macs": 0.2}, {"max_params": 20_000}, {"keep_params": 0.1, "scope": "global"}])
def test_a_budget_is_met_in_equal_parts(network, how):
    costs = [network.count_params()]
    macs = []

    def note(model, number):
        costs.append(model.count_params())
        macs.append(profile(model).macs)

    remove_in_rounds(network, note, rounds=2, **how)
    most = how.get("max_params", how.get("keep_params", 1) * costs[0])
    if "keep_macs" in how:
        assert 0.96 * 0.2 <= macs[-1] / profile(network).macs <= 0.2
        assert macs[1] / macs[0] == pytest.approx(0.2**0.5, rel=0.05)
    else:
        assert 0.96 * most <= costs[-1] <= most
        assert costs[1] / costs[0] == pytest.approx((most / costs[0]) ** 0.5, rel=0.05)


def test_later_rounds_see_what_training_did_to_the_weights(network):
    favourite = []

    def grow_the_last(model, number):
        layer = model.get_layer("block3_conv1")
        kernel, *rest = layer.get_weights()
        least = np.abs(kernel).sum((0, 1, 2)).argmin()
        kernel[..., least] *= 1e3  # the least important filter that is left becomes the most important one
        favourite.append(kernel[..., least].copy())
        layer.set_weights([kernel, *rest])

    small = remove_in_rounds(network, grow_the_last, rounds=2, ratios={"block3_conv1": 0.9}, ratio=0.0)
    kernel = small.get_layer("block3_conv1").get_weights()[0]
    # it outlived the second round (and grew again after it)
    assert any(np.allclose(kernel[..., i], favourite[0] * f) for i in range(kernel.shape[-1]) for f in (1, 1e3))


def test_one_round_is_the_same_as_one_plan(network):
    from orbit_kd.removal.planning import plan_removal

    small = remove_in_rounds(network, lambda m, n: None, rounds=1, ratio=0.5, criterion="l2_norm")
    assert small.count_params() == plan_removal(network, ratio=0.5, criterion="l2_norm").params[1]
    assert ratio_of_round(0.75, 2) == pytest.approx(0.5)


def test_bad_settings_are_refused_before_anything_is_trained(network):
    with pytest.raises(InputError, match="rounds=0"):
        remove_in_rounds(network, lambda m, n: None, rounds=0, ratio=0.5)
    with pytest.raises(InputError, match="max_bananas"):
        remove_in_rounds(network, lambda m, n: pytest.fail("trained"), rounds=2, max_bananas=2)
