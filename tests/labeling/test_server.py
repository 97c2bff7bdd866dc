"""The server as a process: Ctrl-C, TLS, addresses."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra feedback")

from accord.feedback.store import open_store
from accord.labeling.server import Certificate, check_certificate, is_loopback

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "localhost.example.org", "", "::ffff:8.8.8.8"])
def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def new_certificate(folder: Path) -> Certificate:
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl")
    made = Certificate(str(folder / "cert.pem"), str(folder / "key.pem"))
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    words += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        made.key,
        "-out",
        made.chain,
    ]
    subprocess.run(words, check=True, capture_output=True)
    return made


def test_it_speaks_tls_and_ends_at_ctrl_c_with_0(tmp_path: Path) -> None:
    certificate = new_certificate(tmp_path)
    check_certificate(certificate)
    open_store(tmp_path / "feedback.db").create_project("demo")
    words = [
        "--store",
        str(tmp_path / "feedback.db"),
        "--port",
        "0",
        "--tls-cert",
        certificate.chain,
        "--tls-key",
        certificate.key,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "accord", "label", "demo", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"https://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found
        trusted = ssl.create_default_context(cafile=certificate.chain)
        connection = http.client.HTTPSConnection("localhost", int(found[1]), context=trusted, timeout=30)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["server"] is None
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert "; Secure" in answer.headers["set-cookie"]
        connection.close()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, error
    assert out.endswith("The page has stopped; every vote is in the store.\n")
    assert error == ""
