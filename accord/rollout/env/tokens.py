"""Replies token by token on a frozen language model, as environments with Gymnasium's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accord.models.backbone import Backbone, Cache
from accord.types import Packed

Observation = np.ndarray
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class TokenEnvironment:
    """A reply written token by token: the observation is the frozen model's hidden state, the action the next token.

    The episode ends with EOS or at ``max_new_tokens``; the reward is 0 until then and the reply's score at the end.
    ``info["ref_logprob"]`` of a step is the frozen model's log-prob of the action, for a KL penalty.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[tuple[int, ...]],
        score: Callable[[int, list[int], bool], float],
        eos_id: int,
        max_new_tokens: int,
    ) -> None:
        self.backbone, self.prompts, self.score = backbone, prompts, score
        self.eos_id, self.max_new_tokens = eos_id, max_new_tokens
        self.prompt = 0
        self.tokens: list[int] = []
        self._hidden: Tensor
        self._cache: Cache

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A prompt drawn by the seed."""
        self.prompt = int(np.random.default_rng(seed).integers(len(self.prompts)))
        self.tokens = []
        device = next(self.backbone.parameters()).device
        packed = Packed.of([self.prompts[self.prompt]]).to(device)
        self._hidden, self._cache = self.backbone.prefill(packed, self.max_new_tokens)
        return self._hidden[0].float().cpu().numpy(), {}

    @torch.no_grad()
    def step(self, action: int) -> Step:
        logprobs = self.backbone.policy_logits(self._hidden)[0].float().log_softmax(-1)
        info = {"ref_logprob": float(logprobs[action])}
        self.tokens.append(int(action))
        ended = int(action) == self.eos_id
        if ended or len(self.tokens) >= self.max_new_tokens:
            observation = self._hidden[0].float().cpu().numpy()
            return observation, self.score(self.prompt, self.tokens, ended), True, False, info
        self._hidden = self.backbone.step(torch.tensor([action], device=self._hidden.device), self._cache)
        return self._hidden[0].float().cpu().numpy(), 0.0, False, False, info

    def close(self) -> None:
        """Nothing to close."""
