"""Agreement between annotators, and what else a project's votes say about their quality.

Pure functions of current votes (``votes`` in every signature: one per annotator, pair and occasion), without the owner's
decisions (``independent``).  Skipped pairs are
missing data everywhere.  Agreement between annotators uses the first occasion of each pair, agreement with oneself the
repeats.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from accord.errors import UserError
from accord.feedback.entities import ADJUDICATION
from accord.io.installation import install_command

Floats = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal"]

NOMINAL = ("a", "b", "tie", "both_bad")
"""The categories of the nominal alpha."""
STRENGTHS = 3
ORDINAL = tuple(range(STRENGTHS, -STRENGTHS - 1, -1))
"""The categories of the ordinal alpha, in order: a strongly better, …, no difference (tie or both bad), …, b strongly better."""
INTERVAL_Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


class JudgedVote(Protocol):
    """What these functions read of a vote."""

    @property
    def pair(self) -> Hashable: ...
    @property
    def annotator(self) -> str: ...
    @property
    def choice(self) -> str:
        """a, b, tie, both_bad or skip."""

    @property
    def strength(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def left(self) -> str:
        """The candidate shown on the left: a or b."""

    @property
    def occasion(self) -> int:
        """0 the first time, 1 … for repeats."""

    @property
    def gold(self) -> str | None:
        """The known answer; None where there is none."""


Votes = Sequence[JudgedVote]
Vote = TypeVar("Vote", bound=JudgedVote)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, and the number of observations that it rests on; None where there are too few."""

    value: float | None
    low: float | None
    high: float | None
    count: int


# ------------------------------------------------------------------ votes
def independent(votes: Sequence[Vote]) -> list[Vote]:
    """The votes that were given without sight of others': all but the owner's decisions."""
    return [vote for vote in votes if vote.occasion != ADJUDICATION]


def by_pair(votes: Votes) -> dict[Hashable, list[JudgedVote]]:
    """The first votes of each pair that are not skipped."""
    found: dict[Hashable, list[JudgedVote]] = defaultdict(list)
    for vote in votes:
        if vote.occasion == 0 and vote.choice != "skip":
            found[vote.pair].append(vote)
    return dict(found)


# ------------------------------------------------------------------ Krippendorff's alpha
def krippendorff_alpha(
    votes: Votes, level: Level = "nominal", resamples: int = 1000, generator: np.random.Generator | None = None
) -> Estimate:
    """Krippendorff's alpha (2011) with a 95 % percentile interval of a bootstrap over pairs and annotators.

    ``nominal``: over the choices.  ``ordinal``: over a by strength, no difference, b by strength; both bad is no difference.
    A resample draws pairs and annotators with replacement.  Two copies of one annotator are not compared with each other,
    since they would agree by construction.  ``count``: pairs with at least two votes; below two different categories, or without
    such a pair, alpha is undefined: None.  Raises UserError where the package ``krippendorff`` is missing.
    """
    first = [vote for given in by_pair(votes).values() if len(given) >= 2 for vote in given]
    units, raters = _index([v.pair for v in first]), _index([v.annotator for v in first])
    categories = NOMINAL if level == "nominal" else ORDINAL
    unit = np.array([units[v.pair] for v in first], dtype=np.intp)
    rater = np.array([raters[v.annotator] for v in first], dtype=np.intp)
    value = np.array([categories.index(_category(v, level)) for v in first], dtype=np.intp)
    counts = np.zeros((len(units), len(categories)), dtype=np.int64)
    np.add.at(counts, (unit, value), 1)
    if (counts.sum(0) > 0).sum() < 2:
        return Estimate(None, None, None, len(units))
    alpha = _library().alpha(value_counts=counts, level_of_measurement=level)
    generator = generator or np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        of_unit = generator.multinomial(len(units), np.full(len(units), 1 / len(units))).astype(float)
        of_rater = generator.multinomial(len(raters), np.full(len(raters), 1 / len(raters))).astype(float)
        matrix = coincidences(unit, value, of_rater[rater], of_unit, len(categories))
        resampled = alpha_of(matrix, level)
        if resampled is not None:
            found.append(resampled)
    low, high = np.percentile(found, [2.5, 97.5]) if found else (None, None)
    return Estimate(float(alpha), _float(low), _float(high), len(units))


def coincidences(
    unit: npt.NDArray[np.intp], value: npt.NDArray[np.intp], weight: Floats, of_unit: Floats, categories: int
) -> Floats:
    """(C, C) Krippendorff's matrix of coincidences, with weights.

    ``unit`` and ``value`` (N,): the pair and the category of each vote; ``weight`` (N,): how often its annotator was drawn;
    ``of_unit`` (U,): how often its pair was drawn.  Votes of one annotator are not paired with each other.  With all
    weights 1 it is Krippendorff's: each unit adds its number of votes.
    """
    cells = unit * categories + value
    size = len(of_unit) * categories
    sums = np.bincount(cells, weight, size).reshape(-1, categories)
    squares = np.bincount(cells, weight * weight, size).reshape(-1, categories)
    total = sums.sum(1)
    possible = total * total - squares.sum(1)
    scale = of_unit * np.divide(total, possible, out=np.zeros_like(total), where=possible > 0)
    matrix: Floats = np.einsum("u,uc,uk->ck", scale, sums, sums) - np.diag(scale @ squares)
    return matrix


def alpha_of(matrix: Floats, level: Level) -> float | None:
    """Alpha of a matrix of coincidences; None where all are of one category or there are none."""
    n = matrix.sum(0)
    total = n.sum()
    if total <= 1 or (n > 0).sum() < 2:
        return None
    expected = (np.outer(n, n) - np.diag(n)) / (total - 1)
    distance = 1 - np.eye(len(n)) if level == "nominal" else _ordinal_distance(n)
    return float(1 - (matrix * distance).sum() / (expected * distance).sum())


def _ordinal_distance(n: Floats) -> Floats:
    """(C, C): the squared number of votes between two categories, half of each's own included (Krippendorff 2011, section D)."""
    middle = np.cumsum(n) - n / 2
    distance: Floats = (middle[:, None] - middle[None, :]) ** 2
    return distance


def _category(vote: JudgedVote, level: Level) -> str | int:
    if level == "nominal":
        return vote.choice
    strength = min(max(vote.strength, 1), STRENGTHS)
    return {"a": strength, "b": -strength}.get(vote.choice, 0)


def _index(keys: Sequence[Hashable]) -> dict[Hashable, int]:
    return {key: n for n, key in enumerate(dict.fromkeys(keys))}


def _library() -> Any:
    try:
        import krippendorff
    except ImportError:
        raise UserError(
            f"Krippendorff's alpha needs the package krippendorff: {install_command('feedback')}."
        ) from None
    return krippendorff


# ------------------------------------------------------------------ two annotators
def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa (1960) of two annotators' choices on the same pairs; None without pairs, or where both never vary."""
    if not first:
        return None
    observed = sum(x == y for x, y in zip(first, second, strict=True)) / len(first)
    left, right = Counter(first), Counter(second)
    expected = sum(left[choice] * right[choice] for choice in left) / len(first) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def kappas(votes: Votes) -> list[tuple[str, str, float | None, int]]:
    """(annotator, annotator, Cohen's kappa, common pairs) of every two annotators with common pairs."""
    chosen: dict[str, dict[Hashable, str]] = defaultdict(dict)
    for vote in votes:
        if vote.occasion == 0 and vote.choice != "skip":
            chosen[vote.annotator][vote.pair] = vote.choice
    found = []
    for x, y in combinations(sorted(chosen), 2):
        common = [pair for pair in chosen[x] if pair in chosen[y]]
        if common:
            kappa = cohen_kappa([chosen[x][p] for p in common], [chosen[y][p] for p in common])
            found.append((x, y, kappa, len(common)))
    return found


def mean_kappa(found: Sequence[tuple[str, str, float | None, int]]) -> float | None:
    """The mean of Cohen's kappas, weighted by common pairs; None where there is none."""
    known = [(kappa, count) for _, _, kappa, count in found if kappa is not None]
    return sum(k * n for k, n in known) / sum(n for _, n in known) if known else None


# ------------------------------------------------------------------ shares
def wilson(successes: float, count: int) -> Estimate:
    """A share with Wilson's 95 % score interval (1927)."""
    if not count:
        return Estimate(None, None, None, 0)
    share, z2 = successes / count, INTERVAL_Z**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = INTERVAL_Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return Estimate(share, max(center - half, 0.0), min(center + half, 1.0), count)


def agreement(votes: Votes, decisive: bool = False) -> Estimate:
    """How often two votes of different annotators on one pair are the same; ``decisive``: among votes for a or b only.

    Every pair counts equally, however many annotators it has.  The interval is Wilson's with the number of pairs.
    """
    shares = []
    for given in by_pair(votes).values():
        choices = [v.choice for v in given if not decisive or v.choice in ("a", "b")]
        if len(choices) >= 2:
            same = sum(n * (n - 1) for n in Counter(choices).values())
            shares.append(same / (len(choices) * (len(choices) - 1)))
    return wilson(sum(shares), len(shares))


def self_agreement(votes: Votes) -> Estimate:
    """How often an annotator's repeat has the same choice as the first time."""
    first = {(v.annotator, v.pair): v.choice for v in votes if v.occasion == 0 and v.choice != "skip"}
    repeats = [v for v in votes if v.occasion > 0 and v.choice != "skip" and (v.annotator, v.pair) in first]
    return wilson(sum(v.choice == first[v.annotator, v.pair] for v in repeats), len(repeats))


def left_share(votes: Votes) -> Estimate:
    """Of the votes for one side, those for the side shown left; 1/2 without a bias, since sides are drawn by chance."""
    decisive = [v for v in votes if v.choice in ("a", "b")]
    return wilson(sum(v.choice == v.left for v in decisive), len(decisive))


def gold_accuracy(votes: Votes) -> Estimate:
    """How often gold questions are answered as they should be; both bad is a right answer where a tie is."""
    asked = [v for v in votes if v.gold is not None and v.choice != "skip"]
    right = sum(v.choice == v.gold or (v.gold == "tie" and v.choice == "both_bad") for v in asked)
    return wilson(right, len(asked))


def tie_share(votes: Votes) -> float | None:
    """Ties and both bad among the votes that are not skipped."""
    given = [v for v in votes if v.choice != "skip"]
    return sum(v.choice in ("tie", "both_bad") for v in given) / len(given) if given else None


def pace(votes: Votes) -> float | None:
    """Median seconds of a vote; 0 seconds are of a vote from a file that does not say."""
    given = [v.seconds for v in votes if v.choice != "skip" and v.seconds > 0]
    return float(median(given)) if given else None


def noise_ceiling(agreement: float) -> float:
    """The accuracy on single votes of a judge who is always right: (1 + sqrt(2p - 1)) / 2 where two annotators agree with
    probability p.

    An annotator who is right with probability q agrees with another one with p = q² + (1 - q)²; 1/2 below p = 1/2.

    >>> noise_ceiling(1.0), noise_ceiling(0.5), round(noise_ceiling(0.68), 3)
    (1.0, 0.5, 0.8)
    """
    return (1 + math.sqrt(max(2 * agreement - 1, 0.0))) / 2


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
