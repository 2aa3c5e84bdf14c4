"""N:M groups: how channels are cut, and the names of patterns."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.exporters.packed.packing import pack, unpack
from orbit_kd.exporters.vela.twins import first_bad_group
from orbit_kd.sparsity.patterns import NofM, get_pattern
from orbit_kd.support.n_of_m import grouped, nonzeros, parse, ungrouped

KERNELS = hnp.arrays(
    np.int8,
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9),
    elements=st.integers(-2, 2),  # many zeros, and many weights of one size
)


def by_hand(row: np.ndarray, m: int) -> list[list[int]]:
    """The groups of one row of channels, cut one after the other."""
    pieces = [row[i : i + m].tolist() for i in range(0, len(row), m)]
    return [piece + [0] * (m - len(piece)) for piece in pieces]


@settings(deadline=None)
@given(KERNELS, st.integers(1, 10), st.data())
def test_an_axis_is_cut_into_aligned_groups_filled_up_with_zeros(kernel, m, data):
    axis = data.draw(st.integers(-kernel.ndim, kernel.ndim - 1))
    rows = np.moveaxis(kernel, axis, -1)
    groups = grouped(kernel, m, axis=axis)
    for position in np.ndindex(rows.shape[:-1]):
        assert groups[position].tolist() == by_hand(rows[position], m)
        counts = [sum(v != 0 for v in group) for group in by_hand(rows[position], m)]
        assert nonzeros(kernel, m, axis=axis)[position].tolist() == counts
    np.testing.assert_array_equal(ungrouped(groups, rows.shape[-1]), rows)


@settings(deadline=None)
@given(KERNELS, st.integers(2, 8), st.data())
def test_all_that_cut_groups_agree_on_which_kernels_keep_the_pattern(kernel, m, data):
    n = data.draw(st.integers(1, m - 1))
    keeps = all(
        sum(v != 0 for v in group) <= n for row in kernel.reshape(-1, kernel.shape[-1]) for group in by_hand(row, m)
    )
    try:
        np.testing.assert_array_equal(unpack(pack(kernel, n=n, m=m)), kernel)
        packs = True
    except InputError:
        packs = False
    assert packs == keeps
    if (n, m) == (2, 4):
        assert (first_bad_group(kernel) is None) == keeps
    # A training mask holds the short last group to its share, which is stricter.
    if kernel.shape[-1] % m == 0:
        assert (NofM(n, m).violation(kernel, axis=-1) is None) == keeps


@settings(deadline=None, max_examples=40)
@given(KERNELS, st.sampled_from([(2, 4), (1, 4), (4, 8), (3, 5)]), st.data())
def test_a_mask_keeps_the_pattern_along_its_axis_also_among_equals(kernel, pattern, data):
    axis = data.draw(st.integers(-kernel.ndim, -1))
    magnitudes = tf.constant(np.abs(kernel), tf.float32)
    mask = NofM(*pattern).mask(magnitudes, axis=axis, progress=tf.constant(1.0)).numpy()
    assert NofM(*pattern).violation(kernel * mask.astype(np.int8), axis=axis) is None
    assert nonzeros(mask, pattern[1], axis=axis).max() <= pattern[0]


def test_groups_of_no_rows_have_the_shape_of_the_others():
    assert grouped(np.zeros((0, 5)), 4).shape == (0, 2, 4)
    assert ungrouped(grouped(np.zeros((0, 5)), 4), 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("2:4", (2, 4)), ("8:16", (8, 16)), ("uhp", (4, 8)), ("uhp:16", (8, 16)), ("uhp:2", (1, 2))],
)
def test_patterns_have_one_set_of_names_for_training_and_for_files(text, pattern, tmp_path):
    assert parse(text) == pattern
    assert (get_pattern(text).n, get_pattern(text).m) == pattern
    sparse = okd.strip(okd.sparsify(tiny(), text, schedule="one_shot"))
    images = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")
    path = okd.export(sparse, "tflite_int8", path=tmp_path / "m.tflite", calibration=images).path
    details = okd.export(path, f"packed:{text}", path=tmp_path / "packed").details
    assert details["pattern"] == f"{pattern[0]}:{pattern[1]}" and details["packed_layers"] == 1


@pytest.mark.parametrize("text", ["", "4", "2:", "2:4:8", "uhp:", "uhp:3", "uhp:0", "2 : 4", "magnitude"])
def test_other_text_is_no_pattern(text):
    assert parse(text) is None


def test_an_odd_group_cannot_be_halved(tmp_path):
    with pytest.raises(InputError, match="uhp:3"):
        okd.sparsify(tiny(), "uhp:3")
    with pytest.raises(InputError, match="no option 'group_size'"):
        okd.sparsify(tiny(), "uhp:16", group_size=4)


def tiny():
    return keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8, name="dense")])
