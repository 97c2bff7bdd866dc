"""The small Mamba and the small Transformer in float64, over random prefix trees: alone, packed, causal, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.models.backbone import Backbone
from accord.types import Packed

Double = Callable[[str], Backbone]
few = settings(max_examples=20, deadline=None, derandomize=True)
families = pytest.mark.parametrize("family", ["mamba", "transformer"])
tokens = st.integers(2, 23)
words = st.lists(tokens, min_size=1, max_size=6)
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # of hidden states of about 1


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Segments and their parents: separate texts, shared prompts, replies that are continued in turn."""
    segments = draw(st.lists(words, min_size=1, max_size=5))
    return segments, [draw(st.integers(-1, s - 1)) for s in range(len(segments))]


def chain(parents: list[int], segment: int) -> list[int]:
    """A segment after those that it continues."""
    found = [segment]
    while parents[found[0]] >= 0:
        found.insert(0, parents[found[0]])
    return found


@torch.no_grad()
def alone(backbone: Backbone, text: list[int]) -> Tensor:
    return backbone(Packed.of([text]))


@families
@few
@given(tree=trees())
def test_packed_texts_have_the_states_of_each_text_alone(
    double: Double, family: str, tree: tuple[list[list[int]], list[int]]
) -> None:
    """A segment has the hidden states that it has in a row of its own, after its ancestors."""
    backbone, (segments, parents) = double(family), tree
    with torch.no_grad():
        found = backbone(Packed.of(segments, parents)).split([len(s) for s in segments])
    for s, hidden in enumerate(found):
        text = [token for part in chain(parents, s) for token in segments[part]]
        torch.testing.assert_close(hidden, alone(backbone, text)[-len(hidden) :], **EXACT)


@families
@few
@given(tree=trees(), data=st.data())
def test_gradients_of_a_packed_row_are_those_of_its_texts(
    double: Double, family: str, tree: tuple[list[list[int]], list[int]], data: st.DataObject
) -> None:
    """A segment's states weigh in the loss once, whether it is read once or under every text that continues it."""
    backbone, (segments, parents) = double(family), tree
    weights = list(backbone.parameters())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    slopes = [torch.randn(len(s), backbone.width, generator=generator, dtype=torch.float64) for s in segments]
    together = (backbone(Packed.of(segments, parents)) * torch.cat(slopes)).sum()
    apart = torch.zeros((), dtype=torch.float64)
    for s, slope in enumerate(slopes):
        text = [token for part in chain(parents, s) for token in segments[part]]
        apart = apart + (backbone(Packed.of([text]))[-len(slope) :] * slope).sum()
    found = torch.autograd.grad(together, weights, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(apart, weights, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(float(b.abs().max()), 1.0))


def descends(parents: list[int], segment: int, ancestor: int) -> bool:
    return ancestor in chain(parents, segment)[:-1]


@families
@few
@given(tree=trees(), data=st.data())
def test_no_position_sees_the_future_or_another_text(
    double: Double, family: str, tree: tuple[list[list[int]], list[int]], data: st.DataObject
) -> None:
    """Another token changes no bit of what is before it, in its segment, its ancestors and every other text."""
    backbone, (segments, parents) = double(family), tree
    where = data.draw(st.integers(0, len(segments) - 1))
    cut = data.draw(st.integers(0, len(segments[where]) - 1))
    other = data.draw(tokens.filter(lambda token: token != segments[where][cut]))
    changed = [[*s] for s in segments]
    changed[where][cut] = other
    with torch.no_grad():
        before = backbone(Packed.of(segments, parents)).split([len(s) for s in segments])
        after = backbone(Packed.of(changed, parents)).split([len(s) for s in segments])
    for s, (a, b) in enumerate(zip(before, after, strict=True)):
        if s == where:
            assert torch.equal(a[:cut], b[:cut])
            assert (a[cut] != b[cut]).any()
        elif descends(parents, s, where):
            assert (a != b).any()
        else:
            assert torch.equal(a, b)


@families
@few
@given(tree=trees(), data=st.data())
def test_a_later_token_may_be_nan(
    double: Double, family: str, tree: tuple[list[list[int]], list[int]], data: st.DataObject
) -> None:
    """A NaN in the embedding of a token reaches itself and what follows it, no more.

    In attention it may also reach what shares a prompt with it: a weight of zero times NaN is NaN.
    """
    backbone, (segments, parents) = double(family), tree
    where = data.draw(st.integers(0, len(segments) - 1))
    cut = data.draw(st.integers(0, len(segments[where]) - 1))
    clean = [[*s] for s in segments]
    clean[where][cut] = 1  # a token that is nowhere else
    sizes = [len(s) for s in segments]
    embedding = next(backbone.parameters())
    kept = embedding[1].detach().clone()
    with torch.no_grad():
        expected = backbone(Packed.of(clean, parents)).split(sizes)
        embedding[1] = math.nan
        try:
            found = backbone(Packed.of(clean, parents)).split(sizes)
        finally:
            embedding[1] = kept
    root = chain(parents, where)[0]
    for s, (a, b) in enumerate(zip(found, expected, strict=True)):
        if family == "transformer" and chain(parents, s)[0] == root:
            assert s != where or a[cut:].isnan().all()
        elif s == where:
            assert torch.equal(a[:cut], b[:cut])
            assert a[cut:].isnan().all()
        elif descends(parents, s, where):
            assert a.isnan().all()
        else:
            assert torch.equal(a, b)


@families
@few
@given(prompts=st.lists(words, min_size=1, max_size=4), data=st.data())
def test_steps_equal_the_whole_pass(double: Double, family: str, prompts: list[list[int]], data: st.DataObject) -> None:
    """Prefill and single steps, with rows of the cache repeated, dropped and reordered in between."""
    backbone, texts = double(family), [[*p] for p in prompts]
    budget = 5
    hidden, cache = backbone.prefill(Packed.of(texts), budget)
    for _ in range(data.draw(st.integers(1, budget))):
        for row, text in enumerate(texts):
            torch.testing.assert_close(hidden[row], alone(backbone, text)[-1], **EXACT)
        if data.draw(st.booleans()):
            chosen = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
            cache, texts = cache.select(torch.tensor(chosen)), [[*texts[row]] for row in chosen]
        new = data.draw(st.lists(tokens, min_size=len(texts), max_size=len(texts)))
        hidden = backbone.step(torch.tensor(new), cache)
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
    for row, text in enumerate(texts):
        torch.testing.assert_close(hidden[row], alone(backbone, text)[-1], **EXACT)
