"""`Data`: training, validation and test examples, and epochs of them that a resumed run sees again."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets import contents, preprocessing
from orbit_kd.datasets.augment import Augment
from orbit_kd.datasets.images import Images
from orbit_kd.datasets.labels import check_alike
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.support.digests import digest

if TYPE_CHECKING:
    import tensorflow as tf

    from orbit_kd.datasets.batches import Batches

log = logging.getLogger("orbit_kd")
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images, labels and the training indices that `Data.epochs` draws from."""

    images: Images
    labels: np.ndarray
    train: np.ndarray
    preprocess: Preprocess
    shape: tuple[int, int, int]
    batch_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test examples of one image classification task.

    `load` makes one; so does `Data(train, val, test)` from anything of your own that Keras' `fit` takes: a batched
    `tf.data.Dataset` of (x, y), shuffled or not, a pair of arrays (x, y), a list of batches, a `keras.utils.Sequence`
    or `PyDataset`, or `ImageDataGenerator().flow(...)`.

    Attributes:
        train, val, test: batched `tf.data.Dataset` of (x, y). From `load`: in a fixed order, without augmentation; x
            float32 (batch, height, width, channels) after Preprocess, y int32 (batch,).
        class_names: what the labels mean; may be empty.
        preprocess: what was done to the images, if known.
        fingerprint: hexadecimal SHA-256 over what was loaded and how; "" where that is not known.
        counts: number of examples of "train", "val" and "test", if known.
    """

    train: Any = dataclasses.field(repr=False)
    val: Any = dataclasses.field(repr=False)
    test: Any = dataclasses.field(repr=False)
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    fingerprint: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    examples: Examples | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in SPLITS:
            object.__setattr__(self, name, _dataset(getattr(self, name), name))
        check_alike({name: getattr(self, name).element_spec[1].shape for name in SPLITS})

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one x, without the batch axis."""
        return tuple(self.train.element_spec[0].shape[1:])

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 that tells this data from other data: the fingerprint, or else all that it yields.

        The order of the examples does not count, nor do images that differ from one pass to the next (random
        augmentation in a pipeline of one's own).

        Raises:
            InputError: see `contents`.
        """
        if self.fingerprint:
            return self.fingerprint
        return digest([f"{c.labels if c.varies else c.examples:032x}" for c in self.contents.values()])

    @functools.cached_property
    def contents(self) -> dict[str, contents.Contents]:
        """What each split holds, from one pass over each.

        Raises:
            InputError: examples that move between the splits from pass to pass.
        """
        found = {name: contents.read(getattr(self, name)) for name in SPLITS}
        for name, other in ((a, b) for a in SPLITS for b in SPLITS if a != b):
            moved = set(found[name].again) - found[name].known
            if moved & found[other].known:
                raise InputError(
                    f"The splits change: examples that were in {other} come up in {name} at the next pass.",
                    expected="splits that hold the same examples at each pass",
                    fix="shuffle after .take() and .skip(), or with .shuffle(..., reshuffle_each_iteration=False)",
                )
        return found

    def check_classes(self) -> None:
        """Refuses splits that cannot tell how well a network does, and warns of what may falsify it.

        Raises:
            InputError: a split with one class only, or training data without a class that is tested.
        """
        if self.examples is not None:  # `load` splits each class alike
            return
        found = {name: set(c.classes or ()) for name, c in self.contents.items()}
        every = set().union(*found.values())
        advice = (
            "split each class alike: okd.load(folder) does so; image_dataset_from_directory(validation_split=...) "
            "does it nearly with shuffle=True and one seed, and takes the last classes with shuffle=False"
        )
        for name, classes in found.items():
            missing = sorted(every - classes)
            if len(classes) == 1 and missing:
                raise InputError(
                    f"The {name} data holds one class only ({min(classes)}) of {len(every)}.",
                    expected="examples of all classes in each split",
                    fix=advice,
                )
            if missing and name == "train":
                raise InputError(
                    f"The train data lacks {_classes(missing, self.class_names)}, which other splits have.",
                    expected="examples of all classes in the training data",
                    fix=advice,
                )
            if missing:
                log.warning("data: %s lacks %s: its accuracy says nothing about them", name,
                            _classes(missing, self.class_names))  # fmt: skip
        train = self.contents["train"].known
        for name in ("val", "test"):
            known = self.contents[name].known
            if both := len(known & train):
                log.warning("data: %d of %d %s images are training images too", both, len(known), name)

    def steps(self, batch_size: int | None = None) -> int:
        """Batches in one epoch of training, the last and smaller one included: `fit(..., steps_per_epoch=...)`."""
        if self.examples is not None:
            return -(-len(self.examples.train) // (batch_size or self.examples.batch_size))
        known = int(self.train.cardinality())
        if known >= 0 and batch_size is None:
            return known
        sizes = [int(batch[0].shape[0]) for batch in self.train]
        return len(sizes) if batch_size is None else -(-sum(sizes) // batch_size)

    def epochs(
        self, *, seed: int, augment: Augment | None = None, start: int = 0, batch_size: int | None = None
    ) -> tf.data.Dataset:
        """Training batches without end, for `fit(..., steps_per_epoch=data.steps(batch_size))`.

        Order and augmentation are functions of (seed, epoch, place in the epoch) only: a run that is resumed with
        `start=k` sees what the uninterrupted run saw from its epoch k on. Data made from your own datasets is only
        repeated; its order is its own affair (`TeacherCache.epochs` gives it one).

        Args:
            seed: of order and augmentation.
            augment: random changes to each image.
            start: the first epoch to yield, counted from 0.
            batch_size: examples in a batch; None takes the one the data was made with.

        Raises:
            InputError: `augment` on data of your own, or one that does not fit the images.
        """
        if self.examples is None:
            if augment not in (None, Augment()):
                raise InputError(
                    "Augmentation needs the decoded images, and this Data was made from ready batches.",
                    expected="augment=None",
                    fix="augment in your own tf.data pipeline, or use orbit_kd.datasets.load",
                )
            return (self.train if batch_size is None else self.train.rebatch(batch_size)).repeat()
        import tensorflow as tf

        examples, size = self.examples, batch_size or self.examples.batch_size
        _check_augment(examples, augment)

        def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(examples.train, _key(seed, 0, epoch))
            return tf.data.Dataset.from_tensor_slices((order, _seeds(_key(seed, 1, epoch), len(order)))).batch(size)

        return _rendered(examples, tf.data.Dataset.range(start, tf.int64.max).flat_map(one_epoch), augment)

    def views(
        self, k: int, *, seed: int, augment: Augment | None = None, batch_size: int | None = None
    ) -> tf.data.Dataset:
        """One pass over the training images in the order of `train`, as the k-th augmented rendering of them.

        View 0 is plain. View k is a function of (seed, k, place) only, so that a teacher's outputs on it can be kept.

        Raises:
            InputError: see `epochs`.
        """
        if self.examples is None:
            if k == 0 or augment in (None, Augment()):
                return self.train if batch_size is None else self.train.rebatch(batch_size)
            return self.epochs(seed=seed, augment=augment)  # raises
        import tensorflow as tf

        examples, size = self.examples, batch_size or self.examples.batch_size
        _check_augment(examples, augment)
        seeds = _seeds(_key(seed, 2, k), len(examples.train))
        index = tf.data.Dataset.from_tensor_slices((examples.train, seeds)).batch(size)
        return _rendered(examples, index, augment if k else None)

    def renderings(self, count: int, *, seed: int, augment: Augment | None = None) -> list[tf.data.Dataset]:
        """The first `count` views, but those that are copies of another.

        Data of your own has no more than one rendering if it does not augment by itself; nor if it comes in another
        order at each pass, as the images of one view cannot be found in another then.
        """
        if self.examples is None and count > 1:
            told = self.contents["train"]
            if told.varies and told.shuffled:
                log.warning("data: the training images are augmented and shuffled, so the teacher sees one rendering "
                            "of them; leave out .shuffle() and it sees %d", count)  # fmt: skip
            if told.shuffled or not told.varies:
                count = 1
        return [self.views(k, seed=seed, augment=augment) for k in range(count)]


def from_examples(
    images: Images,
    labels: np.ndarray,
    splits: Mapping[str, np.ndarray],
    *,
    preprocess: Preprocess,
    batch_size: int,
    **known: Any,
) -> Data:
    """Data over decoded images; `known` goes to `Data` as it is.

    Raises:
        InputError: the images do not come out of `preprocess` with one shape.
    """
    import tensorflow as tf

    shape = images.shape_after(preprocess)
    whole = Examples(images, labels.astype(np.int32), splits["train"].astype(np.int64), preprocess, shape, batch_size)
    plain = {}
    for name, index in splits.items():
        seeds = np.zeros((len(index), 2), np.int64)
        batches = tf.data.Dataset.from_tensor_slices((index.astype(np.int64), seeds)).batch(batch_size)
        plain[name] = _rendered(whole, batches, None)
    counts = {name: len(index) for name, index in splits.items()}
    for name, index in splits.items():  # each class has its part in each split, unless `limit` leaves no room for it
        if missing := sorted(set(labels.tolist()) - set(labels[index].tolist())):
            log.warning("data: %s lacks %s: its accuracy says nothing about them", name,
                        _classes(missing, known.get("class_names", ())))  # fmt: skip
    return Data(
        plain["train"], plain["val"], plain["test"], preprocess=preprocess, counts=counts, examples=whole, **known
    )


def _rendered(examples: Examples, batches: tf.data.Dataset, augment: Augment | None) -> tf.data.Dataset:
    """(indices, seeds) -> (x, y)."""
    import tensorflow as tf

    labels = tf.constant(examples.labels)

    def one_size(index: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return preprocessing.apply(examples.preprocess, examples.images.gather(index), augment=augment, seed=seeds)

    def render(index: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if examples.images.uniform:
            x = one_size(index, seeds)
        else:
            spec = tf.TensorSpec(examples.shape, tf.float32)
            x = tf.map_fn(lambda e: one_size(e[0][None], e[1][None])[0], (index, seeds), fn_output_signature=spec)
        return tf.ensure_shape(x, (None, *examples.shape)), tf.gather(labels, index)

    return batches.map(render, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def _check_augment(examples: Examples, augment: Augment | None) -> None:
    for shape in set(examples.images.shapes) if augment else ():
        preprocessing.check_augment(examples.preprocess, shape, augment or Augment())


def _key(seed: int, purpose: int, number: int | tf.Tensor) -> tf.Tensor:
    """An int64 seed pair for the purpose (0 order, 1 epochs, 2 views) and the number of the epoch or view."""
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(tf.constant([seed, purpose], tf.int64), tf.cast(number, tf.int64))


def _seeds(key: tf.Tensor, count: int) -> tf.Tensor:
    """One seed pair a place: (count, 2)."""
    import tensorflow as tf

    return key + tf.stack([tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64)], axis=1)


def _dataset(given: Any, name: str) -> tf.data.Dataset:
    """Whatever `fit` takes as batches of (x, y), as a dataset."""
    import tensorflow as tf

    from orbit_kd.datasets.batches import TAKEN, as_batches

    if not isinstance(given, tf.data.Dataset):
        given = _from_batches(as_batches(given, what=f"{name} data", labels=True, again=True))
    spec = given.element_spec
    if not (isinstance(spec, tuple) and len(spec) in (2, 3) and all(isinstance(p, tf.TensorSpec) for p in spec)):
        raise InputError(
            f"Data cannot use what its {name} dataset yields: {spec}.",
            expected=f"{TAKEN}: one array of images and one of labels in each batch",
            fix="map it to that: .map(lambda d: (d['image'], d['label'])), with your keys; labels are needed",
        )
    if None in (spec[0].shape.rank, spec[1].shape.rank) or not (spec[1].dtype.is_integer or spec[1].dtype.is_floating):
        raise InputError(
            f"The {name} dataset says too little of what it yields: x {spec[0]}, y {spec[1]}.",
            expected="the shapes of images and labels, and numbers as labels",
            fix="set them: .map(lambda x, y: (tf.ensure_shape(x, (None, height, width, channels)), "
            "tf.ensure_shape(y, (None,))))",
        )
    if given.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError(
            f"The {name} dataset repeats for ever, so an epoch has no length.",
            expected="a dataset of one epoch",
            fix="leave out .repeat(); Data.epochs repeats the training data",
        )
    if spec[1].shape.rank == 0 or spec[0].shape.rank < 2:
        raise InputError(
            f"The {name} dataset yields single examples: x {spec[0].shape}, y {spec[1].shape}.",
            expected="batches",
            fix="add .batch(64) to it",
        )
    return given


def _from_batches(given: Batches) -> tf.data.Dataset:
    import tensorflow as tf

    def arrays() -> Iterator[tuple[np.ndarray, ...]]:
        return (tuple(np.asarray(part) for part in batch if part is not None) for batch in given)

    first = next(arrays())
    if given.arrays is not None:
        return tf.data.Dataset.from_tensor_slices(given.arrays).batch(64)
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    found = tf.data.Dataset.from_generator(arrays, output_signature=signature)
    return found if given.count is None else found.apply(tf.data.experimental.assert_cardinality(given.count))


def _classes(missing: Sequence[int], names: Sequence[str]) -> str:
    told = [names[c] if c < len(names) else str(c) for c in missing]
    some = ", ".join(told[:10]) + (f" and {len(told) - 10} more" if len(told) > 10 else "")
    return f"class {some}" if len(told) == 1 else f"the classes {some}"
