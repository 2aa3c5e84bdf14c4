"""One budget, three ways to spend it: filters, zeros and levels weighed against each other, by scans and real bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.removal import budgets
from orbit_kd.search.coded import CodedSize
from orbit_kd.search.moves import Moves, Name, State, Taken
from orbit_kd.search.scan import Scan

CODED = "tflite_micro_coded"  # the target whose files get smaller with zeros and levels
_BEYOND = 1e-3  # what a step is worth that saves where a budget is met already, against one that meets it


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What is to go from a network.

    Attributes:
        ratios: group -> part of its channels that goes, of every group that may shrink.
        sparsities: layer -> part of its remaining weights that becomes zero.
        bits: layer -> bits of each weight of its kernel, where they are fewer than eight.
        loss: how much the scans predict the loss to rise, without any retraining.
    """

    ratios: dict[str, float]
    sparsities: dict[str, float]
    bits: dict[str, int]
    loss: float


def allocate(
    model: keras.Model, scans: Sequence[Scan], *, target: str = "tflite_int8", shrink: str | None = None,
    narrowest: float = 0.25, unknown: str = "error", round_to: int = 1, min_channels: int = 1, **budget: float | None,
) -> Allocation:  # fmt: skip
    """How much goes by filters, by zeros and by fewer bits, chosen together for one or more budgets.

    The loss of a network is taken to be the sum of what each part costs alone. Step by step that goes on shrinking
    which pays most: more filters of a group, more zeros in a layer, fewer bits in a layer, each by what it saves of the
    budgets that are not met yet, for its predicted loss. Zeros and bits save bytes in a coded file alone; zeros also
    save parameters (`keep_params`, `max_params`), where those that are zero do not count.

        scans = [okd.sensitivity(teacher, val, of=kind) for kind in ("filters", "weights", "bits")]
        found = okd.allocate(teacher, scans, target="tflite_micro_coded", max_bytes=60_000)
        student = okd.remove_filters(teacher, okd.plan_removal(teacher, ratios=found.ratios, ratio=0.0))
        sparse = okd.sparsify(student, "magnitude", sparsity=found.sparsities)

    Args:
        model: the model.
        scans: of its filters, its weights, its bits, or some of these.
        target: the file that `max_bytes` is about.
        shrink: what each step is priced by in place of the budgets: "bytes", "macs", "params", "activation_bytes", or
            another budget's name without "max_".
        narrowest: no group keeps less than this part of the channels that a ratio for all groups alike would leave it;
            0 for no such limit. Curves are of the network before it is trained again, and may be flat where it has lost
            everything.
        unknown: as in the scans.
        round_to, min_channels: as in `plan_removal`.
        **budget: one or more budgets of `plan_removal`.

    Raises:
        InputError: a scan of another model, two of the same kind, no budget, one that nothing within the scans meets.
    """
    graph = ChannelGraph(as_tf_keras(model), unknown=unknown)
    kinds = [scan.of for scan in scans]
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(
            f"Scans of {', '.join(kinds) or 'nothing'}.",
            expected="one or more scans of this model, each of something else",
            fix='give for example those of "filters", "weights" and "bits"',
        )
    limits = budgets.limits(graph, budget)
    if not limits:
        raise InputError(
            "There is no budget.", expected="one such as keep_macs=0.2 or max_bytes=200_000", fix="give one"
        )
    moves = Moves(graph, scans, round_to=round_to, min_channels=min_channels)
    limits = [_of_state(limit, moves, target) for limit in limits]
    if narrowest:
        _limit_widths(moves, limits, narrowest)
    guide = _excess(limits) if shrink is None else cost_of(shrink, moves, target)
    order = moves.order(guide)
    taken = order[: budgets.fewest_to_remove(len(order), lambda n: moves.after(order[:n]), limits)]
    return _allocation(moves, _needed(moves, taken, limits))


@dataclasses.dataclass(frozen=True)
class Steps:
    """Everything that may go from a network, in order; how far to go is a choice of its own.

    Attributes:
        moves: of the network.
        cost: what is to be small.
        order: the steps.
    """

    moves: Moves
    cost: Callable[[State], float]
    order: Sequence[Taken]

    @property
    def furthest(self) -> float:
        """By how much all steps together divide the cost."""
        return self._factor(len(self.order))

    def safe(self, loss: float) -> float:
        """By how much the steps divide the cost whose predicted rise of the loss is no more than so much."""
        return self._factor(sum(step.loss <= loss for step in self.order))

    def to(self, factor: float) -> Allocation:
        """The fewest steps that divide the cost by a factor, or all."""
        count = budgets.first_that_meets(0, len(self.order), lambda n: self._factor(n) >= factor)
        return _allocation(self.moves, self.order[:count])

    def _factor(self, count: int) -> float:
        return self.cost(self.moves.start) / self.cost(self.moves.after(self.order[:count]))


def steps_of(
    model: keras.Model, scans: Sequence[Scan], *, target: str, shrink: str, bits: Mapping[str, int],
    unknown: str, round_to: int, min_channels: int,
) -> Steps:  # fmt: skip
    """The steps towards a network with less of what is to be small, and of multiply-accumulates in the same measure.

    A percent of these is worth a percent of that, where their number is known: weights alone would make a network that
    is small and as slow as before.

    Args:
        model: the network.
        scans: of its filters, its weights, its bits, or some of these.
        target, shrink, unknown, round_to, min_channels: as in `allocate`.
        bits: layer -> bits that its kernel has already; 8 where not named.
    """
    moves = Moves(ChannelGraph(model, unknown=unknown), scans, round_to=round_to, min_channels=min_channels, bits=bits)
    cost, macs = cost_of(shrink, moves, target), cost_of("macs", moves, target)
    guide = cost if shrink == "macs" or math.isnan(macs({})) else lambda gone: math.log(cost(gone) * macs(gone))
    return Steps(moves, cost, moves.order(guide))


def is_coded(target: str) -> bool:
    """Whether files of a target get smaller with zeros and fewer bits."""
    return target.partition(":")[0] == CODED


def cost_of(name: str, moves: Moves, target: str) -> Callable[[State], float]:
    """The cost of a state that falls with a budget of this name (without "max_"), for a file of this target.

    Raises:
        InputError: no such budget.
    """
    if name == "bytes" and is_coded(target):
        return CodedSize(moves)
    budget = budgets.costs.get(f"max_{name}")
    cost = (budgets.costs.get(budget.like) if budget.like else budget).cost
    known: dict[tuple[float, ...], float] = {}  # zeros and bits change nothing

    def of(gone: State) -> float:
        filters = tuple(gone.get(("filters", group), 0) for group in moves.groups)
        if filters not in known:
            known[filters] = cost(moves.graph, moves.stays(gone))
        return known[filters]

    return of


def _allocation(moves: Moves, taken: Sequence[Taken]) -> Allocation:
    gone = moves.after(taken)
    loss = sum(loss for name, levels in moves.levels.items() for amount, loss in levels if amount == gone[name])
    return Allocation(moves.ratios(gone), moves.sparsities(gone), moves.bits(gone), loss)


def _limit_widths(moves: Moves, limits: Sequence[budgets.Limit], narrowest: float) -> None:
    """Takes away levels narrower than a part of what a ratio for all groups alike leaves, unless they are needed."""
    costs = [limit.guide or limit.cost for limit in limits]
    whole = [cost({}) for cost in costs]

    def met(gone: State) -> bool:
        return all(cost(gone) / all_ <= limit.most / limit.whole
                   for cost, all_, limit in zip(costs, whole, limits, strict=True))  # fmt: skip

    def alike(percent: int) -> State:
        return {("filters", name): group.width * percent // 100 for name, group in moves.groups.items()}

    percent = budgets.first_that_meets(0, 100, lambda n: met(alike(n)))
    levels = dict(moves.levels)
    moves.keep_at_least(narrowest * (1 - percent / 100))
    if not met({name: steps[-1][0] for name, steps in moves.levels.items()}):
        moves.levels = levels


def _needed(moves: Moves, taken: Sequence[Taken], limits: Sequence[budgets.Limit]) -> list[Taken]:
    """The steps without those that later ones, for another budget, have made needless.

    Costs that take long are not asked for it.
    """
    needed, fixed = list(taken), set[Name]()
    for step in reversed(taken if len(limits) > 1 and not any(limit.guide for limit in limits) else ()):
        rest = [other for other in needed if other is not step]
        if step.name in fixed or any(limit.cost(moves.after(rest)) > limit.most for limit in limits):
            fixed.add(step.name)
        else:
            needed = rest
    return needed


def _of_state(limit: budgets.Limit, moves: Moves, target: str) -> budgets.Limit:
    """A limit of what filters leave, as one of what a state leaves."""
    name = budgets.absolute(limit.name)
    if name == "max_bytes" and is_coded(target):
        return dataclasses.replace(limit, cost=CodedSize(moves), guide=None)
    if name == "max_params":
        return dataclasses.replace(limit, cost=lambda gone: _nonzeros(moves, gone))
    cost, guide = limit.cost, limit.guide
    return dataclasses.replace(limit, cost=lambda gone: cost(moves.stays(gone)),
                               guide=guide and (lambda gone: guide(moves.stays(gone))))  # fmt: skip


def _nonzeros(moves: Moves, gone: State) -> float:
    """Parameters that stay and are not set to zero."""
    stays = moves.stays(gone)
    zeros = sum(part * moves.graph.size(moves.kernels[layer].weight, stays)
                for (of, layer), part in gone.items() if of == "weights")  # fmt: skip
    return moves.graph.parameters(stays) - zeros


def _excess(limits: Sequence[budgets.Limit]) -> Callable[[State], float]:
    """How far a state is above the limits, as parts of them; and a little for what it takes of those that are met."""
    costs = [limit.guide or limit.cost for limit in limits]
    whole = [cost({}) for cost in costs]

    def excess(gone: State) -> float:
        parts = [cost(gone) / all_ * limit.whole / limit.most
                 for cost, all_, limit in zip(costs, whole, limits, strict=True)]  # fmt: skip
        return float(np.maximum(np.array(parts) - 1, 0).sum() + _BEYOND * sum(parts))

    return excess
