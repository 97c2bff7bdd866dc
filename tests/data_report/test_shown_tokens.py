"""Tokens as people read them."""

from __future__ import annotations

import pytest

from accord.data_report.shown_tokens import MOST, ShownText, ShownToken, as_plain, as_styled, from_bytes, readable


@pytest.mark.parametrize(
    ("token", "shown"),
    [("Ġcat", " cat"), ("Ċ", "\\n"), ("âĤ", "\\xe2\\x82"), ("Ã©", "é"), ("▁yes", "▁yes"), ("ĉ", "\\t")],
)
def test_a_byte_level_token_is_its_text_on_one_line(token: str, shown: str) -> None:
    assert readable(from_bytes(token)).replace(" yes", "▁yes") == shown


@pytest.mark.parametrize(
    ("token", "shown"), [("▁yes", " yes"), ("<0xE2>", "\\xe2"), ("a\u200bb", "a\\u200bb"), ("\x1b[31m", "\\x1b[31m")]
)
def test_other_tokens_have_no_character_that_a_terminal_acts_on(token: str, shown: str) -> None:
    assert readable(token) == shown


def text(*tokens: tuple[str, bool]) -> ShownText:
    return ShownText("row 1", tuple(ShownToken(n, t, label, t.startswith("<")) for n, (t, label) in enumerate(tokens)))


def test_the_plain_form_marks_lines_of_labels_and_escapes_its_separator() -> None:
    lines = list(as_plain(text(("<u>", False), ("a|b", False), ("yes", True), ("<e>", True), ("\\n", False))))
    assert lines == ["row 1: 5 tokens, 2 learned", "    <u>|a\\|b", "  > yes|<e>", "    \\n"]


def test_the_styled_form_has_the_same_tokens_with_labels_in_green() -> None:
    lines = list(as_styled(text(("<u>", False), ("hi\\n", False), ("yes", True), ("[red]", True))))
    assert [line.plain for line in lines[1:]] == ["  <u>hi\\n", "  yes[red]"]
    styles = {line.plain[span.start : span.end]: str(span.style) for line in lines[1:] for span in line.spans}
    assert "green" in styles["yes"]
    assert "green" in styles["[red]"]
    assert "green" not in styles["hi\\n"]


def test_of_a_long_text_the_middle_is_left_out_and_counted() -> None:
    lines = list(as_plain(text(*[("x", False)] * (MOST + 7))))
    assert lines[0] == "row 1: 607 tokens"
    assert lines[2] == "    … 7 more tokens …"
