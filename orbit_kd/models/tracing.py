"""Python functions as TensorFlow graphs, for networks that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def traced(function: Callable[..., Any], *, autograph: bool = True) -> Callable[..., Any]:
    """The function as a graph; a further shape of its arguments makes it general in what differs.

    `tf.function` counts new graphs by the line of code they come from, so that one graph for each of five small
    networks is to it one function that is traced again and again, and it warns. Here each network needs its own.

    Args:
        function: of tensors or nests of them.
        autograph: whether Python control flow on tensors is translated.
    """
    compiled = tf.function(function, reduce_retracing=True, autograph=autograph)

    def call(*values: Any) -> Any:
        tensors = tf.nest.map_structure(tf.convert_to_tensor, values)
        return compiled.get_concrete_function(*tensors)(*tensors)

    return call
