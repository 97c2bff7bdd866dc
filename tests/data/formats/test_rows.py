from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.chat import exchange
from accord.data.formats.rows import FormattedRows, recognize
from accord.data.preferences import PairLengths, load_preferences
from accord.data.prompts import load_prompts
from accord.data.rows import Where, preference_fields
from accord.data.supervised import load_supervised
from accord.data.tokenizer import Tokenizer
from accord.data_report.formatted import formatted
from accord.errors import UserError

Rows = Callable[..., Path]
PAGE = Path(__file__).parents[3] / "docs" / "data.md"
SECTIONS = {"Demonstrations": "sft", "Preferences": "preferences", "Prompts": "prompts"}
LENGTHS = PairLengths(200, 400)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(path: Path, kind: Any, chat: bool = True) -> list[dict[str, Any]]:
    return [dict(row) for _, row in FormattedRows(path, kind, chat)]


def documented() -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, format, row) of every example on the page."""
    found = []
    for title, kind in SECTIONS.items():
        section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
        for name, row in re.findall(r"^\| ([^|]+) \| `(\{.*\})` \|$", section, re.MULTILINE):
            found.append((kind, name, json.loads(row)))
    return found


def test_the_page_has_an_example_of_every_format() -> None:
    assert len(documented()) == 23


@pytest.mark.parametrize(("kind", "name", "row"), documented())
def test_every_documented_row_is_read_as_what_the_page_says(
    kind: Any, name: str, row: dict[str, Any], chatml: Tokenizer, rows: Rows
) -> None:
    path = rows(row)
    found = recognize(row, kind)
    assert found is not None
    assert found.name == re.sub(r", conversational| \(.*\)|binarized ", "", name).replace("UltraFeedback", found.name)
    if kind == "prompts":
        prompts = load_prompts(path, chatml, 100)
        assert chatml.decode(prompts.prompts[0]).count("user\nWhat is a fjord?") == 1
        assert "An inlet" not in chatml.decode(prompts.prompts[0])
    elif kind == "sft":
        examples = load_supervised(path, chatml, 200).examples
        assert len(examples) == 1
    else:
        pair = load_preferences(path, chatml, LENGTHS).pairs[0]
        texts = [chatml.decode(part) for part in (pair.prompt, pair.chosen, pair.rejected)]
        assert texts[0].endswith("user\n2+2?\nassistant\n")
        assert texts[1:] == ["4", "5"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
            {"messages": [user("hi"), said("hello")]},
        ),
        (
            {"conversations": [{"from": "human", "value": "a", "weight": None}, {"from": "gpt", "value": "b", "weight": 0}],
             "system": "s"},
            {"messages": [{"role": "system", "content": "s"}, user("a"), {**said("b"), "weight": 0}]},
        ),
        ({"messages": [{"role": "human", "content": "hi"}, {"role": "gpt", "content": "yo"}]},
         {"messages": [user("hi"), said("yo")]}),
        ({"messages": json.dumps([user("hi"), said("yo")])}, {"messages": [user("hi"), said("yo")]}),
        ({"instruction": "Translate.", "input": "cat", "output": "Katze"},
         {"prompt": [user("Translate.\n\ncat")], "completion": "Katze"}),
        ({"instruction": "Say hi.", "input": "", "output": "hi", "text": "### all"},
         {"prompt": [user("Say hi.")], "completion": "hi", "text": "### all"}),
        (
            {"instruction": "and now?", "output": "c", "history": [["a", "b"]], "system": "s"},
            {"prompt": [{"role": "system", "content": "s"}, user("a"), said("b"), user("and now?")], "completion": "c"},
        ),
        ({"messages": None, "prompt": "hi", "completion": "hello", "chosen": None}, {"prompt": "hi", "completion": "hello"}),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "response": " hello"}, {"prompt": [user("hi")], "completion": "hello"}),
        (
            {"conversations": [{"from": "human", "value": "a"}, 
             {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
             {"from": "observation", "value": "2"}, {"from": "gpt", "value": "b"}]},
            {"messages": [user("a"), {"role": "assistant", "content": "",
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
             {"role": "tool", "content": "2"}, said("b")]},
        ),
    ],
)  # fmt: skip
def test_demonstrations_become_ours(rows: Rows, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(rows(row), "sft") == [expected]


def test_a_transcript_becomes_turns_where_there_is_a_chat_template(
    rows: Rows, chatml: Tokenizer, plain: Tokenizer
) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:"
    path = rows({"chosen": f"{start} yes", "rejected": f"{start} no"})
    pair = load_preferences(path, chatml, LENGTHS).pairs[0]
    turns = [user("hi"), said("hello"), user("more")]
    assert pair.prompt == tuple(exchange(chatml, turns, "yes").prompt)
    assert pair.chosen == (*chatml.encode("yes"), chatml.eos_id)
    assert plain.decode(load_preferences(path, plain, LENGTHS).pairs[0].prompt) == start


def test_transcripts_that_differ_early_are_dropped_and_counted(rows: Rows, chatml: Tokenizer) -> None:
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    early = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: x\n\nAssistant: y", "rejected": good["rejected"]}
    open_end = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: x", "rejected": good["rejected"]}
    report = load_preferences(rows(good, early, open_end), chatml, LENGTHS).report
    assert (report.rows, report.used) == (3, 1)
    assert dict(report.dropped) == {"dialogues that differ before the last reply": 1, "no reply at the end": 1}


def test_ultrafeedback_becomes_all_pairs_of_different_score(rows: Rows) -> None:
    scores = [("a", 5.0), ("b", 9), ("c", 5.0)]
    replies = [{"response": text, "overall_score": score, "model": "m"} for text, score in scores]
    one = {"instruction": "q", "completions": replies, "source": "x"}
    tied = {"instruction": "q", "completions": [replies[0], replies[2]]}
    found = FormattedRows(rows(one, tied), "preferences")
    assert [preference_fields(row, where)[:3] for where, row in found] == [
        ([user("q")], "b", "a"),
        ([user("q")], "b", "c"),
    ]
    assert dict(found.dropped) == {"no two replies of different score": 1}
    assert found.describe() == (
        "Read as UltraFeedback (instruction, completions); every two replies of different overall_score are a pair."
        " Not used: source."
    )


def test_what_was_recognized_is_said_and_unused_columns_are_named_once(rows: Rows, chatml: Tokenizer) -> None:
    row = {"prompt": "cat", "completion": "Katze", "context": "German", "system": "You translate.", "empty": None}
    report = load_supervised(rows(row, row), chatml, 100).report
    assert report.describe().startswith(
        "Read as prompt and completion (prompt, completion). Not used: context, system. Used 2 of 2 rows"
    )
    many = {f"extra_{i}": 1 for i in range(10)}
    found = FormattedRows(rows({"instruction": "a", "output": "b", **many}, {"text": "c"}), "sft")
    assert len(list(found)) == 2
    assert found.describe() == (
        "Read as Alpaca (instruction, output) and plain text (text)."
        " Not used: extra_0, extra_1, extra_2, extra_3, extra_4, extra_5, extra_6, extra_7 and 2 more."
    )


def test_columns_that_are_read_beside_a_format_are_not_named(rows: Rows) -> None:
    found = FormattedRows(
        rows({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1, "tools": [], "label": None}), "preferences"
    )
    assert next(iter(found))[1]["margin"] == 1
    assert "Not used" not in found.describe()


TEMPLATE_INPUTS = {"tools": [{"a": 1}], "documents": [{"b": 2}], "chat_template_kwargs": {"c": 3}}
DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("row", "kind", "unused"),
    [
        ({"messages": DIALOGUE}, "sft", []),
        ({"prompt": "a", "completion": "b"}, "sft", []),
        ({"prompt": "a"}, "prompts", []),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences", []),
        ({"text": "a"}, "sft", [*TEMPLATE_INPUTS]),
        ({"text": "a"}, "base", [*TEMPLATE_INPUTS]),
        ({"messages": DIALOGUE}, "base", [*TEMPLATE_INPUTS]),
    ],
)
def test_columns_of_the_template_are_named_where_no_template_reads_them(
    row: dict[str, Any], kind: Any, unused: list[str], rows: Rows
) -> None:
    found = FormattedRows(rows({**row, **TEMPLATE_INPUTS}), kind)
    assert len(list(found)) == 1
    assert list(found.unused) == unused
    if kind != "base":
        shown = formatted({**row, **TEMPLATE_INPUTS}, kind, True, Where("rows", 1))
        assert list(shown.unused) == unused, "accord data says the same"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [user("a"), {"role": "customer", "content": "b"}]},
         "row 1: no assistant message in 'messages', whose roles are user, customer; rename"),
        ({"messages": "[{'role': 'user', 'content': 'a'}]"}, "row 1: 'messages' holds messages as Python prints them"),
        ({"conversations": [{"from": "function_call", "value": "no json"}]},
         r"row 1: conversations\[0\], a function_call: not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "[3]"}]}, 'expected JSON with "name"'),
        ({"instruction": ["a"], "output": "b"}, "row 1: 'instruction' is a JSON array, expected a string"),
        ({"instruction": "a", "output": 3}, "row 1: 'output' is a JSON number"),
        ({"instruction": "a", "history": "b", "output": "c"}, "row 1: 'history' is not a list of exchanges"),
    ],
)  # fmt: skip
def test_a_bad_row_of_another_format_is_named(rows: Rows, chatml: Tokenizer, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_supervised(rows(row), chatml, 100)


def test_a_row_without_a_format_is_named_by_its_reader(rows: Rows, chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"row 2: no 'prompt'.*it has 'foo'"):
        load_supervised(rows({"text": "a b"}, {"foo": 1}), chatml, 100)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("sft", {"conversation": [{"from": 3, "value": {}}, {"role": ["x"], "content": "z"}]}),
        ("sft", {"messages": ["a", None]}),
        ("preferences", {"instruction": [], "chosen_response": [user("a"), said("b")], "rejected_response": "c"}),
        ("preferences", {"instruction": "a", "completions": [{"response": "b", "overall_score": True}]}),
        ("prompts", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": [user("a")]}),
        ("prompts", {"conversations": []}),
    ],
)
def test_rows_of_half_a_format_are_sentences(rows: Rows, chatml: Tokenizer, kind: str, row: dict[str, Any]) -> None:
    load: dict[str, Callable[[Path], Any]] = {
        "sft": lambda path: load_supervised(path, chatml, 100),
        "preferences": lambda path: load_preferences(path, chatml, LENGTHS),
        "prompts": lambda path: load_prompts(path, chatml, 100),
    }
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        load[kind](rows(row))
