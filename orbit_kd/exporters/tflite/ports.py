"""Several inputs or outputs of a .tflite file: in the order of the Keras model's, whatever the converter made of it.

The converter orders them as it likes. Its signature says which is which, by the names that `trace` gives them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orbit_kd.errors import InputError
from orbit_kd.exporters.requirements import output_names


def input_keys(count: int) -> list[str]:
    """What inputs are called on their way through the converter."""
    return ["image"] if count == 1 else [f"image_{i}" for i in range(count)]


def output_keys(count: int) -> list[str]:
    """What outputs are called there."""
    return [f"output_{i}" for i in range(count)]


def put_in_order(file: Any, model: Any, *, inputs: int, outputs: int) -> None:
    """Puts the ports of a parsed file into the order of the model's, and calls them as it does; changes the file.

    Every runtime takes the ports by their place in the graph, TensorFlow Lite Micro knows nothing else.

    Args:
        file: as the converter wrote it, parsed.
        model: the tf_keras model.
        inputs: how many it has.
        outputs: likewise.

    Raises:
        InputError: an input or output of the model is not in the file.
    """
    signatures = [s for s in file.signatureDefs or [] if not s.subgraphIndex]
    graph, signature = file.subgraphs[0], signatures[0] if len(signatures) == 1 else None
    for side, keys, names in (
        ("inputs", input_keys(inputs), model.input_names),
        ("outputs", output_keys(outputs), output_names(model, outputs)),
    ):
        entries = {e.name.decode(): e for e in (getattr(signature, side) if signature else None) or []}
        tensors = [int(entries[key].tensorIndex) for key in keys if key in entries]
        if len(tensors) != len(keys) or set(tensors) != {int(t) for t in getattr(graph, side)}:
            lost = [name for key, name in zip(keys, names, strict=True) if key not in entries]
            raise InputError(
                f"The converter lost {side} of model {model.name!r}" + (f": {', '.join(lost)}." if lost else "."),
                expected="a network that reads every input, and whose outputs are its own",
                fix="leave out inputs that nothing reads, and outputs that are constants",
            )
        setattr(graph, side, np.asarray(tensors, np.int32))
        for key, name in zip(keys, names, strict=True):
            entries[key].name = name.encode()
        setattr(signature, side, [entries[key] for key in keys])
