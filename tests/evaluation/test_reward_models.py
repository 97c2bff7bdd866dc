"""The figures of a reward model against a direct computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.data.chat import prompt_ids, reply_ids
from accord.data.preferences import PairLengths, load_preferences
from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.evaluation.comparison import Gold
from accord.evaluation.reward_models import UNRECORDED, reward_figures, score_pairs, training_lengths
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.types import Packed

PROMPTS = ["what is red?", "hi", "name a cat and a dog", "two and two?", "the sea?"]


def share_of_a(prompts: list[str], replies: list[str]) -> list[float]:
    return [p.count("a") + r.count("a") / max(len(r), 1) + 1e-3 * len(r) for p, r in zip(prompts, replies, strict=True)]


def tiny(seed: int) -> Backbone:
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    return small_backbone("transformer", 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)


def test_figures_are_those_of_each_text_scored_alone(tmp_path: Path) -> None:
    """Against the scores of each text alone."""
    tokenizer = small_tokenizer()
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
    got = reward_figures(str(folder), str(path), Gold(share_of_a, "share"), torch.device("cpu"))

    def score(prompt: str, reply: str) -> float:
        before, after = prompt_ids(tokenizer, prompt), reply_ids(tokenizer, prompt, reply)
        with torch.no_grad():
            features = model.backbone(Packed.of([(*before, *after)]))[len(before) :].mean(0)
            return float(model.head(features[None]))

    ours = [(score(r["prompt"], r["chosen"]), score(r["prompt"], r["rejected"])) for r in rows]
    true = [tuple(share_of_a([r["prompt"]] * 2, [r["chosen"], r["rejected"]])) for r in rows]
    right = [a > b for a, b in ours]
    agree = [(a > b) == (c > d) for (a, b), (c, d) in zip(ours, true, strict=True)]
    assert 0 < sum(right) < len(rows)  # else the next lines could not separate chosen from rejected
    assert got["heldout_accuracy"] == pytest.approx(sum(right) / len(rows))
    assert got["gold_agreement"] == pytest.approx(sum(agree) / len(rows))
    assert got["label_agreement_with_gold"] == pytest.approx(sum(c > d for c, d in true) / len(rows))
    assert got["n_heldout"] == len(rows)
    lengths = [len(reply_ids(tokenizer, r["prompt"], r[k])) for k in ("chosen", "rejected") for r in rows]
    scores = [x for side in zip(*ours, strict=True) for x in side]
    expected = torch.corrcoef(torch.tensor([scores, lengths], dtype=torch.float64))[0, 1].item()
    assert got["length_correlation"] == pytest.approx(expected, abs=1e-4)
    assert json.loads(json.dumps(got)) == got


def test_compare_reports_the_accuracy_that_training_reported(stage: Any, world: Any, tmp_path: Path) -> None:
    """To the last bit, on texts longer than the model reads: both cut them to the same tokens and score them alike."""
    rows = [
        {"prompt": p * 2, "chosen": f"{r} {p}" * 4, "rejected": f"{p} no {r}" * 3} for p in PROMPTS for r in "abcdefg"
    ]
    rows += [{"prompt": "same", "chosen": "tie", "rejected": "tie"}]
    ties = [{"prompt": p, "chosen": "one", "rejected": "two", "label": 0.5} for p in PROMPTS]
    rows = [*ties[:3], *rows, *ties[3:]]
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"base_model": world.transformer, "kind": "language", "max_length": 24, "max_prompt_length": 9},
        "data": {"train": world.preferences, "heldout": str(heldout)},
    }
    outcome = stage("reward", values)
    folder = str(tmp_path / "out" / "reward" / "model")
    got = reward_figures(folder, str(heldout), Gold(share_of_a, "share"), torch.device("cpu"))
    assert training_lengths(folder) == (PairLengths(9, 24), "float32")
    assert 0 < got["heldout_accuracy"] < 1
    assert got["heldout_accuracy"] == outcome.metrics["heldout_accuracy"]
    assert got["n_heldout"] == outcome.metrics["heldout_pairs"] == len(rows) - 1 - len(PROMPTS)
    chosen = load_preferences(heldout, small_tokenizer(), PairLengths(9, 24)).pairs
    whole = load_preferences(heldout, small_tokenizer(), UNRECORDED).pairs
    model = RewardModel.open(folder).eval()
    assert not torch.equal(*(score_pairs(model, pairs, torch.device("cpu"), "float32")[0] for pairs in (chosen, whole)))


def test_a_model_without_recorded_settings_reads_whole_replies(tmp_path: Path) -> None:
    assert training_lengths(str(tmp_path)) == (UNRECORDED, "float32")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"digest": "0" * 32, "settings": {"model": {"max_length": "long"}}})
    )
    with pytest.raises(UserError, match=r"manifest\.json, settings: max_length: expected a whole number"):
        training_lengths(str(tmp_path))


def test_a_gold_that_tells_no_replies_apart_leaves_the_other_figures(tmp_path: Path) -> None:
    torch.manual_seed(3)
    RewardModel(tiny(2), ScalarHead(32), "mean").save(str(tmp_path))
    small_tokenizer().save(tmp_path)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "no"}) + "\n" for p in PROMPTS))
    gold = Gold(lambda prompts, replies: [1.0] * len(replies), "ties")
    found = reward_figures(str(tmp_path), str(path), gold, torch.device("cpu"))
    assert (found["gold_agreement"], found["label_agreement_with_gold"]) == (None, None)
    assert found["undefined"].keys() == {"gold_agreement", "label_agreement_with_gold"}
    assert 0 <= found["heldout_accuracy"] <= 1
    assert found["n_heldout"] == 5
