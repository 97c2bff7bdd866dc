"""``accord feedback``: the store of preferences on the command line.  SQLAlchemy is imported where it is needed."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UserError
from accord.feedback.convert.command import add_export_options, add_import_options, add_pair_options, add_until, moment
from accord.io.finite_json import dumps

if TYPE_CHECKING:
    from accord.feedback.entities import Project
    from accord.feedback.store import Store

OVERVIEW = """\
The store of preferences that people state: projects, pairs, annotators, votes.

  accord feedback create tone --overlap 2               create a project
  accord feedback add tone checkpoints/rlhf/sample      add pairs of sampled replies
  accord feedback annotator add tone Ann                add a person, who gets a token
  accord label tone                                     serve the page on which they vote
  accord feedback status tone                           show how many votes are there, and how many are missing
  accord feedback stats tone                            show agreement, biases and pace of the annotators
  accord feedback snapshot tone votes/                  write the votes so far, which a pipeline reads
  accord feedback export tone --format trl --out FILE   write them in a format of another program

It is in checkpoints/feedback.db, or where --store or the environment variable ACCORD_FEEDBACK says: a path, or a
postgresql:// URL."""


def add_commands(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``feedback`` with its own commands to argparse's ``commands``; each sets ``act``."""
    top = commands.add_parser(
        "feedback", help="store of people's preferences: create, add, annotator, snapshot, ...", description=OVERVIEW,
        formatter_class=formatter,
    )  # fmt: skip
    top.set_defaults(act=lambda options: top.print_help() or 0, debug=False)
    inner = top.add_subparsers(dest="feedback_command", metavar="COMMAND")

    def add(
        within: Any, name: str, act: Callable[[argparse.Namespace], int], help: str, *words: str
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = within.add_parser(
            name, help=help, description=help, formatter_class=formatter
        )
        helps = {"project": "project of the store", "person": "annotator's name"}
        for word in words:
            parser.add_argument(word, metavar=word.upper(), help=helps[word])
        parser.add_argument(
            "--store", default="", help="path or postgresql:// URL (default: $ACCORD_FEEDBACK, checkpoints/feedback.db)"
        )
        parser.add_argument("--debug", action="store_true", help="show tracebacks")
        parser.set_defaults(act=act)
        return parser

    p = add(inner, "create", create, "create a project, and the store where there is none", "project")
    _settings(p)
    p = add(inner, "change", change, "change settings or guidelines of a project", "project")
    _settings(p)
    p = add(inner, "projects", show_projects, "list the projects with their pairs and votes")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add(inner, "add", add_pairs, "add pairs to be asked", "project")
    p.add_argument("file", metavar="FILE", help="samples.jsonl, the folder of a stage of kind sample, or preferences")
    p.add_argument("--pairs", type=int, default=1, metavar="N", help="pairs per prompt of sampled replies (default 1)")
    p.add_argument("--seed", type=int, default=0, help="seed of which replies are paired (default 0)")
    p.add_argument("--gold", action="store_true", help="as gold questions: the chosen reply is the known answer")
    about = "add, list and revoke annotators, make new tokens"
    people = inner.add_parser("annotator", help=about, description=about, formatter_class=formatter)
    people.set_defaults(act=lambda options: people.print_help() or 0, debug=False)
    kinds = people.add_subparsers(dest="annotator_command", metavar="COMMAND")
    p = add(kinds, "add", add_annotator, "add an annotator and print their token", "project", "person")
    p.add_argument("--owner", action="store_true", help="may see the owner's page")
    p = add(kinds, "list", show_annotators, "list the annotators", "project")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    add(kinds, "revoke", revoke, "end an annotator's token and sessions", "project", "person")
    add(kinds, "token", new_token, "print a new token, which replaces the former one", "project", "person")
    p = add(inner, "snapshot", snapshot, "write the votes up to a moment into a folder that stages train on", "project")
    p.add_argument("folder", metavar="DIR", help="folder to write; an earlier snapshot in it is replaced")
    add_until(p)
    add_pair_options(p)
    p.add_argument("--with-comments", action="store_true", help="write annotators' comments and tags as well")
    add_export_options(
        add(inner, "export", export, "write the votes to a file in a format of another program", "project")
    )
    add_import_options(
        add(inner, "import", import_votes, "add votes from a file in a format of another program", "project")
    )
    p = add(inner, "stats", show_statistics, "show agreement, biases and pace of the annotators", "project")
    add_until(p)
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add(inner, "status", show_status, "show how many votes a project has and how many are missing", "project")
    p.add_argument("--json", action="store_true", help="as JSON, for other programs")
    p = add(
        inner, "forget", forget, "erase a person's name, token and free text; their votes stay", "project", "person"
    )
    p.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _settings(parser: argparse.ArgumentParser) -> None:
    """The options that set a project; without one its value stays."""
    parser.add_argument("--overlap", type=int, help="annotators who answer each pair (default 1)")
    parser.add_argument("--repeat-share", type=float, help="share of questions asked again later (default 0.05)")
    parser.add_argument("--gold-share", type=float, help="share of gold questions, while there are some (default 0.1)")
    parser.add_argument("--lease-seconds", type=float, help="how long a pair is reserved for a person (default 600)")
    parser.add_argument("--tag", action="append", dest="tags", help="tag that a vote may have; may be given repeatedly")
    parser.add_argument("--guidelines", default="", metavar="FILE.md", help="what annotators read first, in Markdown")


def _open(options: argparse.Namespace, create: bool = False) -> Store:
    from accord.feedback.store import open_store

    return open_store(options.store or None, create)


def _print(*lines: str) -> None:
    from accord.runtime.console import console

    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------ projects
def create(options: argparse.Namespace) -> int:
    from accord.feedback.entities import ProjectSettings

    guidelines = read_guidelines(options.guidelines) or ""
    settings = ProjectSettings(**_given(options))
    store = _open(options, create=True)
    store.create_project(options.project, settings, guidelines)
    _print(
        f"created project {options.project} in {store.address}",
        f"next: accord feedback add {options.project} FILE, then accord label {options.project}",
    )
    return 0


def change(options: argparse.Namespace) -> int:
    from dataclasses import replace

    store = _open(options)
    given, guidelines = _given(options), read_guidelines(options.guidelines)
    if not given and guidelines is None:
        raise UserError(f"change {options.project}: nothing to change; see 'accord feedback change --help'.")
    project = store.project(options.project)
    _print(*_facts(store.change_project(options.project, replace(project.settings, **given), guidelines)))
    return 0


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    names = ("overlap", "repeat_share", "gold_share", "lease_seconds", "tags")
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_guidelines(path: str) -> str | None:
    """The text of a Markdown file; None without one.  Raises UserError."""
    from accord.io.readers import read_text

    if not path:
        return None
    try:
        return read_text(Path(path), 1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--guidelines {path}: no such file.") from None


def _facts(project: Project) -> list[str]:
    s = project.settings
    tags = f", tags {', '.join(s.tags)}" if s.tags else ""
    return [
        f"{project.name}: overlap {s.overlap}, repeats {s.repeat_share:.0%}, gold questions {s.gold_share:.0%},"
        f" leases of {s.lease_seconds:g} s{tags}; guidelines {'yes' if project.guidelines.strip() else 'none'}"
    ]


def show_projects(options: argparse.Namespace) -> int:
    from accord.feedback.progress import coverage
    from accord.runtime.tables import Column, make_table, right, show

    store = _open(options)
    rows = [(p, coverage(store, p.name)) for p in store.projects()]
    if options.json:
        keys = ("pairs", "votes", "missing")
        print(dumps([{"name": p.name, **{k: getattr(found, k) for k in keys}} for p, found in rows], indent=2))
        return 0
    if not rows:
        _print(f"no project in {store.address}; type 'accord feedback create NAME'")
        return 0
    heads: list[Any] = [Column("project", overflow="fold"), right("pairs"), right("votes"), right("missing")]
    show(make_table(heads, [(p.name, f"{c.pairs:,}", f"{c.votes:,}", f"{c.missing:,}") for p, c in rows]))
    return 0


def show_status(options: argparse.Namespace) -> int:
    from accord.feedback.progress import coverage

    store = _open(options)
    project, found = store.project(options.project), coverage(store, options.project)
    if options.json:
        print(
            dumps(
                {"name": project.name, "pairs": found.pairs, "votes": found.votes, "missing": found.missing}, indent=2
            )
        )
        return 0
    left = (
        f"{found.missing:,} are missing"
        if found.missing
        else "none is missing"
        if found.pairs
        else "there are no pairs"
    )
    _print(*_facts(project), f"{found.votes:,} votes on {found.pairs:,} pairs; {left}")
    return 0


# ------------------------------------------------------------------ pairs
def add_pairs(options: argparse.Namespace) -> int:
    from accord.feedback.pairs_file import read_pairs

    if options.pairs < 1:
        raise UserError(f"--pairs {options.pairs}: expected 1 or more.")
    store = _open(options)
    store.project(options.project)
    pairs = read_pairs(Path(options.file), options.pairs, options.seed, options.gold)
    new = store.add_pairs(options.project, pairs)
    again = f"; {len(pairs) - new:,} were there already" if new < len(pairs) else ""
    what = ("gold question" if options.gold else "pair") + "s" * (new != 1)
    _print(f"added {new:,} {what} to {options.project}{again}")
    return 0


# ------------------------------------------------------------------ annotators
def add_annotator(options: argparse.Namespace) -> int:
    store = _open(options)
    person, token = store.add_annotator(options.project, options.person, "owner" if options.owner else "annotator")
    _show_token(person.name, token)
    return 0


def new_token(options: argparse.Namespace) -> int:
    _show_token(options.person, _open(options).new_token(options.project, options.person))
    return 0


def _show_token(name: str, token: str) -> None:
    """The token alone on standard output, so that it can be piped."""
    print(f"token of {name}, shown only now:", file=sys.stderr)
    print(token)


def show_annotators(options: argparse.Namespace) -> int:
    from accord.feedback.progress import progress
    from accord.runtime.tables import Column, make_table, right, show

    store = _open(options)
    people = [(a, valid, progress(store, a)) for a, valid in store.annotators(options.project)]
    if options.json:
        print(
            dumps(
                [{"id": a.public_id, "name": a.name, "role": a.role, "token": v, "done": p.done} for a, v, p in people],
                indent=2,
            )
        )
        return 0
    if not people:
        _print(f"nobody in {options.project}; type 'accord feedback annotator add {options.project} NAME'")
        return 0
    rows = [
        (a.name or "(forgotten)", a.role, "valid" if valid else "revoked", f"{p.done:,}", f"{p.today:,}", a.public_id)
        for a, valid, p in people
    ]
    heads: list[Any] = [
        Column("name", overflow="fold"),
        "role",
        "token",
        right("votes"),
        right("last day"),
        "id in exports",
    ]
    show(make_table(heads, rows))
    return 0


def revoke(options: argparse.Namespace) -> int:
    _open(options).revoke(options.project, options.person)
    again = f"accord feedback annotator token {shlex.quote(options.project)} {shlex.quote(options.person)}"
    _print(f"{options.person} can no longer sign in; '{again}' makes a new token")
    return 0


def forget(options: argparse.Namespace) -> int:
    from accord.feedback.privacy import forget as erase

    store = _open(options)
    store.annotator(options.project, options.person)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"forget {options.person}: this cannot be undone, and there is no terminal to ask; add --yes."
            )
        answer = input(f"erase the name, token, comments, tags and written answers of {options.person}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            _print("nothing was erased")
            return 0
    votes = erase(store, options.project, options.person)
    _print(f"{options.person} is forgotten; {votes:,} votes stay without a name")
    return 0


# ------------------------------------------------------------------ snapshots
def export(options: argparse.Namespace) -> int:
    from accord.feedback.convert.command import export_votes

    _print(*export_votes(_open(options), options.project, options))
    return 0


def import_votes(options: argparse.Namespace) -> int:
    from accord.feedback.convert.command import import_file

    _print(*import_file(_open(options), options.project, options))
    return 0


def show_statistics(options: argparse.Namespace) -> int:
    from accord.feedback.convert.command import show_stats

    show_stats(_open(options), options.project, options)
    return 0


def snapshot(options: argparse.Namespace) -> int:
    from accord.feedback.convert.command import counts_in_words
    from accord.feedback.convert.pairs import PairOptions
    from accord.feedback.snapshot import take_snapshot

    pairs = PairOptions(options.ties, options.share, options.strengths)
    until, comments = moment(options.until), options.with_comments
    taken = take_snapshot(_open(options), options.project, Path(options.folder), until, comments, pairs)
    _print(
        f"wrote {taken.votes:,} votes to {taken.folder} (digest {taken.digest[:8]}, until {taken.until.isoformat()})",
        f"{taken.preferences:,} of its rows are preferences to train on: data.train={taken.folder}"
        if taken.preferences
        else "none of them is a preference to train on",
        *([f"Left out of the preferences: {counts_in_words(taken.left_out)}."] if taken.left_out else []),
    )
    return 0
