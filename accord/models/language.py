"""A language model as policy model, with a critic that values the state before every token."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from accord.functional.logprobs import token_logprobs
from accord.kernels.vocabulary_head import label_logprobs
from accord.models.backbone import Backbone
from accord.models.reward import RewardModel
from accord.types import Packed

Critic = Literal["shared", "shared_detached", "separate", "reward"]
MAX_STORED_LOGITS = 2**25
"""Up to this many (128 MB in float32) are stored for the backward pass; more are computed again, a chunk at a time."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Current-policy scores of ``N`` tokens, and the critic's values."""

    logprobs: Tensor  # (N,) under the policy at its temperature
    entropy: Tensor  # (N,) of the distribution of each token
    values: Tensor  # (N,) of the state before each token


class ValueHead(nn.Module):
    """A linear value, zero at the start, so that a random head does not distort the first advantages."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)  # type: ignore[no-any-return]


class LanguageActorCritic(nn.Module):
    """Policy and critic.

    critic = "shared": the value head is on the policy's trunk; "shared_detached": the same, and its gradient stops
    there; "separate": on a copy of the policy's trunk that learns values alone; "reward": that copy is the reward model's
    trunk, and its head starts as the reward head (values then start at the reward the model expects).
    """

    def __init__(self, policy: Backbone, critic: Critic = "shared", reward_model: RewardModel | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.critic_backbone: Backbone | None = None
        self.value_head: nn.Module = ValueHead(policy.width)
        if critic == "separate":
            self.critic_backbone = copy.deepcopy(policy)
        elif critic == "reward":
            if reward_model is None:
                raise ValueError("critic='reward' needs a reward model")
            self.critic_backbone = copy.deepcopy(reward_model.backbone)
            self.value_head = centered_head(reward_model)
        if self.critic_backbone is not None:
            self.critic_backbone.requires_grad_(True)

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that only the value loss trains."""
        trunk = [] if self.critic_backbone is None else list(self.critic_backbone.parameters())
        return [*trunk, *self.value_head.parameters()]

    def policy_parameters(self) -> list[nn.Parameter]:
        return list(self.policy.parameters())

    @property
    def values_come_with_sampling(self) -> bool:
        """Whether the value head is on the trunk that samples."""
        return self.critic_backbone is None

    def score(self, packed: Packed, at: Tensor, temperature: float) -> Scores:
        """Log-probs, entropies and values of the tokens at ``at``, (N,) indices into the packed row."""
        before = packed.previous[at]
        state = self.policy(packed, before)
        targets, size = packed.tokens[at], self.policy.vocab_size
        logprobs, entropy = token_logprobs(
            self.policy.policy_logits, state, targets, temperature, MAX_STORED_LOGITS, vocab_size=size
        )
        if self.critic_backbone is not None:
            state = self.critic_backbone(packed, before)
        return Scores(logprobs, entropy, self.values(state))

    def values(self, state: Tensor) -> Tensor:
        """(N,) values from (N, D) hidden states of the critic's trunk."""
        return self.value_head(state.detach() if self.critic == "shared_detached" else state)  # type: ignore[no-any-return]

    @torch.no_grad()
    def critic_values(self, packed: Packed, at: Tensor) -> Tensor:
        """(N,) values of the state before each token at ``at``: ``score`` without log-probs and gradients."""
        trunk = self.policy if self.critic_backbone is None else self.critic_backbone
        return self.values(trunk(packed, packed.previous[at]))


def centered_head(reward_model: RewardModel) -> nn.Module:
    """A copy of the reward head that gives centered scores: mean and deviation go into its last linear layer."""
    head = copy.deepcopy(reward_model.head)
    last = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.div_(reward_model.deviation)
        last.bias.sub_(reward_model.mean).div_(reward_model.deviation)
    return head


def reply_logprobs(backbone: Backbone, packed: Packed, at: Tensor, temperature: float = 1.0) -> Tensor:
    """(N,) log-probs of the tokens at ``at``: without entropies or values.

    Raises ValueError for a temperature that is not positive.
    """
    hidden, targets = backbone(packed, packed.previous[at]), packed.tokens[at]
    weight = backbone.policy_head_weight()
    if weight is None or temperature != 1:
        return token_logprobs(backbone.policy_logits, hidden, targets, temperature)[0]
    return label_logprobs(hidden, weight, targets)  # computes no entropies
