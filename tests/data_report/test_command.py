"""The command: exit codes, JSON, the plain text, and what is wrong with a command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.data_report.hazards import HAZARDS
from tests.data_report.test_inspect_file import PLANTED_SFT, demonstration

ROWS = [{"prompt": "hi", "completion": "see the cat"}, {"prompt": "say | it", "completion": "no <|im_end|> yes"}]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["data", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_text_shows_tokens_labels_hazards_and_fixes(
    write: Callable[..., str], model_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, write(ROWS), "--model", model_folders["plain"])
    assert code == 1
    lines = out.splitlines()
    assert "2 rows, read as sft" in lines[0]
    assert "recognized: prompt and completion (prompt, completion) in JSON Lines" in lines
    assert "  > s|e|e| the| |c|a|t|<|im_end|>" in lines
    assert any(line.startswith("    <|im_start|>|u|s|e|r|\\n|s|a|y| |\\|| |i|t|<|im_end|>") for line in lines)
    assert "PROBLEM control-tokens: 1 row (2): the content spells control tokens of the model" in lines
    assert "        row 2: '<|im_end|>' in the assistant's text" in lines
    assert any(line.startswith("        fix: ") for line in lines)
    assert lines[-1] == "1 hazard in more rows than accepted: control-tokens (--max-control-tokens 0)."


def test_a_clean_file_ends_with_0_and_says_so(
    write: Callable[..., str], model_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, write(ROWS[:1]), "--model", model_folders["plain"], "--rows", "0")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "No hazards found."
    assert "first rows" not in out


def test_json_has_every_hazard_and_exact_tokens(
    write: Callable[..., str], model_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (write(ROWS), "--model", model_folders["plain"], "--json", "--max-control-tokens", "50%")
    code, out, _ = run(capsys, *words)
    report = json.loads(out)
    assert code == 0
    assert report["hazards"].keys() == HAZARDS.keys()
    assert report["hazards"]["control-tokens"]["rows"] == 1
    assert report["hazards"]["control-tokens"]["first_rows"] == [2]
    assert report["hazards"]["control-tokens"]["limit"] == "50%"
    assert report["exceeded"] == []
    learned = [text for _, text, label in report["first_rows"][0]["tokens"] if label]
    assert learned == ["s", "e", "e", " the", " ", "c", "a", "t", "<|im_end|>"]
    assert report["labels"] == len(learned) + len("no <|im_end|> yes") + 1
    assert sum(part["count"] for part in report["lengths"]["row"]["histogram"]) == 2


def test_the_json_names_each_planted_hazard_with_its_row(
    write: Callable[..., str], model_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [demonstration(12), *(demonstration(n) for n in range(100, 299))]
    places = {name: 10 * (n + 1) for n, name in enumerate(PLANTED_SFT)}
    clean = write(rows, "clean.jsonl")
    for name, row in PLANTED_SFT.items():
        rows[places[name] - 1] = row
    heldout = write([demonstration(999)], "heldout.jsonl")
    for file, expected in ((write(rows), places), (clean, {})):
        code, out, _ = run(capsys, file, "--model", model_folders["plain"], "--heldout", heldout, "--json")
        hazards = json.loads(out)["hazards"]
        found = {name: (hazard["rows"], hazard["first_rows"]) for name, hazard in hazards.items() if hazard["rows"]}
        assert found == {name: (1, [row]) for name, row in expected.items()}
        assert code == bool(expected)


def test_the_documented_keys_of_the_json_are_there(
    write: Callable[..., str], model_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, write(ROWS), "--model", model_folders["plain"], "--json")
    page = (Path(__file__).parents[2] / "docs" / "data_report.md").read_text(encoding="utf-8")
    table = page.partition("## JSON")[2]
    documented = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert documented == json.loads(out).keys()
    assert all(f"`{name}`" in page for name in HAZARDS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["absent.jsonl", "--model", "transformer"], "accord: absent.jsonl: no such file"),
        (["ROWS"], "--model is missing; type accord data FILE --model MODEL."),
        (["ROWS", "--model", "absent/folder/here"], "accord: --model absent/folder/here: no such model; give a folder"),
        (["ROWS", "--model", "transformer", "--rows", "-1"], "accord: --rows: -1, expected at least 0."),
        (["ROWS", "--model", "transformer", "--max-length", "1"], "accord: --max-length: 1, expected at least 2."),
        (["ROWS", "--model", "transformer", "--max-ties", "x"], "accord: --max-ties: 'x'; expected a number of rows"),
        (["ROWS", "--model", "transformer", "--kind", "kto"], "--kind is one of sft, preferences, prompts, not 'kto'"),
        (["ROWS", "--model", "transformer", "--max-tie", "1"], "did you mean '--max-ties'"),
        (["ROWS", "--model", "transformer", "--heldout", "absent"], "accord: absent: no such file"),
        (["ROWS", "--model", "transformer", "--kind", "preferences"], "row 1: demonstrations, which sft reads"),
    ],
)
def test_a_mistake_is_a_sentence(
    words: list[str], sentence: str, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write([{"prompt": "hi", "completion": "no"}])
    code, out, err = run(capsys, *(file if word == "ROWS" else word for word in words))
    assert code == 2
    assert out == ""
    assert sentence in err


def test_a_row_that_is_no_row_ends_the_report_with_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hi", "completion": "no"}\n{"prompt": \n', encoding="utf-8")
    code, out, err = run(capsys, str(file), "--model", "transformer")
    assert (code, out) == (2, "")
    assert "rows.jsonl, row 2: not valid JSON" in err


def test_help_names_every_hazard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    out: Any = capsys.readouterr().out
    assert all(name in out for name in HAZARDS)
    assert "--max-HAZARD" in out
