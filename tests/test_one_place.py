"""What stands in one file of the library, so that it is right or wrong once."""

from pathlib import Path

import pytest

import orbit_kd

ROOT = Path(orbit_kd.__file__).parent


@pytest.mark.parametrize(
    ("what", "text", "file"),
    [
        ("digests", "hashlib.sha256", "support/digests.py"),
        ("the reader of the flatbuffer", "InitFromPackedBuf", "tflite/reader.py"),
        ("names of operator codes", "max(code.builtinCode", "tflite/reader.py"),
        ("the writer of the flatbuffer", "flatbuffers.Builder", "tflite/builder.py"),
        ("the parser of N:M", r'r"(\d+):(\d+)"', "support/n_of_m.py"),
    ],
)
def test_it_stands_in_one_file(what, text, file):
    assert [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if text in p.read_text()] == [file], what
