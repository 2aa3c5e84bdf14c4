"""Trains a reference network on a data set, for use as a teacher.

  python tools/train.py --network=vgg16 --width=0.25 --data=sar_sim --epochs=15 --output=out/teacher.keras

The same command goes on where a killed run stopped; a finished one is not run again.
"""

from __future__ import annotations

from absl import flags

from orbit_kd.datasets.augment import Augment
from orbit_kd_tools.common import FLAGS, collect, define, define_data, load_data, required, run

flags.DEFINE_string(
    "network",
    "vgg16",
    "Reference network: vgg16, vgg16_average, a_convnet, resnet18, resnet20, resnet56 or mobilenet_v1; unet for masks, "
    "centernet for boxes.",
)
flags.DEFINE_float("width", 1.0, "Multiplier on all channel counts of the network.")
flags.DEFINE_integer("epochs", 30, "Passes over the training images.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Of Adam at the start; it falls to zero on a cosine.", lower_bound=0.0)
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_string("output", None, "The .keras file to write.")
define_data(teacher=False)
define(Augment)


def main() -> None:
    required("output")
    augment, data = collect(Augment), load_data()

    import tf_keras as keras

    from orbit_kd.models import networks
    from orbit_kd.search.evaluator import Evaluator, examples_of
    from orbit_kd.tasks import choose
    from orbit_kd.training import fit as training

    keras.utils.set_random_seed(FLAGS.seed)
    outputs = 1 if data.task == "binary" else len(data.class_names)
    model = networks.build(FLAGS.network, data.shape, classes=outputs, width=FLAGS.width)
    training.train(
        model,
        data,
        epochs=FLAGS.epochs,
        learning_rate=FLAGS.learning_rate,
        batch_size=FLAGS.batch_size,
        augment=augment,
        task=FLAGS.task,
        seed=FLAGS.seed,
        path=FLAGS.output,
    )
    task, batches = examples_of(
        data.test, None, model=model, task=choose(model, data, task=FLAGS.task), what="test data"
    )
    found = Evaluator(model, batches, memory=0, task=task).measure()
    print(f"{FLAGS.output}: test {task.metric.name} {task.metric.text(found.accuracy)} ({found.images} images)")


if __name__ == "__main__":
    run(main)
