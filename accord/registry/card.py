"""Writes a model card, README.md with YAML metadata, from an artifact's records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from accord.io.finite_json import shown
from accord.registry.card_facts import origin
from accord.registry.family import Family, Record, short
from accord.registry.headline import IN_WORDS, headline
from accord.registry.lineage import flat, key_settings, title

METHODS = {
    "base": "trained from scratch on plain text and chats",
    "pretrained": "an imported pretrained model, unchanged",
    "sft": "supervised fine-tuning: cross-entropy on the assistant's tokens",
    "reward": "a reward model: preferences between two replies to one prompt",
    "ppo": "reinforcement learning from a reward by PPO",
    "dpo": "direct preference optimization",
}


def card(
    root: str,
    family: Family,
    labels: Mapping[str, str],
    title_of_model: str = "",
    compared: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of README.md for the model with digest ``root``; ``compared``: its label in a comparison, and the table."""
    facts = origin(family)
    own = family[root]
    name = title_of_model or title(own, labels)
    made = f"{METHODS.get(own.kind, own.kind)}, by accord"
    parts = [
        f"---\n{yaml.safe_dump({**facts, **_head(own, family)}, sort_keys=False)}---\n",
        f"# {name}\n",
        f"{made[0].upper()}{made[1:]}. Content digest `{root}`.\n",
        "## Data\n",
        *_data(family),
        "## Training\n",
        *_training(root, family, labels),
        "## Evaluation\n",
        *_comparison(compared),
        *_evaluation(own),
        "## Limits\n",
        *_limits(own, family, facts),
        "## Use\n",
        _use(own),
    ]
    return "\n".join(parts)


def _head(own: Record, family: Family) -> dict[str, object]:
    reward = own.kind == "reward"
    kinds = dict.fromkeys(r.kind for r in family.values() if r.form == "model" and r.kind in METHODS)
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if reward else "text-generation",
        "tags": [
            "accord",
            *(["reward-model"] if reward else []),
            *(k for k in kinds if k not in ("pretrained", "reward")),
        ],
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _data(family: Family) -> Iterator[str]:
    rows = []
    for digest, record in family.items():
        if record.form == "data":
            used = [f"{r.name} ({key})" for r in family.values() for key, d in r.parents.items() if d == digest]
            how = f"stage `{record.kind}`" if record.kind != "data" else "an external file"
            rows.append((record.name, f"`{short(digest, 16)}`", how, ", ".join(used)))
    yield _table(("file", "digest", "made by", "used by"), rows) if rows else "No data file is recorded.\n"


def _training(root: str, family: Family, labels: Mapping[str, str]) -> Iterator[str]:
    yield "Training steps, oldest first, with content digests.\n"
    rows = [
        (
            title(r, labels),
            r.kind,
            f"`{short(digest, 16)}`",
            ", ".join(f"{k} {v}" for k, v in key_settings(r).items()) or "not recorded",
            "" if r.seed is None else r.seed,
        )
        for digest, r in family.items()
        if r.form == "model"
    ]
    yield _table(("model", "kind", "digest", "key settings", "seed"), rows)
    settings = list(flat(family[root].settings))
    if settings:
        yield "<details><summary>Every setting of the last step</summary>\n"
        yield _table(("setting", "value"), [(f"`{k}`", v) for k, v in settings])
        yield "</details>\n"
    if family[root].versions:
        yield "Made with " + ", ".join(f"{k} {v}" for k, v in family[root].versions.items()) + ".\n"


def _comparison(compared: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The table of each comparison, and which of its rows is this model."""
    for label, table in compared:
        yield f"Compared on held-out prompts, where this model is `{label}`; brackets: 95 % interval over prompts.\n"
        yield f"{table}\n"


def _evaluation(own: Record) -> Iterator[str]:
    if not own.metrics:
        yield "No metric is recorded.\n"
        return
    figures = headline(own.kind, own.metrics)
    if figures and (on := figures[0].on):
        named = " and ".join(f"`{figure.name}` **{figure.value:.4g}**" for figure in figures)
        yield f"{named}, {IN_WORDS[on]}.\n"
    heldout = any(key.startswith("heldout") for key in own.metrics)
    yield (
        "Metrics that begin with `heldout` are on held-out data; the others are on the training data.\n"
        if heldout
        else "These metrics are on the training data; none of them is on held-out data.\n"
    )
    rows = [(f"`{k}`", shown(v)) for k, v in own.metrics.items() if k != "learning_rate"]
    yield _table(("metric", "value"), rows)


def _limits(own: Record, family: Family, facts: Mapping[str, object]) -> Iterator[str]:
    """Limits that follow from the records."""
    if own.kind == "reward":
        yield "- It models the annotator's preferences on such prompts; its scores are unreliable on others, and can be gamed.\n"
    elif own.kind == "ppo":
        yield "- It was optimized for a reward, not for truth: check by other means that the reward was not gamed.\n"
    elif own.kind == "dpo":
        yield "- It was optimized for its preference data, including the annotator's biases.\n"
    if any(r.kind == "demo" for r in family.values()):
        yield "- Its data is synthetic (accord's small world): it has no language beyond that world.\n"
    if any(r.form == "model" and r.kind in ("pretrained", "model") for r in family.values()):
        yield "- The knowledge and the license of the pretrained model are its authors'; see their model card.\n"
    license = facts.get("license")
    yield (
        f"- The license above ({license}) is the base model's; whether it holds for this model is for you to check.\n"
        if license
        else "- This card states no license, since none is known; add `license:` before publishing.\n"
    )
    yield "- It has not been tested for safety, truth or bias.\n"


def _use(own: Record) -> str:
    if own.kind == "reward":
        return (
            "The backbone opens with transformers; the head is in `reward_head.safetensors`. With accord:\n\n"
            '```python\nfrom accord import RewardModel\n\nmodel = RewardModel.open("this/folder")\n```\n'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")\n```\n\n'
        "`lineage.json` has all of the above as data; `accord models import this/folder` verifies the digest of every file.\n"
    )
