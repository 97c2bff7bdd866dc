from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accord.data.packing import (
    SHARED_FROM,
    length_buckets,
    pack_continuations,
    pack_preferences,
    pack_supervised,
)
from accord.data.preferences import PreferencePair
from accord.data.supervised import SupervisedExample
from accord.types import Packed

tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)
lengths = st.lists(st.integers(1, 20), max_size=40)


def text_of(packed: Packed, segment: int) -> list[int]:
    """A segment with what it continues, by walking back from its last token."""
    found = []
    at = int(packed.last[segment])
    while at >= 0:
        found.append(int(packed.tokens[at]))
        at = int(packed.previous[at])
    return found[::-1]


def labels_of(packed: Packed, segment: int) -> list[bool]:
    found = []
    at = int(packed.last[segment])
    while at >= 0:
        found.append(bool(packed.loss_mask[at]))
        at = int(packed.previous[at])
    return found[::-1]


@given(lengths, st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_length_buckets_hold_every_row_once(sizes: list[int], batch_size: int, window: int, seed: int) -> None:
    batches = length_buckets(sizes, batch_size, np.random.default_rng(seed), window)
    assert sorted(itertools.chain(*batches)) == list(range(len(sizes)))
    assert Counter(map(len, batches))[batch_size] == len(sizes) // batch_size
    assert batches == length_buckets(sizes, batch_size, np.random.default_rng(seed), window)


def test_length_buckets_group_by_length_and_shuffle() -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 2000).tolist()

    def padding(batches: list[list[int]]) -> float:
        return sum(len(b) * max(sizes[i] for i in b) for b in batches) / sum(sizes)

    order = np.random.default_rng(1).permutation(2000).tolist()
    bucketed = length_buckets(sizes, 8, np.random.default_rng(1))
    assert padding(bucketed) < 1.1
    assert padding([order[i : i + 8] for i in range(0, 2000, 8)]) > 1.6
    assert bucketed != length_buckets(sizes, 8, np.random.default_rng(2))
    longest = [max(sizes[i] for i in b) for b in bucketed]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2  # not from short to long


# ------------------------------------------------------------------ tensors
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5))
def test_packed_examples_keep_their_tokens_and_labels(texts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    examples = [SupervisedExample(p + r, (False,) * len(p) + (True,) * len(r)) for p, r in texts]
    packed = pack_supervised(examples)
    assert len(packed) == sum(map(len, examples))
    for segment, example in enumerate(examples):
        assert text_of(packed, segment) == list(example.tokens)
        assert labels_of(packed, segment) == list(example.loss_mask)


few = st.lists(st.integers(0, 1), min_size=1, max_size=2).map(tuple)  # so that prompts and replies repeat
some_pairs = st.lists(
    st.tuples(few, few, few).filter(lambda t: t[1] != t[2]).map(lambda t: PreferencePair(*t, 0.5)),
    min_size=1,
    max_size=8,
)


@given(some_pairs, st.data())
def test_packed_pairs_share_prompts_and_keep_their_replies(pairs: list[PreferencePair], data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=6))
    rows = [pairs[i] for i in indices]
    batch = pack_preferences(rows, indices)
    for n, pair in enumerate(rows):
        for segment, reply in ((batch.chosen[n], pair.chosen), (batch.rejected[n], pair.rejected)):
            assert text_of(batch.packed, int(segment)) == [*pair.prompt, *reply]
            assert labels_of(batch.packed, int(segment)) == [False] * len(pair.prompt) + [True] * len(reply)
    assert batch.indices.tolist() == indices
    assert batch.margins.tolist() == [0.5] * len(rows)
    prompts = {p.prompt for p in rows}
    replies = {(p.prompt, reply) for p in rows for reply in (p.chosen, p.rejected)}
    assert len(batch.packed) == sum(map(len, prompts)) + sum(len(reply) for _, reply in replies)


def test_two_pairs_of_one_prompt_are_packed_as_computed_by_hand() -> None:
    pairs = [
        PreferencePair((1, 2), (3,), (4, 5), 1.5),
        PreferencePair((9,), (3,), (4,)),
        PreferencePair((1, 2), (6,), (3,)),
    ]
    batch = pack_preferences(pairs[::-1], [7, 1, 4])
    assert batch.packed.tokens.tolist() == [1, 2, 6, 3, 4, 5, 9, 3, 4]
    assert batch.packed.parents.tolist() == [-1, 0, 0, 0, -1, 4, 4]
    assert batch.packed.loss_mask.tolist() == [False, False, True, True, True, True, False, True, True]
    assert batch.packed.positions.tolist() == [0, 1, 2, 2, 2, 3, 0, 1, 1]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([1, 5, 2], [2, 6, 3])
    assert batch.margins.tolist() == [0.0, 0.0, 1.5]
    assert batch.indices.tolist() == [7, 1, 4]
    assert batch.margins.dtype is torch.float32


@given(st.lists(st.tuples(few, few), min_size=1, max_size=8))
def test_packed_continuations_keep_prompts_and_replies(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    prompts, replies = [list(p) for p, _ in rows], [list(r) for _, r in rows]
    packed, segments = pack_continuations(prompts, replies)
    assert len(set(segments.tolist())) == len(rows)  # every row has its own
    for n, segment in enumerate(segments.tolist()):
        assert text_of(packed, segment) == prompts[n] + replies[n]
        assert labels_of(packed, segment) == [False] * len(prompts[n]) + [True] * len(replies[n])
    assert int(packed.loss_mask.sum()) == sum(map(len, replies))
    assert len(packed) == sum(map(len, {p for p, _ in rows})) + sum(map(len, replies))


def test_continuations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts and 2 replies"):
        pack_continuations([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="empty"):
        pack_continuations([[1]], [[]])
    with pytest.raises(ValueError, match="0 pairs and 1 indices"):
        pack_preferences([], [0])


def test_a_shared_beginning_is_packed_once_and_changes_nothing() -> None:
    system = tuple(range(10, 22))
    prompts = [(*system, 1, 2), (*system, 1, 3, 4), (*system, 5)]
    packed, segments = pack_continuations(prompts, [(7, 8), (7,), (9, 6, 8)])
    shared = 13 if prompts[2][12] == 1 else 12
    assert len(packed) == shared + 2 + 3 + 1 + 6 - 3 * (shared - 12)
    for prompt, reply, segment in zip(prompts, [(7, 8), (7,), (9, 6, 8)], segments.tolist(), strict=True):
        index, _ = packed.span(torch.tensor([segment]))
        text, at = [], int(index[-1])
        while at >= 0:
            text.append(int(packed.tokens[at]))
            at = int(packed.previous[at])
        assert tuple(reversed(text)) == (*prompt, *reply)
        assert packed.loss_mask[index].all()
    assert int(packed.loss_mask.sum()) == 6


# ------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("common", [0, SHARED_FROM - 1, SHARED_FROM, 20])
def test_each_text_keeps_its_labels_after_a_shared_beginning(common: int) -> None:
    """Labels at the end, in the middle, and in two runs; read back text by text."""
    rows = [
        ([31, 32, 33], [False, True, True]),
        ([41, 42, 43, 44], [False, True, False, False]),
        ([51, 52, 53, 54, 55, 56], [False, True, False, False, True, True]),
    ]
    examples = [
        SupervisedExample((*range(1, common + 1), *tokens), (*[False] * common, *mask)) for tokens, mask in rows
    ]
    packed = pack_supervised(examples)
    shared = common if common >= SHARED_FROM else 0
    assert len(packed) == sum(map(len, examples)) - 2 * shared
    for text, example in zip(packed.texts, examples, strict=True):
        places = text[text >= 0]
        assert packed.tokens[places].tolist() == list(example.tokens)
        assert packed.loss_mask[places].tolist() == list(example.loss_mask)
