"""The labeling page as a person meets it: a real server on a real store, and headless Chromium."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from accord.feedback.entities import NewCandidate, NewPair, ProjectSettings
from accord.feedback.store import Store, open_store
from accord.feedback.vote_rows import read_votes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PROJECT = "kitchen"
SETTLED = 250  # milliseconds after which a pair on the page takes votes


def pair(a: str, b: str, prompt: str = "Which one?") -> NewPair:
    """Two replies to a prompt of one message."""
    sides = [NewCandidate(text, None, "model", {}) for text in (a, b)]
    return NewPair(({"role": "user", "content": prompt},), sides[0], sides[1], 1.0)


NUMBERED = [pair(f"First reply {n}", f"Second reply {n}", f"Question {n}?") for n in range(12)]


@dataclass
class Site:
    """A project's page on a port of this machine, stopped and started at will."""

    store: Store
    url: str
    start: Callable[[], None]
    stop: Callable[[], None]
    errors: list[str] = field(default_factory=list)

    def token(self, name: str = "Ada", role: Any = "annotator") -> str:
        return self.store.add_annotator(PROJECT, name, role)[1]

    def votes(self) -> list[Any]:
        return read_votes(self.store, PROJECT, None)

    def choices(self) -> list[str]:
        """The current votes in the order in which their pairs were added."""
        return [vote.choice for vote in sorted(self.votes(), key=lambda vote: vote.pair)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Opens a page on new pairs; stops it at the end."""
    pytest.importorskip("fastapi")
    pytest.importorskip("alembic")
    started: list[Site] = []

    def open_site(
        pairs: Sequence[NewPair] = NUMBERED, guidelines: str = "", tags: tuple[str, ...] = (), **settings: Any
    ) -> Site:
        store = open_store(tmp_path / "feedback.db")
        shares = {"gold_share": 0.0, "repeat_share": 0.0, **settings}
        store.create_project(PROJECT, ProjectSettings(tags=tags, **shares), guidelines)
        store.add_pairs(PROJECT, pairs)
        started.append(serve(store))
        return started[-1]

    yield open_site
    for one in started:
        one.stop()


def serve(store: Store) -> Site:
    """The page in a thread of this process."""
    import uvicorn

    from accord.labeling.app import create_app
    from accord.labeling.settings import PageSettings

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start() -> None:
        app = create_app(store, PageSettings(project=PROJECT, port=port))
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the page did not start"
            assert time.monotonic() < deadline, "the page did not start"
            time.sleep(0.01)

    def stop() -> None:
        while running:
            server, thread = running.pop()
            server.should_exit = True
            thread.join(10)

    start()
    return Site(store, f"http://127.0.0.1:{port}", start, stop)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, one for the tests of a file."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
    if (program := shutil.which("chromium")) is None:
        pytest.skip("Chromium is not installed")
    api.expect.set_options(timeout=20_000)  # busy machines are slow
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a new profile, or in ``context``; a script that fails or a dialog fails the test."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def open_page(url: str, context: BrowserContext | None = None, **options: Any) -> Page:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
            context.set_default_timeout(20_000)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"script failed: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def sign_in(browser: Browser, visit: Callable[..., Page]) -> Callable[..., Page]:
    """The page of somebody who is signed in, after the first pair takes votes."""

    def enter(site: Site, name: str = "Ada", role: Any = "annotator", ready: str = "#left", **options: Any) -> Page:
        if name not in {annotator.name for annotator, _ in site.store.annotators(PROJECT)}:
            site.store.add_annotator(PROJECT, name, role)
        cookie = site.store.start_session(site.store.annotator(PROJECT, name))
        page = visit(site.url + "/static/icon.svg", **options)
        page.context.add_cookies([{"name": f"accord-{site.url.rpartition(':')[2]}", "value": cookie, "url": site.url}])
        page.goto(site.url)
        page.locator(ready).wait_for()
        page.wait_for_timeout(SETTLED)
        return page

    return enter
