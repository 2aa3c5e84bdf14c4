"""Trains a student with a teacher: distillation losses, schedules, cached or fresh augmentation, several workers.

  python tools/distill.py --teacher=t.keras --plan=out/plan.json --data_dir=images/ --output=out/student.keras
  python tools/distill.py --teacher=t.keras --network=resnet20 --width=0.5 --losses=logits:1,attention:0.5 \
      --alpha=0:0.9,20:0.5 --data_dir=images/ --output=out/student.keras

The same command goes on where a killed run stopped. On several machines run it on each with TF_CONFIG set:

  TF_CONFIG='{"cluster": {"worker": ["a:12345", "b:12345"]}, "task": {"type": "worker", "index": 0}}' \
      python tools/distill.py --strategy=multi_worker ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from orbit_kd.datasets.augment import Augment
from orbit_kd.errors import InputError
from orbit_kd_tools.common import FLAGS, collect, define, define_data, load, load_data, load_teacher, required, run

flags.DEFINE_string("student", None, "The model to train: .keras, .h5 or a SavedModel folder; or give --plan.")
flags.DEFINE_string("plan", None, "JSON file of a removal plan (tools/prune.py): the student is the teacher after it.")
flags.DEFINE_string("network", None, "Reference network to train from scratch, in place of --student or --plan.")
flags.DEFINE_float("width", 1.0, "Multiplier on all channel counts of --network.")
flags.DEFINE_list("losses", ["logits:1"], "Distillation losses with their weights, as name:weight,name:weight.")
flags.DEFINE_string("alpha", "0.8", "Share of the distillation losses; or epoch:value,epoch:value, lines between them.")
flags.DEFINE_string("temperature", None, "Of the losses that have one; a number or epoch:value,epoch:value.")
flags.DEFINE_boolean("label_free", False, "Learn from the teacher alone; the labels are only used to measure.")
flags.DEFINE_integer("epochs", 40, "Passes over the training images.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Of Adam at the start; it falls to zero on a cosine.", lower_bound=0.0)
flags.DEFINE_integer("batch_size", 64, "Images a step, over all workers.", lower_bound=1)
flags.DEFINE_integer(
    "views",
    8,
    "Augmented renderings of each image that the teacher sees once; its outputs are kept, features too. 0: fresh ones "
    "in each epoch, and the teacher runs at each step.",
    lower_bound=0,
)
flags.DEFINE_string("strategy", "none", "none, mirrored (GPUs of this machine) or multi_worker (reads TF_CONFIG).")
flags.DEFINE_string("tensorboard", None, "Folder for TensorBoard logs.")
flags.DEFINE_boolean("test", False, "Print the accuracy on the test images too: once, at the very end of your work.")
flags.DEFINE_string("output", None, "The .keras file to write.")
define_data()
define(Augment)


def main() -> None:
    required("teacher", "output")
    if not FLAGS.output.endswith(".keras"):
        raise InputError(f"--output={FLAGS.output}.", expected="a .keras file", fix=f"--output={FLAGS.output}.keras")
    augment = collect(Augment)

    from orbit_kd.distillation.losses import get_loss
    from orbit_kd.distillation.schedules import read_schedule
    from orbit_kd.training import workers

    options = {"temperature": read_schedule(FLAGS.temperature)} if FLAGS.temperature else {}
    losses, alpha = [get_loss(text, **options) for text in FLAGS.losses], read_schedule(FLAGS.alpha)
    strategy = workers.strategies.get(FLAGS.strategy)()  # before anything else runs in TensorFlow
    data, teacher = load_data(), load_teacher()

    import tf_keras as keras

    from orbit_kd.pipeline.teaching import teach
    from orbit_kd.tasks import choose

    keras.utils.set_random_seed(FLAGS.seed)
    student = make_student(teacher, data)
    settings = {name: FLAGS[name].value for name in ("label_free", "epochs", "learning_rate", "batch_size", "views",
                                                     "seed", "tensorboard", "task")}  # fmt: skip
    history = teach(student, teacher, data=data, losses=losses, alpha=alpha, augment=augment, strategy=strategy,
                    path=FLAGS.output, **settings)  # fmt: skip
    of = choose(student, data, task=FLAGS.task)
    key, name = (f"val_{of.metric.key}", of.metric.name) if f"val_{of.metric.key}" in history else ("val_loss", "loss")
    print(f"{FLAGS.output}: validation {name} {history[key][-1]:.4f}")
    if FLAGS.test:
        from orbit_kd.search.evaluator import examples_of, value_of

        _, batches = examples_of(data.test, None, model=student, task=of, what="test data")
        print(f"test {of.metric.name} {value_of(student, batches, task=of):.4f}")


def make_student(teacher: Any, data: Any) -> Any:
    """The model of --student, the teacher after --plan, or a new --network."""
    from orbit_kd.models import networks
    from orbit_kd.removal.plan import RemovalPlan
    from orbit_kd.removal.surgery import recalibrate_batchnorm, remove_filters

    if sum(bool(FLAGS[name].value) for name in ("student", "plan", "network")) != 1:
        raise InputError(
            "It is not clear what to train.",
            expected="one of --student, --plan, --network",
            fix="give one of them alone; --student for a network of your own",
        )
    if FLAGS.student:
        return load(FLAGS.student)
    if FLAGS.network:
        return networks.build(FLAGS.network, data.shape, classes=teacher.output_shape[-1], width=FLAGS.width)
    if not Path(FLAGS.plan).is_file():
        raise InputError(
            f"There is no plan at {FLAGS.plan}.",
            expected="JSON from tools/prune.py",
            fix=f"make it: python tools/prune.py --model={FLAGS.teacher} --ratio=0.5 --plan={FLAGS.plan}",
        )
    student = remove_filters(teacher, RemovalPlan.from_json(Path(FLAGS.plan).read_text()))
    recalibrate_batchnorm(student, data.train)
    return student


if __name__ == "__main__":
    run(main)
