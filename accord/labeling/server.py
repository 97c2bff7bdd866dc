"""Serving the page: the address, the certificate, and an end at Ctrl-C that answers what is being asked."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import ssl
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from accord.errors import UserError

OPEN_CONNECTIONS = 500
GRACE = 3
"""Seconds that requests have to end after Ctrl-C; connections of idle browsers may take as long."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM format."""

    chain: str
    key: str


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.  Raises UserError where the address is taken or not this machine's."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: not an address of this machine.") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(OPEN_CONNECTIONS)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use; choose another one with --port, or 0 for any free one."
            ) from None
        raise UserError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --host or --port."
        ) from None
    return made


def check_certificate(certificate: Certificate) -> None:
    """Raises UserError where a certificate and its key cannot be read or do not fit."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate.chain, certificate.key, password=lambda: "")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise UserError(f"{certificate.chain}, {certificate.key}: not a certificate with its key ({reason}).") from None


def serve(app: ASGIApp, listening: socket.socket, certificate: Certificate | None) -> None:
    """Answers until Ctrl-C.  Raises KeyboardInterrupt then, after the last answer."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=OPEN_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=certificate.chain if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
    )
    logging.getLogger("uvicorn.error").addFilter(lambda record: "graceful shutdown" not in record.getMessage())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # uvicorn raises the signal again after the last answer
        signal.signal(signal.SIGINT, signal.default_int_handler)
    uvicorn.Server(config).run(sockets=[listening])
