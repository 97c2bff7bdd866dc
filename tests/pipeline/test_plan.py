"""Any graph of stages from a YAML: order by dependency, grids, joins, fan-in; mistakes are reported before anything runs."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.errors import UserError
from accord.pipeline.grid import filled, points
from accord.pipeline.plan import Planned, plan, selected

CHAIN = {
    "demo": {},
    "base": {"inputs": {"data.train": "demo"}},
    "sft": {"inputs": {"model.base_model": "base", "data.train": "demo"}},
    "reward": {"inputs": {"model.base_model": "sft", "data.train": "demo"}},
    "ppo": {
        "for": {"beta": [0.05, 0.1]},
        "inputs": {"model.base_model": "sft", "reward.source": "reward", "prompts": "demo"},
        "set": {"model.policy": "language", "kl.beta": "{beta}"},
    },
}


def planned(tmp_path: Path, stages: dict[str, Any], *overrides: str) -> dict[str, Planned]:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return {p.name: p for p in plan(path, overrides)[1]}


def refusal(tmp_path: Path, stages: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, stages, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def dumped(stage: Planned) -> dict[str, Any]:
    return stage.config.model_dump()


# ------------------------------------------------------------------ order
def test_stages_run_after_their_inputs_in_any_order_of_the_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(20):
        names = rng.sample(list(CHAIN), len(CHAIN))
        made = planned(tmp_path, {name: CHAIN[name] for name in names})
        places = {name: place for place, name in enumerate(made)}
        for stage in made.values():
            assert all(places[need] < places[stage.name] for need in stage.needs), stage.name
    assert set(made["ppo_beta-0.1"].needs) == {"sft", "reward", "demo"}


def test_where_needs_leave_a_choice_the_file_decides(tmp_path: Path) -> None:
    for names in itertools.permutations(["a", "b", "c"]):
        assert list(planned(tmp_path, {name: {"kind": "demo"} for name in names})) == list(names)


def test_defaults_are_dependencies_too(tmp_path: Path) -> None:
    """reward.source is 'reward' by default, and a stage of that name is taken."""
    stages = {"ppo": {"set": {"model.policy": "language"}}, **{k: CHAIN[k] for k in ("reward", "sft", "base", "demo")}}
    assert set(planned(tmp_path, stages)["ppo"].needs) == {"sft", "reward", "demo"}


def test_a_circle_names_its_stages(tmp_path: Path) -> None:
    stages = {
        "demo": {},
        "base": {"inputs": {"data.train": "demo"}},
        "a": {"kind": "sft", "inputs": {"model.base_model": "b"}},
        "b": {"kind": "dpo", "inputs": {"model.base_model": "c"}},
        "c": {"kind": "dpo", "inputs": {"model.base_model": "a"}},
        "d": {"kind": "dpo", "inputs": {"model.base_model": "c"}},
    }
    assert refusal(tmp_path, stages).startswith(
        "p.yaml: 'a' takes 'b' takes 'c' takes 'a'; stages cannot depend on each other in a cycle"
    )


# ------------------------------------------------------------------ grids
def test_a_grid_becomes_stages_and_keeps_types(tmp_path: Path) -> None:
    stages = {**CHAIN, "ppo": {**CHAIN["ppo"], "for": {"beta": [0.05, 0.1], "whiten": [True, False]}}}
    stages["ppo"]["set"] = {**CHAIN["ppo"]["set"], "reward.whiten": "{whiten}", "model.base_model": "sft"}  # type: ignore[index]
    made = planned(tmp_path, stages)
    grid = [name for name in made if name.startswith("ppo")]
    assert grid == [f"ppo_beta-{b}_whiten-{w}" for b in ("0.05", "0.1") for w in ("true", "false")]
    values = [(dumped(made[n])["kl"]["beta"], dumped(made[n])["reward"]["whiten"]) for n in grid]
    assert values == [(0.05, True), (0.05, False), (0.1, True), (0.1, False)]
    assert [made[n].config.name for n in grid] == grid  # each has a folder of its own


def test_variables_are_filled_in_with_their_types() -> None:
    variables = {"n": 3, "rate": 1e-05, "name": "a b", "on": True}
    assert filled({"a": ["{n}", "{n}{n}", {"b": "{on}"}], "c": "x-{name}", "d": "{other}"}, variables) == {
        "a": [3, "33", {"b": True}],
        "c": "x-a-b",
        "d": "{other}",
    }
    assert [p.name for p in points("s", {"rate": [1e-05], "name": ["a b"], "on": [True]})] == [
        "s_rate-1e-05_name-a-b_on-true"
    ]


def test_the_same_variable_joins_one_to_one(tmp_path: Path) -> None:
    grid = {"beta": [0.05, 0.1]}
    stages = {
        **CHAIN,
        "compare": {"for": grid, "inputs": {"reference": "sft", "prompts": "demo", "models.ppo": "ppo"},
                    "set": {"models.sft": "sft"}},
    }  # fmt: skip
    made = planned(tmp_path, stages)
    for beta in ("0.05", "0.1"):
        assert dumped(made[f"compare_beta-{beta}"])["models"] == {"sft": "sft", "ppo": f"ppo_beta-{beta}"}
        assert f"ppo_beta-{beta}" in made[f"compare_beta-{beta}"].needs


def test_a_grid_over_two_is_joined_by_what_is_shared(tmp_path: Path) -> None:
    """Rewards by seed, PPO by seed and beta: each PPO takes the reward of its seed."""
    stages = {
        **{k: CHAIN[k] for k in ("demo", "base", "sft")},
        "reward": {"for": {"n": [1, 2]}, "inputs": {"model.base_model": "sft"}, "set": {"seed": "{n}"}},
        "ppo": {
            "for": {"n": [1, 2], "beta": [0.05, 0.1]},
            "inputs": {"model.base_model": "sft"},
            "set": {"model.policy": "language", "kl.beta": "{beta}"},
        },
    }
    made = planned(tmp_path, stages)
    for n, beta in itertools.product((1, 2), ("0.05", "0.1")):
        assert dumped(made[f"ppo_n-{n}_beta-{beta}"])["reward"]["source"] == f"reward_n-{n}"


def test_a_pattern_takes_every_stage_that_matches(tmp_path: Path) -> None:
    stages = {
        **CHAIN,
        "compare": {"set": {"models": {"sft": "sft", "any": "ppo_*"}, "prompts": "demo"}},
        "fuse": {"set": {"models": ["ppo_*"]}},
        "weighed": {"kind": "fuse", "set": {"models": [{"model": "ppo_*", "weight": 2}, "sft"]}},
    }
    made = planned(tmp_path, stages)
    names = ["ppo_beta-0.05", "ppo_beta-0.1"]
    assert dumped(made["compare"])["models"] == {"sft": "sft", "ppo_beta-0_05": names[0], "ppo_beta-0_1": names[1]}
    assert [m["model"] for m in dumped(made["fuse"])["models"]] == names
    assert [(m["model"], m["weight"]) for m in dumped(made["weighed"])["models"]] == [
        (names[0], 2.0),
        (names[1], 2.0),
        ("sft", 1.0),
    ]
    assert set(names) < set(made["compare"].needs)


def test_overrides_reach_a_stage_or_its_whole_grid(tmp_path: Path) -> None:
    made = planned(tmp_path, CHAIN, "ppo.kl.horizon=7", "ppo_beta-0.1.kl.horizon=9", "ppo_beta-0.05.seed=3")
    assert [dumped(made[f"ppo_beta-{b}"])["kl"]["horizon"] for b in ("0.05", "0.1")] == [7, 9]
    assert [made[f"ppo_beta-{b}"].config.seed for b in ("0.05", "0.1")] == [3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dpo": {"inputs": {"model.base_model": "ppo"}}}, "p.yaml, stage 'dpo': model.base_model is 'ppo', a grid with 2"),
        (
            {"dpo": {"inputs": {"model.base_model": "ppo_*"}}},
            "p.yaml, stage 'dpo': model.base_model takes one stage, and 'ppo_*' matches 2: ppo_beta-0.05, ppo_beta-0.1.",
        ),
        (
            {"dpo": {"for": {"beta": [0.3]}, "inputs": {"model.base_model": "ppo"}, "set": {"training.beta": "{beta}"}}},
            "p.yaml, stage 'dpo_beta-0.3': model.base_model is 'ppo', a grid with 0 stages that fit",
        ),
        (
            {"compare": {"set": {"models": {"sft": "sft", "all": "pppo_*"}}}},
            "p.yaml line 28, stage 'compare': no stage is called 'pppo_*'",
        ),
        (
            {"dpo": {"for": {"x": [1, 2]}, "inputs": {"model.base_model": "sft"}}},
            "p.yaml, stage 'dpo': dpo_x-1 and dpo_x-2 have the same settings; use the grid's variables",
        ),
        ({"x": {"kind": "demo", "for": {"n": []}}}, "p.yaml line "),
        ({"x": {"kind": "demo", "for": {"n-m": [1]}}}, "p.yaml line "),
        ({"x": {"kind": "demo", "fro": {"n": [1]}}}, "p.yaml line "),
        (
            {"x": {"kind": "demo", "for": {"n": [1, 1.0, "1"]}, "set": {"seed": "{n}"}}},
            "p.yaml: two stages would be called 'x_n-1'",
        ),
        ({"dpo": {"inputs": {"model.base_model": "ppo_beta-0.2"}}}, "p.yaml line "),
    ],
)  # fmt: skip
def test_mistakes_in_a_pipeline_name_line_and_stage(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    said = refusal(tmp_path, {**CHAIN, **change})
    assert said.startswith(message)
    assert "\n" not in said
    if "fro" in str(change):
        assert "did you mean 'stages.x.for'?" in said
    if "0.2" in str(change):
        assert "which is not another stage; did you mean 'ppo_beta-0.1'?" in said or "'ppo_beta-0.05'?" in said


def test_stages_are_selected_by_name_grid_or_pattern(tmp_path: Path) -> None:
    made = list(planned(tmp_path, {**CHAIN, "ppo_lm": {"kind": "demo"}}).values())
    both = {"ppo_beta-0.05", "ppo_beta-0.1"}
    assert selected(["ppo"], made, "--only") == both
    assert selected(["ppo_*"], made, "--only") == {*both, "ppo_lm"}
    assert selected(["sft, ppo_beta-0.1", "demo"], made, "--only") == {"sft", "ppo_beta-0.1", "demo"}
    with pytest.raises(UserError, match=r"--only stf: no such stage; did you mean 'sft'\?"):
        selected(["stf"], made, "--only")
