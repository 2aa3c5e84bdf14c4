"""Sparsity that survives training: wrap a copy of a model, train it anyhow, strip it to a plain model with its zeros.

    sparse = sparsify(model, "2:4")             # a copy with sparse kernels; model is left alone
    sparse.compile(...); sparse.fit(...)        # or inside a Distiller; no callback needed
    print(sparsity_table(sparse))
    plain = strip(sparse)                       # no wrappers, zeros verified group by group

Patterns are in `sparsity_patterns`, schedules in `sparsity_schedules`, the wrapper in `sparsity_layers`. Importing this
module registers what a saved sparse model needs, so that `keras.models.load_model` reads one without custom objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.sparsity_layers import KernelRule, PruneLowMagnitude, SparseLayer, constrained_build, kernel_rule
from orbit_kd.sparsity_patterns import Magnitude, NofM, Pattern, get_pattern
from orbit_kd.sparsity_schedules import Schedule, get_schedule

Layer = keras.layers.Layer


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
    The others stay dense, and `sparsity_table` says why: no kernel over input channels (normalizations, PReLU, depthwise
    convolutions, unknown layers), frozen, excluded, or fewer input channels than a group. Where the input channels are no
    multiple of M, the last group of k keeps ceil(k * N / M). Layers keep their names. The copy shares nothing with
    `model` and is not compiled.

    Steps are optimizer steps, counted once a step whatever the number of forward passes, and saved with the model.

    Args:
        model: a built Functional or Sequential tf_keras model.
        pattern: "2:4" or any "N:M" (at most N non-zeros in a group of M), "uhp" (half of each group), "magnitude", or a
            pattern object.
        sparsity: for "magnitude": the fraction of zeros (default 0.5), or one for each layer by name, such as a
            sensitivity scan gives; layers without one stay dense.
        scope: for "magnitude": "layer" prunes each layer to `sparsity`; "global" prunes the network to it by one
            threshold over the weights as they are now, and the layers keep the sparsities that follow from it.
        group_size: for "uhp": M, default 8.
        schedule: "constant" (the whole pattern at `begin_step`, the mask then fixed), "one_shot" (the same at once),
            "polynomial" (cubic, until `end_step`), "gradual" (dense -> 3:4 -> 2:4 in equal steps until `end_step`),
            "sr_ste" (mask from dense weights at every step), or a schedule object.
        begin_step: optimizer step where pruning begins.
        end_step: optimizer step from which on the full pattern holds.
        exclude: layers that stay dense; a layer in a nested model may be given as "outer/inner".

    Returns:
        The sparse copy: a `keras.Model` of the same class.

    Raises:
        InputError: an unknown or impossible option, an unknown layer name, a model that cannot be copied or is sparse
            already, or no layer at all to make sparse.
    """
    _check_model(model)
    layers = dict(_named_layers(model))
    if found := [name for name, layer in layers.items() if isinstance(layer, PruneLowMagnitude)]:
        raise InputError(
            f"The model is wrapped for sparsity already (layer {found[0]!r}).",
            expected="a plain model",
            fix="strip it first: sparsify(strip(model), ...)",
        )
    excluded = _resolve(exclude, layers, "exclude")
    by_layer = isinstance(sparsity, Mapping)
    base = get_pattern(pattern, sparsity=None if by_layer else sparsity, group_size=group_size)
    if (by_layer or scope != "layer") and not isinstance(base, Magnitude):
        raise InputError(
            f"The pattern {base.label!r} fixes the sparsity of every layer.",
            expected="sparsity= and scope= with the pattern 'magnitude' only",
            fix="leave them out, or use pattern='magnitude'",
        )
    kernels = {
        name: layer
        for name, layer in layers.items()
        if name not in excluded and reason_dense(layer, base) is None
    }
    chosen: dict[str, Pattern] = dict.fromkeys(kernels, base)
    if isinstance(sparsity, Mapping):
        ratios = {name: Magnitude(float(ratio)) for key, ratio in sparsity.items() for name in _resolve([key], layers, "sparsity")}
        chosen = {name: ratios[name] for name in kernels if name in ratios and ratios[name].sparsity > 0}
    elif scope == "global" and isinstance(base, Magnitude):
        chosen = _global_sparsities(kernels, base.sparsity)
    elif scope != "layer":
        raise InputError(f"scope={scope!r}.", expected="'layer' or 'global'", fix="use scope='layer'")
    if not chosen:
        why = "\n    ".join(f"{n}: {reason_dense(l, base) or 'excluded'}" for n, l in layers.items() if _has_matrix(l))
        raise InputError(
            f"No layer of the model can be made sparse by {base.label!r}:\n    {why}",
            expected="at least one layer whose kernel fits the pattern",
            fix="choose another pattern, or exclude fewer layers",
        )
    when = {name: get_schedule(schedule, pattern=p, begin_step=begin_step, end_step=end_step) for name, p in chosen.items()}
    names = {id(layer): name for name, layer in layers.items()}

    def wrap(layer: Layer, copy: Layer) -> Layer:
        name = names[id(layer)]
        if name not in chosen:
            return copy
        rule = kernel_rule(layer)
        return SparseLayer(copy, pattern=chosen[name], schedule=when[name], rule=rule)  # type: ignore[arg-type]

    sparse, copies = _rebuild(model, wrap)
    for layer, copy in copies:
        inner = copy.layer if isinstance(copy, SparseLayer) else copy
        inner.set_weights(layer.get_weights())
        if isinstance(copy, SparseLayer):
            copy.start()
    return sparse


def strip(sparse: keras.Model, *, finish: bool = False) -> keras.Model:
    """The plain model behind a sparse one: the original's layer classes, weights with their zeros, no wrappers.

    The zeros survive further training of the returned object with any optimizer (`keep_zeros`), by constraints on the
    variables that saved files do not hold: a file of the model is plain Keras and loads without this library. After
    loading such a file, call `keep_zeros` before you train it. The model is not compiled.

    Args:
        sparse: a model of `sparsify`. A model without sparse layers is copied as it is, zeros kept.
        finish: where the schedule has not reached the full pattern yet, apply it to the weights now. The default is to
            refuse, since such a model would be denser than asked for: training ended early, or
            EarlyStopping(restore_best_weights=True) went back to an epoch before `end_step`.

    Raises:
        InputError: an unfinished schedule; or a layer that breaks its pattern, with the group.
    """
    _check_model(sparse)
    for name, layer in _named_layers(sparse):
        if isinstance(layer, SparseLayer) and not (finish or layer.finished):
            step, last = int(layer.sparsity_step.numpy()), layer.schedule.last_step
            raise InputError(
                f"The layer {name!r} is at step {max(step, 0)} of its sparsity schedule and has not reached "
                f"{layer.pattern.label}: its density is {np.count_nonzero(layer.masked_kernel()) / layer.mask.shape.num_elements():.3f}.",
                expected=f"a schedule that is finished, here at step {last}",
                fix="train on, give an earlier end_step, or strip(sparse, finish=True) to prune the rest at once",
            )
        if isinstance(layer, PruneLowMagnitude) and not isinstance(layer, SparseLayer):
            raise InputError(
                f"The layer {name!r} is wrapped by tfmot itself.",
                expected="a model of orbit_kd.sparsify",
                fix="use tfmot's strip_pruning for it",
            )
    plain = _plain_copy(sparse, finish=finish)
    patterned = {n: l for n, l in _named_layers(sparse) if isinstance(l, SparseLayer)}
    for name, layer in _named_layers(plain):
        if name in patterned:
            wrapper = patterned[name]
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
        InputError: the model cannot be copied.
    """
    _check_model(model)
    return _plain_copy(model, finish=False)


@dataclasses.dataclass(frozen=True)
class SparsityRow:
    """One layer of a `SparsityTable`.

    Attributes:
        layer: its name, "outer/inner" within a nested model.
        pattern: such as "2:4"; "" for a dense layer. For a plain model, the tightest one its zeros fulfil.
        density: fraction of kernel weights that are not zero in the forward pass; of all matrices where there is no kernel.
        weights: number of these weights.
        dense_because: why the layer is not sparse; "" where it is.
    """

    layer: str
    pattern: str
    density: float
    weights: int
    dense_because: str


@dataclasses.dataclass(frozen=True)
class SparsityTable:
    """The layers with weight matrices, and which are sparse how. Prints as a table; iterates over its rows."""

    rows: tuple[SparsityRow, ...]

    def __iter__(self) -> Iterator[SparsityRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, layer: str) -> SparsityRow:
        return next(row for row in self.rows if row.layer == layer)

    @property
    def density(self) -> float:
        """Fraction of weights that are not zero, over all rows."""
        return sum(r.density * r.weights for r in self.rows) / max(sum(r.weights for r in self.rows), 1)

    def __str__(self) -> str:
        head = ("layer", "pattern", "density", "weights", "dense because")
        cells = [head, *((r.layer, r.pattern or "-", f"{r.density:.3f}", str(r.weights), r.dense_because) for r in self)]
        cells.append(("all", "", f"{self.density:.3f}", str(sum(r.weights for r in self)), ""))
        w = [max(len(c[i]) for c in cells) for i in range(5)]
        return "\n".join(
            f"{a:<{w[0]}}  {b:<{w[1]}}  {c:>{w[2]}}  {d:>{w[3]}}  {e}".rstrip() for a, b, c, d, e in cells
        )


def sparsity_table(model: keras.Model) -> SparsityTable:
    """Which layers of a model are sparse, how much, and why the others are not.

    Args:
        model: wrapped by `sparsify`, stripped, or any other built model.
    """
    layers = [(name, layer) for name, layer in _named_layers(model) if _has_matrix(layer)]
    wrapped = next((layer.pattern for _, layer in layers if isinstance(layer, SparseLayer)), None)
    return SparsityTable(tuple(_row(name, layer, wrapped) for name, layer in layers))


def _row(name: str, layer: Layer, wrapped: Pattern | None) -> SparsityRow:
    if isinstance(layer, SparseLayer):
        kernel = layer.masked_kernel()
        return SparsityRow(name, layer.pattern.label, np.count_nonzero(kernel) / kernel.size, kernel.size, "")
    rule = kernel_rule(layer)
    if isinstance(rule, str):
        matrices = [w.numpy() for w in layer.weights if w.shape.rank >= 2]
        size, kept = sum(m.size for m in matrices), sum(np.count_nonzero(m) for m in matrices)
        return SparsityRow(name, "", kept / size, size, rule)
    kernel = getattr(layer, rule.kernel).numpy()
    density = np.count_nonzero(kernel) / kernel.size
    label = _fulfilled(kernel, rule.axis) if wrapped is None else ""
    if label:
        return SparsityRow(name, label, density, kernel.size, "")
    why = "not sparsified" if wrapped is None else reason_dense(layer, wrapped) or "excluded, or no sparsity given"
    return SparsityRow(name, "", density, kernel.size, why)


def _fulfilled(kernel: np.ndarray, axis: int) -> str:
    """The tightest pattern that a plain kernel's zeros fulfil, "" for a dense one."""
    for m in (4, 8, 16):
        for n in range(1, m // 2 + 1):
            pattern = NofM(n, m)
            if pattern.reason_dense(kernel.shape[axis]) is None and pattern.violation(kernel, axis=axis) is None:
                return pattern.label
    zeros = 1 - np.count_nonzero(kernel) / kernel.size
    # A few exact zeros are no sparsity pattern.
    return Magnitude(min(zeros, 0.999)).label if zeros >= 0.01 else ""


def reason_dense(layer: Layer, pattern: Pattern) -> str | None:
    """Why a layer cannot be made sparse by a pattern, in words; None where it can."""
    rule = kernel_rule(layer)
    if isinstance(rule, str):
        return rule
    kernel = getattr(layer, rule.kernel)
    if not any(kernel is w for w in layer.trainable_weights):
        return "frozen (trainable=False)"
    return pattern.reason_dense(kernel.shape[rule.axis])


def _has_matrix(layer: Layer) -> bool:
    return any(w.shape.rank >= 2 for w in layer.weights)


def _global_sparsities(kernels: Mapping[str, Layer], sparsity: float) -> dict[str, Pattern]:
    """Each layer's sparsity when the largest weights of all layers together are kept."""
    flat = {n: np.abs(getattr(l, kernel_rule(l).kernel).numpy()).ravel() for n, l in kernels.items()}  # type: ignore[union-attr]
    every = np.concatenate(list(flat.values()) or [np.zeros(0)])
    owner = np.repeat(np.arange(len(flat)), [w.size for w in flat.values()])
    kept = owner[np.argsort(-every, kind="stable")[: round(every.size * (1 - sparsity))]]
    counts = np.bincount(kept, minlength=len(flat))
    sparsities = {n: 1 - max(int(k), 1) / w.size for (n, w), k in zip(flat.items(), counts, strict=True)}
    return {n: Magnitude(s) for n, s in sparsities.items() if s > 0}


class _ZerosStay:
    """Multiplies a kernel by a mask that is set once its weights are known."""

    def __init__(self) -> None:
        self.mask: tf.Tensor | None = None

    def __call__(self, weights: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(weights) if self.mask is None else weights * self.mask


def _plain_copy(model: keras.Model, *, finish: bool) -> keras.Model:
    """The model without wrappers, its kernels masked, zeros kept by constraints on the variables."""
    guards: dict[int, tuple[_ZerosStay, KernelRule]] = {}

    def unwrap(layer: Layer, copy: Layer) -> Layer:
        rule = layer.rule if isinstance(layer, SparseLayer) else kernel_rule(layer)
        if isinstance(rule, KernelRule):
            guard = _ZerosStay()
            guards[id(copy)] = guard, rule
            with constrained_build(copy, rule, guard):
                copy.build_from_config((layer.layer if isinstance(layer, SparseLayer) else layer).get_build_config())
        return copy

    plain, copies = _rebuild(model, unwrap)
    for layer, copy in copies:
        copy.set_weights((layer.layer if isinstance(layer, SparseLayer) else layer).get_weights())
        if id(copy) not in guards:
            continue
        guard, rule = guards[id(copy)]
        kernel = getattr(copy, rule.kernel)
        if isinstance(layer, SparseLayer):
            masked = layer.masked_kernel()
            kernel.assign(layer.apply_full_pattern(kernel.numpy() if layer.schedule.dense_decay is not None else masked) if finish else masked)
        nonzero = kernel.numpy() != 0
        # Without zeros there is nothing to keep, nor to multiply.
        guard.mask = None if nonzero.all() else tf.constant(nonzero, getattr(kernel, "true_dtype", kernel.dtype))
    return plain


def _rebuild(
    model: keras.Model, convert: Callable[[Layer, Layer], Layer]
) -> tuple[keras.Model, list[tuple[Layer, Layer]]]:
    """A copy of a model, through nested models, with each layer replaced by `convert(layer, unbuilt copy of it)`.

    A layer used several times, in whatever nested models, is converted once.

    Returns:
        The new model, and the pairs (layer, converted layer).
    """
    done: dict[int, tuple[Layer, Layer]] = {}

    def clone(layer: Layer) -> Layer:
        if id(layer) in done:
            return done[id(layer)][1]
        if _is_graph(layer):
            new = keras.models.clone_model(layer, clone_function=clone)
            if isinstance(layer, keras.Sequential) and not new.built:
                new.build(layer.input_shape)
            if not layer.trainable:
                new.trainable = False
        else:
            plain = layer.layer if isinstance(layer, SparseLayer) else layer
            try:
                copy = type(plain).from_config(plain.get_config())
            except Exception as error:
                raise InputError(
                    f"The layer {layer.name!r} ({type(plain).__name__}) cannot be copied: {error}",
                    expected="layers whose get_config and from_config give the layer back",
                    fix="write get_config, or register its custom functions with keras.utils.register_keras_serializable",
                ) from error
            new = convert(layer, copy)
        done[id(layer)] = layer, new
        return new

    new_model = clone(model)
    return new_model, [(a, b) for a, b in done.values() if not _is_graph(a)]


def _is_graph(layer: Layer) -> bool:
    return isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and layer._is_graph_network)


def _named_layers(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """(path, layer) of every layer that is not itself a graph of layers, each layer once."""
    seen: set[int] = set()

    def walk(parent: keras.Model, prefix: str) -> Iterator[tuple[str, Layer]]:
        for layer in parent.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if _is_graph(layer):
                yield from walk(layer, f"{prefix}{layer.name}/")
            else:
                yield f"{prefix}{layer.name}", layer

    return walk(model, prefix)


def _resolve(names: Iterable[str], layers: Mapping[str, Layer], option: str) -> set[str]:
    """Paths of the layers meant by names: a full path, or a plain name in whatever nested model."""
    names = [names] if isinstance(names, str) else list(names)
    found: set[str] = set()
    for name in names:
        hits = {path for path in layers if path == name or path.rsplit("/", 1)[-1] == name}
        if not hits:
            raise InputError(
                f"{option}= names the layer {name!r}, which the model does not have.",
                expected=f"one of: {', '.join(n for n, layer in layers.items() if _has_matrix(layer))}",
                fix="correct the name",
            )
        found |= hits
    return found


def _check_model(model: keras.Model) -> None:
    if not isinstance(model, keras.Model):
        raise InputError(
            f"A {type(model).__module__.split('.')[0]} {type(model).__name__} is no tf_keras model.",
            expected="a tf_keras Functional or Sequential model",
            fix="load it with okd.load_model, which converts Keras 3 models",
        )
    if not _is_graph(model):
        raise InputError(
            f"{type(model).__name__} is a subclassed model, whose layers cannot be copied one by one.",
            expected="a Functional or Sequential model",
            fix="build it with the functional API, or call sparsify on its functional part",
        )
    if not model.built:
        raise InputError("The model is not built.", expected="a model with weights", fix="call model.build(input_shape)")
