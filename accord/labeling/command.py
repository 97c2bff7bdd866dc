"""``accord label``: serves the page of a project.  Web libraries are imported where they are needed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accord.errors import UserError
from accord.feedback.command import read_guidelines
from accord.io.installation import install_command

if TYPE_CHECKING:
    from accord.feedback.store import Store

OVERVIEW = """\
The page on which people say which of two replies is better.

  accord label NAME                                   on this machine: http://127.0.0.1:8765
  accord label NAME --host 0.0.0.0 --tls-cert FILE --tls-key FILE --url https://label.example.org:8765
  accord label NAME --behind-proxy --url https://label.example.org

'accord feedback' creates projects, adds pairs and annotators, and takes snapshots of the votes."""


def add_command(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``label`` to argparse's ``commands``."""
    parser = commands.add_parser(
        "label", help="serve the page on which people compare replies", description=OVERVIEW, formatter_class=formatter
    )
    parser.add_argument("project", metavar="NAME", help="project of the store")
    parser.add_argument(
        "--store", default="", help="path or postgresql:// URL (default: $ACCORD_FEEDBACK, checkpoints/feedback.db)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8765, help="port; 0 for any free one (default 8765)")
    parser.add_argument("--url", default="", help="address that people type, where it is another one")
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="certificate chain (PEM)")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its key (PEM)")
    parser.add_argument("--behind-proxy", action="store_true", help="a proxy in front of the page speaks TLS")
    parser.add_argument("--guidelines", default="", metavar="FILE.md", help="set the project's guidelines, in Markdown")
    parser.add_argument(
        "--reward-model",
        default="",
        metavar="MODEL",
        help="compare this one with the votes (default: the registry's newest)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(act=label)


def label(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C.  Raises UserError."""
    try:
        import alembic  # noqa: F401
        import fastapi  # noqa: F401
        import krippendorff  # noqa: F401
        import markdown_it  # noqa: F401
        import nh3  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"accord label needs the package {error.name}: {install_command('feedback')}.") from None
    from accord.feedback.store import open_store
    from accord.labeling import server
    from accord.labeling.app import create_app
    from accord.labeling.settings import PageSettings

    certificate = _certificate(options)
    if not (0 <= options.port <= 65535):
        raise UserError(f"--port {options.port}: expected 0 to 65535.")
    if not (server.is_loopback(options.host) or certificate or options.behind_proxy):
        raise UserError(
            f"--host {options.host}: beyond this machine tokens and votes would travel unprotected; add --tls-cert and"
            " --tls-key, or --behind-proxy where a proxy speaks TLS."
        )
    name = _host_name(options.url)
    store = open_store(options.store or None, create=False)
    store.project(options.project)
    guidelines = read_guidelines(options.guidelines)
    listening = server.listen(options.host, options.port)
    with listening:
        port = listening.getsockname()[1]
        if guidelines is not None:
            store.change_project(options.project, guidelines=guidelines)
        names = tuple(n for n in (name, "" if options.host == "localhost" else options.host) if n)
        settings = PageSettings(
            options.project,
            port=port,
            host_names=names,
            tls=certificate is not None,
            behind_proxy=options.behind_proxy,
            reward_model=options.reward_model,
        )
        app = create_app(store, settings)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        _greet(store, options.project, options.url or f"http{'s' * settings.tls}://{shown}:{port}")
        try:
            server.serve(app, listening, certificate)
        except KeyboardInterrupt:
            print("\nThe page has stopped; every vote is in the store.", flush=True)
    return 0


def _certificate(options: argparse.Namespace) -> Any:
    from accord.labeling.server import Certificate, check_certificate

    if bool(options.tls_cert) != bool(options.tls_key):
        raise UserError("--tls-cert and --tls-key: give both, the certificate and its key.")
    if not options.tls_cert:
        return None
    certificate = Certificate(options.tls_cert, options.tls_key)
    check_certificate(certificate)
    return certificate


def _host_name(url: str) -> str:
    """The name in --url.  Raises UserError where it is no address of a page."""
    if not url:
        return ""
    try:
        place = urlsplit(url)
        name = place.hostname or ""
    except ValueError:
        place, name = urlsplit(""), ""
    if place.scheme not in ("http", "https") or not name or place.path not in ("", "/") or place.query:
        raise UserError(f"--url {url}: expected https://NAME, the address that people type, without a path.")
    return name


def _greet(store: Store, project: str, url: str) -> None:
    """Prints the address and, on the first start, the owner's token."""
    people = store.annotators(project)
    print(f"Labeling {project!r} at {url.rstrip('/')}  (Ctrl-C stops it)")
    if not any(a.role == "owner" for a, _ in people):
        taken = {a.name for a, _ in people}
        name = next(n for n in ("owner", *(f"owner-{i}" for i in range(2, 1000))) if n not in taken)
        _, token = store.add_annotator(project, name, "owner")
        print(f"Token of the owner (shown once; 'accord feedback annotator token {project} {name}' makes a new one):")
        print(f"  {token}")
    if not any(a.role == "annotator" and valid for a, valid in people):
        print(f"Add annotators on the owner's page, or with 'accord feedback annotator add {project} NAME'.")
    print(end="", flush=True)
