"""What the tools share: flags made from dataclasses, plain error messages, quiet logs."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

from absl import app, flags
from absl import logging as absl_logging

from orbit_kd.datasets.kinds import TASKS
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd.support.native_log import native_stderr

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # what is defined here belongs to the tool that asks for it, and shows in its --help


def define(cls: type, *, skip: tuple[str, ...] = ()) -> None:
    """One flag a field of a dataclass, with its default, and its help from the docstring's "Attributes"."""
    helps = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {10,}.*)*)", cls.__doc__ or "", re.M))
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        text = " ".join(helps[field.name].split())
        text = text[0].upper() + text[1:]
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
        elif kind.startswith("float | tuple"):
            flags.DEFINE_list(field.name, [str(default)], text + " Comma-separated.")
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


def given(cls: type) -> Any:
    """What `collect` gives where at least one of its flags was given, else None."""
    return collect(cls) if any(f.name in FLAGS and FLAGS[f.name].present for f in dataclasses.fields(cls)) else None


def _parse(field: dataclasses.Field, value: Any) -> Any:
    kind = str(field.type)
    try:
        if kind.startswith("tuple[int, int]") and value is not None:
            sizes = tuple(int(v) for v in str(value).lower().split("x"))
            return sizes * 2 if len(sizes) == 1 else sizes
        if kind.startswith("Mapping"):
            number = int if kind.endswith("int]") else str if kind.endswith("str]") else float
            return {k: number(v) for k, v in (item.rsplit(":", 1) for item in value)}
        if kind.startswith(("tuple[float", "float | tuple")):
            return tuple(float(v) for v in value)
        return tuple(value) if isinstance(value, list) else value
    except ValueError as e:
        raise InputError(
            f"--{field.name}={value} cannot be read.",
            expected={
                "t": "numbers such as 64, 64x96 or 0.5,0.5,0.5",
                "f": "numbers such as 0.5 or 0.5,0.5",
                "M": "name:value,name:value",
            }[kind[0]],
            fix=f"mend --{field.name}; --help shows its form",
        ) from e


def run(main: Callable[[], None], *, tensorflow: bool = True, argument: str = "") -> None:
    """Runs a tool: an InputError becomes its message and exit code 1, without a traceback.

    Args:
        main: the tool.
        tensorflow: load it first, quietly; tools that need none answer at once without.
        argument: the flag that takes the one argument that is no flag; none for a tool that has flags only.
    """

    def guarded(argv: list[str]) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log = logging.getLogger("orbit_kd")
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(logging.INFO)
        if not FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            if argument and len(argv) == 2:
                FLAGS[argument].value = argv.pop()
            if len(argv) > 1:
                raise InputError(
                    f"Unexpected argument {argv[1]!r}.", expected="flags only", fix="see --help for the flags"
                )
            if tensorflow:
                with native_stderr():  # what TensorFlow says about missing GPUs as it is loaded
                    importlib.import_module("tensorflow")
            if "custom_objects" in FLAGS:
                custom_objects(FLAGS.custom_objects)  # what these files register is known to every other flag
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
        if FLAGS[name].value in (None, "", []):
            raise InputError(f"--{name} is missing.", expected=f"--{name}=...", fix="see --help for its meaning")


BUDGETS = {
    "keep_params": "Part of the parameters that stays, in place of a ratio.",
    "keep_macs": "Part of the multiply-accumulates that stays.",
    "max_params": "Parameters that stay at most.",
    "max_macs": "Multiply-accumulates of one image at most.",
    "max_bytes": "Bytes of the int8 TFLite file at most.",
    "max_activation_bytes": "Bytes of int8 activations alive at one time at most.",
}


def define_budgets() -> None:
    """One flag a budget of a removal plan, and one for those that are registered elsewhere."""
    for name, text in BUDGETS.items():
        flags.DEFINE_float(name, None, text)
    define(Recipe, skip=tuple(set(Recipe.__dataclass_fields__) - {"limits"}))


def given_budgets() -> dict[str, float]:
    """The budgets that were given.

    Raises:
        InputError: an unknown one, or a value that makes no sense.
    """
    from orbit_kd.removal import budgets

    given = {name: FLAGS[name].value for name in BUDGETS if FLAGS[name].value is not None}
    given |= _parse(Recipe.__dataclass_fields__["limits"], FLAGS.limits)
    budgets.check(given)
    return given


def define_trust() -> None:
    """The flags of `load`: what of a model file may run."""
    flags.DEFINE_boolean("trust_model_code", False, "Load a model file that could run its author's code.")
    flags.DEFINE_list(
        "custom_objects",
        [],
        "Classes and functions of your own that the model is made of, as file.py:Name or module:Name, comma-separated. "
        "These files are run first: what they register (channel rules, criteria, budgets for --limits, losses, "
        "targets) is there for the other flags.",
    )


def load(path: str) -> Any:
    """The model in a file, with what --custom_objects names; nothing else in it runs unasked.

    Raises:
        InputError: what `load_model` refuses; a custom object that is not there.
    """
    from tf_keras.saving import get_custom_objects

    from orbit_kd.models.saving import load_model

    custom = custom_objects(FLAGS.custom_objects)
    get_custom_objects().update(custom)  # for the files that a run writes and reads again
    return load_model(path, trust_code=FLAGS.trust_model_code, custom_objects=custom)


def custom_objects(names: list[str]) -> dict[str, Any]:
    """Name -> class or function, from file.py:Name or module:Name; a file runs once.

    Raises:
        InputError: no such form, file, module or name.
    """
    found: dict[str, Any] = {}
    for text in names:
        where, _, name = text.rpartition(":")
        try:
            found[name] = getattr(_module(where), name)
        except (ImportError, AttributeError, OSError, ValueError) as e:
            raise InputError(
                f"--custom_objects={text}: {e}.",
                expected="file.py:Name or module:Name, such as my_layers.py:MyLayer",
                fix="correct the path and the name of the class",
            ) from e
    return found


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    name = Path(where).stem
    known = sys.modules.get(name)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == Path(where).resolve():
        return known
    spec = importlib.util.spec_from_file_location(name, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def define_data(*, teacher: bool = True) -> None:
    """The flags of `load_data` and `load_teacher`."""
    flags.DEFINE_string(
        "data", None, "Folder with class folders, masks, boxes or a table of labels (docs/data.md); or a data set name."
    )
    flags.DEFINE_string(
        "task", "auto", "What the network is for: classification, binary, multi_label, regression, segmentation, "
        "detection or several (outputs); auto reads it from the data and the network's outputs.",
    )  # fmt: skip
    flags.DEFINE_string("data_dir", None, "Folder of the data set, or where a named one is kept.")
    flags.DEFINE_float("validation", 0.1, "Part of the training images for validation where there is no such split.")
    flags.DEFINE_integer("limit", None, "At most so many images of each split, for quick trials.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of everything random.")
    define_trust()
    define(Preprocess)
    if teacher:
        flags.DEFINE_string("teacher", None, "The trained model: .keras, .h5 or a SavedModel folder.")


def load_data(*, preprocess: Preprocess | None = None) -> Any:
    """The data set of the flags; --data_dir alone is a folder of images. `preprocess` comes before the flags'.

    Raises:
        InputError: neither --data nor --data_dir, or what `datasets.load` refuses.
    """
    from orbit_kd.datasets import load

    name, where = data_flags()
    return load(name, preprocess=preprocess or collect(Preprocess), **where)


def data_flags() -> tuple[str, dict[str, Any]]:
    """The data set's name or folder, and which part of it.

    Raises:
        InputError: neither --data nor --data_dir.
    """
    name = FLAGS.data or FLAGS.data_dir
    if not name:
        raise InputError(
            "There is no data.", expected="--data=FOLDER, --data_dir=FOLDER or --data=NAME", fix="give one"
        )
    kept = FLAGS.data_dir if FLAGS.data else None
    # a task of one's own, or several outputs, read data of a known kind; whoever takes the task checks its name
    task = FLAGS.task if FLAGS.task in TASKS else "auto"
    return name, {"validation": FLAGS.validation, "seed": FLAGS.seed, "data_dir": kept, "limit": FLAGS.limit,
                  "task": task}  # fmt: skip


def load_teacher() -> Any:
    """The model of --teacher, and the check that nothing in it runs unasked."""
    return load(FLAGS.teacher)
