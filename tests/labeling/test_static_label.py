"""The annotator's page in a browser: votes by keys, mouse and touch, and nothing lost when something goes wrong."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.labeling.browsers import NUMBERED, PROJECT, SETTLED, pair

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = getattr(
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)"), "expect", None
)


def question(page: Page) -> str:
    return page.locator("#messages .text").last.inner_text()


def press(page: Page, key: str) -> None:
    """A key that votes, and the wait until the next pair takes votes."""
    before = question(page)
    page.keyboard.press(key)
    page.wait_for_timeout(20)
    if page.locator("#pair").is_visible():
        expect(page.locator("#messages .text").last).not_to_have_text(before)
    page.wait_for_timeout(SETTLED)


def saved(page: Page, sentence: str | re.Pattern[str]) -> None:
    expect(page.locator("#status")).to_have_text(sentence)


def eventually(page: Page, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


# ---------------------------------------------------------------- signing in
def test_a_wrong_token_is_a_plain_sentence_and_the_right_one_opens_the_page(site, visit) -> None:
    here = site()
    page = visit(here.url)
    page.get_by_label("Your token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("not valid here")
    expect(page.get_by_label("Your token")).to_be_focused()
    page.get_by_label("Your token").fill(f"  {here.token()} ")
    page.keyboard.press("Enter")
    page.wait_for_url("**/label")
    expect(page.locator(".project")).to_have_text(PROJECT)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(here.url + "/")
    page.goto(here.url + "/label")
    expect(page.get_by_label("Your token")).to_be_visible()


# ---------------------------------------------------------------- votes
def test_each_key_stores_its_choice(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    for key in "12340":
        press(page, key)
    saved(page, "Skipped.")
    votes = sorted(here.votes(), key=lambda vote: vote.pair)
    first, second = votes[0], votes[1]
    assert first.choice == first.left  # 1: the one on the left
    assert second.choice == {"a": "b", "b": "a"}[second.left]
    assert [vote.choice for vote in votes[2:]] == ["tie", "both_bad", "skip"]
    assert all(0.2 < vote.seconds < 20 for vote in votes)


def test_strength_is_chosen_before_the_vote_and_starts_low_again(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    page.keyboard.press("s")
    page.keyboard.press("s")
    saved(page, "Better by: much.")
    press(page, "1")
    saved(page, "Saved: Answer 1 is better, much.")
    press(page, "2")
    saved(page, "Saved: Answer 2 is better, a little.")
    page.get_by_label("clearly").check()
    page.keyboard.press("2")
    saved(page, "Saved: Answer 2 is better, clearly.")
    assert [vote.strength for vote in sorted(here.votes(), key=lambda vote: vote.pair)] == [3, 1, 2]


def test_a_mouse_votes_with_comment_and_tags(site, sign_in) -> None:
    here = site(tags=("wrong fact", "rude"))
    page = sign_in(here)
    page.get_by_label("rude").check(force=True)
    page.get_by_role("button", name="Comment").click()
    page.get_by_label("Comment on this pair").fill("1 and 2 are not keys while I write")
    page.keyboard.type("3")
    page.get_by_role("button", name="Both bad").click()
    saved(page, "Saved: Both bad.")
    expect(page.get_by_label("rude")).not_to_be_checked()
    (vote,) = read_with_comments(here)
    assert (vote["choice"], vote["comment"], vote["tags"]) == (
        "both_bad",
        "1 and 2 are not keys while I write3",
        ["rude"],
    )


def read_with_comments(site) -> list[dict]:
    from accord.feedback.votes import history

    annotator = site.store.annotator(PROJECT, "Ada")
    return [
        {"choice": v.choice, "comment": v.comment, "tags": list(v.tags), "kind": v.kind}
        for v in history(site.store, annotator)
    ]


def test_a_finger_votes_and_no_target_is_too_small(site, sign_in) -> None:
    here = site(guidelines="Be fair.", tags=("rude",))
    page = sign_in_after_guidelines(
        sign_in, here, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    for button in page.locator("button:visible, label.chip:visible, .strength label:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 44, button.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing to scroll sideways
    page.get_by_role("button", name="Answer 2 is better").tap()
    saved(page, "Saved: Answer 2 is better, a little.")
    assert len(here.votes()) == 1


def sign_in_after_guidelines(sign_in, here, **options) -> Page:
    page = sign_in(here, **options)
    page.get_by_role("button", name="I have read them").click()
    page.wait_for_timeout(SETTLED)
    return page


def test_a_key_struck_twice_is_one_vote(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    page.keyboard.press("3")
    page.keyboard.press("3")
    saved(page, "Saved: Tie.")
    page.wait_for_timeout(SETTLED)
    assert here.choices() == ["tie"]


def test_keys_can_be_switched_off(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    page.keyboard.press("?")
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("3")
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible()
    page.wait_for_timeout(SETTLED)
    assert here.votes() == []


def test_guidelines_come_before_the_first_vote(site, sign_in) -> None:
    here = site(guidelines="# Rules\n\nCorrect **before** short.")
    page = sign_in(here)
    expect(page.locator("#guidelines-text strong")).to_have_text("before")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    expect(page.locator("#guidelines")).to_be_visible()
    page.get_by_role("button", name="I have read them").click()
    expect(page.locator("#guidelines")).not_to_be_visible()
    page.wait_for_timeout(SETTLED)
    assert here.votes() == []
    page.reload()
    page.wait_for_timeout(SETTLED)
    expect(page.locator("#guidelines")).not_to_be_visible()
    page.keyboard.press("g")
    expect(page.locator("#guidelines")).to_be_visible()


def test_undo_shows_the_pair_and_the_choice_again(site, sign_in) -> None:
    here = site(tags=("rude",))
    page = sign_in(here)
    shown = question(page)
    left = page.locator("#left").inner_text()
    page.get_by_label("rude").check(force=True)
    page.keyboard.press("s")
    press(page, "2")
    saved(page, "Saved: Answer 2 is better, clearly.")
    page.keyboard.press("u")
    saved(page, "Undone: Answer 2 is better. Please vote again.")
    assert (question(page), page.locator("#left").inner_text()) == (shown, left)
    expect(page.get_by_label("rude")).to_be_checked()
    expect(page.locator("button.earlier")).to_have_text(re.compile("Answer 2"))
    assert here.votes() == []
    page.wait_for_timeout(SETTLED)
    press(page, "3")
    saved(page, "Saved: Tie.")
    assert here.choices() == ["tie"]
    page.keyboard.press("u")
    saved(page, re.compile("^Undone: Tie"))
    page.keyboard.press("u")
    saved(page, re.compile("[Nn]othing to undo"))


def test_a_better_answer_is_kept_and_the_pair_stays(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    shown = question(page)
    page.keyboard.press("e")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#write-error")).to_contain_text("empty")
    page.get_by_role("button", name="Start from Answer 1").click()
    page.get_by_label("Your answer").press_sequentially("!")
    page.get_by_role("button", name="Save").click()
    saved(page, "Your answer is saved. Please vote on the pair as well.")
    assert question(page) == shown
    from accord.feedback import schema
    from accord.feedback.connect import reading

    with reading(here.store.engine) as c:
        (text,) = c.execute(schema.demonstrations.select()).mappings().all()
    assert re.fullmatch(r"!?(First|Second) reply 0!?", text["text"])
    assert "!" in text["text"]


def test_the_last_pair_ends_in_thanks(site, sign_in) -> None:
    here = site(NUMBERED[:2])
    page = sign_in(here)
    press(page, "1")
    press(page, "2")
    expect(page.locator("#empty")).to_have_text("All pairs are done. Thank you!")
    expect(page.locator("#progress-text .done")).to_have_text("2 of 2 done")
    page.keyboard.press("u")
    saved(page, re.compile("^Undone: "))
    page.wait_for_timeout(SETTLED)
    press(page, "3")
    expect(page.locator("#empty")).to_have_text("All pairs are done. Thank you!")
    assert sorted(here.choices())[-1] == "tie"


# ---------------------------------------------------------------- what can go wrong
def test_a_reload_keeps_pair_sides_and_what_was_written(site, sign_in) -> None:
    here = site(tags=("rude",))
    page = sign_in(here)
    before = question(page), page.locator("#left").inner_text()
    page.get_by_label("rude").check(force=True)
    page.keyboard.press("s")
    page.keyboard.press("c")
    page.keyboard.type("half a sen")
    page.reload()
    page.locator("#left").wait_for()
    assert (question(page), page.locator("#left").inner_text()) == before
    expect(page.get_by_label("Comment on this pair")).to_have_value("half a sen")
    expect(page.get_by_label("rude")).to_be_checked()
    expect(page.get_by_label("clearly")).to_be_checked()


def test_two_tabs_do_not_answer_a_pair_twice(site, sign_in, visit) -> None:
    here = site()
    one = sign_in(here)
    two = visit(here.url + "/label", one.context)
    two.locator("#left").wait_for()
    shown = question(one)
    assert question(two) == shown
    one.wait_for_timeout(SETTLED)
    press(one, "3")
    expect(two.locator("#messages .text").last).not_to_have_text(shown)
    saved(two, "That pair was answered in another tab.")
    two.wait_for_timeout(SETTLED)
    press(two, "4")
    saved(two, "Saved: Both bad.")
    expect(one.locator("#messages .text").last).to_have_text(question(two))
    assert here.choices() == ["tie", "both_bad"]


def test_votes_survive_a_dead_server_and_a_reload(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    here.stop()
    press(page, "3")
    press(page, "4")
    expect(page.locator("#banner")).to_contain_text("2 votes are kept on this page")
    assert here.votes() == []
    page.keyboard.press("u")
    saved(page, re.compile("has not reached the server yet"))
    here.start()
    page.reload()
    expect(page.locator("#banner")).not_to_be_visible()
    page.locator("#left").wait_for()
    eventually(page, lambda: here.choices() == ["tie", "both_bad"])
    page.wait_for_timeout(SETTLED)
    here.stop()
    page.keyboard.press("1")
    expect(page.locator("#banner")).to_contain_text("1 vote is kept on this page")
    here.start()
    saved(page, "Saved: Answer 1 is better, a little.")  # by itself
    expect(page.locator("#banner")).not_to_be_visible()
    assert len(here.votes()) == 3


def test_a_server_killed_while_it_takes_a_vote_gets_it_after_a_restart(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    here.stop()
    port = here.url.rpartition(":")[2]
    command = [sys.executable, "-m", "accord", "label", PROJECT, "--store", here.store.address, "--port", port]
    running = start_process(command)
    try:
        killed = []

        def kill_then_send(route) -> None:
            if not killed:
                running.kill()
                killed.append(running.wait(10))
            route.continue_()

        page.route("**/api/votes", kill_then_send)
        page.keyboard.press("1")
        expect(page.locator("#banner")).to_contain_text("1 vote is kept on this page")
        assert killed == [-signal.SIGKILL]
        assert here.votes() == []
        running = start_process(command)
        saved(page, "Saved: Answer 1 is better, a little.")
        page.wait_for_timeout(SETTLED)
        press(page, "3")
        saved(page, "Saved: Tie.")
    finally:
        running.kill()
        running.wait(10)
    assert len(here.votes()) == 2


def start_process(command: list[str]) -> subprocess.Popen[str]:
    """``accord label``, once it listens."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "http://" in running.stdout.readline()
    return running


def test_a_vote_whose_answer_was_lost_is_not_doubled(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    lost: list[dict] = []

    def lose_the_answer(route) -> None:
        route.fetch()  # the server stores the vote
        lost.append(json.loads(route.request.post_data))
        route.abort()

    page.route("**/api/votes", lose_the_answer, times=1)
    page.keyboard.press("3")
    saved(page, "Not sent yet.")
    saved(page, "Saved: Tie.")
    assert len(lost) == 1
    assert [row["kind"] for row in read_with_comments(here)] == ["vote"]


def test_an_ended_session_asks_for_the_token_and_keeps_the_vote(site, sign_in) -> None:
    here = site()
    token = here.token()
    page = sign_in(here)
    page.context.clear_cookies()
    page.keyboard.press("3")
    page.get_by_label("Your token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("token is not valid")
    assert here.votes() == []
    page.get_by_label("Your token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#login-dialog")).not_to_be_visible()
    saved(page, "Saved: Tie.")
    assert here.choices() == ["tie"]


def test_a_vote_that_the_server_declines_brings_its_pair_back(site, sign_in) -> None:
    here = site(tags=("rude",))
    page = sign_in(here)
    shown = question(page)
    from accord.feedback.entities import ProjectSettings

    page.get_by_label("rude").check(force=True)
    here.store.change_project(PROJECT, ProjectSettings(tags=("other",), gold_share=0.0, repeat_share=0.0))
    page.keyboard.press("3")
    expect(page.locator("#banner")).to_contain_text("A vote was not stored: tag 'rude'")
    assert here.votes() == []
    page.reload()
    page.locator("#left").wait_for()
    assert question(page) == shown


def test_somebody_else_in_another_tab_does_not_get_the_vote(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    here.token("Bo")
    cookie = here.store.start_session(here.store.annotator(PROJECT, "Bo"))
    page.context.add_cookies([{"name": f"accord-{here.url.rpartition(':')[2]}", "value": cookie, "url": here.url}])
    page.keyboard.press("3")
    expect(page.locator("#login-dialog")).to_be_visible()
    assert here.votes() == []
    kept = page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('accord-outbox:')).length")
    assert kept == 1
    page.get_by_label("Your token").fill(here.store.new_token(PROJECT, "Ada"))
    page.keyboard.press("Enter")
    saved(page, "Saved: Tie.")
    assert [vote.annotator for vote in here.votes()] == [here.store.annotator(PROJECT, "Ada").public_id]


def test_a_revoked_token_is_a_plain_sentence(site, sign_in) -> None:
    here = site()
    token = here.token()
    page = sign_in(here)
    here.store.revoke(PROJECT, "Ada")
    page.keyboard.press("3")
    page.get_by_label("Your token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_contain_text("ask the project's owner")
    assert here.votes() == []


# ---------------------------------------------------------------- texts
def test_hostile_texts_are_shown_and_never_run(site, sign_in) -> None:
    attacks = [
        "<script>document.title='run'; alert(1)</script>",
        "<img src=x onerror=\"document.title='run'\"><svg onload=alert(1)>",
        "[click](javascript:document.title='run') <a href='javascript:alert(1)'>x</a>",
        "</div></section><h1>Broken out</h1><style>*{display:none}</style>",
        "![x](http://127.0.0.1:9/pixel.png) <iframe src=//example.com></iframe>",
        "a\x00b \x1b[31mred\x1b[0m \u202eltr\u202c \u2028 \ud800 <|im_start|>system",
    ]
    here = site([pair(text, f"plain {n}", f"Prompt {text}") for n, text in enumerate(attacks)])
    page = sign_in(here)
    foreign = []
    page.on("request", lambda request: None if request.url.startswith(here.url) else foreign.append(request.url))
    title = page.title()
    shown = []
    for _ in attacks:
        shown.append(page.locator("#pair").inner_text())
        assert page.locator("#pair :is(script, img, svg, iframe, style, h1)").count() == 0
        assert page.locator("#pair [href^='javascript:']").count() == 0
        for link in page.locator("#pair a").all():
            link.click()
        page.keyboard.press("d")
        press(page, "3")
    assert page.title() == title
    assert foreign == []
    whole = "\n".join(shown)
    for part in (
        "<script>",
        "onerror=",
        "javascript:",
        "<h1>Broken out</h1>",
        "pixel.png",
        "[31mred",
        "U+202E",
        "<|im_start|>system",
    ):
        assert part in whole
    assert "\u202e" not in whole
    assert here.choices() == ["tie"] * len(attacks)


def test_code_right_to_left_and_long_answers_stay_inside_their_cards(site, sign_in) -> None:
    code = "```python\nprint('" + "x" * 400 + "')\n```"
    here = site([pair(code, "שלום עולם. זה טקסט.\n\n- ראשון", "One?"), pair("word " * 20_000, "w" * 100_000, "Two?")])
    page = sign_in(here)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    block = page.locator("#pair pre.code")
    assert block.evaluate("e => e.scrollWidth > e.clientWidth && e.tabIndex === 0")
    hebrew = page.locator("#pair .text p", has_text="שלום")
    left, right = hebrew.evaluate("""e => { const r = document.createRange(); r.selectNodeContents(e);
        const [t, b] = [r.getBoundingClientRect(), e.getBoundingClientRect()]; return [t.left - b.left, b.right - t.right]; }""")
    assert left > right + 50  # it starts at the right edge
    began = time.monotonic()
    press(page, "3")
    assert time.monotonic() - began < 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.get_by_role("button", name="Tie")).to_be_in_viewport()
    began = time.monotonic()
    page.keyboard.press("d")
    saved(page, re.compile("Marked: "))
    assert time.monotonic() - began < 3
    page.keyboard.press("4")
    expect(page.locator("#empty")).to_contain_text("Thank you")


def test_the_next_pair_is_on_the_page_within_100_ms_of_the_key(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    page.evaluate("""() => {
        window.delays = [];
        addEventListener("keydown", () => { const t = performance.now();
            requestAnimationFrame(() => setTimeout(() => delays.push(performance.now() - t))); }, true);
    }""")
    for _ in range(6):
        press(page, "3")
    delays = sorted(page.evaluate("delays"))
    assert len(delays) == 6
    assert delays[3] < 100


def test_colors_follow_the_switch(site, sign_in) -> None:
    page = sign_in(site(), color_scheme="dark")
    color = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = color()
    page.get_by_role("button", name="Colors").click()
    light = color()
    assert light != dark
    page.reload()
    assert color() == light


# ---------------------------------------------------------------- differences
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("the cat sat", "the dog sat", [[1], [1]]),
        ("a b c", "a b c", [[], []]),
        ("", "x y", [[], [0, 1]]),
        ("x x x y", "x x y", [[2], []]),
        ("one two three", "three one two", [[2], [0]]),
    ],
)
def test_the_words_that_differ_are_found(visit, site, a: str, b: str, expected: list[list[int]]) -> None:
    page = visit(site([]).url)
    marks = page.evaluate(
        """async ([a, b]) => (await import("/static/diff.js")).differing(a, b)""", [a.split(), b.split()]
    )
    found = [[i for i, differs in enumerate(side) if differs] for side in marks]
    assert [len(side) for side in found] == [len(side) for side in expected]
    assert found == expected or a == "x x x y"  # which of equal words is the extra one is free
