"""Rollouts of text, one iteration after another: their prompts, their seeds, and no top-p or top-k in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import accord.algorithms.ppo as ppo
from accord.config.data import PairsConfig
from accord.config.load import build
from accord.config.ppo import PPO
from accord.data.prompts import load_prompts
from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.reference import FrozenReference
from accord.rollout.collect import TextTask
from accord.rollout.generate import Decoding, draw
from accord.rollout.score import Replies
from accord.rollout.text_source import TextSource
from accord.runtime.run import Run

NewRun = Callable[..., Run]
Tiny = Callable[..., Backbone]


def nothing(replies: Replies) -> dict[str, Tensor]:
    return {"nothing": torch.zeros(len(replies.texts))}


def source(run: Run, world: Any, tokenizer: Any, backbone: Backbone, sampler: Any = None) -> TextSource:
    """Two replies to each of four prompts an iteration."""
    prompts = load_prompts(world.prompts, tokenizer, 40)
    decoding = Decoding(6, tokenizer.eos_id, tokenizer.pad_id)
    task = TextTask(prompts, tokenizer, decoding, 2, nothing, FrozenReference(backbone), 3)
    return TextSource(run, task, sampler or (lambda: backbone), 4, torch.device("cpu"))


def test_prompts_come_once_before_any_comes_again(new_run: NewRun, world: Any, tokenizer: Any, make_tiny: Tiny) -> None:
    made = source(new_run(), world, tokenizer, make_tiny("mamba"))
    drawn = [row for i in range(6) for row in made.prompt_rows(i)]
    assert [len(made.prompt_rows(i)) for i in range(2)] == [4, 4]
    for k in range(3):
        assert sorted(drawn[8 * k : 8 * (k + 1)]) == list(range(8))
    assert drawn[:8] != drawn[8:16]


def test_a_rollout_is_of_its_iterations_prompts_weights_and_seed(
    new_run: NewRun, world: Any, tokenizer: Any, make_tiny: Tiny
) -> None:
    made = source(new_run(), world, tokenizer, make_tiny("transformer"))
    found = [made.collect(iteration) for iteration in (0, 2, 2)]
    for iteration, rollout in zip((0, 2, 2), found, strict=True):
        rows = made.prompt_rows(iteration)
        assert rollout.prompt_rows.tolist() == [row for row in rows for _ in range(2)]
        assert rollout.generation.prompts == tuple(made.task.prompts.prompts[row] for row in rows for _ in range(2))
        assert rollout.weight_versions.unique().tolist() == [iteration]
    assert torch.equal(found[1].generation.responses, found[2].generation.responses)
    assert found[0].generation.reply_tokens() != found[1].generation.reply_tokens()


def test_a_prompt_gets_other_replies_in_a_later_iteration(
    new_run: NewRun, world: Any, tokenizer: Any, make_tiny: Tiny
) -> None:
    made = source(new_run(), world, tokenizer, make_tiny("transformer"))
    replies: dict[int, list[tuple[int, ...]]] = {}
    for rollout in map(made.collect, range(4)):  # each of the eight prompts twice
        for row, reply in zip(rollout.prompt_rows.tolist(), rollout.generation.reply_tokens(), strict=True):
            replies.setdefault(row, []).append(tuple(reply))
    assert all(len(found) == 4 and set(found[:2]) != set(found[2:]) for found in replies.values())


def test_each_rollout_asks_for_the_sampler_again(new_run: NewRun, world: Any, tokenizer: Any, make_tiny: Tiny) -> None:
    """The sampling copy is made from the policy's weights of that iteration."""
    backbone, made = make_tiny("mamba"), []

    def sampler() -> Backbone:
        made.append(len(made))
        return backbone

    some = source(new_run(), world, tokenizer, backbone, sampler)
    some.collect(0)
    some.collect(1)
    assert made == [0, 1]
    assert some.state_dict() == {}


# ------------------------------------------------------------------------------------- the whole distribution
@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens"])
def test_no_setting_truncates_the_distribution(name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key 'sampling\.{name}'"):
        build(PPO, {"model": {"policy": "language"}, "sampling": {name: 1}}, {}, "the test")
    with pytest.raises(UserError, match=f"unknown key '{name}'"):
        build(PairsConfig, {name: 1}, {}, "the test")


def decoding_of_ppo(stage: Any, world: Any, rewards: str, monkeypatch: pytest.MonkeyPatch, **sampling: Any) -> Decoding:
    """What a run of PPO samples with."""
    found: list[Decoding] = []

    class Seen(Exception):
        """The run went far enough."""

    def noting(run: Run, task: TextTask, *more: Any) -> TextSource:
        found.append(task.decoding)
        raise Seen

    monkeypatch.setattr(ppo, "TextSource", noting)
    model = {"policy": "language", "base_model": world.mamba, "max_length": 96}
    with pytest.raises(UserError, match="Seen"):  # before its first step
        stage("ppo", {"model": model, "prompts": world.prompts, "reward": {"source": f"{rewards}:brevity"},
                      "sampling": sampling})  # fmt: skip
    return found[0]


def test_ppo_samples_from_all_of_it_where_a_nucleus_would_tilt_the_first_ratio(
    stage: Any, world: Any, rewards: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn from a nucleus and scored without it, the mean ratio is the mass of the nucleus, not 1."""
    tempered = decoding_of_ppo(stage, world, rewards, monkeypatch, temperature=0.7)
    assert tempered == Decoding(64, tokenizer.eos_id, tokenizer.pad_id, temperature=0.7, top_p=1.0)
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    logits = probabilities.log().expand(20_000, -1)
    whole = logits.log_softmax(-1)
    plain = decoding_of_ppo(stage, world, rewards, monkeypatch)
    for decoding, mean in ((plain, 1.0), (Decoding(1, 7, 0, top_p=0.7), 0.7)):
        tokens, sampled = draw(logits, decoding, torch.rand(len(logits), generator=torch.Generator().manual_seed(0)))
        ratio = (whole.gather(1, tokens[:, None])[:, 0] - sampled).exp()
        assert float(ratio.mean()) == pytest.approx(mean, abs=1e-6)
        assert (len(set(tokens.tolist())) == 5) is (mean == 1.0)
