"""Vocabularies padded to a round number: ids without a token are never sampled, and all log-probs know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import accord
from accord.cli import main
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.quantized import sampling_copy
from accord.models.reference import FrozenReference
from accord.models.transformer import Transformer
from accord.rollout import generate as generation
from accord.rollout.collect import pack_texts, to_rows
from accord.rollout.generate import Decoding, draw, draw_compiled, generate
from accord.training.artifact import open_policy, open_tokenizer
from accord.types import Packed
from tests.models.folders import IDS, LLAMA, chat_tokenizer, new_model, save
from tests.rollout.test_generate import FAMILIES, PAD, PROMPTS, VOCAB, keys, tiny

TAIL = {20, 21, 22}
CASES = {"tail": TAIL, "gaps": TAIL | {4, 11}}
cases = pytest.mark.parametrize("excluded", CASES.values(), ids=CASES)


@torch.no_grad()
def likely(backbone: Backbone, excluded: set[int]) -> Backbone:
    """A model that would sample the excluded ids more often than not."""
    head = backbone.head_weight() if isinstance(backbone, Transformer) else backbone.embeddings.weight  # type: ignore[union-attr]
    states = backbone.prefill(Packed.of(PROMPTS), 1)[0]
    assert isinstance(head, Tensor)
    head[sorted(excluded)] += 0.3 * states.mean(0) / states.std()
    return backbone


@cases
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_ids_without_a_token_have_no_probability_anywhere(excluded: set[int], family: str, temperature: float) -> None:
    """Behavior, old, current and reference log-probs are those of one distribution, over the ids that are tokens."""
    backbone = likely(tiny(family), excluded)
    decoding = Decoding(12, -1, PAD, temperature)

    def sampled() -> Any:
        return generate(backbone, PROMPTS, decoding, keys(), samples=1)[0]

    assert excluded & set(sampled().responses[sampled().mask].tolist()), "or the test cannot fail"
    backbone.exclude(excluded)
    found = sampled()
    assert not excluded & set(found.responses[found.mask].tolist())
    packed, at = pack_texts(found.prompts, found.responses, found.mask)
    allowed = sorted(set(range(VOCAB)) - excluded)
    logits = backbone.logits(backbone(packed, packed.previous[at]))[:, allowed] / temperature
    oracle = torch.distributions.Categorical(logits=logits)
    wanted = oracle.log_prob(torch.tensor([allowed.index(token) for token in packed.tokens[at].tolist()]))
    scores = LanguageActorCritic(backbone).score(packed, at, temperature)
    reference = FrozenReference(backbone, temperature).logprobs(packed, at)
    for logprobs in (scores.logprobs, reference, found.logprobs[found.mask]):
        torch.testing.assert_close(logprobs, wanted, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(scores.entropy, oracle.entropy(), rtol=1e-5, atol=2e-5)
    assert torch.equal(to_rows(scores.logprobs, found.mask).isfinite(), torch.ones_like(found.mask))


@cases
def test_gradients_leave_excluded_ids_alone(excluded: set[int]) -> None:
    backbone = tiny("transformer")
    assert isinstance(backbone, Transformer)
    backbone.exclude(excluded)
    scores = LanguageActorCritic(backbone).score(Packed.of([[1, 2, 3], [5, 6]]), torch.tensor([1, 2, 4]), 1.0)
    grad = torch.autograd.grad((scores.logprobs + scores.entropy).sum(), [backbone.embed_tokens.weight])[0]
    assert {token for token in range(VOCAB) if not grad[token].any()} == excluded


@cases
def test_the_compiled_draw_and_the_sampling_copy_leave_them_out_as_well(
    excluded: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = likely(tiny("transformer"), excluded)
    backbone.exclude(excluded)
    copy = sampling_copy(backbone, "bfloat16")
    monkeypatch.setattr(generation, "MIN_WORK_FOR_JIT", 0)
    for model in (backbone, copy):
        for temperature in (1.0, 0.0):
            found = generate(model, PROMPTS, Decoding(12, -1, PAD, temperature), keys(samples=4), samples=4)[0]
            assert not excluded & set(found.responses[found.mask].tolist())
            assert found.logprobs.isfinite().all()


@pytest.mark.parametrize("pick", [draw, draw_compiled])
def test_a_draw_at_the_very_end_has_a_probability(pick: Any) -> None:
    """Rounding may carry the point to the end of the cumulative distribution, where tokens of no probability stand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 300, generator=generator)
    logits[:, 200:] = float("-inf")
    last = torch.full((512,), 1 - 2**-24)
    tokens, logprobs = pick(logits, Decoding(1, -1, 0), last)
    assert int(tokens.max()) < 200
    assert logprobs.isfinite().all()
    assert float((tokens > 190).float().mean()) > 0.5


def test_top_p_draws_only_from_the_nucleus_at_the_very_end() -> None:
    logits = torch.tensor([[3.0, 2.9, 1.0, 0.5, -4.0]]).repeat(64, 1)
    tokens, logprobs = draw(logits, Decoding(1, -1, 0, top_p=0.5), torch.full((64,), 1 - 2**-24))
    assert set(tokens.tolist()) <= {0, 1}
    assert logprobs.isfinite().all()


# ------------------------------------------------------------------------------------- stages
@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with 61 ids more than its tokenizer, which its head likes best."""
    model = new_model("llama", **{**LLAMA, "vocab_size": 320})
    with torch.no_grad():
        model.lm_head.weight[IDS:] *= 3
    return save(model, tmp_path_factory.mktemp("padded"))


def test_the_excluded_ids_are_those_without_a_token(padded: str) -> None:
    policy = open_policy(padded, open_tokenizer(padded), torch.device("cpu"))
    assert (policy.vocab_size, policy.policy_vocabulary, policy.gaps) == (320, IDS, ())
    assert chat_tokenizer().ids_without_token(262) == {259, 260, 261}


def test_no_stage_samples_an_id_without_a_token(
    padded: str, stage: Any, rewards: str, tmp_path: Path, lines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in ("hi", "what?", "go on", "tell me")))
    common = {"model": {"base_model": padded}, "prompts": str(prompts)}
    stage("sample", {**common, "replies": 8, "max_new_tokens": 16})
    rows = [json.loads(row) for row in (tmp_path / "out" / "sample" / "samples.jsonl").read_text().splitlines()]
    sampled = [token for row in rows for candidate in row["candidates"] for token in candidate["tokens"]]
    assert len(sampled) > 200
    assert max(sampled) < IDS
    training = {"replies": 8, "samples_per_prompt": 2, "batch_size": 8, "iterations": 2, "num_epochs": 1}
    reward = {"source": f"{rewards}:share_of_a"}
    stage("ppo", {**common, "sampling": {"max_new_tokens": 8}, "training": training, "reward": reward})
    first = next(row for row in lines("ppo") if "approx_kl" in row)
    assert abs(first["approx_kl"]) < 1e-6, "old and current log-probs are those of one distribution"
    assert abs(next(row["rollout/kl"] for row in lines("ppo") if "rollout/kl" in row)) < 1e-5
    loaded = accord.load(padded)
    tokens = [generation.stream(loaded.backbone, (3, 4, 5), Decoding(64, -1, 0), key) for key in range(4)]
    assert max(token for some in tokens for token in some) < IDS


def test_heads_have_an_action_for_each_token(
    padded: str, rewards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n')
    sizes = ["model.policy=heads", "model.obs_dim=32", "model.action_dim=320"]
    words = [
        f"model.base_model={padded}",
        f"prompts={prompts}",
        f"out={tmp_path}",
        f"reward.source={rewards}:brevity",
        *sizes,
    ]
    assert main(["ppo", *words]) == 2
    assert "set model.action_dim=259." in capsys.readouterr().err
