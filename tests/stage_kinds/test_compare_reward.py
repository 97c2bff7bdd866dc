"""A reward model judged alone on pairs: scores as transformers has them, the accuracy of training, figures by category."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from accord.config.evaluation import COMPARE, CompareConfig, RewardCompareConfig
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.evaluation.reward_models import (
    Reading,
    ScoredPairs,
    accuracy_figures,
    read_judged,
    reply_features,
    score_data,
)
from accord.models.reward import RewardModel
from tests.conftest import ROWS, Stage, World, write_rows

LINE_ENDS = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}{{ m['content'] }}"
    "{{ eos_token }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
"""A template that writes a space after every end token."""


def trl_reward(folder: Path, pad: int | None = 0, template: str | None = LINE_ENDS) -> Path:
    """A small model with one label, as TRL's RewardTrainer saves it, with the small world's tokenizer."""
    tokenizer = small_tokenizer()
    own = Tokenizer(tokenizer._backend, tokenizer.specials, template)
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=pad,
        eos_token_id=own.eos_id,
        bos_token_id=None,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    own.save(folder)
    return folder


def scored_file(folder: str, pairs: str, *how: Any) -> ScoredPairs:
    """The scores of a file's pairs; ``how``: size of a pass, and what is called after each."""
    model = RewardModel.open(folder).eval()
    return score_data(folder, model, read_judged(folder, model, pairs, Reading()), torch.device("cpu"), *how)


def bench(folder: Path, rows: list[dict[str, Any]] | None = None) -> str:
    """A file as RewardBench's: text, the names of models that wrote it, a subset."""
    made = [
        {"prompt": p, "chosen": g, "rejected": b, "chosen_model": "x", "subset": ("chat", "code")[i % 2], "id": i}
        for i, (p, g, b) in enumerate(ROWS)
    ]
    return write_rows(folder / "bench.jsonl", made if rows is None else rows)


def results(outcome: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.folder / "results.json").read_text())["reward"]
    return found


# ------------------------------------------------------------------ what selects it
def test_a_reward_model_and_pairs_are_judged_alone() -> None:
    assert isinstance(COMPARE(reward_model="r", pairs="p"), RewardCompareConfig)
    assert isinstance(COMPARE(what="reward", reward_model="r", pairs="p", limit=5), RewardCompareConfig)


@pytest.mark.parametrize(
    "values",
    [{}, {"reward_model": "reward"}, {"pairs": "p"}, *({"reward_model": "r", "pairs": "p", **more} for more in
     ({"models": {"sft": "a"}}, {"prompts": "demo"}, {"gold": "m:f"}, {"redraw": False}, {"what": "models"}))],
)  # fmt: skip
def test_whatever_names_models_or_their_replies_compares_models(values: dict[str, Any]) -> None:
    assert isinstance(COMPARE(**values), CompareConfig)


def test_nothing_of_the_small_world_is_named(world: World) -> None:
    from accord.pipeline.references import references

    config = COMPARE(reward_model=world.reward, pairs=world.preferences)
    assert {r.key: value for r, value in references("compare", config)} == {
        "reward_model": world.reward,
        "pairs": world.preferences,
    }


# ------------------------------------------------------------------ the scores
@pytest.mark.parametrize("pad", [0, 1, None])
def test_texts_are_scored_as_their_template_writes_them_whole(tmp_path: Path, pad: int | None) -> None:
    """As TRL trains: with what the template writes after the end token, which ``pad=1`` passes over in part."""
    folder = trl_reward(tmp_path / "reward", pad)
    scored = scored_file(str(folder), bench(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for side, found in ((1, scored.chosen), (2, scored.rejected)):
        for row, score in zip(ROWS, found.tolist(), strict=True):
            chat = [{"role": "user", "content": row[0]}, {"role": "assistant", "content": row[side]}]
            ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
            with torch.no_grad():
                assert score == pytest.approx(float(model(torch.tensor([ids])).logits), abs=2e-5)


def test_a_long_text_is_cut_to_the_positions_of_the_model(tmp_path: Path) -> None:
    folder = trl_reward(tmp_path / "reward")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    rows = [{"prompt": "hi", "chosen": "a" * 90, "rejected": "b"}]
    scored = scored_file(str(folder), bench(tmp_path, rows))
    assert len(scored.data.pairs[0].prompt) + len(scored.data.pairs[0].chosen) == 40
    assert scored.data.report.truncated_replies == 1


# ------------------------------------------------------------------ the figures
def test_ties_are_counted_and_change_no_figure_wherever_they_stand(tmp_path: Path) -> None:
    folder, (first, *rest) = str(trl_reward(tmp_path / "reward")), ROWS
    preferred = [{"prompt": p, "chosen": g, "rejected": b, "subset": "chat"} for p, g, b in rest]
    tie = {"prompt": first[0], "chosen": first[1], "rejected": first[2], "label": 0.5, "subset": "code"}
    without, *with_tie = (
        accuracy_figures(scored_file(folder, bench(tmp_path, rows)))
        for rows in (preferred, [tie, *preferred], [*preferred[:3], tie, *preferred[3:]], [*preferred, tie])
    )
    assert (without["n_heldout"], without["tied_labels"]) == (len(rest), 0)
    counted = ("heldout_accuracy", "n_heldout", "accuracy_ci95", "categories")
    for found in with_tie:
        assert found["tied_labels"] == 1
        assert [found[name] for name in counted] == [without[name] for name in counted]


def test_figures_by_category_add_up(tmp_path: Path, stage: Stage) -> None:
    folder, pairs = trl_reward(tmp_path / "reward"), bench(tmp_path)
    outcome = stage("compare", {"reward_model": str(folder), "pairs": pairs})
    found = results(outcome)
    scored = scored_file(str(folder), pairs)
    right = (scored.chosen > scored.rejected).tolist()
    assert found["heldout_accuracy"] == pytest.approx(sum(right) / 8) == outcome.metrics["heldout_accuracy"]
    assert {name: (part["pairs"], part["accuracy"]) for name, part in found["categories"].items()} == {
        "chat": (4, pytest.approx(sum(right[::2]) / 4)),
        "code": (4, pytest.approx(sum(right[1::2]) / 4)),
    }
    low, high = found["accuracy_ci95"]
    assert 0 < low < found["heldout_accuracy"] < high < 1
    text, page = ((outcome.folder / name).read_text() for name in ("results.txt", "results.md"))
    for line in ("chat", "code", "all pairs"):
        assert line in text
        assert f"| {line} | {8 if line == 'all pairs' else 4} |" in page
    assert "Not used: chosen_model, id." in (tmp_path / "logs" / "compare" / "compare.log").read_text()
    assert not (tmp_path / "out" / "demo").exists()


def test_equal_scores_count_one_half_and_ties_are_left_out(tmp_path: Path, stage: Stage) -> None:
    """A score of zero everywhere."""
    folder = trl_reward(tmp_path / "reward")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file({**state, "score.weight": torch.zeros(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [{"prompt": p, "chosen": g, "rejected": b, "label": 0.5 if i < 2 else 1} for i, (p, g, b) in enumerate(ROWS)]
    found = results(stage("compare", {"reward_model": str(folder), "pairs": bench(tmp_path, rows)}))
    assert (found["heldout_accuracy"], found["n_heldout"], found["tied_labels"], found["equal_scores"]) == (
        0.5,
        6,
        2,
        6,
    )
    assert found["categories"] == {}


def test_the_accuracy_is_the_one_that_training_reported(tmp_path: Path, stage: Stage, world: World) -> None:
    made = stage(
        "reward",
        {
            "model": {"kind": "language", "base_model": world.mamba, "max_length": 24},
            "data": {"train": world.preferences, "heldout": world.preferences},
        },
    )
    found = results(stage("compare", {"reward_model": str(made.folder / "model"), "pairs": world.preferences}))
    assert found["heldout_accuracy"] == made.metrics["heldout_accuracy"]
    assert found["n_heldout"] == made.metrics["heldout_pairs"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_passes_of_any_size_give_the_same_scores(tmp_path: Path, batch_size: int) -> None:
    folder, pairs = str(trl_reward(tmp_path / "reward")), bench(tmp_path)
    seen: list[int] = []
    found = scored_file(folder, pairs, batch_size, seen.append)
    whole = scored_file(folder, pairs)
    assert found.chosen == pytest.approx(whole.chosen, abs=1e-5)
    assert found.rejected == pytest.approx(whole.rejected, abs=1e-5)
    assert sum(seen) == 8
    assert max(seen) == batch_size


def test_a_column_of_another_name_is_read(tmp_path: Path, stage: Stage) -> None:
    rows = [{"prompt": p, "chosen": g, "rejected": b, "topic": i // 4} for i, (p, g, b) in enumerate(ROWS)]
    rows[7] |= {"topic": None}
    values = {"reward_model": str(trl_reward(tmp_path / "reward")), "pairs": bench(tmp_path, rows), "category": "topic"}
    found = results(stage("compare", values))["categories"]
    assert {name: part["pairs"] for name, part in found.items()} == {"0": 4, "1": 3, "(none)": 1}


@pytest.mark.parametrize(
    ("values", "rows", "said"),
    [
        ({"category": "topic"}, None, r"category: no row of .*bench.jsonl has a column 'topic'"),
        ({}, [{"prompt": "a", "chosen": "b", "rejected": "c", "subset": ["x"]}], "row 1: 'subset' is a JSON array"),
        ({}, [{"prompt": "a", "chosen": "b", "rejected": "c", "label": 0.5}], "every row is a tie"),
        ({}, [{"prompt": "a", "completion": "b"}], "bench.jsonl, row 1"),
    ],
)
def test_what_does_not_fit_is_named_before_a_file_is_touched(
    tmp_path: Path, stage: Stage, values: dict[str, Any], rows: list[dict[str, Any]] | None, said: str
) -> None:
    given = {"reward_model": str(trl_reward(tmp_path / "reward")), "pairs": bench(tmp_path, rows), **values}
    with pytest.raises(UserError, match=said):
        stage("compare", given)
    assert not (tmp_path / "out").exists()


def test_a_language_model_is_no_reward_model(tmp_path: Path, stage: Stage, world: World) -> None:
    with pytest.raises(UserError, match=r"not a reward model but a language model"):
        stage("compare", {"reward_model": world.mamba, "pairs": world.preferences})


def test_features_of_a_reward_model_of_transformers_feed_its_score(tmp_path: Path) -> None:
    """The head is the score alone: no normalization stands between."""
    folder, pairs = str(trl_reward(tmp_path / "reward")), bench(tmp_path)
    scored, model = scored_file(folder, pairs), RewardModel.open(folder).eval()
    features = reply_features(model, scored.data.pairs, torch.device("cpu"), "float32").detach()
    weight = model.head_state()["head.layers.0.weight"]
    assert scored.chosen == pytest.approx((features @ weight.T)[:8, 0], abs=1e-5)
