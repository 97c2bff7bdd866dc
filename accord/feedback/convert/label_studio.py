"""Label Studio's JSON of annotated tasks, for a config with the tag Pairwise and, beside it, Choices, Rating and TextArea.

Source: Label Studio, "Task format" (guide/task_format) and src/tags/control/Pairwise.js: a result of type "pairwise" with
{"selected": "left" or "right"}, and none where neither is selected.  The config that goes with an export:

    <View><Text name="prompt" value="$prompt"/><Pairwise name="pw" toName="text1,text2"/>
    <Text name="text1" value="$text1"/><Text name="text2" value="$text2"/>
    <Choices name="neither" toName="prompt"><Choice value="tie"/><Choice value="both_bad"/></Choices>
    <Rating name="strength" toName="prompt" maxRating="3"/><TextArea name="comment" toName="prompt"/></View>
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from accord.data.rows import Where, messages_field, require, text_field
from accord.feedback.convert.file_vote import (
    CannotHold,
    FileVote,
    Row,
    Written,
    by_pair,
    moment_of,
    new_pair,
    number_of,
    only_text,
    require_choice,
    user,
)
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.entities import ADJUDICATION, Choice, VoteRow
from accord.io.readers import json_kind

TEXTS = (("text1", "text2"), ("left", "right"), ("answer1", "answer2"), ("response1", "response2"))
PROMPTS = ("prompt", "question", "instruction")
SELECTED: dict[Choice, str] = {"a": "left", "b": "right"}
SIDES: dict[object, Choice] = {"left": "a", "right": "b"}


def write(votes: Iterable[VoteRow], options: PairOptions) -> Written:
    """One task for each pair, candidate a on the left, with an annotation of each vote."""
    written = Written()
    people: dict[str, int] = {}
    for number, given in enumerate(by_pair(votes).values(), 1):
        own = [vote for vote in given if vote.occasion != ADJUDICATION]
        if len(own) < len(given):
            written.left_out["the owner's decisions"] += len(given) - len(own)
        if not own:
            continue
        first = own[0]
        try:
            prompt = {"prompt": only_text(first.prompt)}
        except CannotHold:
            lines = "\n\n".join(f"{m['role']}: {m['content']}" for m in first.prompt)
            prompt = {"prompt": lines, "messages": [dict(m) for m in first.prompt]}  # type: ignore[dict-item]
        annotations = [_annotation(vote, people.setdefault(vote.annotator, len(people) + 1)) for vote in own]
        written.rows.append(
            {"id": number, "data": {**prompt, "text1": first.a.text, "text2": first.b.text}, "annotations": annotations}
        )
        written.votes += len(own)
    return written


def _annotation(vote: VoteRow, person: int) -> dict[str, Any]:
    result: list[dict[str, Any]] = []
    if vote.choice in SELECTED:
        result.append(_result("pw", "pw", "pairwise", {"selected": SELECTED[vote.choice]}))
        result.append(_result("strength", "prompt", "rating", {"rating": vote.strength}))
    elif vote.choice != "skip":
        result.append(_result("neither", "prompt", "choices", {"choices": [vote.choice]}))
    if vote.comment:
        result.append(_result("comment", "prompt", "textarea", {"text": [vote.comment]}))
    return {
        "completed_by": person, "result": result, "was_cancelled": vote.choice == "skip", "ground_truth": False,
        "lead_time": vote.seconds, "created_at": vote.created.isoformat(),
    }  # fmt: skip


def _result(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def read(rows: Iterable[tuple[Where, Row]]) -> Iterator[FileVote | str]:
    """The votes of tasks; an annotation without a selection is a tie unless its choices say both_bad or it was cancelled."""
    for where, row in rows:
        data = require(row, "data", where)
        if not isinstance(data, dict):
            raise where.error(f"'data' is a JSON {json_kind(data)}, expected an object.")
        names = next((two for two in TEXTS if all(name in data for name in two)), None)
        if names is None:
            raise where.error("'data' has no two texts to compare: text1 and text2, or left and right.")
        if "messages" in data:
            prompt: Any = messages_field(data, "messages", where)
        else:
            key = next((name for name in PROMPTS if name in data), "prompt")
            prompt = user(text_field(data, key, where))
        pair = new_pair(prompt, text_field(data, names[0], where), text_field(data, names[1], where))
        require_choice(pair, where)
        annotations = row.get("annotations") or []
        if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
            raise where.error("'annotations' is not a list of objects.")
        if not annotations:
            yield "tasks without an annotation"
        for annotation in annotations:
            yield _judgment(pair, annotation, where)


def _judgment(pair: Any, annotation: Mapping[str, Any], where: Where) -> FileVote:
    results = annotation.get("result") or []
    if not isinstance(results, list) or not all(
        isinstance(r, dict) and isinstance(r.get("value"), dict) for r in results
    ):
        raise where.error("a 'result' is not a list of objects with a value.")
    values = {r.get("type"): r["value"] for r in results}
    choice: Choice = "tie"
    if annotation.get("was_cancelled") is True:
        choice = "skip"
    elif "pairwise" in values:
        selected = values["pairwise"].get("selected")
        if selected not in SIDES:
            raise where.error(f"selected {selected!r:.40}, expected left or right.")
        choice = SIDES[selected]
    elif values.get("choices", {}).get("choices") == ["both_bad"]:
        choice = "both_bad"
    by = annotation.get("completed_by")
    texts = values.get("textarea", {}).get("text") or [""]
    return FileVote(
        pair,
        choice,
        str(by.get("id", "") if isinstance(by, dict) else "" if by is None else by),
        strength=int(number_of(values.get("rating", {}), "rating", where, 1, 3, 1)),
        left="a",
        seconds=number_of(annotation, "lead_time", where, 0, 86400, 0),
        created=moment_of(annotation.get("created_at"), where, "created_at"),
        comment=str(texts[0] if isinstance(texts, list) else texts),
    )
