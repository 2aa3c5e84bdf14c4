"""A scene larger than a network's input, tile by tile: what an application does on board.

Tiles overlap, so that what one cuts another sees whole. The network sees one tile at a time, and no more of the scene's
scores is kept than a row of tiles.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from orbit_kd import runtimes
from orbit_kd.errors import InputError
from orbit_kd.evaluation.prediction import content_of
from orbit_kd.exporters import Artifact
from orbit_kd.tasks.boxes import areas, intersections, overlaps
from orbit_kd.tasks.detection import Detection
from orbit_kd.tasks.segmentation import Segmentation
from orbit_kd.tasks.task import Task

Prepare = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Where a tile is, in pixels of the scene, and on which sides another one goes on."""

    top: int
    left: int
    above: bool
    before: bool
    below: bool
    after: bool


def predict_scene(
    file: Artifact | str | os.PathLike[str] | bytes | runtimes.Runner,
    scene: Any,
    *,
    task: Task,
    overlap: float = 0.25,
    iou: float = 0.5,
    prepare: Prepare | None = None,
    runtime: str | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Runs an exported file over a scene of any size.

        water = predict_scene("water_int8.tflite", scene, task=Segmentation(2, (128, 128)))
        boats = predict_scene("boats_int8.tflite", scene, task=Detection(1, least=0.3), overlap=0.3)

    Pixels: where tiles overlap, their scores are averaged, by weights that fall from one tile to the next and are zero
    at a tile's inner edge, where the network sees too little; then the class is taken. Boxes: those of all tiles by
    class-wise non-maximum suppression; one that an inner edge may have cut gives way to a whole one of another tile
    that lies over most of it. An object larger than the overlap may be seen whole by no tile, and then comes in parts.

    Args:
        file: what `export` returned, its path or bytes, or what `runtimes.load` gave.
        scene: (height, width, bands) numbers; an `np.memmap` will do. Smaller than a tile, it is continued by its edge.
        task: `Segmentation` or `Detection`.
        overlap: the least share of a tile's side that it shares with the next, from 0 to below 1. For boxes, take the
            largest object.
        iou: boxes of one class that overlap by more are one.
        prepare: from a tile of the scene to what the network saw in training, such as a `Preprocess`; None where the
            scene is that already.
        runtime: as `predict` has it.
        threads: as `predict` has it.

    Returns:
        Segmentation: the class of each pixel, uint8 (uint16 from 257 classes on), (height, width). Detection: float64
        (d, 6) by falling score: class, score, top, left, bottom, right in pixels of the scene.

    Raises:
        InputError: another task, a scene of another shape or number of bands, an overlap out of range, outputs that are
            no whole fraction of the input, or what `predict` raises.
    """
    if not isinstance(task, (Segmentation, Detection)):
        raise InputError(
            f"The task is {getattr(task, 'name', type(task).__name__)!r}.",
            expected="segmentation or detection, whose answers have a place",
            fix="cut the scene into images and use okd.predict for one answer an image",
        )
    if not 0 <= overlap < 1:
        raise InputError(f"overlap={overlap}.", expected="a share from 0 to below 1", fix="0.25 is usual")
    if isinstance(file, (Artifact, str, os.PathLike, bytes)):
        model, own = content_of(file)
        runner = runtimes.load(model, runtime=runtime or own, threads=threads)
    else:
        runner = file
    run = _TileRunner(runner, scene if hasattr(scene, "shape") else np.asarray(scene), prepare, task)
    tiles = list(_tiles(run.scene.shape[:2], run.size, overlap))
    if isinstance(task, Segmentation):
        return _pixels(run, tiles, task, overlap)
    return _boxes(run, tiles, task, iou)


class _TileRunner:
    """A network on one tile of a scene."""

    def __init__(self, runner: runtimes.Runner, scene: Any, prepare: Prepare | None, task: Task) -> None:
        self.runner, self.scene, self.prepare, self.task = runner, scene, prepare, task
        shape = runner.input.shape
        if len(shape) != 3 or len(scene.shape) != 3 or min(scene.shape[:2]) < 1:
            raise InputError(
                f"The scene has the shape {tuple(scene.shape)}, the network's input {shape}.",
                expected="a scene (height, width, bands) and a network of images",
                fix="scene[..., None] for one band; np.moveaxis(scene, 0, -1) where the bands come first",
            )
        if prepare is None and scene.shape[-1] != shape[-1]:
            raise InputError(
                f"The scene has {scene.shape[-1]} bands, the network {shape[-1]}.",
                expected="the bands of the training, in their order",
                fix="choose the bands: scene[..., [0, 1, 2]]; where they come first, np.moveaxis(scene, 0, -1)",
            )
        self.size = shape[:2]

    def __call__(self, tile: _Tile) -> np.ndarray:
        """The output (h, w, channels), float32."""
        (height, width), (top, left) = self.size, (tile.top, tile.left)
        image = np.asarray(self.scene[top : top + height, left : left + width])
        missing = [(0, side - n) for side, n in zip(self.size, image.shape, strict=False)]
        image = np.pad(image, [*missing, (0, 0)], mode="edge")
        if self.prepare is not None:
            image = np.asarray(self.prepare(image))
        said = runtimes.run(self.runner, image[None])
        outputs = said if isinstance(said, tuple) else (said,)
        if isinstance(self.task, Detection) and self.task.parts is not None and len(outputs) == len(self.task.parts):
            outputs = (self.task.joined(outputs),)  # heat, sizes and offsets of a detector with three outputs
        if len(outputs) != 1:
            raise InputError(
                f"The file has {len(outputs)} outputs.",
                expected="one map, or the three of a detector whose task says which is which",
                fix="give the task that the file names: "
                "orbit_kd.tasks.from_config(okd.exporters.read_metadata(file)['task'])",
            )
        output = np.asarray(outputs[0][0])
        if output.ndim != 3 or not np.isfinite(output).all():
            raise InputError(
                f"The network gives {output.shape} for a tile{'' if output.ndim == 3 else ', no map'}, or NaN or Inf.",
                expected="a map (height, width, channels) of finite numbers",
                fix="use a network for segmentation or detection, and look at the training if it diverged",
            )
        return output


def _places(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: evenly, the last flush with the end."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _tiles(scene: tuple[int, int], size: tuple[int, ...], overlap: float) -> Iterator[_Tile]:
    rows, columns = (_places(n, side, overlap) for n, side in zip(scene, size, strict=True))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            yield _Tile(top, left, i > 0, j > 0, i < len(rows) - 1, j < len(columns) - 1)


# ---------------------------------------------------------------- pixels


def _pixels(run: _TileRunner, tiles: list[_Tile], task: Segmentation, overlap: float) -> np.ndarray:
    height, width = run.scene.shape[:2]
    classes = np.zeros((height, width), np.uint8 if task.classes <= 256 else np.uint16)
    sums: Any = None  # of scores and of weights, of the rows from `done` on: as many as a tile has
    total: Any = None
    done = 0
    for tile in tiles:
        scores = _full_size(run(tile), run.size)
        if sums is None:
            columns = max(width, run.size[1])
            sums = np.zeros((run.size[0], columns, scores.shape[-1]), np.float32)
            total = np.zeros((run.size[0], columns, 1), np.float32)
        if tile.top > done:  # nothing more comes for the rows above
            ready = tile.top - done
            classes[done : tile.top] = task.predicted(sums[:ready] / total[:ready])[:, :width]
            for rows in (sums, total):
                rows[:-ready] = rows[ready:].copy()
                rows[-ready:] = 0
            done = tile.top
        weight = _weights(tile, run.size, overlap)
        sums[:, tile.left : tile.left + run.size[1]] += scores * weight
        total[:, tile.left : tile.left + run.size[1]] += weight
    classes[done:] = task.predicted(sums / total)[: height - done, :width]
    return classes


def _full_size(scores: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map of a fraction of the tile's size, brought to that by repeating."""
    steps = [side / n for side, n in zip(size, scores.shape[:2], strict=True)]
    if any(step != int(step) for step in steps):
        raise InputError(
            f"The network gives {scores.shape[0]}x{scores.shape[1]} places for a tile of {size[0]}x{size[1]} pixels.",
            expected="as many, or a whole fraction of them",
            fix="pad the convolutions ('same'), or let the network end in a resize to its input's size",
        )
    return scores.repeat(int(steps[0]), axis=0).repeat(int(steps[1]), axis=1)


def _weights(tile: _Tile, size: tuple[int, ...], overlap: float) -> np.ndarray:
    """(height, width, 1): zero in the outer quarter of the overlap with a neighbour, 1 from its last quarter on."""
    sides = ((tile.above, tile.below), (tile.before, tile.after))
    along = []
    for length, (first, last) in zip(size, sides, strict=True):
        # the overlap there is at least; without any, each pixel has one tile
        common = length - max(1, int(length * (1 - overlap)))
        weight, ramp = np.ones(length, np.float32), np.arange(length) + 0.5
        if common >= 2:
            rising = np.clip((ramp - common / 4) / (common / 2), 0, 1)
            weight *= rising if first else 1
            weight *= rising[::-1] if last else 1
        along.append(weight)
    return (along[0][:, None] * along[1][None])[..., None]


# ---------------------------------------------------------------- boxes


def _boxes(run: _TileRunner, tiles: list[_Tile], task: Detection, iou: float) -> np.ndarray:
    found: list[np.ndarray] = []
    cut: list[np.ndarray] = []
    of_tile: list[np.ndarray] = []
    height, width = run.size
    for number, tile in enumerate(tiles):
        maps = run(tile) if task.parts else task.joined((run(tile),))
        boxes = task.found(maps)
        # a box that comes nearer than a cell may go on in the next tile
        low, high = (1 / maps.shape[0], 1 / maps.shape[1]), (1 - 1 / maps.shape[0], 1 - 1 / maps.shape[1])
        cut.append(
            ((boxes[:, 2] < low[0]) & tile.above) | ((boxes[:, 3] < low[1]) & tile.before)
            | ((boxes[:, 4] > high[0]) & tile.below) | ((boxes[:, 5] > high[1]) & tile.after)
        )  # fmt: skip
        boxes[:, 2:] = boxes[:, 2:] * [height, width, height, width] + [tile.top, tile.left, tile.top, tile.left]
        found.append(boxes)
        of_tile.append(np.full(len(boxes), number))
    merged = _merge(np.concatenate(found), np.concatenate(cut), np.concatenate(of_tile), iou=iou)
    ends = run.scene.shape[:2]
    centre = (merged[:, 2:4] + merged[:, 4:]) / 2
    merged = merged[(centre < ends).all(1)]  # the others are in what a small scene is continued by
    merged[:, 2:] = np.clip(merged[:, 2:], 0, [*ends, *ends])
    return merged


def _merge(boxes: np.ndarray, cut: np.ndarray, tile: np.ndarray, *, iou: float) -> np.ndarray:
    """Boxes of all tiles -> one an object, by falling score.

    Whole boxes come first, each class by falling score. A box goes where it overlaps a kept one of its class by more
    than `iou`, or, cut, where a whole one of another tile lies over more than half of it.

    Args:
        boxes: (d, 6): class, score, box in pixels of the scene.
        cut: (d,) bool.
        tile: (d,) of which tile each is.
        iou: see `predict_scene`.
    """
    order = np.lexsort((-boxes[:, 1], cut, boxes[:, 0]))
    boxes, cut, tile = boxes[order], cut[order], tile[order]
    area, stays = areas(boxes[:, 2:]), np.ones(len(boxes), bool)
    ends = np.searchsorted(boxes[:, 0], boxes[:, 0], side="right")  # of each one's class
    for i in np.arange(len(boxes)):
        if not stays[i]:
            continue
        later = slice(i + 1, ends[i])
        here = boxes[i : i + 1, 2:]
        over = intersections(here, boxes[later, 2:])[0] > 0.5 * area[later]
        gone = overlaps(here, boxes[later, 2:])[0] > iou
        stays[later] &= ~(gone | (over & cut[later] & (tile[later] != tile[i]) & (not cut[i])))
    found = boxes[stays]
    return found[np.argsort(-found[:, 1], kind="stable")]
