"""What tasks ask of a Keras model, imported late: to evaluate files takes no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.models.heads import Head


def heads(model: keras.Model) -> tuple[str, ...]:
    """See `orbit_kd.models.heads`, as of the next three."""
    from orbit_kd.models import heads as found

    return found.heads(model)


def head_type(name: str) -> Head:
    from orbit_kd.models import heads as found

    return found.head_type(name)


def output_names(model: keras.Model) -> list[str]:
    from orbit_kd.models import heads as found

    return found.output_names(model)


def logits_of(outputs: Any, kinds: Sequence[str]) -> Any:
    from orbit_kd.models import heads as found

    return found.logits_of(outputs, kinds)


def kinds_of(models: Sequence[keras.Model], *, loss: Any = None) -> list[str]:
    """See `orbit_kd.models.outputs`, as of the next three."""
    from orbit_kd.models import outputs

    return outputs.kinds_of(models, loss=loss)


def compiled_loss(model: keras.Model) -> Any:
    from orbit_kd.models import outputs

    return outputs.compiled_loss(model)


def compiled_losses(model: keras.Model) -> list[Any]:
    from orbit_kd.models import outputs

    return outputs.compiled_losses(model)


def part_of(structure: Any, index: int, names: Sequence[str]) -> Any:
    from orbit_kd.models import outputs

    return outputs.part_of(structure, index, names)
