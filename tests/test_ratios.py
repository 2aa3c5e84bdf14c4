"""Ratios from a scan: budgets are met, and insensitive groups pay for them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tf_keras as keras
from oracle import randomize

import orbit_kd as okd
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models import networks
from orbit_kd.search.coded import CodedSize
from orbit_kd.search.moves import Moves
from orbit_kd.search.scan import Curve, Scan

RATIOS = (0.25, 0.5, 0.75, 0.9)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(2)
    return randomize(networks.build("vgg16", (32, 32, 1), classes=4, width=0.25))


def a_scan(model: keras.Model, slope: dict[str, float]) -> Scan:
    """A scan in which each group loses `slope` (1 where not named) for each part that goes."""
    curves = []
    for group in ChannelGraph(model).groups:
        loss = tuple(0.1 + slope.get(group.name, 1.0) * r for r in RATIOS)
        points = {} if group.reason else {
            "ratios": RATIOS, "loss": loss, "accuracy": (0.5,) * 4, "images": (10,) * 4
        }  # fmt: skip
        curves.append(Curve(group.name, tuple(group.members), group.width, **points, reason=group.reason))
    return Scan("filters", 0.9, 0.1, 10, tuple(curves))


@pytest.mark.parametrize(
    "budget", [{"keep_macs": 0.3}, {"max_params": 100_000}, {"keep_params": 0.2, "keep_macs": 0.4}]
)
def test_a_plan_with_these_ratios_meets_the_budget_and_hardly_more(network, budget):
    plan = okd.plan_removal(network, ratios=okd.ratios_for(a_scan(network, {}), network, **budget), ratio=0.0)
    left = {"macs": plan.macs[1] / plan.macs[0], "params": plan.params[1] / plan.params[0]}
    most = {"macs": budget.get("keep_macs", 1.0),
            "params": budget.get("keep_params", budget.get("max_params", 10**9) / plan.params[0])}  # fmt: skip
    assert all(left[k] <= most[k] for k in left)
    assert any(left[k] >= 0.97 * most[k] for k in left)


def test_what_costs_no_loss_goes_first_and_what_costs_much_stays(network):
    found = okd.ratios_for(
        a_scan(network, {"block4_conv1": 0.0, "block4_conv2": 0.0, "block1_conv1": 50.0}), network, keep_params=0.7
    )
    assert {name for name, ratio in found.items() if ratio} == {"block4_conv1", "block4_conv2"}


def two_groups(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[keras.Model, Scan]:
    """Two equal 1x1 convolutions side by side, and a scan of these losses at 25, 50, 75 and 90%; 0.1 of the whole."""
    image = keras.Input((4, 4, 2))
    sides = [keras.layers.Conv2D(20, 1, name=name)(image) for name in ("a", "b")]
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Concatenate()(sides))
    model = keras.Model(image, keras.layers.Dense(2, name="head")(x))
    reason = next(g.reason for g in ChannelGraph(model).groups if g.name == "head")
    curves = [Curve(n, (n,), 20, RATIOS, (0.5,) * 4, loss, (10,) * 4) for n, loss in (("a", a), ("b", b))]
    return model, Scan("filters", 0.9, 0.1, 10, (*curves, Curve("head", ("head",), 2, reason=reason)))


def test_a_curve_that_dips_at_a_higher_ratio_is_read_as_rising():
    """What has cost 0.5 once costs no less from there on."""
    model, scan = two_groups((0.1, 0.2, 0.1, 0.25), (0.7, 1.3, 1.9, 2.26))
    assert model.count_params() == 202  # a channel is 2 weights and a bias, and 2 weights of the head
    assert okd.ratios_for(scan, model, max_params=202 - 5 * 18, narrowest=0.0) == {"a": 0.9, "b": 0.0}
    weights = Scan("weights", 0.9, 0.1, 10, ())
    found = okd.allocate(model, [scan, weights], keep_params=(202 - 5 * 18) / 202 + 1e-9, narrowest=0.0)
    assert (found.ratios, found.sparsities, found.bits) == ({"a": 0.9, "b": 0.0}, {}, {})
    # and a curve below the whole network's loss costs nothing, it does not pay
    model, scan = two_groups((0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.1, 0.1))
    assert sorted(okd.ratios_for(scan, model, max_params=201).values()) == [0.0, 0.05]


def test_no_group_goes_further_than_the_scan_or_below_min_channels(network):
    found = okd.ratios_for(a_scan(network, {}), network, keep_params=0.1, min_channels=12)
    widths = {g.name: g.width for g in ChannelGraph(network).groups}
    assert max(found.values()) <= 0.91
    assert all(round(widths[name] * (1 - r)) >= 12 for name, r in found.items())


def test_a_real_scan_leads_to_a_better_network_than_equal_ratios():
    """A network with one group that does nothing: the scan finds it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2))
    layers = keras.layers
    used = layers.Conv2D(16, 3, activation="relu", name="used")(image)
    idle = layers.Conv2D(16, 3, activation="relu", name="idle")(image)
    x = layers.Dense(3, name="head")(layers.Flatten()(layers.Concatenate()([used, idle])))
    model = randomize(keras.Model(image, x))
    kernel, bias = model.get_layer("head").get_weights()
    kernel.reshape(6, 6, 32, 3)[:, :, 16:] *= 1e-3
    model.get_layer("head").set_weights([kernel, bias])
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
    labels = model(images).numpy().argmax(-1)
    scan = okd.sensitivity(model, [(images, labels)], ratios=(0.25, 0.5, 0.75, 0.9))
    found = okd.ratios_for(scan, model, keep_params=0.6)
    assert found.get("idle", 0) > 0.7 and found.get("used", 0) < 0.1

    def right(**how) -> float:
        small = okd.remove_filters(model, okd.plan_removal(model, **how))
        return float(np.mean(small(images).numpy().argmax(-1) == labels))

    assert right(ratios=found, ratio=0.0) > right(keep_params=0.6) + 0.1


def test_what_cannot_be_met_or_does_not_fit_is_refused(network):
    scan = a_scan(network, {})
    with pytest.raises(InputError, match="cannot be reached"):
        okd.ratios_for(scan, network, keep_params=0.001)
    with pytest.raises(InputError, match="no budget"):
        okd.ratios_for(scan, network)
    with pytest.raises(InputError, match="scan of the filters of this model"):
        okd.ratios_for(scan, networks.build("resnet20", (8, 8, 1), classes=3), keep_params=0.5)


def hybrid(scan, weights, model, **budget):
    found = okd.allocate(model, [scan, weights], **budget)
    return found.ratios, found.sparsities


def scans(model: keras.Model, filters: dict[str, float], weights: dict[str, float]) -> tuple[Scan, Scan]:
    """Scans in which a group (a layer) loses so much for each part that goes; 1 where not named."""
    of_weights = okd.sensitivity(
        model, [(np.zeros((2, 32, 32, 1), "float32"), np.arange(2))], ratios=(0.5,), of="weights"
    )
    curves = tuple(
        Curve(c.name, c.members, c.width, RATIOS, (0.5,) * 4, tuple(0.1 + weights.get(c.name, 1.0) * r for r in RATIOS),
              (10,) * 4)
        for c in of_weights.curves
    )  # fmt: skip
    return a_scan(model, filters), Scan("weights", 0.9, 0.1, 10, curves)


def nonzeros(model: keras.Model, ratios: dict[str, float], sparsities: dict[str, float]) -> float:
    small = okd.remove_filters(model, okd.plan_removal(model, ratios=ratios, ratio=0.0))
    if sparsities:
        small = okd.strip(okd.sparsify(small, "magnitude", sparsity=sparsities), finish=True)
    return sum(int(np.count_nonzero(w)) for w in small.get_weights()) / model.count_params()


@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_filters_and_weights_together_meet_the_number_of_non_zeros(network, keep):
    found = hybrid(*scans(network, {}, {}), network, keep_params=keep)
    assert 0.95 * keep <= nonzeros(network, *found) <= keep * 1.001


def test_another_budget_is_met_by_filters_and_the_weights_give_the_rest(network):
    both = scans(network, {}, {la.name: 0.1 for la in network.layers})  # weights cost less than filters
    ratios, sparsities = hybrid(*both, network, keep_params=0.1, keep_macs=0.4)
    plan = okd.plan_removal(network, ratios=ratios, ratio=0.0)
    assert 0.37 * plan.macs[0] <= plan.macs[1] <= 0.4 * plan.macs[0] and sparsities
    assert 0.09 <= nonzeros(network, ratios, sparsities) <= 0.1001
    without, _ = hybrid(*both, network, keep_params=0.1)
    assert okd.plan_removal(network, ratios=without, ratio=0.0).macs[1] > 0.5 * plan.macs[0]
    filters_alone = hybrid(*both, network, keep_params=1.0, keep_macs=0.4)
    assert filters_alone == (okd.ratios_for(both[0], network, keep_macs=0.4), {})


def test_what_predicts_less_loss_goes_filters_or_weights(network):
    free = dict.fromkeys((g.name for g in ChannelGraph(network).groups), 0.0)
    ratios, sparsities = hybrid(*scans(network, free, {}), network, keep_params=0.3)
    assert any(ratios.values()) and not sparsities
    layers = {la.name: 0.0 for la in network.layers}
    ratios, sparsities = hybrid(*scans(network, {}, layers), network, keep_params=0.3)
    assert sparsities and not any(ratios.values())


def test_hybrid_refuses_scans_of_something_else_and_budgets_out_of_reach(network):
    filters, weights = scans(network, {}, {})
    with pytest.raises(InputError, match="Scans of filters, filters"):
        okd.allocate(network, [filters, filters], keep_params=0.3)
    with pytest.raises(InputError, match="Scans of nothing"):
        okd.allocate(network, [], keep_params=0.3)
    with pytest.raises(InputError, match="cannot be reached"):
        okd.allocate(network, [filters, weights], keep_params=1e-4)
    with pytest.raises(InputError, match="no budget"):
        okd.allocate(network, [filters, weights])
    other = dataclasses.replace(weights, curves=(dataclasses.replace(weights.curves[0], name="nowhere"),))
    with pytest.raises(InputError, match="not in the model"):
        okd.allocate(network, [other], keep_params=0.3)
    with pytest.raises(InputError, match="max_bananas"):
        okd.allocate(network, [filters], keep_params=0.3, shrink="bananas")
    with pytest.raises(InputError, match="The scan is of weights"):
        okd.ratios_for(weights, network, keep_params=0.3)


@pytest.mark.parametrize("budget", [{"keep_macs": 0.3}, {"keep_params": 0.2}])
def test_widths_that_must_be_multiples_meet_the_budget_too(network, budget):
    found = okd.ratios_for(a_scan(network, {}), network, round_to=16, **budget)
    plan = okd.plan_removal(network, ratios=found, ratio=0.0, round_to=16)
    left = plan.macs if "keep_macs" in budget else plan.params
    assert left[1] / left[0] <= next(iter(budget.values()))
    assert all(g.after % 16 == 0 or g.after == g.before for g in plan.groups)


def test_groups_that_share_a_layer_shrink_each_by_its_own_ratio():
    layers, image = keras.layers, keras.Input((8, 8, 1))
    whole = layers.Conv2D(16, 3, padding="same", name="whole")(image)
    halves = [layers.Conv2D(8, 3, padding="same", name=name)(whole) for name in ("half", "other")]
    x = layers.Add()([whole, layers.Concatenate()(halves)])
    model = randomize(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    groups = {g.name: g for g in ChannelGraph(model).groups if not g.reason}
    first, second = groups
    assert set(groups[first].members) & set(groups[second].members) == {"whole"}
    scan = a_scan(model, {second: 50.0})
    assert [scan[name].loss[0] for name in (first, second)] == pytest.approx([0.35, 12.6])
    found = okd.ratios_for(scan, model, keep_params=0.7)
    plan = okd.plan_removal(model, ratios=found, ratio=0.0)
    after = {g.name: g.before - g.after for g in plan.groups}
    assert found[second] == 0 and after[second] == 0 < after[first]
    assert plan.params[1] / plan.params[0] >= 0.6
    by_layer = okd.plan_removal(model, ratios={"whole": 0.5}, ratio=0.0)  # a layer's name is both of its groups
    assert {g.after for g in by_layer.groups if g.name in groups} == {4}


def test_a_scan_of_a_narrower_copy_is_refused(network):
    small = okd.remove_filters(network, okd.plan_removal(network, ratio=0.5))
    with pytest.raises(InputError, match="other widths"):
        okd.ratios_for(a_scan(small, {}), network, keep_params=0.5)


def test_where_a_network_has_lost_everything_the_rest_of_a_group_is_not_free():
    """A flat end of a curve goes on as steeply as it rose: a group was left three channels wide for being "free"."""
    model, scan = two_groups((0.1, 2.3, 2.3, 2.3), (0.2, 1.4, 2.6, 3.3))
    found = okd.ratios_for(scan, model, max_params=202 - 5 * 20)
    assert 0.2 <= found["a"] < 0.6 and 0.4 < found["b"] < 0.8
    assert okd.ratios_for(scan, model, max_params=202 - 5 * 20) == found
    whole = (0.1, 0.1, 0.1, 0.1)  # a scan that says nothing against it
    model, scan = two_groups(whole, (0.2, 1.4, 2.6, 3.3))
    assert okd.ratios_for(scan, model, max_params=202 - 5 * 16, narrowest=0.5)["a"] == 0.7
    assert okd.ratios_for(scan, model, max_params=202 - 5 * 16, narrowest=0.0)["a"] > 0.75


def bits_scan(model: keras.Model, slope: dict[str, float]) -> Scan:
    """A scan in which a layer loses so much for all of its bits; 1 where not named."""
    parts = (0.25, 0.5, 0.75)
    curves = tuple(
        Curve(la.name, (la.name,), la.kernel.shape.num_elements(), parts, (0.5,) * 3,
              tuple(0.1 + slope.get(la.name, 1.0) * p for p in parts), (10,) * 3)
        for la in model.layers if hasattr(la, "kernel")
    )  # fmt: skip
    return Scan("bits", 0.9, 0.1, 10, curves)


def test_filters_zeros_and_bits_share_the_bytes_of_a_coded_file(network):
    little = {la.name: 0.3 for la in network.layers}  # a filter saves bytes in two layers, a zero in one
    every = [*scans(network, {}, dict.fromkeys(little, 0.03)), bits_scan(network, little)]
    size = CodedSize(Moves(ChannelGraph(network), every))
    whole = size({})
    assert 0.75 * network.count_params() < whole < 1.1 * network.count_params()  # eight bits of random weights
    found = okd.allocate(network, every, target="tflite_micro_coded", max_bytes=whole / 8)
    assert any(found.ratios.values()) and found.sparsities and found.bits
    assert set(found.bits.values()) <= {2, 3, 4, 5, 6, 7} and found.loss > 0
    free = [a_scan(network, {}), scans(network, {}, {})[1], bits_scan(network, {la.name: 0.0 for la in network.layers})]
    cheap = okd.allocate(network, free, target="tflite_micro_coded", max_bytes=whole / 3)
    assert cheap.bits and not any(cheap.ratios.values()) and cheap.loss == 0
    plain = okd.allocate(network, every, max_bytes=150_000)  # of a plain int8 file, where only filters count
    assert any(plain.ratios.values()) and not plain.sparsities and not plain.bits


def test_the_size_of_a_coded_file_falls_with_filters_zeros_and_bits_and_never_above_a_byte_a_weight(network):
    every = [*scans(network, {}, {}), bits_scan(network, {})]
    moves = Moves(ChannelGraph(network), every)
    size, name = CodedSize(moves), "block4_conv2"
    whole, kernel = size({}), moves.kernels[name].value.size
    for key, amounts in {("weights", name): (0.3, 0.6, 0.9), ("bits", name): (0.25, 0.5, 0.75),
                         ("filters", name): (8, 32, 64)}.items():  # fmt: skip
        sizes = [whole, *(size({key: amount}) for amount in amounts)]
        assert all(b < a for a, b in itertools.pairwise(sizes))
    assert whole - size({("bits", name): 0.75}) < kernel * 6 / 8 + 400
    entropy = size({("weights", name): 0.9}) - (whole - kernel * 0.9)  # what stays of the kernel, roughly
    assert entropy < 0.35 * kernel


def test_steps_are_priced_by_what_is_to_shrink(network):
    scan = a_scan(network, {})
    by_params = okd.plan_removal(network, ratio=0.0, ratios=okd.ratios_for(scan, network, keep_params=0.5))
    found = okd.allocate(network, [scan], keep_params=0.5, shrink="macs").ratios
    by_macs = okd.plan_removal(network, ratio=0.0, ratios=found)
    assert by_macs.params[1] <= by_params.params[0] * 0.5 and by_macs.macs[1] < 0.8 * by_params.macs[1]


def test_what_a_network_has_lost_already_costs_nothing_more(network):
    """Of a student with zeros and few bits, only what goes beyond them is priced and told."""
    student = okd.strip(okd.sparsify(network, "magnitude", sparsity=0.5, schedule="one_shot"), finish=True)
    filters, weights = scans(network, {}, {})
    moves = Moves(ChannelGraph(student), [filters, weights, bits_scan(network, {})], bits={"block4_conv2": 4})
    assert moves.start["bits", "block4_conv2"] == 0.5 and moves.start["bits", "block4_conv1"] == 0
    assert moves.start["weights", "block4_conv1"] == pytest.approx(0.5, abs=0.01)
    assert all(levels[0][1] == 0 for levels in moves.levels.values())
    assert moves.sparsities(moves.start) == {} and moves.bits(moves.start) == {"block4_conv2": 4}
