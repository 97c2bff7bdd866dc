"""A small world with a known true reward: prompts, demonstrations of mixed quality, and a simulated annotator.

The world is fixed: thirty things with a color, a size and a place (``demo_text``).  A seed only samples the texts.
*Gold* is the true reward.  No trainer may see it; annotators see it through Bradley–Terry noise (Bradley and Terry
1952), and evaluation reports it.  It is a sum of terms in about the unit of one standard deviation over
demonstrations.  A second courtesy lowers it, but demonstrations never contain two, so a reward model cannot learn it:
an over-optimized policy gains proxy reward by repeating courtesies while gold falls (Gao et al. 2022,
arXiv 2210.10760).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

from accord.config.data import DemoConfig
from accord.data.demo_text import (
    ATTRIBUTES,
    BASE_SHARES,
    CLOSERS,
    COMMON,
    COURTEOUS,
    FACTS,
    HEDGES,
    OPENERS,
    QUESTIONS,
    RUDE,
    SENTENCES,
    SMALL_TALK,
    STATEMENTS,
    STYLES,
    VALUES,
)
from accord.io.atomic import write_jsonl
from accord.runtime.seeds import derive

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,?!'-:\n"
TEMPERATURE = 0.4  # of the annotator: the better of two demonstrations wins about .87 of the time
WRONG = 0.02  # share of demonstrations whose fact is wrong; more would make the base model forget facts
EMPTY = -4.0  # gold of an empty reply, the lowest

_SPLIT = re.compile(r"[a-z0-9'-]+|[^a-z0-9'\s-]")
_SPACING = re.compile(r"^\s|\s$|\s\s|\n|\s[.,?!:]|[.,?!:][^\s.,?!:]|[.,?!:]{2}")
_ATTRIBUTE_OF = {value: attribute for attribute, values in VALUES.items() for value in values}


def _say(attribute: str, value: str) -> str:
    return f"in the {value}" if attribute == "place" else value


# ------------------------------------------------------------------ prompts
_FACT_OF = {
    phrasing.format(t=thing): (thing, attribute)
    for thing in FACTS
    for attribute in ATTRIBUTES
    for phrasing in QUESTIONS[attribute]
}


def prompts(seed: int) -> tuple[list[str], list[str]]:
    """(training prompts, held-out prompts): of every fact, two of six phrasings are held out, chosen by ``seed``."""
    rng = random.Random(derive(seed, "prompts"))
    train: list[str] = []
    heldout: list[str] = []
    for thing in FACTS:
        for attribute in ATTRIBUTES:
            asked = [phrasing.format(t=thing) for phrasing in QUESTIONS[attribute]]
            rng.shuffle(asked)
            heldout += asked[:2]
            train += asked[2:]
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


# ------------------------------------------------------------------ texts
def compose(style: str, prompt: str, rng: random.Random, wrong: float = WRONG) -> str:
    """A reply in ``style`` to one of the world's prompts; its fact is wrong with probability ``wrong``.

    Raises KeyError for an unknown style or prompt.
    """
    thing, attribute = _FACT_OF[prompt]
    value = FACTS[thing][attribute]
    if rng.random() < wrong:
        value = rng.choice([v for v in VALUES[attribute] if v != value])
    other = rng.choice([a for a in ATTRIBUTES if a != attribute])
    said = _say(attribute, value)
    return rng.choice(STYLES[style][1]).format(
        t=thing,
        v=said,
        s=SENTENCES[attribute][0].format(t=thing, v=said),
        x=SENTENCES[other][0].format(t=thing, v=_say(other, FACTS[thing][other])),
        o=rng.choice(OPENERS),
        c=rng.choice(CLOSERS),
    )


def _style(shares: Mapping[str, float], rng: random.Random) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


_SHARES = {style: share for style, (share, _) in STYLES.items()}


def answers(prompt: str, rng: random.Random) -> str:
    """A reply from the distribution of the demonstrations."""
    return compose(_style(_SHARES, rng), prompt, rng)


def demonstrations(seed: int, n: int) -> list[dict[str, str]]:
    """``n`` rows ``{"prompt", "completion"}``; every training prompt occurs before one is repeated."""
    rng = random.Random(derive(seed, "demonstrations"))
    return [{"prompt": prompt, "completion": answers(prompt, rng)} for prompt in _cycle(prompts(seed)[0], n, rng)]


def heldout_demonstrations(seed: int, n: int) -> list[dict[str, str]]:
    """``n`` rows as in ``demonstrations``, of held-out prompts and from another random stream."""
    rng = random.Random(derive(seed, "heldout demonstrations"))
    return [{"prompt": prompt, "completion": answers(prompt, rng)} for prompt in _cycle(prompts(seed)[1], n, rng)]


def preferences(seed: int, n: int) -> list[dict[str, str]]:
    """``n`` rows ``{"prompt", "chosen", "rejected"}``: two different replies, labeled by the annotator."""
    rng = random.Random(derive(seed, "preferences"))
    rows = []
    for prompt in _cycle(prompts(seed)[0], n, rng):
        a = b = answers(prompt, rng)
        while a == b:
            b = answers(prompt, rng)
        chosen, rejected = (a, b) if annotate(prompt, a, b, rng) else (b, a)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def corpus(seed: int, n: int) -> list[dict[str, object]]:
    """``n`` rows for the base model: a quarter statements ``{"text"}``, the rest exchanges ``{"messages"}`` of two turns.

    Facts are always right here and held-out prompts never occur.
    """
    rng = random.Random(derive(seed, "corpus"))
    train = prompts(seed)[0]
    rows: list[dict[str, object]] = []
    for _ in range(n):
        kind = rng.random()
        if kind < 0.25:
            rows.append({"text": _statements(rng)})
            continue
        if kind < 0.95:
            user = rng.choice(train)
            assistant = compose(_style(BASE_SHARES, rng), user, rng, wrong=0.0)
        else:
            thing = rng.choice(list(FACTS))
            user, assistant = (line.format(t=thing) for line in rng.choice(SMALL_TALK))
        rows.append(_conversation(user, assistant))
    return rows


def heldout_corpus(seed: int, n: int) -> list[dict[str, object]]:
    """``n`` exchanges as in ``corpus``, on held-out prompts: statements and small talk would repeat the corpus."""
    rng = random.Random(derive(seed, "heldout corpus"))
    asked = _cycle(prompts(seed)[1], n, rng)
    return [_conversation(user, compose(_style(BASE_SHARES, rng), user, rng, wrong=0.0)) for user in asked]


def _conversation(user: str, assistant: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def _statements(rng: random.Random) -> str:
    """One to three facts of one thing, each a sentence."""
    thing = rng.choice(list(FACTS))
    stated = rng.sample(ATTRIBUTES, rng.randint(1, 3))
    return " ".join(rng.choice(STATEMENTS[a]).format(t=thing, v=_say(a, FACTS[thing][a])) + "." for a in stated)


def _cycle(items: Sequence[str], n: int, rng: random.Random) -> Iterator[str]:
    order: list[str] = []
    for _ in range(n):
        if not order:
            order = list(items)
            rng.shuffle(order)
        yield order.pop()


# ------------------------------------------------------------------ gold
def _sentences(tokens: Iterable[str]) -> Iterator[list[str]]:
    sentence = ["^"]
    for token in tokens:
        sentence.append(token)
        if token in ".?!":
            yield sentence
            sentence = ["^"]
    if len(sentence) > 1:
        yield sentence


def _kind(token: str) -> str:
    """A token's class: things and values share one, so that fluency does not depend on which."""
    return "{t}" if token in FACTS else _ATTRIBUTE_OF.get(token, token)


def _bigrams(tokens: Iterable[str]) -> list[tuple[str, str]]:
    return [pair for sentence in _sentences(map(_kind, tokens)) for pair in pairwise(sentence)]


def _known() -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """The world's words and bigrams, from every template filled with one value of each attribute."""
    texts = list(_FACT_OF)
    for attribute in ATTRIBUTES:
        fill = {"t": "frog", "v": _say(attribute, FACTS["frog"][attribute])}
        facts = [s.format(**fill) for s in (*SENTENCES[attribute], *STATEMENTS[attribute])]
        texts += [s + "." for s in facts]
        for template in (t for _, templates in STYLES.values() for t in templates):
            for s in SENTENCES[attribute]:
                texts.append(template.format(**fill, s=s.format(**fill), o=OPENERS[0], c=CLOSERS[0], x=facts[0]))
    texts += [*OPENERS, *CLOSERS, *(line.format(t="frog") for pair in SMALL_TALK for line in pair)]
    words = {w for text in texts for w in _SPLIT.findall(text)} | set(FACTS) | set(_ATTRIBUTE_OF)
    return frozenset(words), frozenset(pair for text in texts for pair in _bigrams(_SPLIT.findall(text)))


_WORDS, _NEIGHBORS = _known()
_COURTESIES = tuple(f" {' '.join(_SPLIT.findall(phrase))} " for phrase in (*OPENERS, *CLOSERS))


def _penalty(x: float, depth: float) -> float:
    """−x near 0, never below −depth."""
    return -depth * (1 - math.exp(-x / depth))


@cache
def _patterns(thing: str, attribute: str) -> tuple[str, ...]:
    return tuple(f" {s.format(t=thing, v=_say(attribute, '{w}'))} " for s in SENTENCES[attribute])


def _states(tokens: Sequence[str], thing: str, attribute: str) -> bool:
    """Whether the reply contains a full sentence of the asked kind, with any value."""
    text = f" {' '.join('{w}' if _ATTRIBUTE_OF.get(t) == attribute else t for t in tokens)} "
    return any(pattern in text for pattern in _patterns(thing, attribute))


def parts(prompt: str, reply: str) -> dict[str, float]:
    """The terms whose sum is gold; ``floor`` keeps the sum above that of an empty reply.

    tone       one courtesy +1, the e-th beyond it −0.8e
    manners    rude words
    firmness   hedging words
    form       a full sentence with the thing and a value of what was asked, and a full stop or exclamation mark
    topic      the thing asked about is named, no other thing and no other fact
    truth      the right value and no other +, a wrong one −
    length     best near 34 characters
    language   words, neighbors and spacing that this world knows
    variety    no content word twice

    An unknown prompt has no form, topic or truth.
    """
    tokens = _SPLIT.findall(reply)
    if not tokens:
        return {"floor": EMPTY}
    text = f" {' '.join(tokens)} "
    weighty = [t for t in tokens if t.isalnum() and t not in COMMON]
    extra = max(0, sum(t in COURTEOUS for t in tokens) - 1)
    errors = 0.4 * sum(t not in _WORDS for t in tokens) + 0.2 * sum(b not in _NEIGHBORS for b in _bigrams(tokens))
    terms = {
        "tone": (1.0 if any(c in text for c in _COURTESIES) else 0.0) + _penalty(0.4 * extra * (extra + 1), 4.0),
        "manners": _penalty(0.8 * sum(t in RUDE for t in tokens), 1.6),
        "firmness": _penalty(0.4 * sum(t in HEDGES for t in tokens), 1.4),
        "form": 0.2 if tokens[-1] in ".!" else -0.3,
        "topic": 0.0,
        "truth": 0.0,
        "length": _penalty(0.5 * math.hypot(1.0, (len(reply) - 34) / 16) - 0.5, 4.0),
        "language": _penalty(errors + 0.2 * len(_SPACING.findall(reply)), 3.0),
        "variety": _penalty(0.3 * (len(weighty) - len(set(weighty))), 2.0),
    }
    if prompt.strip() in _FACT_OF:
        thing, attribute = _FACT_OF[prompt.strip()]
        values = {t for t in tokens if _ATTRIBUTE_OF.get(t) == attribute}
        astray = len({t for t in tokens if t in FACTS and t != thing})
        aside = len({t for t in tokens if t in _ATTRIBUTE_OF} - values)
        if values:
            terms["form"] += 0.6 if _states(tokens, thing, attribute) else 0.1
        terms["topic"] = (0.3 if thing in tokens else 0.0) + _penalty(0.5 * astray + 0.2 * aside, 1.0)
        right = FACTS[thing][attribute]
        terms["truth"] = -0.3 if not values else 0.5 if values == {right} else -0.5 if right in values else -1.0
    total = sum(terms.values())
    terms["floor"] = max(0.0, EMPTY + math.exp(min(0.0, total - EMPTY - 1)) - total) if total < EMPTY + 1 else 0.0
    return terms


@lru_cache(2**16)
def gold(prompt: str, reply: str) -> float:
    """The true reward, in (−4, 2.8); −4 for an empty reply."""
    return sum(parts(prompt, reply).values())


def gold_scores(prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Gold of each reply, as a reward function (``accord.data.demo:gold_scores``)."""
    return [gold(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]


def annotate(prompt: str, a: str, b: str, rng: random.Random, temperature: float = TEMPERATURE) -> int:
    """1 where the annotator prefers ``a``, else 0: P(1) = sigmoid((gold(a) − gold(b)) / temperature).

    Raises ValueError where the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature}, expected more than 0")
    margin = (gold(prompt, a) - gold(prompt, b)) / temperature
    return int(rng.random() < 0.5 * (1 + math.tanh(margin / 2)))


# ------------------------------------------------------------------ files
def write(directory: str | Path, config: DemoConfig) -> dict[str, Path]:
    """Writes the world's files, the same bytes for the same seed and numbers of rows; returns their paths by name.

    base.jsonl ``{"text"}`` or ``{"messages"}``, sft.jsonl ``{"prompt", "completion"}``, preferences.jsonl ``{"prompt",
    "chosen", "rejected"}``, prompts.jsonl ``{"prompt"}``; heldout_base.jsonl, heldout_sft.jsonl and
    heldout_prompts.jsonl, on prompts that none of the others has.
    """
    seed = config.seed
    train, heldout = prompts(seed)
    tables: dict[str, Sequence[Mapping[str, object]]] = {
        "base": corpus(seed, config.base_rows),
        "sft": demonstrations(seed, config.sft_rows),
        "preferences": preferences(seed, config.preference_rows),
        "prompts": [{"prompt": prompt} for prompt in train],
        "heldout_prompts": [{"prompt": prompt} for prompt in heldout],
        "heldout_base": heldout_corpus(seed, config.heldout_base_rows),
        "heldout_sft": heldout_demonstrations(seed, config.heldout_sft_rows),
    }
    paths = {name: Path(directory) / f"{name}.jsonl" for name in tables}
    for name, rows in tables.items():
        write_jsonl(paths[name], rows)
    return paths
