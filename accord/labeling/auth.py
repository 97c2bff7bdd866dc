"""Who asks: a token becomes a session's cookie, and every POST shows that it comes from that session's page."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from starlette.responses import Response

from accord.feedback.entities import Annotator
from accord.feedback.store import Store
from accord.labeling.security import Rates, client_of, is_same_origin
from accord.labeling.settings import PageSettings

WRONG_TOKEN = "This token is not valid here; check that you copied all of it, or ask the project's owner for a new one."
SIGN_IN = "Your session has ended; sign in again with your token."
STALE_PAGE = "This page is out of date; reload it and try again."


@dataclass(frozen=True, slots=True)
class Site:
    """What all routes share."""

    store: Store
    settings: PageSettings
    logins: Rates = field(repr=False)
    requests: Rates = field(repr=False)

    @property
    def session_cookie(self) -> str:
        """Named with the port, since browsers send a host's cookies to all its ports."""
        return f"{self._prefix}accord-{self.settings.port}"

    @property
    def login_cookie(self) -> str:
        """That of a page without a session, to which its token form is bound."""
        return f"{self._prefix}accord-login-{self.settings.port}"

    @property
    def _prefix(self) -> str:
        return "__Host-" * self.settings.secure


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in annotator."""

    annotator: Annotator
    cookie: str

    @property
    def csrf(self) -> str:
        return csrf_of(self.cookie)


def csrf_of(cookie: str) -> str:
    """The token that a session's page holds and another site cannot know, since it cannot read the cookie."""
    return hashlib.blake2b(cookie.encode("utf-8", "replace"), digest_size=24, person=b"accord csrf").hexdigest()


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def session_of(request: Request) -> Session | None:
    """The session of a request; None without a valid one for this project."""
    site = site_of(request)
    cookie = request.cookies.get(site.session_cookie, "")
    annotator = site.store.session(cookie) if cookie else None
    if annotator is None or annotator.project != site.settings.project:
        return None
    return Session(annotator, cookie)


def signed_in(request: Request) -> Session:
    """The session of a request of the API.  Raises HTTPException 401, 403 and 429."""
    session = session_of(request)
    if session is None:
        raise HTTPException(401, SIGN_IN)
    site = site_of(request)
    if wait := site.requests.take(csrf_of(session.cookie)):
        raise HTTPException(
            429, "Too many requests; this goes on by itself in a moment.", {"Retry-After": str(round(wait) or 1)}
        )
    if request.method != "GET":
        require_own_page(request, [session.cookie])
    return session


def owner_signed_in(session: Annotated[Session, Depends(signed_in)]) -> Session:
    """Raises HTTPException 403 for annotators."""
    if session.annotator.role != "owner":
        raise HTTPException(403, "This is for the project's owner; sign in with the owner's token.")
    return session


def require_own_page(request: Request, cookies: list[str]) -> None:
    """Raises HTTPException 403 unless a POST carries the CSRF token of one of ``cookies`` and comes from this site."""
    given = request.headers.get("x-csrf-token", "").encode("utf-8", "replace")
    fits = any(hmac.compare_digest(given, csrf_of(cookie).encode()) for cookie in cookies if cookie)
    if not fits or not is_same_origin(request.headers, site_of(request).settings.host_names):
        raise HTTPException(403, STALE_PAGE)


def log_in(request: Request, token: str) -> Session:
    """A new session for a token: never the one that the browser came with, which ends.

    Raises HTTPException 401 for a wrong token, 403 for a form of another site and 429 after too many wrong ones.
    """
    site = site_of(request)
    former = request.cookies.get(site.session_cookie, "")
    require_own_page(request, [former, request.cookies.get(site.login_cookie, "")])
    client = client_of(request.scope, site.settings.behind_proxy)
    if wait := site.logins.take(client):
        seconds = max(1, round(wait))
        raise HTTPException(
            429, f"Too many wrong tokens; try again in {seconds} seconds.", {"Retry-After": str(seconds)}
        )
    annotator = site.store.authenticate(token.strip())
    if annotator is None or annotator.project != site.settings.project:
        raise HTTPException(401, WRONG_TOKEN)
    site.logins.give_back(client)
    if former:
        site.store.end_session(former)
    return Session(annotator, site.store.start_session(annotator, lasting=site.settings.session))


def new_login_cookie() -> str:
    return secrets.token_urlsafe(24)


def set_cookie(response: Response, site: Site, name: str, value: str, seconds: int | None) -> None:
    """A cookie that scripts cannot read and other sites do not cause to be sent."""
    response.set_cookie(
        name, value, max_age=seconds, path="/", secure=site.settings.secure, httponly=True, samesite="strict"
    )


def drop_cookie(response: Response, site: Site, name: str) -> None:
    response.delete_cookie(name, path="/", secure=site.settings.secure, httponly=True, samesite="strict")
