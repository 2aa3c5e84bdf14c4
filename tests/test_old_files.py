"""Model files from before the library was put into packages: sparse, clustered and quantization-aware ones still load.

`files/` was written by commit 9b4161d: a small network that was wrapped, trained for an epoch and saved with
`model.save(path, save_format="keras")`, and what it gave for the first four inputs.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import orbit_kd as okd

FILES = Path(__file__).parent / "files"
X = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
STRIP = {"sparse": okd.strip, "clustered": okd.strip_clusters, "quantized": okd.strip_quantization}


def expected(name):
    with np.load(FILES / "outputs.npz") as outputs:
        return outputs[name]


def kernels(model):
    return [v.numpy() for layer in model.layers for v in layer.weights if "kernel" in v.name]


def distinct(kernel):
    """The number of distinct values in each output channel."""
    return [len(np.unique(channel)) for channel in kernel.reshape(-1, kernel.shape[-1]).T]


@pytest.mark.parametrize("name", STRIP)
def test_it_gives_what_it_gave(name):
    model = okd.load_model(FILES / f"{name}.keras")
    np.testing.assert_allclose(model(X[:4], training=False).numpy(), expected(name), atol=1e-5)


@pytest.mark.parametrize("name", STRIP)
def test_it_strips(name):
    plain = STRIP[name](okd.load_model(FILES / f"{name}.keras"))
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"tf_keras"}
    if name != "quantized":  # a float model has no rounding, so that its outputs are near, not equal
        np.testing.assert_allclose(plain(X[:4], training=False).numpy(), expected(name), atol=1e-5)


@pytest.mark.parametrize("name", STRIP)
def test_it_trains_on_with_its_zeros_and_its_clusters(name):
    model = okd.load_model(FILES / f"{name}.keras")
    before = kernels(STRIP[name](model))
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, np.ones((16, 3)), batch_size=16, epochs=1, verbose=0)
    after = kernels(STRIP[name](model))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
    if name == "sparse":
        assert [float((k != 0).mean()) for k in after] == [0.5, 0.5]
    if name == "clustered":
        assert max(max(distinct(k)) for k in after) <= 4


# in an order in which none loads what registers the classes of the next
REGISTERED_BY = {
    "sparse": "orbit_kd.sparsity.layers",
    "clustered": "orbit_kd.clustering.layer",
    "quantized": "orbit_kd.quantization.layers",
}


def test_a_process_that_imports_orbit_kd_alone_loads_them(tmp_path):
    np.save(tmp_path / "x.npy", X[:4])
    code = (
        "import orbit_kd as okd, sys\n"
        f"for name, module in {REGISTERED_BY}.items():\n"
        "    assert module not in sys.modules\n"
        f"    model = okd.load_model({str(FILES)!r} + f'/{{name}}.keras')\n"
        "    import numpy as np\n"
        f"    y = model(np.load({str(tmp_path / 'x.npy')!r}), training=False)\n"
        f"    np.save({str(tmp_path)!r} + f'/{{name}}.npy', y)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for name in STRIP:
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected(name), atol=1e-5)
