"""A PostgreSQL server of the tests: on a Unix socket in a temporary folder, without flushes, as an unprivileged user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest

FOLDERS = "/usr/lib/postgresql/*/bin"
SETTINGS = (
    "-c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c wal_level=minimal"
    " -c max_wal_senders=0 -c max_connections=200"
)


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, that of the newest version first; None where there is no server."""
    folders = sorted(glob(FOLDERS), key=lambda f: float(f.split("/")[-2]), reverse=True)
    found = [Path(f) for f in folders] + [Path(p).parent for p in [shutil.which("initdb")] if p]
    return next((f for f in found if (f / "initdb").is_file() and (f / "pg_ctl").is_file()), None)


@contextmanager
def server() -> Iterator[str]:
    """The URL of a running server, without a database's name; skips the test where there is none."""
    pytest.importorskip("psycopg", reason="needs psycopg (extra postgres)")
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("needs a PostgreSQL server (Debian's package postgresql)")
    as_user: list[str] = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv") or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("as root it needs the user postgres and setpriv")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short, since a socket's path has at most 107 bytes
    if as_user:
        shutil.chown(folder, "postgres", "postgres")

    def call(*words: str) -> None:
        done = subprocess.run([*as_user, *words], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr + done.stdout

    data = str(folder / "data")
    try:
        call(str(bin_folder / "initdb"), "-D", data, "-A", "trust", "-U", "accord", "-E", "UTF8", "--no-sync")
        options, log = f"{SETTINGS} -k {folder}", str(folder / "log")
        start = (str(bin_folder / "pg_ctl"), "-D", data, "-w", "-l", log, "-o", options, "start")
        done = subprocess.run([*as_user, *start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        assert done.returncode == 0, (folder / "log").read_text()
        try:
            yield f"postgresql://accord@/{{database}}?host={folder}"
        finally:
            call(str(bin_folder / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_place(template: str, name: str) -> str:
    """The URL of a new, empty schema, which takes a hundredth of the time and space of a database."""
    import psycopg

    with psycopg.connect(template.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')
    return f"{template.format(database='postgres')}&options=-csearch_path%3D{name}"
