"""The card of an exported model: it says what the record says, and claims no test that was not made."""

from __future__ import annotations

from pathlib import Path

import pytest
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
        "language": "en",
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
    assert "`heldout_accuracy` **0.8**, on held-out data." in text
    assert "No data file is recorded" in text
    bare = Record("b", "pretrained", "f" * 32)
    text = card(bare.digest, {bare.digest: bare}, {})
    assert "No metric is recorded" in text
    assert "are its authors" in text
    assert "small world" not in text


@pytest.mark.parametrize(
    ("kind", "metrics", "words"),
    [
        ("sft", {"nll": 1.0, "heldout/loss": 1.25}, "`heldout/loss` **1.25**, on held-out data."),
        ("sft", {"nll": 1.0}, "`nll` **1**, of the last training step's minibatch alone; no data was held out."),
        (
            "ppo",
            {"score": 2.0, "kl": 0.5},
            "`score` **2** and `kl` **0.5**, over all replies or episodes of the last rollout",
        ),
    ],
)
def test_a_card_says_what_its_main_figure_is_measured_on(kind: str, metrics: dict[str, float], words: str) -> None:
    record = Record("m", kind, "e" * 32, metrics=metrics)
    assert words in card(record.digest, {record.digest: record}, {})
