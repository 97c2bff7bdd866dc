"""The date that templates write: one for a whole run, and part of the stage's key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.config.load import build
from accord.data.chat_template import dated, render_template
from accord.errors import UserError
from accord.pipeline.task import stage_key
from accord.stage_kinds.kind import StageKind
from accord.stage_kinds.table import STAGE_KINDS

TODAY = "{{ strftime_now('%d %b %Y, %H:%M') }}"
READ: list[str] = []


def test_the_date_is_fixed_and_that_of_the_run() -> None:
    assert render_template(TODAY, {}, [], False) == "26 Jul 2024, 00:00"
    with dated("2025-02-03"):
        assert render_template(TODAY, {}, [], False) == "03 Feb 2025, 00:00"
    assert render_template(TODAY, {}, [], False) == "26 Jul 2024, 00:00"


def note_date(config: Any, run: Any) -> dict[str, float]:
    """A stage's function that renders a date."""
    READ.append(render_template(TODAY, {}, [], False))
    return {}


@pytest.mark.parametrize("kind", ["base", "sft", "dpo", "reward", "ppo", "pairs", "sample", "judge", "compare"])
def test_a_stage_renders_its_date_which_is_in_its_key(kind: str, tmp_path: Path) -> None:
    values = {"judge": {"samples": "x", "judge": "m:f"}}.get(kind, {})
    settings = STAGE_KINDS[kind].settings
    config = build(settings, {**values, "template_date": "2025-02-03"}, {}, "the test")
    spy = StageKind("spy", "", "accord.config.sft:SFTConfig", f"{__name__}:note_date", 1, "")
    READ.clear()
    spy.call(config, None)
    assert READ == ["03 Feb 2025, 00:00"]
    assert stage_key(kind, config, {}) != stage_key(kind, build(settings, values, {}, "the test"), {})


@pytest.mark.parametrize("day", ["today", "20250203", "2025-02-30", "2025-2-3", ""])
def test_what_is_no_date_is_refused(day: str) -> None:
    with pytest.raises(UserError, match=r"template_date.*is not a date; write it as 2024-07-26"):
        build(STAGE_KINDS["sft"].settings, {"template_date": day}, {}, "the test")
