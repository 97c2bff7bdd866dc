"""The stage ``sample``: replies of one or several models to prompts, for judges to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from accord.config.feedback import SampleConfig
from accord.data.prompts import PromptData, load_prompts
from accord.data.rows import Prompt
from accord.data.samples import Candidate, Sample
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.rollout.noise import reply_keys
from accord.rollout.sampling import Reply, budget_of, prompts_to_answer, sample_groups, sampling_groups
from accord.runtime.device import autocast, resolve_device
from accord.runtime.run import Run
from accord.training.artifact import open_policy, open_tokenizer, require_fit
from accord.training.describe import describe_model


@dataclass(frozen=True, slots=True)
class Source:
    """A model to sample from, with its tokens of the prompts."""

    label: str
    folder: str
    digest: str
    purpose: str
    """Of its sampling noise: several models draw independently, one model as ``pairs`` does."""
    tokenizer: Tokenizer
    tokenizer_digest: str
    prompts: tuple[tuple[int, ...], ...]


def run_sample(config: SampleConfig, run: Run) -> dict[str, float]:
    """Writes ``samples.jsonl``, a row for each prompt with all candidates; returns counts."""
    device = resolve_device(config.device)
    sources, data, described = open_sources(config, run)
    run.plan(
        {
            **{f"model {source.label}": words for source, words in zip(sources, described, strict=True)},
            "prompts": data.report.describe(),
            "replies": budget_of(config).describe() + (", of each model" if len(sources) > 1 else ""),
        }
    )
    budget = budget_of(config)
    candidates: list[list[Candidate]] = [[] for _ in data.sources]
    cut = 0
    run.begin(len(sources) * len(sampling_groups(budget, len(data))), resumable=False)
    for source in sources:
        backbone = open_policy(source.folder, source.tokenizer, device).requires_grad_(False)
        replies: list[list[Reply]] = [[] for _ in data.sources]
        keys = partial(reply_keys, run.seed, source.purpose)
        with autocast(device, config.precision):
            for group in sample_groups(backbone, source.tokenizer, source.prompts, budget, keys):
                for reply in group:
                    replies[reply.prompt].append(reply)
                    cut += not reply.ended
                run.tick({"not_ended": float(cut)})
                run.check_stop()
        for mine, sampled in zip(candidates, replies, strict=True):
            mine += [_candidate(source, run.seed, number, reply) for number, reply in enumerate(sampled)]
    samples = [Sample(prompt, tuple(mine)) for prompt, mine in zip(data.sources, candidates, strict=True)]
    write_jsonl(run.directory / "samples.jsonl", (sample.as_row() for sample in samples))
    usable = sum(len(sample.usable().candidates) for sample in samples)
    run.say(
        f"wrote {len(samples)} prompts with {sum(map(len, candidates))} replies to samples.jsonl; {usable} of them ended and"
        " have a text, and can be judged"
    )
    return {"prompts": float(len(samples)), "replies": float(sum(map(len, candidates))), "not_ended": float(cut)}


def open_sources(config: SampleConfig, run: Run) -> tuple[list[Source], PromptData, list[str]]:
    """The models with their prompts, the prompts as in the file, and each model in words.

    Opens every model once, one at a time.  Raises UserError before the first reply is sampled.
    """
    named = config.models or {_label(config.model.base_model): config.model.base_model}
    sources: list[Source] = []
    described = []
    found: PromptData | None = None
    for label, folder in named.items():
        tokenizer = open_tokenizer(folder)
        data = load_prompts(config.prompts, tokenizer, config.model.prompt_room, limit=config.limit)
        _require_same(found, data, config.prompts, folder)
        found = found or data
        prompts = prompts_to_answer(data, tokenizer, config.instruction)
        backbone = open_policy(folder, tokenizer, torch.device("cpu"))
        require_fit(folder, backbone, tokenizer, max(map(len, prompts)) + config.max_new_tokens)
        described.append(describe_model(backbone, folder))
        key = f"models.{label}" if config.models else "model.base_model"
        purpose = f"replies {label}" if config.models else "replies"
        digest = run.parents.get(key, folder)
        sources.append(Source(label, folder, digest, purpose, tokenizer, tokenizer.digest(), prompts))
    assert found is not None, "there is at least one model"
    return sources, found, described


def _require_same(found: PromptData | None, data: PromptData, path: str, folder: str) -> None:
    """Raises UserError where a model's tokenizer leaves prompts without tokens that another one reads."""
    if found is not None and _prompts(found.sources) != _prompts(data.sources):
        raise UserError(
            f"{path}: {folder} has no tokens for some of these prompts that another model reads; remove them."
        )


def _prompts(sources: Sequence[Prompt]) -> list[Prompt]:
    return [source if isinstance(source, str) else list(source) for source in sources]


def _label(folder: str) -> str:
    """``sft`` for ``checkpoints/rlhf/sft/model``."""
    path = Path(folder)
    return (path.parent.name if path.name == "model" else path.name) or folder


def _candidate(source: Source, seed: int, number: int, reply: Reply) -> Candidate:
    return Candidate(
        *(reply.text, reply.tokens, source.label, source.digest, reply.temperature, reply.ended, seed),
        tokenizer=source.tokenizer_digest,
        sample=number,
    )
