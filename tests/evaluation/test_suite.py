"""The comparison: every number against one made by hand or in a plainer way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.config.evaluation import CompareConfig
from accord.data.chat import prompt_ids, reply_ids
from accord.data.prompts import PromptData, load_prompts
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.evaluation.suite import Answers, answer, compare, figures, leave, measure, reward_figures, sums_under
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.rollout.generate import Decoding
from accord.runtime.run import Run
from accord.types import Generation, Packed

K = 3
PROMPTS = ["what is red?", "hi", "name a cat and a dog", "two and two?", "the sea?"]


def share_of_a(prompts: list[str], replies: list[str]) -> list[float]:
    return [p.count("a") + r.count("a") / max(len(r), 1) + 1e-3 * len(r) for p, r in zip(prompts, replies, strict=True)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def tiny(seed: int) -> Backbone:
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    return small_backbone("transformer", 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny(0)


@pytest.fixture(scope="module")
def other() -> Backbone:
    return tiny(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> PromptData:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return load_prompts(path, tokenizer, 1024)


@pytest.fixture(scope="module")
def decoding(tokenizer: Tokenizer) -> Decoding:
    return Decoding(12, tokenizer.eos_id, tokenizer.pad_id)


def seeds(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + i)


@pytest.fixture(scope="module")
def written(model: Backbone, tokenizer: Tokenizer, data: PromptData, decoding: Decoding) -> list[Generation]:
    return answer(model, tokenizer, data, decoding, K, 2 * K, seeds)


@torch.no_grad()
def logprob_alone(backbone: Backbone, prompt: tuple[int, ...], reply: list[int], temperature: float) -> float:
    """The plain way: one text, all logits, a sum."""
    hidden = backbone.hidden(Packed.of([(*prompt, *reply)]))
    logprobs = (backbone.logits(hidden).double() / temperature).log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(reply) - 1)
    return sum(float(logprobs[at, token]) for at, token in zip(places, reply, strict=True))


# ------------------------------------------------------------------ replies
def test_k_replies_to_each_prompt_in_order(written: list[Generation], data: PromptData) -> None:
    assert [len(g.prompts) for g in written] == [2 * K, 2 * K, K]  # two prompts at a time
    asked = [p for g in written for p in g.prompts]
    assert asked == [p for p in data.prompts for _ in range(K)]


def test_groups_have_seeds_of_their_own(
    model: Backbone, tokenizer: Tokenizer, data: PromptData, decoding: Decoding, written: list[Generation]
) -> None:
    again = answer(model, tokenizer, data, decoding, K, 2 * K, seeds)
    assert [g.replies() for g in again] == [g.replies() for g in written]
    asked: list[int] = []

    def watched(i: int) -> torch.Generator:
        asked.append(i)
        return seeds(i)

    answer(model, tokenizer, data, decoding, K, 1, watched)  # fewer than k at once: still one prompt at a time
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_replies_under_another_model(
    written: list[Generation], other: Backbone, temperature: float
) -> None:
    got = sums_under(other, written, temperature, size=4)  # prompts are cut across passes
    expected = [
        logprob_alone(other, prompt, reply, temperature)
        for g in written
        for prompt, reply in zip(g.prompts, g.replies(), strict=True)
    ]
    assert got == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ measuring
@pytest.fixture(scope="module")
def answers(
    written: list[Generation], tokenizer: Tokenizer, data: PromptData, other: Backbone, model: Backbone
) -> Answers:
    return measure(written, tokenizer, data, K, share_of_a, "share", other, model, 1.0)


def test_what_is_said_of_replies(
    answers: Answers,
    written: list[Generation],
    tokenizer: Tokenizer,
    decoding: Decoding,
    model: Backbone,
    other: Backbone,
) -> None:
    replies = [r for g in written for r in g.replies()]
    asked = [p for g in written for p in g.prompts]
    assert answers.texts == [tokenizer.decode(r).strip() for r in replies]
    assert answers.lengths == [len(r) for r in replies]
    assert answers.ended == [r[-1] == decoding.eos_id for r in replies]
    assert len({*answers.ended}) == 2  # both kinds are among them
    own = [logprob_alone(model, p, r, 1.0) for p, r in zip(asked, replies, strict=True)]
    under = [logprob_alone(other, p, r, 1.0) for p, r in zip(asked, replies, strict=True)]
    assert answers.kl == pytest.approx([a - b for a, b in zip(own, under, strict=True)], abs=2e-4)
    assert answers.base_nll == pytest.approx([-a / len(r) for a, r in zip(own, replies, strict=True)], rel=1e-4)


def test_gold_is_asked_about_the_right_prompt(answers: Answers) -> None:
    flat = share_of_a([p for p in PROMPTS for _ in range(K)], answers.texts)
    expected = [flat[i : i + K] for i in range(0, len(flat), K)]
    assert [len(row) for row in answers.gold] == [K] * len(PROMPTS)
    for got, want in zip(answers.gold, expected, strict=True):
        assert got == pytest.approx(want, rel=1e-6)


def test_a_model_is_at_no_distance_from_itself(
    written: list[Generation], tokenizer: Tokenizer, data: PromptData, model: Backbone
) -> None:
    itself = measure(written, tokenizer, data, K, share_of_a, "share", model, None, 1.0)
    assert itself.kl == pytest.approx([0.0] * len(itself.kl), abs=1e-4)
    assert itself.base_nll == []


def test_at_another_temperature_too(
    model: Backbone, tokenizer: Tokenizer, data: PromptData, decoding: Decoding
) -> None:
    """KL is between what was sampled and what the reference would sample: the temperature divides both."""
    cold = Decoding(decoding.max_new_tokens, decoding.eos_id, decoding.pad_id, 0.5)
    written = answer(model, tokenizer, data, cold, K, 100, seeds)
    itself = measure(written, tokenizer, data, K, share_of_a, "share", model, None, 0.5)
    assert itself.kl == pytest.approx([0.0] * len(itself.kl), abs=1e-4)


# ------------------------------------------------------------------ figures
def made(gold: list[list[float]], **given: Any) -> Answers:
    n = sum(map(len, gold))
    settings: dict[str, Any] = {
        "texts": ["a b"] * n,
        "kl": [0.0] * n,
        "lengths": [2] * n,
        "ended": [True] * n,
        "base_nll": [],
        **given,
    }
    return Answers(gold=gold, **settings)


def test_figures_by_hand() -> None:
    sft = made([[0.0, 2.0], [1.0, 1.0], [4.0, 4.0]])
    ours = made(
        [[3.0, 3.0], [1.0, 2.0], [0.0, 5.0]],
        kl=[1, 2, 3, 4, 5, 9],
        lengths=[1, 2, 3, 4, 5, 6],
        ended=[True, True, True, False, False, True],
        base_nll=[1.0, 2.0, 3.0, 1.0, 2.0, 3.0],
        texts=["a b a b", "c", "", "a b", "x y", "x y"],
    )
    got = figures(ours, sft, 0)
    assert got["gold_mean"] == pytest.approx((3 + 1.5 + 2.5) / 3)
    assert got["kl_mean"] == 4
    assert got["length_mean"] == 3.5
    assert got["eos_rate"] == pytest.approx(4 / 6)
    assert got["base_nll"] == 2
    assert got["gain_vs_sft"] == pytest.approx(got["gold_mean"] - 2)
    assert got["gain_in_sft_sd"] == pytest.approx(
        got["gain_vs_sft"] / (((1 - 2) ** 2 + (1 - 2) ** 2 + (4 - 2) ** 2) / 2) ** 0.5
    )
    assert got["distinct_2"] == pytest.approx(3 / 6)  # a b, b a, x y among a b, b a, a b, a b, x y, x y
    for key in ("gold_ci95", "win_rate_ci95", "gain_ci95"):
        low, high = got[key]
        assert low <= high
    assert json.loads(json.dumps(got)) == got


def test_a_collapsed_model_is_measured_too() -> None:
    """Nothing but empty replies and gold all alike: numbers that are undefined are null, and nothing fails."""
    nothing = made([[0.0, 0.0], [0.0]], texts=["", "a", ""], lengths=[1, 1, 1])
    got = figures(nothing, nothing, 0)
    assert got["distinct_2"] is None
    assert got["gain_in_sft_sd"] is None
    assert (got["gold_mean"], got["win_rate_vs_sft"]) == (0, 0.5)
    assert json.loads(json.dumps(got)) == got


def test_a_model_against_itself_wins_half() -> None:
    sft = made([[0.0, 2.0], [1.0, 1.5], [4.0, 3.0]])
    got = figures(sft, sft, 0)
    assert got["win_rate_vs_sft"] == pytest.approx(0.5)
    assert got["gain_vs_sft"] == 0
    assert "base_nll" not in got


def test_the_better_model_wins_and_not_the_worse() -> None:
    worse, better = made([[0.0, 1.0]] * 6), made([[2.0, 3.0]] * 6)
    sft = made([[0.5, 1.5], [0.0, 1.0], [1.0, 1.2], [0.3, 0.4], [0.9, 0.8], [0.1, 0.2]])
    assert figures(better, sft, 0)["win_rate_vs_sft"] == 1
    assert figures(better, sft, 0)["win_rate_ci95"] == [1, 1]
    assert figures(worse, made([[1.5, 2.5], [2.0, 3.0]] * 3), 0)["win_rate_vs_sft"] == 0
    assert figures(worse, sft, 0)["gain_vs_sft"] == pytest.approx(0.5 - sum(map(sum, sft.gold)) / 12)


# ------------------------------------------------------------------ the reward model
def test_reward_figures(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Against the scores of each text alone."""
    torch.manual_seed(3)
    model = RewardModel(tiny(2), ScalarHead(32), "mean")
    folder = tmp_path / "reward"
    folder.mkdir()
    model.save(str(folder))
    tokenizer.save(folder)
    replies = [
        "fire is.",
        "a",
        "the sea, i say",
        "rex",
        "no aaaa",
        "four.",
        "aa",
        "five or six",
        "so it is",
        "tom a cat",
    ]
    rows = [
        {"prompt": PROMPTS[i % 5], "chosen": replies[i], "rejected": replies[(i * 3 + 1) % 10]}
        for i in range(10)
        if replies[i] != replies[(i * 3 + 1) % 10]
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = reward_figures(str(folder), str(path), 1024, share_of_a, "share")

    def score(prompt: str, reply: str) -> float:
        before, after = prompt_ids(tokenizer, prompt), reply_ids(tokenizer, prompt, reply)
        with torch.no_grad():
            features = model.backbone.hidden(Packed.of([(*before, *after)]))[len(before) :].mean(0)
            return float(model.head(features[None]))

    ours = [(score(r["prompt"], r["chosen"]), score(r["prompt"], r["rejected"])) for r in rows]
    true = [tuple(share_of_a([r["prompt"]] * 2, [r["chosen"], r["rejected"]])) for r in rows]
    right = [a > b for a, b in ours]
    agree = [(a > b) == (c > d) for (a, b), (c, d) in zip(ours, true, strict=True)]
    assert 0 < sum(right) < len(rows)  # or the next lines could not tell chosen from rejected
    assert got["heldout_accuracy"] == pytest.approx(sum(right) / len(rows))
    assert got["gold_agreement"] == pytest.approx(sum(agree) / len(rows))
    assert got["label_agreement_with_gold"] == pytest.approx(sum(c > d for c, d in true) / len(rows))
    assert got["n_heldout"] == len(rows)
    lengths = [len(reply_ids(tokenizer, r["prompt"], r[k])) for k in ("chosen", "rejected") for r in rows]
    scores = [x for side in zip(*ours, strict=True) for x in side]
    expected = torch.corrcoef(torch.tensor([scores, lengths], dtype=torch.float64))[0, 1].item()
    assert got["length_correlation"] == pytest.approx(expected, abs=1e-4)
    assert json.loads(json.dumps(got)) == got


# ------------------------------------------------------------------ the whole
@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[int], str]:
    def made_folder(seed: int) -> str:
        path = tmp_path / f"model{seed}"
        tiny(seed).save(str(path))
        tokenizer.save(path)
        return str(path)

    return made_folder


def test_compare(
    tmp_path: Path,
    folder: Callable[[int], str],
    tokenizer: Tokenizer,
    data: PromptData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "gold_of_the_tests.py").write_text(
        "def gold(prompts, replies):\n    return [float(len(r)) for r in replies]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    config = CompareConfig(
        models={"sft": folder(0), "same": folder(0), "other": folder(1)},
        reference=folder(0),
        prompts=str(prompts),
        gold="gold_of_the_tests:gold",
        replies=2,
        max_new_tokens=10,
        samples=2,
    )
    directory = tmp_path / "out"
    with Run("compare", directory, tmp_path / "logs", 0, 1, 1) as run:
        means = compare(config, run)
    results = json.loads((directory / "results.json").read_text())
    assert set(results) == {"sft", "same", "other", "sft_again", "seed", "versions", "prompts", "replies_per_prompt"}
    assert means == {name: results[name]["gold_mean"] for name in config.models}
    assert results["sft"]["kl_mean"] == pytest.approx(0, abs=1e-4)
    assert results["same"]["kl_mean"] == pytest.approx(0, abs=1e-4)
    assert results["other"]["kl_mean"] != pytest.approx(0, abs=1e-2)
    assert results["same"]["gold_mean"] != results["sft"]["gold_mean"]  # its replies are a draw of their own
    assert (results["prompts"], results["replies_per_prompt"]) == (5, 2)
    shown = capsys.readouterr().out
    text = (directory / "results.txt").read_text()
    assert text.strip() in shown
    for name in ("sft", "same", "other", "sft, drawn again"):
        assert f"\n{name} " in text
    assert "sft again" not in (directory / "results.md").read_text()
    assert text.count("> ") == 2  # samples: two prompts, the models side by side
    single = config.model_copy(update={"limit": 1})
    few = r"prompts.jsonl: intervals over prompts need at least 2 of them, found 1"
    with Run("compare", tmp_path / "one", tmp_path / "logs1", 0, 1, 1) as run, pytest.raises(UserError, match=few):
        compare(single, run)
    with Run("compare", tmp_path / "again", tmp_path / "logs2", 0, 1, 1) as run:
        compare(config.model_copy(update={"redraw": False, "batch_size": 128}), run)
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert "sft_again" not in again
    assert {name: again[name] for name in config.models} == {name: results[name] for name in config.models}


def test_samples_of_models_stand_beside_their_prompt(tmp_path: Path) -> None:
    config = CompareConfig(models={"sft": "x", "dpo": "y"}, samples=2)
    prompts = [f"question {i}?" for i in range(4)]
    shown = {name: [f"{name} answers {i}" for i in range(4)] for name in config.models}
    sft = made([[1.0]] * 2 + [[0.0]] * 2)
    results = {name: figures(sft, sft, 0) for name in config.models}
    with Run("compare", tmp_path / "out", tmp_path / "logs", 0, 1, 1) as run:
        leave(run, config, results, prompts, shown)
    page = (tmp_path / "out" / "results.md").read_text()
    for i in range(4):
        after = page[page.index(f"question {i}?") :]
        assert after.index(f"sft answers {i}") < after.index(f"dpo answers {i}") < 400
