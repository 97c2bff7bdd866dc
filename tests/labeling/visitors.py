"""A store with a small project, its page, and people signed in to it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra feedback")
pytest.importorskip("httpx2", reason="needs the extra test")

from fastapi.testclient import TestClient

from accord.feedback.store import NewCandidate, NewPair, ProjectSettings, Store, open_store
from accord.labeling.app import create_app
from accord.labeling.settings import PageSettings

ORIGIN = "http://127.0.0.1:8765"
META = re.compile(r'<meta name="csrf-token" content="([^"]+)"')


def new_pair(prompt: str, a: str, b: str, **more: Any) -> NewPair:
    sides = (NewCandidate(text, None, policy, {"temperature": 1.0}) for text, policy in ((a, "one"), (b, "two")))
    return NewPair(({"role": "user", "content": prompt},), *sides, **{"probability": 1.0, **more})


@dataclass
class Person:
    """A browser that is signed in."""

    client: TestClient
    csrf: str
    requests: Any = field(default_factory=lambda: itertools.count(1))

    def get(self, path: str, **more: Any) -> Any:
        return self.client.get(path, **more)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return send_json(self.client, path, {} if body is None else body, {"X-CSRF-Token": self.csrf, **headers})

    def questions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/questions").json()["questions"]
        return found

    def vote(self, question: int, choice: str = "left", **more: Any) -> Any:
        body = {"request": f"r{next(self.requests)}", "question": question, "choice": choice, "seconds": 1.5, **more}
        return self.post("/api/votes", body)


@dataclass
class Page:
    """The page of a project in a store, which tests may restart."""

    store: Store
    settings: PageSettings
    app: Any = None

    def start(self, **settings: Any) -> None:
        self.settings = replace(self.settings, **settings)
        self.app = create_app(self.store, self.settings)

    def browser(self, base: str = ORIGIN, **more: Any) -> TestClient:
        return TestClient(self.app, base_url=base, raise_server_exceptions=False, **more)

    def sign_in(self, token: str, client: TestClient | None = None) -> Person:
        client = client or self.browser()
        answer = try_token(client, token)
        assert answer.status_code == 200, answer.text
        return Person(client, answer.json()["csrf"])

    def annotator(self, name: str = "ann", role: Any = "annotator") -> Person:
        return self.sign_in(self.store.add_annotator(self.settings.project, name, role)[1])


def csrf_in(text: str) -> str:
    found = META.search(text)
    assert found, text[:200]
    return found.group(1)


def try_token(client: TestClient, token: str, **headers: str) -> Any:
    csrf = csrf_in(client.get("/").text)
    return send_json(client, "/login", {"token": token}, {"X-CSRF-Token": csrf, **headers})


def send_json(client: TestClient, path: str, body: Any, headers: dict[str, str]) -> Any:
    """As a browser sends it: half of a surrogate pair is an escape."""
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json", **headers})


NewPage = Callable[..., Page]


@pytest.fixture
def new_page(tmp_path: Path) -> NewPage:
    def make(pairs: Sequence[NewPair] = (), guidelines: str = "", settings: Any = None, **page: Any) -> Page:
        store = open_store(tmp_path / "feedback.db")
        store.create_project("demo", settings or ProjectSettings(repeat_share=0, gold_share=0), guidelines)
        store.add_pairs(
            "demo", pairs or [new_pair(f"question {i}", f"reply {i} of one", f"reply {i} of two") for i in range(5)]
        )
        made = Page(store, PageSettings("demo", **page))
        made.start()
        return made

    return make


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()
