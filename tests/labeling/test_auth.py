"""Signing in: tokens, sessions, other sites' forms, and too many tries."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from accord.labeling.auth import SIGN_IN, STALE_PAGE, WRONG_TOKEN
from tests.labeling.visitors import NewPage, Page, csrf_in, new_pair, try_token


def cookies_set(answer: Any) -> dict[str, str]:
    """Attributes of each cookie that an answer sets, by its name."""
    return {line.split("=")[0]: line for line in answer.headers.get_list("set-cookie")}


def test_a_token_opens_the_page_and_the_session_ends_on_signing_out(page: Page) -> None:
    ann = page.annotator()
    assert ann.get("/", follow_redirects=False).headers["location"] == "/label"
    assert ann.get("/label").status_code == 200
    assert ann.get("/api/questions").status_code == 200
    cookie = dict(ann.client.cookies)
    assert ann.post("/logout").json() == {"next": "/"}
    assert "accord-8765" not in ann.client.cookies
    again = page.browser(cookies=cookie).get("/api/questions")  # the cookie, if somebody wrote it down
    assert (again.status_code, again.json()) == (401, {"error": SIGN_IN})


def test_a_wrong_token_is_a_plain_sentence(page: Page) -> None:
    for wrong in ("nobody", "x" * 5000, "\ud800", "' OR 1=1 --", "\x00"):
        answer = try_token(page.browser(), wrong)
        assert (answer.status_code, answer.json()) == (401, {"error": WRONG_TOKEN}), wrong
    for body in (None, [], {}, {"token": 7}, {"token": "  "}):
        client = page.browser()
        csrf = csrf_in(client.get("/").text)
        answer = client.post("/login", json=body, headers={"X-CSRF-Token": csrf})
        assert answer.status_code == 422
        assert answer.json() == {"error": "Enter the token that the project's owner gave you."}


def test_a_revoked_token_and_its_sessions_end(page: Page) -> None:
    _, token = page.store.add_annotator("demo", "ann")
    ann = page.sign_in(token)
    page.store.revoke("demo", "ann")
    assert ann.get("/api/questions").status_code == 401
    assert ann.get("/label", follow_redirects=False).headers["location"] == "/"
    assert try_token(page.browser(), token).status_code == 401


def test_a_token_of_another_project_is_wrong_here(page: Page) -> None:
    page.store.create_project("other")
    annotator, token = page.store.add_annotator("other", "ann")
    assert try_token(page.browser(), token).status_code == 401
    cookie = page.store.start_session(annotator)
    assert page.browser(cookies={"accord-8765": cookie}).get("/api/questions").status_code == 401


def test_signing_in_never_keeps_a_session_that_was_there_before(page: Page) -> None:
    """Session fixation: an attacker who plants a cookie of their own learns nothing."""
    planted = page.annotator("mallory")
    cookie = planted.client.cookies["accord-8765"]
    _, token = page.store.add_annotator("demo", "ann")
    victim = page.browser(cookies={"accord-8765": cookie})
    answer = victim.post("/login", json={"token": token}, headers={"X-CSRF-Token": planted.csrf})
    assert answer.status_code == 200
    new = answer.cookies["accord-8765"]
    assert new != cookie
    assert page.store.session(cookie) is None
    found = page.store.session(new)
    assert found is not None
    assert found.name == "ann"
    assert try_token(page.browser(cookies={"accord-login-8765": "a" * 24}), token).cookies["accord-8765"] != "a" * 24


def test_two_sessions_of_one_annotator_are_independent(page: Page) -> None:
    _, token = page.store.add_annotator("demo", "ann")
    phone, desk = page.sign_in(token), page.sign_in(token)
    assert phone.client.cookies["accord-8765"] != desk.client.cookies["accord-8765"]
    assert [q["id"] for q in phone.questions()] == [q["id"] for q in desk.questions()]
    phone.post("/logout")
    assert desk.get("/api/questions").status_code == 200
    assert desk.post("/api/undo", {"request": "r"}, **{"X-CSRF-Token": phone.csrf}).status_code == 403


def test_a_session_expires(new_page: NewPage) -> None:
    page = new_page(session=timedelta(seconds=-1))
    assert page.annotator().get("/api/questions").status_code == 401


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(page: Page) -> None:
    _, token = page.store.add_annotator("demo", "ann")
    set_now = cookies_set(try_token(page.browser(), token))["accord-8765"]
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(set_now.split("; "))
    assert "Secure" not in set_now
    assert "Domain" not in set_now


def test_cookies_need_tls_where_there_is_some(new_page: NewPage) -> None:
    page = new_page(behind_proxy=True, host_names=("label.example.org",))
    _, token = page.store.add_annotator("demo", "ann")
    client = page.browser("https://label.example.org")
    answer = try_token(client, token, Origin="https://label.example.org")
    assert answer.status_code == 200
    set_now = cookies_set(answer)
    assert {"Secure", "HttpOnly", "SameSite=strict"} <= set(set_now["__Host-accord-8765"].split("; "))


def test_a_post_without_the_tokens_of_its_page_changes_nothing(page: Page) -> None:
    ann, bob = page.annotator("ann"), page.annotator("bob")
    (question, *_) = ann.questions()
    body = {"request": "r", "question": question["id"], "choice": "left"}
    for headers in (
        {},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": bob.csrf},
        {"X-CSRF-Token": ann.csrf + "0"},
        {"X-CSRF-Token": ann.csrf, "Origin": "https://evil.example"},
        {"X-CSRF-Token": ann.csrf, "Origin": "null"},
        {"X-CSRF-Token": ann.csrf, "Origin": "http://127.0.0.1:9000"},
        {"X-CSRF-Token": ann.csrf, "Sec-Fetch-Site": "cross-site"},
        {"X-CSRF-Token": ann.csrf, "Sec-Fetch-Site": "same-site"},
    ):
        answer = ann.client.post("/api/votes", json=body, headers=headers)
        assert (answer.status_code, answer.json()) == (403, {"error": STALE_PAGE}), headers
    assert ann.get("/api/questions").json()["progress"]["done"] == 0
    fine = {"X-CSRF-Token": ann.csrf, "Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}
    assert ann.client.post("/api/votes", json=body, headers=fine).status_code == 200


def test_every_post_asks_for_the_tokens_of_its_page(page: Page) -> None:
    owner = page.annotator("boss", "owner")
    paths = [
        *("/logout", "/api/votes", "/api/undo", "/api/demonstrations", "/api/guidelines/read"),
        *("/api/owner/annotators", "/api/owner/annotators/token", "/api/owner/annotators/revoke"),
        *("/api/owner/disagreement", "/api/owner/votes", "/api/owner/reward"),
    ]
    for path in paths:
        assert owner.client.post(path, json={}).status_code == 403, path
        assert page.browser().post(path, json={}, headers={"X-CSRF-Token": owner.csrf}).status_code == 401, path


def test_another_site_cannot_sign_a_browser_in(page: Page) -> None:
    _, token = page.store.add_annotator("demo", "mallory")
    client = page.browser()
    client.get("/")
    for headers in ({}, {"X-CSRF-Token": csrf_in(page.browser().get("/").text)}):
        answer = client.post("/login", data={"token": token}, headers=headers)
        assert answer.status_code == 403
        assert "accord-8765" not in client.cookies


def test_too_many_wrong_tokens_have_to_wait_and_right_ones_do_not_count(new_page: NewPage) -> None:
    page = new_page(login_burst=3)
    _, token = page.store.add_annotator("demo", "ann")
    for _ in range(5):
        assert try_token(page.browser(), token).status_code == 200
    statuses = [try_token(page.browser(), f"guess {n}").status_code for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    answer = try_token(page.browser(), token)
    assert answer.status_code == 429
    assert answer.json()["error"].startswith("Too many wrong tokens; try again in ")
    assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert try_token(page.browser(client=("198.51.100.7", 1)), token).status_code == 200  # another machine


@pytest.mark.parametrize(("behind_proxy", "status"), [(True, 200), (False, 429)])
def test_clients_of_a_proxy_are_told_apart_by_what_it_says(new_page: NewPage, behind_proxy: bool, status: int) -> None:
    page = new_page(login_burst=1, behind_proxy=behind_proxy)
    _, token = page.store.add_annotator("demo", "ann")

    def try_from(address: str, given: str) -> int:
        client = page.browser("https://localhost", headers={"X-Forwarded-For": f"spoofed, {address}"})
        return int(try_token(client, given).status_code)

    assert try_from("203.0.113.1", "wrong") == 401
    assert try_from("203.0.113.1", "wrong") == 429
    assert try_from("203.0.113.2", token) == status


def test_the_owners_page_is_the_owners(page: Page) -> None:
    ann, owner = page.annotator(), page.annotator("boss", "owner")
    assert ann.get("/owner", follow_redirects=False).headers["location"] == "/label"
    assert ann.get("/api/owner").status_code == 403
    assert ann.post("/api/owner/annotators", {"name": "eve"}).status_code == 403
    assert page.browser().get("/owner", follow_redirects=False).headers["location"] == "/"
    assert owner.get("/", follow_redirects=False).headers["location"] == "/owner"
    assert owner.get("/owner").status_code == 200


def test_a_session_survives_a_restart_of_the_server(new_page: NewPage) -> None:
    page = new_page([new_pair("q", "x", "y")])
    ann = page.annotator()
    page.start()
    ann.client = page.browser(cookies=dict(ann.client.cookies))
    (question,) = ann.questions()
    assert ann.vote(question["id"]).status_code == 200
