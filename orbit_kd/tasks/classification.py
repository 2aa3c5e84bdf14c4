"""One class an image, of two or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orbit_kd.datasets.labels import are_rows, check_several, class_numbers
from orbit_kd.errors import InputError
from orbit_kd.tasks.metrics import confusion_matrix, mcnemar
from orbit_kd.tasks.network import heads
from orbit_kd.tasks.task import Metric, Outputs, Records, Task, tasks

if TYPE_CHECKING:
    import tf_keras as keras

    from orbit_kd.datasets import Data


class ClassScores(Task):
    """What tasks share whose answer is one class an image. A record is (label, predicted class).

    Attributes:
        classes: how many.
    """

    metric = Metric("accuracy", "accuracy")

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def keras_metrics(self, model: keras.Model) -> list[Any]:
        return ["accuracy"]

    def check_data(self, data: Data) -> None:
        found = len(data.class_names) or 1 + max(_largest_label(data, split) for split in ("train", "val", "test"))
        if found > self.classes or (data.class_names and found != self.classes):
            raise InputError(
                f"The data has {found} classes and the network has {self.classes} outputs.",
                expected="one output a class",
                fix="use the data set the model was trained on, or train a teacher for this one (tools/train.py); "
                "labels that begin at 1: .map(lambda x, y: (x, y - 1))",
            )
        data.check_classes()

    def truth(self, y: Any) -> np.ndarray:
        found = class_numbers(y)
        if len(found) and not 0 <= found.min() <= found.max() < self.classes:
            raise InputError(
                f"There are labels from {found.min()} to {found.max()}, and the network knows {self.classes} classes.",
                expected=f"labels from 0 to {self.classes - 1}",
                fix="give the data this network was trained for, its classes in the same order; labels that begin at "
                "1: .map(lambda x, y: (x, y - 1))",
            )
        return found

    def predicted(self, outputs: Outputs) -> np.ndarray:
        """The class of each sample (n,)."""
        return outputs[0].reshape(len(outputs[0]), -1).argmax(-1)

    def records(self, truth: Any, outputs: Outputs) -> Records:
        if (width := int(np.prod(outputs[0].shape[1:]))) != self.classes:
            raise InputError(
                f"The numbers of classes differ: {self.classes}, and {width} outputs of a network.",
                expected="the same number everywhere",
                fix="compare networks of the same task",
            )
        return np.stack([truth, self.predicted(outputs)], axis=1).astype(np.int64)

    def right(self, records: Records) -> np.ndarray:
        return (records[:, 0] == records[:, 1]).astype(float)

    def value(self, records: Records) -> float:
        return float(self.right(records).mean())

    def details(self, records: Records) -> dict[str, Any]:
        matrix = confusion_matrix(records[:, 0], records[:, 1], classes=self.classes)
        return {"accuracy": self.value(records), "confusion": matrix.tolist()}

    def compare(self, first: Records, second: Records) -> dict[str, Any]:
        test = mcnemar(self.right(first) > 0, self.right(second) > 0)
        return {"mcnemar_p": test.p, "teacher_only_right": test.first_only, "student_only_right": test.second_only}

    def chance(self, records: Records) -> float:
        return float(np.bincount(records[:, 0]).max() / len(records))

    def check_labels(self, truth: Any, *, what: str) -> None:
        check_several(truth, what=what, classes=self.classes)

    def truth_in(self, records: Records) -> np.ndarray:
        return records[:, 0].astype(np.int64)

    def arguments(self) -> dict[str, Any]:
        return {"classes": self.classes}


def _largest_label(data: Data, split: str) -> int:
    """Of class numbers, or rows (soft ones too, in training); -1 for an empty data set."""
    told = data.contents[split]
    if told.problem is not None:
        raise told.problem
    return told.width - 1 if told.width else max(told.classes or (), default=-1)


@tasks.register("classification")
class Classification(ClassScores):
    """One score for each of two or more classes, logits or softmax; one of the classes is right."""

    name = "classification"

    @classmethod
    def of(cls, model: keras.Model, data: Data | None = None) -> Classification:
        shape = model.outputs[0].shape
        if len(model.outputs) != 1 or len(shape) != 2 or shape[-1] is None or shape[-1] < 2:
            raise InputError(
                f"Model {model.name!r} has outputs of shape {', '.join(str(tuple(t.shape)) for t in model.outputs)}.",
                expected="one score for each of two or more classes",
                fix="name the task it is for (--task); where it is a classifier, let its last layer give one number a "
                "class",
            )
        from orbit_kd.models.label_losses import check_classes

        if check_classes(model) == "labels" and data is not None:
            raise InputError(
                f"Model {model.name!r} ends in {heads(model)[0]}: independent labels, each yes or no.",
                expected="a classifier: one class an image, a softmax over the classes or the scores before it",
                fix='where several labels may be right, say so: task="multi_label" (--task=multi_label); if one class '
                "an image is right, give the last layer activation=None in place of the sigmoid: the largest output "
                "stays the same",
            )
        return cls(int(shape[-1]))

    def loss(self, model: keras.Model, data: Data | None = None) -> Any:
        from orbit_kd.models.label_losses import cross_entropy

        return cross_entropy(model, one_hot=data is not None and are_rows(data.val.element_spec[1].shape))

    def sample_loss(self, model: keras.Model, *, loss: Any = None) -> Callable[[Any, Sequence[Any]], Any]:
        from orbit_kd.models.label_losses import class_loss

        each = class_loss(model, loss=loss)
        return lambda y, outputs: each(y, outputs[0])
