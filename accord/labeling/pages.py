"""Pages, signing in and out."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request
from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse, RedirectResponse, Response

from accord.labeling import auth
from accord.labeling.auth import Session, Site, session_of, signed_in, site_of
from accord.labeling.render import html_of, visible_text
from accord.labeling.security import AsciiJSON

TEMPLATES = Path(__file__).parent / "templates"
TOKEN_CHARACTERS = 200

routes = APIRouter()


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, auto_reload=False)


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A template as an answer."""
    return HTMLResponse(_environment().get_template(template).render(context).encode("utf-8", "replace"), status)


def home_of(session: Session) -> str:
    return "/owner" if session.annotator.role == "owner" else "/label"


@routes.get("/")
def start(request: Request) -> Response:
    """The token form, or the way to the page of whoever is signed in."""
    session = session_of(request)
    return RedirectResponse(home_of(session), 303) if session else login_page(request)


def login_page(request: Request, error: str = "", status: int = 200) -> Response:
    """The token form, bound to a cookie of its own."""
    site = site_of(request)
    cookie = request.cookies.get(site.login_cookie, "")
    cookie = cookie if 16 <= len(cookie) <= 64 else auth.new_login_cookie()
    made = page("login.html", status, csrf=auth.csrf_of(cookie), error=error, project=site.settings.project)
    auth.set_cookie(made, site, site.login_cookie, cookie, None)
    return made


async def given_token(request: Request) -> str:
    """The token in a body of JSON or of a form.  Raises HTTPException 422 where there is none."""
    body = await request.body()
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            found = json.loads(body)
            token = found.get("token") if isinstance(found, dict) else None
        else:
            token = parse_qs(body.decode("utf-8"), max_num_fields=8).get("token", [""])[0]
    except (ValueError, RecursionError):
        token = None
    if not isinstance(token, str) or not token.strip():
        raise HTTPException(422, "Enter the token that the project's owner gave you.")
    return token[:TOKEN_CHARACTERS]


@routes.post("/login")
def log_in(request: Request, token: Annotated[str, Depends(given_token)]) -> Response:
    """Signs in with a token."""
    site, session = site_of(request), auth.log_in(request, token)
    made = AsciiJSON({"next": home_of(session), "csrf": session.csrf})
    auth.set_cookie(made, site, site.session_cookie, session.cookie, int(site.settings.session.total_seconds()))
    auth.drop_cookie(made, site, site.login_cookie)
    return made


@routes.post("/logout")
def log_out(request: Request, session: Annotated[Session, Depends(signed_in)]) -> Response:
    """Ends the session."""
    site = site_of(request)
    site.store.end_session(session.cookie)
    made = AsciiJSON({"next": "/"})
    auth.drop_cookie(made, site, site.session_cookie)
    return made


@routes.get("/label")
def label(request: Request) -> Response:
    """The annotator's page."""
    session, site = session_of(request), site_of(request)
    if session is None:
        return RedirectResponse("/", 303)
    project = site.store.project(site.settings.project)
    return page(
        "label.html",
        csrf=session.csrf,
        project=project.name,
        annotator=session.annotator.public_id,
        tags=project.settings.tags,
        guidelines=guidelines_state(site, session),
    )


def guidelines_state(site: Site, session: Session) -> str:
    """none, unread or read."""
    if not site.store.project(site.settings.project).guidelines.strip():
        return "none"
    return "read" if site.store.has_read_guidelines(session.annotator) else "unread"


@routes.get("/guidelines")
def guidelines(request: Request, session: Annotated[Session, Depends(signed_in)]) -> Response:
    """The owner's guidelines, as a fragment."""
    text = site_of(request).store.project(session.annotator.project).guidelines
    return HTMLResponse(html_of(text) if text.strip() else "<p>This project has no guidelines.</p>")


@routes.get("/owner")
def owner(request: Request) -> Response:
    """The owner's page."""
    session = session_of(request)
    if session is None or session.annotator.role != "owner":
        return RedirectResponse("/label" if session else "/", 303)
    name = visible_text(session.annotator.name)
    return page("owner.html", csrf=session.csrf, project=session.annotator.project, owner=name)
