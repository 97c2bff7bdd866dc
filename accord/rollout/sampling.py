"""Samples every reply that a stage writes: all prompts at the first temperature, then all at the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accord.config.data import SamplingStage
from accord.data.chat import prompt_ids
from accord.data.messages import message_text
from accord.data.prompts import PromptData
from accord.data.reply_text import sampled_text
from accord.data.rows import Prompt
from accord.data.tokenizer import Tokenizer
from accord.data.turns import Turns, as_turns
from accord.models.backbone import Backbone
from accord.rollout.generate import Decoding, generate

Keys = Callable[[int, Sequence[int], int], Sequence[int]]
"""Sampling noise by round, prompts and samples, as ``reply_keys`` after its first two arguments."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many replies to sample to each prompt, at which temperatures, and how many at once."""

    replies: int
    temperatures: tuple[float, ...]
    max_new_tokens: int
    batch_size: int

    def describe(self) -> str:
        """In words, for the screen."""
        temperatures = ", ".join(map(str, self.temperatures))
        return f"{self.replies} to each prompt, up to {self.max_new_tokens} tokens, at temperatures {temperatures}"


def budget_of(config: SamplingStage) -> Budget:
    """The budget in a stage's settings."""
    return Budget(config.replies, config.temperatures, config.max_new_tokens, config.batch_size)


def prompts_to_answer(data: PromptData, tokenizer: Tokenizer, instruction: str) -> tuple[tuple[int, ...], ...]:
    """The tokens of each prompt, with the instruction at its end where there is one."""
    if not instruction:
        return data.prompts
    return tuple(tuple(prompt_ids(tokenizer, _instructed(prompt, instruction))) for prompt in data.sources)


def _instructed(prompt: Prompt, instruction: str) -> Prompt:
    """A prompt with an instruction at the end of its text, or of the user's last message."""
    if isinstance(prompt, str):
        return f"{prompt} {instruction}"
    turns = as_turns(prompt)
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
    asked = f"{message_text(turns[last])} {instruction}" if last < len(turns) else instruction
    return Turns([*turns[:last], {"role": "user", "content": asked}, *turns[last + 1 :]], turns.inputs)


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are sampled together: ``samples`` replies to each, at one temperature."""

    round: int
    """Index among the distinct temperatures."""
    prompts: range
    temperature: float
    samples: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A sampled reply."""

    prompt: int
    text: str
    tokens: tuple[int, ...]
    temperature: float
    ended: bool


def sampling_groups(budget: Budget, prompts: int) -> list[Group]:
    """All prompts at the first temperature, then all at the next, in groups of about ``batch_size`` replies."""
    rounds = Counter(budget.temperatures[r % len(budget.temperatures)] for r in range(budget.replies))
    size = max(1, budget.batch_size // max(rounds.values()))  # prompts
    return [
        Group(r, range(first, min(first + size, prompts)), temperature, n)
        for r, (temperature, n) in enumerate(rounds.items())
        for first in range(0, prompts, size)
    ]


def sample_groups(
    backbone: Backbone, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], budget: Budget, keys: Keys
) -> Iterator[list[Reply]]:
    """The replies of each group, group after group; a reply does not depend on how the prompts are grouped."""
    for group in sampling_groups(budget, len(prompts)):
        decoding = Decoding(budget.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, group.temperature)
        asked = [prompts[i] for i in group.prompts]
        generation, _ = generate(
            backbone, asked, decoding, keys(group.round, group.prompts, group.samples), group.samples
        )
        owners = [i for i in group.prompts for _ in range(group.samples)]
        yield [
            Reply(owner, sampled_text(tokenizer, prompts[owner], tokens), tuple(tokens), group.temperature, ended)
            for owner, tokens, ended in zip(owners, generation.reply_tokens(), generation.ended.tolist(), strict=True)
        ]
