"""The operators of the target c99: a function each, filed in `steps.operators`."""

from orbit_kd.exporters.c99.operators import (  # noqa: F401  each files its operators
    activations,
    arithmetic,
    convolutions,
    edges,
    moving,
    reductions,
    resizing,
)
