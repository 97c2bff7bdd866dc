"""Hazards of what a row's content spells: control tokens, turns, templates, end tokens, BOS, broken characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from accord.data.text_notes import spelled_in
from accord.data.tokenizer import Tokenizer
from accord.data_report.hazards import Found
from accord.data_report.reading import Said
from accord.io.readers import shorten

_TURNS = (
    r"<\|im_start\|>\s*(?:system|user|assistant|tool)\b",  # ChatML
    r"<\|start_header_id\|>\s*\w+\s*<\|end_header_id\|>",  # Llama 3
    r"<\|header_start\|>\s*\w+\s*<\|header_end\|>",  # Llama 4
    r"\[/?INST\]|<<SYS>>",  # Llama 2, Mistral
    r"<start_of_turn>\s*(?:user|model)\b",  # Gemma
    r"<\|(?:system|user|assistant)\|>",  # Zephyr, Phi
    r"<｜(?:User|Assistant)｜>",  # DeepSeek
    r"<\|start\|>(?:system|developer|user|assistant)\b",  # Harmony
    r"<\|start_of_role\|>",  # Granite
    r"<\|(?:START_OF_TURN_TOKEN|USER_TOKEN|CHATBOT_TOKEN)\|>",  # Command R
)
"""How the templates in use open a turn."""
_STARTS = ("<|", "INST]", "<<SYS>>", "<start_of_turn>", "<｜")
"""One of these is in every match of ``_TURNS``."""
_TRANSCRIPTS = (
    (r"\s*(?:Below is an instruction\b.*?)?### ?Instruction:", "### Response:"),  # Alpaca
    (r"\s*(?:A chat between\b.*?)?USER:", "ASSISTANT:"),  # Vicuna
    (r"\s*Human:", "Assistant:"),  # HH-RLHF
)
"""Templates of plain text: how a text begins, and what it has for the reply."""
ENDS = (
    *("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>"),
    *("<eos>", "<|return|>", "<|end_of_turn|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|user_end|>"),
)
"""End tokens in use, which text keeps when it comes from another model."""


@dataclass(frozen=True)
class Spelling:
    """What the content of rows must not spell, for one tokenizer."""

    tokenizer: Tokenizer
    openings: tuple[str, ...]
    """How its own template opens turns."""

    def hazards(self, said: Sequence[Said]) -> Found:
        """Those of a row, whose texts are given in order."""
        found: Found = {}
        for number, (role, text) in enumerate((s.role, s.text) for s in said):
            if not is_unicode(text):
                found.setdefault("half-characters", f"in the {role}'s text")
                continue
            if "\ufffd" in text:
                found.setdefault("lost-characters", f"in the {role}'s text")
            found = {**self._of_text(role, text, number == 0), **found}
        return found

    def _of_text(self, role: str, text: str, first: bool) -> Found:
        found: Found = {}
        is_reply = role in ("assistant", "document")
        rest = text
        if is_reply and (end := self._end_of(text)):
            found["second-end"] = f"{end!r} at the end of the {role}'s text"
            rest = text.rstrip().removesuffix(end)
        if start := self.template_start(role, text):
            return {**found, "templated": f"the {role}'s text begins with {shorten(start, 40)!r}"}
        if first and (bos := self._bos) and text.lstrip().startswith(bos):
            found["doubled-bos"] = f"{bos!r} at the start of the {role}'s text"
            rest = rest.lstrip().removeprefix(bos)
        if role != "document" and (turn := self._turn(rest)):
            found["forged-turns"] = f"{shorten(turn[0], 40)!r} in the {role}'s text"
        if spelled := self._controls(role, rest):
            found["control-tokens"] = f"{spelled!r} in the {role}'s text"
        return found

    # -------------------------------------------------------------- one thing each
    def _controls(self, role: str, text: str) -> str:
        """The first control token that content spells, the markers of a leading thought not counted; empty where none is."""
        controls = self.tokenizer.controls
        if not controls.count(text):
            return ""
        return next(iter(spelled_in(self.tokenizer, {"role": role, "content": text})), "")

    def _end_of(self, text: str) -> str:
        end = text[-40:].rstrip()
        return next((token for token in self._ends if end.endswith(token)), "") if end[-1:] in self._last else ""

    def template_start(self, role: str, text: str) -> str:
        """How a text begins that is in a template's format; of a document only in the model's own.  Empty for others."""
        begin = text.lstrip()[:60]
        if role == "document":
            return next((opening for opening in self.openings if begin.startswith(opening)), "")
        if (bos := self._bos) and begin.startswith(bos):
            begin = begin.removeprefix(bos).lstrip() if not self._turns.match(begin) else begin
        if (match := self._turns.match(begin)) and match[0] not in ("[/INST]",):
            return match[0]
        if self.tokenizer.chat_template is None:
            return ""
        for start, reply in _TRANSCRIPTS:
            if reply in text and (plain := re.match(start, text, re.DOTALL)):
                return plain[0].strip()[-40:]
        return ""

    def _turn(self, text: str) -> re.Match[str] | None:
        return self._turns.search(text) if any(start in text for start in self._starts) else None

    @cached_property
    def _turns(self) -> re.Pattern[str]:
        return re.compile("|".join([*map(re.escape, self.openings), *_TURNS]))

    @cached_property
    def _starts(self) -> tuple[str, ...]:
        return (*self.openings, *_STARTS)

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.tokenizer.token(self.tokenizer.eos_id), *ENDS]))

    @cached_property
    def _last(self) -> frozenset[str]:
        return frozenset(token[-1] for token in self._ends)

    @cached_property
    def _bos(self) -> str:
        """The text of BOS where it is written before a row; empty elsewhere."""
        number = self.tokenizer.bos_id
        return "" if number is None else self.tokenizer.token(number)


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
