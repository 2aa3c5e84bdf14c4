"""The steps of the search for the smallest network: how far the next one goes, how long it is trained, what is kept."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from orbit_kd.channels.graph import ChannelGraph
from orbit_kd.quantization.aware import plain_model
from orbit_kd.removal.planning import plan_removal
from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters
from orbit_kd.search.allocation import Steps, is_coded, steps_of
from orbit_kd.search.evaluator import Evaluator, size_of
from orbit_kd.search.points import Question
from orbit_kd.search.sensitivity import sensitivities
from orbit_kd.search.trial import Judge, Reached, shrunk, takes_bits, with_bits
from orbit_kd.search.trials import Found, State, Trial
from orbit_kd.sparsity.sparsify import keep_zeros
from orbit_kd.tasks import Metric

log = logging.getLogger("orbit_kd")

RATIOS = (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96)
USUAL = {"filters": RATIOS, "weights": RATIOS, "bits": None}  # what is scanned of each kind
LOST, TOLERANCE = 0.5, 0.1  # of the scans
_SAFE = 0.3  # predicted rise of the loss that the first step may have
_FIRST, _LEAST, _MOST = 1.25, 1.08, 16.0  # what is to be small is divided by so much in a step; less is not worth one
_PATIENCE = 4  # times the epochs, once steps with fewer have come to their end
_GENTLEST = 0.1  # of the usual learning rate, for a network that is as its teacher was
# Parts of the time: for steps; of what is left of that, for the training of one trial, for one whose epochs are few,
# and for scans; of what is left in the end, for a network that came near; and what estimates are trusted to.
_EXPLORING, _SHARE, _LARGER, _SCANNING, _NEAR, _SURELY = 0.75, 0.12, 0.3, 0.2, 0.5, 0.85
_FEW = 5  # epochs, which tell too little of a network: one trial of more is worth three of these
_SCAN, _TRAINING = 10, 4  # forward passes that scans take over their images, and training over an epoch's; roughly
_FEWEST = 64  # images of a scan


@dataclasses.dataclass
class Shrinking:
    """The search as `smallest` describes it; its arguments are there.

    Attributes:
        removal: arguments of `plan_removal` that hold for every step.
        examples: training examples an epoch, for a first estimate of its time; 0 where not known.
    """

    teacher: keras.Model
    retrain: Callable[[keras.Model, int, float], Any]
    judge: Judge
    removal: Mapping[str, Any]
    state: State
    max_drop: float
    seconds: float | None
    epochs: int
    longest: int
    images: int
    pattern: str
    sparse_exclude: Sequence[str]
    examples: int

    def run(self) -> Found:
        """Goes on from where the state is, to the end."""
        self._start = time.monotonic() - self.state.spent
        unknown = self.removal["unknown"]
        right, self._forward = _accuracy_and_pace(self.teacher, self.judge)
        self.images_seen = sum(size_of(x) for x, _ in self.judge.batches)
        self.target = right - self.max_drop - 1e-9  # a drop of just max_drop is within it
        copy = remove_filters(self.teacher, plan_removal(self.teacher, ratio=0.0, unknown=unknown))
        if self.state.whole is None:
            self.state.whole = self.judge(copy)
            self.state.best = self.state.keep(copy, self.state.whole, {})
            self.state.save()
        log.info("search: at least %s on %d validation images; the teacher's own int8 file: %s bytes, %s",
                 self.metric.text(self.target), self.images_seen, f"{self.state.whole.bytes:,}",
                 self.metric.text(self.state.whole.accuracy))  # fmt: skip
        self.coarse = is_coded(self.judge.target) and takes_bits(copy)
        self._explore()
        self._train_longer()
        best = self.state.best
        found = Found(self.state.model(best), self.target, self.images_seen, self.state.whole,
                      Reached(**best["reached"]), tuple(self.state.trials), self.metric)  # fmt: skip
        log.info("search: %s", found.verdict)
        return found

    @property
    def metric(self) -> Metric:
        """What the search is held to."""
        return self.judge.task.metric

    def _explore(self) -> None:
        """Steps from the best network, until the time for them is over or they get too small."""
        last = next((trial for trial in reversed(self.state.trials) if trial.factor > 1), None)
        patience, factor = _next(last.patience, last.factor, last.accepted) if last else (0, 0.0)
        steps: Steps | None = None
        while self._most_epochs(patience) > self._most_epochs(patience - 1):
            begun, left = time.monotonic(), self._left(_EXPLORING)
            if left < 2 * self._overhead():
                log.info("search: the time for steps is up")
                return
            base, bits = plain_model(self.state.model(self.state.best)), self.state.best["bits"]
            steps = steps or self._steps(base, bits, left)
            factor = factor or min(max(steps.safe(_SAFE), _FIRST), _MOST)
            if steps.furthest < factor:  # the scans do not go so far
                patience, factor = _next(patience, factor, False)
                continue
            allocation = steps.to(factor)
            small = shrunk(base, allocation, pattern=self.pattern, **self.removal)
            epochs = self._epochs(small, left, at_most=self._most_epochs(patience))
            if last and patience > last.patience and epochs <= last.epochs:
                return  # there is no time for more patience than the last trial had
            taken = self._train(small, {**bits, **allocation.bits}, epochs, begun, factor=factor, patience=patience)
            steps, last = None if taken else steps, self.state.trials[-1]
            patience, factor = _next(patience, factor, taken)

    def _train_longer(self) -> None:
        """What time is left goes into the network that came nearest, where there is one, and into the best."""
        tried = max((trial.patience + 1 for trial in self.state.trials if trial.factor == 1), default=0)
        for turn, part in list(enumerate((_NEAR, 1.0)))[tried:]:
            kept, begun = (self.state.near, self.state.best)[turn], time.monotonic()
            if not kept:
                continue
            model, epochs = keep_zeros(plain_model(self.state.model(kept))), self.longest
            if self.seconds is not None:
                left = part * (self._left(1.0) - self._overhead())
                epochs = min(int(_SURELY * left / self._pace(model)), self.longest)
            if epochs >= 1:
                self._train(model, kept["bits"], epochs, begun, factor=1.0, patience=turn)

    def _train(
        self, small: keras.Model, bits: Mapping[str, int], epochs: int, begun: float, *, factor: float, patience: int
    ) -> bool:
        """Trains and measures a network; whether it is the best now."""
        train, state, judge = self.removal["train"], self.state, self.judge
        if train is not None:
            recalibrate_batchnorm(small, train)
        student = with_bits(small, bits, calibration=judge.calibration, samples=judge.samples)
        start = time.monotonic()
        if epochs:
            self.retrain(student, epochs, self._rate(small, bits))
            if train is not None:
                recalibrate_batchnorm(student, train)
        training = time.monotonic() - start
        reached = judge(student)
        taken = self._is_better(reached)
        if taken:
            state.best, state.near = state.keep(student, reached, bits), {}
        elif factor > 1 and reached.accuracy > max(self.target - self.max_drop, state.near.get("accuracy", 0.0)):
            state.near = {**state.keep(student, reached, bits), "accuracy": reached.accuracy}
        trial = Trial(reached.params, reached.macs, reached.bytes, reached.cost, reached.accuracy, taken,
                      time.monotonic() - begun, factor, epochs, training, patience)  # fmt: skip
        state.trials.append(trial)
        state.save()
        reaches, verdict = self.metric.text(trial.accuracy), "taken" if taken else "not taken"
        log.info("search: %s parameters, %s bytes, %s after %d epochs, %s", f"{trial.params:,}", f"{trial.bytes:,}",
                 reaches, epochs, verdict)  # fmt: skip
        return taken

    def _is_better(self, reached: Reached) -> bool:
        """Accurate enough comes first, then small, then accurate; sizes a percent apart count as the same."""
        best = Reached(**self.state.best["reached"])
        if (reached.accuracy >= self.target) != (best.accuracy >= self.target):
            return reached.accuracy >= self.target
        same = abs(reached.cost - best.cost) <= 0.01 * best.cost
        if reached.accuracy < self.target:
            return reached.accuracy > best.accuracy and (same or reached.cost < best.cost)
        return reached.accuracy > best.accuracy if same else reached.cost < best.cost

    def _rate(self, model: keras.Model, bits: Mapping[str, int]) -> float:
        """Part of the usual learning rate: as much as the network differs from the teacher in what it can hold."""
        return max(_GENTLEST, 1 - _held(model, bits) / _held(self.teacher, {}))

    def _steps(self, base: keras.Model, bits: Mapping[str, int], left: float) -> Steps:
        """What may go next, by scans on as many images as there is time for."""
        images = self.images
        if self.seconds is not None:
            images = int(min(images, max(_FEWEST, _SCANNING * left / (_SCAN * self._forward))))
        kinds = ["filters"]
        if self.coarse:
            kinds += ["weights", "bits"] if self.pattern == "magnitude" else ["bits"]
        scans = sensitivities(
            base, self.judge.batches, ratios={kind: USUAL[kind] for kind in kinds}, images=images, lost=LOST,
            tolerance=TOLERANCE, task=self.judge.task,
            exclude={"filters": self.removal["exclude"], "weights": self.sparse_exclude, "bits": self.sparse_exclude},
            **{n: self.removal[n] for n in ("criterion", "train", "loss", "unknown", "seed")},
        )  # fmt: skip
        return steps_of(base, scans, target=self.judge.target, shrink=self.judge.shrink, bits=bits,
                        **{n: self.removal[n] for n in ("unknown", "round_to", "min_channels")})  # fmt: skip

    def _most_epochs(self, patience: int) -> int:
        return min(self.epochs * _PATIENCE**patience, self.longest) if patience >= 0 else 0

    def _epochs(self, model: keras.Model, left: float, *, at_most: int) -> int:
        """Of a trial: as long as all else in it, or a share of the time, and a larger one where that is a few epochs;
        none where one would take all of the time.
        """
        if self.seconds is None:
            return at_most
        pace, overhead = self._pace(model), self._overhead()
        fits = pace < _SURELY * (left - overhead)
        usual, few = int(max(_SHARE * left, overhead) / pace), min(int(_LARGER * left / pace), _FEW)
        return min(at_most, max(usual, few, 1)) if fits else 0

    def _pace(self, model: keras.Model) -> float:
        """Seconds an epoch takes, as the last trainings tell; before the first, as forward passes of the teacher do."""
        macs = _macs(model, self.removal["unknown"])
        for trial in reversed(self.state.trials):
            if trial.epochs:
                each = trial.training / trial.epochs
                return each if math.isnan(macs) else each * max(macs / trial.macs, 0.2)
        part = 1.0 if math.isnan(macs) else macs / _macs(self.teacher, self.removal["unknown"])
        return max(_TRAINING * self._forward * self.examples * part, 1e-3)

    def _overhead(self) -> float:
        """Seconds of a trial besides its training, as the last one tells."""
        return max((t.seconds - t.training for t in self.state.trials[-1:]), default=0.0)

    def _left(self, part: float) -> float:
        """Seconds until a part of the time is over."""
        if self.seconds is None:
            return math.inf
        return part * self.seconds - (time.monotonic() - self._start)


def _accuracy_and_pace(model: keras.Model, judge: Judge) -> tuple[float, float]:
    """The metric on all images, and seconds for one of them."""
    evaluator = Evaluator(model, judge.batches, memory=0, task=judge.task)
    whole, begun = evaluator.measure(), time.monotonic()
    some = evaluator.measure(Question(evaluator.task, whole, tolerance=math.inf))
    return whole.accuracy, (time.monotonic() - begun) / some.images


def _next(patience: int, factor: float, accepted: bool) -> tuple[int, float]:
    """Twice as far after a success; half as far after a failure; where that is too little, more epochs."""
    if accepted:
        return patience, min(factor**2, _MOST)
    return (patience, factor**0.5) if factor**0.5 >= _LEAST else (patience + 1, _FIRST)


def _held(model: keras.Model, bits: Mapping[str, int]) -> float:
    """Bits of the non-zero weights."""
    return sum(float(np.count_nonzero(variable)) * bits.get(layer.name, 8)
               for layer in model._flatten_layers(include_self=False) for variable in layer.get_weights()
               if not isinstance(layer, keras.Model))  # fmt: skip


def _macs(model: keras.Model, unknown: str) -> float:
    graph = ChannelGraph(model, unknown=unknown)
    return graph.macs(graph.all_stay())
