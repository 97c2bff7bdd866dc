"""The report's texts line up and its results file is whole or absent."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from accord.evaluation.report import (
    FIRST_NUMBER,
    HEADERS,
    ModelRow,
    markdown_samples,
    markdown_table,
    side_by_side,
    table,
    write_results,
)

ROWS = [
    ModelRow("sft", 0.10634, (0.05, 0.162), None, None, -0.0004, 24.31, 0.753),
    ModelRow("ppo", 0.547, (0.49, 0.6), 0.8149, (0.76, 0.85), 5.93, 7.2, 1.0),
    ModelRow("a longer name of a model", -12.5, (-13.25, -11.0), 0.0, (0.0, 0.0), 11.31, 256, 0.0),
]
PROMPTS = ["Describe a rainy Monday morning on a crowded bus.", "What does a firefighter fear most?"]
SAMPLES = {
    "SFT": ["The bus is packed with people, all of them soaked, and nobody speaks.", "Fire."],
    "PPO": ["It is a beautiful morning full of friendly faces and laughter.", "They love it.\n\n1. Brave\n2. Calm"],
    "DPO": ["A peaceful scene.", "Losing someone they could have saved, and a long word: " + "x" * 60],
}


def words(text: str) -> str:
    return re.sub(r"[\s|>-]+", "", text)


# ----------------------------------------------------------------- table
def test_the_table_holds_the_numbers():
    lines = table(ROWS).splitlines()
    assert lines[2].split() == ["sft", "+0.106", "[+0.05,", "+0.16]", "-", "0.00", "24.3", "75", "%"]
    assert lines[3].split()[4:] == ["0.81", "[0.76,", "0.85]", "5.93", "7.2", "100", "%"]
    assert "-12.500 [-13.25, -11.00]" in lines[4]
    assert "0.00 [0.00, 0.00]" in lines[4]
    assert len(lines) == 2 + len(ROWS) + 1


def test_table_is_aligned_plain_and_fits():
    lines = table(ROWS).splitlines()
    assert max(map(len, lines)) <= 110
    assert max(map(len, table(ROWS[:2]).splitlines())) <= 100
    assert table(ROWS).isascii()
    assert set(lines[1]) == {"-"}
    starts = [lines[0].index(header) for header in HEADERS[1:FIRST_NUMBER]]
    ends = [lines[0].index(header) + len(header) for header in HEADERS[FIRST_NUMBER:]]
    for line in lines[2:-1]:
        assert all(line[s - 2 : s].isspace() and not line[s].isspace() for s in starts)
        assert all(line[end - 1] in "0123456789%" and not line[end : end + 2].strip() for end in ends)


def test_a_narrow_table_wraps_headers_and_names_and_no_figure():
    text = table(ROWS, 80)
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("+0.547 [+0.49, +0.60]", "0.81 [0.76, 0.85]", "11.31", "256.0", "100 %"):
        assert figure in text
    assert words("".join(line[:13] for line in text.splitlines()[-4:-1])).endswith("longernameofamodel")


def test_markdown_table_has_the_same_cells():
    lines = markdown_table(ROWS[:2]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {7}
    assert r"| 0.81 \[0.76, 0.85\] | 5.93 |" in lines[3]


# ----------------------------------------------------------------- side by side
@pytest.mark.parametrize("width", [80, 100, 137])
def test_columns_line_up_and_lose_no_word(width):
    text = side_by_side(PROMPTS, SAMPLES, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    column = (width - 6) // 3
    bars = [line for line in lines if " | " in line]
    for line in bars:
        padded = line.ljust(3 * column + 6)
        assert padded[column : column + 3] == " | "
        assert padded[2 * column + 3 : 2 * column + 6] == " | "
    for i in range(3):
        start = i * (column + 3)
        cells = words("".join(line[start : start + column] for line in bars))
        expected = "".join(list(SAMPLES)[i] + answer for answer in SAMPLES[list(SAMPLES)[i]])
        assert cells == words(expected)


@pytest.mark.parametrize("width", [79, 60, 30])
def test_narrow_terminals_get_stacked_answers(width):
    text = side_by_side(PROMPTS, SAMPLES, width)
    assert " | " not in text
    assert max(map(len, text.splitlines())) <= width
    firsts = [line.split(":")[0] for line in text.splitlines() if re.match(r"(SFT|PPO|DPO):", line)]
    assert firsts == ["SFT", "PPO", "DPO"] * 2
    everything = "".join(p + "".join(f"{m}:{SAMPLES[m][i]}" for m in SAMPLES) for i, p in enumerate(PROMPTS))
    assert words(text) == words(everything)


def test_many_models_are_stacked_rather_than_squeezed():
    samples = {f"model{i}": ["yes"] for i in range(6)}
    assert " | " in side_by_side(["?"], dict(list(samples.items())[:4]), 100)
    assert " | " not in side_by_side(["?"], samples, 100)


def test_line_breaks_are_kept_and_empty_answers_shown():
    text = side_by_side(PROMPTS[1:], {"A": ["one\n\ntwo"], "B": [" \n"]}, 100)
    rows = [[cell.strip() for cell in line.split(" |")] for line in text.splitlines()[3:]]
    assert rows == [["one", "(empty)"], ["two", ""]]


def test_wide_characters_do_not_break_the_columns():
    text = side_by_side(["?"], {"A": ["雨が降っている" * 9 + " cafe\u0301 \U0001f600"], "B": ["plain"]}, 80)
    body = text.splitlines()[3:]
    left = [line.split(" |")[0] for line in body]
    columns = [sum(0 if c == "\u0301" else 1 if ord(c) < 0x300 else 2 for c in line) for line in left]
    assert set(columns) == {38}


def test_an_answer_cannot_move_the_cursor():
    text = side_by_side(["a\x1b[2J?"], {"A": ["\x1b[31mred\x07\r\nbell\u202e\x9b"], "B": ["ok\tand\x0cform"]}, 100)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "red" in text


def test_samples_must_answer_each_prompt():
    with pytest.raises(ValueError, match="samples of B: 1 replies to 2 prompts"):
        side_by_side(PROMPTS, {"A": ["x", "y"], "B": ["x"]}, 100)
    with pytest.raises(ValueError, match="no model"):
        markdown_samples(PROMPTS, {})


def test_markdown_samples_shows_text_as_itself():
    text = markdown_samples(["Say | why?"], {"SFT": ["*a*\n<b>_c_ `d` $e$ [f](g)"], "PPO": [""]})
    assert text.splitlines() == [
        "| prompt | SFT | PPO |",
        "| --- | --- | --- |",
        r"| Say \| why? | \*a\*<br>\<b\>\_c\_ \`d\` \$e\$ \[f\](g) | (empty) |",
    ]


# ----------------------------------------------------------------- results.json
def test_results_are_read_back_as_written(tmp_path):
    results = {
        "ppo": {"gold_mean": 0.1, "gold_ci95": (0.0, 0.2), "win": np.float32(0.5), "n": np.int64(7)},
        "per_prompt": np.array([[1.0, 2.0]]),
        "note": "naïve",
        "none": None,
        "ok": True,
    }
    path = tmp_path / "new" / "folder" / "results.json"
    write_results(path, results)
    assert json.loads(path.read_text("utf-8")) == {
        "ppo": {"gold_mean": 0.1, "gold_ci95": [0.0, 0.2], "win": 0.5, "n": 7},
        "per_prompt": [[1.0, 2.0]],
        "note": "naïve",
        "none": None,
        "ok": True,
    }
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), -np.inf])
def test_a_number_that_is_not_finite_is_null_and_loses_no_other(tmp_path, bad):
    path = tmp_path / "results.json"
    write_results(path, {"ppo": {"kl_mean": bad, "gold": np.array([1.0, bad])}, "seed": 0})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "ppo": {"kl_mean": None, "gold": [1.0, None]},
        "seed": 0,
    }


def test_a_value_that_json_has_not_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"seed": 0})
    with pytest.raises(TypeError, match=r"sft\[1\] is of type object"):
        write_results(path, {"sft": [1, object()]})
    assert json.loads(path.read_text()) == {"seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_undefined_figures_are_dashes_in_the_table():
    row = ModelRow("ppo", None, None, None, None, None, 3.0, 0.5)
    assert table([row]).splitlines()[2].split() == ["ppo", "-", "-", "-", "3.0", "50", "%"]
