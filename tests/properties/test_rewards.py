"""The reward of a text is the same alone and in any batch: whatever is beside it, before it, or shares its prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.data.packing import pack_continuations
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.rollout.score import ModelReward, Replies

few = settings(max_examples=20, deadline=None, derandomize=True)
kinds = pytest.mark.parametrize(
    ("family", "pooling"), [("mamba", "last"), ("mamba", "mean"), ("transformer", "last"), ("transformer", "mean")]
)
# few letters, so that prompts are repeated; a long beginning, so that prompts share one
prompts = st.tuples(st.sampled_from(["", "tell me again: "]), st.text("ab", max_size=2)).map("".join)
rows = st.lists(st.tuples(prompts, st.text("ab .", max_size=6)), min_size=1, max_size=6)
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # the head is in float32, as ever


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture(scope="session")
def reward_model(tokenizer: Tokenizer) -> Callable[[str, str], RewardModel]:
    """``reward_model(family, pooling)``: the backbone in float64, scores normalized by its own statistics."""
    made: dict[str, Backbone] = {}
    for family in ("mamba", "transformer"):
        torch.manual_seed(4)
        made[family] = small_backbone(family, 32, 2, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)
        with torch.no_grad():
            for weight in made[family].parameters():
                if weight.ndim == 2:
                    weight.add_(0.1 * torch.randn_like(weight))
        made[family].double()

    def model(family: str, pooling: str) -> RewardModel:
        torch.manual_seed(5)
        found = RewardModel(made[family], ScalarHead(32), pooling)  # type: ignore[arg-type]
        found.mean.fill_(0.3)
        found.deviation.fill_(2.0)
        return found.eval()

    return model


def replies(tokenizer: Tokenizer, texts: list[tuple[str, str]]) -> Replies:
    asked = [tokenizer.encode(f"<user>{p}<assistant>") for p, _ in texts]
    said = [[*tokenizer.encode(r), tokenizer.eos_id] for _, r in texts]
    return Replies([p for p, _ in texts], [r for _, r in texts], asked, said)


@kinds
@few
@given(texts=rows, data=st.data())
def test_a_models_scores_do_not_depend_on_the_batch(
    reward_model: Callable[[str, str], RewardModel],
    tokenizer: Tokenizer,
    family: str,
    pooling: str,
    texts: list[tuple[str, str]],
    data: st.DataObject,
) -> None:
    """``RewardModel`` on a packed row, its texts asked for in any order and more than once."""
    model, given_ = reward_model(family, pooling), replies(tokenizer, texts)
    chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))

    @torch.no_grad()
    def scores(which: list[int], asked: list[int]) -> Tensor:
        packed, segments = pack_continuations(
            [given_.prompt_tokens[r] for r in which], [given_.tokens[r] for r in which]
        )
        return model(packed, segments[asked])

    found = scores(list(range(len(texts))), chosen)
    torch.testing.assert_close(found, torch.cat([scores([r], [0]) for r in chosen]), **CLOSE)


@kinds
@few
@given(texts=rows, data=st.data())
def test_scores_in_ppo_do_not_depend_on_the_batch(
    reward_model: Callable[[str, str], RewardModel],
    tokenizer: Tokenizer,
    family: str,
    pooling: str,
    texts: list[tuple[str, str]],
    data: st.DataObject,
) -> None:
    """``ModelReward``: in any order, beside any others, in batches of any size; by tokens and by texts."""
    model = reward_model(family, pooling)
    order = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    size = data.draw(st.integers(1, 9))
    by_tokens = data.draw(st.booleans())
    alone = ModelReward("m", model, tokenizer, True)
    expected = torch.cat([alone(replies(tokenizer, [texts[r]]))["m"] for r in order])
    together = ModelReward("m", model, tokenizer, by_tokens, size)
    torch.testing.assert_close(together(replies(tokenizer, [texts[r] for r in order]))["m"], expected, **CLOSE)
