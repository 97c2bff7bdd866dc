"""The stage judge: which judge a config names, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.config.feedback import JudgeConfig
from accord.data.samples import Candidate, Sample
from accord.errors import UserError
from accord.io.atomic import write_jsonl


@pytest.fixture
def samples(tmp_path: Path) -> str:
    texts = ["fire is.", "no.", "grass, maybe", "no."]
    rows = [Sample(f"what is {i}?", (*map(Candidate, texts), Candidate("cut", ended=False))) for i in range(12)]
    write_jsonl(tmp_path / "samples.jsonl", (row.as_row() for row in rows))
    return str(tmp_path / "samples.jsonl")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_function_judges_and_every_judgment_is_kept(stage: Any, samples: str, rewards: str, tmp_path: Path) -> None:
    given = {
        "samples": samples,
        "judge": f"{rewards}:brevity",
        "noise": 0.0,
        "matching": "all",
        "heldout_fraction": 0.4,
    }
    outcome = stage("judge", given)
    out = tmp_path / "out/judge"
    judged, train, heldout = (rows(out / f"{n}.jsonl") for n in ("judgments", "preferences", "heldout_preferences"))
    assert len(judged) == len(train) + len(heldout) == 12 * 5  # of six pairs one has equal texts
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in [*train, *heldout])
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in heldout}
    assert {row["judge"] for row in judged} == {f"{rewards}:brevity"}
    assert all(row["asked_with"] == 1.0 and row["choice"] in ("a", "b") for row in judged)
    assert "cut" not in (out / "judgments.jsonl").read_text()
    assert outcome.metrics["judgments"] == 60
    assert outcome.metrics["judged_a"] + outcome.metrics["judged_b"] == 60


def test_ties_are_kept_raw_and_written_as_asked(stage: Any, samples: str, rewards: str, tmp_path: Path) -> None:
    given = {
        "samples": samples,
        "judge": f"{rewards}:brevity",
        "noise": 0.0,
        "matching": "all",
        "heldout_fraction": 0.0,
    }
    for ties, labels in (("drop", {None}), ("half", {None, 0.5})):
        stage("judge", {**given, "min_gap": 5.5, "ties": ties}, ties)  # 3, 8 and 12 letters
        found = rows(tmp_path / "out" / ties / "preferences.jsonl")
        assert {row.get("label") for row in found} == labels
        choices = [row["choice"] for row in rows(tmp_path / "out" / ties / "judgments.jsonl")]
        assert choices.count("tie") == 36
        assert len(found) == (24 if ties == "drop" else 60)


def test_a_reward_model_judges(stage: Any, samples: str, world: Any, tmp_path: Path) -> None:
    stage("judge", {"samples": samples, "judge": world.reward, "noise": 0.0, "heldout_fraction": 0.0})
    for row in rows(tmp_path / "out/judge/judgments.jsonl"):
        a, b = row["scores"]
        assert row["choice"] == ("a" if a > b else "b")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"openai": {"url": "http://h/v1"}}, "openai.url needs openai.model"),
        ({"openai": {"model": "m"}}, "openai needs openai.url"),
        ({"openai": {"url": "http://h/v1", "model": "m"}, "judge": "a:b"}, "both given"),
        ({"openai": {"url": "http://me:secret@h/v1", "model": "m"}}, "without user, password and query"),
        ({"openai": {"url": "ftp://h", "model": "m"}}, "is an address, as http"),
        ({"openai": {"url": "http://h/v1", "model": "m", "key_env": "sk-123"}}, "names an environment variable"),
        ({"openai": {"url": "http://h/v1", "model": "m"}, "noise": 1.0}, "noise is a setting of judges with scores"),
        ({"judge": "feedback://demo", "matching": "extremes"}, "matching=extremes needs a judge with scores"),
        ({"judge": "feedback://demo", "min_gap": 1.0}, "min_gap is a setting of judges with scores"),
        ({"judge": "feedback://../x"}, "names no project"),
        ({"judge": "feedback://"}, "names no project"),
        ({"judge": "a:b", "people": {"votes": 3}}, "people are settings of judge=feedback://NAME"),
        ({"judge": "feedback://demo", "people": {"page": "javascript:alert(1)"}}, "page is an address"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        JudgeConfig.model_validate(values)
    assert "secret" not in str(raised.value).split("[type=")[0]


def test_samples_that_leave_nothing_to_judge_are_an_error(stage: Any, rewards: str, tmp_path: Path) -> None:
    same = Sample("p", (Candidate("x"), Candidate("x"), Candidate("y", ended=False)))
    write_jsonl(tmp_path / "same.jsonl", [same.as_row()])
    with pytest.raises(UserError, match=r"same\.jsonl: no prompt has two different replies that ended"):
        stage("judge", {"samples": str(tmp_path / "same.jsonl"), "judge": f"{rewards}:brevity"})
    assert not (tmp_path / "out").exists()


def test_no_rows_say_why(stage: Any, samples: str, rewards: str) -> None:
    given = {"samples": samples, "judge": f"{rewards}:brevity"}
    with pytest.raises(UserError, match=r"the judge preferred no reply \(tie \d+\); use another judge, or ties=half"):
        stage("judge", {**given, "min_gap": 1e6})
    with pytest.raises(UserError, match=r"no rows for preferences\.jsonl: heldout_fraction is 1\.0; lower it"):
        stage("judge", {**given, "heldout_fraction": 1.0})


def test_what_changes_no_result_is_not_in_the_key() -> None:
    from accord.pipeline.task import stage_key

    def key(**values: Any) -> str:
        config = JudgeConfig.model_validate({"openai": {"url": "http://h/v1", "model": "m", **values}})
        return stage_key("judge", config, {})

    assert key() == key(timeout=3.0) == key(retries=1) == key(parallel=9) == key(key_env="K")
    assert len({key(), key(temperature=1.0), key(model="n"), key(instructions="x"), key(body={"a": 1})}) == 5
