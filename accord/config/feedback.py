"""Settings of the stages sample and judge: replies of models, and who prefers which."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from accord.config.common import DatedStage
from accord.config.data import SamplingStage
from accord.config.numbers import (
    Coefficient,
    Count,
    CountOrZero,
    Overlap,
    Requests,
    Retries,
    Seconds,
    Share,
    TemperatureOrZero,
    Tokens,
)
from accord.config.section import Section

PROJECT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Of a project of the store; it fits into a URL."""
PEOPLE = "feedback://"
"""What the name of a project of the store follows, where people are the judge."""


class SampleConfig(SamplingStage):
    """Samples replies of one or several models to prompts, for a judge to compare."""

    models: dict[str, str] = Field(default_factory=dict)
    """Models to sample from, as label: stage or folder; empty: model.base_model."""
    max_new_tokens: Tokens = 64
    """Maximum tokens of a reply; one that has not ended by then is marked, and no judge compares it."""

    @model_validator(mode="after")
    def _one_source(self) -> SampleConfig:
        default = type(self).model_fields["model"].get_default().base_model
        if self.models and self.model.base_model != default:
            raise ValueError(
                f"models and model.base_model ({self.model.base_model}) are both given; leave one of them out"
            )
        for label in self.models:
            if not (label.strip() and label.isprintable()) or "." in label or len(label) > 80:
                raise ValueError(f"the label {label!r:.60} is not a name; use printable characters, without dots")
        return self


class People(Section):
    """People who vote on the page of ``accord label``."""

    runtime: ClassVar[frozenset[str]] = frozenset({"page"})

    votes: CountOrZero = 0
    """Votes to wait for; 0: as many on every pair as the overlap."""
    overlap: Overlap = 0
    """People who are asked each pair; 0: what the project says (1 in a new one)."""
    page: str = "http://127.0.0.1:8765"
    """Where the page is, for the message while the stage waits."""

    @field_validator("page")
    @classmethod
    def _is_an_address(cls, page: str) -> str:
        return _address(page, "page")


class OpenAI(Section):
    """A model behind an HTTP interface as OpenAI's chat completions: vLLM, llama.cpp, Ollama, a provider."""

    runtime: ClassVar[frozenset[str]] = frozenset({"key_env", "parallel", "retries", "timeout"})

    url: str = ""
    """Base address, as http://localhost:8000/v1; empty: no such judge."""
    model: str = ""
    """The model's name there."""
    key_env: str = ""
    """Environment variable with the key; empty: no key is sent.  The key itself is never written."""
    instructions: str = ""
    """The system message, which asks for a verdict [[A]], [[B]] or [[C]] (a tie); empty: accord's own."""
    temperature: TemperatureOrZero | None = 0.0
    """Sampling temperature; null: not sent."""
    max_tokens: Tokens = 512
    """Maximum tokens of an answer."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the request; null leaves a key out ({max_tokens: null, max_completion_tokens: 512})."""
    parallel: Requests = 4
    """Requests at the same time."""
    retries: Retries = 5
    """How often a request is repeated after a lost connection, a timeout, or an answer 408, 409, 425, 429 or 5xx."""
    timeout: Seconds = 120.0
    """Seconds to wait for an answer."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return url and _address(url, "url").rstrip("/").removesuffix("/chat/completions")

    @field_validator("key_env")
    @classmethod
    def _is_a_variable(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name, re.ASCII):
            raise ValueError("names an environment variable, as OPENAI_API_KEY; the key itself must not be in a config")
        return name


class JudgeConfig(DatedStage):
    """Has pairs of sampled replies judged: by a score function, a reward model, people, or a model behind HTTP."""

    samples: str = "sample"
    """Replies of the stage sample (a stage, a folder or a file)."""
    judge: str = "accord.data.demo:gold_scores"
    """module:function(prompts, replies) -> scores, a reward model (a stage, a folder, NAME@ALIAS), or people
    (feedback://NAME, a project of the store)."""
    openai: OpenAI = OpenAI()
    people: People = People()
    noise: Coefficient = 0.4
    """Of a score function or reward model: temperature of Bradley-Terry, in units of the score; 0: the higher score wins."""
    pairs: Count = 2
    """Pairs per prompt; each reply is used at most once."""
    matching: Literal["random", "extremes", "all"] = "random"
    """random: random pairs; all: every pair of replies, whatever pairs says; extremes (with scores): best with worst, second
    best with second worst, …"""
    min_gap: Coefficient = 0.0
    """Scores that differ by less are a tie."""
    ties: Literal["drop", "half", "keep"] = "drop"
    """Ties and 'both bad' among the preferences: drop; half: as rows with label 1/2; keep: the same, and the row's
    key tie says which of the two it was.  All are in judgments.jsonl."""
    heldout_fraction: Share = 0.1
    """Fraction of the prompts whose pairs go to heldout_preferences.jsonl."""

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeConfig:
        fields = type(self).model_fields
        given = [name for name in ("judge", "noise", "min_gap") if getattr(self, name) != fields[name].get_default()]
        if self.openai.url and not self.openai.model:
            raise ValueError("openai.url needs openai.model, the model's name there")
        if not self.openai.url and self.openai != OpenAI():
            raise ValueError("openai needs openai.url, the base address")
        if self.openai.url and "judge" in given:
            raise ValueError(f"judge={self.judge} and openai.url are both given; leave one of them out")
        if not self.asks_people and self.people != People():
            raise ValueError(f"people are settings of judge={PEOPLE}NAME")
        if self.asks_people and not project_name(self.judge):
            raise ValueError(
                f"judge={self.judge!r:.80} names no project; write {PEOPLE}NAME, of letters, digits, '.', '_', '-'"
            )
        if not self.has_scores:
            for name in ("noise", "min_gap"):
                if name in given:
                    raise ValueError(f"{name} is a setting of judges with scores; leave it out")
            if self.matching == "extremes":
                raise ValueError("matching=extremes needs a judge with scores; use random or all")
        return self

    @property
    def asks_people(self) -> bool:
        """Whether the judge is a project of the store."""
        return self.judge.startswith(PEOPLE)

    @property
    def has_scores(self) -> bool:
        """Whether the judge is a score function or a reward model."""
        return not (self.asks_people or self.openai.url)


def project_name(judge: str) -> str:
    """The project that ``feedback://NAME`` names; empty where it is not a name."""
    name = judge.removeprefix(PEOPLE)
    return name if re.fullmatch(PROJECT_NAME, name, re.ASCII) else ""


def _address(url: str, key: str) -> str:
    """Raises ValueError for what is not an http(s) address, and for one that holds a user or password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(f"{key} is not an address, as http://localhost:8000") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or any(c.isspace() or not c.isprintable() for c in url)
    ):
        raise ValueError(f"{key} is an address, as http://localhost:8000")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"{key} is an address without user, password and query, since configs are written to disk")
    return url
