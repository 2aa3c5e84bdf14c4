"""The plan, channel by channel: small networks whose widths and survivors can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.removal.plan import RemovalPlan
from orbit_kd.removal.planning import plan_removal


def chain(*norms: list[float], fan: int = 1) -> keras.Model:
    """1x1 convolutions a, b, ... whose filters have these absolute sums, spread evenly over their inputs."""
    x = image = keras.Input((4, 4, fan))
    for name, values in zip("abcdef", norms, strict=False):
        x = layers.Conv2D(len(values), 1, use_bias=False, name=name)(x)
    model = keras.Model(image, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    for name, values in zip("abcdef", norms, strict=False):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.broadcast_to(np.array(values) / kernel.shape[2], kernel.shape))
    return model


def kept(plan: RemovalPlan) -> dict[str, tuple[int, ...]]:
    return {g.name: g.keep for g in plan.groups if not g.reason}


RISING = [1, 2, 3, 4, 5, 6, 7, 8]


def test_max_ratio_limits_what_a_group_loses_and_rounds_in_its_favour():
    model = chain(RISING, [5, 4, 3, 2, 1])
    assert kept(plan_removal(model, ratio=0.9)) == {"a": (7,), "b": (0,)}
    assert kept(plan_removal(model, ratio=0.9, max_ratio=0.5)) == {"a": (4, 5, 6, 7), "b": (0, 1, 2)}
    assert kept(plan_removal(model, ratio=0.9, max_ratio=0.8)) == {"a": (6, 7), "b": (0,)}
    assert kept(plan_removal(model, ratio=0.9, max_ratio=0.0)) == {"a": tuple(range(8)), "b": tuple(range(5))}
    least = plan_removal(model, ratio=0.9, max_ratio=0.5).params[1]
    assert plan_removal(model, max_params=least, max_ratio=0.5).params[1] == least
    with pytest.raises(InputError, match="cannot be reached"):
        plan_removal(model, max_params=least - 1, max_ratio=0.5)


def test_max_ratio_holds_where_a_global_ranking_would_empty_one_group():
    model = chain([0.01] * 7 + [8], [1] * 8)  # the seven are the least important of all
    assert {n: len(k) for n, k in kept(plan_removal(model, ratio=0.5, scope="global")).items()} == {"a": 1, "b": 8}
    some = kept(plan_removal(model, ratio=0.5, scope="global", max_ratio=0.5))
    assert some == {"a": (4, 5, 6, 7), "b": tuple(range(8))}


def test_a_groups_own_name_counts_before_patterns_and_the_first_pattern_before_others():
    model = chain(RISING, RISING)
    widths = {n: len(k) for n, k in kept(plan_removal(model, ratios={"?": 0.25, "*b": 0.75, "a": 0.5})).items()}
    assert widths == {"a": 4, "b": 6}
    assert {n: len(k) for n, k in kept(plan_removal(model, ratios={"*b": 0.75, "?": 0.25})).items()} == {"a": 6, "b": 2}
    # of a group that layers share, the other layers' names are patterns like any other
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(8, 1, name="first")(image)
    x = layers.Add()([x, layers.Conv2D(8, 1, name="second")(x)])
    shared = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    for ratios, width in (({"second": 0.25, "*": 0.75}, 6), ({"*": 0.75, "second": 0.25}, 2),
                          ({"second": 0.25, "first": 0.5}, 4)):  # fmt: skip
        assert len(kept(plan_removal(shared, ratios=ratios))["first"]) == width


def test_a_ratio_leaves_the_other_groups_to_ratio_and_scope():
    model = chain(RISING, RISING)
    assert {n: len(k) for n, k in kept(plan_removal(model, ratios={"a": 0.5})).items()} == {"a": 4, "b": 8}
    some = kept(plan_removal(model, ratios={"a": 0.0}, ratio=0.5, scope="global"))
    assert {n: len(k) for n, k in some.items()} == {"a": 8, "b": 4}


@pytest.mark.parametrize("name", ["max_params", "max_macs"])
def test_the_smallest_reachable_number_is_a_budget_that_can_be_met(name):
    model = chain(RISING, RISING)
    least = getattr(plan_removal(model, ratio=0.99, min_channels=3), name[4:])[1]
    plan = plan_removal(model, min_channels=3, **{name: least})
    assert getattr(plan, name[4:])[1] == least and {len(k) for k in kept(plan).values()} == {3}
    with pytest.raises(InputError, match=f"at least {least:g}"):
        plan_removal(model, min_channels=3, **{name: least - 1})
    whole = getattr(plan_removal(model), name[4:])[0]
    assert plan_removal(model, **{name: whole}).params[0] == plan_removal(model, **{name: whole}).params[1]


@pytest.mark.parametrize("norms", [[1] * 7, [1] * 11, [1] * 98])
def test_the_number_that_a_refusal_names_can_be_asked_for(norms):
    model = chain(norms, norms)
    for name, asked in (("keep_params", 1e-6), ("keep_macs", 1e-6), ("max_params", 1), ("max_macs", 1.0)):
        for how in ({}, {"min_channels": 2}, {"max_ratio": 0.5}):
            with pytest.raises(InputError) as caught:
                plan_removal(model, **how, **{name: asked})
            least = str(caught.value).split("at least ")[1].split(",")[0]
            plan = plan_removal(model, **how, **{name: float(least)})
            part, whole = (plan.params if "params" in name else plan.macs)[::-1]
            assert part <= float(least) * (whole if name.startswith("keep") else 1) * (1 + 1e-9)


def test_a_part_that_is_a_whole_number_of_parameters_is_met():
    """In floats 0.29 * 100 is below 29."""
    model = chain([1.0] * 98, fan=1)
    for left in range(1, 98):
        params = 3 * left + 2
        assert plan_removal(model, keep_params=params / 296).params == (296, params)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_budget_takes_not_one_channel_more_than_it_must(scope):
    """8 filters of 1 + 2 weights each (what makes them, what reads them) and the head's two biases: 26 parameters."""
    model = chain(RISING)
    assert plan_removal(model).params == (26, 26)
    for most, left in ((26, 8), (25, 7), (23, 7), (22, 6), (8, 2), (7, 1), (5, 1)):
        plan = plan_removal(model, max_params=most, scope=scope)
        assert plan.params == (26, 3 * left + 2) and kept(plan) == {"a": tuple(range(8 - left, 8))}


@pytest.mark.parametrize(
    ("ratio", "how", "width"),
    [
        (0.5, {}, 8), (0.45, {}, 9), (0.3, {"round_to": 5}, 15), (0.4, {"round_to": 5}, 10),
        (0.45, {"round_to": 5}, 10),
        (0.4, {"round_to": 8}, 16), (0.5, {"round_to": 8}, 8), (0.55, {"round_to": 8}, 8), (0.99, {"round_to": 8}, 8),
        (0.99, {"round_to": 5, "min_channels": 6}, 10), (0.99, {"round_to": 5, "min_channels": 5}, 5),
        (0.99, {"min_channels": 6}, 6), (0.99, {"min_channels": 99}, 16), (0.1, {"round_to": 12}, 16),
        (0.99, {"round_to": 5, "max_ratio": 0.6}, 10), (0.99, {"round_to": 32}, 16),
    ],
)  # fmt: skip
def test_a_width_is_a_multiple_not_below_what_the_ratio_and_the_floor_leave(ratio, how, width):
    assert len(kept(plan_removal(chain(list(range(1, 17))), ratio=ratio, **how))["a"]) == width


def test_steps_and_floors_count_channels_where_a_unit_holds_several():
    """Three 1x1 channels a group of a grouped convolution live or die together: 12 channels are 4 units of 3."""
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(12, 1, name="first")(image)
    x = layers.Conv2D(6, 1, groups=3, name="grouped")(x)
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    first = next(g for g in ChannelGraph(model).groups if g.name == "first")
    assert (first.width, first.channels_per_unit, first.channels) == (4, 3, 12)
    assert [first.fewest_units(n) for n in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]
    assert [first.step(n) for n in (1, 2, 3, 6, 4)] == [1, 2, 1, 2, 4]
    widths = {n: len(kept(plan_removal(model, ratios={"first": 0.99}, min_channels=n))["first"]) for n in (1, 4, 7)}
    assert widths == {1: 1, 4: 2, 7: 3}
    assert len(kept(plan_removal(model, ratios={"first": 0.7}, round_to=6))["first"]) == 2


@pytest.mark.parametrize("criterion", ["l1_norm", "l2_norm", "geometric_median", "bn_scale"])
def test_weights_a_hundred_times_larger_change_no_plan(criterion):
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(image)
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same", name="b")(x)])
    x = layers.Conv2D(12, 3, name="c")(x)
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    asked = [{"scope": "global", "ratio": 0.5}, {"scope": "global", "max_params": 600}, {"ratio": 0.5}]
    before = [kept(plan_removal(model, criterion=criterion, **how)) for how in asked]
    assert before[0] != before[2]
    for name in "abc":  # also within the group that a and b make together
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * 100)
        assert [kept(plan_removal(model, criterion=criterion, **how)) for how in asked] == before
        kernel.assign(kernel / 100)
