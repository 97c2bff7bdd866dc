"""A small hub of models: the part of its HTTP API that ``huggingface_hub`` downloads with, and caches in its layout."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NEW, OLD = "a" * 40, "b" * 40
"""Two commits."""


@dataclass
class Hub:
    """Repositories by id; each has commits (name: folder of its files) and branches and tags (name: commit)."""

    commits: Mapping[str, Mapping[str, Path]]
    refs: Mapping[str, dict[str, str]]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""

    def commit(self, repository: str, revision: str) -> str | None:
        revision = self.refs[repository].get(revision, revision)
        return revision if revision in self.commits[repository] else None

    @property
    def downloaded(self) -> list[str]:
        """The files whose content was sent."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET ") and "/resolve/" in line]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.hub.asked.append(f"{self.command} {path}")
        is_api = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        repository = f"{owner}/{name}"
        if repository not in self.hub.commits:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, head)
        if is_api and rest[:1] in ([], ["revision"]):
            return self._info(repository, "/".join(rest[1:]) or "main", head)
        if is_api and rest[0] == "tree":
            return self._tree(repository, rest[1], head)
        return self._file(repository, rest[1], "/".join(rest[2:]), head)

    def _info(self, repository: str, revision: str, head: bool) -> None:
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, head)
        files = [{"rfilename": name} for name in _files(self.hub.commits[repository][commit])]
        value = {
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "siblings": files,
            "private": False,
            "tags": [],
        }
        self._send(200, json.dumps(value).encode(), {}, head)

    def _tree(self, repository: str, revision: str, head: bool) -> None:
        commit = self.hub.commit(repository, revision)
        assert commit is not None
        listed = [
            {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
            for name, content in _files(self.hub.commits[repository][commit]).items()
        ]
        self._send(200, json.dumps(listed).encode(), {}, head)

    def _file(self, repository: str, revision: str, name: str, head: bool) -> None:
        commit = self.hub.commit(repository, revision)
        content = _files(self.hub.commits[repository][commit]).get(name) if commit else None
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, head)
        self._send(200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": str(commit)}, head)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], head: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.wfile.write(content)


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving(commits: Mapping[str, Mapping[str, Path]], refs: Mapping[str, dict[str, str]]) -> Iterator[Hub]:
    """The hub on a port of this machine, until the end of the block."""
    hub = Hub(commits, refs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_cache(root: Path, repository: str, commit: str, folder: Path, reference: str = "main") -> Path:
    """Puts a folder's files into a cache as the hub's library does, links to blobs; returns the commit's folder."""
    place = root / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for name, content in _files(folder).items():
        blob = place / "blobs" / _etag(content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        target = snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(blob)
    if reference:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / reference).write_text(commit)
    return snapshot


def copied(source: str | Path, target: Path, **changed: Any) -> Path:
    """A copy of a model folder, with other values in its config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changed}))
    return target
