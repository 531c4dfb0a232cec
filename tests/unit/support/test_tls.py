from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from support import tls
from support.tls import TlsFiles, create_certificates, find_openssl


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    if find_openssl() is None:
        pytest.skip("openssl is not installed")
    return create_certificates(tmp_path_factory.mktemp("tls"))


def shake_hands(files: TlsFiles, context: ssl.SSLContext, name: str) -> None:
    """Connect with `context` to a server that has the certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(OSError):  # the client refused
            server.wrap_socket(theirs, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            context.wrap_socket(ours, server_hostname=name).close()
    finally:
        thread.join()


def strict_context(ca: Path | None) -> ssl.SSLContext:
    """Return a client's context that verifies as the newest Pythons do."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_certificate_is_accepted_by_who_trusts_the_authority(files: TlsFiles, name: str) -> None:
    """Strict verification accepts both names of loopback."""
    shake_hands(files, strict_context(files.ca), name)


def test_certificate_is_refused_by_who_does_not(files: TlsFiles) -> None:
    """The system's authorities do not know ours."""
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, strict_context(None), "localhost")


def test_certificate_is_refused_for_another_name(files: TlsFiles) -> None:
    """The certificate is for loopback only."""
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, strict_context(files.ca), "example.com")


def test_create_certificates_tells_what_failed(tmp_path: Path) -> None:
    """An error of the program is passed on."""
    if find_openssl() is None:
        pytest.skip("openssl is not installed")
    with pytest.raises(RuntimeError, match="openssl ecparam failed"):
        tls._create_key(tmp_path / "absent" / "key")


def test_create_certificates_tells_that_the_program_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the program the message says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="not installed"):
        create_certificates(tmp_path)
