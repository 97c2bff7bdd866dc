"""The stage ``pairs``: sample and judge in one, with a score function as the judge.

Samples replies of one model and labels preferences between them, to train reward models and DPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from accord.config.data import PairsConfig
from accord.data.messages import template_columns
from accord.data.prompts import PromptData, load_prompts
from accord.data.sampled_ids import sampled_column
from accord.data.samples import Candidate, Sample
from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.models.backbone import Backbone
from accord.rollout.noise import reply_keys
from accord.rollout.sampling import budget_of, prompts_to_answer, sample_groups, sampling_groups
from accord.runtime.device import autocast, resolve_device
from accord.runtime.run import Run
from accord.stage_kinds.judges.judgment import preference_files
from accord.stage_kinds.judges.matching import Matching
from accord.stage_kinds.judges.scores import ScoreJudge, function_scores
from accord.training.artifact import open_policy, open_tokenizer, require_fit
from accord.training.describe import describe_model


def run_pairs(config: PairsConfig, run: Run) -> dict[str, float]:
    """Writes ``preferences.jsonl`` (or ``sft.jsonl``) into the stage's folder; returns counts."""
    device = resolve_device(config.device)
    tokenizer = open_tokenizer(config.model.base_model)
    backbone = open_policy(config.model.base_model, tokenizer, device).requires_grad_(False)
    data = load_prompts(config.prompts, tokenizer, config.model.prompt_room, limit=config.limit)
    prompts = prompts_to_answer(data, tokenizer, config.instruction)
    require_fit(config.model.base_model, backbone, tokenizer, max(map(len, prompts)) + config.max_new_tokens)
    scores = function_scores(config.annotator, "annotator")
    run.plan(plan(config, backbone, data))
    budget = budget_of(config)
    found: list[list[Candidate]] = [[] for _ in prompts]
    digest = tokenizer.digest()
    dropped = 0
    run.begin(len(sampling_groups(budget, len(prompts))), resumable=False)
    with autocast(device, config.precision):
        for replies in sample_groups(backbone, tokenizer, prompts, budget, partial(reply_keys, run.seed, "replies")):
            for reply in replies:
                if reply.ended and reply.text.strip():
                    found[reply.prompt].append(Candidate(reply.text, reply.tokens, tokenizer=digest))
                else:
                    dropped += 1
            run.tick({"dropped": float(dropped)})
            run.check_stop()
    samples = [Sample(p, tuple(some)) for p, some in zip(data.sources, found, strict=True)]
    matching = Matching(config.matching, config.pairs)
    judge = ScoreJudge(config.annotator, scores, matching, config.noise, config.min_gap, run.derive("annotator"))
    written = write_rows(config, run, samples, judge)
    counts = ", ".join(f"{n:.0f} rows in {name}.jsonl" for name, n in written.items())
    run.say(f"wrote {counts}; {dropped} replies did not end within max_new_tokens and were dropped")
    return {**written, "dropped": float(dropped)}


def plan(config: PairsConfig, backbone: Backbone, data: PromptData) -> dict[str, str]:
    """What the stage will do, for the screen."""
    return {
        "model": describe_model(backbone, config.model.base_model),
        "prompts": data.report.describe(),
        "replies": budget_of(config).describe(),
        "annotator": f"{config.annotator}, noise {config.noise}",
        "keeps": "replies that ended"
        if config.keep == "demonstrations"
        else f"pairs: {Matching(config.matching, config.pairs).describe()}",
    }


def write_rows(config: PairsConfig, run: Run, samples: Sequence[Sample], judge: ScoreJudge) -> dict[str, float]:
    """Writes the stage's files; returns the rows in each.  Raises UserError where a file would be empty."""
    files: dict[str, list[dict[str, Any]]]
    if config.keep == "demonstrations":
        files = {"sft.jsonl": [row for sample in samples for row in demonstrations(sample)]}
    else:
        files = preference_files(samples, judge.judge(samples), "drop", config.heldout_fraction, run.seed)
    for name, found in files.items():
        if not found:
            raise UserError(f"{run.name}: no rows for {name}: {_why_empty(name, config, samples)}.")
        write_jsonl(run.directory / name, found)
    return {name.removesuffix(".jsonl"): float(len(found)) for name, found in files.items()}


def demonstrations(sample: Sample) -> list[dict[str, Any]]:
    """The rows of ``sft.jsonl``: each different reply to a prompt once, with its token ids."""
    asked = {"prompt": sample.prompt, **template_columns(sample.prompt)}
    distinct = {candidate.text: candidate for candidate in reversed(sample.candidates)}
    replies = (distinct[text] for text in dict.fromkeys(candidate.text for candidate in sample.candidates))
    return [{**asked, "completion": reply.text, **sampled_column({"completion": reply})} for reply in replies]


def _why_empty(name: str, config: PairsConfig, samples: Sequence[Sample]) -> str:
    """Why a file has no rows, and what to change."""
    ended = sum(len(s.candidates) for s in samples)
    comparable = sum(len({c.text for c in s.candidates}) > 1 for s in samples)
    if not ended:
        return f"no reply ended within {config.max_new_tokens} tokens; raise max_new_tokens, or train the model longer"
    if not comparable:
        return f"{ended} replies ended, and no prompt has two different ones; use more replies or a higher temperature"
    if name == "heldout_preferences.jsonl":
        return f"heldout_fraction is {config.heldout_fraction}; raise it or use more prompts, or set it to 0"
    return (
        f"{comparable} of {len(samples)} prompts have two different replies that ended, but their scores are equal, differ"
        f" by less than min_gap ({config.min_gap}), or their prompts are held out; use another annotator or more prompts"
    )
