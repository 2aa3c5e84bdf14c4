"""Sensitivity of a trained classifier: accuracy against the removed part, one curve for each group of filters.

  python tools/sensitivity.py --model=model.keras --data_dir=images/ --output=out/scan
  python tools/sensitivity.py --model=model.keras --data_dir=images/ --output=out/scan --keep_macs=0.2

Writes OUTPUT.json, .csv and .png from the validation images; with a budget also prints the ratios that meet it at the
least predicted loss, as --ratios=... for tools/prune.py and tools/compress.py. The same command goes on where a killed
run stopped.
"""

from __future__ import annotations

from absl import flags

from orbit_kd.errors import InputError
from orbit_kd_tools.common import FLAGS, define_budgets, define_data, given_budgets, load, load_data, required, run

flags.DEFINE_string("model", None, "A .keras or .h5 file or a SavedModel folder.")
flags.DEFINE_string("output", None, "Files to write, without their endings.")
flags.DEFINE_list("ratios", [], "Parts that go, each in (0, 1): 0.1 to 0.9 where none are given; 1 - bits/8 of bits.")
flags.DEFINE_enum("of", "filters", ["filters", "weights", "bits"], "What goes: filters, a layer's smallest weights, or "
                  "the bits of its kernel.")  # fmt: skip
flags.DEFINE_string("criterion", "l1_norm", "Which filters go first.")
flags.DEFINE_integer("images", None, "Validation images to use; all where not given.", lower_bound=1)
flags.DEFINE_float("lost", None, "Stop a point that is surely below this part of the whole network's accuracy.")
flags.DEFINE_float("tolerance", None, "Measure points and images only as far as it takes to know the rise of the loss "
                   "to this, or to a tenth of itself.")  # fmt: skip
flags.DEFINE_integer("memory", 1 << 30, "Bytes that kept activations may take.", lower_bound=0)
flags.DEFINE_list("exclude", [], "Layers (shell patterns) whose groups are left out.")
flags.DEFINE_string("unknown", "error", "Layers without a channel rule: error, or keep.")
define_budgets()
define_data(teacher=False)


def ratios_of(texts: list[str]) -> list[float]:
    """The numbers of --ratios."""
    try:
        return [float(text) for text in texts]
    except ValueError as e:
        raise InputError(f"--ratios={','.join(texts)} cannot be read.", expected="numbers such as 0.25,0.5",
                         fix="mend --ratios") from e  # fmt: skip


def main() -> None:
    required("model", "output")

    from orbit_kd.search.ratios import ratios_for
    from orbit_kd.search.sensitivity import sensitivity
    from orbit_kd.training.fit import check_fit

    data, model = load_data(), load(FLAGS.model)
    budget = given_budgets()
    task = check_fit(model, data, task=FLAGS.task)
    scan = sensitivity(
        model,
        data.val,
        ratios=ratios_of(FLAGS.ratios) or None,
        train=data.train,
        task=task,
        path=f"{FLAGS.output}.state.json",
        **{name: FLAGS[name].value for name in ("of", "criterion", "images", "lost", "tolerance", "memory", "exclude",
                                                "unknown", "seed")},
    )  # fmt: skip
    scan.to_json(f"{FLAGS.output}.json")
    scan.to_csv(f"{FLAGS.output}.csv")
    scan.plot(f"{FLAGS.output}.png")
    print(f"{scan}\n\nwritten: {FLAGS.output}.json, .csv, .png")
    if budget:
        found = ratios_for(scan, model, unknown=FLAGS.unknown, **budget)
        print("--ratio=0 --ratios=" + ",".join(f"{name}:{part:.4f}" for name, part in found.items()))


if __name__ == "__main__":
    run(main)
