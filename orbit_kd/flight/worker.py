"""A process that runs damaged files, each in a child that may die or hang; a program of its own without TensorFlow.

    python -m orbit_kd.flight.worker

It reads pickles from its standard input: `File`s by name, then `Trial`s, and answers each trial with an `Outcome`. A
file is patched where it lies and not written again; the child is a fork of this process, which has all it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import resource
import select
import signal
import sys
import time
from typing import Any

import numpy as np

_MEMORY = 4 << 30  # bytes that a damaged file may ask for; sizes in it are arbitrary numbers


@dataclasses.dataclass(frozen=True)
class File:
    """What runs in trials.

    Attributes:
        data: the .tflite file as it should be.
        runtime: "litert" or "tflm".
        inputs: all images, as the file takes them: (n, ...) arrays, one an input.
        arena: bytes of TFLite Micro's arena.
    """

    data: bytes
    runtime: str
    inputs: tuple[np.ndarray, ...]
    arena: int = 0


@dataclasses.dataclass(frozen=True)
class Trial:
    """One damaged file on some images.

    Attributes:
        file: name.
        images: numbers of the images.
        bits: of the file that are flipped, counted from its first byte's lowest bit.
        input_bits: (position among `images`, bit among all bytes of that image's inputs) of those flipped there.
        seconds: after which the child counts as hanging.
    """

    file: str
    images: np.ndarray
    bits: np.ndarray
    input_bits: tuple[tuple[int, int], ...] = ()
    seconds: float = 60.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        end: "ran"; "refused", by an error that a caller could catch; "killed", the process with it; or "hangs".
        outputs: what the file put out, one array an output; () unless it ran.
    """

    end: str
    outputs: tuple[np.ndarray, ...] = ()


def flipped(data: bytes, bits: np.ndarray) -> bytes:
    """The bytes with some bits turned round."""
    out = np.frombuffer(data, np.uint8).copy()
    np.bitwise_xor.at(out, bits >> 3, (1 << (bits & 7)).astype(np.uint8))
    return out.tobytes()


def run(file: File, trial: Trial) -> tuple[np.ndarray, ...]:
    """Runs a trial in this process: outputs as the file has them, (images, ...) each."""
    inputs = [part[trial.images].copy() for part in file.inputs]
    for position, bit in trial.input_bits:
        for part in inputs:
            if bit < 8 * part[position].nbytes:
                part[position].reshape(-1).view(np.uint8)[bit >> 3] ^= np.uint8(1 << (bit & 7))
                break
            bit -= 8 * part[position].nbytes
    data = flipped(file.data, trial.bits)
    return _tflm(data, inputs, file.arena) if file.runtime == "tflm" else _litert(data, inputs)


def _litert(data: bytes, inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """All images as one batch where the file takes that, else one after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    for batch in (len(inputs[0]), 1):
        try:
            for place, part in zip(interpreter.get_input_details(), inputs, strict=True):
                interpreter.resize_tensor_input(place["index"], (batch, *part.shape[1:]))
            interpreter.allocate_tensors()
            found = []
            for at in range(0, len(inputs[0]), batch):
                for place, part in zip(interpreter.get_input_details(), inputs, strict=True):
                    interpreter.set_tensor(place["index"], part[at : at + batch])
                interpreter.invoke()
                found.append([interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()])
            outputs = tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))
            if all(len(array) == len(inputs[0]) for array in outputs):
                return outputs
        except (RuntimeError, ValueError):
            if batch == 1:
                raise
    raise RuntimeError("outputs of another batch than the inputs")


def _tflm(data: bytes, inputs: list[np.ndarray], arena: int) -> tuple[np.ndarray, ...]:
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
    rows = []
    for i in range(len(inputs[0])):
        for place, part in enumerate(inputs):
            interpreter.set_input(part[i : i + 1], place)
        interpreter.invoke()
        outputs: list[np.ndarray] = []
        with contextlib.suppress(IndexError):
            while True:
                outputs.append(interpreter.get_output(len(outputs))[0].copy())
        rows.append(outputs)
    return tuple(np.stack(arrays) for arrays in zip(*rows, strict=True))


def isolated(file: File, trial: Trial) -> Outcome:
    """Runs a trial in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if os.path.exists("/proc/self/statm"):  # of Linux
                with open("/proc/self/statm") as file_of_sizes:
                    held = int(file_of_sizes.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, held + _MEMORY))
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(run(file, trial), pipe)
            code = 0
        finally:  # whatever was raised, nothing of this process may go on
            os._exit(code)
    os.close(write)
    said, late = _all_of(read, time.monotonic() + trial.seconds)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if late:
        return Outcome("hangs")
    if os.WIFSIGNALED(status):
        return Outcome("killed")
    return Outcome("ran", pickle.loads(said)) if os.waitstatus_to_exitcode(status) == 0 else Outcome("refused")


def _all_of(pipe: int, until: float) -> tuple[bytes, bool]:
    """What comes through a pipe until it is closed; whether the time was over first."""
    parts: list[bytes] = []
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
                return b"".join(parts), True
            part = stream.read(1 << 20)
            if not part:
                return b"".join(parts), False
            parts.append(part)


def main() -> None:
    """Answers until the input ends."""
    source, answers, files = sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), dict[str, File]()
    os.dup2(2, 1)  # what a runtime prints must not come between the answers
    import ai_edge_litert.interpreter  # noqa: F401  loaded once, for all children

    while True:
        try:
            given: Any = pickle.load(source)
        except EOFError:
            return
        if isinstance(given, dict):
            files |= given
            if any(file.runtime == "tflm" for file in given.values()):
                import tflite_micro.python.tflite_micro.runtime  # noqa: F401
        else:
            pickle.dump(isolated(files[given.file], given), answers)
            answers.flush()


if __name__ == "__main__":
    import orbit_kd.flight.worker as this  # pickles name the module, not the program

    this.main()
