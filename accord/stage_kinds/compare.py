"""The stage ``compare``: several models reply to the same held-out prompts and are measured in the same way."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from accord.config.evaluation import RESAMPLED, CompareConfig, RewardCompareConfig
from accord.config.functions import load_scores
from accord.data.formats.rows import FormattedRows
from accord.data.prompts import PromptData, load_prompts
from accord.data.rows import preference_fields
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.evaluation.comparison import Answers, Gold, Measures, Sampling, compare_with_sft, measure, sample_replies
from accord.evaluation.report import (
    WIDE,
    ModelRow,
    markdown_samples,
    markdown_table,
    side_by_side,
    table,
    write_results,
)
from accord.evaluation.reward_models import reward_figures
from accord.io.atomic import write_text
from accord.io.finite_json import figures, shown
from accord.models.backbone import Backbone
from accord.models.reward import RewardModel
from accord.registry.manifest import versions
from accord.rollout.generate import Decoding
from accord.rollout.noise import reply_keys
from accord.rollout.score import open_reward
from accord.runtime.console import console
from accord.runtime.device import resolve_device
from accord.runtime.optional import optional
from accord.runtime.run import Run
from accord.stage_kinds.compare_reward import run_compare_reward
from accord.training.artifact import open_policy, open_tokenizer, require_fit, require_same_tokens

PROMPT_TOKENS = 1024


def run_compare(config: CompareConfig | RewardCompareConfig, run: Run) -> dict[str, float]:
    """Compares models, or judges a reward model alone, as the config says; returns the last metrics."""
    return run_compare_reward(config, run) if isinstance(config, RewardCompareConfig) else compare_models(config, run)


def compare_models(config: CompareConfig, run: Run) -> dict[str, float]:
    """Writes ``results.json``, ``results.md`` and ``results.txt``, prints table and samples; returns the gold means.

    Raises UserError for fewer than two different prompts, and where the models do not read the same tokens.
    """
    device = resolve_device(config.device)
    gold = Gold(load_scores(config.gold, "gold"), config.gold)
    sft = config.models["sft"]
    tokenizer = open_tokenizer(sft)
    named = {f"models.{label}": folder for label, folder in config.models.items()}
    for key, folder in {**named, "reference": config.reference, "base": config.base or sft}.items():
        require_same_tokens(key, folder, sft, tokenizer)
    data = load_prompts(config.prompts, tokenizer, PROMPT_TOKENS, limit=config.limit)
    if (different := len(set(data.texts))) < 2:
        raise UserError(f"{config.prompts}: intervals over prompts need at least 2 different ones, found {different}.")
    check_models(config, tokenizer, data.longest + config.max_new_tokens)
    run.plan(plan(config, data))
    decoding = Decoding(config.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, config.temperature)
    sampling = Sampling(decoding, config.replies, config.batch_size)
    reference = _open(config.reference, tokenizer, device)
    base = _open(config.base, tokenizer, device) if config.base else None
    proxy = open_reward(config.reward_model, tokenizer, device, "reward_model") if config.reward_model else None
    measures = Measures(gold, reference, base, config.temperature, proxy)
    folders = {**config.models, **({RESAMPLED: config.models["sft"]} if config.redraw else {})}
    answers: dict[str, Answers] = {}
    run.begin(len(folders), resumable=False)
    for name, folder in folders.items():
        model = reference if folder == config.reference else _open(folder, tokenizer, device)
        generations = sample_replies(model, data, sampling, partial(reply_keys, run.seed, f"replies {name}", 0))
        answers[name] = measure(generations, tokenizer, data, measures)
        run.tick({"gold": sum(map(sum, answers[name].gold)) / (config.replies * len(data))})
        run.check_stop()
    results: dict[str, Any] = {name: compare_with_sft(a, answers["sft"], run.seed) for name, a in answers.items()}
    if RESAMPLED in results:
        results["sft_again"] = results.pop(RESAMPLED)
    if config.reward_model:
        results["reward"] = reward_figures(config.reward_model, config.pairs, gold, device)
    results |= {"seed": config.seed, "versions": versions(), "prompts": len(data), "replies_per_prompt": config.replies}
    first = {name: answers[name].texts[:: config.replies] for name in config.models}
    write_report(run, config, results, list(data.texts), first)
    return figures({name: results[name]["gold_mean"] for name in config.models})


def check_models(config: CompareConfig, tokenizer: Tokenizer, longest: int) -> None:
    """Opens every model once, one at a time, and reads the reward model's pairs, before the first reply is sampled.

    Raises UserError.
    """
    for folder in dict.fromkeys([*config.models.values(), config.reference, *([config.base] if config.base else [])]):
        require_fit(folder, _open(folder, tokenizer, torch.device("cpu")), tokenizer, longest)
    if config.reward_model:
        RewardModel.open(config.reward_model)
        for where, row in FormattedRows(config.pairs, "preferences"):
            preference_fields(row, where)


def plan(config: CompareConfig, data: PromptData) -> dict[str, str]:
    """What the stage will do, for the screen."""
    return {
        "models": ", ".join(f"{name} ({folder})" for name, folder in config.models.items()),
        "prompts": data.report.describe(),
        "replies": f"{config.replies} to each prompt, up to {config.max_new_tokens} tokens, temperature {config.temperature}",
        "gold": config.gold,
    }


def _open(folder: str, tokenizer: Tokenizer, device: torch.device) -> Backbone:
    return open_policy(folder, tokenizer, device).requires_grad_(False)


def write_report(
    run: Run, config: CompareConfig, results: dict[str, Any], prompts: list[str], replies: dict[str, list[str]]
) -> None:
    """Writes the files and prints table and samples; ``replies`` holds for each model one reply per prompt."""
    rows = [_row(name, results[name]) for name in config.models]
    if "sft_again" in results:
        rows.append(_row("sft, resampled (null baseline)", results["sft_again"]))
    write_results(run.directory / "results.json", results)
    places = torch.randperm(len(prompts), generator=run.generator("samples")).tolist()
    page = _select(prompts, replies, places[: max(10, config.samples)])
    markdown = [markdown_table(rows), markdown_samples(*page)]
    with optional("results.md", run.say):
        write_text(run.directory / "results.md", "\n\n".join(markdown) + "\n")
    screen = _select(prompts, replies, places[: config.samples])
    wide = console.width if console.is_terminal else WIDE
    text = f"\n{table(rows, wide)}\n\n{side_by_side(*screen, min(console.width, 120))}"
    if "reward" in results:
        reward = results["reward"]
        text += (
            f"\nreward model: {shown(reward['gold_agreement'], '.2f')} agreement with gold,"
            f" {shown(reward['heldout_accuracy'], '.2f')} with the annotator's labels, {reward['n_heldout']} held-out pairs"
        )
    run.say(text)
    with optional("results.txt", run.say):
        write_text(run.directory / "results.txt", text + "\n")


def _select(
    prompts: list[str], replies: dict[str, list[str]], places: list[int]
) -> tuple[list[str], dict[str, list[str]]]:
    return [prompts[i] for i in places], {name: [texts[i] for i in places] for name, texts in replies.items()}


def _row(name: str, numbers: dict[str, Any]) -> ModelRow:
    is_sft = name == "sft"
    return ModelRow(
        name,
        numbers["gold_mean"],
        numbers["gold_ci95"],
        None if is_sft else numbers["win_rate_vs_sft"],
        None if is_sft else numbers["win_rate_ci95"],
        numbers["kl_mean"],
        numbers["length_mean"],
        numbers["eos_rate"],
    )
