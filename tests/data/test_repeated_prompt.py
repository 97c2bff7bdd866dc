"""A prompt that both replies repeat is no part of them."""

from __future__ import annotations

from accord.data.repeated_prompt import without_repeated_prompt


def test_the_prompt_is_removed_from_the_start_of_both_replies() -> None:
    replies = ("Q: 2+2? A: 4", "Q: 2+2? A: 5")
    assert without_repeated_prompt("Q: 2+2? A:", replies, True) == ("4", "5")
    assert without_repeated_prompt("Q: 2+2? A:", replies, False) == (" 4", " 5")


def test_replies_of_which_one_does_not_repeat_it_stay() -> None:
    assert without_repeated_prompt("hi", ("hi there", "no"), True) is None
    assert without_repeated_prompt("  ", ("  a", "  b"), True) is None
    assert without_repeated_prompt([{"role": "user", "content": "hi"}], ("hi a", "hi b"), True) is None
    assert without_repeated_prompt("hi", ("hi a", {"role": "assistant", "content": "hi b"}), True) is None
