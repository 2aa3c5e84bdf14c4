"""How hard is sar_sim? Test accuracy of logistic regression on the pixels and of a small VGG.

    python benchmarks/sar_sim_difficulty.py

The linear model is tuned: standardized pixels, and the weight decay that does best on validation. The VGG
is VGG-16 at a quarter of its width with the average pooling head, 15 epochs, crops moved by up to 4 pixels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import tf_keras as keras

from orbit_kd import datasets
from orbit_kd.datasets.augment import Augment
from orbit_kd.models import networks

RESULTS = Path(__file__).parent / "results" / "sar_sim_difficulty.jsonl"
DECAYS = (1e-2, 1e-1, 1.0, 10.0)
EPOCHS = 15


def compiled(model: keras.Model, rate: float, steps: int) -> keras.Model:
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def linear(data: datasets.Data) -> float:
    """Test accuracy of multinomial logistic regression, its weight decay chosen on validation."""

    def flat(dataset) -> tuple[np.ndarray, np.ndarray]:
        x, y = zip(*dataset.as_numpy_iterator(), strict=True)
        return np.concatenate(x).reshape(sum(map(len, y)), -1), np.concatenate(y)

    (x, y), val, test = map(flat, (data.train, data.val, data.test))
    mean, std = x.mean(0), x.std(0) + 1e-3
    found = []
    for decay in DECAYS:
        regularizer = keras.regularizers.l2(decay)
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(10, kernel_regularizer=regularizer)])
        compiled(model, 1e-3, 40 * data.steps()).fit((x - mean) / std, y, batch_size=64, epochs=40, verbose=0)
        scores = [model.evaluate((a - mean) / std, b, verbose=0)[1] for a, b in (val, test)]
        print(f"  linear, decay {decay:g}: val {scores[0]:.3f}, test {scores[1]:.3f}", flush=True)
        found.append(scores)
    return max(found)[1]


def vgg(data: datasets.Data, seed: int = 0) -> float:
    """Test accuracy of the small VGG."""
    keras.utils.set_random_seed(seed)
    model = networks.vgg16(data.shape, classes=10, width=0.25, head="average")
    steps = data.steps(32)
    compiled(model, 1e-3, EPOCHS * steps).fit(
        data.epochs(seed=seed, augment=Augment(shift=4), batch_size=32),
        steps_per_epoch=steps,
        epochs=EPOCHS,
        validation_data=data.val,
        verbose=2,
    )
    return model.evaluate(data.test, verbose=0)[1]


def main() -> None:
    data = datasets.load("sar_sim")
    result = {"linear": linear(data)}
    start = time.perf_counter()
    result |= {"vgg": vgg(data), "vgg_seconds": round(time.perf_counter() - start)}
    print(f"sar_sim test accuracy: linear {result['linear']:.1%}, VGG {result['vgg']:.1%} ({result['vgg_seconds']} s)")
    with RESULTS.open("a", encoding="utf-8") as f:
        f.write(json.dumps({**result, "date": time.strftime("%Y-%m-%d")}) + "\n")


if __name__ == "__main__":
    main()
