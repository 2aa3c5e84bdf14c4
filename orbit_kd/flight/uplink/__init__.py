"""The next version of a file over a narrow uplink: the smallest update, one file or space packets, applied whole."""

from orbit_kd.flight.uplink import deltas, tensors, whole  # noqa: F401  register their methods
from orbit_kd.flight.uplink.methods import Method, methods
from orbit_kd.flight.uplink.update import Made, Update, apply_update, make_update

__all__ = ["Made", "Method", "Update", "apply_update", "make_update", "methods"]
