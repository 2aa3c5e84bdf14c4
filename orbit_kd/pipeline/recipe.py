"""What to do to a network, as a value: a frozen dataclass, no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orbit_kd.errors import InputError

STAGES = (
    "teacher",
    "sensitivity",
    "budget",
    "lessons",
    "search",
    "timing",
    "remove",
    "distill",
    "sparsify",
    "quantize",
    "export",
)
_BUDGETS = ("keep_params", "keep_macs", "max_macs", "max_bytes")  # those with a field of their own
_TRAININGS = ("search", "timing", "distill", "sparsify", "quantize")


def _setting(default: Any, *stages: str) -> Any:
    """A field of the recipe, and the stages of `compress` that it changes: they run anew when it does."""
    kind = {"default_factory": default} if default is dict else {"default": default}
    return dataclasses.field(**kind, metadata={"stages": stages})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to compress a network: what `compress` does at each stage. Every field is a flag of `tools/compress.py`.

    A field says which stages it changes; the stages that follow from those run anew with them.

    Attributes:
        task: what the network is for, a name in `orbit_kd.tasks`; "auto" reads it from its outputs and the labels.
        output_tasks: of several outputs: name -> task, for those that do not tell.
        output_weights: of several outputs: name -> weight in the metric and in the loss; 1 for the others.
        criterion: importance criterion that picks the filters to remove.
        ratio: part of the filters that goes in each group, in [0, 1), where no budget below decides.
        ratios: the same per group: layer name (shell patterns allowed) -> part that goes.
        keep_params: part of the parameters that stays; a sensitivity scan then picks the ratios, and with the pattern
            "magnitude" also how many weights of each layer become zero.
        keep_macs: part of the multiply-accumulates that stays, picked likewise.
        max_macs: multiply-accumulates of one image at most.
        max_bytes: bytes of the int8 TFLite file at most, with class names and preprocessing; of the coded file where
            that is a target: these are predicted, and a file that comes out larger is told of.
        limits: further budgets: name -> what it may be at most, such as max_params, max_activation_bytes, or one of
            your own that is registered with `orbit_kd.budgets.cost` in a module that is imported.
        max_drop: accuracy (or another task's metric) on the validation images that may be lost, 0.01 for one point: the
            smallest network within it is searched for.
        shrink: what that search makes small, and what steps towards a budget are priced by: bytes, macs, params,
            activation_bytes, or another budget's name without "max_". None for the bytes of the file (of the coded one,
            where that is a target), and for the budgets themselves.
        search_epochs: training epochs after each step of that search, at most; four times as many where those have led
            no further.
        scan_images: validation images of the sensitivity scans, at most.
        time_budget: seconds for everything but the final measurements; epochs are cut to fit, and the search uses all
            of it. None for no limit, and 50 minutes for the search.
        rounds: removal in this many steps with a part of the epochs after each.
        round_to: widths are kept at multiples of this.
        min_channels: no group gets narrower than this.
        exclude: layers (shell patterns) whose filters all stay.
        unknown: layers without a channel rule: "error" refuses them, "keep" keeps their channels.
        epochs: training epochs after filter removal, over all rounds; with max_drop those of its longest training,
            where no time budget is given.
        pattern: sparsity of the remaining weights: "dense", "magnitude", "uhp", "2:4" or any "N:M",
            "2:4:shared" or any "N:M:shared".
        sparsity: part of the weights that "magnitude" sets to zero.
        sparsities: the same per layer: layer name (shell patterns allowed) -> part; other layers stay dense.
        sparsity_scope: how "magnitude" shares the zeros among layers: "layer", "global" or "lamp", see
            `orbit_kd.sparsity.sparsify`.
        schedule: when the zeros come, see `orbit_kd.sparsity.sparsify`.
        sparse_exclude: layers (shell patterns) that stay dense.
        sparse_epochs: training epochs with the sparsity pattern.
        bits: of every kernel, 2 to 8; fewer than 8 are trained for (`quantize_epochs`) and make a coded file smaller.
        layer_bits: the same per layer: layer name (shell patterns allowed) -> bits.
        quantize_epochs: training epochs with the rounding of the int8 file, where a kernel has fewer than 8 bits.
        losses: what is learned from the teacher: names of `orbit_kd.distillation.distillation_losses`, or name:weight;
            the default gives way to what fits the task (numbers are compared by "mse").
        alpha: weight of the teacher's losses; 1 - alpha is that of the labels.
        temperature: of the losses on logits.
        batch_size: images a step.
        learning_rate: at the start of each training; it falls to zero on a cosine.
        views: augmented renderings of each training image that the teacher sees once.
        targets: export targets to write.
        calibration: training images that set the int8 ranges.
        seed: of everything random.
    """

    task: str = _setting("auto", "sensitivity", *_TRAININGS)
    output_tasks: Mapping[str, str] = _setting(dict, "sensitivity", *_TRAININGS)
    output_weights: Mapping[str, float] = _setting(dict, "sensitivity", *_TRAININGS)
    criterion: str = _setting("l1_norm", "sensitivity", "search", "remove")
    ratio: float = _setting(0.5, "remove")
    ratios: Mapping[str, float] = _setting(dict, "remove")
    keep_params: float | None = _setting(None, "budget")
    keep_macs: float | None = _setting(None, "budget")
    max_macs: float | None = _setting(None, "budget")
    max_bytes: float | None = _setting(None, "budget")
    limits: Mapping[str, float] = _setting(dict, "budget")
    max_drop: float | None = _setting(None, "search")
    shrink: str | None = _setting(None, "budget", "search")
    search_epochs: int = _setting(6, "search")
    scan_images: int = _setting(500, "sensitivity", "search")
    time_budget: float | None = _setting(None, "search", "timing")
    rounds: int = _setting(1, "remove")
    round_to: int = _setting(1, "budget", "search", "remove")
    min_channels: int = _setting(1, "budget", "search", "remove")
    exclude: tuple[str, ...] = _setting((), "sensitivity", "search", "remove")
    unknown: str = _setting("error", "sensitivity", "budget", "search", "remove")
    epochs: int = _setting(40, "timing", "distill", "search")
    pattern: str = _setting("dense", "budget", "search", "timing", "sparsify")
    sparsity: float = _setting(0.5, "sparsify")
    sparsities: Mapping[str, float] = _setting(dict, "budget", "sparsify")
    sparsity_scope: str = _setting("layer", "sparsify")
    schedule: str = _setting("polynomial", "sparsify")
    sparse_exclude: tuple[str, ...] = _setting((), "sensitivity", "search", "sparsify")
    sparse_epochs: int = _setting(20, "timing", "sparsify")
    bits: int = _setting(8, "timing", "quantize")
    layer_bits: Mapping[str, int] = _setting(dict, "budget", "timing", "quantize")
    quantize_epochs: int = _setting(20, "timing", "quantize")
    losses: tuple[str, ...] = _setting(("logits",), *_TRAININGS)
    alpha: float = _setting(0.8, *_TRAININGS)
    temperature: float = _setting(5.0, *_TRAININGS)
    batch_size: int = _setting(64, *_TRAININGS)
    learning_rate: float = _setting(2e-3, *_TRAININGS)
    views: int = _setting(8, "lessons")
    targets: tuple[str, ...] = _setting(("tflite_float32", "tflite_int8", "c_array"), "export")
    calibration: int = _setting(256, "teacher", "search", "quantize", "export")
    seed: int = _setting(0, "sensitivity", "lessons", "remove", *_TRAININGS)

    def __post_init__(self) -> None:
        def need(name: str, good: bool, expected: str) -> None:
            if not good:
                raise InputError(
                    f"{name}={getattr(self, name)!r} in the recipe.", expected=expected, fix=f"mend --{name}"
                )

        for name in ("ratio", "sparsity"):
            need(name, 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        for group, ratio in self.ratios.items():
            need("ratios", 0 <= ratio < 1, f"a number in [0, 1) for {group!r}")
        for name in ("keep_params", "keep_macs"):
            need(name, 0 < (1 if getattr(self, name) is None else getattr(self, name)) <= 1, "a number in (0, 1]")
        for name in ("max_macs", "max_bytes", "time_budget"):
            need(name, (1 if getattr(self, name) is None else getattr(self, name)) > 0, "a number above 0")
        for name, most in self.limits.items():
            need("limits", most > 0, f"a number above 0 for {name!r}")
            need("limits", name not in _BUDGETS, f"--{name}={most:g}, a setting of its own, in place of {name!r}")
        for output, weight in self.output_weights.items():
            need("output_weights", weight >= 0, f"a number of at least 0 for {output!r}")
        need("max_drop", 0 <= (self.max_drop or 0) < 1, "a number in [0, 1): 0.01 is one point")
        few = min(self.bits, *self.layer_bits.values(), 8) < 8
        need("bits", not few or self.max_drop is None, "8 with max_drop, which finds bits where files are coded")
        need("rounds", self.rounds == 1 or not (self.budgets or self.max_drop is not None), "1 with a budget")
        need("sparsities", not self.sparsities or self.pattern == "magnitude", "the pattern magnitude")
        for layer, part in self.sparsities.items():
            need("sparsities", 0 <= part < 1, f"a number in [0, 1) for {layer!r}")
        need("losses", bool(self.losses), "at least one; alpha=0 is for labels alone")
        need("alpha", 0 <= self.alpha <= 1, "a number in [0, 1]")
        for name in ("temperature", "learning_rate"):
            need(name, getattr(self, name) > 0, "a number above 0")
        for name in (
            "search_epochs",
            "scan_images",
            "rounds",
            "round_to",
            "min_channels",
            "epochs",
            "batch_size",
            "views",
            "calibration",
        ):
            need(name, getattr(self, name) >= 1, "a whole number of at least 1")
        need("sparsity_scope", self.sparsity_scope == "layer" or self.pattern == "magnitude", "the pattern magnitude")
        need("sparse_epochs", self.sparse_epochs >= 0, "a whole number of at least 0")
        need("bits", self.bits in range(2, 9), "a whole number from 2 to 8")
        for layer, bits in self.layer_bits.items():
            need("layer_bits", bits in range(2, 9), f"a whole number from 2 to 8 for {layer!r}")
        need("quantize_epochs", self.quantize_epochs >= 0, "a whole number of at least 0")
        need("rounds", self.rounds <= self.epochs, "at most one round an epoch")

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets of `plan_removal` that are given."""
        own = {name: getattr(self, name) for name in _BUDGETS if getattr(self, name) is not None}
        return own | dict(self.limits)

    def settings(self, stage: str) -> dict[str, Any]:
        """The fields that change a stage, as plain values: its key is made of them.

        Raises:
            KeyError: a stage that is none of `STAGES`.
        """
        if stage not in STAGES:
            raise KeyError(stage)
        values = self.to_dict()
        return {f.name: values[f.name] for f in dataclasses.fields(self) if stage in f.metadata["stages"]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Recipe(**d)` gives it back."""
        mappings = ("ratios", "limits", "sparsities", "layer_bits", "output_tasks", "output_weights")
        return dataclasses.asdict(self) | {name: dict(getattr(self, name)) for name in mappings}
