"""Sparsity that survives training: wrap a copy of a model, train it anyhow, strip it to a plain model with its zeros.

    sparse = sparsify(model, "2:4")             # a copy with sparse kernels; model is left alone
    sparse.compile(...); sparse.fit(...)        # or inside a Distiller; no callback needed
    print(okd.sparsity_table(sparse))
    plain = strip(sparse)                       # no wrappers, zeros verified group by group

Patterns are in `patterns`, schedules in `schedules`, the wrapper in `layers`. Importing this
module registers what a saved sparse model needs, so that `keras.models.load_model` reads one without custom objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.models.conversion import as_tf_keras
from orbit_kd.models.copies import clone_with, copy_layer, has_matrix, named_layers, resolve
from orbit_kd.models.unwrapping import CLUSTERED, QUANTIZED, SPARSE, unwrapped_copy, wrappers_in
from orbit_kd.models.wrappers import (
    KernelRule,
    constrained_build,
    inner_layer,
    kernel_rule,
)
from orbit_kd.sparsity.layers import SparseLayer, reason_dense
from orbit_kd.sparsity.patterns import Magnitude, Pattern, get_pattern
from orbit_kd.sparsity.schedules import Schedule, get_schedule

__all__ = ["keep_zeros", "sparsify", "strip"]


def sparsify(
    model: keras.Model,
    pattern: str | Pattern,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    scope: str = "layer",
    group_size: int | None = None,
    schedule: str | Schedule = "constant",
    begin_step: int = 0,
    end_step: int | None = None,
    exclude: Iterable[str] = (),
) -> keras.Model:
    """A copy of a model whose kernels become and stay sparse in training, under `fit` or inside a Distiller.

    Every layer whose kernel the pattern fits is wrapped, also within nested models; groups run along input channels.
    The others stay dense, and `sparsity_table` says why: no kernel over input channels (normalizations, PReLU,
    depthwise convolutions, unknown layers), frozen, excluded, or fewer input channels than a group. Where the input
    channels are no multiple of M, the last group of k keeps ceil(k * N / M). Layers keep their names. The copy shares
    nothing with `model` and is not compiled.

    Steps are optimizer steps, counted once a step whatever the number of forward passes, and saved with the model.

    Args:
        model: a built Functional or Sequential tf_keras model.
        pattern: "2:4" or any "N:M" (at most N non-zeros in a group of M), "2:4:shared" (the same channels of a group
            at all taps of a kernel), "uhp" (half of each group), "magnitude", or a pattern object.
        sparsity: for "magnitude": the fraction of zeros (default 0.5), or one for each layer by name or shell
            pattern, such as a sensitivity scan gives; layers without one stay dense.
        scope: for "magnitude": "layer" prunes each layer to `sparsity`; "global" prunes the network to it by one
            threshold over the weights as they are now, and "lamp" by one over what each weight adds to those of its
            layer that are no smaller (LAMP, Lee et al., ICLR 2021, https://arxiv.org/abs/2010.07611), which no layer's
            scale changes; the layers keep the sparsities that follow.
        group_size: for "uhp": M, default 8.
        schedule: "constant" (the whole pattern at `begin_step`, the mask then fixed), "one_shot" (the same at once),
            "polynomial" (cubic, until `end_step`), "gradual" (dense -> 3:4 -> 2:4 in equal steps until `end_step`),
            "sr_ste" (mask from dense weights at every step), or a schedule object.
        begin_step: optimizer step where pruning begins.
        end_step: optimizer step from which on the full pattern holds.
        exclude: layers that stay dense, by name or shell pattern ("conv1_*"); "outer/inner" within a nested model.

    Returns:
        The sparse copy: a `keras.Model` of the same class.

    Raises:
        InputError: an unknown or impossible option, an unknown layer name, a model that cannot be copied or is sparse
            already, or no layer at all to make sparse.
    """
    model = as_tf_keras(model)
    layers = dict(named_layers(model))
    excluded = resolve(exclude, layers, "exclude")
    uniform = None if isinstance(sparsity, Mapping) else sparsity
    base = get_pattern(pattern, sparsity=uniform, group_size=group_size)
    if (uniform is not sparsity or scope != "layer") and not isinstance(base, Magnitude):
        raise InputError(
            f"The pattern {base.label!r} fixes the sparsity of every layer.",
            expected="sparsity= and scope= with the pattern 'magnitude' only",
            fix="leave them out, or use pattern='magnitude'",
        )
    kernels = {
        name: layer for name, layer in layers.items() if name not in excluded and reason_dense(layer, base) is None
    }
    chosen: dict[str, Pattern] = dict.fromkeys(kernels, base)
    if isinstance(sparsity, Mapping):
        ratios = {
            name: Magnitude(float(ratio))
            for key, ratio in sparsity.items()
            for name in resolve([key], layers, "sparsity")
        }
        chosen = {name: ratios[name] for name in kernels if name in ratios and ratios[name].sparsity > 0}
    elif scope in _SCORES and isinstance(base, Magnitude):
        chosen = _global_sparsities(kernels, base.sparsity, score=_SCORES[scope])
    elif scope != "layer":
        known = ", ".join(map(repr, ("layer", *_SCORES)))
        raise InputError(f"scope={scope!r}.", expected=f"one of: {known}", fix="use scope='layer'")
    if not chosen:
        why = "\n    ".join(
            f"{n}: {reason_dense(layer, base) or 'excluded'}" for n, layer in layers.items() if has_matrix(layer)
        )
        raise InputError(
            f"No layer of the model can be made sparse by {base.label!r}:\n    {why}",
            expected="at least one layer whose kernel fits the pattern",
            fix="choose another pattern, or exclude fewer layers",
        )
    when = {
        name: get_schedule(schedule, pattern=p, begin_step=begin_step, end_step=end_step) for name, p in chosen.items()
    }
    names = {id(layer): name for name, layer in layers.items()}

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        name, copy = names.get(id(layer), ""), copy_layer(layer)
        if name not in chosen:
            return copy
        rule = cast(KernelRule, kernel_rule(layer))
        return SparseLayer(copy, pattern=chosen[name], schedule=when[name], rule=rule)

    sparse, pairs = clone_with(model, wrap)
    for layer, new in pairs:
        inner_layer(new, SparseLayer).set_weights(layer.get_weights())
        if isinstance(new, SparseLayer):
            new.start()
    return sparse


def strip(sparse: keras.Model, *, finish: bool = False) -> keras.Model:
    """The plain model behind a sparse one: the original's layer classes, weights with their zeros, no wrappers.

    The zeros survive further training of the returned object with any optimizer (`keep_zeros`), by constraints on the
    variables that saved files do not hold: a file of the model is plain Keras and loads without this library. After
    loading such a file, call `keep_zeros` before you train it. The model is not compiled.

    Args:
        sparse: a model of `sparsify`, or of tfmot's `prune_low_magnitude`, as sparse as it is by now. A model without
            sparse layers is copied as it is, zeros kept.
        finish: where the schedule has not reached the full pattern yet, apply it to the weights now. The default is to
            refuse, since such a model would be denser than asked for: training ended early, or
            EarlyStopping(restore_best_weights=True) went back to an epoch before `end_step`.

    Raises:
        InputError: an unfinished schedule; or a layer that breaks its pattern, with the group.
    """
    sparse = _without_tfmot(sparse, "sparse")
    wrapped = {name: layer for name, layer in named_layers(sparse) if isinstance(layer, SparseLayer)}
    for name, layer in wrapped.items():
        if not (finish or layer.finished):
            step, density = max(int(layer.sparsity_step.numpy()), 0), np.mean(layer.masked_kernel() != 0)
            raise InputError(
                f"The layer {name!r} is not {layer.pattern.label} yet: step {step}, density {density:.3f}.",
                expected=f"a finished schedule, here at step {layer.schedule.last_step}",
                fix="train on, give an earlier end_step, or strip(sparse, finish=True) to prune the rest at once",
            )
    plain = _plain_copy(sparse, finish=finish)
    for name, layer in named_layers(plain):
        if wrapper := wrapped.get(name):
            kernel = getattr(layer, wrapper.rule.kernel).numpy()
            if where := wrapper.pattern.violation(kernel, axis=wrapper.rule.axis):
                raise InputError(
                    f"The layer {name!r} breaks its pattern: {where}.",
                    expected=f"a kernel that is {wrapper.pattern.label}",
                    fix="its mask was overwritten; strip(sparse, finish=True) prunes it anew",
                )
    return plain


def keep_zeros(model: keras.Model) -> keras.Model:
    """A plain copy of a model in which every kernel weight that is zero now stays zero under further training.

    For a stripped model that was saved and loaded again; `strip` has done it already. Not for `use_ema=True`: the
    averaged weights that such an optimizer writes at the end pass no constraint; train the sparse model instead.

    Raises:
        InputError: the model cannot be copied, or has wrappers that are not of `sparsify`.
    """
    return _plain_copy(_without_tfmot(model, "model"), finish=False)


def _without_tfmot(model: keras.Model, name: str) -> keras.Model:
    """The model, plain or with layers of `sparsify`: those that tfmot prunes are taken out of its wrappers."""
    model = as_tf_keras(model, name=name, refuse=CLUSTERED + QUANTIZED)
    if all(isinstance(layer, SparseLayer) for layer in wrappers_in(model, SPARSE)):
        return model
    return unwrapped_copy(model, SPARSE)


def _lamp(weights: np.ndarray) -> np.ndarray:
    """The square of each weight, in parts of the sum of all squares that are no smaller."""
    order = np.argsort(weights)
    squares = np.square(weights[order].astype(np.float64))
    scores = np.empty_like(squares)
    scores[order] = squares / np.maximum(np.cumsum(squares[::-1])[::-1], np.finfo(np.float64).tiny)
    return scores


_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"global": lambda weights: weights, "lamp": _lamp}


def _global_sparsities(
    kernels: Mapping[str, keras.layers.Layer], sparsity: float, *, score: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Pattern]:
    """Each layer's sparsity when the weights of the largest scores of all layers together are kept."""
    flat = {
        name: score(np.abs(getattr(layer, cast(KernelRule, kernel_rule(layer)).kernel).numpy()).ravel())
        for name, layer in kernels.items()
    }
    every = np.concatenate(list(flat.values()) or [np.zeros(0)])
    owner = np.repeat(np.arange(len(flat)), [w.size for w in flat.values()])
    kept = owner[np.argsort(-every, kind="stable")[: round(every.size * (1 - sparsity))]]
    counts = np.bincount(kept, minlength=len(flat))
    sparsities = {n: 1 - max(int(k), 1) / w.size for (n, w), k in zip(flat.items(), counts, strict=True)}
    return {n: Magnitude(s) for n, s in sparsities.items() if s > 0}


def _plain_copy(model: keras.Model, *, finish: bool) -> keras.Model:
    """The model without wrappers, its kernels masked, zeros kept by constraints on the variables."""
    guards: dict[int, _ZerosStay] = {}

    def unwrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        inner = inner_layer(layer, SparseLayer)
        rule, copy = _rule(layer), copy_layer(inner)
        if rule is not None:
            guards[id(copy)] = guard = _ZerosStay()
            with constrained_build(copy, rule, guard):
                copy.build_from_config(inner.get_build_config())
        return copy

    plain, pairs = clone_with(model, unwrap)
    for layer, new in pairs:
        new.set_weights(inner_layer(layer, SparseLayer).get_weights())
        rule = _rule(layer)
        if rule is None:
            continue
        kernel = getattr(new, rule.kernel)
        if isinstance(layer, SparseLayer):
            kernel.assign(layer.fully_masked_kernel() if finish else layer.masked_kernel())
        guards[id(new)].keep(kernel)
    return plain


def _rule(layer: keras.layers.Layer) -> KernelRule | None:
    rule = layer.rule if isinstance(layer, SparseLayer) else kernel_rule(layer)
    return rule if isinstance(rule, KernelRule) else None


class _ZerosStay:
    """Multiplies a kernel by a mask of its non-zeros, taken once its weights are known."""

    def __init__(self) -> None:
        self.mask: tf.Tensor | None = None

    def keep(self, kernel: tf.Variable) -> None:
        nonzero = kernel.numpy() != 0
        # Without zeros there is nothing to multiply.
        self.mask = None if nonzero.all() else tf.constant(nonzero.astype(kernel.numpy().dtype))

    def __call__(self, weights: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(weights) if self.mask is None else weights * self.mask
