"""What every request passes, whatever it asks for: names of the host, size of the body, headers of the answer, rates."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accord.labeling.settings import PageSettings

POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"),
        *("form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"),
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
CLIENTS = 10_000
"""Clients whose rate is remembered."""


class AsciiJSON(JSONResponse):
    """JSON in ASCII: a lone surrogate or U+2028 in a reply travels as an escape, unchanged."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def refuse(status: int, sentence: str, wait: float = 0.0) -> AsciiJSON:
    """An error as the page expects it: one sentence; ``wait``: seconds after which to try again."""
    return AsciiJSON({"error": sentence}, status, {"Retry-After": str(max(1, round(wait)))} if wait else None)


class Guard:
    """The outermost layer of the page.  A request for another host or with a large body ends here."""

    def __init__(self, app: ASGIApp, settings: PageSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":  # a WebSocket is not accepted: the server answers 403
            return
        answer = _with_headers(send, str(scope["path"]).startswith("/static/"), self.settings.tls)
        refusal = self._refusal(Headers(scope=scope))
        await (refusal or self.app)(scope, limited(receive, self.settings.body_bytes), answer)

    def _refusal(self, headers: Headers) -> AsciiJSON | None:
        if not is_own_host(headers.get("host", ""), self.settings.host_names):
            return refuse(
                421,
                "This page does not go by that name; start it with 'accord label PROJECT --url ADDRESS', the address people type.",
            )
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > self.settings.body_bytes:
            return refuse(413, too_large(self.settings.body_bytes))
        return None


def too_large(most: int) -> str:
    return f"That is too long: at most {most:,} bytes can be sent at once."


def is_own_host(header: str, names: Iterable[str]) -> bool:
    """Whether a Host header is localhost, an IP address or one of ``names``.

    A name of somebody else's that resolves to this machine (DNS rebinding) is none of them.
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in {n.lower() for n in names}:
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def limited(receive: Receive, most: int) -> Receive:
    """Stops reading a body without a stated length once it is too large.  Raises HTTPException."""
    received = 0

    async def read() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, too_large(most))
        return message

    return read


def _with_headers(send: Send, is_static: bool, tls: bool) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["Cache-Control"] = "no-cache" if is_static else "no-store"
            if tls:
                headers["Strict-Transport-Security"] = "max-age=31536000"
        await send(message)

    return answer


# ------------------------------------------------------------------ where a request comes from
def is_same_origin(headers: Headers, names: Iterable[str]) -> bool:
    """Whether a browser that says where a POST comes from says: from this page."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        place = urlsplit(origin)
    except ValueError:
        return False
    own_name = (place.hostname or "") in {name.lower() for name in names}
    return place.netloc.lower() == headers.get("host", "").lower() or own_name


def client_of(scope: Scope, behind_proxy: bool) -> str:
    """Who asks, as far as rates go: an IPv4 address, or the /64 network of an IPv6 address.

    Behind a proxy it is the last address in X-Forwarded-For, which the proxy itself wrote.
    """
    address = scope["client"][0] if scope.get("client") else ""
    if behind_proxy and (forwarded := Headers(scope=scope).get("x-forwarded-for")):
        address = forwarded.rpartition(",")[2].strip()
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)


class Rates:
    """A token bucket for each key; the least recently used keys are forgotten first."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, key: str) -> float:
        """Counts one more; returns 0, or the seconds until it is allowed again."""
        with self._lock:
            now = self.clock()
            tokens, since = self._buckets.pop(key, (float(self.burst), now))
            tokens = min(float(self.burst), tokens + (now - since) * self.per_second)
            allowed = tokens >= 1
            self._buckets[key] = (tokens - 1 if allowed else tokens, now)
            while len(self._buckets) > CLIENTS:
                self._buckets.popitem(last=False)
            return 0.0 if allowed else (1 - tokens) / self.per_second

    def give_back(self, key: str) -> None:
        """Takes back what was counted: it was no failure after all."""
        with self._lock:
            if key in self._buckets:
                tokens, since = self._buckets[key]
                self._buckets[key] = (min(float(self.burst), tokens + 1), since)
