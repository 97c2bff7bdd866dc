"""The formats that ``accord feedback export`` and ``import`` know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from accord.data.rows import Where
from accord.feedback.convert import argilla, fastchat, hh, label_studio, llama_factory, openrlhf, raw, trl
from accord.feedback.convert.file_vote import FileVote, Row, Written, as_array, as_lines
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.entities import VoteRow


@dataclass(frozen=True, slots=True)
class Format:
    """How votes are written and read, and what a file of this format cannot hold."""

    about: str
    write: Callable[[Iterable[VoteRow], PairOptions], Written]
    read: Callable[[Iterable[tuple[Where, Row]]], Iterator[FileVote | str]]
    loses: str
    """A sentence; empty where nothing is lost."""
    text: Callable[[Iterable[Row]], str] = as_lines
    comments: bool = False
    """Whether it has a place for comments."""
    whole: bool = False
    """Whether it holds votes as they are, not pairs of chosen and rejected replies."""


_PAIRS = "It holds which reply was preferred, and neither annotators, sides shown, seconds, models nor skipped pairs."
_SOFT = f"{_PAIRS} The keys label, weight and tokens are read by accord; TRL's trainers ignore them."

FORMATS: dict[str, Format] = {
    "raw": Format("every vote with everything shown", raw.write, raw.read, "", comments=True, whole=True),
    "trl": Format("prompt, chosen, rejected as text", trl.write_text_pairs, trl.read_pairs, _SOFT),
    "trl-conversational": Format(
        "prompt, chosen, rejected as messages", trl.write_chat_pairs, trl.read_pairs, _SOFT
    ),
    "trl-unpaired": Format(
        "prompt, completion, label", trl.write_unpaired, trl.read_unpaired,
        f"{_PAIRS} A reply that was only better than another is labeled true.",
    ),
    "hh-rlhf": Format("transcripts of Human and Assistant", hh.write, hh.read, _PAIRS),
    "llama-factory": Format(
        "sharegpt conversations, ranking", llama_factory.write_sharegpt, llama_factory.read_sharegpt, _PAIRS, as_array
    ),
    "llama-factory-alpaca": Format(
        "instruction, input, chosen, rejected", llama_factory.write_alpaca, llama_factory.read_alpaca, _PAIRS, as_array
    ),
    "openrlhf": Format("chosen, rejected as whole conversations", openrlhf.write, openrlhf.read, _PAIRS),
    "argilla": Format(
        "records of the preference template", argilla.write, argilla.read,
        "It holds neither strengths, sides shown, seconds, skipped pairs, repeats nor gold answers.", whole=True,
    ),
    "label-studio": Format(
        "tasks of the tag Pairwise", label_studio.write, label_studio.read,
        "It holds neither models, sides shown nor gold answers.", as_array, comments=True, whole=True,
    ),
    "fastchat": Format(
        "battles of Chatbot Arena", fastchat.write, fastchat.read,
        "It holds neither strengths, seconds, skipped pairs, repeats nor gold answers.", as_array, whole=True,
    ),
}  # fmt: skip
