"""Replies of a frozen language model token by token, as environments with Gymnasium's calls (its tasks: ``gym``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from accord.models.backbone import Backbone, Cache
from accord.types import Packed

Observation = np.ndarray
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class Environment(Protocol):
    """One environment; the calls and their meanings are Gymnasium's (>= 1.0)."""

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]: ...

    def step(self, action: int) -> Step: ...


class TokenEnvironment:
    """A reply written token by token: the observation is the frozen model's hidden state, the action the next token.

    The episode ends with EOS or at ``max_new_tokens``; the reward is 0 until then and the reply's score at the end.
    ``info["ref_logprob"]`` of a step is what the frozen model itself gave the chosen token, for a KL penalty.
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
    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """A prompt drawn by the seed."""
        self.prompt = int(np.random.default_rng(seed).integers(len(self.prompts)))
        self.tokens = []
        device = next(self.backbone.parameters()).device
        packed = Packed.of([self.prompts[self.prompt]]).to(device)
        self._hidden, self._cache = self.backbone.prefill(packed, self.max_new_tokens)
        return self._hidden[0].float().cpu().numpy(), {}

    @torch.no_grad()
    def step(self, action: int) -> Step:
        logprobs = self.backbone.logits(self._hidden)[0].float().log_softmax(-1)
        info = {"ref_logprob": float(logprobs[action])}
        self.tokens.append(int(action))
        ended = int(action) == self.eos_id
        if ended or len(self.tokens) >= self.max_new_tokens:
            observation = self._hidden[0].float().cpu().numpy()
            return observation, self.score(self.prompt, self.tokens, ended), True, False, info
        self._hidden = self.backbone.step(torch.tensor([action], device=self._hidden.device), self._cache)
        return self._hidden[0].float().cpu().numpy(), 0.0, False, False, info


class Vectors:
    """Several environments side by side, reset where they end, resumable bit for bit.

    An environment's state cannot be saved in general, but it can be had again: the state of this object is the
    number of each one's episode and its actions since; loading resets with that episode's seed and acts them again.
    """

    def __init__(self, environments: Sequence[Environment], seed_of: Callable[[int, int], int]) -> None:
        self.environments, self.seed_of = environments, seed_of
        self.episodes = [0] * len(environments)
        self.actions: list[list[int]] = [[] for _ in environments]
        self.observations: list[Observation] = [self._reset(i) for i in range(len(environments))]

    def _reset(self, i: int) -> Observation:
        self.actions[i] = []
        seed = self.seed_of(i, self.episodes[i]) % 2**31
        return np.asarray(self.environments[i].reset(seed=seed)[0], dtype=np.float32)

    def observe(self) -> Tensor:
        """(n_envs, obs_dim) float32."""
        return torch.from_numpy(np.stack(self.observations)).float()

    def step(self, actions: Tensor) -> list[Step]:
        """Acts in each; where an episode ends, the step holds its final observation and the next one has begun."""
        steps = []
        for i, environment in enumerate(self.environments):
            action = int(actions[i])
            self.actions[i].append(action)
            step = environment.step(action)
            steps.append(step)
            if step[2] or step[3]:
                self.episodes[i] += 1
                self.observations[i] = self._reset(i)
            else:
                self.observations[i] = np.asarray(step[0], dtype=np.float32)
        return steps

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": list(self.episodes), "actions": [list(a) for a in self.actions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes = list(state["episodes"])
        for i, actions in enumerate(state["actions"]):
            self.observations[i] = self._reset(i)
            for action in actions:
                self.observations[i] = np.asarray(self.environments[i].step(action)[0], dtype=np.float32)
            self.actions[i] = list(actions)
