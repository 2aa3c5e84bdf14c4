"""Keys under which results are found again."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orbit_kd.support.digests import ArrayDigest, digest

ARRAYS = hnp.arrays(
    st.sampled_from([np.int8, np.uint16, np.float32, np.bool_]), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)
)


def test_of_json_values_it_is_the_digest_of_their_text():
    text = b'[{"epochs": 3, "names": ["a", "b"]}, null, 0.5]'
    assert digest({"names": ["a", "b"], "epochs": 3}, None, 0.5) == hashlib.sha256(text).hexdigest()


@given(ARRAYS)
def test_an_array_counts_with_its_type_shape_and_values(array):
    found = digest("a", [array])
    assert found == digest("a", [array.copy(order="F")])
    others = [array[None], array.astype(np.complex64), array.tobytes(), array.tolist()]
    if array.size:
        changed = array.copy()
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        others.append(changed)
    assert found not in [digest("a", [other]) for other in others]


def test_values_do_not_run_into_each_other():
    a, b = np.arange(3, dtype=np.int8), np.arange(3, 5, dtype=np.int8)
    assert len({digest(a, b), digest(b, a), digest([a, b]), digest(np.concatenate([a, b])), digest(a), digest()}) == 6
    assert digest("ab", "c") != digest("a", "bc")


def test_types_that_only_tensorflow_has_and_single_numbers():
    tf = pytest.importorskip("tensorflow")
    half = tf.constant([1.0, 2.0], tf.bfloat16).numpy()
    assert digest(half) == digest(half.copy()) != digest(half.astype(np.float16))
    assert digest(np.float32(1)) == digest(np.array(1, np.float32)) != digest(1.0)


def test_texts_count_by_what_they_say():
    def texts(last: bytes) -> np.ndarray:
        return np.array([b"ship", b"".join([last])], object)  # new objects each time

    assert digest(texts(b"car")) == digest(texts(b"car")) != digest(texts(b"bus"))


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()])], ids=["object", "set", "array of objects"])
def test_what_has_no_bytes_of_its_own_is_refused(value):
    with pytest.raises(TypeError, match="no digest"):
        digest(value)


@given(hnp.arrays(np.float32, (12, 2)), st.integers(0, 12))
def test_an_array_in_pieces_has_one_digest_wherever_it_is_cut(array, cut):
    whole, pieces = ArrayDigest(), ArrayDigest()
    whole.add(array)
    for piece in (array[:cut], array[cut:]):
        pieces.add(piece)
    assert str(whole) == str(pieces) == hashlib.sha256(array.tobytes()).hexdigest()
