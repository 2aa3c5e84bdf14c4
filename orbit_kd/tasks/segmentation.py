"""A class for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tasks.metrics import intersection_over_union
from orbit_kd.tasks.network import head_type, heads
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, refuse, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data

IGNORE = 255
"""The label of pixels that count for nothing."""

# Of the classes, in pictures: Okabe and Ito's, which people with any colour vision tell apart; class 0 stays bare.
COLOURS = np.array(
    [[0, 0, 0], [0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0], [240, 228, 66],
     [86, 180, 233]], np.uint8,
)  # fmt: skip


@tasks.register("segmentation")
class Segmentation(Task):
    """Scores (n, h, w, classes), logits or softmax, or one sigmoid a pixel (two classes). A record is the confusion
    matrix of one image, (classes, classes): row = true class, column = predicted class.

    The metric is the mean over classes of intersection over union, counted over all pixels of all images (as PASCAL VOC
    and Cityscapes do); classes that are in neither truth nor answers are left out. Pixels labelled 255 do not count.

    Attributes:
        classes: how many.
        size: (height, width) of the output.
        threshold: of a single output: from which on it says class 1; None of several.
    """

    name = "segmentation"
    metric = Metric("mean_iou", "mean IoU")
    draws = True

    def __init__(self, classes: int, size: Sequence[int | None], *, threshold: float | None = None) -> None:
        self.classes, self.size, self.threshold = classes, (size[0], size[1]), threshold

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Segmentation:
        shape = model.outputs[0].shape
        if len(model.outputs) != 1 or len(shape) != 4 or shape[-1] is None:
            told = ", ".join(str(tuple(t.shape)) for t in model.outputs)
            raise refuse(model, cls.name, f"its outputs have the shapes {told}",
                         expected="one map (height, width, classes) of scores",
                         fix="let it end in a convolution with one filter a class")  # fmt: skip
        head, single = heads(model)[0], shape[-1] == 1
        probability = head_type(head).kind == "labels"
        if probability and not single:
            raise refuse(model, cls.name, f"it ends in {head} of {shape[-1]} channels",
                         expected="a softmax over the classes, the scores before it, or one sigmoid a pixel",
                         fix="give the last layer activation=None: the largest score stays the same")  # fmt: skip
        found = cls(
            max(2, int(shape[-1])), tuple(shape[1:3]), threshold=(0.5 if probability else 0.0) if single else None
        )
        if data is not None:
            _check_sizes(model, data)
        return found

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        from orbit_kd.tasks.pixel_loss import PixelLoss

        return PixelLoss(heads(model)[0], ignore=IGNORE)

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        from orbit_kd.tasks.keras_metrics import MeanIoU

        return [MeanIoU(self.classes, threshold=self.threshold, ignore=IGNORE, name=self.metric.key)]

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        each = self.loss(model)
        return lambda y, outputs: each.call(y, outputs[0])

    def truth(self, y: Any) -> np.ndarray:
        found = np.asarray(y)
        found = found[..., 0] if found.ndim == 4 and found.shape[-1] == 1 else found
        if found.ndim == 4 and found.shape[-1] == self.classes and np.isin(found, (0, 1)).all():
            found = found.argmax(-1)
        if found.ndim != 3 or any(m not in (n, None) for n, m in zip(found.shape[1:], self.size, strict=True)):
            raise InputError(
                f"The labels have shape {found.shape[1:]}, and the network gives a map of {self.size} pixels.",
                expected="a class number for each pixel of that map: (n, height, width)",
                fix="bring masks to the size of the output, without mixing numbers: "
                'tf.image.resize(mask, size, method="nearest")',
            )
        whole = np.array_equal(found, np.round(found))
        counted = found[found != IGNORE]
        if not whole or (counted.size and not 0 <= counted.min() <= counted.max() < self.classes):
            raise InputError(
                f"There are labels from {counted.min()} to {counted.max()}{'' if whole else ', fractions among them'}, "
                f"and the network knows {self.classes} classes.",
                expected=f"whole numbers from 0 to {self.classes - 1}, and {IGNORE} for pixels that count for nothing",
                fix="a mask of 0 and 255 is two classes: (mask > 0).astype('int32'); fractions come of resizing with "
                'another method than "nearest"',
            )
        return found.astype(np.int32)

    def predicted(self, output: np.ndarray) -> np.ndarray:
        """The class of each pixel (..., h, w)."""
        if self.threshold is None:
            return output.argmax(-1)
        return (output[..., 0] > self.threshold).astype(np.int64)

    def records(self, truth: Any, outputs: Outputs) -> Records:
        answers, found = self.predicted(outputs[0]), []
        for label, answer in zip(truth, answers, strict=True):
            counts = label != IGNORE
            pairs = label[counts] * self.classes + answer[counts]
            found.append(np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes))
        return np.array(found, np.int64).reshape(-1, self.classes, self.classes)

    def value(self, records: Records) -> float:
        found = intersection_over_union(records.sum(0))
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

    def details(self, records: Records) -> dict[str, Any]:
        matrix = records.sum(0)
        return {
            "mean_iou": self.value(records),
            "per_class": {"IoU": intersection_over_union(matrix).tolist()},
            "pixel_accuracy": float(np.trace(matrix) / max(1, matrix.sum())),
            "confusion": matrix.tolist(),
        }

    def arguments(self) -> dict[str, Any]:
        return {"classes": self.classes, "size": list(self.size), "threshold": self.threshold}

    def chance(self, records: Records) -> float:
        """Of the commonest class for every pixel."""
        pixels = records.sum(0).sum(1)
        return float(pixels.max() / pixels.sum() / max(1, (pixels > 0).sum()))

    def picture(self, image: np.ndarray, truth: Any, outputs: Outputs | None) -> np.ndarray:
        classes = np.asarray(truth) if outputs is None else self.predicted(outputs[0])
        shown = np.where(classes == IGNORE, 0, classes)
        if shown.shape != image.shape[:2]:  # a map at a stride of the image
            rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], shown.shape, strict=True))
            shown = shown[rows][:, columns]
        colour = COLOURS[shown % len(COLOURS)]
        mixed = (0.45 * image + 0.55 * colour).astype(np.uint8)
        return np.where((shown > 0)[..., None], mixed, image)


def _check_sizes(model: keras.Model, data: Data) -> None:
    spec = data.train.element_spec[1]
    labels, output = tuple(getattr(spec, "shape", ())), tuple(model.output_shape)
    if len(labels) >= 3 and any(a and b and a != b for a, b in zip(labels[1:3], output[1:3], strict=True)):
        told = f"it gives {output[1]}x{output[2]} pixels, the masks have {labels[1]}x{labels[2]}"
        raise refuse(model, "segmentation", told,
                     expected="masks of the size of its output", fix="give --resize the network's size")  # fmt: skip
