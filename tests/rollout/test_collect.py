"""From prompts to scored replies: a rollout against each of its replies alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from accord.data.prompts import PromptData
from accord.data.tokenizer import small_tokenizer
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.open import small_backbone
from accord.models.reference import FrozenReference
from accord.rollout.collect import TextTask, collect, read_replies, to_rows
from accord.rollout.generate import Decoding
from accord.rollout.noise import reply_keys
from accord.rollout.score import FunctionReward, Replies, Reward, WeightedReward
from accord.types import Generation, Packed, Rollout

TOKENIZER = small_tokenizer()
TEXTS = ["what is the sea?", "hi", "what is the sky?", "what is the sea?", "never asked"]
PROMPTS = tuple(tuple(TOKENIZER.encode(f"<user>{t}<assistant>")) for t in TEXTS)
ROWS = [2, 3, 1, 0]  # of the prompts, in the order of a rollout
END = TOKENIZER.encode("e")[0]  # a letter is drawn often enough to end some replies


def tiny(seed: int) -> Backbone:
    torch.manual_seed(seed)
    backbone = small_backbone("mamba", 32, 2, 50, TOKENIZER.eos_id, TOKENIZER.pad_id)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                parameter.mul_(2)
    return backbone


def length(prompts: list[str], texts: list[str]) -> list[float]:
    return [float(len(t)) for t in texts]


def zeros(prompts: list[str], texts: list[str]) -> list[float]:
    return [0.0] * len(texts)


REWARD = WeightedReward(((1.0, FunctionReward("length", length)), (0.5, FunctionReward("zero", zeros))))


def task_of(reward: Reward = REWARD, reference: int = 1, samples: int = 3, chunk: int = 4) -> TextTask:
    prompts = PromptData(PROMPTS, tuple(TEXTS), tuple(TEXTS), None)  # type: ignore[arg-type]
    decoding = Decoding(9, END, TOKENIZER.pad_id, 0.8)
    return TextTask(prompts, TOKENIZER, decoding, samples, reward, FrozenReference(tiny(reference), 0.8), chunk)


def collected(task: TextTask, rows: Sequence[int] = ROWS, **options: object) -> Rollout:
    keys = reply_keys(2, "the test", 0, rows, task.samples_per_prompt)
    return collect(task, tiny(0), rows, keys, **options)  # type: ignore[arg-type]


@torch.no_grad()
def alone(backbone: Backbone, generation: Generation, row: int) -> Tensor:
    """Log-probs of one reply, from its text alone."""
    prompt, reply = list(generation.prompts[row]), generation.reply_tokens()[row]
    packed = Packed.of([prompt + reply])
    return reply_logprobs(backbone, packed, torch.arange(len(prompt), len(prompt) + len(reply)), 0.8)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_log_probs_and_scores_are_those_of_each_reply_alone(chunk: int) -> None:
    rollout = collected(task_of(chunk=chunk))
    generation, reference, sampler = rollout.generation, tiny(1), tiny(0)
    assert generation.prompts == tuple(PROMPTS[r] for r in ROWS for _ in range(3))
    assert 0 < int(generation.ended.sum()) < 12
    for row, n in enumerate(generation.lengths.tolist()):
        torch.testing.assert_close(rollout.ref_logprobs[row, :n], alone(reference, generation, row), rtol=0, atol=1e-5)
        torch.testing.assert_close(generation.logprobs[row, :n], alone(sampler, generation, row), rtol=0, atol=1e-5)
        assert (rollout.ref_logprobs[row, n:] == 0).all()
    assert rollout.scores.tolist() == [len(TOKENIZER.decode(r)) for r in generation.reply_tokens()]
    assert set(rollout.terms) == {"length", "zero"}
    assert torch.equal(rollout.scores, rollout.terms["length"] + rollout.terms["zero"])


def test_each_reply_names_its_prompts_row_and_each_token_its_weights() -> None:
    rollout = collected(task_of(), version=7)
    assert rollout.prompt_rows.tolist() == [r for r in ROWS for _ in range(3)]
    for row, prompt in zip(rollout.prompt_rows.tolist(), rollout.generation.prompts, strict=True):
        assert PROMPTS[row] == prompt
    assert rollout.weight_versions.shape == rollout.generation.mask.shape
    assert rollout.weight_versions.unique().tolist() == [7]
    assert collected(task_of()).weight_versions.unique().tolist() == [0]


def test_the_reward_sees_the_prompt_that_each_reply_answers() -> None:
    seen: list[Replies] = []

    def spy(replies: Replies) -> dict[str, Tensor]:
        seen.append(replies)
        return {"none": torch.zeros(len(replies.texts))}

    rollout = collected(task_of(spy, samples=2))
    (replies,) = seen
    assert list(replies.prompts) == [TEXTS[r] for r in ROWS for _ in range(2)]
    assert tuple(replies.prompt_tokens) == rollout.generation.prompts
    assert list(replies.tokens) == rollout.generation.reply_tokens()
    assert list(replies.texts) == [TOKENIZER.decode(r) for r in rollout.generation.reply_tokens()]
    assert list(replies.ended) == rollout.generation.ended.tolist()


def test_a_readout_is_of_the_states_that_chose_each_token() -> None:
    """Values read during sampling are those of a pass over whole replies."""
    policy = LanguageActorCritic(tiny(0), "shared")
    nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr, arg-type]
    rollout = collected(task_of(), readout=policy.values)
    assert rollout.readout is not None
    expected = read_replies(rollout.generation, 4, policy.critic_values)
    torch.testing.assert_close(rollout.readout, expected, rtol=0, atol=1e-4)
    assert (rollout.readout[~rollout.generation.mask] == 0).all()
    assert expected[rollout.generation.mask].std() > 0.1
    assert collected(task_of()).readout is None


@pytest.mark.parametrize("size", [1, 5, 100])
def test_replies_are_read_in_chunks_and_written_to_their_rows(size: int) -> None:
    generation = collected(task_of()).generation
    sizes: list[int] = []

    def read(packed: Packed, at: Tensor) -> Tensor:
        sizes.append(len(packed.texts))
        return packed.tokens[at]

    found = read_replies(generation, size, read)
    assert found.dtype is torch.float32
    assert torch.equal(found, torch.where(generation.mask, generation.responses, 0).float())
    assert len(sizes) == -(-12 // size)
    assert max(sizes) <= size
    logprobs = read_replies(generation, size, partial(reply_logprobs, tiny(0), temperature=0.8))
    assert not logprobs.requires_grad
    torch.testing.assert_close(logprobs, generation.logprobs, rtol=0, atol=1e-5)


def test_numbers_of_valid_tokens_go_row_after_row() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert to_rows(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1, 0, 2], [0, 0, 3]]


def test_a_rollout_is_a_function_of_the_keys() -> None:
    first, second = collected(task_of()), collected(task_of())
    assert torch.equal(first.generation.responses, second.generation.responses)
    assert torch.equal(first.ref_logprobs, second.ref_logprobs)
