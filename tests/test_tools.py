"""The command-line tools: help at once, one clear message for bad input, exit code 1, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from PIL import Image
from small_networks import small_resnet

import orbit_kd
from orbit_kd.exporters import targets
from orbit_kd.models import networks

ROOT = Path(__file__).parent.parent


def process(name: str, *flags: str) -> subprocess.CompletedProcess:
    """Runs a tool as a user does."""
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with images/, a teacher for them, and broken things beside."""
    folder = tmp_path_factory.mktemp("tools")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, kind in enumerate(("left", "right")):
            (folder / "images" / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (16, 16), dtype=np.uint8)
                pixels[:, 8 * label : 8 * label + 8] += 150
                Image.fromarray(pixels).save(folder / "images" / split / kind / f"{i}.png")
    small_resnet((16, 16, 1), classes=2).save(folder / "teacher.keras")
    small_resnet((16, 16, 1), classes=5).save(folder / "five.keras")
    small_resnet((16, 16, 3), classes=2).save(folder / "colour.keras")
    image = keras.Input((16, 16, 1))
    x = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Lambda(lambda t: t / 255)(image)))
    keras.Model(image, x).save(folder / "lambda.keras")
    (folder / "text.keras").write_text("no model")
    (folder / "empty").mkdir()
    broken = folder / "broken" / "train"
    for kind in ("left", "right"):
        (broken / kind).mkdir(parents=True)
        for i in range(4):
            (broken / kind / f"{i}.png").write_bytes((folder / "images/train" / kind / f"{i}.png").read_bytes())
    (broken / "left" / "9.png").write_bytes(b"\x89PNG no image")
    return folder


@pytest.mark.parametrize(
    "name",
    ["train", "sensitivity", "prune", "distill", "compress", "evaluate", "export", "inspect_model", "uplink", "verify"],
)
def test_help_answers_at_once_and_explains_each_flag(name):
    start = time.monotonic()
    result = process(name, "--help")
    assert time.monotonic() - start < 5  # about 0.1 s on a quiet machine; loading TensorFlow alone takes 3 to 10
    assert name in result.stdout and "--" in result.stdout and "python tools/" in result.stdout
    assert "tensorflow" not in result.stderr.lower()


BAD = {
    "no data folder": (["--data_dir={p}/nowhere"], "nowhere"),
    "empty data folder": (["--data_dir={p}/empty"], "empty"),
    "corrupt image": (["--data_dir={p}/broken"], "9.png"),
    "class count": (["--teacher={p}/five.keras"], "5 outputs"),
    "unknown task": (["--task=magic"], "Unknown task 'magic'"),
    "task of another head": (["--task=segmentation"], "holds class folders, and no labels for segmentation"),
    "channels": (["--teacher={p}/colour.keras"], "--channels"),
    "image size": (["--crop=12"], "12x12"),
    "no model": (["--teacher={p}/text.keras"], "no Keras model file"),
    "code in the model": (["--teacher={p}/lambda.keras"], "--trust_model_code"),
    "unwritable workdir": (["--workdir=/proc/nowhere"], "/proc/nowhere"),
    "ratio": (["--ratio=1"], "ratio=1.0"),
    "criterion": (["--criterion=magic"], "Unknown criterion 'magic'"),
    "pattern": (["--pattern=magic"], "magic"),
    "target": (["--targets=magic"], "Unknown export target 'magic'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_nothing(case, place, tmp_path, tool):
    flags, said = BAD[case]
    flags = [
        f"--teacher={place}/teacher.keras",
        f"--data_dir={place}/images",
        f"--workdir={tmp_path}/run",
        "--epochs=1",
        *[f.format(p=place) for f in flags],
    ]
    result = (process if case == "class count" else tool)("compress", *flags)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and said in result.stderr
    assert "expected:" in result.stderr and "to do:" in result.stderr
    assert not (tmp_path / "run").exists()


def test_compress_from_the_command_line_and_the_installed_script(place, tmp_path, tool):
    flags = [f"--teacher={place}/teacher.keras", f"--data_dir={place}/images", f"--workdir={tmp_path}/run", "--views=1",
             "--epochs=1", "--batch_size=8", "--calibration=8", "--shift=2", "--validation=0.25"]  # fmt: skip
    result = tool("compress", *flags)
    assert result.returncode == 0, result.stderr
    assert "fewer bytes" in result.stdout and (tmp_path / "run/report.html").is_file()
    verified = tool("verify", f"{tmp_path}/run")
    assert "files are as the manifest says; not signed" in verified.stdout, verified.stderr
    script = Path(sys.executable).with_name("orbit-kd")
    again = subprocess.run([script, "compress", *flags], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "distill" not in again.stderr  # all stages were done


def test_sensitivity_writes_its_files_and_says_the_ratios_that_prune_takes(place, tmp_path, tool):
    flags = [f"--model={place}/teacher.keras", f"--data_dir={place}/images", "--validation=0.25", "--ratios=0.5,0.9",
             f"--output={tmp_path}/scan", "--keep_macs=0.4"]  # fmt: skip
    result = tool("sensitivity", *flags)
    assert result.returncode == 0, result.stderr
    assert "stem_conv" in result.stdout and all((tmp_path / f"scan.{e}").is_file() for e in ("json", "csv", "png"))
    ratios = result.stdout.strip().splitlines()[-1].split()
    pruned = tool("prune", f"--model={place}/teacher.keras", *ratios)
    assert pruned.returncode == 0 and "MACs" in pruned.stdout, pruned.stderr
    for bad, said in (("--ratios=a", "--ratios=a"), ("--ratios=1.5", "1.5"), ("--criterion=magic", "magic")):
        result = tool("sensitivity", *flags, bad)
        assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr


def test_train_inspect_export_evaluate(place, tmp_path, tool):
    flags = [f"--data_dir={place}/images", "--validation=0.25"]
    teacher = tmp_path / "t.keras"
    with networks.networks.temporary("small_resnet", small_resnet):
        result = tool("train", *flags, "--network=small_resnet", "--width=0.5", "--epochs=1", f"--output={teacher}")
    assert result.returncode == 0 and "test accuracy" in result.stdout, result.stderr
    result = tool("inspect_model", f"--model={teacher}")
    assert result.returncode == 0 and "coupled groups" in result.stdout and "stem_conv" in result.stdout, result.stderr
    result = tool("export", *flags, f"--model={teacher}", f"--output={tmp_path}/out", "--calibration=8")
    assert result.returncode == 0 and "t_tflite_int8.tflite" in result.stdout, result.stderr
    result = tool("evaluate", *flags, f"--models={tmp_path}/out/t_tflite_int8.tflite", f"--teacher={teacher}")
    assert result.returncode == 0 and "Accuracy" in result.stdout, result.stderr


def test_a_missing_flag_says_which(tool):
    result = tool("train", "--data=sar_sim")
    assert result.returncode == 1 and "--output is missing" in result.stderr and "Traceback" not in result.stderr
    assert os.sep not in result.stdout


def test_prune_makes_a_plan_that_can_be_edited_and_applied(place, tmp_path, tool):
    flags = [f"--model={place}/teacher.keras", f"--plan={tmp_path}/plan.json"]
    result = tool("prune", *flags)
    assert result.returncode == 1 and "how much" in result.stderr
    result = tool("prune", *flags, "--keep_params=0.5")
    assert result.returncode == 0 and "params:" in result.stdout, result.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    group = next(g for g in plan["groups"] if g["name"] == "stage2_block1_1_conv")
    group["keep"] = group["keep"][:1]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    result = tool("prune", *flags, f"--output={tmp_path}/small.keras")
    assert result.returncode == 0, result.stderr
    small = keras.models.load_model(tmp_path / "small.keras", compile=False)
    assert small.get_layer("stage2_block1_1_conv").filters == 1


def test_export_notes_classes_and_preprocessing_in_the_file(tmp_path, tool):
    from orbit_kd.exporters import read_metadata

    for k, name in enumerate(("ship", "sea")):
        for split in ("train", "test"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(10 * k + i).integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    small_resnet((8, 8, 1), classes=2).save(tmp_path / "m.keras")
    done = tool("export", f"--model={tmp_path}/m.keras", f"--data_dir={tmp_path}/data", "--crop=8", "--validation=0.5",
                "--targets=tflite_int8", f"--output={tmp_path}/out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    note = read_metadata(tmp_path / "out" / "m_tflite_int8.tflite")
    assert note["class_names"] == ["sea", "ship"] and note["preprocess"]["crop"] == [8, 8]
    assert note["versions"]["orbit_kd"] == orbit_kd.__version__ and set(note["versions"]) >= {"tensorflow", "tf_keras"}


_EXTENSIONS = """
from pathlib import Path
import orbit_kd as okd

@okd.exporters.target("weights_of_tool", suffix=".bin", runtime="")
def export_weights(model, *, path, calibration=None):
    Path(path).write_bytes(b"".join(w.tobytes() for w in model.get_weights()))
    return okd.Artifact.of(Path(path).read_bytes(), target="weights_of_tool", files=(Path(path),), details={})
"""


def test_what_a_file_of_ones_own_registers_is_known_to_the_flags(place, tmp_path, tool):
    (tmp_path / "my_target.py").write_text(_EXTENSIONS)
    flags = [f"--model={place}/teacher.keras", f"--data={place}/images", "--targets=weights_of_tool",
             f"--output={tmp_path}"]  # fmt: skip
    assert "Unknown export target" in tool("export", *flags).stderr
    with targets.temporary("other_of_test", targets.get("c_array")):  # takes away what the tool's file adds too
        ran = tool("export", *flags, f"--custom_objects={tmp_path}/my_target.py:export_weights")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "teacher_weights_of_tool.bin").stat().st_size > 1000
