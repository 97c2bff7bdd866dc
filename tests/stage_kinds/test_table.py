"""The table of stage kinds: what its rows name exists, and everything that lists kinds reads it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import accord
from accord.cli import parse
from accord.config.common import Stage
from accord.config.section import known_keys
from accord.config.variants import Variants
from accord.pipeline.references import references
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

REPO = Path(__file__).parents[2]


def classes_of(kind: str) -> list[type[Stage]]:
    settings = STAGE_KINDS[kind].settings
    return [*settings.classes.values()] if isinstance(settings, Variants) else [settings]


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_row_names_what_exists(kind: str) -> None:
    row = STAGE_KINDS[kind]
    assert row.name == kind
    assert callable(row.function)
    assert all(issubclass(cls, Stage) for cls in classes_of(kind))
    assert row.version >= 1
    keys = {key for cls in classes_of(kind) for key in known_keys(cls)}
    named = {key for r in row.references for key in (r.key, r.unless, r.only_with) if key}
    for key in {*named, *row.files}:
        assert key.removesuffix(".*") in keys, key


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_row_says_what_to_do_next(kind: str) -> None:
    config = STAGE_KINDS[kind].settings(name="mine", out="results")
    words = STAGE_KINDS[kind].next_words(config)
    assert words.startswith("accord ")
    assert "{" not in words
    for command in words.split(", where ")[0].split(", or "):
        if " with " not in command and ";" not in command:  # a sentence
            parse(command.split()[1:])


def test_what_comes_next_depends_on_the_variant() -> None:
    ppo, reward = STAGE_KINDS["ppo"], STAGE_KINDS["reward"]
    assert ppo.next_words(ppo.settings(name="mine")) == "accord chat checkpoints/rlhf/mine"
    for given in ({"model": {"policy": "heads"}}, {"environment": "CartPole-v1"}):
        config = ppo.settings(**given)
        assert ppo.next_words(config) == "accord plot logs/rlhf/ppo, or open its curves in logs/rlhf/ppo/ppo.svg"
    assert reward.next_words(reward.settings()) == "accord ppo reward.source=checkpoints/rlhf/reward"
    assert reward.next_words(reward.settings(model={"input_dim": 8})) == "accord ppo --config configs/ppo_train.yaml"


def test_a_reference_counts_only_where_its_conditions_hold() -> None:
    compare, ppo = STAGE_KINDS["compare"].settings, STAGE_KINDS["ppo"].settings
    for given, found in (({}, False), ({"reward_model": "r"}, True)):
        assert ("pairs" in {r.key for r, _ in references("compare", compare(**given))}) is found
    for terms, found in (([], True), ([{"source": "a"}], False)):
        named = {r.key for r, _ in references("ppo", ppo(reward={"terms": terms}))}
        assert ("reward.source" in named, "reward.terms.0.source" in named) == (found, not found)


def test_the_table_loads_without_settings_and_torch() -> None:
    code = (
        "import sys, accord.stage_kinds.table; print(sorted({'pydantic', 'yaml', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_independence_contract_lists_the_files_of_the_stages() -> None:
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    contract = re.search(
        r'name = "Stages do not import each other"\ntype = "independence"\nmodules = (\[.*?\])', text, re.DOTALL
    )
    assert contract
    assert ast.literal_eval(contract[1]) == [row.function_path.partition(":")[0] for row in STAGE_KINDS.values()]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Every kind's function replaced by one that only records that it ran; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []

    def stage(kind: str) -> Callable[[Any, Run], dict[str, float]]:
        def train(config: Any, run: Run) -> dict[str, float]:
            ran.append(kind)
            run.open_folders()
            for name in ("base", "sft", "preferences", "heldout_preferences", "prompts", "heldout_prompts", "samples"):
                (run.directory / f"{name}.jsonl").write_text(f"{name}\n")
            (run.directory / "model").mkdir(exist_ok=True)
            (run.directory / "model" / "config.json").write_text("{}")
            return {"loss": 1.0}

        return train

    for kind, row in STAGE_KINDS.items():
        module = ModuleType(f"counted_{kind}")
        module.train = stage(kind)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(STAGE_KINDS, kind, replace(row, function_path=f"{module.__name__}:train"))
    return ran


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_stages_function_may_be_called_twice(kind: str, counted: list[str]) -> None:
    function = getattr(accord.stages, kind)
    first, second = function(seed=1), function(seed=1)
    assert (first.skipped, second.skipped) == (False, True)
    assert counted.count(kind) == 1
    assert first.folder == second.folder == Path("checkpoints/rlhf") / kind
    assert first.metrics == second.metrics == {"loss": 1.0}
