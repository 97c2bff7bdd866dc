"""Metrics of replies: means, win rates and agreements, with intervals bootstrapped over *prompts*.

Replies to one prompt are correlated, so resampling rows would give intervals that are too narrow.  Here prompts are
resampled (a cluster bootstrap; Davison and Hinkley 1997): a prompt's replies are averaged first, and whole prompts are
drawn with replacement.  Intervals are percentile intervals (Efron 1979).

``N`` prompts, ``k`` replies per prompt (which may differ between prompts), ``R`` rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
PerPrompt: TypeAlias = Sequence[Sequence[float]] | npt.NDArray[np.floating]
Vector: TypeAlias = Sequence[float] | Sequence[int] | Sequence[bool] | npt.NDArray[np.generic]

DRAWS_AT_ONCE = 1_000_000  # bounds the memory of a bootstrap to about 16 MB


class Interval(NamedTuple):
    """An estimate and its interval, as a tuple ``mean, low, high``."""

    mean: float
    low: float
    high: float


class MatchedAccuracy(NamedTuple):
    """Accuracy over the ``n`` pairs of similar length; None where there are none."""

    accuracy: float | None
    n: int


# ----------------------------------------------------------------- undefined figures
def defined(figures: Mapping[str, Callable[[], float | None]]) -> dict[str, Any]:
    """Each figure by name, None where it is undefined; ``undefined`` then says why, by name.

    A function raises ValueError, or returns a number that is not finite, where its figure is undefined.
    """
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, compute in figures.items():
        try:
            found[name] = compute()
            if found[name] is not None and not math.isfinite(found[name]):
                raise ValueError(f"it is {found[name]}")
        except ValueError as error:
            found[name], reasons[name] = None, str(error)
    return {**found, "undefined": reasons} if reasons else found


# ----------------------------------------------------------------- checks
def _vector(values: Vector, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected a flat sequence of numbers, found shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: empty, there is nothing to measure")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}: {bad.size} of {array.size} values are not finite, the first in row {bad[0]}")
    return array


def _rows(per_prompt: PerPrompt, name: str) -> list[Array]:
    """The replies' values of each prompt, checked."""
    if len(per_prompt) == 0:
        raise ValueError(f"{name}: empty, there is nothing to measure")
    return [_vector(row, f"{name}, prompt {i}") for i, row in enumerate(per_prompt)]


def _prompt_means(per_prompt: PerPrompt, name: str) -> Array:
    return np.array([row.mean() for row in _rows(per_prompt, name)])


def _same_length(a: Sized, b: Sized, what: str) -> None:
    if len(a) != len(b):
        raise ValueError(f"{what}: {len(a)} against {len(b)}; they must be paired, in the same order")


# ----------------------------------------------------------------- intervals over prompts
def _bootstrap(clusters: Array, seed: int, n: int, level: float) -> Interval:
    """Percentile interval of the mean of (N,) independent values."""
    size = len(clusters)
    if size < 2:
        raise ValueError(f"an interval over prompts needs at least 2 prompts, found {size}")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n must be at least 1 and level between 0 and 1, found n={n}, level={level}")
    rng = np.random.default_rng(seed)
    chunk = max(1, DRAWS_AT_ONCE // size)
    draws = [
        clusters[rng.integers(0, size, (min(chunk, n - start), size))].mean(axis=1) for start in range(0, n, chunk)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Interval(float(clusters.mean()), float(low), float(high))


def bootstrap_ci(per_prompt: PerPrompt, seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """The mean over prompts of the mean over each prompt's replies, with a bootstrap interval over prompts.

    ``per_prompt``: N sequences of values, one per reply.  ``n`` resamples.
    Raises ValueError for fewer than two prompts, a prompt without replies, or a value that is not finite.
    """
    return _bootstrap(_prompt_means(per_prompt, "per_prompt"), seed, n, level)


def _differences(a: PerPrompt, b: PerPrompt) -> Array:
    first, second = _prompt_means(a, "a"), _prompt_means(b, "b")
    _same_length(first, second, "prompts of a and b")
    return first - second


def paired_difference(a: PerPrompt, b: PerPrompt, seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean over prompts of (the mean of a's replies minus that of b's), with a bootstrap interval over prompts.

    Row i of both is the same prompt, so prompt difficulty cancels; the number of replies may differ.
    """
    return _bootstrap(_differences(a, b), seed, n, level)


def effect_in_sd(a: PerPrompt, b: PerPrompt) -> float:
    """``paired_difference``'s mean in units of the (sample) standard deviation across prompts of b's means.

    Report it with the number of replies per prompt: more of them lower the standard deviation and raise the effect.
    """
    difference = _differences(a, b).mean()
    means = _prompt_means(b, "b")
    deviation = means.std(ddof=1) if len(means) > 1 else 0.0
    if deviation == 0:
        raise ValueError("b: its means do not vary across prompts, so an effect in standard deviations is undefined")
    return float(difference / deviation)


def win_rate(ours: PerPrompt, theirs: PerPrompt, seed: int, n: int = 2000, level: float = 0.95) -> Interval:
    """The share of comparisons that ``ours`` wins, ties counting one half, with a bootstrap interval over prompts.

    Within a prompt each of ``ours`` is compared with each of ``theirs``; all prompts have the same weight.
    """
    first, second = _rows(ours, "ours"), _rows(theirs, "theirs")
    _same_length(first, second, "prompts of ours and theirs")
    rates = []
    for a, b in zip(first, second, strict=True):
        rates.append((np.sign(a[:, None] - b[None, :]).mean() + 1) / 2)
    return _bootstrap(np.array(rates), seed, n, level)


# ----------------------------------------------------------------- the reward model
def pair_agreement(scores_a: PerPrompt | Vector, scores_b: PerPrompt | Vector) -> float:
    """The share of pairs that ``scores_a`` orders as ``scores_b``, the ground truth, does.

    Flat vectors (R,): all pairs of rows.  Sequences of sequences: pairs within a row (a prompt's replies, or one pair
    per row), all with equal weight.  Pairs tied in b are ignored; those tied only in a count one half.
    """
    _same_length(scores_a, scores_b, "scores_a and scores_b")
    if len(scores_b) and np.ndim(scores_b[0]) == 0:
        first, second = [_vector(scores_a, "scores_a")], [_vector(scores_b, "scores_b")]  # type: ignore[arg-type]
    else:
        first, second = _rows(scores_a, "scores_a"), _rows(scores_b, "scores_b")  # type: ignore[arg-type]
    agreed, pairs = 0.0, 0
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        _same_length(a, b, f"scores_a and scores_b, row {i}")
        left, right = np.triu_indices(len(a), 1)
        guess, truth = np.sign(a[left] - a[right]), np.sign(b[left] - b[right])
        agreed += float(((guess * truth)[truth != 0] + 1).sum() / 2)
        pairs += int((truth != 0).sum())
    if pairs == 0:
        raise ValueError("scores_b: no two rows differ, so there is no pair to agree on")
    return agreed / pairs


def accuracy_interval(correct: Vector, prompts: Sequence[Hashable], level: float = 0.95) -> Interval:
    """The mean of (n,) values from 0 to 1, one for each pair, and its interval; ``prompts`` (n,) name each pair's prompt.

    Wilson's score interval (1927), which stays within 0 and 1 and is not empty where all or none are right, for the
    effective number of pairs: n over the design effect of prompts with several pairs (Kish 1965), at most n; the number of
    prompts where all or none are right.
    """
    x = _vector(correct, "correct")
    _same_length(x, prompts, "correct and prompts")
    number, mean = len(x), float(x.mean())
    sums: dict[Hashable, float] = {}
    for value, prompt in zip(x - mean, prompts, strict=True):
        sums[prompt] = sums.get(prompt, 0.0) + float(value)
    effective = float(len(sums))
    if 0 < mean < 1 and len(sums) > 1:
        variance = sum(s * s for s in sums.values()) / number**2
        effective = number / max(variance * number / (mean * (1 - mean)), 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = z * z / effective
    middle = (mean + share / 2) / (1 + share)
    half = z * math.sqrt(mean * (1 - mean) / effective + share / (4 * effective)) / (1 + share)
    return Interval(mean, max(0.0, middle - half), min(1.0, middle + half))


def length_correlation(scores: Vector, lengths: Vector) -> float:
    """Pearson's correlation of score and length; 0 where either is constant.  Near 1 the score mostly measures length."""
    x, y = _vector(scores, "scores"), _vector(lengths, "lengths")
    _same_length(x, y, "scores and lengths")
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(x @ y / norm, -1, 1)) if norm > 0 else 0.0


def length_matched_accuracy(
    chosen_scores: Vector,
    rejected_scores: Vector,
    chosen_lengths: Vector,
    rejected_lengths: Vector,
    tolerance: float = 0.1,
) -> MatchedAccuracy:
    """Accuracy on the pairs whose lengths differ by at most ``tolerance`` of the longer; tied scores count one half.

    A model that only measures length scores about one half here, whatever its accuracy on all pairs.
    """
    chosen, rejected = _vector(chosen_scores, "chosen_scores"), _vector(rejected_scores, "rejected_scores")
    long, short = _vector(chosen_lengths, "chosen_lengths"), _vector(rejected_lengths, "rejected_lengths")
    for name, other in (("rejected_scores", rejected), ("chosen_lengths", long), ("rejected_lengths", short)):
        _same_length(chosen, other, f"chosen_scores and {name}")
    similar = np.abs(long - short) <= tolerance * np.maximum(long, short)
    if not similar.any():
        return MatchedAccuracy(None, 0)
    return MatchedAccuracy(float((np.sign(chosen - rejected)[similar].mean() + 1) / 2), int(similar.sum()))


# ----------------------------------------------------------------- the texts
def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of whitespace words over all n-grams, pooled over ``texts`` (Li et al. 2016).

    No n-gram spans two texts.  It falls as the pool grows, so compare equal numbers of replies.
    Raises ValueError where no text has n words.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")
    total, seen = 0, set()
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        total += len(grams)
        seen.update(grams)
    if total == 0:
        raise ValueError(f"texts: none of the {len(texts)} has {n} words or more, so distinct-{n} is undefined")
    return len(seen) / total
