"""Removes filters from a model: makes, prints, saves and applies a plan, without any training.

python tools/prune.py --model=model.keras --keep_macs=0.4 --plan=out/plan.json   # to look at or edit
python tools/prune.py --model=model.keras --plan=out/plan.json --output=out/small.keras  # applies it
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from orbit_kd.errors import InputError
from orbit_kd.pipeline.recipe import Recipe
from orbit_kd_tools.common import (
    FLAGS,
    collect,
    define,
    define_budgets,
    define_trust,
    given_budgets,
    load,
    required,
    run,
)

HOW = ("criterion", "ratio", "ratios", "round_to", "min_channels", "exclude", "unknown")

flags.DEFINE_string("model", None, "A .keras or .h5 file or a SavedModel folder.")
flags.DEFINE_string("plan", "", "JSON file of the plan: read where it exists, else written.")
flags.DEFINE_string("output", "", "The .keras file to write; empty for the plan alone.")
flags.DEFINE_string("scope", "local", "Shrink all groups alike (local) or rank all channels together (global).")
flags.DEFINE_float("max_ratio", 1.0, "No group loses more than this part of its channels.")
define_trust()
define_budgets()
define(Recipe, skip=tuple(set(Recipe.__dataclass_fields__) - set(HOW)))


def main() -> None:
    required("model")
    recipe = collect(Recipe)

    from orbit_kd.models.saving import save_model
    from orbit_kd.removal.plan import RemovalPlan
    from orbit_kd.removal.planning import plan_removal
    from orbit_kd.removal.surgery import remove_filters
    from orbit_kd.support.files import write_file

    model = load(FLAGS.model)
    budget = given_budgets()
    file = Path(FLAGS.plan) if FLAGS.plan else None
    if file and file.is_file():
        plan = RemovalPlan.from_json(file.read_text())
    elif budget or FLAGS["ratio"].present or recipe.ratios:
        how = {name: getattr(recipe, name) for name in HOW}
        plan = plan_removal(model, scope=FLAGS.scope, max_ratio=FLAGS.max_ratio, **how, **budget)
        if file:
            write_file(file, plan.to_json())
    else:
        raise InputError(
            "Nothing says how much to remove.",
            expected="--ratio, --ratios, a budget such as --keep_macs, or an existing --plan",
            fix="give one of them",
        )
    print(plan)
    if FLAGS.output:
        print(f"written: {save_model(remove_filters(model, plan), FLAGS.output)}")


if __name__ == "__main__":
    run(main)
