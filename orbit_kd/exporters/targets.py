"""The table of export targets, and the ways to ask for one. A new target is one function and its registration.

@okd.exporters.target("my_format", suffix=".bin")
def export_my_format(model, *, path, calibration=None) -> okd.Artifact: ...
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from orbit_kd.errors import InputError
from orbit_kd.exporters.artifact import Artifact
from orbit_kd.registry import Registry


@dataclasses.dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        write: (model, *, path, calibration=None, ...) -> Artifact.
        suffix: of the file it writes; "" for a folder.
        made_of: the target whose file it takes in place of a Keras model; "" for none.
        runtime: in `orbit_kd.runtimes`, that runs the artifact's `path` (of a C array, the bytes in it); "" for none.
        check: (model) -> None, raises InputError for a model that `write` would refuse whatever the data.
        options: further arguments of `write`; where `variant` is one, the target is asked for as "name:variant".
        any_option: `write` takes options that it does not name.
    """

    write: Callable[..., Artifact]
    suffix: str
    made_of: str
    runtime: str
    check: Callable[[Any], None]
    options: frozenset[str]
    any_option: bool


targets: Registry[Target] = Registry("export target")
Writer = TypeVar("Writer", bound=Callable[..., Any])


def target(
    name: str,
    *,
    suffix: str = ".tflite",
    made_of: str = "",
    runtime: str = "litert",
    check: Callable[[Any], None] = lambda model: None,
    replace: bool = False,
) -> Callable[[Writer], Writer]:
    """Decorator that files a function as an export target; see `Target` for the arguments.

    The keyword arguments of the function are the target's options. With `replace` it takes the place of a target of
    that name.

    Raises:
        InputError: the name is taken.
    """

    def file(write: Writer) -> Writer:
        given = inspect.signature(write).parameters
        options = frozenset(given) - {"model", "path", "calibration"}
        any_option = any(p.kind is p.VAR_KEYWORD for p in given.values())
        targets.register(name, replace=replace)(Target(write, suffix, made_of, runtime, check, options, any_option))
        return write

    return file


def find(spec: str) -> tuple[Target, str]:
    """The target and the variant that "name" or "name:variant" asks for.

    Raises:
        InputError: an unknown target, or a variant of one that has none.
    """
    name, _, variant = spec.partition(":")
    found = targets.get(name)
    if variant and "variant" not in found.options:
        raise InputError(f"Export target {name!r} has no variants.", expected=repr(name), fix=f"drop :{variant}")
    return found, variant


def export(
    model: Any, target: str, *, path: str | os.PathLike[str], calibration: Any = None, **options: Any
) -> Artifact:
    """Writes `model` in the format `target`.

    Args:
        model: a model of tf_keras or Keras 3, inputs (batch, ...) float32; it is not changed. Files have several
            inputs and outputs in its order. Wrappers of sparsity and clustering are taken off a copy. Targets that are
            made of a .tflite file ("c_array", "vela", ...) also take that file, or its Artifact.
        target: a name in `targets`: "tflite_float32", "tflite_int8", "c_array", ...; with a variant where the target
            has some: "vela:ethos-u85-256".
        path: the file to write; folders are made.
        calibration: for integer targets, inputs as the network sees them (after Preprocess): a tf.data.Dataset of
            batches x or (x, y), or an array (n, ...); x of several inputs a tuple in their order or a dict by name.
        **options: the target's own, e.g. `metadata={...}`, `float_io=True`.

    Raises:
        InputError: unknown target or option; missing or unusable calibration data; a path that cannot be written.
    """
    from orbit_kd.models.conversion import exported_form  # loads TensorFlow

    form, variant = find(target)
    if not (form.made_of and isinstance(model, (Artifact, str, os.PathLike))):
        model = exported_form(model, quantized="tflite_int8" in (target, form.made_of))
    arguments = dict(options, path=path, calibration=calibration) | ({"variant": variant} if variant else {})
    unknown = [name for name in options if name not in form.options]
    if unknown and not form.any_option:
        raise InputError(
            f"Export target {target!r} has no option {unknown[0]!r}.",
            expected=f"one of: {', '.join(sorted(form.options - {'variant'}))}",
            fix="leave it out, or correct its name",
        )
    return form.write(model, **arguments)


def check(model: Any, names: Iterable[str]) -> None:
    """Refuses a model that a target cannot hold, before data are read or hours are spent; nothing is written.

    Args:
        model: a tf_keras model.
        names: targets. Of one that is made of another's file, that one is asked.

    Raises:
        InputError: as `export`, where it is the model's fault.
    """
    for name in dict.fromkeys(find(name)[0].made_of or name for name in names):
        find(name)[0].check(model)


def file_of(target: str, folder: str | os.PathLike[str], *, stem: str) -> Path:
    """The file that `export_all` writes for a target."""
    return Path(folder, f"{stem}_{target.replace(':', '_')}{find(target)[0].suffix}")


def export_all(
    model: Any, names: Sequence[str], *, folder: str | os.PathLike[str], stem: str, **options: Any
) -> list[Artifact]:
    """Writes a model for several targets, `folder/stem_target.*`; a target made of another's file takes that.

    Args:
        model: as for `export`.
        names: targets, in the order of the result.
        folder: where to write.
        stem: how the files begin.
        **options: for `export`; a target gets those it knows.

    Raises:
        InputError: as `export`.
    """
    written: dict[str, Artifact] = {}
    for name in sorted(names, key=lambda n: bool(find(n)[0].made_of)):
        form = find(name)[0]
        source = written.get(form.made_of, model)
        given = {k: v for k, v in options.items() if k in form.options | {"calibration"}}
        written[name] = export(source, name, path=file_of(name, folder, stem=stem), **given)
    return [written[name] for name in names]
