"""Filter removal in rounds: a little at a time, with training in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.datasets.batches import as_batches, inputs_of
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.outputs import compiled_loss
from orbit_kd.removal import budgets
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import remove_filters


def ratio_of_round(ratio: float, rounds: int) -> float:
    """The part that goes in each of `rounds` equal rounds, so that `ratio` has gone in the end."""
    return 1 - (1 - ratio) ** (1 / rounds)


def remove_in_rounds(
    model: keras.Model,
    retrain: Callable[[keras.Model, int], Any],
    *,
    rounds: int,
    ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    unknown: str = "error",
    **how: Any,
) -> keras.Model:
    """Removes filters in several rounds and trains after each (Molchanov et al., ICLR 2017, arXiv:1611.06440).

    Each round scores the channels anew and takes the same part of what is left, so that the last one meets the ratios
    and budgets.

        small = okd.remove_in_rounds(teacher, lambda student, number: tune(student), rounds=4, keep_macs=0.25)

    Args:
        model: Functional or Sequential; it is not changed.
        retrain: trains in place the smaller network it is given (recalibrate BatchNormalization first); its second
            argument is the number of the round, from 1 on.
        rounds: how many.
        ratio, ratios, unknown: as in `plan_removal`, over all rounds.
        **how: other settings and budgets of `plan_removal`; a `loss` that is not given is the one that the model is
            compiled with.

    Returns:
        The network after the last round and its training.

    Raises:
        InputError: as `plan_removal`; fewer than one round.
    """
    model = as_tf_keras(model)
    if rounds < 1:
        raise InputError(f"rounds={rounds!r}.", expected="at least 1", fix="use for example rounds=4")
    given = {name: how.pop(name) for name in list(how) if budgets.is_budget(name)}
    goals = budgets.goals(ChannelGraph(model, unknown=unknown), given)
    how["loss"] = how["loss"] if how.get("loss") is not None else compiled_loss(model)
    student = model
    if how.get("data") is not None:
        how["data"] = as_batches(how["data"], what="training data", again=True, endless=True, inputs=inputs_of(model))
    for number in range(1, rounds + 1):
        done = number / rounds
        plan = plan_removal(
            student,
            ratio=None if ratio is None else ratio_of_round(ratio, rounds),
            ratios={name: ratio_of_round(part, rounds) for name, part in (ratios or {}).items()},
            unknown=unknown,
            **how,
            **{name: whole ** (1 - done) * most**done for name, (whole, most) in goals.items()},
        )
        student = remove_filters(student, plan)
        retrain(student, number)
    return student
