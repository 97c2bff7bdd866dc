"""The stage compare: its files, its output, and that every model gets the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from accord.config.evaluation import CompareConfig
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.evaluation.comparison import Answers, compare_with_sft
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.runtime.run import Run
from accord.stage_kinds.compare import run_compare, write_report

PROMPTS = ["what is red?", "hi", "name a cat and a dog", "two and two?", "the sea?"]


def tiny(seed: int) -> Backbone:
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    return small_backbone("transformer", 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[[int], str]:
    def made_folder(seed: int) -> str:
        path = tmp_path / f"model{seed}"
        tiny(seed).save(str(path))
        tokenizer.save(path)
        return str(path)

    return made_folder


def test_compare_writes_results_and_report(
    tmp_path: Path,
    folder: Callable[[int], str],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    open_run: Callable[..., Run],
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
    directory = tmp_path / "out" / "compare"
    with open_run("compare") as run:
        means = run_compare(config, run)
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
    for name in ("sft", "same", "other", "sft, resampled (null baseline)"):
        assert f"\n{name} " in text
    assert "sft again" not in (directory / "results.md").read_text()
    assert text.count("> ") == 2  # samples: two prompts, the models side by side
    single = config.model_copy(update={"limit": 1})
    few = r"prompts.jsonl: intervals over prompts need at least 2 different ones, found 1"
    with open_run("one") as run, pytest.raises(UserError, match=few):
        run_compare(single, run)
    with open_run("again") as run:
        run_compare(config.model_copy(update={"redraw": False, "batch_size": 128}), run)
    again = json.loads((tmp_path / "out" / "again" / "results.json").read_text())
    assert "sft_again" not in again
    assert {name: again[name] for name in config.models} == {name: results[name] for name in config.models}


def test_samples_of_models_are_beside_their_prompt(open_run: Callable[..., Run]) -> None:
    config = CompareConfig(models={"sft": "x", "dpo": "y"}, samples=2)
    prompts = [f"question {i}?" for i in range(4)]
    shown = {name: [f"{name} answers {i}" for i in range(4)] for name in config.models}
    gold = [[1.0]] * 2 + [[0.0]] * 2
    sft = Answers(["a b"] * 4, gold, [0.0] * 4, [2] * 4, [True] * 4, [])
    results = {name: compare_with_sft(sft, sft, 0) for name in config.models}
    with open_run("compare") as run:
        write_report(run, config, results, prompts, shown)
    page = (run.directory / "results.md").read_text()
    for i in range(4):
        after = page[page.index(f"question {i}?") :]
        assert after.index(f"sft answers {i}") < after.index(f"dpo answers {i}") < 400


def test_a_gold_that_tells_no_replies_apart_loses_no_other_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_run: Callable[..., Run]
) -> None:
    """And a report that cannot be written costs only itself."""

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = CompareConfig(models={"sft": "x", "dpo": "y"}, samples=1)
    texts = ["a b"] * 4
    sft = Answers(texts, [[1.0, 1.0]] * 2, [float("inf")] + [0.0] * 3, [2] * 4, [True] * 4, [])
    results = {name: compare_with_sft(sft, sft, 0) for name in config.models}
    reasons = results["dpo"]["undefined"]
    assert (results["dpo"]["kl_mean"], results["dpo"]["gain_in_sft_sd"]) == (None, None)
    assert reasons["kl_mean"] == "it is inf"
    assert "do not vary across prompts" in reasons["gain_in_sft_sd"]
    assert (results["dpo"]["gold_mean"], results["dpo"]["win_rate_vs_sft"]) == (1.0, 0.5)
    monkeypatch.setattr("accord.stage_kinds.compare.write_text", fails)
    with open_run("compare") as run:
        run.open_folders()
        write_report(run, config, results, ["q"] * 4, dict.fromkeys(config.models, texts))
    written = json.loads((run.directory / "results.json").read_text(), parse_constant=pytest.fail)
    assert written["dpo"]["undefined"] == reasons
    log = (run.logs / "compare.log").read_text(encoding="utf-8")
    for name in ("results.md", "results.txt"):
        assert f"{name} was omitted: [Errno 28] No space left on device" in log
