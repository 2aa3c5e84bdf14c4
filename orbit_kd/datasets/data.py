"""`Data`: training, validation and test examples, and epochs of them that a resumed run sees again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd import preprocessing
from orbit_kd.datasets.images import Images
from orbit_kd.errors import InputError
from orbit_kd.preprocessing import Augment
from orbit_kd.recipe import Preprocess

if TYPE_CHECKING:
    import tensorflow as tf


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
    `tf.data.Dataset` of (x, y), a pair of arrays (x, y), or a `keras.utils.Sequence`.

    Attributes:
        train, val, test: batched `tf.data.Dataset` of (x, y) in a fixed order, without augmentation. From `load`: x
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
        for name in ("train", "val", "test"):
            object.__setattr__(self, name, _dataset(getattr(self, name), name))

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of one x, without the batch axis."""
        return tuple(self.train.element_spec[0].shape[1:])

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 that tells this data from other data: the fingerprint, or else all that it yields.

        Images that differ from one pass to the next (random augmentation in a pipeline of one's own) do not count.

        Raises:
            InputError: examples in another order at each pass.
        """
        if self.fingerprint:
            return self.fingerprint
        told: list[str] = []
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            (labels, images), again = _read(part.take(2)), _read(part.take(2))
            if labels != again[0]:
                raise InputError(
                    f"The {name} data comes in another order each time.",
                    expected="the same order at each pass: results are kept and found again by it",
                    fix="leave out .shuffle() (image_dataset_from_directory: shuffle=False); training shuffles itself",
                )
            told += _read(part)[: 2 if images == again[1] else 1]
        return hashlib.sha256("".join(told).encode()).hexdigest()

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
        repeated; its order is its own affair.

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
    import tf_keras as keras

    if isinstance(given, (tuple, list)) and len(given) == 2 and all(hasattr(a, "shape") for a in given):
        given = tf.data.Dataset.from_tensor_slices(tuple(given)).batch(64)
    elif isinstance(given, keras.utils.Sequence):
        given = _from_sequence(given)
    spec = getattr(given, "element_spec", None)
    if not (
        isinstance(given, tf.data.Dataset)
        and isinstance(spec, tuple)
        and len(spec) in (2, 3)
        and all(isinstance(part, tf.TensorSpec) for part in spec)
    ):
        raise InputError(
            f"Data cannot use {type(given).__name__} as its {name} data.",
            expected="a batched tf.data.Dataset of (x, y), a pair of arrays (x, y), or a keras.utils.Sequence",
            fix="wrap your data with tf.data.Dataset.from_tensor_slices((x, y)).batch(64)",
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


def _read(batches: tf.data.Dataset) -> tuple[str, str]:
    """Digests of all labels, and of all images."""
    labels, images = hashlib.sha256(), hashlib.sha256()
    for x, y, *_ in batches.as_numpy_iterator():
        labels.update(np.ascontiguousarray(y).tobytes())
        images.update(np.ascontiguousarray(x).tobytes())
    return labels.hexdigest(), images.hexdigest()


def _from_sequence(sequence: Any) -> tf.data.Dataset:
    import tensorflow as tf

    first = (np.asarray(part) for part in sequence[0][:2])
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    batches = tf.data.Dataset.from_generator(
        lambda: (tuple(sequence[i][:2]) for i in range(len(sequence))), output_signature=signature
    )
    return batches.apply(tf.data.experimental.assert_cardinality(len(sequence)))
