"""Do images reach the network as in its training? Its accuracy here against the figure its owner knows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from orbit_kd import datasets
from orbit_kd.datasets import preprocessing
from orbit_kd.datasets.preprocessing import LOADERS, Preprocess
from orbit_kd.datasets.renderings import Renderings
from orbit_kd.errors import InputError
from orbit_kd.models.heads import heads
from orbit_kd.models.saving import load_model
from orbit_kd.support.progress import track
from orbit_kd.tasks.metrics import confusion_matrix, wilson

# What the networks of keras.applications want: modes "tf", "caffe" and "torch" of preprocess_input; and rescale=1/255.
VALUES: tuple[dict[str, Any], ...] = (
    {"scale": 1.0},
    {"scale": 1 / 255},
    {"mean": (127.5,), "scale": 1 / 127.5},
    {"mean": (103.939, 116.779, 123.68), "bgr": True},
    {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way to read the images, and how often the network was right."""

    preprocess: Preprocess
    right: int
    images: int

    @property
    def accuracy(self) -> float:
        return self.right / self.images


@dataclasses.dataclass(frozen=True)
class PreprocessCheck:
    """What `check_preprocess` found; as text, a verdict and a table.

    Attributes:
        expected: the owner's figure, in 0..1.
        within: half a unit of the last digit that was given, at most half a point.
        split: which images.
        asked: the network's accuracy with the `Preprocess` in question.
        others: other ways that were tried because the figures differ.
        note: what else was noticed.
    """

    expected: float
    within: float
    split: str
    asked: Trial
    others: tuple[Trial, ...] = ()
    note: str = ""

    def fits(self, trial: Trial) -> bool:
        """Whether the accuracy of a trial is the expected one, to the digits given (or to half an image)."""
        return abs(trial.accuracy - self.expected) <= max(self.within, 0.5 / trial.images) + 1e-9

    @property
    def agrees(self) -> bool:
        """Whether the figure is the expected one as the images are read now."""
        return self.fits(self.asked)

    @property
    def by_chance(self) -> bool:
        """Whether other images of the same kind could have given the expected figure (95% interval)."""
        low, high = wilson(self.asked.right, self.asked.images)
        return low <= self.expected <= high

    @property
    def found(self) -> tuple[Trial, ...]:
        """The other ways that give the expected figure."""
        return tuple(trial for trial in self.others if self.fits(trial))

    def __str__(self) -> str:
        low, high = wilson(self.asked.right, self.asked.images)
        said = [
            f"{100 * self.asked.accuracy:.2f}% of {self.asked.images:,} images ({self.split}), read with "
            f"{flags_of(self.asked.preprocess)}; you expect {100 * self.expected:g}%.",
        ]
        if self.agrees:
            if self.within <= 0.5 / self.asked.images:
                said.append("The figures are equal to the image: the images reach the network as where you measured.")
            else:
                said.append(
                    f"The figures agree to the digits given (within {100 * self.within:.2g} points), which other ways "
                    "to read the images may do too: four digits tell more."
                )
            return "\n".join([*said, *([self.note] if self.note else [])])
        said.append(
            "They differ. On the same images they would be equal. On others of the same kind, chance alone gives "
            f"{100 * low:.1f}% to {100 * high:.1f}% (95%): your figure is {'inside' if self.by_chance else 'outside'}."
        )
        said += [
            f"  {100 * trial.accuracy:6.2f}%  {flags_of(trial.preprocess)}{'  <- your figure' * self.fits(trial)}"
            for trial in self.others
        ]
        if len(self.found) == 1:
            said.append(f"One way of {len(self.others)} gives your figure: {flags_of(self.found[0].preprocess)}")
        elif self.found:
            said.append(
                f"{len(self.found)} ways of {len(self.others)} give your figure: take the one of your training, "
                "or give more digits to tell them apart."
            )
        else:
            said.append(f"None of {len(self.others)} other ways gives your figure.")
            if self.by_chance:
                said.append("That can be chance, if you measured on other images.")
        return "\n".join([*said, *([self.note] if self.note else [])])


def check_preprocess(
    teacher: Any,
    name_or_dir: str | os.PathLike[str],
    *,
    expected_accuracy: float | str,
    preprocess: Preprocess | None = None,
    split: str = "",
    batch_size: int = 64,
    **where: Any,
) -> PreprocessCheck:
    """Measures a network on a folder of images, and looks for the way to read them that gives its owner's figure.

    Where the figure is another, the images are read again in the ways that Keras pipelines read them: first the other
    loaders and aspects, then other interpolations, then other ranges of values, until some of them give the figure.
    The same network on the same images read in the same way has the same accuracy to the last image, so that a
    difference of one point means something even where chance would explain it.

    Args:
        teacher: a model, or its file; one output of class scores.
        name_or_dir: as for `load`.
        expected_accuracy: as measured where the network was trained, on the same images: 0.65, "0.650" or "65%". As
            many digits as are written count.
        preprocess: how images are read now.
        split: "train", "val", "test", "all", or "" for the test split where the data has one of its own and else for
            all images.
        batch_size: images a step.
        **where: `validation`, `seed`, `data_dir`, `limit`, as for `load`.

    Raises:
        InputError: images that do not fit the network, or a figure that is no accuracy.
    """
    expected, within = parse_accuracy(expected_accuracy)
    preprocess = preprocess or Preprocess()
    model = load_model(teacher)
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise InputError(
            f"The model puts out {', '.join(str(tuple(o.shape)) for o in model.outputs)}.",
            expected="one vector of class scores an image",
            fix="check such a model with code of your own: orbit_kd.load(folder, preprocess=...) gives the images",
        )
    images = datasets.renderings(name_or_dir, split=split, **where)
    decoded = images.images(preprocess)
    shape = decoded.shape_after(preprocess)
    preprocessing.check(preprocess, decoded.shapes[0], model.input_shape)
    asked, predicted = _measure(model, images, preprocess, batch_size)
    check = PreprocessCheck(expected, within, images.split, asked, note=_order(images, predicted))
    others: list[Trial] = []
    for group in () if check.agrees else _ways(preprocess, shape[-1]):
        for way in track(group, "other ways to read the images"):
            try:
                others.append(_measure(model, images, way, batch_size)[0])
            except InputError:
                continue  # a loader that does not read these files
        check = dataclasses.replace(check, others=tuple(others))
        if check.found:
            break
    return check


def parse_accuracy(value: float | str) -> tuple[float, float]:
    """0.65, "0.650", "65%" or 65.0 -> the accuracy in 0..1, and half a unit of its last digit, at most half a point.

    Raises:
        InputError: it is none.
    """
    try:
        number = Decimal(str(value).strip().removesuffix("%"))
        percent = str(value).strip().endswith("%") or number > 1
        number = number.scaleb(-2) if percent else number  # which keeps the zeros at the end
        if not 0 <= number <= 1:
            raise InvalidOperation
    except InvalidOperation as e:
        raise InputError(
            f"expected_accuracy={value!r} is no accuracy.",
            expected="the part of the images that the network gets right: 0.65, or 65%",
            fix="give what Keras' evaluate said on the same images (--expected_accuracy)",
        ) from e
    return float(number), 0.5 * 10.0 ** min(-2, int(number.as_tuple().exponent))


def flags_of(preprocess: Preprocess) -> str:
    """The flags of the tools that give this `Preprocess`: what differs from none, and how it resizes."""
    told = []
    for field in dataclasses.fields(Preprocess):
        value = getattr(preprocess, field.name)
        if value == field.default or (field.name == "interpolation" and value == LOADERS[preprocess.loader][0]):
            continue
        if field.name in ("crop", "resize"):
            value = value[0] if value[0] == value[1] else f"{value[0]}x{value[1]}"
        elif isinstance(value, tuple):
            value = ",".join(f"{v:.7g}" for v in value)
        elif isinstance(value, float):
            value = f"{value:.8g}"
        told.append(f"--{field.name}" if value is True else f"--{field.name}={value}")
    return " ".join(told) or "no preprocessing"


def _measure(model: Any, images: Renderings, preprocess: Preprocess, batch_size: int) -> tuple[Trial, np.ndarray]:
    """The trial, and the class that the network names for each image."""
    outputs = np.asarray(model.predict(images.dataset(preprocess, batch_size=batch_size), verbose=0))
    if outputs.shape[1] == 1:  # two classes in one number
        predicted = (outputs[:, 0] > (0.5 if heads(model)[0] == "sigmoid" else 0.0)).astype(np.int64)
    else:
        predicted = outputs.argmax(-1)
    return Trial(preprocess, int(np.sum(predicted == images.labels)), len(predicted)), predicted


def _ways(asked: Preprocess, channels: int) -> Iterator[list[Preprocess]]:
    """Groups of other ways to read the same images, the likely ones first."""
    plain = {"scale": 1.0, "mean": (), "std": (), "bgr": False}
    ranges = [plain | way for way in VALUES if channels == 3 or not ("bgr" in way or "std" in way)]
    loaders: list[dict[str, Any]] = [
        {"loader": name, "interpolation": ways[0] if asked.resize else None} for name, ways in LOADERS.items()
    ]
    aspects = ["stretch", "crop", "pad"] if asked.resize else ["stretch"]
    seen = {asked}
    for group in (
        [way | {"aspect": aspect} for way in loaders for aspect in aspects],
        [way | {"interpolation": name} for way in loaders if asked.resize for name in LOADERS[way["loader"]]],
        [way | values for way in loaders for values in ranges],
    ):
        ways = []
        for changes in group:
            if changes["loader"] == "load_img" and changes.get("aspect", asked.aspect) == "pad":
                continue
            way = dataclasses.replace(asked, **changes)
            if way not in seen:
                seen.add(way)
                ways.append(way)
        yield ways


def _order(images: Renderings, predicted: np.ndarray) -> str:
    """A word on classes in another order: where nearly all images of each class come out as one other class."""
    names = images.class_names
    matrix = confusion_matrix(images.labels, predicted, classes=max(len(names), int(predicted.max()) + 1))
    named = matrix.argmax(1)[: len(names)]
    right, renamed = int(np.trace(matrix)), int(matrix.max(1).sum())
    if sorted(named) != list(range(len(names))) or right > 0.5 * renamed or renamed < 0.7 * len(predicted):
        return ""
    pairs = ", ".join(f"{names[i]} as {names[j]}" for i, j in enumerate(named) if i != j)
    return (
        f"The network's classes seem to be in another order: it names {pairs} ({100 * renamed / len(predicted):.1f}% "
        "so). Folders count in alphabetical order, as in Keras: name them so that it is the network's."
    )
