"""Pairs: replies sampled from a model, preferred by an annotator.  What reward models and DPO are trained on.

The annotator is a function of texts that trainers never see; its choice between two replies is Bradley-Terry:
P(a over b) = σ((score_a − score_b) / noise).  Which replies meet is drawn by chance: where the best always meets the
worst, good never meets better, and a reward model may order those two the wrong way round (docs/notebook.md).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from accord.config.data import PairsConfig
from accord.config.load import load_function
from accord.data.prompts import load_prompts
from accord.data.rows import write_jsonl
from accord.errors import UserError
from accord.models.open import frozen, module
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import TextReward, call_function
from accord.runtime.device import autocast, resolve_device
from accord.runtime.run import Run
from accord.training.artifact import open_model, open_tokenizer
from accord.training.describe import model_in_words


def prefer(a: float, b: float, noise: float, rng: random.Random) -> bool:
    """Whether the annotator takes the reply scored ``a`` over the one scored ``b``."""
    if noise == 0:
        return a > b
    gap = max(-60.0, min(60.0, (a - b) / noise))
    return rng.random() < 1.0 / (1.0 + math.exp(-gap))


def pair_up(
    texts: Sequence[str], scores: Sequence[float], config: PairsConfig, rng: random.Random
) -> list[tuple[str, str]]:
    """(chosen, rejected) from one prompt's replies; equal texts, equal scores and gaps under ``min_gap`` are left out."""
    order = rng.sample(range(len(texts)), len(texts))
    if config.matching == "extremes":
        order.sort(key=lambda i: -scores[i])
    meetings = [(order[k], order[-1 - k]) for k in range(min(config.pairs, len(order) // 2))]
    if config.matching == "all":
        meetings = list(combinations(order, 2))
    made = []
    for a, b in meetings:
        gap = abs(scores[a] - scores[b])
        if gap == 0 or gap < config.min_gap or texts[a] == texts[b]:
            continue
        won = prefer(scores[a], scores[b], config.noise, rng)
        made.append((texts[a], texts[b]) if won else (texts[b], texts[a]))
    return made


def train(config: PairsConfig, run: Run) -> dict[str, float]:
    """Writes ``preferences.jsonl`` (or ``sft.jsonl``) into the stage's folder; returns counts."""
    device = resolve_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = frozen(open_model(config.model.base_model, device))
    room = config.model.prompt_room
    data = load_prompts(config.prompts, tokenizer, room, limit=config.limit)
    asked = data.prompts
    if config.instruction:
        from accord.data.chat import prompt_ids

        asked = tuple(tuple(prompt_ids(tokenizer, f"{text} {config.instruction}")) for text in data.texts)
    annotator = load_function(config.annotator, "annotator")
    run.plan(
        {
            "model": model_in_words(module(backbone), config.model.base_model),
            "prompts": data.report.describe(),
            "replies": f"{config.replies} to each prompt, up to {config.max_new_tokens} tokens, at temperatures"
            f" {', '.join(map(str, config.temperatures))}",
            "annotator": f"{config.annotator}, noise {config.noise}",
            "keeps": f"up to {config.pairs} pairs a prompt" if config.keep == "pairs" else "replies that ended",
        }
    )
    drawn = Counter(config.temperatures[r % len(config.temperatures)] for r in range(config.replies))
    size = max(1, config.batch_size // max(drawn.values()))  # prompts
    groups = [range(i, min(i + size, len(asked))) for i in range(0, len(asked), size)]
    replies: list[list[str]] = [[] for _ in asked]
    dropped = 0
    run.resumable = False
    run.begin(len(groups) * len(drawn))
    for r, (temperature, samples) in enumerate(drawn.items()):
        decoding = Decoding(config.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, temperature)
        for g, rows in enumerate(groups):
            generator = run.generator("replies", r, g)
            with autocast(device, config.precision):
                generation, _ = generate(backbone, [asked[i] for i in rows], decoding, generator, samples)
            owners = [i for i in rows for _ in range(samples)]
            for i, tokens, ended in zip(owners, generation.replies(), generation.ended.tolist(), strict=True):
                text = tokenizer.decode(tokens).strip()
                if ended and text:
                    replies[i].append(text)
                else:
                    dropped += 1
            run.tick({"dropped": float(dropped)})
            run.check_stop()
    written = write_rows(config, run, data.texts, replies, annotator)
    counts = ", ".join(f"{n:.0f} rows in {name}.jsonl" for name, n in written.items())
    run.say(f"wrote {counts}; {dropped} replies did not end within the budget and were left out")
    return {**written, "dropped": float(dropped)}


def write_rows(
    config: PairsConfig, run: Run, prompts: Sequence[str], replies: Sequence[Sequence[str]], annotator: TextReward
) -> dict[str, float]:
    """The files of the stage.  Raises UserError where no row is left."""
    if config.keep == "demonstrations":
        both = zip(prompts, replies, strict=True)
        files = {"sft.jsonl": [{"prompt": p, "completion": t} for p, some in both for t in dict.fromkeys(some)]}
    else:
        files = _preferences(config, run, prompts, replies, annotator)
    for name, rows in files.items():
        if not rows:
            raise UserError(
                f"{run.name}: no rows came out for {name}; more prompts, more replies or a smaller min_gap help."
            )
        write_jsonl(run.directory / name, rows)
    return {name.removesuffix(".jsonl"): float(len(rows)) for name, rows in files.items()}


def _preferences(
    config: PairsConfig, run: Run, prompts: Sequence[str], replies: Sequence[Sequence[str]], annotator: TextReward
) -> dict[str, list[dict[str, str]]]:
    rng = random.Random(run.derive("annotator"))
    flat = [(p, t) for p, some in zip(prompts, replies, strict=True) for t in some]
    scores = call_function(annotator, config.annotator, [p for p, _ in flat], [t for _, t in flat]).tolist()
    files: dict[str, list[dict[str, str]]] = {"preferences.jsonl": []}
    if config.heldout_fraction > 0:
        files["heldout_preferences.jsonl"] = []
    place = 0
    for prompt, some in zip(prompts, replies, strict=True):
        mine = scores[place : place + len(some)]
        place += len(some)
        held = run.derive(f"held out {prompt}") % 10**6 < config.heldout_fraction * 10**6
        made = pair_up(some, mine, config, rng)
        rows = [{"prompt": prompt, "chosen": c, "rejected": r} for c, r in made]
        files["heldout_preferences.jsonl" if held else "preferences.jsonl"] += rows
    return files
