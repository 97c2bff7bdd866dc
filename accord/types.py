"""The values passed between packages: frozen, slotted, checked once, where they are made.

Letters (CONTRIBUTING.md): ``B`` rows, ``P`` prompt tokens, ``T`` response tokens, ``L`` packed length,
``S`` packed segments, ``R`` texts, ``V`` vocabulary, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Moved = TypeVar("Moved", bound="_Tensors")


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean stored as (total, count), so that micro-batches, ranks and workers add exactly.

    >>> (Mean(torch.tensor(6.0), torch.tensor(3)) + Mean(torch.tensor(2.0), torch.tensor(1))).value()
    2.0
    """

    total: Tensor
    count: Tensor

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def detach(self) -> Mean:
        return Mean(self.total.detach(), self.count.detach())

    def value(self) -> float:
        """The number; 0 where nothing was counted."""
        return float(self.total.detach() / self.count.clamp(min=1))


@dataclass(frozen=True, slots=True)
class LossOutput:
    """An objective's result for one micro-batch: a differentiable sum over an explicit count, and metrics."""

    loss: Mean
    metrics: Mapping[str, Mean]


@dataclass(frozen=True, slots=True)
class _Tensors:
    """A dataclass whose tensors move between devices together."""

    def to(self: Moved, device: torch.device | str) -> Moved:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: v.to(device) for n, v in values.items() if isinstance(v, (Tensor, _Tensors))})


def _require(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {shape}")
    if dtype is not None and value.dtype is not dtype:
        raise TypeError(f"{name}: {value.dtype}, expected {dtype}")


@dataclass(frozen=True, slots=True)
class Packed(_Tensors):
    """Several texts in one row of ``L`` tokens, without padding; a text may continue another (a shared prompt).

    A *segment* is a run of tokens.  A segment with a parent continues it: its first token follows the parent's last.
    A *text* is a segment without children, read together with its ancestors: ``R`` texts, in segment order.

    >>> packed = Packed.of([[5, 6], [7], [8, 9]], parents=[-1, 0, 0])     # one prompt, two replies
    >>> packed.previous.tolist()
    [-1, 0, 1, 1, 3]
    >>> packed.texts.tolist()
    [[0, 1, 2, -1], [0, 1, 3, 4]]
    """

    tokens: Tensor  # (L,) int64
    positions: Tensor  # (L,) int64, counted from the first token of the text
    previous: Tensor  # (L,) int64, the token before this one in its text; -1 where a text starts
    loss_mask: Tensor  # (L,) bool, true on tokens that are labels
    offsets: Tensor  # (S+1,) int64, segment s is tokens[offsets[s]:offsets[s+1]]
    parents: Tensor  # (S,) int64, the segment that s continues, always an earlier one; -1 for none
    texts: Tensor  # (R, max text length) int64, the tokens of each text as indices into L, -1 after its end
    slots: Tensor  # (L,) int64, the first position of each token in texts.reshape(-1)

    def __post_init__(self) -> None:
        length, segments = len(self.tokens), len(self.parents)
        for name in ("tokens", "positions", "previous", "slots"):
            _require(name, getattr(self, name), (length,), torch.int64)
        _require("loss_mask", self.loss_mask, (length,), torch.bool)
        _require("offsets", self.offsets, (segments + 1,), torch.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def last(self) -> Tensor:
        """(S,) the index of each segment's last token."""
        return self.offsets[1:] - 1

    def span(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the named segments (B,), in that order: their indices (N,), and their rows in B (N,)."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[segments]
        owner = torch.repeat_interleave(torch.arange(len(segments), device=lengths.device), lengths)
        starts = torch.cumsum(lengths, 0) - lengths
        index = self.offsets[segments][owner] + torch.arange(len(owner), device=lengths.device) - starts[owner]
        return index, owner

    @classmethod
    def of(
        cls,
        segments: Sequence[Sequence[int]],
        parents: Sequence[int] | None = None,
        loss_masks: Sequence[Sequence[bool]] | None = None,
    ) -> Packed:
        """Packs token lists.  ``loss_masks`` default to false everywhere.

        Raises ValueError where a segment is empty, a parent is not an earlier segment, or a mask's length differs.
        """
        if not segments:
            raise ValueError("nothing to pack: no segments")
        parents = [-1] * len(segments) if parents is None else list(parents)
        lengths = np.array([len(s) for s in segments], dtype=np.int64)
        if (lengths == 0).any():
            raise ValueError(f"segment {int(np.argmin(lengths))} is empty")
        if any(p >= s or p < -1 for s, p in enumerate(parents)):
            raise ValueError("a parent must be an earlier segment, or -1")
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ends = np.zeros(len(segments), dtype=np.int64)  # length of the text up to each segment's end
        chains: list[list[int]] = []
        for s, parent in enumerate(parents):
            ends[s] = lengths[s] + (ends[parent] if parent >= 0 else 0)
            chains.append([*(chains[parent] if parent >= 0 else []), s])
        starts = ends - lengths
        total = int(offsets[-1])
        positions = np.arange(total) - np.repeat(offsets[:-1] - starts, lengths)
        previous = np.arange(-1, total - 1)
        previous[offsets[:-1]] = [offsets[p + 1] - 1 if p >= 0 else -1 for p in parents]
        leaves = sorted(set(range(len(segments))) - set(parents))
        texts = np.full((len(leaves), int(ends[leaves].max())), -1, dtype=np.int64)
        slots = np.full(total, -1, dtype=np.int64)
        for row, leaf in enumerate(leaves):
            for s in chains[leaf]:
                span = np.arange(offsets[s], offsets[s + 1])
                texts[row, starts[s] : ends[s]] = span
                if slots[offsets[s]] < 0:
                    slots[span] = row * texts.shape[1] + np.arange(starts[s], ends[s])
        if loss_masks is None:
            mask = np.zeros(total, dtype=bool)
        else:
            if [len(m) for m in loss_masks] != lengths.tolist():
                raise ValueError("loss_masks: lengths differ from the segments'")
            mask = np.concatenate([np.asarray(m, dtype=bool) for m in loss_masks])
        tokens = np.concatenate([np.asarray(s, dtype=np.int64) for s in segments])
        arrays = (tokens, positions, previous, mask, offsets, np.asarray(parents, dtype=np.int64), texts, slots)
        return cls(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


@dataclass(frozen=True, slots=True)
class SoftLabels(_Tensors):
    """How sure each of ``B`` preferences is, and how much it counts."""

    labels: Tensor  # (B,) float32, the probability that chosen is preferred; 1/2 is a tie
    weights: Tensor  # (B,) float32, factors of the loss

    def __post_init__(self) -> None:
        for name in ("labels", "weights"):
            _require(name, getattr(self, name), (len(self.labels),))


@dataclass(frozen=True, slots=True)
class PreferenceBatch(_Tensors):
    """``B`` pairs packed as prompt, chosen, rejected, … with each prompt's tokens once.

    ``chosen`` and ``rejected`` name the segments, so that nothing depends on an order of rows.
    """

    packed: Packed
    chosen: Tensor  # (B,) int64, segment indices
    rejected: Tensor  # (B,) int64
    margins: Tensor  # (B,) float32, 0 where the data has none
    indices: Tensor  # (B,) int64, the pair's index in its dataset
    soft: SoftLabels | None = None  # None where every label and weight is 1

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected", "margins", "indices"):
            _require(name, getattr(self, name), (len(self.chosen),))
        if self.soft is not None:
            _require("soft", self.soft.labels, (len(self.chosen),))


@dataclass(frozen=True, slots=True)
class Generation(_Tensors):
    """``B`` sampled replies to ``B`` prompts (a prompt sampled n times is listed n times)."""

    prompts: tuple[tuple[int, ...], ...]  # B prompts, without padding
    responses: Tensor  # (B, T) int64; after the end: the pad token
    mask: Tensor  # (B, T) bool, true on sampled tokens, EOS included
    logprobs: Tensor  # (B, T) float32, of the sampled tokens under the sampling distribution; 0 where masked
    ended: Tensor  # (B,) bool, true where the reply ends with EOS

    def __post_init__(self) -> None:
        shape = (len(self.prompts), self.responses.shape[1])
        _require("responses", self.responses, shape, torch.int64)
        _require("mask", self.mask, shape, torch.bool)
        _require("logprobs", self.logprobs, shape, torch.float32)
        _require("ended", self.ended, shape[:1], torch.bool)

    def __getitem__(self, rows: Tensor) -> Generation:
        prompts = tuple(self.prompts[int(r)] for r in rows)
        return Generation(prompts, self.responses[rows], self.mask[rows], self.logprobs[rows], self.ended[rows])

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens in each reply, EOS included."""
        return self.mask.sum(1)

    def reply_tokens(self) -> list[list[int]]:
        """The replies as token lists, EOS included."""
        return [row[valid].tolist() for row, valid in zip(self.responses, self.mask, strict=True)]


@dataclass(frozen=True, slots=True)
class Rollout:
    """``B`` scored replies, for any algorithm: without advantages, critic or KL coefficient."""

    generation: Generation  # prompts, responses, mask, behavior log-probs, ended
    prompt_rows: Tensor  # (B,) int64, the prompt's row in its dataset; replies with equal rows form a group
    weight_versions: Tensor  # (B, T) int64, of the weights that sampled each token: rollouts trained on before
    ref_logprobs: Tensor  # (B, T)
    scores: Tensor  # (B,) the reward of each whole reply, before shaping
    terms: Mapping[str, Tensor]  # (B,) each: the terms that the score is the sum of
    readout: Tensor | None = None  # (B, T) computed from the hidden states that sampled each token

    def __post_init__(self) -> None:
        shape = tuple(self.generation.mask.shape)
        _require("prompt_rows", self.prompt_rows, shape[:1], torch.int64)
        _require("weight_versions", self.weight_versions, shape, torch.int64)
        _require("ref_logprobs", self.ref_logprobs, shape)
        _require("scores", self.scores, shape[:1])
        if self.readout is not None:
            _require("readout", self.readout, shape)


@dataclass(frozen=True, slots=True)
class TextActions(_Tensors):
    """Replies as inputs of a language policy that scores them again."""

    prompts: tuple[tuple[int, ...], ...]  # B
    responses: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool
    ref_logprobs: Tensor  # (B, T)

    def __getitem__(self, rows: Tensor) -> TextActions:
        prompts = tuple(self.prompts[int(r)] for r in rows)
        return TextActions(prompts, self.responses[rows], self.mask[rows], self.ref_logprobs[rows])


@dataclass(frozen=True, slots=True)
class VectorActions(_Tensors):
    """Observations and actions as inputs of a policy on vectors that scores them again."""

    observations: Tensor  # (B, obs_dim)
    actions: Tensor  # (B,), or (B, length) where an action is a vector

    def __getitem__(self, rows: Tensor) -> VectorActions:
        return VectorActions(self.observations[rows], self.actions[rows])


@dataclass(frozen=True, slots=True)
class PolicyBatch(_Tensors):
    """The input of a policy loss: ``B`` rows of at most ``T`` actions.

    For a language model a row is a reply and an action a token; for a vector environment a row is one step (T = 1).
    ``inputs`` is what the policy needs to score the actions again; the loss does not look into it.  ``values`` and
    ``returns`` are None without a critic.
    """

    inputs: TextActions | VectorActions
    mask: Tensor  # (B, T) bool
    old_logprobs: Tensor  # (B, T) of the policy at the start of this rollout's updates
    advantages: Tensor  # (B, T)
    values: Tensor | None = None  # (B, T) of the critic at the start of this rollout's updates
    returns: Tensor | None = None  # (B, T)

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        _require("mask", self.mask, shape, torch.bool)
        for name, tensor in self.tensors().items():
            _require(name, tensor, shape)

    def tensors(self) -> dict[str, Tensor]:
        """The (B, T) fields that are not None, by name."""
        found = {name: getattr(self, name) for name in ("mask", "old_logprobs", "advantages", "values", "returns")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, rows: Tensor) -> PolicyBatch:
        return PolicyBatch(self.inputs[rows], **{name: tensor[rows] for name, tensor in self.tensors().items()})
