"""Every YAML that is shipped loads, as the config of its stage or as a pipeline whose names and files exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.cli import parse
from accord.config.load import load
from accord.io.readers import read_yaml
from accord.pipeline.orchestrator import plan
from accord.stage_kinds.table import STAGE_KINDS

REPO = Path(__file__).parents[2]
FILES = sorted(str(p.relative_to(REPO)) for p in (REPO / "configs").rglob("*.y*ml"))
STAGE_OF = {
    "configs/rlhf_sft.yaml": "sft",
    "configs/reward_model.yaml": "reward",
    "configs/ppo_train.yaml": "ppo",
    "configs/dpo_train.yaml": "dpo",
}


def command_in(path: Path) -> list[str]:
    """The command that a file's first comments give for it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and f" {path.relative_to(REPO)}" in line and "accord " in line:
            return line[line.index("accord ") + 7 :].split("  ")[0].split()
    return []


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)  # as every command in the documentation is run


def test_the_shipped_files_are_there() -> None:
    assert {*STAGE_OF, "configs/pipeline.yaml"} <= set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_shipped_config_loads(file: str) -> None:
    values, _ = read_yaml(file)
    if "stages" in values:
        pipeline, planned = plan(file)
        assert [p.name for p in planned] == list(values["stages"])
        assert pipeline.seed == values.get("seed", 0)
    else:
        words = command_in(REPO / file)
        kind = STAGE_OF.get(file) or words[0]
        config = load(STAGE_KINDS[kind].settings, file)
        assert config != STAGE_KINDS[kind].settings() or file in STAGE_OF


@pytest.mark.parametrize("file", FILES)
def test_a_shipped_config_names_the_command_that_runs_it(file: str) -> None:
    words = command_in(REPO / file)
    assert words, f"{file}: say in a comment which command runs it"
    options = parse(words)
    if "stages" in read_yaml(file)[0]:
        assert (options.command, options.pipeline) == ("run", file)
        plan(file, options.overrides)
    else:
        assert options.config == file
        assert options.command == STAGE_OF.get(file, options.command)
        load(STAGE_KINDS[options.command].settings, file, options.overrides)


@pytest.mark.parametrize("file", [f for f in FILES if "recipes" in f and "stages" in read_yaml(f)[0]])
def test_a_recipe_writes_beside_the_others(file: str) -> None:
    """Two recipes in one folder would each rerun the other's stages."""
    pipeline, _ = plan(file)
    others = [plan(f)[0] for f in FILES if f != file and "stages" in read_yaml(f)[0]]
    assert pipeline.out not in [other.out for other in others]
    assert pipeline.logs not in [other.logs for other in others]


def test_the_small_world_compares_what_the_table_shows() -> None:
    _, planned = plan("configs/pipeline.yaml")
    compare = planned[-1]
    assert compare.kind == "compare"
    models = compare.config.model_dump()["models"]
    assert list(models) == ["sft", "ppo", "dpo"]
    kinds = {p.name: p.kind for p in planned}
    assert [kinds[stage] for stage in models.values()] == ["sft", "ppo", "dpo"]
    assert compare.config.model_dump()["samples"] >= 3


def test_gold_stays_hidden_from_the_trainers() -> None:
    """Only the annotator, whose labels are noisy, and the comparison name the true reward."""
    _, planned = plan("configs/pipeline.yaml")
    for stage in planned:
        text = stage.config.model_dump_json()
        assert ("gold" in text) == (stage.kind in ("pairs", "compare")), stage.name
    pairs = next(p for p in planned if p.kind == "pairs")
    assert pairs.config.model_dump()["noise"] > 0
