"""accord label on the command line: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra feedback")

from accord.cli import main
from accord.feedback.store import Store, open_store
from accord.io.installation import install_command
from accord.labeling import server


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ACCORD_FEEDBACK", str(tmp_path / "feedback.db"))
    made = open_store()
    made.create_project("demo")
    return made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be served; each ends as by Ctrl-C."""
    found: list[Any] = []

    def serve(app: Any, listening: socket.socket, certificate: Any) -> None:
        found.append((app.settings, listening.getsockname(), certificate))
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", serve)
    return found


def test_the_first_start_shows_the_owners_token_once(
    store: Store, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", "demo", "--port", "0"]) == 0
    first = capsys.readouterr().out
    assert main(["label", "demo", "--port", "0"]) == 0
    second = capsys.readouterr().out
    (settings, (host, port), certificate), _ = served
    assert f"Labeling 'demo' at http://127.0.0.1:{port}  (Ctrl-C stops it)" in first
    assert (host, settings.port, settings.secure, certificate) == ("127.0.0.1", port, False, None)
    token = re.findall(r"^  (\S{40,})$", first, re.MULTILINE)
    owner = store.authenticate(token[0])
    assert owner is not None
    assert (owner.name, owner.role) == ("owner", "owner")
    assert "accord feedback annotator token demo owner" in first
    assert "Token" not in second
    for text in (first, second):
        assert "accord feedback annotator add demo NAME" in text
        assert "every vote is in the store" in text


def test_an_annotator_may_be_called_owner(store: Store, served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    store.add_annotator("demo", "owner")
    assert main(["label", "demo", "--port", "0"]) == 0
    assert "token demo owner-2" in capsys.readouterr().out
    assert [(a.name, a.role) for a, _ in store.annotators("demo")] == [("owner", "annotator"), ("owner-2", "owner")]


def test_guidelines_are_set_from_a_file(store: Store, served: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_bytes("\ufeff# Être juste\n".encode())
    assert main(["label", "demo", "--port", "0", "--guidelines", str(path)]) == 0
    assert main(["label", "demo", "--port", "0"]) == 0
    assert store.project("demo").guidelines == "# Être juste\n"


def test_beyond_this_machine_it_takes_a_name_and_protection(
    store: Store, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "label",
        "demo",
        "--port",
        "0",
        "--host",
        "0.0.0.0",
        "--behind-proxy",
        "--url",
        "https://label.example.org/",
    ]
    assert main(words) == 0
    (settings, *_), *_ = served
    assert settings.secure
    assert "label.example.org" in settings.host_names
    assert "at https://label.example.org  (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dmo"], "project 'dmo': not in {store}; did you mean 'demo'?"),
        (["demo", "--store", "{folder}/absent.db"], "absent.db: no store here"),
        (
            ["demo", "--host", "0.0.0.0"],
            "--host 0.0.0.0: beyond this machine tokens and votes would travel unprotected; add --tls-cert",
        ),
        (["demo", "--host", "::"], "--host ::: beyond this machine"),
        (["demo", "--host", "example.org"], "--host example.org: beyond this machine"),
        (["demo", "--port", "65536"], "--port 65536: expected 0 to 65535."),
        (["demo", "--tls-cert", "x.pem"], "--tls-cert and --tls-key: give both"),
        (
            ["demo", "--tls-cert", "x.pem", "--tls-key", "y.pem"],
            "x.pem, y.pem: not a certificate with its key (No such file",
        ),
        (["demo", "--guidelines", "{folder}/absent.md"], "--guidelines {folder}/absent.md: no such file."),
        (["demo", "--guidelines", "{folder}"], "{folder}: a folder, expected a file"),
        (
            ["demo", "--guidelines", "{folder}/latin.md"],
            "{folder}/latin.md, line 1: not UTF-8 (unexpected end of data at byte 0); save it as UTF-8",
        ),
        (["demo", "--url", "label.example.org"], "--url label.example.org: expected https://NAME"),
        (["demo", "--url", "https://["], "--url https://[: expected https://NAME"),
        (["demo", "--host", "192.0.2.1", "--behind-proxy"], "192.0.2.1:8765: cannot be listened on"),
        (["demo", "--port", "{taken}"], "port {taken} of 127.0.0.1 is in use; choose another one with --port"),
    ],
)
def test_a_mistake_is_one_sentence(
    store: Store, served: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        known = {"folder": tmp_path, "store": store.address, "taken": taken.getsockname()[1]}
        assert main(["label", *(word.format(**known) for word in words)]) == 2
    error = capsys.readouterr().err
    assert sentence.format(**known) in error
    assert error.count("\n") == 1
    assert served == []
    assert store.annotators("demo") == []  # nothing was changed


def test_a_missing_library_is_named_with_what_to_install(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nh3", None)
    assert main(["label", "demo"]) == 2
    fix = install_command("feedback")
    assert capsys.readouterr().err == f"accord: accord label needs the package nh3: {fix}.\n"
