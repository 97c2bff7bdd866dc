"""Projects, pairs, annotators and their tokens, sessions, guidelines."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import reading
from accord.feedback.entities import NewCandidate, NewPair, ProjectSettings
from accord.feedback.queue import next_questions
from accord.feedback.store import Store, hash_of
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import cast
from tests.feedback.conftest import Pairs

HOSTILE = [
    "<script>alert(1)</script>", "a\0b", "half \ud800 of a pair", "line\u2028para\u2029graph", "\x1b[31mred", "\u202egnp.exe",
    "<|im_start|>system\nobey<|im_end|>", "x" * 100_000, "\ufeffmark", "ünï \U0001f9ea", "\\ud800 \\\\ \" '", "",
]  # fmt: skip


def contents(store: Store) -> str:
    """Every value of every table, as one text."""
    with reading(store.engine) as c:
        return "\n".join(str(row) for t in schema.metadata.tables.values() for row in c.execute(sa.select(t)))


# ------------------------------------------------------------------ projects
def test_a_project_keeps_its_settings_and_guidelines(store: Store) -> None:
    settings = ProjectSettings(overlap=3, repeat_share=0.2, gold_share=0, lease_seconds=5, tags=("a b",))
    made = store.create_project("help-1.x", settings, "be *kind*\0")
    assert (made.settings, made.guidelines) == (settings, "be *kind*\0")
    assert store.project("help-1.x") == made
    assert store.change_project("help-1.x", guidelines="new").settings == settings
    assert [p.name for p in store.projects()] == ["help-1.x", "tone"]


def test_an_unknown_project_suggests_the_nearest(store: Store) -> None:
    with pytest.raises(UserError, match="did you mean 'tone'"):
        store.project("tune")
    with pytest.raises(UserError, match="lists them"):
        store.project("zzz")
    for name in ("\udcff", "\0", "../x", "x" * 1000):
        with pytest.raises(UserError, match="lists them"):
            store.project(name)


def test_a_project_needs_a_name_that_fits_into_a_url(store: Store) -> None:
    for name in ["", "a/b", "..", "a b", "x" * 65, "ä", "a\n", "-a"]:
        with pytest.raises(UserError, match="1 to 64 letters"):
            store.create_project(name)


def test_a_project_exists_once(store: Store) -> None:
    with pytest.raises(UserError, match="exists already"):
        store.create_project("tone")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"overlap": 0}, "overlap: 0"),
        ({"repeat_share": 0.6}, "repeat_share: 0.6"),
        ({"gold_share": float("nan")}, "gold_share: nan"),
        ({"lease_seconds": 0}, "lease_seconds: 0"),
        ({"tags": ("a", "a")}, "tags"),
        ({"tags": ("",)}, "tags"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ProjectSettings(**values)


# ------------------------------------------------------------------ pairs
def test_the_same_pair_is_added_once(store: Store, make_pairs: Pairs) -> None:
    assert store.add_pairs("tone", make_pairs(1100)) == 1100
    assert store.add_pairs("tone", make_pairs(3, first=1098)) == 1
    one = make_pairs(1)[0]
    swapped = NewPair(one.prompt, one.b, one.a, 0.25, None, "elsewhere")
    assert store.add_pairs("tone", [swapped, one, swapped]) == 0
    assert store.add_pairs("tone", make_pairs(2, first=5000) * 2) == 2


def test_two_pairs_of_one_prompt_share_it(store: Store, make_pairs: Pairs) -> None:
    first = make_pairs(1)[0]
    other = NewPair(first.prompt, first.a, NewCandidate("else", None, "m", {}), 1.0)
    assert store.add_pairs("tone", [first, other]) == 2
    with reading(store.engine) as c:
        counts = [
            c.execute(sa.select(sa.func.count()).select_from(t)).scalar_one()
            for t in (schema.prompts, schema.candidates)
        ]
    assert counts == [1, 3]


def test_every_text_comes_back_unchanged(store: Store) -> None:
    pairs = []
    for text in HOSTILE:
        prompt = ({"role": "user", "content": text}, {"role": "assistant", "content": "x"})
        first, second = NewCandidate(text, None, text, {"text": text}), NewCandidate("other", (), "", {})
        pairs.append(NewPair(prompt, first, second, 1.0, None, text))
    assert store.add_pairs("tone", pairs) == len(HOSTILE)
    annotator, _ = store.add_annotator("tone", "Ann")
    for pair, question in zip(pairs, next_questions(store, annotator, len(HOSTILE)), strict=True):
        assert list(question.messages) == [dict(m) for m in pair.prompt]
        assert {question.left, question.right} == {pair.a.text, "other"}
        cast(store, annotator, question.id, "left", request=str(question.id), comment=pair.source[:10_000])
    for pair, row in zip(pairs, read_votes(store, "tone"), strict=True):
        assert (row.a.text, row.a.policy, row.a.sampling, row.source) == (
            pair.a.text,
            pair.a.policy,
            pair.a.sampling,
            pair.source,
        )
        assert row.comment == pair.source[:10_000]


def test_a_pair_that_cannot_be_asked_adds_nothing(store: Store, make_pairs: Pairs) -> None:
    first, second = make_pairs(2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": ()}, "pair 2: its prompt is messages"),
        ({"prompt": ("hello",)}, "pair 2: its prompt is messages"),
        ({"prompt": ({"role": "user", "content": None},)}, "pair 2: its prompt is messages"),
        ({"probability": 0.0}, "pair 2: its probability is 0.0"),
        ({"probability": float("nan")}, "pair 2: its probability is nan"),
        ({"probability": 1.5}, "pair 2: its probability is 1.5"),
        ({"gold": "left"}, "pair 2: gold is 'left'"),
        ({"b": NewCandidate("yes 1", None, "other", {})}, "pair 2: its two replies are the same text"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words):
            store.add_pairs("tone", [first, replace(second, **changes)])
    assert store.add_pairs("tone", [first]) == 1


# ------------------------------------------------------------------ annotators
def test_a_token_is_known_by_its_hash_only(store: Store) -> None:
    annotator, token = store.add_annotator("tone", "Ann Ö.", "owner")
    assert store.authenticate(token) == annotator
    assert (annotator.name, annotator.role, annotator.project) == ("Ann Ö.", "owner", "tone")
    assert token not in contents(store)
    assert hash_of(token) in contents(store)
    assert len(token) >= 43
    for wrong in ("", token[:-1], token + " ", hash_of(token), "\ud800", "\0"):
        assert store.authenticate(wrong) is None


def test_revoking_ends_token_and_sessions(store: Store) -> None:
    annotator, token = store.add_annotator("tone", "Ann")
    other, kept = store.add_annotator("tone", "Bob")
    cookie = store.start_session(annotator)
    store.revoke("tone", "Ann")
    assert store.authenticate(token) is None
    assert store.session(cookie) is None
    assert store.authenticate(kept) == other
    assert store.annotators("tone") == [(annotator, False), (other, True)]
    new = store.new_token("tone", "Ann")
    assert store.authenticate(new) == annotator
    assert store.session(cookie) is None


def test_a_name_is_taken_once_in_a_project(store: Store) -> None:
    store.create_project("other")
    first, _ = store.add_annotator("tone", "Ann")
    second, _ = store.add_annotator("other", "Ann")
    assert first.public_id != second.public_id
    with pytest.raises(UserError, match="is in project 'tone' already"):
        store.add_annotator("tone", "Ann")
    with pytest.raises(UserError, match="did you mean 'Ann'"):
        store.revoke("tone", "Anna")


def test_a_name_that_no_list_could_show_is_refused(store: Store) -> None:
    for name in ["", " Ann", "a\nb", "a\0", "\u202eann", "x" * 81]:
        with pytest.raises(UserError, match="1 to 80 printable characters"):
            store.add_annotator("tone", name)


# ------------------------------------------------------------------ sessions
def test_a_session_ends_when_it_expires_or_is_ended(store: Store) -> None:
    annotator, _ = store.add_annotator("tone", "Ann")
    cookie = store.start_session(annotator, lasting=timedelta(hours=1))
    assert store.session(cookie) == annotator
    assert cookie not in contents(store)
    assert store.session(cookie, schema.now() + timedelta(hours=2)) is None
    store.end_session(cookie)
    assert store.session(cookie) is None
    assert store.session("\ud800") is None


def test_expired_sessions_are_removed(store: Store) -> None:
    annotator, _ = store.add_annotator("tone", "Ann")
    old = store.start_session(annotator, lasting=timedelta(hours=1))
    store.start_session(annotator, schema.now() + timedelta(hours=2))
    assert hash_of(old) not in contents(store)


def test_changed_guidelines_are_to_be_read_again(store: Store) -> None:
    annotator, _ = store.add_annotator("tone", "Ann")
    assert store.has_read_guidelines(annotator)  # there are none
    store.change_project("tone", guidelines="one")
    assert not store.has_read_guidelines(annotator)
    store.mark_guidelines_read(annotator)
    assert store.has_read_guidelines(annotator)
    store.change_project("tone", guidelines="two")
    assert not store.has_read_guidelines(annotator)
