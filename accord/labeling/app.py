"""The application: routes, errors as sentences, and the guard around them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from accord.errors import UserError
from accord.feedback.connect import StoreUnavailable
from accord.feedback.store import Store
from accord.labeling import api, owner, pages
from accord.labeling.auth import Site
from accord.labeling.render import visible_text
from accord.labeling.reward_check import RewardCheck
from accord.labeling.security import Guard, Rates, refuse
from accord.labeling.settings import PageSettings

STATIC = Path(__file__).parent / "static"


def create_app(store: Store, settings: PageSettings) -> ASGIApp:
    """The page of one project.  Raises UserError where the store has no such project."""
    store.project(settings.project)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.site = Site(
        store,
        settings,
        logins=Rates(settings.login_failures_per_minute / 60, settings.login_burst),
        requests=Rates(settings.requests_per_second, settings.request_burst),
    )
    app.state.reward_check = RewardCheck()
    for routes in (pages.routes, api.routes, owner.routes):
        app.include_router(routes)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UserError, _mistaken)
    app.add_exception_handler(Exception, _unexpected)
    return Guard(app, settings)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is no such page.", 405: "This address does not take that kind of request."}
    made = refuse(error.status_code, words.get(error.status_code, str(error.detail)))
    made.headers.update(error.headers or {})
    return made


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the request"
    return refuse(422, visible_text(f"{where}: {first['msg']}."))


async def _mistaken(request: Request, error: Exception) -> Response:
    return refuse(503 if isinstance(error, StoreUnavailable) else 400, visible_text(str(error)))


async def _unexpected(request: Request, error: Exception) -> Response:
    """The server prints the error for the owner; the page tries again by itself."""
    return refuse(500, "The server made a mistake; nothing was lost. Its owner sees the reason in the terminal.")
