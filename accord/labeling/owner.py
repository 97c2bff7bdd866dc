"""The owner's page: figures of the votes, annotators, disagreements to decide, the reward model beside the noise ceiling."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, InstanceOf

from accord.errors import UserError
from accord.feedback.adjudication import ask_owner
from accord.feedback.agreement import independent
from accord.feedback.entities import ADJUDICATION, Annotator
from accord.feedback.progress import coverage
from accord.feedback.report import Report, describe_votes
from accord.feedback.store import Store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import shown_of
from accord.labeling.api import Id, NewVote, cast_vote, shown
from accord.labeling.auth import Session, owner_signed_in, site_of
from accord.labeling.reward_check import RewardCheck
from accord.labeling.security import AsciiJSON

RESAMPLES = 500
"""Of the bootstrap: an interval's ends to about a tenth of its width, in well under a second."""

routes = APIRouter(prefix="/api/owner")
Owner = Annotated[Session, Depends(owner_signed_in)]


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: InstanceOf[str]


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pair: Id


@routes.get("")
def figures(request: Request, session: Owner) -> AsciiJSON:
    """Everything on the owner's page."""
    site = site_of(request)
    check: RewardCheck = request.app.state.reward_check
    return AsciiJSON({**owner_figures(site.store, site.settings.project), "reward": check.state()})


def owner_figures(store: Store, project: str) -> dict[str, Any]:
    """The figures of a project.  Annotators are named: they are the owner's own people; exports name nobody."""
    rows = read_votes(store, project)
    people = {a.public_id: (a, valid) for a, valid in store.annotators(project)}
    report = describe_votes(rows, RESAMPLES)
    decided = {row.pair: row.choice for row in rows if row.occasion == ADJUDICATION and row.choice != "skip"}
    owner = store.project(project)
    return {
        "project": project,
        "overlap": owner.settings.overlap,
        "coverage": asdict(coverage(store, project)),
        **summary(report),
        "annotators": _annotators(report, people),
        "kappas": [
            {"first": _name(people, x), "second": _name(people, y), "kappa": kappa, "pairs": common}
            for x, y, kappa, common in report.kappas
        ],
        "disagreements": [{**asdict(d), "decided": decided.get(int(str(d.pair)))} for d in report.disagreements],
    }


def summary(report: Report) -> dict[str, Any]:
    """A report without what has its own place on the page."""
    found = asdict(report)
    for name in ("by_annotator", "kappas", "disagreements", "annotators"):
        del found[name]
    return found


def _name(people: dict[str, tuple[Annotator, bool]], public_id: str) -> str:
    return (people[public_id][0].name if public_id in people else "") or public_id


def _annotators(report: Report, people: dict[str, tuple[Annotator, bool]]) -> list[dict[str, Any]]:
    own = {found.annotator: asdict(found) for found in report.by_annotator}
    return [
        {
            **own.get(public_id, {"votes": 0, "skipped": 0}),
            "annotator": public_id,
            "name": a.name,
            "role": a.role,
            "active": valid,
        }
        for public_id, (a, valid) in people.items()
    ]


# ------------------------------------------------------------------ people
@routes.post("/annotators")
def add(request: Request, session: Owner, body: Named) -> AsciiJSON:
    """A new annotator; the token is in this answer only."""
    site = site_of(request)
    made, token = site.store.add_annotator(site.settings.project, body.name)
    return AsciiJSON({"name": made.name, "annotator": made.public_id, "token": token})


@routes.post("/annotators/token")
def new_token(request: Request, session: Owner, body: Named) -> AsciiJSON:
    """A new token for an annotator; the former one ends."""
    _require_another(session, body.name)
    site = site_of(request)
    return AsciiJSON({"name": body.name, "token": site.store.new_token(site.settings.project, body.name)})


@routes.post("/annotators/revoke")
def revoke(request: Request, session: Owner, body: Named) -> AsciiJSON:
    """Ends an annotator's token and sessions."""
    _require_another(session, body.name)
    site = site_of(request)
    site.store.revoke(site.settings.project, body.name)
    return AsciiJSON({"name": body.name, "active": False})


def _require_another(session: Session, name: str) -> None:
    """Raises HTTPException where the owner would end the session that asks."""
    if session.annotator.name == name:
        words = f"accord feedback annotator token {session.annotator.project} {name}"
        raise HTTPException(400, f"This is your own token; change it in a terminal: {words}")


# ------------------------------------------------------------------ disagreements
@routes.post("/disagreement")
def disagreement(request: Request, session: Owner, body: Pair) -> AsciiJSON:
    """A pair to decide: as a question of the owner's, and how the annotators voted, by the sides of that question."""
    site = site_of(request)
    question, left = ask_owner(site.store, session.annotator, body.pair)
    rows = [row for row in read_votes(site.store, site.settings.project) if row.pair == body.pair]
    people = {a.public_id: (a, valid) for a, valid in site.store.annotators(site.settings.project)}
    given = [
        {
            "name": _name(people, row.annotator), "choice": shown_of(row.choice, left), "strength": row.strength,
            "comment": row.comment, "tags": list(row.tags), "again": row.occasion > 0,
        }
        for row in independent(rows)
    ]  # fmt: skip
    decided = next((shown_of(row.choice, left) for row in rows if row.occasion == ADJUDICATION), None)
    return AsciiJSON({"question": shown(question), "votes": given, "decided": decided})


@routes.post("/votes")
def decide(request: Request, session: Owner, body: NewVote) -> AsciiJSON:
    """Records the owner's decision: a vote like any other, apart from the figures of agreement."""
    return AsciiJSON({"vote": cast_vote(request, session, body).id})


# ------------------------------------------------------------------ the reward model
@routes.post("/reward")
def start_reward_check(request: Request, session: Owner) -> AsciiJSON:
    """Scores the newest votes with a reward model, in another process; its state is among the figures."""
    site = site_of(request)
    check: RewardCheck = request.app.state.reward_check
    rows = independent(read_votes(site.store, site.settings.project))
    if not any(row.choice in ("a", "b") for row in rows):
        raise UserError("no vote for one side yet, so there is nothing to compare a reward model with.")
    check.start(rows, site.settings.reward_model)
    return AsciiJSON({"reward": check.state()})
