"""The README's code runs as it stands there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image

import orbit_kd as okd
from orbit_kd.channels.ids import channel_rules

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


class MyScale(keras.layers.Layer):
    """The layer that the README adds a rule for."""

    def build(self, shape):
        self.gamma = self.add_weight("gamma", (shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gamma


@pytest.fixture(scope="module")
def names():
    """What the README's extension blocks define, after running each of them."""
    found = {"okd": okd, "np": np, "tf": tf, "keras": keras, "Path": Path, "MyScale": MyScale}
    registries = (channel_rules, okd.importance.criteria, okd.distillation.distillation_losses,
                  okd.sparsity_patterns.patterns, okd.exporters.targets)  # fmt: skip
    with contextlib.ExitStack() as stack:
        for registry in registries:  # what the blocks register is no business of the files that this worker runs next
            key = next(iter(registry))
            stack.enter_context(registry.temporary(key, registry.get(key)))
        for block in BLOCKS[1:]:
            assert len(block.strip().splitlines()) < 10
            exec(block, found)
        yield found


def test_a_rule_from_outside_prunes_through_its_layer(names):
    from oracle import difference, randomize

    image = keras.Input((8, 8, 3))
    x = MyScale()(keras.layers.Conv2D(8, 3)(image))
    model = randomize(keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x))))
    plan = okd.plan_removal(model, ratio=0.5)
    student = okd.remove_filters(model, plan)
    assert student.layers[2].gamma.shape == (4,) and difference(model, student, plan) <= 1e-4


def test_a_criterion_a_loss_a_pattern_and_a_target_from_outside(names, tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 4)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    assert okd.plan_removal(model, criterion="mean_abs", ratio=0.5).groups[0].after == 4
    assert okd.sparsity_table(okd.sparsify(model, "quarter"))["conv2d"].density == 0.25
    distiller = okd.Distiller(model, teacher=model, losses=["logits_mse"])
    distiller.compile("sgd", "mse")
    distiller.fit(np.ones((4, 8, 8, 4)), np.ones((4, 2)), verbose=0)
    with pytest.warns(UserWarning, match="HDF5"):
        assert okd.export(model, "keras_h5", path=tmp_path / "m.h5").bytes > 0


def test_the_workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, kind in enumerate(("dark", "light")):
            (tmp_path / "images" / split / kind).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(90 * label, 160 + 90 * label, (72, 72), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / kind / f"{i}.png")
    okd.networks.build("vgg16", (64, 64, 1), classes=2, width=0.125).save("teacher.keras")
    exec(BLOCKS[0].replace("epochs=30", "epochs=1"), {})
    assert okd.Report.load("out").artifacts[1]["target"] == "tflite_int8"
