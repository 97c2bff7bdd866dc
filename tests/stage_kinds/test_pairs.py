"""The stage pairs: how replies are sampled, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.config.data import PairsConfig
from accord.errors import UserError
from accord.models.open import open_backbone
from accord.stage_kinds.pairs import sampling_groups


def test_every_prompt_is_answered_once_at_each_temperature() -> None:
    config = PairsConfig(replies=5, temperatures=(1.0, 0.7), batch_size=6)
    groups = sampling_groups(config, 5)
    assert [g.round for g in groups] == [0, 0, 0, 1, 1, 1]
    assert [list(g.prompts) for g in groups] == [[0, 1], [2, 3], [4]] * 2
    assert [(g.temperature, g.samples) for g in groups] == [(1.0, 3)] * 3 + [(0.7, 2)] * 3


# ------------------------------------------------------------------------------------- the stage
def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def talker(world: Any, tokenizer: Any, tmp_path: Path) -> str:
    """A model whose replies end: its end token is likelier than any letter."""
    import torch

    backbone = open_backbone(world.mamba)
    folder = tmp_path / "talker"
    folder.mkdir()
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if name == "embeddings.weight":
                p.mul_(2)
                p[tokenizer.eos_id] = p[5:31].mean(0) * 8  # near to all letters
    backbone.save(str(folder))
    tokenizer.save(folder)
    return str(folder)


def values(world: Any, model: str, rewards: str, **changes: Any) -> dict[str, Any]:
    given = {"prompts": world.prompts, "annotator": f"{rewards}:brevity", "noise": 0.0, "replies": 6}
    more = {"max_new_tokens": 24, "batch_size": 3, "heldout_fraction": 0.4, "pairs": 3}
    return {"model": {"base_model": model, "max_length": 96}, **given, **more, **changes}


def test_the_files_hold_what_the_annotator_prefers(
    stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path
) -> None:
    outcome = stage("pairs", values(world, talker, rewards))
    train = rows(tmp_path / "out" / "pairs" / "preferences.jsonl")
    heldout = rows(tmp_path / "out" / "pairs" / "heldout_preferences.jsonl")
    assert all(len(r["chosen"]) < len(r["rejected"]) for r in [*train, *heldout])
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in heldout}
    asked = {row["prompt"] for row in rows(Path(world.prompts))}
    assert {r["prompt"] for r in [*train, *heldout]} <= asked
    metrics = outcome.done["metrics"]
    assert metrics["preferences"] == len(train)
    assert metrics["heldout_preferences"] == len(heldout)
    again = stage(
        "pairs", values(world, talker, rewards, batch_size=100), "again"
    )  # replies do not depend on the groups
    assert rows(tmp_path / "out" / "again" / "preferences.jsonl") == train
    assert again.done["metrics"] == metrics
    assert all("<eos>" not in r["chosen"] + r["rejected"] for r in train)


def test_an_instruction_is_followed_but_not_written(
    stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path
) -> None:
    stage("pairs", values(world, talker, rewards, instruction="be brief"))
    found = rows(tmp_path / "out" / "pairs" / "preferences.jsonl")
    assert found
    assert not any("be brief" in r["prompt"] for r in found)


def test_demonstrations_are_the_replies_that_ended(
    stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path
) -> None:
    outcome = stage("pairs", values(world, talker, rewards, keep="demonstrations", limit=3))
    found = rows(tmp_path / "out" / "pairs" / "sft.jsonl")
    assert len({(r["prompt"], r["completion"]) for r in found}) == len(found) > 0
    assert all(r["completion"].strip() for r in found)
    assert len({r["prompt"] for r in found}) <= 3
    assert outcome.done["metrics"]["sft"] == len(found)


def test_nothing_to_compare_is_an_error(stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no rows for preferences\.jsonl: . of 8 prompts have .* less than min_gap \(1000000"
    ):
        stage("pairs", values(world, talker, rewards, min_gap=1e6))
    with pytest.raises(
        UserError, match=r"no rows for preferences\.jsonl: no reply ended within 1 tokens; raise max_new"
    ):
        stage("pairs", values(world, world.mamba, rewards, max_new_tokens=1, limit=2, replies=2))
    with pytest.raises(UserError, match=r"replies=1 gives nothing to compare; use at least 2, or keep=demonstrations"):
        stage("pairs", values(world, talker, rewards, replies=1))
    assert not (tmp_path / "out" / "pairs" / "done.json").exists()
    with pytest.raises(UserError, match=r"the score of reply 0 .* is nan"):
        stage("pairs", values(world, talker, rewards, annotator=f"{rewards}:nan"))
    with pytest.raises(UserError, match="annotator: 'nowhere:f' cannot be imported"):
        stage("pairs", values(world, talker, rewards, annotator="nowhere:f"))
