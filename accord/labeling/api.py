"""What the annotator's page asks for and sends, as JSON."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from accord.feedback import votes
from accord.feedback.entities import Question, Vote
from accord.feedback.progress import progress
from accord.feedback.queue import next_questions
from accord.labeling.auth import Session, signed_in, site_of
from accord.labeling.render import html_of, messages_html
from accord.labeling.security import AsciiJSON

LARGEST_ID = 2**31 - 1
AHEAD = 2
"""Questions that are open at once: the one on the page and the next."""

routes = APIRouter(prefix="/api")
SignedIn = Annotated[Session, Depends(signed_in)]
Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]
AnyText = InstanceOf[str]
"""Pydantic's own type of text refuses lone surrogates, which a person may paste."""


class Body(BaseModel):
    """A request's values; the same ``request`` again changes nothing more."""

    model_config = ConfigDict(extra="forbid")
    request: AnyText


class NewVote(Body):
    question: Id
    choice: Literal["left", "right", "tie", "both_bad", "skip"]
    strength: int = 1
    seconds: float = 0.0
    comment: AnyText = ""
    tags: list[AnyText] = []
    have: list[Id] = []
    """Questions that the page holds already, so that ``next`` is none of them."""


class NewDemonstration(Body):
    question: Id
    text: AnyText


@routes.get("/questions")
def questions(request: Request, session: SignedIn, have: str = "") -> AsciiJSON:
    """The open questions that the page does not hold yet, at most two with those that it holds, and the progress."""
    held = {int(part) for part in have.split(",")[:8] if re.fullmatch("[0-9]{1,10}", part)}
    found = next_questions(site_of(request).store, session.annotator, AHEAD)
    return AsciiJSON(
        {"questions": [shown(q) for q in found if q.id not in held], "progress": progress_of(request, session)}
    )


@routes.post("/votes")
def vote(request: Request, session: SignedIn, body: NewVote) -> AsciiJSON:
    """Records a vote; returns the question to preload, if one more is left."""
    made = cast_vote(request, session, body)
    found = next_questions(site_of(request).store, session.annotator, AHEAD)
    held = {body.question, *body.have}
    following = [q for q in found if q.id not in held] if body.have else found[-1:]
    return AsciiJSON(
        {"vote": made.id, "next": shown(following[0]) if following else None, "progress": progress_of(request, session)}
    )


def cast_vote(request: Request, session: Session, body: NewVote) -> Vote:
    return votes.cast(
        site_of(request).store,
        session.annotator,
        body.question,
        body.choice,
        request=body.request,
        strength=body.strength,
        seconds=min(max(body.seconds, 0.0), votes.MAX_SECONDS),  # of a page that was left open over the weekend
        comment=body.comment,
        tags=body.tags,
    )


@routes.post("/undo")
def undo(request: Request, session: SignedIn, body: Body) -> AsciiJSON:
    """Takes back the newest vote; returns its question and what was chosen."""
    store = site_of(request).store
    question = votes.undo(store, session.annotator, body.request)
    former = [v for v in votes.history(store, session.annotator, question.id) if v.kind == "vote"][-1]
    chosen = {"choice": former.shown, "strength": former.strength, "comment": former.comment, "tags": list(former.tags)}
    return AsciiJSON({"question": shown(question), "vote": chosen, "progress": progress_of(request, session)})


@routes.post("/demonstrations")
def demonstrate(request: Request, session: SignedIn, body: NewDemonstration) -> AsciiJSON:
    """Records an answer that the annotator wrote."""
    votes.add_demonstration(site_of(request).store, session.annotator, body.question, body.text, request=body.request)
    return AsciiJSON({"saved": True})


@routes.post("/guidelines/read")
def read_guidelines(request: Request, session: SignedIn) -> AsciiJSON:
    """Records that the present guidelines were read."""
    site_of(request).store.mark_guidelines_read(session.annotator)
    return AsciiJSON({"read": True})


def shown(question: Question) -> dict[str, Any]:
    """A question as the page gets it: which model wrote what, and whether it is a repeat or a gold question, is not in it."""
    sides = {
        side: {"html": html_of(text), "text": text}
        for side, text in (("left", question.left), ("right", question.right))
    }
    return {"id": question.id, "messages": messages_html(question.messages), **sides}


def progress_of(request: Request, session: Session) -> dict[str, Any]:
    return asdict(progress(site_of(request).store, session.annotator))
