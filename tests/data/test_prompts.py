from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accord.data.chat import prompt_ids
from accord.data.prompt_cut import Side, tokens_to_keep
from accord.data.prompts import load_prompts
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]


def test_prompts_are_tokenized_up_to_the_assistants_turn(rows: Rows, chatml: Tokenizer) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]
    data = load_prompts(rows({"prompt": "Who?", "extra": 1}, {"prompt": chat}, {"prompt": chat[1:]}), chatml, 200)
    assert [list(p) for p in data.prompts] == [prompt_ids(chatml, p) for p in ("Who?", chat, chat[1:])]
    assert data.prompts[0] == data.prompts[2] != data.prompts[1]
    assert data.texts == ("Who?", "system: Be short.\nuser: Who?", "Who?")
    assert data.sources == ("Who?", chat, chat[1:])
    assert data.report.tokens == sum(map(len, data.prompts))
    assert len(data) == 3


def test_long_prompts_are_cut_and_empty_ones_dropped(rows: Rows, small: Tokenizer) -> None:
    path = rows(
        {"prompt": "abcdef"}, {"prompt": "\n "}, {"prompt": [{"role": "user", "content": ""}]}, {"prompt": "hi"}
    )
    data = load_prompts(path, small, 4)
    assert data.prompts == ((3, 9, 10, 4), (3, 12, 13, 4))  # <user> ef <assistant>: what the template writes is kept
    assert data.report.truncated_prompts == 1
    assert data.report.dropped == {"empty prompt": 2}
    assert load_prompts(path, small, 4, truncate="right").prompts[0] == (3, 5, 6, 4)
    assert load_prompts(path, small, 4, truncate="drop").texts == ("hi",)
    assert load_prompts(path, small, 4, limit=1).report.rows == 1


def test_mistakes_in_prompts_name_their_row(rows: Rows, small: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"row 2: no 'prompt' \(did you mean 'prompts'"):
        load_prompts(rows({"prompt": "a"}, {"prompts": "a"}), small, 8)
    with pytest.raises(UserError, match="no row is usable"):
        load_prompts(rows({"prompt": ""}), small, 8)
    with pytest.raises(UserError, match="max_prompt_length: 0"):
        load_prompts("x", small, 0)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from(["left", "right"]),
    st.sampled_from([None, 0]),
)
@example([0, 1, 2, 3], 3, "left", 0)
@example([0, 1, 2, 3], 1, "left", 0)
def test_cutting_removes_from_the_asked_side_and_keeps_bos(
    ids: list[int], limit: int, side: Side, bos: int | None
) -> None:
    places = tokens_to_keep(ids, limit, side, bos)
    if len(ids) <= limit:
        assert places == list(range(len(ids)))
    else:
        assert places == sorted(set(places))
        assert len(places) == limit
        if side == "right":
            assert places[-1] == limit - 1
        else:
            assert places[-1] == len(ids) - 1
            assert (places[0] == 0) == (limit > 1 and bos is not None and ids[0] == bos)
