"""Requests: what is tried again, what is not, and that a key is shown nowhere."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from accord.errors import UserError
from accord.stage_kinds.judges.chat_client import Answer, ChatClient, ask_all
from tests.stage_kinds.judges.chat_server import fails, says, serving

KEY = "sk-secret-0123456789"


def client(url: str, retries: int = 3, timeout: float = 5.0) -> ChatClient:
    return ChatClient(url, KEY, retries, timeout, first_pause=0.01)


def ask(asked: ChatClient) -> Answer:
    return asked.ask({"model": "m"}, threading.Event())


def test_an_answer_is_read_and_the_key_is_sent_as_a_header() -> None:
    with serving(lambda *_: says("hello")) as server:
        assert ask(client(server.url)) == Answer("hello", "stop", False, "judge-1", 10)
        ask(ChatClient(server.url, "", 0, 5.0))
    assert server.keys == [f"Bearer {KEY}", None]
    assert server.paths == ["/v1/chat/completions"] * 2
    assert KEY not in repr(client(server.url))


@pytest.mark.parametrize(
    "bad", [fails(500), fails(429, Retry_After="0.05"), (200, {}, b"<html>"), (200, {}, b'{"choices": []}')]
)
def test_what_may_pass_is_tried_again(bad: Any) -> None:
    with serving(lambda _, n: bad if n < 2 else says("[[A]]")) as server:
        assert ask(client(server.url)).text == "[[A]]"
    assert len(server.asked) == 3


def test_after_the_last_try_a_sentence_says_so() -> None:
    with serving(lambda *_: fails(503, "overloaded")) as server:
        with pytest.raises(
            UserError, match=r"answered 503 \(overloaded\), tried 4 times; the answers until then are saved"
        ):
            ask(client(server.url))
        assert len(server.asked) == 4
    with pytest.raises(UserError, match=r"no answer \(.*refused.*\), tried once"):
        ask(client(server.url, retries=0))


@pytest.mark.parametrize(("status", "words"), [(401, "openai.key_env"), (404, "openai.model"), (400, "openai.body")])
def test_a_refusal_is_not_tried_again_and_its_words_hide_the_key(status: int, words: str) -> None:
    refuse = fails(status, f"bad\n\x1b[31m key {KEY}")
    with serving(lambda *_: refuse) as server, pytest.raises(UserError, match=words) as raised:
        ask(client(server.url))
    assert len(server.asked) == 1
    assert KEY not in str(raised.value)
    assert str(raised.value).isprintable()
    assert "bad [31m key …" in str(raised.value)


def test_a_redirect_is_refused_so_that_the_key_goes_nowhere_else() -> None:
    with (
        serving(lambda *_: says("stolen")) as other,
        serving(lambda *_: fails(302, Location=f"{other.url}/x")) as server,
        pytest.raises(UserError, match=r"answered 302 .*, a redirect; name the address that it leads to"),
    ):
        ask(client(server.url))
    assert other.asked == []


def test_a_silent_server_is_left_after_the_timeout() -> None:
    wait = threading.Event()

    def silent(*_: Any) -> Any:
        wait.wait(5)
        return says("late")

    with serving(silent) as server:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"no answer .*tried 2 times"):
            ask(client(server.url, retries=1, timeout=0.2))
        assert time.monotonic() - started < 2
        wait.set()


def bodies(count: int) -> dict[str, dict[str, Any]]:
    return {str(i): {"n": i} for i in range(count)}


def test_at_most_as_many_requests_as_allowed_run_at_the_same_time() -> None:
    def slow(body: Any, _: int) -> Any:
        time.sleep(0.03)
        return says(str(body["n"]))

    with serving(slow) as server:
        found = dict(ask_all(client(server.url), bodies(12), 3, lambda: False))
    assert {key: answer.text for key, answer in found.items()} == {str(i): str(i) for i in range(12)}
    assert server.most == 3


def test_after_a_failure_no_request_follows_and_answers_on_their_way_arrive() -> None:
    def answer(body: Any, _: int) -> Any:
        time.sleep(0.02 if body["n"] == 1 else 0.2)
        return fails(400) if body["n"] == 1 else says("late")

    with serving(answer) as server:
        found = []
        with pytest.raises(UserError, match="answered 400"):
            found += ask_all(client(server.url), bodies(50), 2, lambda: False)
        some: list[str] = []
        try:
            for key, _ in ask_all(client(server.url), bodies(50), 2, lambda: False):
                some.append(key)
        except UserError:
            pass
    assert some == ["0"]
    assert len(server.asked) <= 6


def test_a_stop_ends_it_with_the_answers_that_are_on_their_way() -> None:
    stopped = threading.Event()

    def answer(body: Any, number: int) -> Any:
        if number == 3:
            stopped.set()
        time.sleep(0.1)
        return says("x")

    with serving(answer) as server:
        found = dict(ask_all(client(server.url), bodies(50), 2, stopped.is_set))
    assert 4 <= len(found) <= 6
    assert len(server.asked) == len(found)


def test_a_pause_between_two_tries_ends_with_a_stop() -> None:
    with serving(lambda *_: fails(429, Retry_After="60")) as server:
        started = time.monotonic()
        assert dict(ask_all(client(server.url), bodies(3), 2, lambda: len(server.asked) >= 2)) == {}
        assert time.monotonic() - started < 3
