"""A reward model beside the votes: its accuracy against scores computed directly, and the noise ceiling."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra feedback")

from accord.api import load
from accord.errors import UserError
from accord.feedback.entities import Candidate, VoteRow
from accord.labeling.reward_check import RewardCheck, compare, newest_reward_model, score


def row(
    vote: int, choice: Any, a: str, b: str, annotator: str = "x", pair: int = 0, prompt: str = "what is red?"
) -> VoteRow:
    first, second = (Candidate(n, text, None, "p", {}) for n, text in enumerate((a, b)))
    messages = ({"role": "user", "content": prompt},)
    return VoteRow(
        vote, pair or vote, str(pair or vote), messages, first, second, choice, 1, 1.0, "a", annotator, 0, 1.0, None, "",
        datetime.now(timezone.utc), "", (),
    )  # fmt: skip


def test_the_accuracy_is_that_of_the_models_scores(world: Any) -> None:
    rows = [row(n, "a" if n % 3 else "b", f"fire {n}", "no" * n) for n in range(1, 9)] + [row(20, "tie", "x", "y")]
    rows += [row(30, "a", "half \ud83d", "y")]  # no tokenizer takes it
    found = compare(rows, world.reward)
    model = load(world.reward)
    prompts = [r.prompt for r in rows[:8]]
    first, second = (model.scores(prompts, [getattr(r, side).text for r in rows[:8]]) for side in ("a", "b"))  # type: ignore[union-attr]
    right = sum((x > y) == (r.choice == "a") for x, y, r in zip(first, second, rows, strict=False))
    assert found["model"] == world.reward
    assert found["accuracy"]["count"] == 8
    assert found["accuracy"]["value"] == pytest.approx(right / 8)
    assert found["noise_ceiling"] is None


def test_the_noise_ceiling_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    done = subprocess.CompletedProcess([], 0, b'noise of a library\n{"model": "m", "right": 1, "votes": 2}\n', b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    rows = [row(1, "a", "x", "y", "ann", 1), row(2, "a", "x", "y", "bob", 1), row(3, "a", "x", "y", "ann", 2)]
    rows += [row(4, "b", "x", "y", "bob", 2), row(5, "a", "x", "y", "ann", 3), row(6, "a", "x", "y", "bob", 3)]
    found = compare(rows, "m")
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["noise_ceiling"] == pytest.approx((1 + (2 * 2 / 3 - 1) ** 0.5) / 2)
    assert found["accuracy"]["value"] == 0.5


def test_without_a_reward_model_one_sentence_says_what_to_do() -> None:
    with pytest.raises(UserError, match="no reward model in the registry; train one with 'accord reward'"):
        newest_reward_model()


def test_a_language_model_is_not_one(world: Any) -> None:
    with pytest.raises(UserError, match="is a language model; name a reward model"):
        score([], world.transformer)


@pytest.mark.parametrize("error", [UserError("no such model."), RuntimeError("boom")])
def test_a_failed_comparison_says_why_and_another_can_start(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import accord.labeling.reward_check as reward_check

    def fail(*given: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(reward_check, "compare", fail)
    check = RewardCheck()
    for _ in range(2):
        check.start([], "m")
        deadline = time.monotonic() + 20
        while check.state()["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert check.state()["state"] == "failed"
        assert str(error) in check.state()["error"]
