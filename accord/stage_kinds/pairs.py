"""The stage ``pairs``: samples replies from a model and labels preferences between them, to train reward models and DPO.

Preferences are simulated from a score that trainers never see (``annotator.py``).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from accord.config.data import PairsConfig
from accord.config.functions import TextScores, load_scores, scores_of
from accord.data.chat import prompt_ids
from accord.data.heldout import is_heldout
from accord.data.prompts import PromptData, load_prompts
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.models.backbone import Backbone
from accord.rollout.generate import Decoding, generate
from accord.rollout.noise import reply_keys
from accord.runtime.device import autocast, resolve_device
from accord.runtime.run import Run
from accord.stage_kinds.annotator import pair_up
from accord.training.artifact import open_model, open_tokenizer, require_fit
from accord.training.describe import describe_model
from accord.types import Generation


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are sampled together: ``samples`` replies to each, at one temperature."""

    round: int
    """Index among the distinct temperatures."""
    prompts: range
    temperature: float
    samples: int


def run_pairs(config: PairsConfig, run: Run) -> dict[str, float]:
    """Writes ``preferences.jsonl`` (or ``sft.jsonl``) into the stage's folder; returns counts."""
    device = resolve_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_model(config.model.base_model, device).requires_grad_(False)
    data = load_prompts(config.prompts, tokenizer, config.model.prompt_room, limit=config.limit)
    prompts = data.prompts
    if config.instruction:
        prompts = tuple(tuple(prompt_ids(tokenizer, f"{text} {config.instruction}")) for text in data.texts)
    require_fit(config.model.base_model, backbone, tokenizer, max(map(len, prompts)) + config.max_new_tokens)
    annotator = load_scores(config.annotator, "annotator")
    run.plan(plan(config, backbone, data))
    groups = sampling_groups(config, len(prompts))
    replies: list[list[str]] = [[] for _ in prompts]
    dropped = 0
    run.begin(len(groups), resumable=False)
    for group in groups:
        decoding = Decoding(config.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, group.temperature)
        keys = reply_keys(run.seed, "replies", group.round, group.prompts, group.samples)
        with autocast(device, config.precision):
            asked = [prompts[i] for i in group.prompts]
            generation, _ = generate(backbone, asked, decoding, keys, group.samples)
        owners = [i for i in group.prompts for _ in range(group.samples)]
        for i, text in zip(owners, ended_texts(generation, tokenizer), strict=True):
            if text:
                replies[i].append(text)
            else:
                dropped += 1
        run.tick({"dropped": float(dropped)})
        run.check_stop()
    written = write_rows(config, run, data.texts, replies, annotator)
    counts = ", ".join(f"{n:.0f} rows in {name}.jsonl" for name, n in written.items())
    run.say(f"wrote {counts}; {dropped} replies did not end within max_new_tokens and were dropped")
    return {**written, "dropped": float(dropped)}


def plan(config: PairsConfig, backbone: Backbone, data: PromptData) -> dict[str, str]:
    """What the stage will do, for the screen."""
    return {
        "model": describe_model(backbone, config.model.base_model),
        "prompts": data.report.describe(),
        "replies": f"{config.replies} to each prompt, up to {config.max_new_tokens} tokens, at temperatures"
        f" {', '.join(map(str, config.temperatures))}",
        "annotator": f"{config.annotator}, noise {config.noise}",
        "keeps": f"up to {config.pairs} pairs a prompt" if config.keep == "pairs" else "replies that ended",
    }


def sampling_groups(config: PairsConfig, prompts: int) -> list[Group]:
    """All prompts at the first temperature, then all at the next, in groups of about ``batch_size`` replies."""
    samples = Counter(config.temperatures[r % len(config.temperatures)] for r in range(config.replies))
    size = max(1, config.batch_size // max(samples.values()))  # prompts
    return [
        Group(r, range(first, min(first + size, prompts)), temperature, n)
        for r, (temperature, n) in enumerate(samples.items())
        for first in range(0, prompts, size)
    ]


def ended_texts(generation: Generation, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each reply; empty where it did not end."""
    for tokens, ended in zip(generation.reply_tokens(), generation.ended.tolist(), strict=True):
        yield tokenizer.decode(tokens).strip() if ended else ""


def write_rows(
    config: PairsConfig, run: Run, prompts: Sequence[str], replies: Sequence[Sequence[str]], annotator: TextScores
) -> dict[str, float]:
    """Writes the stage's files; returns the rows in each.  Raises UserError where a file would be empty."""
    if config.keep == "demonstrations":
        both = zip(prompts, replies, strict=True)
        files = {"sft.jsonl": [{"prompt": p, "completion": t} for p, some in both for t in dict.fromkeys(some)]}
    else:
        files = _preferences(config, run, prompts, replies, annotator)
    for name, rows in files.items():
        if not rows:
            raise UserError(f"{run.name}: no rows for {name}: {_why_empty(name, config, replies)}.")
        write_jsonl(run.directory / name, rows)
    return {name.removesuffix(".jsonl"): float(len(rows)) for name, rows in files.items()}


def _why_empty(name: str, config: PairsConfig, replies: Sequence[Sequence[str]]) -> str:
    """Why a file has no rows, and what to change."""
    ended, comparable = sum(map(len, replies)), sum(len(set(some)) > 1 for some in replies)
    if not ended:
        return f"no reply ended within {config.max_new_tokens} tokens; raise max_new_tokens, or train the model longer"
    if not comparable:
        return f"{ended} replies ended, and no prompt has two different ones; use more replies or a higher temperature"
    if name == "heldout_preferences.jsonl":
        return f"heldout_fraction is {config.heldout_fraction}; raise it or use more prompts, or set it to 0"
    return (
        f"{comparable} of {len(replies)} prompts have two different replies that ended, but their scores are equal, differ"
        f" by less than min_gap ({config.min_gap}), or their prompts are held out; use another annotator or more prompts"
    )


def _preferences(
    config: PairsConfig, run: Run, prompts: Sequence[str], replies: Sequence[Sequence[str]], annotator: TextScores
) -> dict[str, list[dict[str, str]]]:
    rng = random.Random(run.derive("annotator"))
    flat = [(p, t) for p, some in zip(prompts, replies, strict=True) for t in some]
    scores = iter(scores_of(annotator, config.annotator, [p for p, _ in flat], [t for _, t in flat]))
    files: dict[str, list[dict[str, str]]] = {"preferences.jsonl": []}
    if config.heldout_fraction > 0:
        files["heldout_preferences.jsonl"] = []
    for prompt, some in zip(prompts, replies, strict=True):
        heldout = is_heldout(prompt, config.heldout_fraction, run.seed)
        pairs = pair_up(some, [next(scores) for _ in some], config, rng)
        rows = [{"prompt": prompt, "chosen": c, "rejected": r} for c, r in pairs]
        files["heldout_preferences.jsonl" if heldout else "preferences.jsonl"] += rows
    return files
