"""The convolutions in C against TFLite's arithmetic in numpy, and the formats of their weights."""

import shutil

import numpy as np
import pytest
from conv_reference import build, convolve, random_layer, run
from hypothesis import given, settings
from hypothesis import strategies as st

from orbit_kd.exporters.c99 import packing

PATTERNS = ("dense", "csr", "2:4", "1:4", "4:8", "1:8", "2:4:shared", "1:4:shared")
FORMATS = ("dense", "nm", "shared", "csr")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("no C compiler `cc` (Debian package gcc): kernels not compiled")
    return build(tmp_path_factory.mktemp("kernels"))


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_every_format_gives_what_tflite_computes(library, data):
    pattern = data.draw(st.sampled_from(PATTERNS))
    kernel = data.draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (2, 3), (5, 1), (1, 4)]))
    same = data.draw(st.booleans())
    stride, dilation = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2)]))
    size = (data.draw(st.integers(9, 11)), data.draw(st.integers(7, 18)))
    if same and data.draw(st.booleans()):
        size = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))  # dense layers, and rows of few pixels
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    layer = random_layer(
        rng, in_c=data.draw(st.integers(1, 19)), out_c=data.draw(st.integers(1, 3)), size=size, kernel=kernel,
        stride=stride, dilation=dilation, same=same, pattern=pattern,
    )  # fmt: skip
    x = rng.integers(-128, 128, (*size, layer["ints"]["in_c"])).astype(np.int8)
    expected = convolve(layer, x)
    names = packing.fitting(layer["weights"])
    assert "dense" in names
    for name in names:
        np.testing.assert_array_equal(run(library, layer, x, packing.formats.get(name)), expected, err_msg=name)
