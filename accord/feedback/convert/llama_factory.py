"""LLaMA-Factory's preference data sets: alpaca (instruction, input, history) and sharegpt (conversations), ranking: true.

Source: LLaMA-Factory, data/README.md, "Preference Dataset" of both formats.  The file is a JSON array; its entry in
dataset_info.json needs "ranking": true, the columns "chosen" and "rejected", and "formatting": "sharegpt" for the second
format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from accord.data.rows import Where, require, text_field
from accord.feedback.convert.file_vote import CannotHold, FileVote, Row, Written, new_pair
from accord.feedback.convert.pairs import PairOptions, Preference, require_plain, vote_of, write_pairs
from accord.feedback.entities import Message, VoteRow
from accord.io.readers import json_kind

NAMES = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
ROLES = {name: role for role, name in NAMES.items()}


def _parts(prompt: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """(system prompt, turns) of a prompt.  Raises CannotHold where the turns do not alternate from the user's to the user's."""
    system = str(prompt[0]["content"]) if prompt[0]["role"] == "system" else ""
    turns = [dict(m) for m in prompt[1 if prompt[0]["role"] == "system" else 0 :]]
    expected = ["user", "assistant"] * len(turns)
    if len(turns) % 2 == 0 or [m["role"] for m in turns] != expected[: len(turns)]:
        raise CannotHold("the turns of the prompt do not alternate between user and assistant")
    return system, turns


# ------------------------------------------------------------------ alpaca
def write_alpaca(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of {"instruction", "input", "chosen", "rejected"}, with "system" and "history" where there are earlier turns."""
    require_plain(options, "llama-factory-alpaca")
    return write_pairs(votes, options, _alpaca_row)


def _alpaca_row(row: Preference) -> dict[str, Any]:
    system, turns = _parts(row.prompt)
    texts = [m["content"] for m in turns]
    history = [list(exchange) for exchange in zip(texts[:-1:2], texts[1::2], strict=True)]
    more = {**({"system": system} if system else {}), **({"history": history} if history else {})}
    return {"instruction": texts[-1], "input": "", "chosen": row.chosen, "rejected": row.rejected, **more}


def read_alpaca(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of rows; an input follows its instruction on a line of its own, as LLaMA-Factory joins them."""
    for where, row in rows:
        instruction, chosen, rejected = (text_field(row, key, where) for key in ("instruction", "chosen", "rejected"))
        extra = text_field(row, "input", where) if row.get("input") else ""
        prompt = [{"role": "system", "content": text_field(row, "system", where)}] if row.get("system") else []
        for exchange in row.get("history") or []:
            if not (isinstance(exchange, list) and len(exchange) == 2 and all(isinstance(t, str) for t in exchange)):
                raise where.error("'history' is a list of [instruction, response] pairs of texts.")
            prompt += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
        prompt.append({"role": "user", "content": f"{instruction}\n{extra}" if extra else instruction})
        yield vote_of(new_pair(prompt, chosen, rejected), row, where)


# ------------------------------------------------------------------ sharegpt
def write_sharegpt(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """Rows of {"conversations", "chosen", "rejected"}, each turn {"from", "value"}, with "system" where there is one."""
    require_plain(options, "llama-factory")
    return write_pairs(votes, options, _sharegpt_row)


def _sharegpt_row(row: Preference) -> dict[str, Any]:
    system, turns = _parts(row.prompt)
    made: dict[str, Any] = {"conversations": [_turn(m["role"], m["content"]) for m in turns]}
    made.update(chosen=_turn("assistant", row.chosen), rejected=_turn("assistant", row.rejected))
    return {**made, "system": system} if system else made


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"from": NAMES[role], "value": text}


def read_sharegpt(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of rows.  Raises UserError for turns of unknown roles."""
    for where, row in rows:
        turns = require(row, "conversations", where)
        if not isinstance(turns, list) or not turns:
            raise where.error("'conversations' is not a list of turns.")
        prompt = [{"role": "system", "content": text_field(row, "system", where)}] if row.get("system") else []
        prompt += [_message(turn, f"conversations[{n}]", where) for n, turn in enumerate(turns)]
        chosen, rejected = (_message(require(row, key, where), key, where) for key in ("chosen", "rejected"))
        yield vote_of(new_pair(prompt, chosen["content"], rejected["content"]), row, where)


def _message(turn: Any, name: str, where: Where) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise where.error(f'{name} is a JSON {json_kind(turn)}, expected {{"from": …, "value": …}}.')
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        raise where.error(f"{name}: from {turn.get('from')!r:.40}, expected {', '.join(ROLES)}.")
    if not isinstance(turn.get("value"), str):
        raise where.error(f"{name}: its value is a JSON {json_kind(turn.get('value'))}, expected text.")
    return {"role": role, "content": turn["value"]}
