"""What a tokenizer and its chat template do with every row, found once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from accord.data.chat import render
from accord.data.chat_template import dated
from accord.data.rows import Message
from accord.data.template_sandbox import make_sandbox
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

_DAYS = ("2020-01-02", "2031-12-30")  # in which day, month and year differ


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """All that the hazards need to know of a tokenizer and its chat template."""

    openings: tuple[str, ...] = ()
    """What the template writes before a turn, without space around it."""
    variables: frozenset[str] = frozenset()
    """What it reads, such as ``tools``."""
    dated: bool = False
    """Whether it writes the day's date."""


def template_facts(tokenizer: Tokenizer) -> TemplateFacts:
    """The facts of a tokenizer's template.  Raises UserError where the template is broken."""
    if tokenizer.chat_template is None:
        return TemplateFacts()
    variables = template_variables(tokenizer.chat_template)
    return TemplateFacts(_openings(tokenizer), variables, _is_dated(tokenizer))


def template_variables(template: str) -> frozenset[str]:
    """The names that a template reads from outside."""
    import jinja2
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(make_sandbox().parse(template)))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at line {error.lineno}: {error.message}") from None


def _openings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The openings of turns: of the assistant's from the generation prompt, of others from between two turns."""
    asked: list[Message] = [{"role": "user", "content": "ask"}]
    more: list[Message] = [*asked, {"role": "assistant", "content": "reply"}, {"role": "user", "content": "again"}]
    try:
        before, with_opening = render(tokenizer, asked, False), render(tokenizer, asked, True)
        between = re.search(r"reply(.*?)again", render(tokenizer, more, False), re.DOTALL)
    except UserError:  # a template that wants other turns
        return ()
    opening = with_opening.removeprefix(before).strip() if with_opening.startswith(before) else ""
    found = [opening]
    if between:
        ends = [token for token in tokenizer.controls.spelled(opening)[:1] if token in between[1]]
        ends = (
            ends or [t for t in tokenizer.controls.spelled(between[1]) if t != tokenizer.token(tokenizer.eos_id)][-1:]
        )
        found += [between[1][between[1].rindex(token) :].strip() for token in ends]
    found += [text.replace("user", "system") for text in found if "user" in text]
    return tuple(dict.fromkeys(text for text in found if tokenizer.controls.count(text)))


def _is_dated(tokenizer: Tokenizer) -> bool:
    asked: list[Message] = [{"role": "user", "content": "ask"}]
    texts = set()
    for day in _DAYS:
        with dated(day):
            try:
                texts.add(render(tokenizer, asked, True))
            except UserError:
                return False
    return len(texts) > 1
