"""The stage base: what its reader takes, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accord.algorithms.base import read_texts
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.open import open_backbone


def test_base_learns_every_token_but_the_first(world: Any, tokenizer: Tokenizer) -> None:
    examples = read_texts(world.base, tokenizer, 64).examples
    assert len(examples) == 9
    text = [tokenizer.decode(e.tokens, skip_special=False) for e in examples]
    assert text[0] == "fire is. no.<eos>"
    assert text[-1] == "<user>hi<assistant>hello.<eos>"
    assert all(e.loss_mask == (False, *[True] * (len(e.tokens) - 1)) for e in examples)
    assert max(len(e.tokens) for e in read_texts(world.base, tokenizer, 7).examples) == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [('{"txt": "a"}', r"rows\.jsonl, row 2: no 'text'"), ('{"text": 5}', r"row 2: 'text' is a JSON number")],
)
def test_a_row_without_text_is_named(tmp_path: Path, tokenizer: Tokenizer, row: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + row + "\n")
    with pytest.raises(UserError, match=message):
        read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64)


def test_empty_texts_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n{"text": "ab"}\n')
    assert [len(e.tokens) for e in read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64).examples] == [3]
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no row is usable"):
        read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64)


def test_base_writes_a_model_that_opens(stage: Any, world: Any, tmp_path: Path, lines: Any) -> None:
    model = {"base_model": "transformer", "d_model": 32, "n_layers": 2, "max_length": 48}
    outcome = stage("base", {"model": model, "data": {"train": world.base}, "training": {"batch_size": 4}})
    opened = open_backbone(tmp_path / "out" / "base" / "model")
    state = torch.load(tmp_path / "out" / "base" / "base_final.pt", weights_only=True)
    for name, value in opened.state_dict().items():
        assert torch.equal(value, state["model_state_dict"][name])
    assert state["metrics"] == outcome.done["metrics"]
    rows = lines("base")
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert rows[0]["nll"] == pytest.approx(3.9, abs=0.2)  # ln 50 for a model that knows nothing
    assert not (tmp_path / "out" / "base" / "state.pt").exists()
