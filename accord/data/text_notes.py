"""What is worth saying about the texts of a file once they are tokens: counts for the report of a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from accord.data.messages import message_text
from accord.data.rendering import TRAINING_KEYS, Conversation
from accord.data.rows import Message, Prompt
from accord.data.thoughts import escape_reply
from accord.data.tokenizer import Tokenizer
from accord.data.turns import Turns, as_turns, inputs_of
from accord.errors import UserError

SPELLED = "rows that spell control tokens, which stay text"
LOST = "assistant turns whose thoughts the chat template leaves out, learned without them"
REPEATED = "prompts removed from the start of both replies"
TEMPLATED = "rows already in the chat template's format, divided into their turns"
SHORTENED = "prompts without their oldest turns"
UNKNOWN = "characters that the tokenizer does not know, which became its unknown token"
SAMPLED = "tokens as sampled, which differ from those of the text"
_TRIES = 20
"""Rows with a key after which it counts as unused, when the template wrote the same without it each time."""


class TextNotes:
    """Counts over the rows of a file.

    Keys that reach the chat template are tried until the template uses them: its text is compared with and without.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._counts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._used: set[str] = set()

    def add(self, name: str, number: int) -> None:
        """Adds to one of the counts."""
        self._counts[name] += number

    def add_ids(self, ids: Sequence[int]) -> None:
        """Notes the tokens of a text."""
        self.add(UNKNOWN, unknown_in(self.tokenizer, ids))

    def add_row(self, prompt: Prompt, *replies: Message) -> None:
        """Notes a prompt with all replies to it, or a whole conversation."""
        messages = as_turns(prompt, *replies)
        self.add(SPELLED, any(spelled_in(self.tokenizer, message) for message in messages))
        for reply in replies or [None]:
            self._try_keys(as_turns(prompt, *([] if reply is None else [reply])))

    def counts(self) -> Mapping[str, int]:
        """All counts, and the keys that the template does not use with the rows that have them."""
        unused = {f"{key} not used by the chat template": n for key, n in self._seen.items() if key not in self._used}
        return {name: n for name, n in self._counts.items() if n} | unused

    def _try_keys(self, messages: Turns) -> None:
        inputs = inputs_of(messages)
        plain = {"role", "content", "tool_calls", *TRAINING_KEYS}
        keys = {*inputs, *(key for message in messages for key in message if key not in plain)}
        for key in sorted(keys - self._used):
            self._seen[key] += 1
            if self.tokenizer.chat_template is not None and self._seen[key] <= _TRIES and self._changes(messages, key):
                self._used.add(key)

    def _changes(self, messages: Turns, key: str) -> bool:
        """Whether the template writes something else without a key."""
        inputs = {name: value for name, value in messages.inputs.items() if name != key}
        without = Turns(({k: v for k, v in m.items() if k != key} for m in messages), inputs)
        try:
            return _rendered(self.tokenizer, without) != _rendered(self.tokenizer, messages)
        except UserError:
            return True


def unknown_in(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many of a text's tokens are the unknown token, where that is a token of its own."""
    unk = tokenizer.controls.unk
    return 0 if unk is None or unk in (tokenizer.eos_id, tokenizer.bos_id) else list(ids).count(unk)


def spelled_in(tokenizer: Tokenizer, message: Message) -> list[str]:
    """The control tokens that the text of a message spells, in order, without the markers of a thought at its start."""
    text, controls = message_text(message), tokenizer.controls
    if message.get("role") != "assistant" or not controls.count(text):
        return controls.spelled(text)
    return controls.literal(escape_reply(controls, text, tokenizer.opened_thought))


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    return Conversation(tokenizer, messages).render(len(messages), messages[-1]["role"] != "assistant")
