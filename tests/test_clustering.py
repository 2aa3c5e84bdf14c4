"""cluster and strip_clusters: few values a kernel, zeros kept, the source model left alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.clustering.cluster import cluster, strip_clusters
from orbit_kd.clustering.kmeans import k_means
from orbit_kd.clustering.layer import ClusteredLayer
from orbit_kd.distillation import Distiller
from orbit_kd.errors import InputError
from orbit_kd.exporters import export
from orbit_kd.models.copies import named_layers
from orbit_kd.models.saving import load_model, save_model
from orbit_kd.quantization.aware import quantize_aware
from orbit_kd.sparsity.sparsify import keep_zeros, sparsify, strip
from orbit_kd.tflite.nm_check import check_n_m

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6, 6, 4)).astype("float32")
    return x, (x.mean((1, 2)) @ rng.normal(size=(4, 5))).argmax(1)


def net():
    """Nested, with layers that tfmot's clustering does not know, one depthwise and one too small to cluster."""
    block = keras.Sequential([L.Input((6, 6, 8)), L.Conv2D(8, 3, name="inner"), L.BatchNormalization()], name="block")
    image = L.Input((6, 6, 4))
    x = L.PReLU(shared_axes=[1, 2])(L.Conv2D(8, 3, padding="same", name="conv")(L.Rescaling(0.5)(image)))
    x = block(L.DepthwiseConv2D(3, padding="same", name="depthwise")(x * 1.5))
    x = L.Conv2DTranspose(6, 3, name="transposed")(x)
    return keras.Model(image, L.Dense(5, name="logits")(L.GlobalAveragePooling2D()(x)))


def sparse_net():
    return strip(sparsify(net(), "2:4"))


def fit(model, **kwargs):
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), LOSS, run_eagerly=True)  # faster than to trace it
    model.fit(*data(), epochs=2, verbose=0, **kwargs)


def clustered_layers(model):
    return {
        name: layer
        for name, layer in named_layers(model)
        if isinstance(layer, ClusteredLayer) and layer.clusters is not None
    }


def kernels(model):
    return {name: layer.kernel.numpy() for name, layer in clustered_layers(model).items()}


def values_of(kernel, axis):
    """Most distinct values in a slice along an axis."""
    return max(len(np.unique(row)) for row in np.moveaxis(kernel, axis, 0))


@pytest.mark.parametrize("per_channel", [True, False])
def test_training_keeps_few_values_and_every_zero_and_moves_the_values(per_channel):
    plain = sparse_net()
    model = cluster(plain, clusters=5, per_channel=per_channel)
    before = kernels(model)
    assert set(before) == {"conv", "block/inner", "transposed", "logits"}
    fit(model)
    for name, kernel in kernels(model).items():
        axis = -2 if name == "transposed" else -1
        assert 2 < (values_of(kernel, axis) if per_channel else len(np.unique(kernel))) <= 5
        np.testing.assert_array_equal(kernel == 0, before[name] == 0)
        assert (kernel == 0).mean() == 0.5 and (kernel != before[name]).any()


def test_who_shares_a_value_goes_on_sharing_it():
    model = cluster(net(), clusters=4, per_channel=False)
    before = kernels(model)["block/inner"]
    fit(model)
    after = kernels(model)["block/inner"]
    for value in np.unique(before):
        assert len(np.unique(after[before == value])) == 1


def test_without_preserve_sparsity_zero_is_a_value_like_any_other():
    model = cluster(sparse_net(), clusters=4, preserve_sparsity=False)
    fit(model)
    assert all(layer.distinct_values <= 4 for layer in clustered_layers(model).values())
    assert (kernels(model)["block/inner"] != 0).all()


def test_the_source_model_stays_bit_for_bit_as_it_was():
    plain = sparse_net()
    before = [w.copy() for w in plain.get_weights()]
    model = cluster(plain)
    fit(model)
    for a, b in zip(before, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not {id(v) for v in plain.variables} & {id(v) for v in model.variables}


def test_a_distiller_trains_it():
    model = cluster(sparse_net(), clusters=8)
    before = kernels(model)
    distiller = Distiller(model, teacher=net())
    distiller.compile("adam", LOSS)
    distiller.fit(*data(), epochs=1, verbose=0)
    for name, layer in clustered_layers(model).items():
        assert layer.distinct_values <= 8
        np.testing.assert_array_equal(layer.kernel.numpy() == 0, before[name] == 0)


def test_callbacks_and_files_see_clustered_kernels_and_training_goes_on(tmp_path):
    model = cluster(sparse_net(), clusters=6)
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    keep = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    fit(model, callbacks=[stop, keep])
    early = load_model(tmp_path / "1.keras")
    loaded = load_model(save_model(model, tmp_path / "c.keras"))
    x, _ = data()
    np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
    fit(loaded)
    for m in (early, model, loaded):
        for name, kernel in kernels(m).items():
            assert clustered_layers(m)[name].distinct_values <= 6
            assert (kernel == 0).mean() == 0.5


def test_strip_gives_plain_layers_whose_int8_file_holds_few_values_a_channel(tmp_path):
    model = cluster(sparse_net(), clusters=6)
    fit(model)
    plain = strip_clusters(model)
    x, _ = data()
    np.testing.assert_array_equal(plain(x).numpy(), model(x).numpy())
    assert not any(isinstance(layer, ClusteredLayer) for _, layer in named_layers(plain))
    path = export(plain, "tflite_int8", path=tmp_path / "m.tflite", calibration=x).path
    assert all(check.ok for check in check_n_m(path))
    before = plain.get_layer("logits").kernel.numpy() == 0
    fit(plain)
    np.testing.assert_array_equal(plain.get_layer("logits").kernel.numpy() == 0, before)


def test_strip_finds_an_overwritten_kernel():
    model = cluster(net(), clusters=4)
    layer = model.get_layer("conv")
    layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))
    with pytest.raises(InputError, match=r"'conv' holds 36 distinct values in a channel"):
        strip_clusters(model)


def test_a_kernel_with_fewer_weights_than_clusters_is_left_alone():
    assert set(clustered_layers(cluster(net(), clusters=16))) == {"conv", "block/inner", "transposed"}
    assert set(clustered_layers(cluster(net(), clusters=16, exclude=["conv", "block/*"]))) == {"transposed"}


def test_layers_left_alone_keep_their_zeros_too():
    plain = sparse_net()
    model = cluster(plain, clusters=16, exclude=["conv"])
    before = {name: plain.get_layer(name).kernel.numpy() == 0 for name in ("conv", "logits")}
    fit(model)
    stripped = strip_clusters(model)
    for name, zeros in before.items():
        np.testing.assert_array_equal(stripped.get_layer(name).kernel.numpy() == 0, zeros)
        assert zeros.mean() == 0.5 and len(np.unique(stripped.get_layer(name).kernel.numpy())) > 16 * 0.9


def test_what_cannot_be_clustered_is_refused():
    for clusters in (1, 257, 2.5):
        with pytest.raises(InputError, match="2 to 256"):
            cluster(net(), clusters=clusters)
    with pytest.raises(InputError, match="wrapped by SparseLayer"):
        cluster(sparsify(net(), "2:4"))
    with pytest.raises(InputError, match="wrapped by ClusteredLayer"):
        cluster(cluster(net()))
    with pytest.raises(InputError, match=r"strip_clusters\(model\)"):
        quantize_aware(cluster(net()))
    with pytest.raises(InputError, match="does not have"):
        cluster(net(), exclude=["nope"])
    image = L.Input((6, 6, 4))
    with pytest.raises(InputError, match=r"No kernel can be clustered:\n    depthwise: depthwise"):
        cluster(keras.Model(image, L.DepthwiseConv2D(3, name="depthwise")(image)))
    with pytest.raises(InputError, match="holds no clustered layer"):
        strip_clusters(net())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(2, 16), st.integers(0, 2**16), st.booleans(), st.booleans())
def test_k_means_puts_every_weight_into_the_nearest_cluster(size, clusters, seed, ties, keep_zeros):
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(2, size).astype("float32")
    weights = np.round(weights) if ties else weights
    index = k_means(weights, clusters, keep_zeros=keep_zeros)
    assert index.shape == (size,) and index.min() >= 0 and index.max() < clusters
    if keep_zeros:
        np.testing.assert_array_equal(index == 0, weights == 0)
        weights, index = weights[index > 0], index[index > 0]
    if len(np.unique(weights)) <= clusters - keep_zeros:
        assert all(len(np.unique(weights[index == i])) == 1 for i in np.unique(index))
    used = np.unique(index)
    means = np.array([weights[index == i].mean(dtype=np.float64) for i in used])
    assert (np.diff(means) > 0).all()
    # Clusters are runs of the sorted weights.
    for below, above in itertools.pairwise(used):
        assert weights[index == below].max() < weights[index == above].min()


def test_the_clusters_travel_with_the_weights_and_other_tools_do_not_copy_the_wrappers():
    clustered, other = cluster(net(), clusters=4), cluster(net(), clusters=4)
    other.set_weights([np.zeros_like(w) for w in other.get_weights()])
    other.set_weights(clustered.get_weights())
    x = data()[0]
    np.testing.assert_array_equal(other(x), clustered(x))
    for name, layer in clustered_layers(clustered).items():
        np.testing.assert_array_equal(layer.indices, clustered_layers(other)[name].indices)
    with pytest.raises(InputError, match="strip_clusters"):
        keep_zeros(clustered)
