"""Optimizers, schedules, losses and metrics of Keras 3 (`tf.keras` on TensorFlow >= 2.16) as those of tf_keras.

Training here runs on tf_keras, which takes no object of Keras 3. What has an equal of that name is made anew from its
configuration; what has none is refused by name, and so are callbacks, which hold a model and have no configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tf_keras

from orbit_kd.errors import InputError

_PLACES: dict[str, Any] = {  # the longer first: schedules lie in the folder of optimizers
    "optimizers.schedules": tf_keras.optimizers.schedules,
    "optimizers": tf_keras.optimizers,
    "losses": tf_keras.losses,
    "metrics": tf_keras.metrics,
    "callbacks": tf_keras.callbacks,
}
# how Keras 3 names what tf_keras names otherwise; "mean" divides by the number of values too
_REDUCTIONS = {None: "none", "mean": "sum_over_batch_size"}


def to_tf_keras(value: Any) -> Any:
    """The value with every Keras 3 object in it (in lists and dicts too) replaced by its tf_keras equal.

    Args:
        value: what `compile` or `fit` takes: an optimizer, a schedule, losses, metrics, callbacks, names, functions.

    Returns:
        The same structure; what is not of Keras 3 is in it unchanged.

    Raises:
        InputError: an object that tf_keras has no equal of; an optimizer that has trained; a callback.
    """
    if isinstance(value, dict):
        return {key: to_tf_keras(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([to_tf_keras(item) for item in value])
    place = _place(value)
    if place is None:
        return value
    name = value.__name__ if inspect.isroutine(value) or inspect.isclass(value) else type(value).__name__
    ours = getattr(_PLACES[place], name, None)
    if place == "callbacks":
        own = ours is None or not _module(value).startswith("keras.src.")
        raise InputError(
            f"The callback {name} is one of Keras 3, and training runs on tf_keras.",
            expected="callbacks of tf_keras",
            fix="derive it from tf_keras.callbacks.Callback" if own else f"give tf_keras.callbacks.{name}(...)",
        )
    if ours is None or not _module(value).startswith("keras.src."):
        raise InputError(
            f"{name} is one of Keras 3's {place}, and tf_keras has no equal of it.",
            expected=f"something from tf_keras.{place}",
            fix=f"give one of tf_keras.{place}; one of your own: derive it from the class there",
        )
    if inspect.isroutine(value) or inspect.isclass(value):
        return ours
    if place == "optimizers" and int(value.iterations) > 0:
        raise InputError(
            f"The Keras 3 optimizer {name} has trained {int(value.iterations)} steps, and its state cannot be taken.",
            expected="a fresh optimizer",
            fix=f"give tf_keras.optimizers.{name}(...), or a new keras.optimizers.{name}(...)",
        )
    # Huber of Keras 3.15 leaves its delta out of its configuration
    left_out = {k: v for k, v in getattr(value, "_fn_kwargs", {}).items() if k in inspect.signature(ours).parameters}
    return _anew(name, ours, {**value.get_config(), **left_out})


def _module(value: Any) -> str:
    return str(value.__module__ if inspect.isroutine(value) or inspect.isclass(value) else type(value).__module__)


def _place(value: Any) -> str | None:
    """Which kind of Keras 3 object this is; None for all that is not of Keras 3."""
    if inspect.isroutine(value):
        modules = [str(getattr(value, "__module__", ""))]
    else:
        modules = [c.__module__ for c in (value if inspect.isclass(value) else type(value)).__mro__]
    for module in modules:
        for place in _PLACES:
            if module.startswith(f"keras.src.{place}"):
                return place
    return None


def _anew(name: str, ours: Callable[..., Any], config: dict[str, Any]) -> Any:
    """The tf_keras object with the same options."""
    classes = [c for c in inspect.getmro(ours) if c.__module__.startswith("tf_keras")]  # type: ignore[arg-type]
    known = {p for c in classes if "__init__" in vars(c) for p in inspect.signature(vars(c)["__init__"]).parameters}
    found = {}
    for key, value in config.items():
        if key == "reduction":
            value = _REDUCTIONS.get(value, value)
        if isinstance(value, dict) and "class_name" in value:  # a schedule inside an optimizer
            value = _schedule(value)
        if key in known:
            found[key] = value
        elif value is not None:
            raise InputError(
                f"The Keras 3 object {name} has {key}={value!r}, which tf_keras' {name} does not know.",
                expected=f"{key} left out",
                fix=f"give a {name} of tf_keras with the options that it has",
            )
    try:
        return ours(**found)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"The Keras 3 object {name} has no equal in tf_keras: {e}.",
            expected=f"options that tf_keras' {name} takes",
            fix=f"give a {name} of tf_keras",
        ) from e


def _schedule(config: dict[str, Any]) -> Any:
    name = config["class_name"]
    ours = getattr(tf_keras.optimizers.schedules, name, None)
    if ours is None or not str(config.get("module") or "").startswith("keras."):
        raise InputError(
            f"The learning rate {name} is a Keras 3 object that tf_keras has no equal of.",
            expected="a number, or a schedule of tf_keras.optimizers.schedules",
            fix="derive your schedule from tf_keras.optimizers.schedules.LearningRateSchedule, in a tf_keras optimizer",
        )
    return _anew(name, ours, config["config"])
