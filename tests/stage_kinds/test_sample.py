"""The stage sample: one row per prompt, every reply with where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.data.samples import read_samples
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.digests import content_digest


def values(world: Any, **changes: Any) -> dict[str, Any]:
    given = {"prompts": world.prompts, "replies": 3, "max_new_tokens": 12, "temperatures": [1.0, 0.5], "limit": 4}
    return {**given, "model": {"max_length": 96}, **changes}


def test_a_reply_is_recorded_with_its_model_and_how_it_was_sampled(
    stage: Any, world: Any, talker: str, tmp_path: Path
) -> None:
    outcome = stage("sample", values(world, models={"old": world.mamba, "new": talker}))
    found = read_samples(str(tmp_path / "out/sample/samples.jsonl"))
    tokenizer = Tokenizer.open(talker)
    assert [sample.prompt for sample in found] == ["what is red?", "what is blue?", "what is red?", "name a cat"]
    for sample in found:
        assert [(c.model, c.sample) for c in sample.candidates] == [(m, i) for m in ("old", "new") for i in range(3)]
        assert [c.temperature for c in sample.candidates] == [1.0, 1.0, 0.5] * 2
        for c in sample.candidates:
            assert c.digest == content_digest(Path(world.mamba if c.model == "old" else talker))
            assert c.tokens is not None
            assert c.text == tokenizer.decode(list(c.tokens)).strip()
            assert c.ended == (c.tokens[-1] == tokenizer.eos_id)
            assert c.seed == 7
    every = [c for sample in found for c in sample.candidates]
    assert outcome.metrics == {"prompts": 4, "replies": 24, "not_ended": sum(not c.ended for c in every)}
    assert any(c.ended for c in every)
    texts = [{c.text for c in sample.candidates if c.model == "new"} for sample in found]
    assert texts[0] != texts[2]  # the same prompt twice, other replies


def test_a_model_replies_the_same_alone_and_beside_another(stage: Any, world: Any, talker: str, tmp_path: Path) -> None:
    stage("sample", values(world, models={"new": talker}), "alone")
    stage("sample", values(world, models={"old": world.mamba, "new": talker}, batch_size=2), "both")
    alone, both = (read_samples(str(tmp_path / "out" / name / "samples.jsonl")) for name in ("alone", "both"))
    assert [s.candidates for s in alone] == [s.candidates[3:] for s in both]


def test_messages_stay_messages(stage: Any, world: Any, talker: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    (tmp_path / "chat.jsonl").write_text('{"prompt": [{"role": "user", "content": "hi"}]}\n')
    given = values(world, prompts=str(tmp_path / "chat.jsonl"), model={"base_model": talker, "max_length": 96})
    stage("sample", given)
    assert read_samples(str(tmp_path / "out/sample/samples.jsonl"))[0].prompt == turns


def test_mistakes_are_found_before_anything_is_sampled(stage: Any, world: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models and model.base_model .* are both given"):
        stage("sample", values(world, models={"a": world.mamba}, model={"base_model": world.mamba}))
    with pytest.raises(UserError, match=r"the label 'a\.b' is not a name"):
        stage("sample", values(world, models={"a.b": world.mamba}))
    with pytest.raises(UserError, match="no_such"):
        stage("sample", values(world, models={"good": world.mamba, "bad": str(tmp_path / "no_such")}))
    assert not (tmp_path / "out").exists()
