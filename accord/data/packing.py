"""Rows to packed tensors, and rows to batches of similar length.  Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from accord.data.preferences import PreferencePair
from accord.data.prompts import rows_by_prompt
from accord.data.supervised import SupervisedExample
from accord.types import Packed, PreferenceBatch, SoftLabels

Tokens = Sequence[int]


# ------------------------------------------------------------------ rows to batches
def length_buckets(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator, window: int = 32
) -> list[list[int]]:
    """Batches of rows of similar length, in random order: each row exactly once, at most one batch smaller than the rest.

    Rows are shuffled, sorted within windows of ``window`` batches, cut into batches, and the batches are shuffled.
    """
    order = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)[order]
    batches = []
    for start in range(0, len(order), batch_size * window):
        rows = slice(start, start + batch_size * window)
        part = order[rows][np.argsort(sizes[rows], kind="stable")]
        batches += [part[i : i + batch_size].tolist() for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


# ------------------------------------------------------------------ rows to tensors
SHARED_FROM = 8
"""Minimum tokens of a common prefix of all texts to make it a segment of its own."""


class _Tree:
    """Builds segments: a common prefix of all texts, then prompts, then replies to them."""

    def __init__(self, openings: Sequence[Tokens]) -> None:
        """``openings``: the part of each text before its first label (a system prompt, for example)."""
        self.segments: list[Tokens] = []
        self.parents: list[int] = []
        self.masks: list[Sequence[bool]] = []
        self.shared = _common_length(openings)
        if self.shared:
            self._append(openings[0][: self.shared], -1, [False] * self.shared)

    def _append(self, tokens: Tokens, parent: int, mask: Sequence[bool]) -> int:
        self.segments.append(tokens)
        self.parents.append(parent)
        self.masks.append(mask)
        return len(self.segments) - 1

    def add_text(self, tokens: Tokens, mask: Sequence[bool] | None = None) -> int:
        """Adds a text after the common prefix; without a mask no token is a label."""
        mask = [False] * len(tokens) if mask is None else mask
        return self._append(tokens[self.shared :], 0 if self.shared else -1, mask[self.shared :])

    def add_reply(self, tokens: Tokens, parent: int) -> int:
        """Adds a continuation of a segment; all its tokens are labels."""
        return self._append(tokens, parent, [True] * len(tokens))

    def packed(self) -> Packed:
        return Packed.of(self.segments, self.parents, self.masks)


def _common_length(openings: Sequence[Tokens]) -> int:
    """Tokens of the common prefix, leaving each text at least one; 0 where it is shorter than ``SHARED_FROM``."""
    if len(openings) < 2:
        return 0
    low, high = min(map(tuple, openings)), max(map(tuple, openings))  # the common prefix of the extremes is that of all
    alike = next((i for i, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), min(len(low), len(high)))
    alike = min(alike, min(map(len, openings)) - 1)
    return alike if alike >= SHARED_FROM else 0


def pack_supervised(examples: Sequence[SupervisedExample]) -> Packed:
    """One segment for each example, after the common prefix of all before their first label."""
    tree = _Tree([e.tokens[: e.loss_mask.index(True)] for e in examples])
    for example in examples:
        tree.add_text(example.tokens, example.loss_mask)
    return tree.packed()


def pack_preferences(pairs: Sequence[PreferencePair], indices: Sequence[int]) -> PreferenceBatch:
    """``B`` pairs with each prompt's tokens once, and each distinct reply's once per prompt (K ranked replies give K
    segments, not K(K-1)).  The loss mask is true on reply tokens, including end tokens.

    ``indices`` (B,) are the pairs' indices in their dataset.  Raises ValueError where their number differs.
    """
    if len(pairs) != len(indices):
        raise ValueError(f"{len(pairs)} pairs and {len(indices)} indices")
    chosen, rejected = [0] * len(pairs), [0] * len(pairs)
    by_prompt = rows_by_prompt([pair.prompt for pair in pairs])
    tree = _Tree(list(by_prompt))
    for prompt, rows in by_prompt.items():
        root = tree.add_text(prompt)
        known: dict[tuple[int, ...], int] = {}
        for n in rows:
            for reply in (pairs[n].chosen, pairs[n].rejected):
                if reply not in known:
                    known[reply] = tree.add_reply(reply, root)
            chosen[n], rejected[n] = known[pairs[n].chosen], known[pairs[n].rejected]
    return PreferenceBatch(
        tree.packed(),
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        torch.tensor(list(indices)),
        soft_labels(pairs),
    )


def soft_labels(pairs: Sequence[PreferencePair]) -> SoftLabels | None:
    """Labels and weights, (B,) float32 each; None where all are 1."""
    if all(pair.label == pair.weight == 1 for pair in pairs):
        return None
    labels, weights = [pair.label for pair in pairs], [pair.weight for pair in pairs]
    return SoftLabels(torch.tensor(labels, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32))


def pack_continuations(prompts: Sequence[Tokens], replies: Sequence[Tokens]) -> tuple[Packed, Tensor]:
    """``B`` replies after their prompts, each distinct prompt once; and (B,) int64, the segment of each reply.

    The loss mask is true on reply tokens.  Equal replies are not merged: each row has a segment of its own.
    Raises ValueError where a prompt or a reply is empty, or their numbers differ.
    """
    if len(prompts) != len(replies):
        raise ValueError(f"{len(prompts)} prompts and {len(replies)} replies")
    by_prompt = rows_by_prompt(prompts)
    tree = _Tree(list(by_prompt))
    segments = [0] * len(replies)
    for prompt, rows in by_prompt.items():
        root = tree.add_text(prompt)
        for n in rows:
            segments[n] = tree.add_reply(replies[n], root)
    return tree.packed(), torch.tensor(segments)
