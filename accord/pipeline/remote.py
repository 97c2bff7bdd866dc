"""A stage on a node of a Ray cluster, seen from the process that runs the pipeline.

Where the node sees this disk, the stage runs in its folder as it would here.  Elsewhere its inputs are sent by their digests,
and what it writes (state, logs, progress, results) is fetched while it runs, so that status, logs and resume are as on one
machine.  A stage whose node is lost resumes from its last saved state on another one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accord.config.common import Stage
from accord.distributed.ray.remote import Lost, Remote
from accord.errors import Interrupted, UserError, Waiting
from accord.io.atomic import replacing_file, write_json
from accord.io.records import Done, check, read_record
from accord.pipeline.bundle import Bundle, inputs_of
from accord.pipeline.cluster import Place, demand
from accord.pipeline.failure import FAILED
from accord.pipeline.host import BLOCK, StageHost, Stamp
from accord.pipeline.lock import LOCK, owner
from accord.pipeline.records import BEGUN, DONE, RANKS_STATE
from accord.pipeline.references import with_values
from accord.pipeline.stage import Attempt, Outcome, attempt_elsewhere, failure, finish_elsewhere
from accord.pipeline.status import read_progress
from accord.pipeline.task import Task, logs, task_of
from accord.pipeline.worker import Killed
from accord.runtime.progress_file import ProgressFile

PAUSE = 0.3
"""Seconds between two looks at a stage."""
PATIENCE = 20.0
"""Seconds without a free node after which that is said."""
ATTEMPTS = 3
"""How many nodes in a row may be lost under one stage."""
_OWN = (DONE, BEGUN, FAILED, "config.yaml", "waiting.json", LOCK)
"""Records that are written here and not fetched."""


class RemoteStage:
    """``execute``'s Work: ``result`` is called again and again, and waits for nothing but files."""

    def __init__(self, kind: str, config: Stage, force: bool, journal: Path, place: Place) -> None:
        self._task: Task = task_of(kind, config)
        self._force, self._journal, self._place = force, journal.absolute(), place
        self._name, self._stopping, self._lost = self._task.directory.name, False, 0
        self._stack = contextlib.ExitStack()
        self._attempt: Attempt | None = None
        self._opened, self._root = False, ""
        self._seen: tuple[dict[str, Stamp], dict[str, Stamp]] = ({}, {})
        self._open()

    def _open(self) -> None:
        self._started, self._due = False, 0.0
        self._host, self._since, self._has_waited = "", time.time(), False
        cpus, gpus = demand(self._task.config, self._place.gpus)
        self._remote = Remote(StageHost, (), cpus, gpus)
        self._asked: Any = self._remote.ask("introduce", str(self._place.probe), self._place.content)

    # --------------------------------------------------------------------------------- Work
    def result(self) -> Outcome | None:
        """None while it runs.  Raises UserError, Waiting, Interrupted, or Killed."""
        try:
            if self._asked is None:
                if time.monotonic() < self._due:
                    return None
                self._asked = self._remote.ask("poll", self._places() if self._root else ())
            answer = self._remote.answer(self._asked)
            if answer is None:
                if self._stopping and not self._started:
                    self._close()
                    raise Interrupted(f"{self._name}: stopped before it began; nothing was changed.")
                if not self._host and not self._has_waited and time.time() - self._since > PATIENCE:
                    self._has_waited = True
                    cpus, gpus = demand(self._task.config, self._place.gpus)
                    what = f"{cpus} free CPUs{f' and {gpus} GPUs' if gpus else ''}"
                    self._place.say(f"{self._name} waits for a node of the cluster with {what}")
                return None
            self._asked, self._due = None, time.monotonic() + PAUSE
            if not self._started:
                self._begin(answer[0])
                return None
            return self._follow(answer[0])
        except Lost as lost:
            self._again(lost)
            return None
        except (Exception, KeyboardInterrupt):
            self._close()
            raise

    def stop(self) -> None:
        """Asks the stage to save its state and end."""
        self._stopping = True
        if self._started:
            self._remote.ask("stop")

    def _close(self) -> None:
        self._stack.close()
        self._remote.end()

    def _again(self, lost: Lost) -> None:
        """Starts the stage on another node, after its process or node was lost."""
        self._lost += 1
        step = read_progress(self._task.directory).get("step", 0)
        since = time.strftime("%H:%M:%S", time.localtime(self._since))
        words = f"on node {self._host or 'not known yet'!r} since {since}, at step {step}: {lost}"
        if self._lost >= ATTEMPTS or self._stopping:
            self._close()
            raise Killed(f"{words}; run again to resume.", opened=self._opened)
        self._place.say(f"{self._name} was {words}; it resumes from its last saved state on another node")
        lock = owner(self._task.directory)
        if not self._root and lost.node and lock.get("host") == self._host != socket.gethostname():
            (self._task.directory / LOCK).unlink(missing_ok=True)  # Ray has ended what ran on a node that it lost
        self._open()

    # --------------------------------------------------------------------------------- start
    def _begin(self, introduced: Mapping[str, Any]) -> None:
        """Sends what the node lacks, and starts the stage."""
        self._root, self._host, self._since = introduced["root"], introduced["host"], time.time()
        task, config, environment = self._task, self._task.config, {}
        if "ACCORD_REGISTRY" in os.environ:
            environment["ACCORD_REGISTRY"] = os.environ["ACCORD_REGISTRY"]
        journal, cwd, force = str(self._journal), os.getcwd(), self._force and not self._lost
        if self._root:
            config = self._send()
            environment = {"ACCORD_REGISTRY": f"{self._root}/registry.sqlite"}
            journal, cwd, force = os.devnull, "", False
        job = {"kind": task.kind, "config": config.model_dump(mode="json"), "force": force, "journal": journal}
        cpus = demand(config, self._place.gpus)[0]
        self._remote.call("start", {**job, "cwd": cwd, "environment": environment, "threads": cpus})
        self._started = True
        if self._stopping:
            self._remote.ask("stop")

    def _places(self) -> tuple[str, str]:
        """The folders of results and logs on a node that does not share this disk."""
        key = self._task.key[:32]
        return f"{self._root}/stages/{key}/{self._name}", f"{self._root}/logs/{key}/{self._name}"

    def _send(self) -> Stage:
        """Sends inputs and a saved state; returns the config with the paths there."""
        task = self._task
        if self._attempt is None:
            self._attempt = attempt_elsewhere(task, self._stack, self._journal, self._force)
        out, log_folder = self._places()
        self._remote.call("clear", out)
        self._remote.call("clear", log_folder)
        bundle = Bundle(f"{self._root}/inputs")
        paths = {key: bundle.add(path) for key, path in inputs_of(task.sources).items()}
        if self._opened or self._attempt.resumes:
            own_logs = logs(task.config, task.kind)
            saved = {
                f"{out}/{n}": p for n, p in _files(task.directory) if n == BEGUN or n not in (*_OWN, ProgressFile.NAME)
            }
            bundle.files |= saved | {f"{log_folder}/{n}": p for n, p in _files(own_logs)}
        digests = bundle.digests()
        for there in self._remote.call("lacks", digests):
            here = bundle.files.get(there)
            content = [bundle.texts[there]] if here is None else _blocks(here)
            self._remote.call("receive", there, content, digests[there])
        self._seen = ({}, {})
        config = with_values(task.config, paths)
        places = {"name": self._name, "out": str(Path(out).parent), "logs": str(Path(log_folder).parent)}
        return config.model_copy(update=places)

    # --------------------------------------------------------------------------------- while it runs
    def _follow(self, found: Mapping[str, Any]) -> Outcome | None:
        state, words = found["state"], found["words"]
        if self._root:
            self._fetch(found["files"])
            words = self._as_here(words)
        if state == "running":
            return None
        if state == "done":
            outcome = self._finish()
            self._close()
            return outcome
        if self._attempt and self._opened:
            events = {"stopped": "stopped", "waits": "waiting"}
            if state not in events:
                step = read_progress(self._task.directory).get("step", 0)
                write_json(self._task.directory / FAILED, failure(self._task.key, words, step))
            self._attempt.noted(events.get(state, "failed"))
        if state == "killed":
            raise Killed(f"on node {self._host!r}, {words}", opened=False)
        raise {"stopped": Interrupted, "waits": Waiting}.get(state, UserError)(words)

    def _finish(self) -> Outcome:
        directory = self._task.directory
        if not self._root:
            return Outcome(self._name, False, read_record(directory / DONE, Done, "run it again."), directory)
        assert self._attempt is not None
        record = check(
            self._remote.call("record", self._places()[0]), Done, f"{self._name} on {self._host}", "run again."
        )
        self._remote.call("clear", self._places()[0])
        return finish_elsewhere(self._attempt, record)

    def _fetch(self, listings: list[dict[str, Stamp]]) -> None:
        """Fetches what has changed in the stage's folders, once it has begun to write them."""
        (results, log_files), places = listings, self._places()
        if not self._opened and (BEGUN in results or DONE in results):
            assert self._attempt is not None
            if self._remote.call("record", places[0]).get("key") != self._task.key:
                raise UserError(
                    f"{self._name}: node {self._host!r} computes another key; its files or its accord differ."
                )
            self._attempt.open_folder()
            self._opened = True
        if not self._opened:
            return
        here = (self._task.directory, logs(self._task.config, self._task.kind))
        for place, folder, files, seen in zip(places, here, (results, log_files), self._seen, strict=True):
            for name in sorted(files, key=_order):
                if name in _OWN or seen.get(name) == files[name]:
                    continue
                grows = folder == here[1] and only_grows(name)
                start = seen[name][0] if grows and name in seen and _has_grown(seen[name], files[name]) else 0
                if self._receive(f"{place}/{name}", folder / name, files[name], start, grows):
                    seen[name] = files[name]
            for name in [n for n in seen if n not in files]:
                (folder / name).unlink(missing_ok=True)
                del seen[name]

    def _receive(self, path: str, target: Path, stamp: Stamp, start: int, grows: bool) -> bool:
        """Fetches a file, from ``start`` on where it only grows; False where it was replaced meanwhile."""
        try:
            if start:
                blocks = list(self._arriving(path, stamp, start, grows))
                with target.open("ab") as file:
                    file.writelines(blocks)
            else:
                with replacing_file(target) as file:
                    file.writelines(self._arriving(path, stamp, 0, grows))
        except _Changed:
            return False
        return True

    def _arriving(self, path: str, stamp: Stamp, offset: int, grows: bool) -> Iterator[bytes]:
        """A file's blocks.  Raises _Changed."""
        while offset < stamp[0]:
            block = self._remote.call("read", path, stamp, offset, grows)
            if not block:
                raise _Changed
            yield block
            offset += len(block)

    def _as_here(self, words: str) -> str:
        """A sentence of the node with the paths of this machine."""
        here = (self._task.directory, logs(self._task.config, self._task.kind))
        for there, path in zip(self._places(), here, strict=True):
            words = words.replace(there, str(path))
        return words


class _Changed(Exception):
    """A file was replaced while it was fetched."""


def _has_grown(before: Stamp, now: Stamp) -> bool:
    """Whether it may be the same file with more at its end, and not another one under its name."""
    return before[2] == now[2] and before[0] <= now[0]


def only_grows(log: str) -> bool:
    """Whether a file of a stage's logs is only ever added to; the picture of its curves is replaced."""
    return not log.endswith(".svg")


def _order(name: str) -> tuple[bool, bool, str]:
    """Files in the order in which they are fetched: the log, by which a folder is known as ours, before TensorBoard's events;
    the record of a saved state after the files that it names."""
    return name == RANKS_STATE, "tfevents" in name, name


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files in a folder by relative name, without hidden ones."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    named = [(p.relative_to(folder), p) for p in paths]
    return [(name.as_posix(), p) for name, p in named if not any(part.startswith(".") for part in name.parts)]


def _blocks(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return list(iter(lambda: file.read(BLOCK), b""))
