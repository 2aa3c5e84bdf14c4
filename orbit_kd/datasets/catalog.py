"""Data sets of TensorFlow Datasets (TFDS): the public catalogue and the project's own builders alike."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from orbit_kd.datasets import catalog_labels
from orbit_kd.datasets.decoding import Item
from orbit_kd.datasets.images import MEMORY_LIMIT
from orbit_kd.datasets.splits import Source
from orbit_kd.errors import InputError
from orbit_kd.support.progress import on_terminal

log = logging.getLogger("orbit_kd")
VALIDATION = ("validation", "val", "valid")


def find(name: str, data_dir: str | os.PathLike[str] | None, *, own: Sequence[str]) -> tfds.core.DatasetBuilder:
    """The TFDS builder of that name, such as "uc_merced" or "eurosat/rgb"; `own` are names that exist besides.

    Raises:
        InputError: there is none.
    """
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except (tfds.core.DatasetNotFoundError, ValueError) as e:
        known = [*own, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        raise InputError(
            f"{name!r} is neither a folder nor a data set that can be had: {str(e).splitlines()[0]}",
            expected=f"a folder, one of {', '.join(own)}, or a TFDS name (https://www.tensorflow.org/datasets/catalog)",
            fix=f"did you mean {' or '.join(near)}?" if near else "check the path or the name",
        ) from e


def read(builder: tfds.core.DatasetBuilder, task: str = "auto") -> Source:
    """All examples of a builder, prepared (downloaded, generated) first where it is not yet.

    Args:
        builder: of the data set.
        task: a key of `kinds.TASKS`; "auto" takes image classification where the set is made for it, else what its
            features have: `segmentation_mask`, `objects`, `labels`.

    Raises:
        InputError: no features of the task, no train split, or the data cannot be prepared; manual download
            instructions are passed on.
    """
    name = builder.info.full_name
    image_key, label_key, task = _keys(builder, task)
    _prepare(builder)
    image, label = builder.info.features[image_key], builder.info.features[label_key]
    present = dict(builder.info.splits)
    wanted = {"train": "train", "val": next((v for v in VALIDATION if v in present), None), "test": "test"}
    if not ("train" in present and present["train"].num_examples):
        raise InputError(
            f"The data set {name} has no train split, only: {', '.join(present) or 'nothing'}.",
            expected="a split named train",
            fix="export its images to class folders and give that folder",
        )

    # Read in one fixed order. What would not fit decoded is kept as the encoded bytes it is stored in.
    total = sum(s.num_examples for s in present.values())
    size = int(np.prod([n or 512 for n in image.shape])) * np.dtype(image.np_dtype).itemsize
    encoded = isinstance(image, tfds.features.Image) and total * size > MEMORY_LIMIT
    decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None
    config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    items: list[Item] = []
    labels: list[Any] = []
    splits = {}
    for ours, theirs in wanted.items():
        if theirs not in present or not present[theirs].num_examples:
            continue
        examples = builder.as_dataset(split=theirs, decoders=decoders, read_config=config, shuffle_files=False)
        start = len(items)
        for example in tfds.as_numpy(examples):
            items.append(_plain(example[image_key]))
            labels.append(example[label_key])
        splits[ours] = np.arange(start, len(items))
    names = [f"{name} {split}[{i}]" for split, index in splits.items() for i in range(len(index))]
    lines = [name, *(f"{s}\t{v.num_examples}\t{v.num_bytes}" for s, v in sorted(present.items()))]
    class_names, truth = catalog_labels.of(task, label, labels, names)
    if task == "classification" and min(labels) < 0:
        raise InputError(
            f"The data set {name} has examples without a label.",
            expected="a label for each image of train, validation and test",
            fix="export the labelled images to class folders and give that folder",
        )
    return Source(
        items=items,
        names=names,
        labels=np.array(labels if task == "classification" else np.zeros(len(items)), np.int32),
        class_names=class_names,
        splits=splits,
        identity="\n".join(lines if task == "classification" else [task, *lines]),
        task=task,
        truth=truth,
    )


def _plain(image: Any) -> Item:
    if isinstance(image, bytes) or image.dtype in (np.uint8, np.uint16, np.float32):
        return image
    return image.astype(np.float32)


def _keys(builder: tfds.core.DatasetBuilder, task: str) -> tuple[str, str, str]:
    """The names of the image and of the label feature, and the task that they are for."""
    keys, features = builder.info.supervised_keys, builder.info.features
    found: dict[str, tuple[str, str]] = {}
    if keys and len(keys) == 2 and all(isinstance(k, str) for k in keys):
        image, label = features[keys[0]], features[keys[1]]
        if _is_image(image) and isinstance(label, tfds.features.ClassLabel):
            found["classification"] = keys[0], keys[1]
    image_key = next((k for k in ("image", keys and keys[0]) if isinstance(k, str) and k in features), None)
    if image_key and _is_image(features[image_key]):
        found |= {kind: (image_key, label_key) for kind, label_key in catalog_labels.kinds(features).items()}
    kind = next(iter(found), "") if task == "auto" else task
    if kind in found:
        if kind != "classification":
            log.info("data: %s: %s by its feature %s", builder.info.full_name, kind, found[kind][1])
        return *found[kind], kind
    wanted = "image classification, nor segmentation, detection or multi_label" if task == "auto" else task
    raise InputError(
        f"The TFDS data set {builder.info.full_name} is no {wanted}: supervised keys {keys}, "
        f"features {', '.join(features)}.",
        expected="one image and one class label an example; or the feature segmentation_mask (an image), objects (bbox "
        "and label), or labels (a sequence of class labels)",
        fix=f"choose the task {' or '.join(found)} (task=..., --task)"
        if found
        else "choose another set, or export its images to class folders and give that folder",
    )


def _is_image(feature: Any) -> bool:
    return isinstance(feature, (tfds.features.Image, tfds.features.Tensor)) and len(feature.shape or ()) == 3


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if not on_terminal():
        tfds.disable_progress_bar()  # in a file its bars are hundreds of broken lines
    try:
        # TFDS prints what it does; standard output belongs to the results of our tools.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except InputError:
        raise
    # TFDS tells of missing manual downloads with an AssertionError, of failed ones with OSErrors of several kinds.
    except (AssertionError, OSError, tfds.download.DownloadError) as e:
        by_hand = bool(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
        raise InputError(
            f"The data set {builder.info.full_name} could not be prepared: {e}",
            expected="its files in the manual download folder" if by_hand else "a network, or data prepared before",
            fix=f"{'follow the instructions above' if by_hand else 'check the network'} and that {builder.data_path} "
            "can be written, or give another data_dir (--data_dir)",
        ) from e
