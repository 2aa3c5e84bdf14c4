"""Training on several devices or machines: strategies by name, batches of each worker, one message when one stops."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry

log = logging.getLogger("orbit_kd")
strategies: Registry[Callable[[], tf.distribute.Strategy]] = Registry("strategy")
# what a collective raises when a peer is gone, by how it went: connection lost, restarted, silent
_PEER_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
    tf.errors.DeadlineExceededError,
)
strategies.register("none")(tf.distribute.get_strategy)
strategies.register("mirrored")(tf.distribute.MirroredStrategy)


@strategies.register("multi_worker")
def multi_worker() -> tf.distribute.Strategy:
    """One replica a worker (or GPU of one), as TF_CONFIG lists them; waits until all have started.

    To be called before anything else of TensorFlow runs.

    Raises:
        InputError: TF_CONFIG is missing or does not describe this worker; its address cannot be used.
    """
    _check_config(os.environ.get("TF_CONFIG", ""))
    log.info("waiting for the other workers ...")
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise InputError(
            f"The workers of TF_CONFIG did not come together: {_reason(error)}.",
            expected="this worker's address free, the others' within reach, no TensorFlow op run before",
            fix="check the addresses in TF_CONFIG and that no former worker still runs",
        ) from error


def _check_config(text: str) -> None:
    try:
        config = json.loads(text)
        task, cluster = config["task"], config["cluster"]
        cluster[task["type"]][int(task["index"])]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"TF_CONFIG={text!r} does not describe a worker.",
            expected='JSON such as {"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
            '"task": {"type": "worker", "index": 0}}',
            fix="set it in the environment of each worker, equal but for the index",
        ) from error


def index_and_count(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(index, count): which of how many workers this process is; (0, 1) where it works alone."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    chiefs, workers = len(jobs.get("chief", ())), len(jobs.get("worker", ()))
    return (resolver.task_id or 0) + (chiefs if resolver.task_type == "worker" else 0), max(1, chiefs + workers)


@contextlib.contextmanager
def watch_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """While open, the end of another worker raises one clear error here. Nothing else is changed.

    Raises:
        InputError: another worker stopped.
    """
    try:
        yield
    except _PEER_GONE as error:
        count = index_and_count(strategy)[1]
        if count < 2:
            raise
        raise InputError(
            f"Another worker stopped: {_reason(error)}.",
            expected=f"all {count} workers to run to the end",
            fix="see what the other one said, then start all workers again with the same command: they go on",
        ) from error


def worker_batches(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> Any:
    """For `fit`: batches that are this worker's alone, in place of a global data set that Keras divides.

    Args:
        dataset: batches of this worker, equally many on each; their sizes are multiples of its replicas.
        strategy: of the model.
    """
    replicas = strategy.num_replicas_in_sync // index_and_count(strategy)[1]

    def split(*batch: Any) -> Any:
        parts = [tf.reshape(t, tf.concat([[replicas, -1], tf.shape(t)[1:]], 0)) for t in tf.nest.flatten(batch)]
        for part, whole in zip(parts, tf.nest.flatten(batch), strict=True):
            part.set_shape([replicas, None, *whole.shape[1:]])
        return tf.nest.pack_sequence_as(batch, parts)

    if replicas > 1:
        dataset = dataset.map(split).unbatch()
    return strategy.distribute_datasets_from_function(lambda context: dataset)


def common_to_workers(strategy: tf.distribute.Strategy, numbers: Iterable[int]) -> set[int]:
    """Which of at most two numbers >= 0 every worker has. All workers must ask at the same point."""
    own = set(numbers)
    if index_and_count(strategy)[1] < 2:
        return own
    padded = tf.constant([sorted(own) + [-1] * (2 - len(own))], tf.int64)
    values = strategy.experimental_distribute_values_from_function(lambda context: padded)
    rows = strategy.gather(values, axis=0).numpy().tolist()
    return set.intersection(*(set(row) for row in rows)) - {-1}


def copy_into(model: keras.Model, strategy: tf.distribute.Strategy) -> keras.Model:
    """A copy of the model in the strategy's scope, with BatchNormalization over all replicas; the model if it is there.

    Give the trained weights back with `model.set_weights(copy.get_weights())`, on every worker.
    """
    if all(strategy.extended.variable_created_in_scope(v) for v in model.variables):
        return model
    config = model.get_config()
    with strategy.scope():
        copy = type(model).from_config(_synchronized(config) if strategy.num_replicas_in_sync > 1 else config)
    copy.set_weights(model.get_weights())
    return copy


def _synchronized(config: Any) -> Any:
    """The config with every BatchNormalization at any depth taking its statistics over all replicas."""
    if isinstance(config, (list, tuple)):
        return type(config)(_synchronized(v) for v in config)
    if not isinstance(config, dict):
        return config
    config = {key: _synchronized(value) for key, value in config.items()}
    if config.get("class_name") == "BatchNormalization":
        config["config"] = {**config["config"], "synchronized": True}
    return config


def _reason(error: Exception) -> str:
    """One line of what TensorFlow says, that which names the peer where there is one."""
    text = str(error).strip() or type(error).__name__
    found = re.search(r"aborted by: (.+)", text)
    return (found[1] if found else text.splitlines()[0]).rstrip(".: ")
