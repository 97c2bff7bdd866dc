"""The labeling page under load: annotators vote over HTTP while the server is killed; and how soon the next pair is there.

    python benchmarks/labeling.py                        16 annotators, 100 votes each, 6 kills, on SQLite
    python benchmarks/labeling.py --store URL            the same on PostgreSQL: the URL of an empty database
    python benchmarks/labeling.py --quick                4 annotators, 15 votes each, 2 kills
    python benchmarks/labeling.py --latency              from a key to the next pair on the page, in Chromium

Each annotator is a thread with its own connection; a vote without an answer is sent again with the same request id, as the
page does.  The server is a real ``accord label`` that gets SIGKILL in the middle of the load and is started again.  Lost:
votes that were answered and are not in the store.  Doubled: votes beyond one for each request, and answers of a pair beyond
its overlap.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "load"
OVERLAP = 2
ALLOWED_MS = 100.0
CHOICES = ("left", "right", "tie", "both_bad", "skip")


# ------------------------------------------------------------------ the server
@dataclass
class Server:
    """``accord label`` as a process."""

    store: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "accord", "label", PROJECT, "--store", self.store, "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, cwd=tempfile.gettempdir())
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"accord label ended with {self.process.returncode}") from None
                time.sleep(0.02)
        self.process.kill()
        raise SystemExit("accord label does not answer")

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ------------------------------------------------------------------ an annotator
@dataclass
class Annotator:
    """A client that signs in, votes, and never gives up."""

    number: int
    token: str
    port: int
    votes: int
    answered: dict[str, int] = field(default_factory=dict)  # request: vote
    again: int = 0  # votes that were sent more than once
    seconds: list[float] = field(default_factory=list)
    failure: str = ""
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""
    connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            self._vote()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def _vote(self) -> None:
        draw = random.Random(self.number)
        self._sign_in()
        queue = self._call("GET", "/api/questions")["questions"]
        while len(self.answered) < self.votes:
            queue = queue or self._call("GET", "/api/questions")["questions"]
            if not queue:
                raise RuntimeError("no question is left")
            question, *queue = queue
            request = f"{self.number}-{draw.getrandbits(64):x}"
            body = {
                "request": request, "question": question["id"], "choice": draw.choice(CHOICES), "seconds": 1.0,
                "have": [q["id"] for q in queue],
            }  # fmt: skip
            began = time.perf_counter()
            answer = self._call("POST", "/api/votes", body)
            self.seconds.append(time.perf_counter() - began)
            self.answered[request] = answer["vote"]
            queue += [answer["next"]] if answer["next"] else []

    def _sign_in(self) -> None:
        page = self._call("GET", "/", text=True)
        self.csrf = re.findall(r'name="csrf-token" content="([^"]+)"', page)[0]
        self.csrf = self._call("POST", "/login", {"token": self.token})["csrf"]

    def _call(self, method: str, path: str, body: Any = None, text: bool = False) -> Any:
        for attempt in range(2000):
            try:
                status, content, wait = self._once(method, path, body)
            except (OSError, http.client.HTTPException):
                self.connection = None
                self.again += path == "/api/votes"
                time.sleep(0.05)
                continue
            if status in (429, 503):
                time.sleep(wait)
                continue
            if status != 200:
                raise RuntimeError(f"{method} {path}: {status} {content[:200]} (attempt {attempt})")
            return content if text else json.loads(content)
        raise RuntimeError(f"{method} {path}: no answer")

    def _once(self, method: str, path: str, body: Any) -> tuple[int, str, float]:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}
        if method == "POST":
            headers |= {"X-CSRF-Token": self.csrf, "Content-Type": "application/json"}
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.connection.getresponse()
        content = answer.read().decode()
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer.status, content, float(answer.headers.get("Retry-After") or 0.1)


# ------------------------------------------------------------------ the load
def fill(store_place: str, annotators: int, votes: int) -> list[str]:
    """A project with enough pairs; returns the annotators' tokens."""
    from accord.feedback.store import NewCandidate, NewPair, ProjectSettings, open_store

    store = open_store(store_place)
    store.create_project(PROJECT, ProjectSettings(overlap=OVERLAP, repeat_share=0.05, gold_share=0))
    count = annotators * votes  # twice as many as are needed, since a skipped pair is asked of others too

    def pair(n: int) -> NewPair:
        sides = (NewCandidate(f"Reply {n} of {who}. " + "Some words. " * 40, None, who, {}) for who in ("x", "y"))
        return NewPair(({"role": "user", "content": f"Question {n}?"},), *sides, probability=1.0)

    store.add_pairs(PROJECT, map(pair, range(count)))
    return [store.add_annotator(PROJECT, f"annotator {n}")[1] for n in range(annotators)]


def load(store_place: str, annotators: int, votes: int, kills: int) -> dict[str, Any]:
    """Runs the load and compares what was answered with what is in the store."""
    tokens = fill(store_place, annotators, votes)
    server = Server(store_place, free_port())
    server.start()
    people = [Annotator(n, token, server.port, votes) for n, token in enumerate(tokens)]
    threads = [Thread(target=person.run, daemon=True) for person in people]
    began, down, done = time.monotonic(), 0.0, Event()
    for thread in threads:
        thread.start()
    total, killed = annotators * votes, 0
    try:
        while any(thread.is_alive() for thread in threads):
            if killed < kills and sum(len(p.answered) for p in people) >= total * (killed + 1) / (kills + 1):
                server.end(signal.SIGKILL)
                fell = time.monotonic()
                killed += 1
                server.start()
                down += time.monotonic() - fell
            done.wait(0.01)
        seconds = time.monotonic() - began
        code = server.end(signal.SIGINT)
    finally:
        if server.process and server.process.poll() is None:
            server.end(signal.SIGKILL)
    if failures := [f"annotator {p.number}: {p.failure}" for p in people if p.failure]:
        raise SystemExit("\n".join(failures))
    times = sorted(s for p in people for s in p.seconds)
    return {
        "annotators": annotators, "votes": total, "kills": killed, **compare(store_place, people), "exit_code": code,
        "seconds": round(seconds, 2), "down_seconds": round(down, 2), "votes_per_second": round(total / (seconds - down), 1),
        "median_ms": round(statistics.median(times) * 1000, 1), "p95_ms": round(times[int(0.95 * len(times))] * 1000, 1),
        "sent_again": sum(p.again for p in people),
    }  # fmt: skip


def compare(store_place: str, people: list[Annotator]) -> dict[str, int]:
    """Votes that are missing from the store, and those that are in it twice."""
    from accord.feedback import schema
    from accord.feedback.connect import reading
    from accord.feedback.store import open_store
    from accord.feedback.vote_rows import read_votes

    store = open_store(store_place, create=False)
    with reading(store.engine) as c:
        rows = c.execute(schema.votes.select()).all()
    stored = {row.request: row.id for row in rows}
    answered = {request: vote for p in people for request, vote in p.answered.items()}
    lost = sum(stored.get(request) != vote for request, vote in answered.items())
    current = read_votes(store, PROJECT)
    by_pair = Counter(v.pair for v in current if v.occasion == 0 and v.choice != "skip")
    by_person = Counter((v.pair, v.annotator, v.occasion) for v in current)
    doubled = len(rows) - len(answered) + sum(n - 1 for n in by_person.values())
    return {
        "stored": len(rows),
        "lost": lost,
        "doubled": doubled,
        "beyond_overlap": sum(n > OVERLAP for n in by_pair.values()),
    }


# ------------------------------------------------------------------ from a key to the next pair
def latency(store_place: str, votes: int = 60) -> dict[str, Any]:
    """Milliseconds from a key to the frame that shows the next pair, in headless Chromium; needs playwright."""
    from playwright.sync_api import sync_playwright

    (token,) = fill(store_place, 1, votes + 20)
    server = Server(store_place, free_port())
    server.start()
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.wait_for_selector("#left p")
            page.evaluate(WATCH)
            times = []
            for n in range(votes):
                page.wait_for_timeout(600)  # nobody reads two replies faster
                before = page.inner_text("#left")
                page.keyboard.press("1" if n % 2 else "3")
                deadline = time.monotonic() + 30
                while page.inner_text("#left") == before and time.monotonic() < deadline:
                    page.wait_for_timeout(20)
                page.wait_for_timeout(50)
                times.append(page.evaluate("window.shownAfter"))
            browser.close()
    finally:
        server.end(signal.SIGINT)
    times.sort()
    p95 = times[int(0.95 * len(times))]
    return {
        "votes": votes,
        "median_ms": times[len(times) // 2],
        "p95_ms": p95,
        "most_ms": times[-1],
        "met": p95 < ALLOWED_MS,
    }


WATCH = """() => {
  let pressed = 0;
  addEventListener("keydown", () => (pressed = performance.now()), { capture: true });
  new MutationObserver(() => {
    if (!pressed) return;
    const since = pressed;
    pressed = 0;
    requestAnimationFrame(() => setTimeout(() => (window.shownAfter = Math.round((performance.now() - since) * 10) / 10)));
  }).observe(document.querySelector("#left"), { childList: true, subtree: true, characterData: true });
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--store", default="", help="path, or postgresql:// URL of an empty database (default: a new file)"
    )
    parser.add_argument("--quick", action="store_true", help="4 annotators, 15 votes each, 2 kills")
    parser.add_argument("--latency", action="store_true", help="from a key to the next pair, in Chromium")
    parser.add_argument("--annotators", type=int, default=16)
    parser.add_argument("--votes", type=int, default=100, help="of each annotator")
    parser.add_argument("--kills", type=int, default=6)
    options = parser.parse_args()
    size = (4, 15, 2) if options.quick else (options.annotators, options.votes, options.kills)
    with tempfile.TemporaryDirectory() as folder:
        place = options.store or str(Path(folder) / "feedback.db")
        found = latency(place) if options.latency else load(place, *size)
    print(json.dumps({"row": "labeling_latency" if options.latency else "labeling_load", **found}))
    return 0 if found.get("met", True) and not any(found.get(k) for k in ("lost", "doubled", "beyond_overlap")) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
