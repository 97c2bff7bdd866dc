"""The stage pairs: the files that it writes, which are those of sample and judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.data.chat import prompt_ids
from accord.data.prompts import PromptData
from accord.data.supervised import load_supervised
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.data.turns import Turns
from accord.errors import UserError
from accord.rollout.sampling import prompts_to_answer


# ------------------------------------------------------------------------------------- the stage
def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def test_sample_and_judge_are_pairs(stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path) -> None:
    given = values(world, talker, rewards, noise=2.0, temperatures=[0.8, 1.0, 1.2])
    both = stage("pairs", given)
    judging = {key: given.pop(key) for key in ("noise", "heldout_fraction", "pairs")}
    annotator = given.pop("annotator")
    stage("sample", given)
    samples = str(tmp_path / "out" / "sample" / "samples.jsonl")
    judge = stage("judge", {"samples": samples, "judge": annotator, **judging})
    for name in ("preferences.jsonl", "heldout_preferences.jsonl"):
        assert (tmp_path / "out/judge" / name).read_bytes() == (tmp_path / "out/pairs" / name).read_bytes()
        assert judge.done["outputs"][name] == both.done["outputs"][name]


def test_the_keys_of_stages_stay(stage: Any, world: Any, talker: str, rewards: str) -> None:
    """Keys of finished stages, which a change of them would run again; the date of templates is in them."""
    from accord.config.data import PairsConfig
    from accord.pipeline.task import stage_key

    inputs = {"model.base_model": "m", "prompts": "p", "annotator": "a:f"}
    keys = [
        stage_key("pairs", PairsConfig(), inputs),
        stage_key(
            "pairs", PairsConfig(replies=16, pairs=8, max_new_tokens=72, temperatures=(0.8, 1.0, 1.2, 1.0)), inputs
        ),
    ]
    assert keys == ["7253f94b9518c3eb", "f589c000f3da513a"]


CHAT = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": "name a cat"},
    {"role": "assistant", "content": "tom"},
    {"role": "user", "content": "what is red?"},
]


@pytest.mark.parametrize("keep", ["pairs", "demonstrations"])
def test_a_conversation_stays_one_with_its_tools(
    keep: str, stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    prompts = tmp_path / "chat.jsonl"
    prompts.write_text(json.dumps({"prompt": CHAT, "tools": tools}) + "\n")
    given = values(world, talker, rewards, prompts=str(prompts), keep=keep, heldout_fraction=0, replies=16)
    stage("pairs", given)
    found = rows(tmp_path / "out" / "pairs" / ("sft.jsonl" if keep == "demonstrations" else "preferences.jsonl"))
    assert found
    assert all(row["prompt"] == CHAT and row["tools"] == tools for row in found)


def test_an_instruction_ends_the_users_last_message() -> None:
    tokenizer = small_tokenizer()
    data = PromptData(((1,),) * 3, ("",) * 3, ("hi", Turns(CHAT, {"tools": [{"a": 1}]}), CHAT[:1]), None)  # type: ignore[arg-type]
    asked = prompts_to_answer(data, tokenizer, "be brief")
    last = {"role": "user", "content": "what is red? be brief"}
    expected = ["hi be brief", [*CHAT[:3], last], [CHAT[0], {"role": "user", "content": "be brief"}]]
    assert list(asked) == [tuple(prompt_ids(tokenizer, prompt)) for prompt in expected]


def test_demonstrations_hold_the_ids_that_were_sampled(
    stage: Any, world: Any, talker: str, rewards: str, tmp_path: Path
) -> None:
    stage("pairs", values(world, talker, rewards, keep="demonstrations", limit=3))
    path = tmp_path / "out" / "pairs" / "sft.jsonl"
    tokenizer = Tokenizer.open(talker)
    for row in rows(path):
        assert row["tokens"].keys() == {"tokenizer", "completion"}
        assert row["tokens"]["tokenizer"] == tokenizer.digest()
        assert row["tokens"]["completion"][-1] == tokenizer.eos_id
        assert tokenizer.decode(row["tokens"]["completion"]).strip() == row["completion"]
    found = load_supervised(path, tokenizer, 96)
    for row, example in zip(rows(path), found.examples, strict=True):
        ids = row["tokens"]["completion"]
        # Not where it sampled control tokens or space at the ends, which the text does not have.
        if tokenizer.are_content(ids[:-1]) and tokenizer.decode(ids) == row["completion"]:
            assert list(example.tokens[-len(ids) :]) == ids
    assert "Not used" not in found.report.describe()
