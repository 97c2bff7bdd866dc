"""What every request passes: host names, sizes, rates, headers."""

from __future__ import annotations

import pytest

from accord.labeling.security import Rates, client_of, is_own_host, is_same_origin
from tests.labeling.visitors import ORIGIN, NewPage, Page


def test_every_answer_has_the_headers_that_keep_a_page_harmless(page: Page) -> None:
    ann = page.annotator()
    answers = [
        *(ann.get(path) for path in ("/", "/label", "/guidelines", "/api/questions", "/absent", "/static/icon.svg")),
        *(ann.client.post("/api/votes"), ann.get("/", headers={"Host": "evil.example"}), ann.vote(99)),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 404, 200, 403, 421, 400]
    for answer in answers:
        assert answer.headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == ("no-cache" if answer.url.path.startswith("/static/") else "no-store")
        assert "access-control-allow-origin" not in answer.headers


def test_a_name_that_was_bound_to_this_machine_gets_no_answer(page: Page) -> None:
    for host in (
        "evil.example",
        "evil.example:8765",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[",
        "a b",
    ):
        answer = page.browser().get("/", headers={"Host": host})
        assert answer.status_code == 421, host
        assert "token" not in answer.text
    for host in ("localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765", "192.0.2.7", "a.localhost"):
        assert page.browser().get("/", headers={"Host": host}).status_code == 200, host


def test_the_pages_own_name_is_answered() -> None:
    assert is_own_host("Label.Example.org:443", ["label.example.ORG"])
    assert not is_own_host("xlabel.example.org", ["label.example.org"])


def test_a_large_body_is_refused_with_and_without_its_length(new_page: NewPage) -> None:
    page = new_page(body_bytes=2000)
    ann = page.annotator()
    headers = {"X-CSRF-Token": ann.csrf, "Content-Type": "application/json"}
    sentence = "That is too long: at most 2,000 bytes can be sent at once."
    for path in ("/api/votes", "/login"):
        for content in (b"x" * 2001, iter([b"x" * 1000] * 3)):
            answer = ann.client.post(path, content=content, headers=headers)
            assert (answer.status_code, answer.json()) == (413, {"error": sentence}), path
    for length in ("-1", "9" * 5000, "1_0", "x"):
        answer = ann.client.post("/api/votes", content=b"{}", headers={**headers, "Content-Length": length})
        assert answer.status_code == 413, length


def test_a_flood_of_requests_has_to_wait(new_page: NewPage) -> None:
    page = new_page(request_burst=3, requests_per_second=0.5)
    ann, bob = page.annotator("ann"), page.annotator("bob")
    assert [ann.get("/api/questions").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert 1 <= int(ann.get("/api/questions").headers["Retry-After"]) <= 2
    assert bob.get("/api/questions").status_code == 200


def test_a_bucket_fills_again_with_time() -> None:
    now = 0.0
    rates = Rates(2.0, 2, lambda: now)
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]
    now = 0.5
    assert [rates.take("a"), rates.take("a")] == [0, 0.5]
    now = 100.0
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0.5]
    rates.give_back("a")
    assert rates.take("a") == 0


def test_many_clients_do_not_fill_the_memory() -> None:
    rates = Rates(1.0, 1)
    for n in range(20_000):
        rates.take(str(n))
    assert len(rates._buckets) == 10_000


def test_paths_out_of_the_static_folder_lead_nowhere(page: Page) -> None:
    client = page.browser()
    for path in (
        *(
            "/static/../app.py",
            "/static/..%2fapp.py",
            "/static/%2e%2e/app.py",
            "/static/..%5capp.py",
            "/static/....//app.py",
        ),
        *(
            "/static//etc/passwd",
            "/static/%2fetc%2fpasswd",
            "/static/icon.svg%00.txt",
            "/static/",
            "/static",
            "/app.py",
        ),
        *("/openapi.json", "/docs", "/redoc", "/label/", "/static/../templates/login.html"),
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.json() == {"error": "There is no such page."}, path
    assert client.get("/static/icon.svg").status_code == 200


def test_a_request_of_another_kind_is_refused_in_a_sentence(page: Page) -> None:
    answer = page.browser().request("DELETE", "/label")
    assert (answer.status_code, answer.json()) == (405, {"error": "This address does not take that kind of request."})


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(address: str, key: str) -> None:
    assert client_of({"type": "http", "client": (address, 1), "headers": []}, behind_proxy=False) == key


def test_an_origin_is_compared_with_port_and_all() -> None:
    from starlette.datastructures import Headers

    def same(**headers: str) -> bool:
        return is_same_origin(Headers({k.replace("_", "-"): v for k, v in headers.items()}), ["label.example.org"])

    assert same(host="127.0.0.1:8765")
    assert same(host="127.0.0.1:8765", origin=ORIGIN)
    assert same(host="10.0.0.1:8000", origin="https://label.example.org")
    assert not same(host="127.0.0.1:8765", origin="http://127.0.0.1:8766")
    assert not same(host="127.0.0.1:8765", origin="http://[")
