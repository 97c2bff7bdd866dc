"""The annotator's requests: questions, votes, undo, demonstrations, hostile texts."""

from __future__ import annotations

import json

import pytest

from accord.feedback.store import ProjectSettings
from accord.feedback.vote_rows import read_votes
from tests.labeling.visitors import NewPage, Page, new_pair


def test_two_questions_are_open_and_a_vote_brings_the_next(page: Page) -> None:
    ann = page.annotator()
    found = ann.get("/api/questions").json()
    first, second = found["questions"]
    assert set(first) == {"id", "messages", "left", "right"}
    assert set(first["left"]) == {"html", "text"}
    assert first["messages"] == [{"role": "user", "html": "<p>question 0</p>\n"}]
    assert found["progress"] == {"done": 0, "left": 5, "today": 0, "pace_seconds": None, "self_agreement": None}
    answer = ann.vote(first["id"], "tie", comment="close", seconds=2.5).json()
    assert answer["next"]["id"] not in (first["id"], second["id"])
    assert answer["progress"] == {"done": 1, "left": 4, "today": 1, "pace_seconds": 2.5, "self_agreement": None}
    assert [q["id"] for q in ann.questions()] == [second["id"], answer["next"]["id"]]
    assert (
        ann.get(f"/api/questions?have={second['id']},x,,{'9' * 5000}").json()["questions"][0]["id"]
        == answer["next"]["id"]
    )


def test_all_questions_are_asked_once_and_then_none_is_left(page: Page) -> None:
    ann, seen = page.annotator(), []
    queue = ann.questions()
    while queue:
        seen.append(queue.pop(0)["id"])
        held = [q["id"] for q in queue]
        following = ann.vote(seen[-1], have=held).json()["next"]
        if following:
            queue.append(following)
    assert len(seen) == len(set(seen)) == 5
    assert ann.questions() == []


def test_the_side_that_was_chosen_is_recorded(page: Page) -> None:
    ann = page.annotator()
    texts = {}
    for choice in ("left", "right") * 2:
        question = ann.questions()[0]
        assert ann.vote(question["id"], choice).status_code == 200
        texts[question["messages"][0]["html"]] = question[choice]["text"]
    rows = read_votes(page.store, "demo")
    assert len(rows) == 4
    for row in rows:
        chosen = row.a if row.choice == "a" else row.b
        assert texts[f"<p>{row.prompt[0]['content']}</p>\n"] == chosen.text


def test_the_same_request_again_is_the_same_vote(page: Page) -> None:
    ann = page.annotator()
    (question, _) = ann.questions()
    body = {"request": "once", "question": question["id"], "choice": "left"}
    first, second = ann.post("/api/votes", body).json(), ann.post("/api/votes", body).json()
    assert first["vote"] == second["vote"]
    assert len(read_votes(page.store, "demo")) == 1


def test_undo_shows_the_pair_again_with_what_was_chosen(page: Page) -> None:
    ann = page.annotator()
    (question, _) = ann.questions()
    ann.vote(question["id"], "right", strength=3, comment="\ud800 \u202e <b>")
    answer = ann.post("/api/undo", {"request": "u1"}).json()
    assert answer["question"] == question
    assert answer["vote"] == {"choice": "right", "strength": 3, "comment": "\ud800 \u202e <b>", "tags": []}
    assert answer["progress"]["done"] == 0
    nothing = ann.post("/api/undo", {"request": "u2"})
    assert (nothing.status_code, nothing.json()) == (400, {"error": "nothing to undo: no vote of yours stands."})


def test_a_better_answer_is_stored_as_it_was_written(page: Page) -> None:
    from accord.feedback import schema
    from accord.feedback.connect import reading

    ann = page.annotator()
    (question, _) = ann.questions()
    text = "better\x00 \ud83d <script> \u2028 </s>" + "x" * 100_000
    body = {"request": "d", "question": question["id"], "text": text}
    assert ann.post("/api/demonstrations", body).json() == {"saved": True}
    assert ann.post("/api/demonstrations", body).json() == {"saved": True}
    with reading(page.store.engine) as c:
        assert c.execute(schema.demonstrations.select()).one().text == text


@pytest.mark.parametrize(
    "values",
    [
        {"choice": "a"},
        {"strength": 4},
        {"strength": "much"},
        {"seconds": "NaN"},
        {"question": 0},
        {"question": 2**63},
        {"question": 10**400},
        {"question": None},
        {"question": 4711},
        {"request": ""},
        {"request": "x" * 65},
        {"request": "\ud800"},
        {"request": 7},
        {"comment": "x" * 10_001},
        {"comment": None},
        {"tags": ["unknown"]},
        {"tags": "unknown"},
        {"extra": 1},
    ],
)
def test_a_vote_out_of_range_is_refused_in_one_sentence(page: Page, values: dict[str, object]) -> None:
    ann = page.annotator()
    (question, _) = ann.questions()
    answer = ann.post("/api/votes", {"request": "r", "question": question["id"], "choice": "left", **values})
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.json()["error"]
    assert read_votes(page.store, "demo") == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"request": "\\ud8"}', b"1e999"]
)
def test_a_body_that_is_no_vote_is_refused_in_one_sentence(page: Page, body: bytes) -> None:
    ann = page.annotator()
    for path in ("/api/votes", "/api/undo", "/login"):
        headers = {"X-CSRF-Token": ann.csrf, "Content-Type": "application/json"}
        answer = ann.client.post(path, content=body, headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert set(answer.json()) == {"error"}


def test_a_page_that_was_open_over_the_weekend_still_votes(page: Page) -> None:
    ann = page.annotator()
    assert ann.vote(ann.questions()[0]["id"], seconds=200_000.0).status_code == 200
    assert read_votes(page.store, "demo")[0].seconds == 86_400.0


def test_another_annotators_question_is_out_of_reach(page: Page) -> None:
    ann, bob = page.annotator("ann"), page.annotator("bob")
    (question, _) = ann.questions()
    assert bob.vote(question["id"]).status_code == 400
    body = {"request": "d", "question": question["id"], "text": "mine"}
    assert bob.post("/api/demonstrations", body).status_code == 400
    assert read_votes(page.store, "demo") == []


def test_neither_model_nor_gold_nor_repeat_is_sent_to_the_page(new_page: NewPage) -> None:
    pairs = [new_pair(f"q{i}", f"x{i}", f"y{i}", gold="a" if i % 2 else None, source="secret") for i in range(4)]
    page = new_page(pairs, settings=ProjectSettings(gold_share=0.5))
    ann = page.annotator()
    sent = ann.get("/api/questions").text + ann.get("/label").text
    for hidden in ('"one"', '"two"', "gold", "occasion", "secret", "probability", "again", "temperature", '"ann"'):
        assert hidden not in sent, hidden


def test_guidelines_are_shown_safely_and_their_reading_is_recorded(new_page: NewPage) -> None:
    page = new_page(guidelines="# Be fair\n\n<script>alert(1)</script>")
    ann = page.annotator()
    assert 'data-guidelines="unread"' in ann.get("/label").text
    html = ann.get("/guidelines").text
    assert "<h3>Be fair</h3>" in html
    assert "<script>" not in html
    assert ann.post("/api/guidelines/read").json() == {"read": True}
    assert 'data-guidelines="read"' in ann.get("/label").text
    page.store.change_project("demo", guidelines="# Be fairer")
    assert 'data-guidelines="unread"' in ann.get("/label").text


HOSTILE = {
    "script": "<script>document.title='x'</script>",
    "handler": "<img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1))",
    "bidirectional": "a\u202eb\u2066c",
    "null": "a\x00b",
    "surrogate": "a\ud83db\udc00",
    "separator": "a\u2028b\u2029c\x85d",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "markers": "</s><|im_start|>system\n[INST] <<SYS>> <|eot_id|>",
    "large": "long words " * 10_000,
    "crlf": "a\r\nb\rc\n",
    "entity": "&lt;script&gt; &#0; &amp;",
    "template": "{{ 7 * 7 }} {% raw %} ${x}",
    "edges": "  \n  spaces around  \n\n",
}


def test_hostile_texts_arrive_unchanged_as_text_and_harmless_as_html(new_page: NewPage) -> None:
    page = new_page([new_pair(text, text, f"other {name}") for name, text in HOSTILE.items()])
    ann, seen = page.annotator(), set()
    for _ in HOSTILE:
        answer = ann.get("/api/questions")
        assert answer.content.isascii()  # nothing in it can end a line or a string early
        question = answer.json()["questions"][0]
        for side in ("left", "right"):
            seen.add(question[side]["text"])
        html = json.dumps(question["messages"]) + question["left"]["html"] + question["right"]["html"]
        for bad in ("<script", "<img", 'javascript:alert(1)"', "\u202e", "\x00", "\x1b", "\ud83d", "\u2028"):
            assert bad not in html
        assert ann.vote(question["id"]).status_code == 200
    assert seen >= set(HOSTILE.values())
    assert {row.a.text for row in read_votes(page.store, "demo")} == set(HOSTILE.values())


def test_hostile_names_and_tags_are_text_on_the_page(new_page: NewPage) -> None:
    tag = "<script>alert(1)</script>"
    page = new_page(settings=ProjectSettings(tags=(tag, '"><b>')))
    ann = page.annotator("<img src=x onerror=alert(1)>")
    html = ann.get("/label").text
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "<b>" not in html
    question = ann.questions()[0]
    assert ann.vote(question["id"], tags=[tag]).status_code == 200


def test_a_store_that_cannot_be_written_is_tried_again_later(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.feedback.store import StoreUnavailable

    ann = page.annotator()
    (question, _) = ann.questions()

    def locked(*given: object) -> None:
        raise StoreUnavailable("the store is locked.")

    monkeypatch.setattr("accord.feedback.votes.writing", locked)
    answer = ann.vote(question["id"])
    assert (answer.status_code, answer.json()) == (503, {"error": "the store is locked."})


def test_an_unexpected_error_is_a_sentence_to_try_again(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = page.annotator()

    def broken(*given: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("accord.labeling.api.next_questions", broken)
    answer = ann.get("/api/questions")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("The server made a mistake; nothing was lost.")
    assert "content-security-policy" in answer.headers
