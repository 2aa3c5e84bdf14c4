"""What a network is for: one class a file, registered by name in `tasks`; `choose` finds the one that fits."""

from orbit_kd.tasks import binary, classification, detection, multi_label, regression, segmentation, several  # noqa: F401
from orbit_kd.tasks.choice import choose
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, from_config, tasks

__all__ = ["Metric", "Outputs", "Records", "Task", "choose", "from_config", "tasks"]
