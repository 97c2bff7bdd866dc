"""Votes through files of every format: store, file, another store, the same votes as far as the format can hold them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from accord.data.rows import Where
from accord.errors import UserError
from accord.feedback.convert.command import NAMES, export_votes, import_file, moment, show_stats
from accord.feedback.convert.file_vote import FileVote
from accord.feedback.convert.formats import FORMATS
from accord.feedback.convert.pairs import PairOptions, preferences
from accord.feedback.convert.store_votes import import_votes
from accord.feedback.entities import ADJUDICATION, NewCandidate, NewPair, VoteRow
from accord.feedback.store import Store, open_store
from accord.feedback.vote_rows import read_votes

HOSTILE = "<script>alert(1)</script>\x00\u2028\u202e\x1b[31m<|im_start|>system\njavascript: \ud800 [INST] </s>"
START = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
PAIRED = [name for name, form in FORMATS.items() if not form.whole]
Stores = Callable[[str], Store]


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("store") / "feedback.db"
    store = open_store(path)
    store.create_project("tone")
    store.engine.dispose()  # what is in the write-ahead log goes into the file
    return path.read_bytes()


@pytest.fixture
def stores(tmp_path: Path, new_store: bytes) -> Stores:
    def make(name: str) -> Store:
        (tmp_path / f"{name}.db").write_bytes(new_store)
        return open_store(tmp_path / f"{name}.db")

    return make


def reply(text: str, policy: str = "sft@1") -> NewCandidate:
    return NewCandidate(text, (5, 6), policy, {"temperature": 0.7})


def judged(prompt: str | list[dict[str, str]], choice: str, annotator: str = "x", **more: Any) -> FileVote:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    texts = more.pop("texts", (f"yes to {turns[-1]['content']}", f"no to {turns[-1]['content']}"))
    gold = more.pop("gold", None)
    pair = NewPair(tuple(turns), reply(texts[0]), reply(texts[1], "ppo@2"), 0.25, gold, "run")
    return FileVote(pair, choice, annotator, **{"seconds": 2.5, "created": START, **more})  # type: ignore[arg-type]


def votes_of_all_kinds() -> list[FileVote]:
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]
    return [
        judged("q1", "a", "x", strength=3),
        judged("q1", "b", "y", left="b", created=START + timedelta(seconds=1)),
        judged("q2", "tie", "x", comment="close"),
        judged("q3", "both_bad", "y"),
        judged("q4", "skip", "x"),
        judged(talk, "b", "x", strength=2),
        judged("q5", "a", "x", texts=(HOSTILE, f"{HOSTILE}{HOSTILE}")),
    ]


def options(form: str, out: Path, **more: Any) -> argparse.Namespace:
    values = {"format": form, "out": str(out), "until": "", "ties": "drop", "share": False, "strengths": False}
    return argparse.Namespace(**{**values, "with_comments": False, "file": str(out), **more})


def seen(votes: list[VoteRow], *fields: str) -> Counter[Any]:
    """The votes as a multiset of texts, choice by text, and the named fields; annotators by the pairs they judged."""

    def one(v: VoteRow) -> tuple[Any, ...]:
        text = {"a": v.a.text, "b": v.b.text}.get(v.choice, v.choice)
        left = v.a.text if v.left == "a" else v.b.text
        given = {"left": left, "a_policy": v.a.policy if v.a.text < v.b.text else v.b.policy, "seconds": v.seconds}
        given.update(strength=v.strength, created=v.created, comment=v.comment, occasion=v.occasion, gold=v.gold)
        given.update(probability=v.probability, source=v.source, tokens=v.a.tokens, sampling=str(v.a.sampling))
        prompt = json.dumps([dict(m) for m in v.prompt], sort_keys=True)
        return (prompt, *sorted((v.a.text, v.b.text)), text, *(given[f] for f in fields))

    return Counter(one(v) for v in votes)


def through(
    form: str, stores: Stores, tmp_path: Path, judgments: list[FileVote], **more: Any
) -> tuple[Any, Any, list[str]]:
    first, second = stores("first"), stores("second")
    import_votes(first, "tone", judgments)
    said = export_votes(first, "tone", options(form, tmp_path / "votes.json", **more))
    import_file(second, "tone", options(form, tmp_path / "votes.json"))
    return read_votes(first, "tone"), read_votes(second, "tone"), said


def test_the_parser_knows_every_format() -> None:
    assert tuple(FORMATS) == NAMES


# ------------------------------------------------------------------ formats that hold votes
HELD = {
    "raw": (
        "strength", "left", "a_policy", "seconds", "created", "comment", "occasion", "gold", "probability", "source",
        "tokens", "sampling",
    ),
    "label-studio": ("strength", "seconds", "created", "comment"),
    "argilla": ("a_policy",),
    "fastchat": ("left", "a_policy", "created"),
}  # fmt: skip


@pytest.mark.parametrize("form", HELD)
def test_votes_come_back_with_all_that_the_format_holds(form: str, stores: Stores, tmp_path: Path) -> None:
    more = {"with_comments": True} if FORMATS[form].comments else {}
    before, after, said = through(form, stores, tmp_path, votes_of_all_kinds(), **more)
    if form in ("argilla", "fastchat"):
        before = [v for v in before if v.choice != "skip"]
        assert "Left out: skipped 1." in said
    assert seen(after, *HELD[form]) == seen(before, *HELD[form])
    groups = [Counter(Counter(v.annotator for v in votes).values()) for votes in (before, after)]
    assert groups[0] == groups[1]


def test_gold_questions_and_repeats_are_in_the_raw_export(stores: Stores, tmp_path: Path) -> None:
    judgments = [judged("g", "a", gold="a"), judged("q", "b"), judged("q", "a", occasion=1)]
    before, after, _ = through("raw", stores, tmp_path, judgments)
    assert seen(after, *HELD["raw"]) == seen(before, *HELD["raw"])
    assert sorted(v.occasion for v in after) == [0, 0, 1]


def test_comments_are_written_only_if_asked(stores: Stores, tmp_path: Path) -> None:
    for form in ("raw", "label-studio"):
        store = stores(form)
        import_votes(store, "tone", votes_of_all_kinds())
        export_votes(store, "tone", options(form, tmp_path / form))
        assert "close" not in (tmp_path / form).read_text()
        export_votes(store, "tone", options(form, tmp_path / form, with_comments=True))
        assert "close" in (tmp_path / form).read_text()
    with pytest.raises(UserError, match="no place for comments"):
        export_votes(store, "tone", options("trl", tmp_path / "x", with_comments=True))


def test_no_export_names_an_annotator(stores: Stores, tmp_path: Path) -> None:
    store = stores("names")
    import_votes(store, "tone", [replace(j, annotator="Grace Hopper") for j in votes_of_all_kinds()])
    for form in NAMES:
        export_votes(store, "tone", options(form, tmp_path / form))
        assert "Hopper" not in (tmp_path / form).read_text()


# ------------------------------------------------------------------ formats of pairs
@pytest.mark.parametrize("form", [name for name in PAIRED if name != "trl-unpaired"])
def test_preferences_come_back_and_the_rest_is_counted(form: str, stores: Stores, tmp_path: Path) -> None:
    before, after, said = through(form, stores, tmp_path, votes_of_all_kinds())
    expected = [v for v in before if v.choice in ("a", "b")]
    if form in ("trl",):
        expected = [v for v in expected if len(v.prompt) == 1]
    assert seen(after) == seen(expected)
    left_out = next(s for s in said if s.startswith("Left out: "))
    assert "ties 1" in left_out
    assert "both bad 1" in left_out
    assert "skipped 1" in left_out


def test_unpaired_rows_are_true_and_false_and_both_bad_is_false_twice(stores: Stores, tmp_path: Path) -> None:
    before, after, _ = through("trl-unpaired", stores, tmp_path, votes_of_all_kinds())
    kept = [v for v in before if v.choice in ("a", "b", "both_bad") and len(v.prompt) == 1]
    assert seen(after) == seen(kept)
    rows = [json.loads(line) for line in (tmp_path / "votes.json").read_text().splitlines()]
    assert [r["label"] for r in rows if r["prompt"] == "q3"] == [False, False]
    assert {r["completion"]: r["label"] for r in rows if r["prompt"] == "q2"} == {}


def test_each_format_is_the_documented_one(stores: Stores, tmp_path: Path) -> None:
    """One vote, b preferred to a, in every format."""
    store = stores("one")
    import_votes(store, "tone", [judged("q", "b", left="b", strength=2, texts=("A", "B"))])
    vote = read_votes(store, "tone")[0]
    ask, good, bad = {"role": "user", "content": "q"}, *({"role": "assistant", "content": c} for c in "BA")
    turns = [{"from": "human", "value": "q"}], {"from": "gpt", "value": "B"}, {"from": "gpt", "value": "A"}
    expected: dict[str, Any] = {
        "trl": [{"prompt": "q", "chosen": "B", "rejected": "A"}],
        "trl-conversational": [{"prompt": [ask], "chosen": [good], "rejected": [bad]}],
        "trl-unpaired": [
            {"prompt": "q", "completion": "A", "label": False},
            {"prompt": "q", "completion": "B", "label": True},
        ],
        "hh-rlhf": [{"chosen": "\n\nHuman: q\n\nAssistant: B", "rejected": "\n\nHuman: q\n\nAssistant: A"}],
        "llama-factory": [{"conversations": turns[0], "chosen": turns[1], "rejected": turns[2]}],
        "llama-factory-alpaca": [{"instruction": "q", "input": "", "chosen": "B", "rejected": "A"}],
        "openrlhf": [{"chosen": [ask, good], "rejected": [ask, bad]}],
    }
    for form, rows in expected.items():
        assert FORMATS[form].write([vote], PairOptions()).rows == rows
    (battle,) = FORMATS["fastchat"].write([vote], PairOptions()).rows
    assert (battle["model_a"], battle["model_b"], battle["winner"]) == ("ppo@2", "sft@1", "model_a")
    assert battle["conversation_a"] == [ask, good]
    (record,) = FORMATS["argilla"].write([vote], PairOptions()).rows
    assert record["fields"] == {"prompt": "q", "response1": "A", "response2": "B"}
    assert record["responses"]["preference"][0]["value"] == ["response2", "response1"]
    (task,) = FORMATS["label-studio"].write([vote], PairOptions()).rows
    assert task["data"] == {"prompt": "q", "text1": "A", "text2": "B"}
    kinds = {r["type"]: r["value"] for r in task["annotations"][0]["result"]}
    assert kinds == {"pairwise": {"selected": "right"}, "rating": {"rating": 2}}


def test_turns_of_a_transcript_inside_a_text_are_left_out_of_hh(stores: Stores, tmp_path: Path) -> None:
    judgments = [judged("q", "a"), judged("p", "a", texts=("ok\n\nHuman: more", "no"))]
    _, after, said = through("hh-rlhf", stores, tmp_path, judgments)
    assert len(after) == 1
    assert any("a text holds '\\n\\nHuman:'" in s for s in said)


# ------------------------------------------------------------------ ties, several votes, strengths
def rows_of(judgments: list[FileVote], stores: Stores, **more: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    store = stores("ties")
    import_votes(store, "tone", judgments)
    written = FORMATS["trl"].write(read_votes(store, "tone"), PairOptions(**more))
    return written.rows, written.left_out


def test_ties_are_half_labels_or_a_row_each_way(stores: Stores, tmp_path: Path) -> None:
    judgments = [judged("q", "tie", texts=("A", "B")), judged("p", "both_bad", texts=("A", "B"))]
    rows, left_out = rows_of(judgments, stores, ties="half")
    assert rows[0] == {"prompt": "q", "chosen": "A", "rejected": "B", "label": 0.5}
    assert not left_out
    written = FORMATS["trl"].write(read_votes(open_store(tmp_path / "ties.db"), "tone"), PairOptions(ties="weight"))
    assert written.rows[:2] == [
        {"prompt": "q", "chosen": "A", "rejected": "B", "weight": 0.5},
        {"prompt": "q", "chosen": "B", "rejected": "A", "weight": 0.5},
    ]
    assert written.votes == 2


def test_half_labels_come_back_as_ties(stores: Stores, tmp_path: Path) -> None:
    judgments = [judged("q", "tie"), judged("p", "a", strength=3)]
    before, after, _ = through("trl", stores, tmp_path, judgments, ties="half", strengths=True)
    assert seen(after, "strength") == seen(before, "strength")


def test_every_vote_counts_as_a_row_or_in_a_share(stores: Stores, tmp_path: Path) -> None:
    judgments = [judged("q", c, who, texts=("A", "B")) for c, who in (("a", "x"), ("b", "y"), ("b", "z"), ("tie", "w"))]
    judgments.append(judged("p", "a", texts=("A", "B")))
    rows, _ = rows_of(judgments, stores)
    assert [r["chosen"] for r in rows if r["prompt"] == "q"] == ["A", "B", "B"]
    shared = FORMATS["trl"].write(read_votes(open_store(tmp_path / "ties.db"), "tone"), PairOptions("half", share=True))
    assert [(r["prompt"], r["chosen"], r.get("label", 1), r["weight"]) for r in shared.rows] == [
        ("q", "B", 2.5 / 4, 4 / 2.5),
        ("p", "A", 1, 1 / 2.5),
    ]


def test_strengths_are_weights_and_repeats_and_gold_questions_are_left_out(stores: Stores) -> None:
    judgments = [judged("q", "a", strength=3), judged("q", "a", occasion=1), judged("g", "a", gold="a")]
    rows, left_out = rows_of(judgments, stores, strengths=True)
    assert [r["weight"] for r in rows] == [3.0]
    assert left_out == {"repeats": 1, "gold questions": 1}


@pytest.mark.parametrize("more", [{"ties": "half"}, {"share": True}, {"strengths": True}])
def test_soft_labels_never_become_pairs_of_a_format_that_cannot_hold_them(
    more: dict[str, Any], stores: Stores, tmp_path: Path
) -> None:
    store = stores("soft")
    import_votes(store, "tone", votes_of_all_kinds())
    for form in (n for n in NAMES if n not in ("trl", "trl-conversational")):
        with pytest.raises(UserError, match=f"--format {form} (has no place|holds votes)"):
            export_votes(store, "tone", options(form, tmp_path / "x", **more))
    assert not (tmp_path / "x").exists()


def test_a_shared_label_has_the_loss_of_its_votes() -> None:
    """The cross-entropy of one row with the share times the number of votes is that of a row for each vote."""
    import math

    def loss(label: float, weight: float, p: float = 0.3) -> float:
        return -weight * (label * math.log(p) + (1 - label) * math.log(1 - p))

    pair = judged("q", "a").pair
    rows = [_vote(pair, n, c) for n, c in enumerate(("a", "a", "b", "tie"))]
    left: Counter[str] = Counter()
    (shared,) = [p for p, _ in preferences(rows, PairOptions("half", share=True), left)]
    each = sum(loss(*_as_a(p, pair)) for p, _ in preferences(rows, PairOptions("half"), left))
    both_ways = sum(loss(*_as_a(p, pair)) for p, _ in preferences(rows, PairOptions("weight"), left))
    assert 4 * loss(*_as_a(shared, pair)) == pytest.approx(each)
    assert both_ways == pytest.approx(each)


def _as_a(preference: Any, pair: NewPair) -> tuple[float, float]:
    label = preference.label if preference.chosen == pair.a.text else 1 - preference.label
    return label, preference.weight


def _vote(pair: NewPair, number: int, choice: str) -> VoteRow:
    return VoteRow(
        number,
        1,
        "d",
        pair.prompt,
        pair.a,
        pair.b,
        choice,
        1,
        1.0,
        "a",
        f"r{number}",
        0,
        1.0,
        None,
        "",
        START,
        "",
        (),  # type: ignore[arg-type]
    )


# ------------------------------------------------------------------ into a store
def test_importing_twice_adds_nothing(stores: Stores, tmp_path: Path) -> None:
    for form in ("raw", "trl", "argilla", "fastchat"):
        first, second = stores(f"{form}1"), stores(f"{form}2")
        import_votes(first, "tone", votes_of_all_kinds())
        export_votes(first, "tone", options(form, tmp_path / form))
        import_file(second, "tone", options(form, tmp_path / form))
        once = read_votes(second, "tone")
        said = import_file(second, "tone", options(form, tmp_path / form))
        assert read_votes(second, "tone") == once
        assert "are not counted twice" in said[1]


def test_equal_rows_of_one_file_are_votes_of_different_annotators(stores: Stores, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "A", "rejected": "B"}\n' * 3)
    store = stores("equal")
    import_file(store, "tone", options("trl", path))
    votes = read_votes(store, "tone")
    assert len({v.annotator for v in votes}) == len(votes) == 3
    assert len({v.pair for v in votes}) == 1


def test_the_other_order_of_two_replies_is_the_same_pair(stores: Stores, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "q", "chosen": "A", "rejected": "B"}\n{"prompt": "q", "chosen": "B", "rejected": "A"}\n'
    )
    store = stores("order")
    import_file(store, "tone", options("trl", path))
    votes = read_votes(store, "tone")
    assert len({v.pair for v in votes}) == 1
    assert sorted(v.choice for v in votes) == ["a", "b"]


def test_sides_that_a_file_does_not_name_are_drawn(stores: Stores, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "chosen": "A", "rejected": "B"}}\n' for n in range(200)))
    store = stores("sides")
    import_file(store, "tone", options("trl", path))
    votes = read_votes(store, "tone")
    assert 70 <= sum(v.left == "a" for v in votes) <= 130
    assert all(v.choice == "a" for v in votes)


def test_imported_votes_count_toward_a_pairs_overlap(stores: Stores) -> None:
    from accord.feedback.queue import next_questions

    store = stores("overlap")
    import_votes(store, "tone", [judged("q", "a", "x")])
    person, _ = store.add_annotator("tone", "Ada")
    assert next_questions(store, person) == []


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("trl", '{"prompt": "q", "chosen": "A"}', "row 2: no 'rejected'"),
        ("trl", '{"prompt": "q", "chosen": "A", "rejected": "A"}', "row 2: .*the same text"),
        ("trl", '{"prompt": "q", "chosen": "A", "rejected": "B", "label": 0.7}', "row 2: a label of 0.7 is a share"),
        ("trl", '{"prompt": "q", "chosen": "A", "rejected": "B", "label": "x"}', "row 2: label 'x'"),
        ("trl", '{"prompt": "q", "chosen": "A", "rejected": "B", "weight": 0.5}', "row 2: a weight of 0.5"),
        ("trl", "[1]", "row 2: a JSON array"),
        ("trl", "{", "row 2: not valid JSON"),
        ("trl-unpaired", '{"prompt": "q", "completion": "A", "label": 1}', "row 2: label 1, expected true or false"),
        ("hh-rlhf", '{"chosen": "hello", "rejected": "x"}', "row 2: 'chosen' is no transcript"),
        ("llama-factory", '{"conversations": [{"from": "alien", "value": "x"}]}', "row 2: .*from 'alien'"),
        ("llama-factory-alpaca", '{"instruction": "q", "chosen": "A", "rejected": "B", "history": [1]}', "row 2: 'history'"),
        ("fastchat", '{"conversation_a": []}', "row 2: 'conversation_a' is empty"),
        ("argilla", '{"fields": {"prompt": "q", "response1": "A", "response2": "B"}, "responses": {"preference": [{"value": 3}]}}',
         "row 2: the preference 3 is no ranking"),
        ("label-studio", '{"data": {"prompt": "q", "text1": "A", "text2": "A"}}', "row 2: .*the same text"),
        ("label-studio", '{"data": {"prompt": "q", "text1": "A", "text2": "B"}, "annotations": [{"result": 3}]}',
         "row 2: a 'result'"),
        ("fastchat", '{"conversation_a": [{"role": "user", "content": "q"}], "conversation_b": [{"role": "user", "content": "q"}],'
         ' "winner": "C"}', "row 2: winner 'C'"),
        ("raw", '{"a": {"text": "A"}, "b": {"text": "B"}, "prompt": [{"role": "user", "content": "q"}], "choice": "a",'
         ' "left": "a", "annotator": "x", "created": "soon"}', "row 2: created 'soon'"),
        ("raw", '{"a": {"text": "A"}, "b": {"text": "B"}, "prompt": [{"role": "user", "content": "q"}], "choice": "a",'
         ' "left": "a", "annotator": "x", "strength": 9}', "row 2: strength 9"),
        ("label-studio", '{"data": {"prompt": "q"}}', "row 2: 'data' has no two texts"),
        ("raw", '{"a": {"text": "A"}, "b": {"text": "B"}, "prompt": [{"role": "user", "content": "q"}], "choice": "c"}',
         "row 2: choice 'c'"),
        ("raw", '{"a": 1}', "row 2: 'a' is not an object"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_with_file_and_row(
    form: str, row: str, said: str, stores: Stores, tmp_path: Path
) -> None:
    store = stores("bad")
    import_votes(store, "tone", [judged("q", "a", texts=("A", "B"))])
    rows = [json.dumps(r) for r in FORMATS[form].write(read_votes(store, "tone"), PairOptions()).rows]
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{rows[0]}\n{row}\n")
    empty = stores("empty")
    with pytest.raises(UserError, match=said) as found:
        import_file(empty, "tone", options(form, path))
    assert str(path) in str(found.value)
    assert read_votes(empty, "tone") == []


def test_files_that_are_missing_empty_or_without_preferences_are_named(stores: Stores, tmp_path: Path) -> None:
    store = stores("none")
    with pytest.raises(UserError, match="no such file"):
        import_file(store, "tone", options("trl", tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        import_file(store, "tone", options("trl", tmp_path / "empty"))
    with pytest.raises(UserError, match="no votes yet"):
        export_votes(store, "tone", options("trl", tmp_path / "out"))
    with pytest.raises(UserError, match="expected a moment"):
        moment("yesterday")


def test_a_battle_without_a_common_prompt_is_counted() -> None:
    ask, other = ({"role": "user", "content": c} for c in "qp")
    talk = {"role": "assistant", "content": "A"}
    row = {
        "model_a": "x",
        "model_b": "y",
        "winner": "tie",
        "conversation_a": [ask, talk],
        "conversation_b": [other, talk],
    }
    assert list(FORMATS["fastchat"].read([(Where("f", 1), row)])) == ["battles that differ before their last reply"]


def test_stats_of_hostile_and_missing_votes_print(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("krippendorff", reason="the extra feedback is not installed")
    store = stores("stats")
    asked = argparse.Namespace(until="", json=False)
    show_stats(store, "tone", asked)
    assert "no votes yet" in capsys.readouterr().out
    import_votes(store, "tone", votes_of_all_kinds())
    show_stats(store, "tone", asked)
    out = capsys.readouterr().out
    assert "Krippendorff's alpha" in out
    assert "a 1, b 1" in out
    show_stats(store, "tone", argparse.Namespace(until="", json=True))
    report = json.loads(capsys.readouterr().out)
    assert (report["votes"], report["skipped"], report["pairs"], report["annotators"]) == (6, 1, 5, 2)


def test_the_formats_need_no_torch() -> None:
    code = "import sys; import accord.feedback.convert.formats; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------ the owner's decisions
def test_a_decision_is_one_more_preference_and_stays_a_decision(stores: Stores, tmp_path: Path) -> None:
    votes = [judged("q1", "a", "x"), judged("q1", "b", "y"), judged("q1", "a", "owner", occasion=ADJUDICATION)]
    first, second, _ = through("raw", stores, tmp_path, votes)
    assert [v.occasion for v in second] == [v.occasion for v in first] == [0, 0, ADJUDICATION]
    written = FORMATS["trl"].write(first, PairOptions())
    assert Counter(row["chosen"] for row in written.rows) == {"yes to q1": 2, "no to q1": 1}
    assert not written.left_out


@pytest.mark.parametrize("form", ["argilla", "fastchat", "label-studio"])
def test_formats_of_annotators_votes_count_the_decisions_that_they_leave_out(form: str, stores: Stores) -> None:
    store = stores("first")
    import_votes(store, "tone", [judged("q1", "a", "x"), judged("q2", "b", "owner", occasion=ADJUDICATION)])
    written = FORMATS[form].write(read_votes(store, "tone"), PairOptions())
    assert (written.votes, written.left_out) == (1, {"the owner's decisions": 1})
