"""Counts over the texts of a file: characters that the tokenizer does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.data.preferences import PairLengths, load_preferences
from accord.data.prompts import load_prompts
from accord.data.supervised import load_supervised
from accord.data.text_notes import UNKNOWN
from accord.data.tokenizer import small_tokenizer

KNOWN, UNKNOWN_TWICE = {"prompt": "hello", "completion": "yes."}, {"prompt": "grüße", "completion": "yes."}


def file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("rows", "count"), [([KNOWN], 0), ([KNOWN, UNKNOWN_TWICE], 2)])
def test_unknown_characters_are_counted_by_every_reader(rows: list[dict[str, Any]], count: int, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    path = file(tmp_path, *rows)
    reports = [load_supervised(path, tokenizer, 64).report, load_prompts(path, tokenizer, 64).report]
    pairs = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in rows]
    reports.append(load_preferences(file(tmp_path, *pairs), tokenizer, PairLengths(32, 64)).report)
    for report in reports:
        assert (UNKNOWN in report.describe().lower()) == (count > 0)
        assert not count or f"{UNKNOWN}: {count}" in report.describe().lower()
