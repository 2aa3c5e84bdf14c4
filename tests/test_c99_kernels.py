"""The convolutions in C against TFLite's arithmetic in numpy, and the formats of their weights."""

import shutil

import numpy as np
import pytest
from conv_reference import INTS, KERNELS, WARNINGS, build, convolve, folded_bias, random_layer, run, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_files import Int8File

import orbit_kd as okd
from orbit_kd.errors import InputError
from orbit_kd.exporters.c99 import packing, qemu
from orbit_kd.tflite.nm_check import check_n_m

PATTERNS = ("dense", "csr", "2:4", "1:4", "4:8", "1:8", "2:4:shared", "1:4:shared")


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


# ---------------------------------------------------------------- formats


def weights_of(pattern, *, seed=0, shape=(6, 3, 3, 12)):
    return sparse(np.random.default_rng(seed), shape, pattern)


@pytest.mark.parametrize(
    ("pattern", "speed", "size"),
    [
        ("dense", "dense", "dense"),
        ("2:4", "nm_long", "nm"),
        ("1:4", "csr", "nm"),
        ("2:4:shared", "shared", "shared"),
    ],
)
def test_the_format_is_the_fastest_or_the_smallest_one(pattern, speed, size):
    weights = weights_of(pattern, shape=(8, 3, 3, 32))
    assert packing.choose(weights, prefer="speed").name == speed
    smallest = packing.choose(weights, prefer="bytes")
    assert smallest.name == size
    others = [name for name in packing.fitting(weights) if name != "vector"]  # which is for vectors alone
    assert smallest.pack(weights).nbytes == min(packing.formats.get(name).pack(weights).nbytes for name in others)
    assert packing.choose(weights, prefer="vectors").name == "vector"


def test_bytes_of_a_weight_are_those_of_the_formats():
    shape = (8, 3, 3, 32)
    per_weight = {
        (pattern, name): packing.formats.get(name).pack(weights_of(pattern, shape=shape)).nbytes / np.prod(shape)
        for pattern, name in [
            ("dense", "dense"),
            ("2:4", "nm"),
            ("2:4", "nm_long"),
            ("1:4", "nm"),
            ("2:4:shared", "shared"),
        ]
    }
    header = 4 / np.prod(shape)
    assert per_weight["dense", "dense"] == 1 + header
    assert per_weight["2:4", "nm"] == 0.625 + header
    assert per_weight["2:4", "nm_long"] == 0.75 + header
    assert per_weight["1:4", "nm"] == 0.375 + header
    # 16 entries of 10 bytes and a count of two, for 288 weights
    assert per_weight["2:4:shared", "shared"] == 162 / 288 + header


def test_sums_of_a_large_kernel_are_flushed_and_computed_as_others(library):
    """Weights so large that two sums could not share a word through the whole kernel."""
    rng = np.random.default_rng(0)
    for pattern in ("dense", "2:4", "4:8", "2:4:shared", "csr"):
        layer = random_layer(rng, in_c=200, out_c=2, size=(3, 9), kernel=(3, 3), pattern=pattern)
        layer["weights"] = (np.sign(layer["weights"]) * 127).astype(np.int8)
        x = rng.choice([-128, 127], (3, 9, 200)).astype(np.int8)
        for name in packing.fitting(layer["weights"]):
            form = packing.formats.get(name)
            assert form.pack(layer["weights"])[:4].any()
            np.testing.assert_array_equal(run(library, layer, x, form), convolve(layer, x), err_msg=name)


def test_channels_further_apart_than_a_byte_says_are_reached(library):
    layer = random_layer(np.random.default_rng(0), in_c=600, out_c=2, size=(2, 5), kernel=(1, 1))
    layer["weights"][..., 1:599] = 0
    x = np.random.default_rng(1).integers(-128, 128, (2, 5, 600)).astype(np.int8)
    for name in ("csr", "shared"):
        np.testing.assert_array_equal(run(library, layer, x, packing.formats.get(name)), convolve(layer, x))


def test_a_kernel_of_zeros_alone_is_packed_and_computed(library):
    layer = random_layer(np.random.default_rng(0), in_c=8, out_c=2, size=(4, 9), kernel=(3, 3))
    layer["weights"][:] = 0
    x = np.random.default_rng(1).integers(-128, 128, (4, 9, 8)).astype(np.int8)
    for name in packing.fitting(layer["weights"]):
        np.testing.assert_array_equal(
            run(library, layer, x, packing.formats.get(name)), convolve(layer, x), err_msg=name
        )


@pytest.mark.parametrize("weights", [np.ones((2, 3, 3, 4), np.float32), np.ones((2, 4), np.int8)])
def test_what_is_no_int8_kernel_is_refused(weights):
    with pytest.raises(InputError, match="A kernel of type"):
        packing.fitting(weights)


def test_rows_too_wide_and_unknown_names_are_refused():
    fields = {"in_c": 1, "out_w": 9000, "kernel_h": 3, "kernel_w": 3, "stride_w": 1, "dilation_w": 1}
    with pytest.raises(InputError, match="columns wide"):
        packing.formats.get("dense").scratch_bytes(fields)
    with pytest.raises(InputError, match="prefer='size'"):
        packing.choose(weights_of("2:4"), prefer="size")
    with pytest.raises(InputError, match="no N:M pattern"):
        packing.formats.get("nm").pack(weights_of("dense"))


@pytest.mark.parametrize("pattern", ["dense", "2:4", "2:4:shared"])
def test_the_check_of_a_file_tells_shared_patterns_apart(pattern):
    g = Int8File()
    g.conv(g.input((1, 4, 4, 8)), 6, values=weights_of(pattern, shape=(6, 3, 3, 8)))
    plain, shared = (check_n_m(g.bytes(), shared=whether)[0] for whether in (False, True))
    assert (plain.groups, shared.groups) == (6 * 9 * 2, 6 * 2)
    assert plain.ok == (pattern != "dense") and shared.ok == (pattern == "2:4:shared")


# ---------------------------------------------------------------- cores under QEMU


def test_a_missing_compiler_or_emulator_is_named_with_its_packages(monkeypatch):
    monkeypatch.setattr(qemu.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="arm-none-eabi-gcc is not installed") as error:
        qemu.require(qemu.cores.get("cortex-m4"))
    assert "apt install qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi" in str(error.value)


def test_the_tool_refuses_other_targets_and_folders(tool, tmp_path):
    for target, message in (("host", "qemu:CORE"), ("qemu:z80", "Unknown core"), ("qemu:rv32", "no folder of C")):
        ran = tool("benchmark", f"--models={tmp_path}", f"--target={target}")
        assert ran.returncode == 1 and message in ran.stderr


SCRATCH_WORDS = 8000  # of all calls on a core
CORES = sorted(map(str, qemu.cores))


@pytest.fixture(params=CORES)
def core(request):
    found = qemu.cores.get(request.param)
    try:
        qemu.require(found)
    except InputError as error:
        pytest.skip(f"{error.what} Debian packages: {' '.join(found.packages)}")
    return found


def constants(kind, name, values):
    return f"static const {kind} {name}[] = {{{','.join(map(str, np.asarray(values).ravel().tolist()))}}};\n"


def call_in_c(number, layer, x, form):
    """A function of C that returns 0 where a kernel gives what it should."""
    packed, expected = form.pack(layer["weights"]), convolve(layer, x)
    arrays = {
        "x": ("int8_t", x), "golden": ("int8_t", expected), "w": ("int8_t", packed), "s": ("int8_t", layer["shift"]),
        "m": ("int32_t", layer["multiplier"]), "b": ("int32_t", folded_bias(layer)),
    }  # fmt: skip
    text = "".join(constants(kind, f"{name}{number}", values) for name, (kind, values) in arrays.items())
    ints = ", ".join(str(layer["ints"][name]) for name in INTS)
    assert form.scratch_bytes(layer["ints"]) <= 8 * SCRATCH_WORDS and expected.size <= 1000
    n = number
    return text + (
        f"static int test{n}(void) {{\n"
        f"  static const orbit_conv layer = {{{ints}, m{n}, s{n}, b{n}, w{n}}};\n"
        f"  {form.function}(&layer, x{n}, out, scratch);\n  return memcmp(out, golden{n}, sizeof golden{n}) != 0;\n}}\n"
    )


@pytest.mark.slow
def test_a_core_computes_what_tflite_does(core, tmp_path):
    """Needs QEMU and a cross compiler: `qemu.cores` names the Debian packages of each core."""
    rng, calls = np.random.default_rng(0), []
    for pattern in PATTERNS:
        for kernel, stride, dilation, in_c, size in [
            ((3, 3), 1, 1, 16, (5, 9)), ((3, 3), 2, 1, 12, (6, 17)), ((1, 1), 1, 1, 7, (3, 8)),
            ((2, 3), 1, 2, 8, (5, 7)), ((3, 3), 1, 1, 4, (4, 5)), ((3, 3), 1, 1, 24, (2, 2)),
            ((1, 1), 1, 1, 33, (1, 1)), ((3, 3), 1, 1, 144, (3, 8)),
        ]:  # fmt: skip
            layer = random_layer(rng, in_c=in_c, out_c=3, size=size, kernel=kernel, stride=stride, dilation=dilation,
                                 pattern=pattern)  # fmt: skip
            if in_c == 144:
                layer["weights"] = (np.sign(layer["weights"]) * 127).astype(np.int8)  # sums that are flushed
            x = rng.integers(-128, 128, (*size, in_c)).astype(np.int8)
            for name in packing.fitting(layer["weights"]):
                calls.append(call_in_c(len(calls), layer, x, packing.formats.get(name)))
    body = "".join(f"  if (test{n}()) return 1;\n" for n in range(len(calls)))
    main = tmp_path / "main.c"
    shared = f"static int64_t scratch[{SCRATCH_WORDS}];\nstatic int8_t out[1000];\n"
    main.write_text(
        '#include "orbit_kernels.h"\n' + shared + "".join(calls) + f"int main(void) {{\n{body}  return 0;\n}}\n"
    )
    kernels = sorted(KERNELS.glob("conv_*.c"))
    objects = qemu.compile_objects(core, [main, *kernels], folder=tmp_path, include=[KERNELS], flags=WARNINGS)
    ran = qemu.execute(core, qemu.link(core, objects, folder=tmp_path))
    assert ran.code == 0 and ran.instructions > 100_000


@pytest.mark.slow
def test_instructions_are_counted_one_by_one(core, tmp_path):
    bodies = {
        "cortex": "1: subs %0, #1\\n nop\\n nop\\n bne 1b",
        "rv32": "1: addi %0, %0, -1\\n nop\\n nop\\n bnez %0, 1b",
        "leon3": "1: subcc %0, 1, %0\\n nop\\n bne 1b\\n nop",
    }
    loop = next(body for name, body in bodies.items() if core.name.startswith(name))
    main = tmp_path / "main.c"
    main.write_text(f'int main(void) {{ int i = 100000; __asm__ volatile("{loop}" : "+r"(i) : : "cc"); return 0; }}')
    ran = qemu.execute(core, qemu.link(core, qemu.compile_objects(core, [main], folder=tmp_path), folder=tmp_path))
    assert ran.code == 0 and abs(ran.instructions - 400_000) < 100


@pytest.mark.slow
def test_a_folder_runs_and_the_tool_says_what_it_takes(core, tool, tmp_path):
    folders = []
    for pattern in ("dense", "2:4"):
        g = Int8File(3)
        x = g.conv(g.input((1, 12, 12, 8)), 8, values=weights_of(pattern, shape=(8, 3, 3, 8)))
        g.softmax(g.dense(g.pool(x, "AVERAGE", k=12), 5))
        path = tmp_path / pattern[0]
        (tmp_path / "model.tflite").write_bytes(g.bytes())
        okd.export(tmp_path / "model.tflite", "c99", path=path)
        folders.append(path)
    dense, half = (qemu.measure(folder, core.name) for folder in folders)
    assert dense.right and half.right
    assert half.instructions < dense.instructions and 1_000 < dense.flash < 50_000
    assert 0 < dense.stack < dense.ram < 20_000
    ran = tool("benchmark", f"--models={folders[0]},{folders[1]}", f"--target=qemu:{core.name}")
    assert ran.returncode == 0 and f"{half.instructions:,}" in ran.stdout and "NOT EQUAL" not in ran.stdout


@pytest.mark.slow
def test_a_program_without_a_result_is_told(core, tmp_path, monkeypatch):
    monkeypatch.setattr(qemu, "_SECONDS", 3)
    main = tmp_path / "main.c"
    main.write_text('int main(void) { for (;;) { __asm__ volatile(""); } return 0; }')
    program = qemu.link(core, qemu.compile_objects(core, [main], folder=tmp_path), folder=tmp_path)
    with pytest.raises(InputError, match="no result"):
        qemu.execute(core, program)
    main.write_text("int main(void) { return nothing; }")
    with pytest.raises(InputError, match="nothing"):
        qemu.compile_objects(core, [main], folder=tmp_path)
