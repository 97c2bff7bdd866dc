"""The card of an exported model: it says what the record says, and claims no test that was not made."""

from __future__ import annotations

from pathlib import Path

import yaml

from accord.registry.card import card
from accord.registry.exports import export
from accord.registry.family import Record
from accord.registry.store import Store


def test_a_card_says_what_the_record_says(ppo: Store, tmp_path: Path) -> None:
    export(ppo, "ppo", tmp_path / "out", "hf")
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["accord", "base", "ppo"],
    }
    titles = [line for line in body.splitlines() if line.startswith("#")]
    assert titles == ["# ppo", "## Data", "## Training", "## Evaluation", "## Limits", "## Use"]
    assert f"| demo/base.jsonl | `{'d' * 16}` | stage `demo` | base (data.train) |" in body
    assert f"| base@1 | base | `{ppo.find('base').digest[:16]}` | learning_rate 0.001 | 0 |" in body
    assert "| `nll` | 3 |" in body
    assert "on the training data; none of them is on held-out data" in body
    assert "accord's small world" in body
    assert ppo.find("ppo").digest in body


def test_a_card_claims_no_test_that_was_not_made() -> None:
    reward = Record("r", "reward", "e" * 32, metrics={"heldout_accuracy": 0.8})
    text = card(reward.digest, {reward.digest: reward}, {})
    assert "text-classification" in text
    assert "are on held-out data" in text
    assert "No data file is recorded" in text
    bare = Record("b", "pretrained", "f" * 32)
    text = card(bare.digest, {bare.digest: bare}, {})
    assert "No metric is recorded" in text
    assert "are its authors" in text
    assert "small world" not in text
