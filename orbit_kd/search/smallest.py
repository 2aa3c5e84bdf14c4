"""The smallest network within an accuracy budget: ever smaller ones are made, retrained, and judged by their files.

Progressive shrinking in the manner of NetAdapt (Yang et al., ECCV 2018, arXiv:1804.03230): every step starts from the
last network that was good enough and takes what its own scans predict to cost least. Steps begin small and grow as long
as they succeed; a step that loses too much is taken back and tried half as far. At any time the best file known is at
hand, the network's own from the start on, so that the search may be as short as one likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from orbit_kd.datasets.batches import as_batches, inputs_of
from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.outputs import compiled_loss, loss_name
from orbit_kd.models.saving import fingerprint
from orbit_kd.removal import budgets
from orbit_kd.removal.importance import needs_data
from orbit_kd.search.evaluator import compiled_with, digest_of, examples_of, joined
from orbit_kd.search.shrinking import Shrinking
from orbit_kd.search.trial import Judge
from orbit_kd.search.trials import Found, State
from orbit_kd.support.digests import digest
from orbit_kd.tasks import Task, choose


def smallest(
    teacher: keras.Model,
    retrain: Callable[[keras.Model, int, float], Any],
    *,
    data: Any,
    max_drop: float,
    shrink: str = "bytes",
    target: str = "tflite_int8",
    epochs: int = 6,
    longest: int = 96,
    train: Any = None,
    loss: Any = None,
    images: int = 256,
    samples: int = 256,
    criterion: str = "l1_norm",
    pattern: str = "magnitude",
    round_to: int = 1,
    min_channels: int = 1,
    exclude: Sequence[str] = (),
    sparse_exclude: Sequence[str] = (),
    unknown: str = "error",
    task: str | Task = "auto",
    seed: int = 0,
    examples: int = 0,
    seconds: float | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Found:
    """Shrinks a network as far as retraining keeps its int8 file within `max_drop` of the teacher on validation data.

    Filters go; where the target's files get smaller by them (`tflite_micro_coded`), so do single weights and bits. The
    first step is what the scans predict to be safe. After a success the next step is twice as far (on a logarithmic
    scale), after a failure half as far; where steps get too small, trainings get longer. A percent of the
    multiply-accumulates is worth a percent of what is to be small, so that no network gets small without getting
    faster. In the end the best network, and before it one that came near, is trained for the rest of the time. That
    training, too, only counts where it is better.

    Args:
        teacher: Functional or Sequential; it is not changed.
        retrain: (network, epochs, rate) trains in place, at `rate` times the usual learning rate: a network that has
            changed little does not survive the whole of it.
        data: validation batches (x, y) as in `sensitivity`: the search chooses on them.
        max_drop: accuracy (or the task's metric) that may be lost, in [0, 1): 0.01 is one point below the teacher as it
            is, in float.
        shrink: what is to be small: "bytes" of the target's file, "macs", "params", "activation_bytes", or another
            budget's name without "max_".
        target: "tflite_int8", or "tflite_micro_coded", whose constants are entropy-coded.
        epochs: of a trial's training, at most; four times as many where those have led no further.
        longest: epochs of any training, at most.
        train: batches for BatchNormalization, for the ranges of activations, and for criteria that learn from data;
            where there are none, ranges are those of `data`.
        loss: that the teacher was trained with, as in `sensitivity`, where it is not compiled.
        images: validation images for the scans, at most. Accuracies are always measured on all.
        samples: examples that set the ranges of activations.
        pattern: of the zeros: "magnitude" chooses how many, layer by layer; "2:4" and others hold in every trial.
        criterion, round_to, min_channels, exclude, unknown, seed: as in `plan_removal`.
        task: as in `sensitivity`.
        sparse_exclude: layers (shell patterns) whose kernels stay as they are.
        examples: that an epoch of `retrain` goes through, for a first estimate of its time.
        seconds: time for all of it; None for as long as steps succeed.
        path: folder for what each trial leaves; the same call goes on from it.

    Returns:
        The best network, with the list of trials.

    Raises:
        InputError: an impossible max_drop, an unknown `shrink`, and what `sensitivity` and `export` raise.
    """
    teacher = as_tf_keras(teacher, name="teacher")
    if not 0 <= max_drop < 1:
        raise InputError(
            f"max_drop={max_drop!r}.",
            expected="a part of 1, in [0, 1)",
            fix="for one point of accuracy give max_drop=0.01",
        )
    if not 1 <= epochs <= longest:
        raise InputError(
            f"epochs={epochs!r}, longest={longest!r}.", expected="1 <= epochs <= longest", fix="give fewer epochs"
        )
    budgets.costs.get(f"max_{shrink}")
    loss = loss if loss is not None else compiled_loss(teacher)  # the students are not compiled
    of, batches = examples_of(data, None, model=compiled_with(teacher, loss), task=task)
    of = of or choose(teacher)
    if train is not None:
        train = as_batches(train, what="training data", again=True, inputs=inputs_of(teacher))
    learned = digest_of(train) if train is not None and needs_data(criterion) else ""
    key = digest(fingerprint(teacher), digest_of(batches), learned, max_drop, shrink, target, epochs, longest,
                 criterion, pattern, round_to, min_channels, list(exclude), list(sparse_exclude), unknown, images,
                 samples, seed, of.config(), loss_name(loss) if learned and loss else "")  # fmt: skip
    calibration = train if train is not None else joined([x for x, _ in batches])
    judge = Judge(of, batches, calibration, samples, target, shrink, unknown)
    removal = {"criterion": criterion, "train": train, "loss": loss, "round_to": round_to,
               "min_channels": min_channels, "exclude": exclude, "unknown": unknown, "seed": seed}  # fmt: skip
    return Shrinking(
        teacher, retrain, judge, removal, State.load(path, key), max_drop=max_drop, seconds=seconds, epochs=epochs,
        longest=longest, images=images, pattern=pattern, sparse_exclude=sparse_exclude, examples=examples,
    ).run()  # fmt: skip
