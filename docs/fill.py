"""Puts a comparison's table or samples between two markers of a Markdown file, so that no figure is typed manually.

python docs/fill.py checkpoints/rlhf/compare/results.md README.md results
python docs/fill.py runs/smollm2/results.json docs/rlhf_pipeline.md fluency
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PARTS = {"results": 0, "samples": 1}


def fluency(source: str) -> str:
    """A table of gain and fluency from a results.json, and a line on the reward model and the time."""
    results = json.loads(Path(source).read_text(encoding="utf-8"))
    lines = [
        "| model | gain in gold over SFT | in SFT's deviations | KL, nats | NLL under the base, per token | distinct-2 | ends |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("sft", "ppo", "dpo"):
        r = results[name]
        low, high = r["gain_ci95"]
        gain = "-" if name == "sft" else f"{r['gain_vs_sft']:+.3f} [{low:+.3f}, {high:+.3f}]"
        own = "-" if name == "sft" else f"{r['gain_in_sft_sd']:.2f}"
        lines.append(
            f"| {name} | {gain} | {own} | {r['kl_mean']:.2f} | {r['base_nll']:.2f} | {r['distinct_2']:.2f} |"
            f" {r['eos_rate']:.0%} |"
        )
    reward, stages = results["reward"], results["stages"].values()
    lines += [
        "",
        f"{results['prompts']} held-out prompts, {results['replies_per_prompt']} replies each, seed {results['seed']}."
        f" The reward model orders {reward['heldout_accuracy']:.0%} of {reward['n_heldout']} held-out pairs as gold does."
        f" All stages took {sum(s['seconds'] for s in stages) / 60:.0f} minutes and at most"
        f" {max(s['peak_rss_mb'] for s in stages) / 1000:.1f} GB.",
    ]
    return "\n".join(lines)


def _part(source: str, part: str) -> str:
    return Path(source).read_text(encoding="utf-8").split("\n\n")[PARTS[part]].strip()


def fill(source: str, target: str, part: str) -> None:
    """``part`` is "results" (the table), "samples" or "fluency".  Raises SystemExit where a marker is missing."""
    put(fluency(source) if part == "fluency" else _part(source, part), target, part)


def put(content: str, target: str | Path, part: str) -> None:
    """Replaces what stands between a part's markers in a Markdown file.  Raises SystemExit where a marker is missing."""
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    text = Path(target).read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"{target}: the markers {begin} and {end} are needed.")
    head, tail = text.split(begin)[0], text.split(end)[1]
    Path(target).write_text(f"{head}{begin}\n{content}\n{end}{tail}", encoding="utf-8")


if __name__ == "__main__":
    fill(*sys.argv[1:4])
