"""Several workers: the same figures as one process, one message when one dies, and the restart that goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image

from orbit_kd.distillation import Distiller, Resume, cache_teacher
from orbit_kd.errors import InputError
from orbit_kd.training import workers

L = keras.layers
ROOT = Path(__file__).parent.parent
CLASSES, GLOBAL_BATCH = 3, 8


def network(width, *, batchnorm=False):
    x = inputs = L.Input((6, 6, 1))
    x = L.Conv2D(width, 3, name="conv")(x)
    if batchnorm:
        x = L.BatchNormalization(synchronized=True, name="bn")(x)
    return keras.Model(inputs, L.Dense(CLASSES, name="head")(L.GlobalAveragePooling2D()(L.ReLU()(x))))


def samples(n=22):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6, 6, 1)).astype("float32"), rng.integers(0, CLASSES, n)


def train(strategy, *, batchnorm, cached, path):
    """The losses of two epochs, and the weights; cached: "no", "whole" on each worker, or one "shard" on each."""
    shard = workers.index_and_count(strategy)
    keras.utils.set_random_seed(0)
    teacher, student = network(6), network(4, batchnorm=batchnorm)
    batches = tf.data.Dataset.from_tensor_slices(samples()).batch(GLOBAL_BATCH)
    copy = workers.copy_into(student, strategy)
    with strategy.scope():
        distiller = Distiller(copy, teacher=teacher, losses=["logits", "hints"], alpha=0.7)
        distiller.compile(
            keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]
        )
        resume = Resume(path)
    distiller.projectors[0].set_weights([np.full((4, 6), 0.1)])
    options = {"epochs": 2, "callbacks": [resume], "validation_data": batches_of(6), "verbose": 0}
    layers = [theirs for _, theirs in distiller.distillation_losses[1].pairs]
    if cached == "whole":  # shuffled, alike on each worker
        batches = cache_teacher(teacher, batches, layers=layers)
    elif cached == "shard":
        cache = cache_teacher(teacher, batches, layers=layers, shard=shard)
        batches = cache.epochs(shuffle=False)
        batches = workers.worker_batches(batches, strategy) if shard[1] > 1 else batches
        options["steps_per_epoch"] = cache.steps()
    log = distiller.fit(batches, **options).history
    weights = [w.tolist() for w in copy.get_weights()]
    if cached == "shard":  # and as a user does it, shuffled
        assert len(distiller.fit(cache, epochs=2, verbose=0).history["loss"]) == 2
    return log, weights


def batches_of(size):
    return tf.data.Dataset.from_tensor_slices(samples(14)).batch(size)


def ports(count):
    """Free ones."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


def start(commands, folder, **options):
    """A worker for each command, all on this machine."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports(len(commands))]}
    started = []
    for index, command in enumerate(commands):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        said = open(folder / f"said-{index}.txt", "w")  # noqa: SIM115 -- the process writes to it
        env = {**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"}
        started.append(subprocess.Popen(command, env=env, stdout=said, stderr=said, cwd=ROOT, **options))
        said.close()
    return started


def end(processes, folder, *, within=180):
    """Their exit codes and what they said."""
    limit = time.monotonic() + within
    try:
        codes = [p.wait(max(1.0, limit - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
    return codes, [(folder / f"said-{i}.txt").read_text() for i in range(len(processes))]


SCRIPT = """
import json, sys
import tensorflow as tf
sys.path.insert(0, "tests")
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import test_multi_worker as t
folder, batchnorm, cached = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
result = t.train(strategy, batchnorm=batchnorm, cached=cached, path=folder + "/run")
index = t.workers.index_and_count(strategy)[0]
with open(f"{folder}/result-{index}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("batchnorm", "cached"), [(False, "no"), (True, "no"), (False, "whole"), (True, "shard")])
def test_two_workers_train_as_one_process_does(batchnorm, cached, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(batchnorm), cached]
    codes, said = end(start([command] * 2, tmp_path), tmp_path)
    assert codes == [0, 0], said
    alone = train(tf.distribute.get_strategy(), batchnorm=batchnorm, cached=cached, path=tmp_path / "alone")
    for index in range(2):
        log, weights = json.loads((tmp_path / f"result-{index}.json").read_text())
        for name in alone[0]:
            np.testing.assert_allclose(log[name], alone[0][name], rtol=1e-4, atol=1e-5, err_msg=name)
        for one, two in zip(alone[1], weights, strict=True):
            np.testing.assert_allclose(two, one, atol=1e-4)


def make_place(folder):
    """images/ of two kinds, a teacher and a student of them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label, kind in enumerate(("left", "right")):
            (folder / "images" / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (16, 16), dtype=np.uint8)
                pixels[:, 8 * label : 8 * label + 8] += 150
                Image.fromarray(pixels).save(folder / "images" / split / kind / f"{i}.png")
    for name, width, classes in (("teacher", 8, 2), ("student", 4, 2), ("five", 4, 5)):
        x = inputs = L.Input((16, 16, 1))
        x = L.BatchNormalization(name="bn")(L.Conv2D(width, 3, strides=2, name="conv")(x))
        x = L.Dropout(0.2, name="drop")(L.GlobalAveragePooling2D(name="gap")(L.ReLU(name="relu")(x)))
        keras.Model(inputs, L.Dense(classes, name="head")(x), name=name).save(folder / f"{name}.keras")
    return folder


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


def tool(place, output, *flags):
    return [sys.executable, "tools/distill.py", f"--teacher={place}/teacher.keras", f"--student={place}/student.keras",
            f"--data_dir={place}/images", "--validation=0.25", "--strategy=multi_worker", "--batch_size=8", "--views=2",
            "--shift=2", "--epochs=30", f"--tensorboard={output}.logs", f"--output={output}.keras", *flags]  # fmt: skip


def kill_one_while_training(place, output, victim):
    """The exit code of the other one, and what it said."""
    processes = start([tool(place, output)] * 2, place)
    states = Path(f"{output}.state") / f"worker-{victim}" / "training" / "training" / f"worker-{victim}"
    before = {p.name for p in states.glob("epoch-*")}
    limit = time.monotonic() + 120
    while {p.name for p in states.glob("epoch-*")} == before and time.monotonic() < limit:
        assert all(p.poll() is None for p in processes), end(processes, place)
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    codes, said = end(processes, place)
    assert codes[victim] == -signal.SIGKILL
    return codes[1 - victim], said[1 - victim]


@pytest.mark.slow
def test_killed_worker_ends_the_others_with_one_message_and_the_same_command_goes_on(place):
    codes, said = end(start([tool(place, place / "alone")] * 2, place), place)
    assert codes == [0, 0] and "validation accuracy" in said[0], said
    assert list(place.glob("alone.logs/train/events*"))
    for victim in (1, 0):
        code, message = kill_one_while_training(place, place / "killed", victim)
        assert code == 1 and message.count("error:") == 1 and "Traceback" not in message, message
        assert "error: Another worker stopped" in message and "same command" in message
        assert not (place / "killed.keras").exists()
    codes, said = end(start([tool(place, place / "killed")] * 2, place), place)
    assert codes == [0, 0], said
    alone, killed = (json.loads((place / f"{name}.history.json").read_text()) for name in ("alone", "killed"))
    assert len(killed["loss"]) == 30
    for name in alone:
        np.testing.assert_allclose(killed[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_shards_hold_each_sample_once_and_make_equal_steps():
    x, y = samples(11)
    teacher = network(6)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)  # neither 11 nor 5 can be divided by 2
    caches = [cache_teacher(teacher, batches, shard=(i, 2)) for i in range(2)]
    assert [len(c) for c in caches] == [6, 5] and [c.steps() for c in caches] == [2, 2]
    assert {c.batch_size for c in caches} == {3}
    seen = np.concatenate([np.concatenate([b[0] for b in c.dataset]) for c in caches])
    assert sorted(seen[:, 0, 0, 0]) == sorted(x[:, 0, 0, 0])
    for cache in caches:
        sizes = [len(b[0]) for b in cache.epochs().take(4)]
        assert sizes == [3, 3, 3, 3]  # the shorter one sees one of its samples twice


def test_shard_is_found_again_on_disk_and_is_not_taken_for_another(tmp_path):
    teacher = network(6)
    batches = tf.data.Dataset.from_tensor_slices(samples(11)).batch(4)
    cache = lambda **options: cache_teacher(teacher, batches, path=tmp_path, data_key="mine", **options)  # noqa: E731
    first = cache(shard=(0, 2))
    assert not first.hit and cache(shard=(0, 2)).hit and cache(shard=(0, 2)).steps() == first.steps()
    assert not cache(shard=(1, 2)).hit and len(cache()) == 11


def test_more_workers_than_samples_are_refused():
    batches = tf.data.Dataset.from_tensor_slices(samples(2)).batch(2)
    with pytest.raises(InputError, match="2 samples for 3 workers"):
        cache_teacher(network(6), batches, shard=(2, 3))


def test_shard_without_the_other_workers_is_refused():
    teacher = network(6)
    distiller = Distiller(network(4), teacher=teacher)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shard = cache_teacher(teacher, tf.data.Dataset.from_tensor_slices(samples(8)).batch(4), shard=(0, 2))
    with pytest.raises(InputError, match="2 shards, and 1 workers"):
        distiller.fit(shard, verbose=0)


TWO_REPLICAS = """
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from orbit_kd.training import workers
x = np.arange(48.0).reshape(8, 3, 2)
batches = tf.data.Dataset.from_tensor_slices((x, {"labels": x[:, 0, 0]})).batch(4)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
seen = [strategy.experimental_local_results(t) for t, _ in workers.worker_batches(batches, strategy)]
assert [[len(t) for t in step] for step in seen] == [[2, 2], [2, 2]], seen
np.testing.assert_array_equal(np.concatenate([t for step in seen for t in step]), x)
print("equal")
"""


def test_batches_of_a_worker_are_divided_among_its_replicas():
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", '{"cluster": {"worker": ["a:1"]}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", '
     '"index": 1}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}'],
)  # fmt: skip
def test_bad_tf_config_is_told(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match="TF_CONFIG") as error:
        workers.strategies.get("multi_worker")()
    assert '"cluster"' in error.value.expected


def test_resume_made_outside_the_scope_of_the_workers_is_refused(tmp_path, monkeypatch):
    distiller = Distiller(network(4), teacher=network(6))
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    resume = Resume(tmp_path)
    monkeypatch.setattr("orbit_kd.training.resume.index_and_count", lambda strategy: (0, 2))  # the model's has two
    with pytest.raises(InputError, match="outside the strategy"):
        distiller.fit(*samples(), callbacks=[resume], verbose=0)


def test_errors_that_are_not_of_a_worker_pass_unchanged():
    with pytest.raises(tf.errors.UnavailableError), workers.watch_workers(tf.distribute.get_strategy()):
        raise tf.errors.UnavailableError(None, None, "of a file system")


def test_spread_synchronizes_batchnorm_at_any_depth():
    inner = keras.Sequential([L.Input((6, 6, 1)), L.BatchNormalization(name="deep")], name="inner")
    inputs = L.Input((8, 8, 1))
    model = keras.Model(inputs, inner(L.BatchNormalization(name="outer")(L.Conv2D(1, 3)(inputs))))
    copy = keras.Model.from_config(workers._synchronized(model.get_config()))
    assert copy.get_layer("outer").synchronized and copy.get_layer("inner").get_layer("deep").synchronized
    assert not model.get_layer("outer").synchronized
    assert workers.copy_into(model, tf.distribute.get_strategy()) is model
