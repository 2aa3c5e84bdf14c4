"""Budgets of a removal plan: never above, hardly below, and clear words where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from oracle import randomize
from tf_keras import layers

from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.models import networks
from orbit_kd.removal import budgets
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    return randomize(networks.build("resnet20", (16, 16, 3), classes=5))


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    "budget", [{"keep_params": 0.3}, {"keep_macs": 0.42}, {"max_params": 50_000}, {"max_macs": 3e6}]
)
def test_a_budget_is_met_and_not_missed_by_more_than_a_step(network, budget, scope):
    plan = plan_removal(network, scope=scope, **budget)
    ((name, value),) = budget.items()
    before, after = plan.params if name.endswith("params") else plan.macs
    most = value * before if name.startswith("keep") else value
    assert 0.98 * most <= after <= most
    student = remove_filters(network, plan)
    assert student.count_params() == plan.params[1]


def test_activation_bytes_are_a_budget_too(network):
    from orbit_kd.channels.profiles import profile

    whole = profile(network).activation_bytes
    plan = plan_removal(network, max_activation_bytes=whole // 2)
    assert 0.9 * (whole // 2) <= profile(remove_filters(network, plan)).activation_bytes <= whole // 2


def test_several_budgets_are_all_met(network):
    plan = plan_removal(network, keep_params=0.5, keep_macs=0.2)
    assert plan.params[1] <= 0.5 * plan.params[0] and plan.macs[1] <= 0.2 * plan.macs[0]


def test_a_budget_out_of_reach_tells_the_smallest_in_reach(network):
    with pytest.raises(InputError, match=r"keep_params=0\.001 cannot be reached") as caught:
        plan_removal(network, keep_params=0.001)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert plan_removal(network, keep_params=least * 1.001).params[1] <= least * 1.001 * network.count_params()


@pytest.mark.parametrize("bad", [{"max_bananas": 3}, {"keep_params": 1.5}, {"max_macs": 0}])
def test_a_budget_that_makes_no_sense_is_refused(network, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        plan_removal(network, **bad)


def test_macs_need_a_known_image_size():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    with pytest.raises(InputError, match="image size"):
        plan_removal(model, keep_macs=0.5)


def int8_size(model, tmp_path) -> int:
    images = np.random.default_rng(1).uniform(size=(8, *model.input_shape[1:])).astype("float32")
    return export(model, "tflite_int8", path=tmp_path / "m.tflite", calibration=images).bytes


@pytest.mark.parametrize(("scope", "round_to"), [("local", 1), ("global", 1), ("local", 8)])
def test_max_bytes_is_the_size_of_the_int8_file_met_within_two_percent_or_a_step(tmp_path, scope, round_to):
    keras.utils.set_random_seed(5)
    model = randomize(networks.build("vgg16", (32, 32, 1), classes=4, width=0.125))
    most = int8_size(model, tmp_path) * 0.55
    plan = plan_removal(model, max_bytes=most, scope=scope, round_to=round_to)
    small = int8_size(remove_filters(model, plan), tmp_path)
    assert small <= most
    if round_to == 1:
        assert small >= 0.98 * most
    assert all(g.after % round_to == 0 or g.after == g.before for g in plan.groups)


def test_max_bytes_that_the_network_meets_already_removes_nothing(tmp_path):
    model = randomize(networks.build("resnet20", (8, 8, 1), classes=3, width=0.25))
    assert plan_removal(model, max_bytes=10**7).params[0] == plan_removal(model, max_bytes=10**7).params[1]


def test_max_bytes_out_of_reach_tells_the_smallest_file_in_reach(tmp_path):
    model = randomize(networks.build("a_convnet", (32, 32, 1), classes=3, width=0.25))
    with pytest.raises(InputError, match="max_bytes=100 cannot be reached") as caught:
        plan_removal(model, max_bytes=100, min_channels=2)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    plan = plan_removal(model, max_bytes=least, min_channels=2)
    assert int8_size(remove_filters(model, plan), tmp_path) == least


def test_max_bytes_goes_with_other_budgets(tmp_path):
    model = randomize(networks.build("resnet20", (16, 16, 1), classes=3))
    most = 0.6 * int8_size(model, tmp_path)
    plan = plan_removal(model, max_bytes=most, keep_macs=0.2)
    assert plan.macs[1] <= 0.2 * plan.macs[0]
    assert int8_size(remove_filters(model, plan), tmp_path) <= most


def test_a_budget_of_ones_own_is_one_function_and_its_registration(network):
    def widest(graph, stays):
        return max(stays[g.units].sum() for g in graph.groups)

    with budgets.costs.temporary("max_width_of_test", widest):
        plan = plan_removal(network, max_width_of_test=20)
        assert max(g.after for g in plan.groups) == 20
