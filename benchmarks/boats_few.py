"""A folder with the pictures of another that have few and large enough boxes: COCO files, and links to the pictures.

python benchmarks/boats_few.py --data_dir=boats --output=boats_few
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

flags.DEFINE_string("data_dir", None, "Folder with train/, val/, test/ and a COCO file each (train.json, ...).")
flags.DEFINE_string("output", None, "The folder to write.")
flags.DEFINE_integer("most", 5, "Boxes a picture.", lower_bound=1)
flags.DEFINE_float("least", 8.0, "Pixels of a box's shorter side, in the picture as it lies there.", lower_bound=0.0)
flags.mark_flags_as_required(["data_dir", "output"])
FLAGS = flags.FLAGS


def main(_) -> None:
    source, output = Path(FLAGS.data_dir).resolve(), Path(FLAGS.output)
    for split in ("train", "val", "test"):
        said = json.loads((source / f"{split}.json").read_text())
        boxes: dict[int, list] = {image["id"]: [] for image in said["images"]}
        for box in said["annotations"]:
            boxes[box["image_id"]].append(box)
        kept = [image for image in said["images"] if few_and_large(boxes[image["id"]])]
        folder = output / split
        folder.mkdir(parents=True, exist_ok=True)
        for image in kept:
            link = folder / image["file_name"]
            link.unlink(missing_ok=True)
            link.symlink_to(source / split / image["file_name"])
        said["images"], said["annotations"] = kept, [box for image in kept for box in boxes[image["id"]]]
        (output / f"{split}.json").write_text(json.dumps(said))
        print(f"{split}: {len(kept)} pictures, {len(said['annotations'])} boxes")


def few_and_large(boxes: list[dict]) -> bool:
    """Whether a picture has boxes, not more than --most, and all of at least --least pixels."""
    return 0 < len(boxes) <= FLAGS.most and all(min(box["bbox"][2:]) >= FLAGS.least for box in boxes)


if __name__ == "__main__":
    app.run(main)
