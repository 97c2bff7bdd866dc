"""Several models on the same held-out prompts: gold reward, win rate, KL, length, endings, fluency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from accord.config.evaluation import CompareConfig
from accord.config.load import load_function
from accord.data.chat import prompt_ids, reply_ids
from accord.data.packing import pack_continuations
from accord.data.prompts import PromptData, load_prompts, plain_text
from accord.data.rows import Where, preference_fields, read_jsonl
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.evaluation.metrics import (
    bootstrap_ci,
    distinct_n,
    effect_in_sd,
    length_correlation,
    length_matched_accuracy,
    pair_agreement,
    paired_difference,
    win_rate,
)
from accord.evaluation.report import ModelRow, markdown_samples, markdown_table, side_by_side, table, write_results
from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.models.open import frozen, module, open_backbone
from accord.models.reward import RewardModel
from accord.registry.manifest import versions
from accord.rollout.collect import pack_texts, spread
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import TextReward, call_function
from accord.runtime.device import resolve_device
from accord.runtime.run import Run, console
from accord.types import Generation


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model wrote: ``k`` replies to each prompt, row p·k + j being reply j to prompt p."""

    texts: list[str]
    gold: list[list[float]]  # per prompt
    kl: list[float]  # per reply, nats
    lengths: list[int]
    ended: list[bool]
    base_nll: list[float]  # per reply, nats a token under the base; empty without one


def answer(
    backbone: Backbone,
    tokenizer: Tokenizer,
    data: PromptData,
    decoding: Decoding,
    k: int,
    size: int,
    seed: Callable[[int], torch.Generator],
) -> list[Generation]:
    """``k`` replies to each prompt, in groups of about ``size`` replies."""
    step = max(1, size // k)
    return [
        generate(backbone, data.prompts[i : i + step], decoding, seed(i), k)[0]
        for i in range(0, len(data.prompts), step)
    ]


@torch.no_grad()
def sums_under(
    backbone: Backbone, generations: Sequence[Generation], temperature: float, size: int = 64
) -> list[float]:
    """Log-probs of whole replies under another model."""
    sums = []
    for g in generations:
        for rows in torch.split(torch.arange(len(g.prompts)), size):
            mask = g.mask[rows]
            packed, chosen = pack_texts([g.prompts[int(r)] for r in rows], g.responses[rows], mask)
            sums += spread(reply_logprobs(backbone, packed, chosen, temperature).float(), mask).sum(1).tolist()
    return sums


def measure(
    generations: Sequence[Generation],
    tokenizer: Tokenizer,
    data: PromptData,
    k: int,
    gold: TextReward,
    gold_name: str,
    reference: Backbone,
    base: Backbone | None,
    temperature: float,
) -> Answers:
    """Everything that is said of one model's replies."""
    texts = [tokenizer.decode(r).strip() for g in generations for r in g.replies()]
    asked = [text for text in data.texts for _ in range(k)]
    scores = call_function(gold, gold_name, asked, texts).tolist()
    own = [float(x) for g in generations for x in g.logprobs.sum(1)]
    lengths = [int(n) for g in generations for n in g.lengths]
    under = sums_under(reference, generations, temperature)
    nll = [] if base is None else [-s / n for s, n in zip(sums_under(base, generations, 1.0), lengths, strict=True)]
    return Answers(
        texts,
        [scores[i : i + k] for i in range(0, len(scores), k)],
        [a - b for a, b in zip(own, under, strict=True)],
        lengths,
        [bool(e) for g in generations for e in g.ended],
        nll,
    )


def figures(ours: Answers, sft: Answers, seed: int) -> dict[str, Any]:
    """The numbers of one model, against the SFT model's own replies; None where one is undefined."""
    mean, low, high = bootstrap_ci(ours.gold, seed)
    rate, rate_low, rate_high = win_rate(ours.gold, sft.gold, seed)
    gain, gain_low, gain_high = paired_difference(ours.gold, sft.gold, seed)
    varied = len({sum(row) / len(row) for row in sft.gold}) > 1  # else there is no deviation to measure in
    worded = any(len(text.split()) > 1 for text in ours.texts)  # a collapsed model may write nothing
    result: dict[str, Any] = {
        "gold_mean": mean,
        "gold_ci95": [low, high],
        "kl_mean": sum(ours.kl) / len(ours.kl),
        "length_mean": sum(ours.lengths) / len(ours.lengths),
        "eos_rate": sum(ours.ended) / len(ours.ended),
        "win_rate_vs_sft": rate,
        "win_rate_ci95": [rate_low, rate_high],
        "gain_vs_sft": gain,
        "gain_ci95": [gain_low, gain_high],
        "gain_in_sft_sd": effect_in_sd(ours.gold, sft.gold) if varied else None,
        "distinct_2": distinct_n(ours.texts, 2) if worded else None,
    }
    if ours.base_nll:
        result["base_nll"] = sum(ours.base_nll) / len(ours.base_nll)
    return result


@torch.no_grad()
def reward_figures(folder: str, pairs_file: str, room: int, gold: TextReward, gold_name: str) -> dict[str, Any]:
    """Accuracy on the annotator's held-out labels, and agreement with gold on the same pairs."""
    model = RewardModel.open(folder).eval().requires_grad_(False)
    tokenizer = Tokenizer.open(folder)
    fields = [preference_fields(row, Where(pairs_file, n)) for n, row in read_jsonl(pairs_file)]
    prompts, sides = [plain_text(f[0]) for f in fields], ([f[1] for f in fields], [f[2] for f in fields])
    scores: list[list[float]] = []
    sizes: list[list[int]] = []
    for side in sides:
        tokens = [reply_ids(tokenizer, f[0], text) for f, text in zip(fields, side, strict=True)]
        asked = [prompt_ids(tokenizer, f[0])[-room:] for f in fields]
        sizes.append([len(t) for t in tokens])
        scores.append([])
        for rows in torch.split(torch.arange(len(fields)), 64):
            packed, segments = pack_continuations([asked[int(r)] for r in rows], [tokens[int(r)] for r in rows])
            scores[-1] += model(packed, segments).tolist()
    true = [call_function(gold, gold_name, prompts, list(side)).tolist() for side in sides]
    labels = [[1.0, 0.0]] * len(fields)
    matched = length_matched_accuracy(scores[0], scores[1], sizes[0], sizes[1])
    return {
        "heldout_accuracy": pair_agreement(list(zip(*scores, strict=True)), labels),
        "gold_agreement": pair_agreement(list(zip(*scores, strict=True)), list(zip(*true, strict=True))),
        "label_agreement_with_gold": pair_agreement(labels, list(zip(*true, strict=True))),
        "n_heldout": len(fields),
        "length_correlation": length_correlation(scores[0] + scores[1], sizes[0] + sizes[1]),
        "length_matched_accuracy": matched.accuracy,
        "length_matched_pairs": matched.n,
    }


def compare(config: CompareConfig, run: Run) -> dict[str, float]:
    """Writes ``results.json``, ``results.md`` and prints table and samples; returns the models' gold means.

    Raises UserError where there is one prompt only.
    """
    device = resolve_device(config.device)
    gold = load_function(config.gold, "gold")
    tokenizer = Tokenizer.open(config.models["sft"])
    data = load_prompts(config.prompts, tokenizer, 1024, limit=config.limit)
    if len(data) < 2:
        raise UserError(f"{config.prompts}: intervals over prompts need at least 2 of them, found {len(data)}.")
    decoding = Decoding(config.max_new_tokens, tokenizer.eos_id, tokenizer.pad_id, config.temperature)
    run.plan(
        {
            "models": ", ".join(f"{name} ({folder})" for name, folder in config.models.items()),
            "prompts": f"held out: {data.report.describe()}",
            "replies": f"{config.replies} to each prompt, up to {config.max_new_tokens} tokens, temperature {config.temperature}",
            "gold": f"{config.gold}, which no trainer sees",
        }
    )
    others = {"reference": config.reference, **({"base": config.base} if config.base else {})}
    opened = {name: _open(folder, device) for name, folder in others.items()}
    answers: dict[str, Answers] = {}
    again = {"sft again": config.models["sft"]} if config.redraw else {}
    run.resumable = False
    run.begin(len(config.models) + len(again))
    for name, folder in {**config.models, **again}.items():
        model = opened["reference"] if folder == config.reference else _open(folder, device)
        seeds = partial(run.generator, f"replies {name}")
        generations = answer(model, tokenizer, data, decoding, config.replies, config.batch_size, seeds)
        answers[name] = measure(
            generations,
            tokenizer,
            data,
            config.replies,
            gold,
            config.gold,
            opened["reference"],
            opened.get("base"),
            config.temperature,
        )
        run.tick({"gold": sum(map(sum, answers[name].gold)) / (config.replies * len(data))})
        run.check_stop()
    results: dict[str, Any] = {name: figures(a, answers["sft"], run.seed) for name, a in answers.items()}
    if again:
        results["sft_again"] = results.pop("sft again")
    if config.reward_model:
        results["reward"] = reward_figures(config.reward_model, config.pairs, 1024, gold, config.gold)
    results |= {"seed": config.seed, "versions": versions(), "prompts": len(data), "replies_per_prompt": config.replies}
    shown = {
        name: [a.texts[i * config.replies] for i in range(len(data))]
        for name, a in answers.items()
        if name != "sft again"
    }
    leave(run, config, results, list(data.texts), shown)
    return {name: float(results[name]["gold_mean"]) for name in config.models}


def _open(folder: str, device: torch.device) -> Backbone:
    backbone = frozen(open_backbone(folder))
    module(backbone).to(device).eval()
    return backbone


def leave(
    run: Run, config: CompareConfig, results: dict[str, Any], prompts: list[str], shown: dict[str, list[str]]
) -> None:
    """The files, and the table and samples on the screen."""
    rows = [_row(name, results[name]) for name in config.models]
    if "sft_again" in results:
        rows.append(_row("sft, drawn again", results["sft_again"]))
    write_results(run.directory / "results.json", results)
    places = torch.randperm(len(prompts), generator=run.generator("samples")).tolist()
    some = places[: config.samples]
    picked = {name: [texts[i] for i in some] for name, texts in shown.items()}
    more = places[: max(10, config.samples)]
    markdown = [
        markdown_table(rows),
        markdown_samples([prompts[i] for i in more], {n: [t[i] for i in more] for n, t in shown.items()}),
    ]
    (run.directory / "results.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    text = f"\n{table(rows)}\n\n{side_by_side([prompts[i] for i in some], picked, min(console.width, 120))}"
    if "reward" in results:
        reward = results["reward"]
        text += (
            f"\nreward model: {reward['gold_agreement']:.2f} agreement with gold,"
            f" {reward['heldout_accuracy']:.2f} with the annotator's labels, {reward['n_heldout']} held-out pairs"
        )
    run.say(text)
    (run.directory / "results.txt").write_text(text + "\n", encoding="utf-8")


def _row(name: str, numbers: dict[str, Any]) -> ModelRow:
    low, high = numbers["win_rate_ci95"]
    itself = name == "sft"
    return ModelRow(
        name,
        numbers["gold_mean"],
        tuple(numbers["gold_ci95"]),
        None if itself else numbers["win_rate_vs_sft"],
        None if itself else (low, high),
        numbers["kl_mean"],
        numbers["length_mean"],
        numbers["eos_rate"],
    )
