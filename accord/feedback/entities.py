"""What a store holds, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from accord.errors import UserError

Message = Mapping[str, Any]
"""One turn: {"role": …, "content": …}."""
TOKENIZER = "tokenizer"
"""The key of ``sampling`` with the digest of the tokenizer that a reply's ids are of."""
Side = Literal["a", "b"]
Choice = Literal["a", "b", "tie", "both_bad", "skip"]
"""An answer, or a skip, by candidate."""
ANSWERS: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")
"""Every choice but a skip."""
Shown = Literal["left", "right", "tie", "both_bad", "skip"]
"""The same by the side that it was shown on."""
ADJUDICATION = -1
"""The occasion of an owner's decision on a disagreement.  It was made with sight of the annotators' votes: it is one more
vote to train on, and in no figure of agreement."""
Gold = Literal["a", "b", "tie"]
Role = Literal["annotator", "owner"]
ROLES: tuple[Role, ...] = ("annotator", "owner")


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """How a project's pairs are asked.  Raises UserError for values outside their range."""

    overlap: int = 1
    """Annotators who answer each pair."""
    repeat_share: float = 0.05
    """Share of an annotator's questions that are asked again later, sides drawn again."""
    gold_share: float = 0.1
    """Share of gold questions among what is asked, while there are some that the annotator has not seen."""
    lease_seconds: float = 600.0
    """For how long a pair is reserved for whom it was shown to."""
    tags: tuple[str, ...] = ()
    """Tags that annotators can put on a vote."""

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= 100:
            raise UserError(f"overlap: {self.overlap}, expected 1 to 100 annotators per pair.")
        for name in ("repeat_share", "gold_share"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise UserError(f"{name}: {getattr(self, name)}, expected a share from 0 to 0.5.")
        if not 1 <= self.lease_seconds <= 604800:
            raise UserError(f"lease_seconds: {self.lease_seconds}, expected 1 to 604800 (a week).")
        if len(set(self.tags)) < len(self.tags) or not all(1 <= len(t) <= 40 and t.isprintable() for t in self.tags):
            raise UserError("tags: each once, with 1 to 40 printable characters.")


@dataclass(frozen=True, slots=True)
class Project:
    """A set of pairs with its annotators; ``feedback://NAME`` in a config."""

    id: int
    name: str
    settings: ProjectSettings
    guidelines: str
    created: datetime


@dataclass(frozen=True, slots=True)
class NewCandidate:
    """A reply to be judged."""

    text: str
    tokens: tuple[int, ...] | None
    policy: str
    """Digest or name of the model that sampled it."""
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewPair:
    """Two replies to one prompt, to be compared."""

    prompt: tuple[Message, ...]
    a: NewCandidate
    b: NewCandidate
    probability: float
    """With which this pair was chosen to be asked, in (0, 1]."""
    gold: Gold | None = None
    """The known answer, where this is a gold question."""
    source: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the prompt gives a chat template besides messages: tools, documents, switches."""


@dataclass(frozen=True, slots=True)
class Annotator:
    """A person who votes, or the owner of a project."""

    id: int
    public_id: str
    """Random; the only identity in exports."""
    name: str
    """Empty where the person was forgotten."""
    project: str
    role: Role


@dataclass(frozen=True, slots=True)
class Question:
    """A pair as it is shown to one annotator."""

    id: int
    pair: int
    occasion: int
    """0 for the first time, 1 … for repeats, ADJUDICATION for the owner's decision."""
    messages: Sequence[Message]
    left: str
    right: str
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class Vote:
    """One row of the append-only table of votes."""

    id: int
    question: int
    revision: int
    kind: Literal["vote", "undo"]
    choice: Choice | None
    """None for an undo."""
    shown: Shown | None
    """The choice by the side that it was shown on."""
    strength: int
    seconds: float
    comment: str
    tags: tuple[str, ...]
    created: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored reply."""

    id: int
    text: str
    tokens: tuple[int, ...] | None
    policy: str
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VoteRow:
    """A current vote with all that was shown."""

    vote: int
    pair: int
    digest: str
    """Of the pair's content."""
    prompt: Sequence[Message]
    a: Candidate
    b: Candidate
    choice: Choice
    strength: int
    seconds: float
    left: Side
    annotator: str
    """The annotator's public id."""
    occasion: int
    probability: float
    gold: Gold | None
    source: str
    created: datetime
    comment: str
    tags: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the prompt gives a chat template besides messages."""
