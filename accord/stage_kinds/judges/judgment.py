"""What every judge returns, whoever it is: which of two replies is preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from accord.data.heldout import split_by_prompt
from accord.data.messages import template_columns
from accord.data.prompts import plain_text
from accord.data.sampled_ids import sampled_column
from accord.data.samples import Candidate, Sample
from accord.feedback.entities import Choice

Ties = Literal["drop", "half", "keep"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two replies to one prompt that are to be compared."""

    prompt: int
    """Index among the samples."""
    a: int
    """Index among the prompt's candidates."""
    b: int
    asked_with: float = 1.0
    """The probability with which this pair was drawn to be asked."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One answer of one judge."""

    pair: Comparison
    choice: Choice
    """``skip`` where there is no answer (a refusal, say)."""
    judge: str
    """A function, a model, a person's public id."""
    repeat: bool = False
    """The same person's second answer, for self-consistency; it makes no preference."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What only this kind of judge knows: scores, seconds, answers in both orders."""


class Judge(Protocol):
    """Chooses pairs of the samples' replies and says which one is preferred; all replies given are usable."""

    def judge(self, samples: Sequence[Sample]) -> list[Judgment]: ...


def preference(samples: Sequence[Sample], judgment: Judgment, ties: Ties) -> dict[str, Any] | None:
    """The row to train on; None where the judgment states no preference and is no tie that is to be used."""
    sample, pair = samples[judgment.pair.prompt], judgment.pair
    a, b = sample.candidates[pair.a], sample.candidates[pair.b]
    if judgment.repeat or judgment.choice == "skip":
        return None
    if judgment.choice not in ("a", "b") and ties == "drop":
        return None
    chosen, rejected = (b, a) if judgment.choice == "b" else (a, b)
    asked = {"prompt": sample.prompt, **template_columns(sample.prompt)}
    row: dict[str, Any] = {**asked, "chosen": chosen.text, "rejected": rejected.text}
    if judgment.choice not in ("a", "b"):
        row |= {"label": 0.5, **({"tie": judgment.choice} if ties == "keep" else {})}
    return row | sampled_column({"chosen": chosen, "rejected": rejected})


def preference_files(
    samples: Sequence[Sample], judgments: Sequence[Judgment], ties: Ties, heldout_fraction: float, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The rows of ``preferences.jsonl`` and, if any are to be held out, of ``heldout_preferences.jsonl``."""
    found = [(samples[j.pair.prompt].prompt, preference(samples, j, ties)) for j in judgments]
    rows = [row for _, row in found if row is not None]
    texts = [plain_text(prompt) for prompt, row in found if row is not None]
    train, heldout = split_by_prompt(rows, texts, heldout_fraction, seed)
    files = {"preferences.jsonl": train}
    return {**files, "heldout_preferences.jsonl": heldout} if heldout_fraction > 0 else files


def as_row(samples: Sequence[Sample], judgment: Judgment) -> dict[str, Any]:
    """A judgment as a row of ``judgments.jsonl``."""
    sample, pair = samples[judgment.pair.prompt], judgment.pair
    return {
        "prompt": sample.prompt,
        "a": _reply(sample.candidates[pair.a]),
        "b": _reply(sample.candidates[pair.b]),
        "choice": judgment.choice,
        "judge": judgment.judge,
        "asked_with": pair.asked_with,
        **({"repeat": True} if judgment.repeat else {}),
        **judgment.details,
    }


def _reply(candidate: Candidate) -> dict[str, Any]:
    return {"text": candidate.text, "model": candidate.model, "sample": candidate.sample}
