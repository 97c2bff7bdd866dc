"""The store: projects, pairs to be asked, annotators with their tokens, sessions."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from accord.config.feedback import PROJECT_NAME
from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import StoreUnavailable, address, engine_of, place_of, reading, writing
from accord.feedback.create import prepare
from accord.feedback.entities import (
    ROLES,
    TOKENIZER,
    Annotator,
    NewCandidate,
    NewPair,
    Project,
    ProjectSettings,
    Role,
)

__all__ = [
    "Annotator", "NewCandidate", "NewPair", "Project", "ProjectSettings", "Store", "StoreUnavailable", "digest_of",
    "open_store",
]  # fmt: skip

CHUNK = 500
"""Pairs that are written by one statement."""
SESSION = timedelta(days=30)


def open_store(where: str | Path | None = None, create: bool = True) -> Store:
    """The store at a path or postgresql:// URL; by default at ACCORD_FEEDBACK, else at ``checkpoints/feedback.db``.

    A missing one is created, if ``create``, and an older one upgraded.  Raises UserError where it is damaged, newer, not a
    store, or cannot be reached.
    """
    engine = engine_of(place_of(where))
    prepare(engine, create)
    return Store(engine)


def new_public_id() -> str:
    """A random id, by which exports name an annotator."""
    return secrets.token_hex(8)


def hash_of(secret: str) -> str:
    """What the store holds of a token or a cookie: 32 random bytes need no salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """An open store; every method is one transaction."""

    engine: sa.Engine

    @property
    def address(self) -> str:
        """Its path or URL for messages, without a password."""
        return address(self.engine)

    # -------------------------------------------------------------- projects
    def create_project(self, name: str, settings: ProjectSettings | None = None, guidelines: str = "") -> Project:
        """A new project.  Raises UserError where the name is taken or not a name."""
        if not re.fullmatch(PROJECT_NAME, name):
            raise UserError(
                f"project {name!r}: a name has 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first."
            )
        values = {
            "name": name,
            "settings": asdict(settings or ProjectSettings()),
            "guidelines": guidelines,
            "created": schema.now(),
        }
        try:
            with writing(self.engine) as c:
                c.execute(sa.insert(schema.projects).values(values))
        except sa.exc.IntegrityError:
            raise UserError(f"project {name!r}: exists already in {self.address}; choose another name.") from None
        return self.project(name)

    def projects(self) -> list[Project]:
        """All projects, by name."""
        with reading(self.engine) as c:
            return [_project(row) for row in c.execute(sa.select(schema.projects).order_by(schema.projects.c.name))]

    def project(self, name: str) -> Project:
        """The project of a name.  Raises UserError with the nearest name where there is none."""
        with reading(self.engine) as c:
            query = sa.select(schema.projects).where(schema.projects.c.name == name)
            if re.fullmatch(PROJECT_NAME, name) and (row := c.execute(query).one_or_none()) is not None:
                return _project(row)
            names = [str(n) for n in c.execute(sa.select(schema.projects.c.name)).scalars()]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else "'accord feedback projects' lists them, 'create' makes one."
        raise UserError(f"project {name!r}: not in {self.address}; {hint}")

    def change_project(
        self, name: str, settings: ProjectSettings | None = None, guidelines: str | None = None
    ) -> Project:
        """Sets settings or guidelines of a project.  Raises UserError where there is none."""
        project = self.project(name)
        values: dict[str, Any] = {}
        if settings is not None:
            values["settings"] = asdict(settings)
        if guidelines is not None:
            values["guidelines"] = guidelines
        if values:
            with writing(self.engine) as c:
                c.execute(sa.update(schema.projects).where(schema.projects.c.id == project.id).values(values))
        return self.project(name)

    # -------------------------------------------------------------- pairs
    def add_pairs(self, project: str, pairs: Iterable[NewPair]) -> int:
        """Adds pairs to be asked, all or none; returns how many are new: the same content again is the same pair.

        Raises UserError naming the pair where one cannot be asked.
        """
        owner = self.project(project)
        checked = [_checked(pair, number) for number, pair in enumerate(pairs, 1)]
        with writing(self.engine) as c:
            rows = iter(checked)
            return sum(_add(c, owner.id, chunk) for chunk in iter(lambda: list(islice(rows, CHUNK)), []))

    # -------------------------------------------------------------- annotators
    def add_annotator(self, project: str, name: str, role: Role = "annotator") -> tuple[Annotator, str]:
        """A new annotator, and their token, of which the store holds only a hash.  Raises UserError."""
        owner = self.project(project)
        if role not in ROLES:
            raise UserError(f"role {role!r}: expected {' or '.join(ROLES)}.")
        if not (name.strip() == name and 1 <= len(name) <= 80 and name.isprintable()):
            raise UserError(f"annotator {name!r}: a name has 1 to 80 printable characters, without spaces around them.")
        token = secrets.token_urlsafe(32)
        values = {
            "project": owner.id,
            "name": name,
            "public_id": new_public_id(),
            "role": role,
            "token_hash": hash_of(token),
            "created": schema.now(),
        }
        try:
            with writing(self.engine) as c:
                c.execute(sa.insert(schema.annotators).values(values))
        except sa.exc.IntegrityError:
            raise UserError(
                f"annotator {name!r}: is in project {project!r} already; type 'accord feedback annotator token {project}"
                f" {name}' for a new token."
            ) from None
        return self.annotator(project, name), token

    def annotators(self, project: str) -> list[tuple[Annotator, bool]]:
        """Everyone in a project with whether their token is valid, in the order they were added."""
        owner = self.project(project)
        with reading(self.engine) as c:
            rows = c.execute(_people().where(schema.projects.c.id == owner.id).order_by(schema.annotators.c.id))
            return [(_annotator(row), row.token_hash is not None) for row in rows]

    def annotator(self, project: str, name: str) -> Annotator:
        """The annotator of a name.  Raises UserError with the nearest name where there is none."""
        found = [a for a, _ in self.annotators(project) if a.name]
        match = next((a for a in found if a.name == name), None)
        if match is None:
            near = difflib.get_close_matches(name, [a.name for a in found], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"'accord feedback annotator list {project}' shows them."
            raise UserError(f"annotator {name!r}: not in project {project!r}; {hint}")
        return match

    def revoke(self, project: str, name: str) -> None:
        """Ends an annotator's token and sessions.  Raises UserError where there is no such annotator."""
        self._set_token(self.annotator(project, name), None)

    def new_token(self, project: str, name: str) -> str:
        """A new token for an annotator; the former one and its sessions end.  Raises UserError."""
        token = secrets.token_urlsafe(32)
        self._set_token(self.annotator(project, name), hash_of(token))
        return token

    def _set_token(self, annotator: Annotator, token_hash: str | None) -> None:
        people, sessions = schema.annotators, schema.sessions
        with writing(self.engine) as c:
            c.execute(sa.update(people).where(people.c.id == annotator.id).values(token_hash=token_hash))
            c.execute(sa.delete(sessions).where(sessions.c.annotator == annotator.id))

    def authenticate(self, token: str) -> Annotator | None:
        """Whose token this is; None where it is nobody's."""
        with reading(self.engine) as c:
            row = c.execute(_people().where(schema.annotators.c.token_hash == hash_of(token))).one_or_none()
        return None if row is None else _annotator(row)

    # -------------------------------------------------------------- sessions
    def start_session(self, annotator: Annotator, now: datetime | None = None, lasting: timedelta = SESSION) -> str:
        """A new session's cookie, of which the store holds only a hash; expired sessions are removed."""
        moment = now or schema.now()
        cookie = secrets.token_urlsafe(32)
        values = {
            "hash": hash_of(cookie), "annotator": annotator.id, "created": moment, "expires": moment + lasting,
        }  # fmt: skip
        with writing(self.engine) as c:
            c.execute(sa.delete(schema.sessions).where(schema.sessions.c.expires <= moment))
            c.execute(sa.insert(schema.sessions).values(values))
        return cookie

    def session(self, cookie: str, now: datetime | None = None) -> Annotator | None:
        """Whose session this is; None where it ended, expired or never was."""
        sessions = schema.sessions
        joined = _people().join(sessions, sessions.c.annotator == schema.annotators.c.id)
        valid = sa.and_(sessions.c.hash == hash_of(cookie), sessions.c.expires > (now or schema.now()))
        with reading(self.engine) as c:
            row = c.execute(joined.where(valid, schema.annotators.c.token_hash.is_not(None))).one_or_none()
        return None if row is None else _annotator(row)

    def end_session(self, cookie: str) -> None:
        """Ends a session."""
        with writing(self.engine) as c:
            c.execute(sa.delete(schema.sessions).where(schema.sessions.c.hash == hash_of(cookie)))

    # -------------------------------------------------------------- guidelines
    def mark_guidelines_read(self, annotator: Annotator) -> None:
        """Records that an annotator has read the project's present guidelines."""
        read = hash_of(self.project(annotator.project).guidelines)
        people = schema.annotators
        with writing(self.engine) as c:
            c.execute(sa.update(people).where(people.c.id == annotator.id).values(guidelines_read=read))

    def has_read_guidelines(self, annotator: Annotator) -> bool:
        """Whether an annotator has read the present guidelines; true where there are none."""
        present = self.project(annotator.project).guidelines
        with reading(self.engine) as c:
            query = sa.select(schema.annotators.c.guidelines_read).where(schema.annotators.c.id == annotator.id)
            return not present.strip() or c.execute(query).scalar_one() == hash_of(present)


# ------------------------------------------------------------------ rows
def _project(row: Any) -> Project:
    known = ProjectSettings.__dataclass_fields__
    settings = {key: value for key, value in row.settings.items() if key in known}
    settings["tags"] = tuple(settings.get("tags", ()))
    return Project(row.id, row.name, ProjectSettings(**settings), row.guidelines, row.created)


def _people() -> sa.Select[Any]:
    people, projects = schema.annotators, schema.projects
    return sa.select(people, projects.c.name.label("project_name")).join(projects, projects.c.id == people.c.project)


def _annotator(row: Any) -> Annotator:
    return Annotator(row.id, row.public_id, row.name or "", row.project_name, row.role)


# ------------------------------------------------------------------ pairs
def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Row:
    """A checked pair with the digests of its parts."""

    pair: NewPair
    prompt: str
    a: str
    b: str
    digest: str


def _checked(pair: NewPair, number: int) -> _Row:
    """Raises UserError where a pair cannot be asked."""
    where = f"pair {number}"
    if not pair.prompt or not all(_is_message(m) for m in pair.prompt):
        raise UserError(f"{where}: its prompt is messages, each with a role and a content as text.")
    if not (
        isinstance(pair.probability, (int, float)) and math.isfinite(pair.probability) and 0 < pair.probability <= 1
    ):
        raise UserError(f"{where}: its probability is {pair.probability!r}, expected above 0 and at most 1.")
    if pair.gold not in (None, "a", "b", "tie"):
        raise UserError(f"{where}: gold is {pair.gold!r}, expected a, b or tie.")
    if pair.a.text == pair.b.text and pair.gold != "tie":
        raise UserError(f"{where}: its two replies are the same text, so there is nothing to prefer; leave it out.")
    prompt = _digest([dict(m) for m in pair.prompt], *([dict(pair.inputs)] if pair.inputs else []))
    a, b = (_digest(x.text, x.tokens, x.policy, _without_tokenizer(x.sampling)) for x in (pair.a, pair.b))
    return _Row(pair, prompt, a, b, _digest(prompt, *sorted((a, b)), pair.gold is not None))


def _without_tokenizer(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """How a reply was sampled, without the tokenizer's digest: stores of earlier versions have none, and a pair that was
    asked then is the same pair."""
    return {key: value for key, value in sampling.items() if key != TOKENIZER}


def digest_of(pair: NewPair) -> str:
    """A digest of a pair's content, the same for both orders of its replies.  Raises UserError."""
    return _checked(pair, 1).digest


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _add(c: sa.Connection, project: int, rows: Sequence[_Row]) -> int:
    """Adds checked pairs; returns how many are new."""
    contents = {
        row.prompt: {"messages": [dict(m) for m in row.pair.prompt], "inputs": dict(row.pair.inputs) or None}
        for row in rows
    }
    _insert(c, schema.prompts, [{"project": project, "digest": d, **content} for d, content in contents.items()])
    prompts = _ids(c, schema.prompts, schema.prompts.c.project == project, contents)
    sides = {(row.prompt, d): side for row in rows for d, side in ((row.a, row.pair.a), (row.b, row.pair.b))}
    _insert(c, schema.candidates, [_candidate(prompts[p], d, side) for (p, d), side in sides.items()])
    owners = schema.candidates.c.prompt.in_(prompts.values())
    query = sa.select(schema.candidates.c.prompt, schema.candidates.c.digest, schema.candidates.c.id).where(owners)
    stored = {(row.prompt, row.digest): row.id for row in c.execute(query)}
    values = [
        {
            "project": project,
            "digest": row.digest,
            "prompt": prompts[row.prompt],
            "a": stored[prompts[row.prompt], row.a],
            "b": stored[prompts[row.prompt], row.b],
            "probability": float(row.pair.probability),
            "gold": row.pair.gold,
            "source": row.pair.source,
            "answers": 0,
            "created": schema.now(),
        }
        for row in {row.digest: row for row in reversed(rows)}.values()
    ][::-1]
    return _insert(c, schema.pairs, values)


def _candidate(prompt: int, digest: str, side: NewCandidate) -> dict[str, Any]:
    tokens = None if side.tokens is None else list(side.tokens)
    return {
        "prompt": prompt, "digest": digest, "text": side.text, "tokens": tokens, "policy": side.policy,
        "sampling": dict(side.sampling),
    }  # fmt: skip


def _insert(c: sa.Connection, table: sa.Table, values: list[dict[str, Any]]) -> int:
    """Inserts the rows that are not there yet; returns how many."""
    insert = sqlite.insert if c.dialect.name == "sqlite" else postgresql.insert
    if not values:
        return 0
    statement = insert(table).on_conflict_do_nothing().returning(table.c.id)  # with it, many rows are one statement
    return len(c.execute(statement, values).all())


def _ids(c: sa.Connection, table: sa.Table, where: Any, digests: Iterable[str]) -> dict[str, int]:
    query = sa.select(table.c.digest, table.c.id).where(where, table.c.digest.in_(list(digests)))
    return {row.digest: row.id for row in c.execute(query)}
