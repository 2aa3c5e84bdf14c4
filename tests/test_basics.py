"""Registry, errors, recipe, stages, progress, and the lazily loaded public surface."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tf_keras as keras

import orbit_kd
import orbit_kd as okd
from orbit_kd.datasets.preprocessing import Preprocess
from orbit_kd.errors import InputError
from orbit_kd.models.wrappers import KernelRule, register_kernel
from orbit_kd.pipeline.recipe import STAGES, Recipe
from orbit_kd.registry import Registry
from orbit_kd.removal import importance
from orbit_kd.support.progress import duration, track
from orbit_kd.support.stages import Stages
from orbit_kd.support.text_table import aligned


def test_every_public_name_resolves_and_is_what_type_checkers_see():
    import ast

    tree = ast.parse(Path(orbit_kd.__file__).read_text())
    seen = {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names} - {"annotations"}
    assert set(orbit_kd.__all__) == seen - {"TYPE_CHECKING", "Any"}
    assert all(getattr(orbit_kd, name) is not None for name in orbit_kd.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = orbit_kd.no_such_name


def test_importing_the_package_does_not_load_tensorflow():
    modules = "orbit_kd, orbit_kd.pipeline.recipe, orbit_kd.datasets.preprocessing, sys"
    code = f"import {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_lists_all_options():
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    registry.register("blue")(2)
    assert registry.get("red") == 1 and list(registry) == ["blue", "red"] and "red" in registry
    with pytest.raises(InputError, match=r"Unknown colour 'green'.\n.*one of: blue, red"):
        registry.get("green")


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced():
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    with pytest.raises(InputError, match=r"There is a colour 'red' already.(?s:.*)replace=True"):
        registry.register("red")(2)
    assert registry.get("red") == 1
    registry.register("red", replace=True)(2)
    assert registry.get("red") == 2


def test_the_same_definition_run_again_takes_its_own_place():
    registry: Registry[type] = Registry("colour")
    cell = "@registry.register('mine')\nclass Mine:\n    value = {}"
    for value in (1, 2):
        exec(cell.format(value), {"registry": registry, "__name__": "notebook"})
    assert registry.get("mine").value == 2
    with pytest.raises(InputError, match="already"):
        registry.register("mine")(int)


def test_what_is_filed_with_facts_about_it_takes_its_own_place_too():
    """An export target or a criterion in a notebook cell that is run twice."""
    cell = "@criterion('mine_of_test', needs={!r})\ndef mine(members): ..."
    taken = importance.criteria.temporary("mine_of_test", importance.Criterion(len))
    with taken, pytest.raises(InputError, match="criterion 'mine_of_test' already"):
        exec(cell.format(""), {"criterion": importance.criterion, "__name__": "notebook"})
    with importance.criteria.temporary("other_of_test", importance.Criterion(len)):
        for needs in ("", "gradients"):
            exec(cell.format(needs), {"criterion": importance.criterion, "__name__": "notebook"})
        assert importance.criteria.get("mine_of_test").needs == "gradients"
    assert "mine_of_test" not in importance.criteria


def test_classes_are_keys_too_and_the_nearest_base_counts():
    registry: Registry[str] = Registry("rule of")
    registry.register(int, str)("a")
    with registry.temporary(bool, "b"):
        assert registry.of_class(bool) == (bool, "b") and registry.names() == ["bool", "int", "str"]
    assert registry.of_class(bool) == (int, "a") and registry.of_class(float) is None
    with pytest.raises(InputError, match="rule of 'int' already"):
        registry.register(float, int)("c")
    assert float not in registry  # all or nothing


@pytest.mark.parametrize(
    "register",
    [
        lambda: okd.channel_rule(keras.layers.Dense)(len),
        lambda: register_kernel(keras.layers.Dense, KernelRule(axis=-1)),
        lambda: okd.budgets.cost("max_params")(len),
        lambda: okd.importance.criterion("l1_norm")(len),
        lambda: okd.exporters.target("c_array")(len),
        lambda: okd.runtimes.runtimes.register("litert")(len),
        lambda: okd.sparsity_patterns.pattern("uhp")(len),
        lambda: okd.distillation.distillation_losses.register("logits")(okd.MSEDistillation),
    ],
)
def test_no_registry_overwrites_silently(register):
    with pytest.raises(InputError, match=r"already.(?s:.*)replace=True"):
        register()


def test_a_temporary_entry_leaves_what_was_there_before():
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    with registry.temporary("red", 5), registry.temporary("blue", 6):
        assert (registry.get("red"), registry.get("blue")) == (5, 6)
    assert registry.names() == ["red"] and registry.get("red") == 1


def test_a_recipe_goes_to_plain_values_and_back():
    recipe = Recipe(ratios={"a": 0.5}, exclude=("b",))
    assert Recipe(**recipe.to_dict()) == recipe
    preprocess = Preprocess(crop=64, mean=(1.0,), channels=1)
    assert preprocess.crop == (64, 64) and Preprocess(**preprocess.to_dict()) == preprocess


@pytest.mark.parametrize("bad", [{"crop": 0}, {"resize": (1, 2, 3)}, {"channels": 2}])
def test_a_bad_preprocess_is_refused(bad):
    with pytest.raises(InputError, match="Preprocess"):
        Preprocess(**bad)


def test_a_stage_runs_once_and_again_when_it_or_a_stage_it_follows_changes(tmp_path):
    def go(first: int, second: int, apart: int) -> list[str]:
        ran, stages = [], Stages(tmp_path, "start")
        for name, value, after in (("one", first, ()), ("apart", apart, ()), ("two", second, ("one",))):
            with stages.stage(name, after=after, value=value) as (folder, done):
                if not done:
                    ran.append(name)
                    (folder / "out").write_text(str(value))
        assert [s["name"] for s in stages.seconds] == ["one", "apart", "two"]
        return ran

    assert [go(1, 1, 1), go(1, 1, 1)] == [["one", "apart", "two"], []]
    assert [go(1, 2, 1), go(2, 2, 1), go(2, 2, 2)] == [["two"], ["one", "two"], ["apart"]]
    assert (tmp_path / "one/out").read_text() == "2"


def test_every_setting_of_a_recipe_belongs_to_a_stage_and_no_stage_is_without():
    stages = {f.name: f.metadata["stages"] for f in dataclasses.fields(Recipe)}
    assert all(names and set(names) <= set(STAGES) for names in stages.values())
    assert set().union(*stages.values()) == set(STAGES)
    assert Recipe(alpha=0.5).settings("distill")["alpha"] == 0.5
    with pytest.raises(KeyError):
        Recipe().settings("of no stage")


def test_a_killed_stage_keeps_its_folder_and_its_seconds(tmp_path):
    stages = Stages(tmp_path, "start")
    with pytest.raises(KeyboardInterrupt), stages.stage("one") as (folder, _):
        (folder / "half").write_text("so far")
        raise KeyboardInterrupt
    with Stages(tmp_path, "start").stage("one") as (folder, done):
        assert not done and (folder / "half").read_text() == "so far"


def test_the_seconds_of_a_stage_add_up_over_its_kills_and_not_over_calls_that_find_it_done(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 103.0, 200.0])
    monkeypatch.setattr("orbit_kd.support.stages.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(KeyboardInterrupt), Stages(tmp_path, "start").stage("one"):
        raise KeyboardInterrupt
    for _ in range(2):
        stages = Stages(tmp_path, "start")
        with stages.stage("one"):
            pass
        assert stages.seconds == [{"name": "one", "seconds": 8.0}]


def test_progress_tells_the_time_left(caplog):
    with caplog.at_level(logging.INFO, "orbit_kd"):
        assert list(track([1, 2, 3], "work", every=0.0)) == [1, 2, 3]
    assert "work 1/3" in caplog.text and "left" in caplog.text
    assert [duration(s) for s in (5, 185, 4000)] == ["5s", "3m05s", "1h06m"]


def test_progress_is_a_bar_on_a_terminal_and_silent_where_nothing_is_to_be_said(capsys, monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for level, shown in ((logging.INFO, True), (logging.WARNING, False)):
        with caplog.at_level(level, "orbit_kd"):
            assert list(track(iter([1, 2, 3]), "work", total=3, every=0.0)) == [1, 2, 3]
        assert ("work:   0%" in capsys.readouterr().err) == shown
    assert "work" not in caplog.text


def test_columns_of_a_table_stand_below_each_other():
    assert aligned([("layer", "weights", ""), ("conv", "8", "dense"), ("a", "1,024", "")], "<><") == [
        "layer  weights",
        "conv         8  dense",
        "a        1,024",
    ]
