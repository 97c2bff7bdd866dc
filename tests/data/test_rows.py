from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accord.data.rows import Report, Tally, Where, messages_field, preference_fields, prompt_field, reply_field
from accord.errors import UserError

HERE = Where("pairs.jsonl", 7)
ASK = {"role": "user", "content": "hi"}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"promt": "a"}, r"pairs.jsonl, row 7: no 'prompt' \(did you mean 'promt'\?"),
        ({"Prompt": "a"}, "did you mean 'Prompt'"),
        ({"instruction": "a", "id": 3}, "did you mean 'instruction'"),
        ({"chosen": "a", "x": 1}, "no 'prompt'; it has 'chosen', 'x'"),
        ({"prompt": None}, "'prompt' is null"),
        ({"prompt": 3}, "a JSON number, expected text or a list of messages"),
        ({"prompt": []}, "'prompt' is empty"),
        ({"prompt": ["a"]}, r"prompt\[0\] is a JSON string"),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\] has no 'content'"),
        (
            {"prompt": [ASK, {"role": "asistant", "content": ""}]},
            r"prompt\[1\]: role 'asistant'; did you mean 'assistant'",
        ),
        ({"prompt": [{"role": "user", "content": None}]}, "the content is a JSON null"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "the content is a JSON array"),
    ],
)
def test_a_bad_field_is_named_with_its_place(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prompt_field(row, "prompt", HERE)


def test_fields_are_read_as_strings_or_messages() -> None:
    assert prompt_field({"prompt": "hi", "other": 1}, "prompt", HERE) == "hi"
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "name": "x"}
    assert messages_field({"m": [parts]}, "m", HERE) == [{**ASK, "name": "x"}]
    assert reply_field({"completion": "yo"}, "completion", HERE) == "yo"
    assert reply_field({"completion": [say("yo")]}, "completion", HERE) == "yo"
    with pytest.raises(UserError, match=r"one assistant message.*found user"):
        reply_field({"completion": [ASK]}, "completion", HERE)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, ("p", "a", "b", 0.0)),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "id": 1}, ("p", "a", "b", 2.0)),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": None}, ("p", "a", "b", 0.0)),
        ({"prompt": [ASK], "chosen": [say("a")], "rejected": [say("b")]}, ([ASK], "a", "b", 0.0)),
        ({"prompt": [ASK], "chosen": "a", "rejected": "b"}, ([ASK], "a", "b", 0.0)),
        ({"prompt": "hi", "chosen": [say("a")], "rejected": [say("b")]}, ("hi", "a", "b", 0.0)),
        # implicit prompts
        ({"chosen": [ASK, say("a")], "rejected": [ASK, say("b")]}, ([ASK], "a", "b", 0.0)),
        ({"chosen": [ASK, say("a")], "rejected": [ASK, say("a")]}, ([ASK], "a", "a", 0.0)),
        ({"prompt": "hi", "chosen": [ASK, say("a")], "rejected": [ASK, say("b")]}, ([ASK], "a", "b", 0.0)),
        ({"prompt_id": 3, "chosen": "go left", "rejected": "go right"}, ("go", " left", " right", 0.0)),
        ({"chosen": "we lead", "rejected": "we leave"}, ("we", " lead", " leave", 0.0)),
        ({"chosen": "yes", "rejected": "no"}, ("", "yes", "no", 0.0)),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: It is so", "rejected": "\n\nHuman: q\n\nAssistant: It was"},
            ("\n\nHuman: q\n\nAssistant:", " It is so", " It was", 0.0),
        ),
    ],
)
def test_every_format_of_a_preference_is_read(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert preference_fields(row, HERE) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, "no 'rejected'"),
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "did you mean 'choosen'"),
        ({"promt": "p", "chosen": "a", "rejected": "b"}, "did you mean 'promt'"),
        ({"prompt": "p", "chosen": "a", "rejected": [say("b")]}, "one of 'chosen' and 'rejected' is a string"),
        ({"chosen": [say("a")], "rejected": [say("b")]}, "no 'prompt'"),
        ({"chosen": [ASK, say("a")], "rejected": [ASK]}, "must end in one assistant message"),
        ({"prompt": "other", "chosen": [ASK, say("a")], "rejected": [ASK, say("b")]}, "'prompt' differs"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "margin -1"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin nan"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "big"}, "margin 'big'"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": True}, "margin True"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 10**400}, "margin 1000000000"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e7},
            "margin 10000000.0, expected a number from 0 to",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": [1]}, "margin \\[1\\]"),
    ],
)
def test_a_bad_preference_is_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        preference_fields(row, HERE)


def test_a_report_counts_rows_dropped_and_cut() -> None:
    whole = Report(3, 10, 0, 0, {})
    assert (whole.used, whole.describe()) == (3, "Used 3 of 3 rows, 10 tokens.")
    partial = Report(9, 10, 2, 1, {"tie": 2, "empty reply": 1}, 4)
    assert partial.used == 6
    assert partial.describe() == (
        "Used 6 of 9 rows, 10 tokens. Dropped: empty reply 1, tie 2; prompts truncated: 2; replies truncated: 1; "
        "tokenized separately from the prompt: 4."
    )
    tally = Tally(rows=2)
    tally.dropped["tie"] += 2
    with pytest.raises(UserError, match=r"x: no row is usable.*tie 2"):
        tally.report("x")


def test_an_error_is_prefixed_with_its_place() -> None:
    def fail() -> None:
        with HERE.named():
            raise UserError("bad")

    check: Callable[[], None] = fail
    with pytest.raises(UserError, match=r"^pairs\.jsonl, row 7: bad$"):
        check()
