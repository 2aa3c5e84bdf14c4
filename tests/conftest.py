"""Shared test set-up: quiet TensorFlow, fixed seeds, the real-data folder."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# as many workers as cores: threads of each on the other's core would only wait for one another
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# They come first, so that no worker is left with one of them when the others are done.
LONGEST = (
    "surgery", "reference_models", "pipeline", "search", "field_convert", "distiller", "quantization", "scan", "tasks",
    "stages_of_settings", "tools", "surface_models", "ratios", "tflite_variants",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _no_tracebacks_of_operators():
    """TensorFlow notes for each operator of a graph the lines of Python that made it, for its errors: with pytest's own
    among them that takes an eighth of the time of a trace.
    """
    from tensorflow.python.util import tf_stack

    here = tf_stack.extract_stack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf_stack, "extract_stack", lambda stacklevel=1: here)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_optimizer_of_graphs():
    """Grappler rewrites each traced function before it runs, which pays for networks larger than those of tests: a
    sixth of the processor time. The converter to TFLite has its own passes.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same random state."""
    import tf_keras as keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with mstar10/ and aid15a/; tests that need it skip where there is none."""
    folder = os.environ.get("ORBIT_KD_DATA")
    if not folder or not Path(folder, "mstar10").is_dir():
        pytest.skip("ORBIT_KD_DATA is not set to a folder with mstar10/: real-data test not run")
    return Path(folder)


@pytest.fixture(scope="session")
def teachers(real_data: Path) -> Path:
    """The folder with the trained teachers, beside the data folder."""
    folder = real_data.parent / "models"
    if not (folder / "vgg16_mstar64.keras").is_file():
        pytest.skip("no models/ folder beside ORBIT_KD_DATA: real-teacher test not run")
    return folder


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs a tool in this process, which has loaded TensorFlow already."""

    def run(name: str, *flags: str) -> subprocess.CompletedProcess:
        from absl.flags import FLAGS

        log, before = logging.getLogger("orbit_kd"), set(FLAGS)
        handlers, propagate, level = log.handlers[:], log.propagate, log.level
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *flags])
        code, said = 0, ""
        try:
            runpy.run_path(str(Path(__file__).parent.parent / "tools" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code, said = (1, stop.code) if isinstance(stop.code, str) else (stop.code or 0, "")
        finally:
            for flag in set(FLAGS) - before:
                delattr(FLAGS, flag)
            FLAGS.unparse_flags()
            # or later tests would log to this test's stderr, which is closed by then
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
        out = capsys.readouterr()
        return subprocess.CompletedProcess(flags, code, out.out, out.err + said)

    return run
