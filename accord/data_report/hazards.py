"""The hazards that ``accord data`` counts: what each one is, how it is fixed, and in how many rows it is accepted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hazard:
    """One way in which a row can teach something else than its author meant."""

    name: str
    means: str
    """What is the case in a row that has it."""
    fix: str
    spoils: bool = True
    """Whether one row is too many, unless a limit says otherwise."""


_ALL = (
    # ---------------------------------------------------------- what the content spells
    Hazard(
        "control-tokens",
        "the content spells control tokens of the model",
        "accord reads them as text; other trainers end or open turns there: remove them, or insert a space.",
    ),
    Hazard(
        "forged-turns",
        "the content opens a turn of its own",
        "make it a message of its own, or remove the role markers.",
    ),
    Hazard(
        "templated",
        "the text is already in a chat template's format and would be templated again",
        "give 'messages' and leave the template to the trainer; accord divides files in its model's own format into turns.",
    ),
    Hazard("second-end", "the reply spells an end token, and another one follows", "remove it from the reply."),
    Hazard("doubled-bos", "the text begins with BOS, and another one is written before it", "remove it from the text."),
    Hazard(
        "half-characters",
        "half of a surrogate pair, which no tokenizer reads",
        "write the file from unbroken text, or remove the character (\\ud800 to \\udfff).",
    ),
    Hazard(
        "lost-characters",
        "U+FFFD stands where a character was lost in an earlier conversion",
        "convert the original text again, with its true encoding.",
        spoils=False,
    ),
    # ---------------------------------------------------------- what the template makes of it
    Hazard(
        "lost-thoughts",
        "thoughts of an assistant's turn are not in the tokens",
        "make each turn the last of its own row, or use a template that keeps thoughts.",
    ),
    Hazard(
        "lost-calls",
        "tool calls are not in the tokens, so the model would not learn them",
        "use a template with tool calls, or leave the row out.",
    ),
    Hazard(
        "lost-tools",
        "the template does not write the tools that the row offers",
        "use a template with tools, or describe them in a system message.",
    ),
    Hazard(
        "dates",
        "the template writes a date, which may be another one tomorrow",
        "accord writes one date (setting template_date); give other trainers a fixed date too.",
        spoils=False,
    ),
    # ---------------------------------------------------------- what the tokens are
    Hazard(
        "refused",
        "the row cannot be turned into tokens",
        "correct the row as its message says, or use a template that accepts it.",
    ),
    Hazard(
        "unknown-tokens",
        "characters became the unknown token",
        "remove these characters, or use a tokenizer that has them.",
    ),
    Hazard(
        "differing-text",
        "decoding the tokens does not give the text back",
        "write the text as the tokenizer normalizes it, or use another tokenizer.",
    ),
    Hazard(
        "split-tokens",
        "prompt and reply would share a token when joined, so they are tokenized apart",
        "end the prompt where a token ends: move the space to the start of the reply.",
        spoils=False,
    ),
    Hazard(
        "drifted-tokens",
        "the text's tokens differ from those that were sampled",
        "accord trains on the sampled tokens; give other trainers token ids instead of text.",
        spoils=False,
    ),
    Hazard("no-labels", "nothing to learn: the reply is empty or every turn has weight 0", "leave the row out."),
    # ---------------------------------------------------------- two replies, and rows with each other
    Hazard(
        "repeated-prompt", "the replies begin with the prompt, which is then learned", "remove it from the replies."
    ),
    Hazard("ties", "both replies are the same, or neither is preferred", "leave the row out.", spoils=False),
    Hazard("duplicates", "the same as an earlier row", "keep one of them.", spoils=False),
    Hazard(
        "contradictions",
        "an earlier row prefers the other one of the same two replies",
        "keep one of them, or give both a 'label' between 0 and 1.",
        spoils=False,
    ),
    Hazard(
        "heldout-prompts",
        "the prompt is also in the held-out file",
        "remove the row from one of the files; held-out figures are too good otherwise.",
    ),
    # ---------------------------------------------------------- what is not read
    Hazard(
        "unused-columns",
        "columns that are not read",
        "rename them to columns that are read (docs/data.md lists them), or leave them.",
        spoils=False,
    ),
    Hazard("left-out", "the row's format gives nothing to train on", "correct it as its reason says.", spoils=False),
    Hazard(
        "too-long",
        "longer than --max-length, so training cuts it",
        "raise model.max_length, or split the row.",
        spoils=False,
    ),
)
HAZARDS = {hazard.name: hazard for hazard in _ALL}
"""Every hazard by its name, in the order of the report."""
Found = dict[str, str]
"""The hazards of one row: name and what exactly was found, for a person."""
