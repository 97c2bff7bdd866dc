"""Requests to an HTTP interface as OpenAI's chat completions: retries, limits, and several at the same time.

Redirects are refused, since the key would be sent along to wherever they lead.
"""

from __future__ import annotations

import http.client
import json
import math
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from accord.errors import UserError
from accord.io.readers import as_characters, parse_json, shorten

MAX_ANSWER = 8 << 20
"""Bytes of an answer."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
LONGEST_PAUSE = 60.0
GRACE = 5.0
"""Seconds for which answers that are on their way are waited for after a stop."""


class _Stopped(Exception):
    """A pause between two tries ended because no more requests are wanted."""


class _Again(Exception):
    """A try failed, and another one may succeed."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the redirect is an error."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and why it stopped."""

    text: str
    finish: str
    refused: bool
    """Whether it declined, or a filter did."""
    model: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatClient:
    """One address with its key; ``ask`` may be called by several threads."""

    url: str
    """Base address, without a slash at its end."""
    key: str = field(repr=False)
    retries: int
    timeout: float
    first_pause: float = 0.5

    def ask(self, body: Mapping[str, Any], stopped: threading.Event) -> Answer:
        """The answer to a request.  Raises UserError where it is refused, or no try succeeds."""
        content = json.dumps(body).encode()
        for tries in range(self.retries + 1):
            try:
                return self._try(content)
            except _Again as failed:
                why, pause = str(failed), failed.pause
            if tries < self.retries:
                pause = max(pause, self.first_pause * 2**tries * random.uniform(0.5, 1.0))
                if stopped.wait(min(LONGEST_PAUSE, pause)):
                    raise _Stopped
        times = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise UserError(
            f"openai.url: {self.url}: {why}, tried {times}; the answers until then are saved: run again (a single stage with"
            " --resume) to go on."
        )

    def _try(self, content: bytes) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "accord"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", content, headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                return _answer(_read(response, time.monotonic() + self.timeout))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:  # also URLError and timeouts
            raise _Again(
                self._hide(f"no answer ({getattr(error, 'reason', None) or error or type(error).__name__})")
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = self._hide(_message(error))
        words = f"answered {error.code}{f' ({said})' if said else ''}"
        if error.code in RETRIED:
            return _Again(words, _seconds(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            return UserError(f"openai.url: {self.url}: {words}, a redirect; name the address that it leads to.")
        hint = (
            "set openai.key_env to the variable that holds a valid key"
            if error.code in (401, 403)
            else ("check openai.url, openai.model and openai.body")
        )
        return UserError(f"openai.url: {self.url}: {words}; {hint}.")

    def _hide(self, text: str) -> str:
        """One printable line without the key, which some servers repeat."""
        text = text.replace(self.key, "…") if self.key else text
        return shorten(" ".join("".join(c if c.isprintable() else " " for c in text).split()))


def _read(response: IO[bytes], deadline: float) -> bytes:
    """The body, which must end before the deadline and within ``MAX_ANSWER`` bytes."""
    parts: list[bytes] = []
    while part := response.read1(1 << 16):  # type: ignore[attr-defined]
        parts.append(part)
        if time.monotonic() > deadline or sum(map(len, parts)) > MAX_ANSWER:
            raise _Again("its answer did not end")
    return b"".join(parts)


def _answer(content: bytes) -> Answer:
    try:
        found = parse_json(content.decode(), "the answer")
        choice = found["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "")
        text, refusal = message.get("content"), message.get("refusal")
        tokens = (found.get("usage") or {}).get("total_tokens")
    except (UserError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        raise _Again("its answer is not one of chat completions") from None
    refused = bool(refusal) or finish == "content_filter"
    words = text if isinstance(text, str) else ""
    model = found.get("model")
    return Answer(words, finish, refused, model if isinstance(model, str) else "", tokens if type(tokens) is int else 0)


def _message(error: urllib.error.HTTPError) -> str:
    """What the body of an error says."""
    try:
        content = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        found = json.loads(content)
        inner = found.get("error", found)
        return as_characters(str(inner.get("message", inner) if isinstance(inner, dict) else inner))
    except (ValueError, AttributeError, RecursionError):
        return content


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, min(LONGEST_PAUSE, float(text or 0)))
    except ValueError:  # a date
        return 0.0


def ask_all(
    client: ChatClient, bodies: Mapping[str, Mapping[str, Any]], parallel: int, stop: Callable[[], bool]
) -> Iterator[tuple[str, Answer]]:
    """(key, answer) as they arrive, ``parallel`` requests at a time.

    After a failure, or once ``stop`` says so, no new request is sent, and answers that are on their way are waited for a few
    seconds.  Raises UserError after a failure.
    """
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Answer | Exception]] = queue.SimpleQueue()
    stopped = threading.Event()
    for key in bodies:
        todo.put(key)

    def work() -> None:
        while not stopped.is_set():
            try:
                key = todo.get_nowait()
                done.put((key, client.ask(bodies[key], stopped)))
            except (queue.Empty, _Stopped):
                return
            except Exception as error:  # raised again by the main thread
                stopped.set()
                done.put((key, error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(bodies)))]
    for thread in threads:
        thread.start()
    failure: Exception | None = None
    missing, deadline = len(bodies), math.inf
    try:
        while missing:
            if deadline == math.inf and (stopped.is_set() or stop()):
                stopped.set()
                deadline = time.monotonic() + GRACE
            over = time.monotonic() > deadline or not any(thread.is_alive() for thread in threads)
            try:
                key, answer = done.get(timeout=0 if over else 0.05)
            except queue.Empty:
                if over:
                    break
                continue
            missing -= 1
            if isinstance(answer, Exception):
                failure = failure or answer
            else:
                yield key, answer
    finally:
        stopped.set()
    if failure:
        raise failure
