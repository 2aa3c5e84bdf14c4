"""Boxes around objects, by a detector without anchors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.tasks.boxes import GEOMETRY, decode, suppress
from orbit_kd.tasks.coco import RECALLS, accumulated_ap50, coco_scores
from orbit_kd.tasks.metrics import as_json, bootstrap
from orbit_kd.tasks.network import head_type, heads, logits_of, output_names
from orbit_kd.tasks.segmentation import COLOURS
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, refuse, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data

log = logging.getLogger("orbit_kd")

# Of a box in cells and of the place in a cell, beside the focal loss. CenterNet has 0.1 for sizes without a sigmoid
# behind them; where a box takes a tenth of the image, the sigmoid's slope makes that a tenth of it.
SIZE_WEIGHT, OFFSET_WEIGHT = 1.0, 1.0
_NAMES = (("size", "wh", "extent"), ("offset", "off", "reg"))  # in the names of outputs of two channels
_SLACK = 1e-3  # of the image: boxes rounded to pixels may stand over its edge by as much


@tasks.register("detection")
class Detection(Task):
    """Boxes from the maps of a CenterNet (Zhou et al. 2019, Objects as Points, arXiv:1904.07850).

    The network gives, on a grid coarser than its input, the heat of each class, the height and width of the box as
    fractions of the image, and where in its cell the centre is (down, right). All of them end in a sigmoid: as one
    output (n, h, w, classes + 4), which one int8 scale fits, or as three, (n, h, w, classes), (n, h, w, 2) and
    (n, h, w, 2), told apart by their channels and names ("size" or "wh"; "offset" or "reg").

    Labels are float32 (n, most, 5): class, top, left, bottom, right as fractions of the network's input image; class
    -1 fills up. A record is (true boxes (t, 5), found boxes (d, 6): class, score, box). The metric is AP50 by COCO's
    rules, see `coco`.

    Attributes:
        classes: how many.
        parts: places of heat, sizes and offsets among three outputs; None of one output.
        most: boxes an image that are kept.
        least: scores up to this are no boxes.
        iou: of boxes that are one object, for suppression after the 3x3 peaks; None for the peaks alone, as the paper
            does.
        shown: the score from which on pictures show a box.
    """

    name = "detection"
    metric = Metric("ap50", "AP50")
    draws = True
    losses = ("detection",)

    def __init__(
        self, classes: int, *, parts: Sequence[int] | None = None, most: int = 100, least: float = 0.01,
        iou: float | None = None, shown: float = 0.3,
    ) -> None:  # fmt: skip
        self.classes, self.most, self.least, self.iou, self.shown = classes, most, least, iou, shown
        self.parts = None if parts is None else (parts[0], parts[1], parts[2])

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Detection:
        shapes = [tuple(t.shape) for t in model.outputs]
        told = "; ".join(map(str, shapes))
        expected = "one output (h, w, classes + 4), or three: (h, w, classes), (h, w, 2), (h, w, 2), each a sigmoid"
        fix = "let it end in Conv2D(classes + 4, 1, activation='sigmoid'): heat of each class, height, width, offset " \
              "down, offset right; okd's network 'centernet' does"  # fmt: skip
        if len(shapes) not in (1, 3) or any(len(s) != 4 or s[-1] is None for s in shapes):
            raise refuse(model, cls.name, f"its outputs have the shapes {told}", expected=expected, fix=fix)
        ends = heads(model)
        if any(head_type(end).kind != "labels" for end in ends):
            raise refuse(model, cls.name, f"it ends in {', '.join(ends)}", expected=expected, fix=fix)
        if len(shapes) == 1:
            if shapes[0][-1] <= GEOMETRY:
                raise refuse(model, cls.name, f"its output has {shapes[0][-1]} channels", expected=expected, fix=fix)
            found = cls(shapes[0][-1] - GEOMETRY)
        else:
            parts = _parts(model, shapes)
            found = cls(shapes[parts[0]][-1], parts=parts)
        if data is not None:
            _check_form(model, data)
        return found

    def check_data(self, data: Data) -> None:
        for split in ("train", "val", "test"):
            seen = np.zeros(self.classes, np.int64)
            for _, y, *_ in getattr(data, split).as_numpy_iterator():
                class_ = self.truth(y)[..., 0].ravel().astype(int)
                seen += np.bincount(class_[class_ >= 0], minlength=self.classes)
            if not seen.any():
                raise InputError(
                    f"There is no box in the {split} data.",
                    expected="boxes to learn from and to measure by",
                    fix="check the labels: rows of class -1 are no boxes; or split the data anew",
                )
            if missing := ", ".join(map(str, np.flatnonzero(seen == 0))):
                log.warning("The %s data has no box of class %s: nothing is learned or measured of it.", split, missing)

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        ends = heads(model)
        if self.parts is None:
            return _mean_over_boxes(lambda y, output: self._single(y, output, ends[0]), name="detection_loss")
        names, (heat, size, offset) = output_names(model), self.parts
        from orbit_kd.tasks.box_losses import offset_loss, size_loss

        return {
            names[heat]: _mean_over_boxes(lambda y, x: self._heat(y, x, ends[heat]), name="heat_loss"),
            names[size]: _mean_over_boxes(lambda y, x: SIZE_WEIGHT * size_loss(y, x), name="size_loss"),
            names[offset]: _mean_over_boxes(lambda y, x: OFFSET_WEIGHT * offset_loss(y, x), name="offset_loss"),
        }

    def _single(self, y: Any, output: Any, end: str) -> Any:
        """The loss of each image, summed over its boxes (n,)."""
        import tensorflow as tf

        from orbit_kd.tasks.box_losses import heat_loss, offset_loss, size_loss

        maps, (logits,) = tf.cast(output, tf.float32)[..., -GEOMETRY:], logits_of(output, [end])
        sizes, offsets = size_loss(y, maps[..., :2]), offset_loss(y, maps[..., 2:])
        return heat_loss(y, logits[..., :-GEOMETRY]) + SIZE_WEIGHT * sizes + OFFSET_WEIGHT * offsets

    def _heat(self, y: Any, output: Any, end: str) -> Any:
        from orbit_kd.tasks.box_losses import heat_loss

        (logits,) = logits_of(output, [end])
        # Keras takes the last axis off an output of one channel beside labels of rank 3
        return heat_loss(y, logits[..., None] if logits.shape.rank == 3 else logits)

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        import tensorflow as tf

        from orbit_kd.tasks.box_losses import count, offset_loss, size_loss

        ends = heads(model)

        def each(y: Any, outputs: Sequence[Any]) -> Any:
            y = tf.cast(y, tf.float32)
            if self.parts is None:
                total = self._single(y, outputs[0], ends[0])
            else:
                heat, size, offset = self.parts
                sizes, offsets = (tf.cast(outputs[i], tf.float32) for i in (size, offset))
                total = self._heat(y, outputs[heat], ends[heat])
                total += SIZE_WEIGHT * size_loss(y, sizes) + OFFSET_WEIGHT * offset_loss(y, offsets)
            return total / tf.maximum(count(y), 1.0)

        return each

    def truth(self, y: Any) -> np.ndarray:
        if isinstance(y, Mapping):  # the same boxes for each of three outputs
            y = next(iter(y.values()))
        found = np.asarray(y[0] if isinstance(y, (tuple, list)) and len(y) and np.ndim(y[0]) == 3 else y)
        if found.ndim != 3 or found.shape[-1] != 5 or found.dtype.kind not in "fiu":
            raise InputError(
                f"The labels are {found.dtype.name} of shape {found.shape}.",
                expected="float32 (n, most, 5): class, top, left, bottom, right; class -1 fills up",
                fix="give boxes as fractions of the image the network sees: pixels / its height and width",
            )
        found = found.astype(np.float32)
        real = found[found[..., 0] != -1]
        if not np.isfinite(real).all() or not np.isin(real[:, 0], np.arange(self.classes)).all():
            wrong = sorted({float(c) for c in real[:, 0]} - set(map(float, range(self.classes))))
            raise InputError(
                f"There are boxes of the classes {wrong}, and the network knows {self.classes}." if wrong
                else "There are boxes with NaN or Inf.",
                expected=f"whole class numbers from 0 to {self.classes - 1}, and -1 where there is no box",
                fix="give the data this network was trained for; COCO's numbers and VOC's names need a table from 0",
            )  # fmt: skip
        box = real[:, 1:]
        bad = (box < -_SLACK).any(-1) | (box > 1 + _SLACK).any(-1) | (box[:, 2:] <= box[:, :2]).any(-1)
        if bad.any():
            raise InputError(
                f"The box {box[bad][0].round(4).tolist()} is empty or outside its image.",
                expected="0 <= top < bottom <= 1 and 0 <= left < right <= 1",
                fix="divide pixels by the image's height and width; the order is top, left, bottom, right (COCO has "
                "x, y, width, height); cut boxes at the image's edges",
            )
        return found

    def joined(self, outputs: Outputs) -> np.ndarray:
        """The maps of one or several images as one array (..., h, w, classes + 4).

        Raises:
            InputError: outputs of another number of channels.
        """
        maps = outputs[0] if self.parts is None else np.concatenate([outputs[i] for i in self.parts], axis=-1)
        if maps.shape[-1] != self.classes + GEOMETRY:
            raise InputError(
                f"The output has {maps.shape[-1]} channels.",
                expected=f"{self.classes + GEOMETRY}: {self.classes} classes, height, width and two offsets",
                fix="evaluate a network of the task that this one was made for",
            )
        return maps

    def found(self, maps: np.ndarray) -> np.ndarray:
        """The boxes of one image.

        Args:
            maps: (h, w, classes + 4), see `joined`.

        Returns:
            (d, 6) by falling score: class, score, top, left, bottom, right.
        """
        boxes = decode(maps, most=self.most, least=self.least)
        return boxes if self.iou is None else suppress(boxes, iou=self.iou)

    def records(self, truth: Any, outputs: Outputs) -> Records:
        records = np.empty(len(truth), object)
        for i, (boxes, maps) in enumerate(zip(truth, self.joined(outputs), strict=True)):
            records[i] = (boxes[boxes[:, 0] >= 0], self.found(maps))
        return records

    def value(self, records: Records) -> float:
        return coco_scores(records, classes=self.classes, most=self.most).ap50

    def details(self, records: Records) -> dict[str, Any]:
        scores = coco_scores(records, classes=self.classes, most=self.most)
        known = scores.precision[0, 0] > -1
        aps = [float(scores.precision[0, :, c].mean()) if known[c] else None for c in range(self.classes)]
        curve = [
            t[0][:, known].mean(1).round(6).tolist() if known.any() else [] for t in (scores.precision, scores.score)
        ]
        return {
            "ap50": scores.ap50,
            "ap50_95": scores.ap50_95,
            "classes": [
                {"ap50": aps[c], "boxes": int(m.boxes.sum()),
                 "found": int(m.right.sum()), "false": int((~m.right).sum())}
                for c, m in enumerate(scores.matches)
            ],
            "per_class": {"AP50": aps},
            "curve": {"recall": RECALLS.round(2).tolist(), "precision": curve[0], "score": curve[1]},
            "images": len(records),
            "boxes": sum(len(truth) for truth, _ in records),
            "detections": sum(len(found) for _, found in records),
        }  # fmt: skip

    def compare(self, first: Records, second: Records) -> dict[str, Any]:
        """The paired bootstrap over images of AP50; boxes are matched once, not once a draw."""
        matches = [coco_scores(r, classes=self.classes, most=self.most).matches for r in (first, second)]

        def value(rows: np.ndarray) -> float:  # (n, 2): which network, which image
            return accumulated_ap50(matches[rows[0, 0]], np.bincount(rows[:, 1], minlength=len(first)))

        rows = [np.stack([np.full(len(first), side), np.arange(len(first))], axis=1) for side in (0, 1)]
        return as_json(bootstrap(value, *rows))

    def picture(self, image: np.ndarray, truth: Any, outputs: Outputs | None) -> np.ndarray:
        from PIL import Image, ImageDraw

        drawn = Image.fromarray(image)
        pen = ImageDraw.Draw(drawn)
        height, width = image.shape[:2]
        colour = tuple(map(int, COLOURS[1 if outputs is None else 2]))
        if outputs is None:
            shown = [(box[1:], f"{int(box[0])}") for box in np.asarray(truth) if box[0] >= 0]
        else:
            rows = [row for row in self.found(self.joined(outputs)) if row[1] >= self.shown]
            name = "{:.0f}: {:.2f}" if self.classes > 1 else "{1:.2f}"
            shown = [(row[2:], name.format(*row[:2])) for row in rows]
        for (top, left, bottom, right), words in shown:
            corner = (float(left) * (width - 1), float(top) * (height - 1))
            pen.rectangle([*corner, float(right) * (width - 1), float(bottom) * (height - 1)], outline=colour, width=2)
            if outputs is not None or self.classes > 1:
                pen.text((corner[0] + 3, corner[1] + 2), words, fill=colour)
        return np.asarray(drawn)

    def arguments(self) -> dict[str, Any]:
        return {"classes": self.classes, "parts": self.parts and list(self.parts), "most": self.most,
                "least": self.least, "iou": self.iou, "shown": self.shown}  # fmt: skip


def _mean_over_boxes(each: Callable[[Any, Any], Any], *, name: str) -> Callable[[Any, Any], Any]:
    """A loss for Keras: (n,) of the mean over the batch's boxes, as CenterNet has it, not over images."""

    def loss(y: Any, output: Any) -> Any:
        import tensorflow as tf

        from orbit_kd.tasks.box_losses import count

        y = tf.cast(y, tf.float32)
        boxes = tf.maximum(tf.reduce_sum(count(y)), 1.0)
        return each(y, output) * tf.cast(tf.shape(y)[0], tf.float32) / boxes

    loss.__name__ = name
    return loss


def _parts(model: keras.Model, shapes: Sequence[tuple]) -> tuple[int, int, int]:
    """Which of three outputs is heat, size and offset."""
    names = output_names(model)
    by_name = [[i for i, n in enumerate(names) if any(w in n.lower() for w in words)] for words in _NAMES]
    size, offset = (found[0] if len(found) == 1 else None for found in by_name)
    if size is None or offset is None or size == offset or shapes[size][-1] != 2 or shapes[offset][-1] != 2:
        told = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise refuse(model, "detection", f"which of its outputs ({told}) is what, nothing says",
                     expected='an output of two channels with "size" or "wh" in its name, one with "offset" or "reg"',
                     fix='name the last layers "heat", "size" and "offset"')  # fmt: skip
    (heat,) = {0, 1, 2} - {size, offset}
    return heat, size, offset


def _check_form(model: keras.Model, data: Data) -> None:
    """Refuses labels that are no boxes before any of them is read."""
    spec = data.val.element_spec[1]
    spec = next(iter(spec.values())) if isinstance(spec, Mapping) else spec
    shape = getattr(spec, "shape", None)
    if shape is None or (shape.rank is not None and (shape.rank != 3 or shape[-1] not in (5, None))):
        raise refuse(model, "detection", f"the labels have the shape {shape}",
                     expected="boxes (n, most, 5): class, top, left, bottom, right; class -1 fills up",
                     fix="read the data as boxes, or name the task that the labels are for (--task)")  # fmt: skip
