"""A model card, README.md with its YAML head, written from what the artifact records; nothing is filled in manually."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from accord.registry.family import Family, Record
from accord.registry.lineage import flat, key_settings, title

METHODS = {
    "base": "trained from scratch on plain text and chats",
    "pretrained": "a pretrained model, taken in as it is",
    "sft": "supervised fine-tuning: cross-entropy on the assistant's tokens",
    "reward": "a reward model: preferences between two replies to one prompt",
    "ppo": "reinforcement learning from a reward by PPO",
    "dpo": "direct preference optimization",
}


def card(root: str, family: Family, labels: Mapping[str, str], title_of_model: str = "") -> str:
    """The text of README.md for the model with digest ``root``."""
    own = family[root]
    name = title_of_model or title(own, labels)
    made = f"{METHODS.get(own.kind, own.kind)}, by [accord](https://github.com/accord-rlhf/accord)"
    parts = [
        f"---\n{yaml.safe_dump(_head(own, family), sort_keys=False)}---\n",
        f"# {name}\n",
        f"{made[0].upper()}{made[1:]}. Content digest `{root}`.\n",
        "## Data\n",
        *_data(family),
        "## Training\n",
        *_training(root, family, labels),
        "## Evaluation\n",
        *_evaluation(own),
        "## Limits\n",
        *_limits(own, family),
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
            how = f"stage `{record.kind}`" if record.kind != "data" else "a file from outside"
            rows.append((record.name, f"`{digest[:16]}`", how, ", ".join(used)))
    yield _table(("file", "digest", "made by", "used by"), rows) if rows else "No data file is recorded.\n"


def _training(root: str, family: Family, labels: Mapping[str, str]) -> Iterator[str]:
    yield "The steps, oldest first; the digests are of contents.\n"
    rows = [
        (
            title(r, labels),
            r.kind,
            f"`{digest[:16]}`",
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


def _evaluation(own: Record) -> Iterator[str]:
    if not own.metrics:
        yield "No figure is recorded.\n"
        return
    heldout = any(key.startswith("heldout") for key in own.metrics)
    yield (
        "Figures that begin with `heldout` come from data kept out of training; the others were taken on the training data.\n"
        if heldout
        else "These were taken during training, on the training data; none of them is a held-out test.\n"
    )
    rows = [(f"`{k}`", f"{v:.4g}") for k, v in own.metrics.items() if k != "learning_rate"]
    yield _table(("figure", "value"), rows)


def _limits(own: Record, family: Family) -> Iterator[str]:
    """Only what follows from the record."""
    if own.kind == "reward":
        yield "- It is the annotator's taste on this kind of prompt; its scores mean little on others, and can be gamed.\n"
    elif own.kind == "ppo":
        yield "- It was pushed towards a reward, not towards truth: check by other means that the reward was not gamed.\n"
    elif own.kind == "dpo":
        yield "- It was pushed towards the preferences it saw, with their annotator's biases.\n"
    if any(r.kind == "demo" for r in family.values()):
        yield "- Its data is synthetic (accord's small world): it knows no language beyond that world.\n"
    if any(r.form == "model" and r.kind in ("pretrained", "model") for r in family.values()):
        yield "- What the pretrained model learned, and its license, come from its makers; see their card.\n"
    yield "- It has not been tested for safety, truth or bias. No license is stated here: whoever publishes it adds one.\n"


def _use(own: Record) -> str:
    if own.kind == "reward":
        return (
            "The backbone opens with transformers; the head lies in `reward_head.safetensors`. Whole, in accord:\n\n"
            '```python\nfrom accord import RewardModel\n\nmodel = RewardModel.open("this/folder")\n```\n'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")\n```\n\n'
        "`lineage.json` holds all of the above as data; `accord models import this/folder` checks every file's digest.\n"
    )
