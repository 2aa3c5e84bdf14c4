"""Budgets of a removal plan: never above, hardly below, and clear words where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from oracle import randomize
from small_networks import small_resnet
from tf_keras import layers

import orbit_kd as okd
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.models import networks
from orbit_kd.pipeline import decisions
from orbit_kd.removal import budgets
from orbit_kd.removal.plan import RemovalPlan
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters
from orbit_kd.search.scan import Curve, Scan


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
    model = randomize(small_resnet((8, 8, 1), classes=3))
    assert plan_removal(model, max_bytes=10**7).params[0] == plan_removal(model, max_bytes=10**7).params[1]


def test_max_bytes_out_of_reach_tells_the_smallest_file_in_reach(tmp_path):
    model = randomize(networks.build("a_convnet", (32, 32, 1), classes=3, width=0.25))
    with pytest.raises(InputError, match="max_bytes=100 cannot be reached") as caught:
        plan_removal(model, max_bytes=100, min_channels=2)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    plan = plan_removal(model, max_bytes=least, min_channels=2)
    assert int8_size(remove_filters(model, plan), tmp_path) == least


def test_max_bytes_goes_with_other_budgets(tmp_path):
    model = randomize(small_resnet((16, 16, 1), classes=3, width=2.0))
    most = 0.6 * int8_size(model, tmp_path)
    plan = plan_removal(model, max_bytes=most, keep_macs=0.2)
    assert plan.macs[1] <= 0.2 * plan.macs[0]
    assert int8_size(remove_filters(model, plan), tmp_path) <= most


def widest(graph, stays):
    return max(stays[g.units].sum() for g in graph.groups)


def test_a_budget_of_ones_own_is_one_function_and_its_registration(network):
    with budgets.costs.temporary("max_width_of_test", budgets.Budget(widest)):
        plan = plan_removal(network, max_width_of_test=20)
        assert max(g.after for g in plan.groups) == 20


def test_a_budget_that_takes_long_is_led_by_the_one_it_is_like(network):
    measured = []

    def flash(graph, stays):
        measured.append(graph.parameters(stays))
        return 1000 + 1.5 * measured[-1]

    with budgets.costs.temporary("max_flash_of_test", budgets.Budget(flash, like="max_params")):
        plan = plan_removal(network, max_flash_of_test=200_000)
    assert 0.98 * 200_000 <= 1000 + 1.5 * plan.params[1] <= 200_000
    assert len(measured) < 12


def test_every_budget_is_a_setting_of_a_recipe():
    recipe = okd.Recipe(max_macs=1e6, limits={"max_params": 500, "max_width_of_test": 20})
    assert recipe.budgets == {"max_macs": 1e6, "max_params": 500, "max_width_of_test": 20}
    assert okd.Recipe(**recipe.to_dict()) == recipe
    for bad in ({"max_params": 0}, {"max_macs": 1e6}, {"keep_params": 0.5}):
        with pytest.raises(InputError, match="limits="):
            okd.Recipe(limits=bad)
    with pytest.raises(InputError, match="rounds"):
        okd.Recipe(limits={"max_params": 500}, rounds=2)


def test_compress_meets_a_budget_of_ones_own_and_refuses_an_unknown_one_before_it_works(network, tmp_path):
    graph, scan = ChannelGraph(network), Scan("filters", 0.9, 0.1, 4, tuple(
        Curve(g.name, (g.name,), g.width, reason=g.reason, ratios=(0.9,), accuracy=(0.5,), loss=(0.5,), images=(4,))
        for g in ChannelGraph(network).groups))  # fmt: skip
    recipe = okd.Recipe(limits={"max_width_of_test": 20, "max_params": 100_000})
    with budgets.costs.temporary("max_width_of_test", budgets.Budget(lambda g, stays: widest(g, stays))):
        met = decisions._met([scan], network, recipe, 0, "tflite_int8")
        plan = plan_removal(network, ratio=0.0, ratios=met["ratios"])
        assert max(g.after for g in plan.groups) <= 20 and plan.params[1] <= 100_000
        with pytest.raises(InputError, match="max_width_of_test=20"):
            decisions._check_budgets(network, network, okd.Recipe(max_drop=0.1, limits={"max_width_of_test": 20}), 0)
    assert widest(graph, graph.all_stay()) == 64
    x, y = np.zeros((4, 16, 16, 3), "float32"), np.arange(4)
    with pytest.raises(InputError, match=r"Unknown budget 'max_width_of_test'[\s\S]*max_activation_bytes"):
        okd.compress(network, okd.Data((x, y), (x, y), (x, y)), recipe=recipe, workdir=tmp_path / "w")
    assert not (tmp_path / "w").exists()


_BUDGET = """
import orbit_kd as okd

@okd.budgets.cost("max_width_of_tool")
def width(graph, stays):
    return max(stays[g.units].sum() for g in graph.groups)
"""


def test_the_tools_know_every_budget_and_one_of_a_file_that_is_named(network, tmp_path, tool):
    (tmp_path / "my_budgets.py").write_text(_BUDGET)
    network.save(tmp_path / "m.keras")
    flags = [f"--model={tmp_path}/m.keras", "--limits=max_width_of_tool:20,max_activation_bytes:50000",
             f"--plan={tmp_path}/plan.json"]  # fmt: skip
    refused = tool("prune", *flags)
    assert refused.returncode == 1 and "Unknown budget 'max_width_of_tool'" in refused.stderr
    with budgets.costs.temporary("other_of_test", budgets.Budget(widest)):  # takes away what the tool's file adds too
        ran = tool("prune", *flags, f"--custom_objects={tmp_path}/my_budgets.py:width")
    assert ran.returncode == 0, ran.stderr
    plan = RemovalPlan.from_json((tmp_path / "plan.json").read_text())
    assert max(g.after for g in plan.groups) <= 20
