"""Models whose positions end (GPT-2): texts that are longer are refused before training or sampling, by every stage."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import accord
from accord.cli import main
from accord.errors import UserError
from tests.models.folders import IDS, new_model, save

POSITIONS = 40
LONG = "a question of thirty letters or so"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """M: a GPT-2 of 40 positions; L: a model without an end; files with one row that is too long for M."""
    folder = tmp_path_factory.mktemp("positions")
    sizes = {"vocab_size": IDS, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 256, "eos_token_id": 258}
    paths = {"M": save(new_model("gpt2", n_positions=POSITIONS, **sizes), folder / "short")}
    paths["L"] = save(new_model("gpt2", n_positions=512, **sizes), folder / "long")
    pairs = [{"prompt": p, "chosen": "yes", "rejected": "no"} for p in ("a", "b", LONG)]
    rows = {
        "S": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs],
        "P": pairs,
        "Q": [{"prompt": row["prompt"]} for row in pairs],
    }
    for name, some in rows.items():
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in some))
    return paths


HEADS = {"policy": "heads", "obs_dim": 32, "action_dim": IDS}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"model": {"base_model": "M"}, "data": {"train": "S"}}),
    "held-out rows": ("sft", {"model": {"base_model": "M"}, "data": {"train": "S", "heldout": "S"}}),
    "reward": ("reward", {"model": {"base_model": "M", "kind": "language"}, "data": {"train": "P"}}),
    "dpo": ("dpo", {"model": {"base_model": "M"}, "data": {"train": "P"}}),
    "pairs": ("pairs", {"model": {"base_model": "M"}, "prompts": "Q", "max_new_tokens": 8}),
    "sample": ("sample", {"model": {"base_model": "M"}, "prompts": "Q", "max_new_tokens": 8}),
    "ppo": ("ppo", {"model": {"base_model": "M"}, "prompts": "Q", "sampling": {"max_new_tokens": 8}}),
    "reference": ("ppo", {"model": {"base_model": "L"}, "reference": "M", "prompts": "Q"}),
    "heads": ("ppo", {"model": {"base_model": "M", **HEADS}, "prompts": "Q"}),
    "compare": ("compare", {"models": {"sft": "M"}, "reference": "L", "prompts": "Q", "max_new_tokens": 8}),
    "compared": (
        "compare",
        {"models": {"sft": "L", "other": "M"}, "reference": "L", "prompts": "Q", "max_new_tokens": 8},
    ),
}


def filled(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(inner, paths) for name, inner in value.items()}
    return paths.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("name", STAGES)
def test_texts_that_are_longer_are_refused_before_training(
    name: str, files: dict[str, str], stage: Any, rewards: str, tmp_path: Path
) -> None:
    kind, given = STAGES[name]
    values = filled(given, files)
    score = f"{rewards}:share_of_a"
    values |= {"ppo": {"reward": {"source": score}}, "pairs": {"annotator": score}, "compare": {"gold": score}}.get(
        kind, {}
    )
    with pytest.raises(
        UserError, match=rf"short: texts have up to \d+ tokens, .* the model has positions for {POSITIONS}"
    ):
        stage(kind, values)
    assert not (tmp_path / "out" / kind).exists()


def test_a_reward_model_with_fewer_positions_is_refused_before_training(
    files: dict[str, str], stage: Any, rewards: str, tmp_path: Path
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"prompt": p, "chosen": "y", "rejected": "n"}) + "\n" for p in "ab"))
    training = {"batch_size": 2, "num_epochs": 1}
    model = {"base_model": files["M"], "kind": "language"}
    stage("reward", {"model": model, "data": {"train": str(short)}, "training": training})
    reward = str(tmp_path / "out" / "reward" / "model")
    values = {"model": {"base_model": files["L"]}, "prompts": files["Q"], "sampling": {"max_new_tokens": 8}}
    with pytest.raises(
        UserError, match=rf"the reward model: texts have up to \d+ tokens, .* positions for {POSITIONS}"
    ):
        stage("ppo", {**values, "reward": {"source": reward}})
    with pytest.raises(
        UserError, match=rf"the reward model has positions for {POSITIONS} tokens, and a prompt with its"
    ):
        accord.load(reward).score(LONG, "y" * 30)


def test_a_reply_in_python_is_refused_and_in_the_chat_it_fits(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=rf"the model has positions for {POSITIONS}; lower .* max_new_tokens"):
        accord.load(files["M"]).generate("hi", max_new_tokens=POSITIONS)
    words = ["chat", files["M"], "--max-new-tokens", "500"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\n"))
    assert main(words) == 0
    assert "opened through transformers" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{LONG}\n\n"))
    assert main(words) == 2
    assert f"the model has positions for {POSITIONS}; start a new chat, or write less." in capsys.readouterr().err
