"""What the tools share: flags made from dataclasses, plain error messages, quiet logs."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from absl import app, flags

from orbit_kd.errors import InputError

FLAGS = flags.FLAGS


def define(cls: type, *, skip: tuple[str, ...] = ()) -> None:
    """One flag a field of a dataclass, with its default, and its help from the docstring's "Attributes"."""
    helps = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {10,}.*)*)", cls.__doc__ or "", re.M))
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        text = " ".join(helps[field.name].split())
        kind = str(field.type).removesuffix(" | None")
        default = None if field.default is dataclasses.MISSING else field.default
        if kind == "int":
            flags.DEFINE_integer(field.name, default, text)
        elif kind == "float":
            flags.DEFINE_float(field.name, default, text)
        elif kind == "bool":
            flags.DEFINE_boolean(field.name, default, text)
        elif kind == "str":
            flags.DEFINE_string(field.name, default, text)
        elif kind == "tuple[int, int]":
            flags.DEFINE_string(field.name, None, text + " As 64 or 64x96.")
        elif kind.startswith("Mapping"):
            flags.DEFINE_list(field.name, [], text + " As name:value,name:value.")
        else:
            flags.DEFINE_list(field.name, [str(v) for v in default or ()], text + " Comma-separated.")


def collect(cls: type) -> Any:
    """The dataclass that the flags describe.

    Raises:
        InputError: a value that is not of its kind.
    """
    values = {f.name: _parse(f, FLAGS[f.name].value) for f in dataclasses.fields(cls) if f.name in FLAGS}
    return cls(**values)


def _parse(field: dataclasses.Field, value: Any) -> Any:
    kind = str(field.type)
    try:
        if kind.startswith("tuple[int, int]") and value is not None:
            sizes = tuple(int(v) for v in str(value).lower().split("x"))
            return sizes * 2 if len(sizes) == 1 else sizes
        if kind.startswith("Mapping"):
            return {k: float(v) for k, v in (item.rsplit(":", 1) for item in value)}
        if kind.startswith("tuple[float"):
            return tuple(float(v) for v in value)
        return tuple(value) if isinstance(value, list) else value
    except ValueError as e:
        raise InputError(
            f"--{field.name}={value} cannot be read.",
            expected={"t": "numbers such as 64, 64x96 or 0.5,0.5,0.5", "M": "name:value,name:value"}[kind[0]],
            fix=f"mend --{field.name}; --help shows its form",
        ) from e


def run(main: Callable[[], None]) -> None:
    """Runs a tool: an InputError becomes its message and exit code 1, without a traceback."""

    def guarded(argv: list[str]) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log = logging.getLogger("orbit_kd")
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(logging.INFO)
        try:
            if len(argv) > 1:
                raise InputError(
                    f"Unexpected argument {argv[1]!r}.", expected="flags only", fix="see --help for the flags"
                )
            main()
        except InputError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on from here")

    app.run(guarded)


def required(*names: str) -> None:
    """Refuses to go on without these flags.

    Raises:
        InputError: one is missing.
    """
    for name in names:
        if FLAGS[name].value in (None, ""):
            raise InputError(f"--{name} is missing.", expected=f"--{name}=...", fix="see --help for its meaning")
