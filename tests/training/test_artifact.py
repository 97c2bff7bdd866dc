"""Opening models: what is no language model, and models that read other tokens, are refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.reward import RewardModel
from accord.training.artifact import open_model, open_tokenizer, require_same_tokens
from tests.models.test_generation_config import write_base
from tests.rollout.test_score import reversed_tokenizer

CPU = torch.device("cpu")


def test_a_reward_model_is_no_language_model_and_the_other_way_round(world: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward: a reward model scores replies and writes none; name the language"):
        open_model(world.reward, CPU)
    with pytest.raises(
        UserError, match=r"mamba: no reward_head\.json here, so this is not a reward model but a language model"
    ):
        RewardModel.open(world.mamba)
    with pytest.raises(UserError, match=r"so this is not a reward model but no model; name a reward model"):
        RewardModel.open(tmp_path)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("sft", {"model": {"base_model": "R"}, "data": {"train": "S"}}),
        ("dpo", {"model": {"base_model": "R"}, "data": {"train": "P"}}),
        ("pairs", {"model": {"base_model": "R"}, "prompts": "Q"}),
        ("sample", {"models": {"mine": "R"}, "prompts": "Q"}),
        ("ppo", {"model": {"base_model": "R"}, "prompts": "Q", "reward": {"source": "R"}}),
        ("ppo", {"model": {"base_model": "M"}, "prompts": "Q", "reward": {"source": "R"}, "reference": "R"}),
        ("compare", {"models": {"sft": "M", "other": "R"}, "reference": "M", "prompts": "Q"}),
        ("compare", {"models": {"sft": "M"}, "reference": "R", "prompts": "Q"}),
        ("compare", {"models": {"sft": "M"}, "reference": "M", "base": "R", "prompts": "Q"}),
        ("pretrained", {"source": "R"}),
    ],
)
def test_no_stage_takes_a_reward_model_as_policy(kind: str, values: dict[str, Any], stage: Any, world: Any) -> None:
    paths = {"R": world.reward, "M": world.mamba, "S": world.sft, "P": world.preferences, "Q": world.prompts}

    def filled(value: Any) -> Any:
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else paths[value]

    with pytest.raises(UserError, match="a reward model scores replies and writes none"):
        stage(kind, filled(values))


def test_models_that_read_the_same_tokens_have_the_same_ids(
    make_tiny: Callable[..., Any], tokenizer: Tokenizer, world: Any, tmp_path: Path
) -> None:
    make_tiny("mamba").save(str(tmp_path))
    reversed_tokenizer().save(tmp_path)
    require_same_tokens("reference", world.transformer, world.mamba, tokenizer)
    with pytest.raises(UserError) as caught:
        require_same_tokens("reference", str(tmp_path), world.mamba, tokenizer)
    said = str(caught.value)
    assert said.startswith(f"reference: {tmp_path} has another tokenizer than {world.mamba} (token ")
    assert said.endswith("; name a model that was trained from the same base.")


@pytest.mark.parametrize("key", ["reference", "base", "models.other"])
def test_compare_and_ppo_refuse_a_model_of_other_tokens(
    key: str, make_tiny: Callable[..., Any], stage: Any, world: Any, rewards: str, tmp_path: Path
) -> None:
    make_tiny("mamba").save(str(tmp_path / "other"))
    reversed_tokenizer().save(tmp_path / "other")
    values = {"models": {"sft": world.mamba}, "reference": world.mamba, "prompts": world.prompts}
    changed = {"models": {"sft": world.mamba, "other": str(tmp_path / "other")}} if "." in key else {}
    with pytest.raises(UserError, match=rf"{key}: .*other has another tokenizer than .*mamba"):
        stage("compare", {**values, **(changed or {key: str(tmp_path / "other")})})
    if key == "reference":
        policy = {
            "model": {"base_model": world.mamba},
            "prompts": world.prompts,
            "reward": {"source": f"{rewards}:brevity"},
        }
        with pytest.raises(UserError, match=r"reference: .*other has another tokenizer than .*mamba"):
            stage("ppo", {**policy, "reference": str(tmp_path / "other")})


DAMAGE = {"nested": "[" * 100_000 + "]" * 100_000, "long number": '{"model_type": "llama", "x": ' + "9" * 5000 + "}"}
DAMAGE["half a pair"] = '{"model_type": "llama", "x": "\\ud83d"}'
READ = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("model.safetensors.index.json", "manifest.json"),
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_damaged_json_file_of_a_model_is_a_sentence_that_names_it(
    family: str, damage: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", family)
    for name in READ:
        folder = tmp_path / name
        shutil.copytree(base, folder)
        if name.endswith("index.json"):
            (folder / "model.safetensors").unlink()
        (folder / name).write_text(DAMAGE[damage], encoding="utf-8")
        opens = open_tokenizer if "token" in name else partial(open_model, device=CPU)
        with pytest.raises(UserError, match=rf"{name}: .+") as found:
            opens(str(folder))
        assert len(str(found.value)) < 600
