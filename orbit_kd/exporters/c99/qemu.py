"""Programs in C for small cores, run under QEMU: instructions, flash and RAM of a folder of the target "c99".

Instructions are counted by a timer that QEMU advances with each of them (`-icount shift=0`: one in a nanosecond). They
are no cycles: there is no pipeline and no flash to wait for.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from orbit_kd.errors import InputError
from orbit_kd.registry import Registry
from orbit_kd.runtimes.c99 import read_manifest

_HARNESS = Path(__file__).parent / "cores"
_SECONDS = 600  # of one program: about 30 instructions in a microsecond


@dataclasses.dataclass(frozen=True)
class Core:
    """A processor, how to compile for it and where QEMU has it.

    Attributes:
        name: as users say it.
        tools: how the names of its compiler and its binutils begin.
        flags: for the compiler.
        link: for its linker, beside those of all.
        script: of the linker, in cores/.
        sources: in cores/.
        qemu: the emulator and the machine.
        instructions_per_tick: of the timer that cores/ reads.
        packages: Debian packages that bring compiler, library and emulator.
    """

    name: str
    tools: str
    flags: tuple[str, ...]
    link: tuple[str, ...]
    script: str
    sources: tuple[str, ...]
    qemu: tuple[str, ...]
    instructions_per_tick: float
    packages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Execution:
    """What a program took.

    Attributes:
        code: 0 where its main() returned 0, else 1.
        instructions: of main().
        stack: bytes of stack that main() used.
    """

    code: int
    instructions: int
    stack: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a network takes on a core.

    Attributes:
        instructions: of one inference, and of comparing its outputs with the golden ones.
        flash: bytes of code and constants, with what they take of the compiler's library; without golden input.
        ram: bytes of the context and the outputs, and of the stack. The input is read where it stands.
        stack: bytes of these that are stack.
        right: whether the outputs are the golden ones.
    """

    instructions: int
    flash: int
    ram: int
    stack: int
    right: bool


cores: Registry[Core] = Registry("core")
_ARM = ("qemu-system-arm", "gcc-arm-none-eabi", "libnewlib-arm-none-eabi")
# Scheduled before registers are given, eight sums and their columns do not fit the registers.
_UNSCHEDULED = "-fno-schedule-insns"
_SEMIHOSTING = ("-semihosting-config", "enable=on,target=native")


def _cortex_m(name: str, machine: str, script: str, ticks: float, floats: str = "soft") -> None:
    cores.register(name)(
        Core(name, "arm-none-eabi", (f"-mcpu={name}", "-mthumb", f"-mfloat-abi={floats}"), ("-lc", "-lgcc"), script,
             ("measure.c", "cortex_m.c"), ("qemu-system-arm", "-M", machine, *_SEMIHOSTING), ticks, _ARM)
    )  # fmt: skip


_cortex_m("cortex-m3", "mps2-an385", "mps2.ld", 40)
_cortex_m("cortex-m4", "mps2-an386", "mps2.ld", 40)
_cortex_m("cortex-m55", "mps3-an547", "mps3.ld", 31.25, "hard")
cores.register("rv32")(
    Core(
        "rv32",
        "riscv64-unknown-elf",
        ("-march=rv32im", "-mabi=ilp32", "-mcmodel=medany", "--specs=picolibc.specs", _UNSCHEDULED),
        ("-lc", "-lgcc"),
        "virt.ld",
        ("measure.c", "rv32.c"),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *_SEMIHOSTING),
        1,
        ("qemu-system-misc", "gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf"),
    )
)
cores.register("leon3")(
    Core(
        "leon3",
        "sparc64-linux-gnu",
        ("-m32", "-mcpu=leon3", "-mflat", "-ffreestanding", "-fno-pic", _UNSCHEDULED, f"-I{_HARNESS / 'include'}"),
        ("-Wl,-m,elf32_sparc",),
        "leon3.ld",
        ("measure.c", "leon3.c", "memory.c"),
        ("qemu-system-sparc", "-M", "leon3_generic", "-serial", "stdio"),
        25,
        ("qemu-system-sparc", "gcc-sparc64-linux-gnu"),
    )
)


def require(core: Core) -> None:
    """Checks that a core's compiler and emulator are installed.

    Raises:
        InputError: one is missing; the message has the command that installs it on Debian.
    """
    for program in (f"{core.tools}-gcc", f"{core.tools}-size", core.qemu[0]):
        if shutil.which(program) is None:
            raise InputError(
                f"{program} is not installed.",
                expected=f"compiler and emulator of {core.name}",
                fix=f"apt install {' '.join(core.packages)}",
            )


def compile_objects(
    core: Core, sources: Sequence[Path], *, folder: Path, include: Sequence[Path] = (), flags: Sequence[str] = ()
) -> list[Path]:
    """Compiles C files, each to `folder`/<its name>.o.

    Raises:
        InputError: the compiler refuses one.
    """
    objects = []
    for source in sources:
        objects.append(folder / f"{source.name}.o")
        paths = [f"-I{path}" for path in include]
        options = ("-O2", "-ffunction-sections", "-fdata-sections")
        _run([f"{core.tools}-gcc", *core.flags, *options, *flags, *paths, "-c", source, "-o", objects[-1]], core)
    return objects


def link(core: Core, objects: Sequence[Path], *, folder: Path) -> Path:
    """Links a program with what starts and measures it, `folder`/program.elf.

    Raises:
        InputError: the linker refuses: something is missing, or too large for the machine.
    """
    program = folder / "program.elf"
    # a loop in memory.c must not become a call of what it is
    loops = ("-fno-tree-loop-distribute-patterns",)
    harness = compile_objects(core, [_HARNESS / name for name in core.sources], folder=folder, flags=loops)
    scripts = ["-nostdlib", "-nostartfiles", "-static", "-Wl,--gc-sections", f"-L{_HARNESS}", f"-T{core.script}"]
    libraries = ["-Wl,--start-group", *core.link, "-Wl,--end-group"]
    _run([f"{core.tools}-gcc", *core.flags, *scripts, *harness, *objects, *libraries, "-o", program], core)
    return program


def execute(core: Core, program: Path) -> Execution:
    """Runs a program of `link`.

    Raises:
        InputError: it does not end in time, or ends without a result.
    """
    command = [*core.qemu, "-nographic", "-monitor", "none", "-icount", "shift=0", "-kernel", str(program)]
    if "-serial" not in command:
        command += ["-serial", "none"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        try:
            return _result(core, run)
        finally:
            run.kill()


def _result(core: Core, run: subprocess.Popen[bytes]) -> Execution:
    """Of what a program writes; the emulator of some cores goes on after it."""
    timer = threading.Timer(_SECONDS, run.kill)
    timer.start()
    said = []
    try:
        for line in run.stdout or ():
            said.append(line.decode(errors="replace").strip())
            if found := re.fullmatch(r"orbit_kd (\d+) (\d+) (\d+)", said[-1]):
                code, ticks, stack = map(int, found.groups())
                return Execution(code, round(ticks * core.instructions_per_tick), stack)
            if said[-1].startswith("orbit_kd"):
                break
    finally:
        timer.cancel()
    raise InputError(
        f"The program gave no result on {core.name} within {_SECONDS} s: {' '.join(said)[-300:] or 'it said nothing'}",
        expected="a line with its exit code and instructions",
        fix="run it on this machine first: cc *.c && ./a.out",
    )


def measure(folder: str | os.PathLike[str], core: str) -> Measured:
    """Runs the golden input of a folder of the target "c99" on a core.

    Args:
        folder: what the target wrote.
        core: a name in `cores`.

    Raises:
        InputError: no such folder, an unknown core, compiler or emulator missing, or a program that is too large for
            the machine.
    """
    found = cores.get(core)
    read_manifest(Path(folder))
    require(found)
    with tempfile.TemporaryDirectory() as name:
        build = Path(name)
        objects = compile_objects(found, sorted(Path(folder).glob("*.c")), folder=build, flags=("-std=c99",))
        program = link(found, objects, folder=build)
        whole = _size(found, program)
        harness = [_size(found, build / f"{source}.o") for source in found.sources]
        golden = _size(found, build / "main.c.o")
        ran = execute(found, program)
    flash = whole.flash - golden.flash - sum(part.flash for part in harness)
    ram = whole.ram - sum(part.ram for part in harness) + ran.stack
    return Measured(ran.instructions, flash, ram, ran.stack, ran.code == 0)


@dataclasses.dataclass(frozen=True)
class _Size:
    """Bytes of code and constants, and of static data."""

    flash: int
    ram: int


def _size(core: Core, file: Path) -> _Size:
    line = _run([f"{core.tools}-size", file], core).splitlines()[-1]
    text, data, bss = map(int, line.split()[:3])
    return _Size(text + data, data + bss)


def _run(command: Sequence[str | Path], core: Core) -> str:
    """What a tool writes.

    Raises:
        InputError: it fails; the message has its last words.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            f"{command[0]} failed for {core.name}: {done.stderr.strip()[-500:]}",
            expected="C99 that compiles, and a program that fits the machine of the emulator",
            fix="compile the folder for this machine first; a larger network needs a core with more memory",
        )
    return done.stdout
