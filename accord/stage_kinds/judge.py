"""The stage ``judge``: who prefers which of two sampled replies, as pairs to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from accord.config.feedback import JudgeConfig, project_name
from accord.data.samples import Sample, read_samples
from accord.errors import UserError
from accord.io.atomic import write_jsonl
from accord.runtime.device import resolve_device
from accord.runtime.run import Run
from accord.stage_kinds.judges.judgment import Judge, Judgment, as_row, preference_files
from accord.stage_kinds.judges.matching import Matching
from accord.stage_kinds.judges.openai import OpenAIJudge
from accord.stage_kinds.judges.people import PeopleJudge
from accord.stage_kinds.judges.scores import ScoreJudge, open_scores

JUDGMENTS = "judgments.jsonl"


def run_judge(config: JudgeConfig, run: Run) -> dict[str, float]:
    """Writes ``judgments.jsonl``, ``preferences.jsonl`` and ``heldout_preferences.jsonl``; returns counts.

    Raises Waiting while votes of people are missing.
    """
    found = read_samples(config.samples)
    samples = [sample.usable() for sample in found]
    _require_comparable(config, samples)
    judge = open_judge(config, run, samples)
    ended, given = (sum(len(sample.candidates) for sample in some) for some in (samples, found))
    run.plan(
        {
            "samples": f"{ended} of {given} replies to {len(samples)} prompts ended and can be compared",
            "judge": describe(config),
            "pairs": Matching(config.matching, config.pairs).describe(),
        }
    )
    run.open_folders()
    judgments = judge.judge(samples)
    files = preference_files(samples, judgments, config.ties, config.heldout_fraction, run.seed)
    choices = Counter[str](judgment.choice for judgment in judgments)
    for name, rows in files.items():
        if not rows:
            raise UserError(f"{run.name}: no rows for {name}: {_why_empty(name, config, choices)}.")
    write_jsonl(run.directory / JUDGMENTS, (as_row(samples, judgment) for judgment in judgments))
    for name, rows in files.items():
        write_jsonl(run.directory / name, rows)
    written = {name.removesuffix(".jsonl"): float(len(rows)) for name, rows in files.items()}
    run.say(
        f"wrote {', '.join(f'{n:.0f} rows in {name}.jsonl' for name, n in written.items())}; {_in_words(judgments)}"
    )
    reasons = Counter(str(judgment.details["reason"]) for judgment in judgments if "reason" in judgment.details)
    counts = {f"judged_{choice}": float(n) for choice, n in sorted((choices | reasons).items())}
    return {**written, "judgments": float(len(judgments)), **counts}


def open_judge(config: JudgeConfig, run: Run, samples: Sequence[Sample]) -> Judge:
    """The judge that a config names.  Raises UserError where it cannot be reached."""
    matching = Matching(config.matching, config.pairs)
    if config.openai.url:
        return OpenAIJudge(config.openai, matching, run)
    if config.asks_people:
        return PeopleJudge(project_name(config.judge), config.people, matching, run)
    scores = open_scores(config.judge, samples, resolve_device(config.device))
    return ScoreJudge(config.judge, scores, matching, config.noise, config.min_gap, run.derive("annotator"))


def describe(config: JudgeConfig) -> str:
    """The judge in words."""
    if config.openai.url:
        return f"{config.openai.model} at {config.openai.url}, asked in both orders"
    if config.asks_people:
        return f"people, project {project_name(config.judge)} (accord label {project_name(config.judge)})"
    return f"{config.judge}, noise {config.noise}"


def _require_comparable(config: JudgeConfig, samples: Sequence[Sample]) -> None:
    """Raises UserError where no prompt has two different replies."""
    if not any(len({candidate.text for candidate in sample.candidates}) > 1 for sample in samples):
        raise UserError(
            f"{config.samples}: no prompt has two different replies that ended; sample more replies, at a higher temperature,"
            " or with a larger max_new_tokens."
        )


def _why_empty(name: str, config: JudgeConfig, choices: Counter[str]) -> str:
    """Why a file has no rows, and what to change."""
    if not choices["a"] + choices["b"] and config.ties == "drop":
        said = ", ".join(f"{choice} {n}" for choice, n in sorted(choices.items())) or "nothing"
        return f"the judge preferred no reply ({said}); use another judge, or ties=half"
    side = "raise" if name.startswith("heldout") else "lower"
    return f"heldout_fraction is {config.heldout_fraction}; {side} it, use more prompts, or set it to 0"


def _in_words(judgments: Sequence[Judgment]) -> str:
    """How many judgments there are of each kind that states no preference."""
    choices = Counter[str](judgment.choice for judgment in judgments)
    others = [f"{choices[c]} {words}" for c, words in _NO_PREFERENCE.items() if choices[c]]
    repeats = sum(judgment.repeat for judgment in judgments)
    return ", ".join([f"{len(judgments)} judgments", *others, *([f"{repeats} repeats"] if repeats else [])])


_NO_PREFERENCE = {"tie": "ties", "both_bad": "both bad", "skip": "without an answer"}
