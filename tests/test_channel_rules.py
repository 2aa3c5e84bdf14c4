"""Each channel rule against the oracle, on a network of its own; and no rule without one."""

from __future__ import annotations

import pytest
from oracle import difference, randomize
from rule_examples import EXAMPLES, network

from orbit_kd.channels import ids as channels
from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters


def kinds(graph: ChannelGraph) -> set:
    """The rules that a network goes through."""
    found = set()
    for record in graph.layers.values():
        if hasattr(record.layer, "symbol"):
            found.add(channels.symbol_of(record.layer))
        else:
            found |= {c for c in type(record.layer).__mro__ if c in channels.channel_rules}
    return found


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda k: k if isinstance(k, str) else k.__name__)
def test_a_rule_removes_channels_as_the_oracle_does(kind):
    apply, shape = EXAMPLES[kind]
    model = randomize(network(apply, shape))
    assert kind in kinds(ChannelGraph(model))
    plan = plan_removal(model, ratio=0.5)
    student = remove_filters(model, plan)
    assert difference(model, student, plan) <= 1e-4
    assert student.count_params() == plan.params[1] < plan.params[0]


def test_every_rule_has_an_example():
    assert set(channels.channel_rules) == set(EXAMPLES)
