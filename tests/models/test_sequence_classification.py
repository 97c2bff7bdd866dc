"""Reward models in the form of transformers' sequence classification: scores, padding and refusals are transformers'."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from accord.data.packing import pack_continuations
from accord.errors import UserError
from accord.models.hf import CausalLM
from accord.models.reward import HEAD_CONFIG, RewardModel, has_head, is_reward_model, last_read, open_trunk
from accord.models.transformer import Transformer
from accord.types import Packed

VOCAB, PAD, END = 60, 0, 1
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama, rope yarn": (
        "LlamaConfig",
        {**GROUPED, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
    ),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gpt2": ("GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 8}),
    "phi3": ("Phi3Config", {**GROUPED}),
}
TEXTS = [[5, 9, 12, 7, END], [8, 3, 44], [5, 9, 21, 6, 30, 31, 32, END], [17]]
PROMPTS = [text[:1] for text in TEXTS]


def written(folder: Path, family: str = "llama", **changed: Any) -> Path:
    """A random model with one label and weights large enough that scores differ."""
    name, sizes = FAMILIES[family]
    torch.manual_seed(3)
    values = {"num_labels": 1, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None, **sizes, **changed}
    model = AutoModelForSequenceClassification.from_config(getattr(transformers, name)(**values))
    with torch.no_grad():
        model.score.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    return folder


@cache
def opened(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(folder: Path, texts: list[list[int]], side: str = "right") -> Tensor:
    """transformers' scores of a padded batch, (n,)."""
    model = opened(folder)
    longest = max(map(len, texts))
    rows = [[*t, *[PAD] * (longest - len(t))] if side == "right" else [*[PAD] * (longest - len(t)), *t] for t in texts]
    mask = [[1] * len(t) + [0] * (longest - len(t)) for t in texts]
    mask = mask if side == "right" else [row[::-1] for row in mask]
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits[:, 0]
    return found


def ours(model: RewardModel, texts: list[list[int]]) -> Tensor:
    """Our scores of texts, each after its first token as the prompt where it has more."""
    with torch.no_grad():
        if min(map(len, texts)) == 1:
            return model(Packed.of(texts), torch.arange(len(texts)))  # type: ignore[no-any-return]
        return model(*pack_continuations([t[:1] for t in texts], [t[1:] for t in texts]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Of each text alone, of a padded batch, and of texts that share a prompt."""
    folder = written(tmp_path / "model", family)
    assert is_reward_model(folder)
    assert not has_head(folder)
    model = RewardModel.open(folder)
    alone = torch.cat([theirs(folder, [text]) for text in TEXTS])
    assert float(alone.std()) > 0.05
    assert ours(model, TEXTS) == pytest.approx(alone, abs=2e-5)
    assert ours(model, TEXTS) == pytest.approx(theirs(folder, TEXTS), abs=2e-5)
    assert ours(model, [TEXTS[0], TEXTS[2]]) == pytest.approx(alone[[0, 2]], abs=2e-5)
    assert torch.cat([ours(model, [text]) for text in TEXTS]) == pytest.approx(alone, abs=2e-5)
    native = family in ("llama", "mistral", "qwen2", "qwen3")
    assert isinstance(model.backbone, Transformer if native else CausalLM)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_padding_on_the_left_changes_nothing(tmp_path: Path, family: str) -> None:
    folder = written(tmp_path / "model", family)
    assert ours(RewardModel.open(folder), TEXTS) == pytest.approx(theirs(folder, TEXTS, "left"), abs=2e-4)


@pytest.mark.parametrize("pad", [PAD, END])
def test_the_pad_token_never_ends_a_text(tmp_path: Path, pad: int) -> None:
    """As in transformers, also where it is the end token: the score is read before it."""
    folder = written(tmp_path / "model", pad_token_id=pad)
    texts = [[5, 9, 12, pad], [5, 9, pad, 12], [5, pad, pad, pad], [7, 9, END, END]]
    alone = torch.cat([theirs(folder, [text]) for text in texts])
    model = RewardModel.open(folder)
    assert model.pad_id == pad
    assert ours(model, texts) == pytest.approx(alone, abs=2e-5)
    shorter = ours(model, [[5, 9, 12], texts[1]])
    assert float(shorter[0]) == pytest.approx(float(alone[0]), abs=2e-5)


def test_without_a_pad_token_every_token_ends_a_text(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", pad_token_id=None)
    texts = [[5, 9, 12, PAD], [5, 9, END, END]]
    alone = torch.cat([theirs(folder, [text]) for text in texts])
    assert RewardModel.open(folder).pad_id is None
    assert ours(RewardModel.open(folder), texts) == pytest.approx(alone, abs=2e-5)


def test_a_reply_of_pad_tokens_is_scored_at_its_prompt() -> None:
    packed = Packed.of([[5, 6], [PAD, PAD], [7, PAD], [PAD]], parents=[-1, 0, 0, -1])
    assert last_read(packed, torch.tensor([1, 2, 3]), PAD).tolist() == [1, 4, 6]
    assert last_read(packed, torch.tensor([1, 2, 3]), None).tolist() == [3, 5, 6]


def test_saved_in_our_form_it_scores_the_same(tmp_path: Path) -> None:
    model = RewardModel.open(written(tmp_path / "theirs", pad_token_id=END))
    (tmp_path / "ours").mkdir()
    model.save(str(tmp_path / "ours"))
    again = RewardModel.open(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / HEAD_CONFIG).read_text())["pad_id"] == again.pad_id == END
    assert torch.equal(ours(again, TEXTS), ours(model, TEXTS))


def test_its_body_may_carry_another_head(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    body = open_trunk(folder)
    assert torch.equal(body(Packed.of(TEXTS)), RewardModel.open(folder).backbone(Packed.of(TEXTS)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_are_read_by_their_index(tmp_path: Path, family: str) -> None:
    whole = ours(RewardModel.open(written(tmp_path / "whole", family)), TEXTS)
    state = load_file(tmp_path / "whole" / "model.safetensors")
    folder = written(tmp_path / "parts", family)
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + (name == 'score.weight')}-of-00002.safetensors" for name in state}
    for shard in set(shards.values()):
        save_file({n: x for n, x in state.items() if shards[n] == shard}, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert torch.equal(ours(RewardModel.open(folder), TEXTS), whole)


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_is_no_reward_model(tmp_path: Path, labels: int) -> None:
    folder = written(tmp_path / "model", num_labels=labels)
    with pytest.raises(UserError, match=rf"a classifier with {labels} labels \(LlamaForSequenceClassification\)"):
        RewardModel.open(folder)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"BertForSequenceClassification has no tensor score.weight.*encoders"):
        RewardModel.open(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_body_that_lacks_a_tensor_is_refused(tmp_path: Path, family: str) -> None:
    folder = written(tmp_path, family)
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "norm" in name or "ln_" in name)
    save_file({n: x for n, x in state.items() if n != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is missing"):
        RewardModel.open(folder)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    folder = written(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["score.weight"][0, 3] = bad
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"score.weight holds NaN or infinity"):
        RewardModel.open(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("pad_token_id", "x"), ("architectures", 5), ("id2label", []), ("model_type", 7)]
)
def test_a_damaged_config_is_a_sentence(tmp_path: Path, key: str, value: Any) -> None:
    folder = written(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError):
        RewardModel.open(folder)
