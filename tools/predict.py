"""Runs an exported file over one scene of any size, tile by tile, as an application does on board.

  python tools/predict.py --model=student_tflite_int8.tflite --scene=scene_rgb.tif,scene_nir.tif --output=out/scene

The file says what it is for and how images reach it; the scene has the resolution of the training images. Writes
<output>.png (a picture) and <output>_classes.png or <output>_boxes.json; --truth measures a class map.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags

from orbit_kd.errors import InputError
from orbit_kd.support.progress import log
from orbit_kd_tools.common import FLAGS, required, run

flags.DEFINE_string("model", None, "The exported .tflite file.")
flags.DEFINE_list("scene", [], "Image file; several files are bands of one scene, in the order of the training.")
flags.DEFINE_string("output", None, "Path of the results, without ending.")
flags.DEFINE_string("truth", None, "The scene's true classes, an image of class numbers, to measure by.")
flags.DEFINE_float("overlap", 0.25, "Share of a tile's side that it has in common with the next.")
flags.DEFINE_float("score", 0.3, "Boxes of lower scores are left out.")
flags.DEFINE_string("runtime", None, "litert, tflm, ...; by default the one that the file is made for.")


def main() -> None:
    required("model", "scene", "output")

    import numpy as np
    from PIL import Image

    from orbit_kd.evaluation.pictures import as_picture
    from orbit_kd.evaluation.scenes import predict_scene
    from orbit_kd.exporters.metadata import read_metadata
    from orbit_kd.tasks import from_config

    note = read_metadata(FLAGS.model)
    if note.get("task", {}).get("name") not in ("segmentation", "detection"):
        raise InputError(
            f"{FLAGS.model} does not say that it is for masks or boxes.",
            expected="a file of the tasks segmentation or detection, as tools/compress.py writes it",
            fix="cut the scene into images, and use tools/evaluate.py or okd.predict for one answer an image",
        )
    about = dict(note["task"]) | ({"least": FLAGS.score} if note["task"]["name"] == "detection" else {})
    task, (scene, prepare) = from_config(about), read_scene(note.get("preprocess") or {})
    how = {"overlap": FLAGS.overlap, "prepare": prepare, "runtime": FLAGS.runtime}
    found = predict_scene(FLAGS.model, scene, task=task, **how)
    output, picture = Path(FLAGS.output), as_picture(np.asarray(scene, np.float32))
    output.parent.mkdir(parents=True, exist_ok=True)
    if task.name == "segmentation":
        Image.fromarray(found).save(f"{output}_classes.png")
        Image.fromarray(task.picture(picture, found, None)).save(f"{output}.png")
        print(f"{output}_classes.png: {found.shape[0]}x{found.shape[1]} pixels")
        if FLAGS.truth:
            print(measured(found, task))
    else:
        names = note.get("class_names") or []
        rows = [{"class": names[int(c)] if int(c) < len(names) else int(c), "score": score, "box": box}
                for c, score, *box in found.tolist()]  # fmt: skip
        Path(f"{output}_boxes.json").write_text(json.dumps(rows, indent=1))
        size = np.array([1, *scene.shape[:2], *scene.shape[:2]])
        Image.fromarray(task.picture(picture, found[:, [0, 2, 3, 4, 5]] / size, None)).save(f"{output}.png")
        print(f"{output}_boxes.json: {len(rows)} boxes")


def read_scene(preprocess: dict[str, Any]) -> tuple[Any, Any]:
    """The pixels of --scene, and what brings a tile of them to the network."""
    from orbit_kd.datasets.decoding import decode
    from orbit_kd.datasets.preprocessing import Preprocess, apply

    how = Preprocess(**preprocess)
    if how.resize or how.crop:
        sizes = (("cropped", how.crop), ("resized", how.resize))
        done = " and ".join(f"{word} to {size[0]}x{size[1]}" for word, size in sizes if size)
        log.warning("The training images were %s; the scene is taken as it is: its pixels must have the size on the "
                    "ground that the network knows.", done)  # fmt: skip
    numbers = tuple(int(band) for band in how.bands) if all(b.isdigit() for b in how.bands) else ()
    if not numbers and how.bands and len(FLAGS.scene) not in (1, len(how.bands)):
        raise InputError(
            f"--scene has {len(FLAGS.scene)} files, and the network takes the bands {', '.join(how.bands)}.",
            expected="one file a band, in this order, or one file with all of them",
            fix="give them separated by commas",
        )
    files = tuple(Path(path) for path in FLAGS.scene)
    scene = decode(files if len(files) > 1 else files[0], bands=numbers)
    plain = dataclasses.replace(how, crop=None, resize=None, interpolation=None, aspect="stretch", bands=())
    return scene, lambda tile: apply(plain, tile).numpy()


def measured(found: Any, task: Any) -> str:
    """The metric on --truth."""
    import numpy as np

    from orbit_kd.datasets.decoding import decode

    truth = decode(Path(FLAGS.truth), name=FLAGS.truth)[..., 0]
    if truth.shape != found.shape:
        raise InputError(f"--truth has {truth.shape[0]}x{truth.shape[1]} pixels, the scene {found.shape[0]}x"
                         f"{found.shape[1]}.", expected="the same size", fix="give the mask of this scene")  # fmt: skip
    scores = np.eye(task.classes, dtype=np.float32)[found][None]
    whole = type(task)(task.classes, found.shape)
    details = whole.details(whole.records(whole.truth(truth[None]), (scores,)))
    return f"mean IoU {details['mean_iou']:.4f}, pixel accuracy {details['pixel_accuracy']:.4f}"


if __name__ == "__main__":
    run(main)
