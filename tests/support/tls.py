"""
A throw-away certificate authority and server certificate for loopback.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Key identifiers and key usage are spelled out because the strict verification that newer Pythons
# turn on by default refuses certificates without them.
_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = loopback tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
"""

_DAYS = "2"


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """
    Where the authority's certificate and the server's certificate and key are.

    Immutable, so it may be shared between threads.
    """

    ca: Path
    certificate: Path
    key: Path


def find_openssl() -> str | None:
    """
    Return the path of the `openssl` program, or None.
    """
    return shutil.which("openssl")


def create_certificates(directory: Path) -> TlsFiles:
    """
    Create an authority and a server certificate for 127.0.0.1 and localhost.

    They are valid for two days. Ask `find_openssl` first to skip where the program is absent.

    Args:
        directory: An existing directory; every call needs one of its own.

    Raises:
        RuntimeError: The program is absent or failed; its output is in the message.
    """
    config = directory / "openssl.cnf"
    config.write_text(_CONFIG)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key = directory / "server.pem", directory / "server.key"
    request = directory / "server.csr"
    _create_key(ca_key)
    _create_key(key)
    with_config = ("-config", str(config), "-sha256")
    _openssl(
        *("req", "-x509", "-new", "-key", str(ca_key), "-out", str(ca), "-days", _DAYS),
        *("-subj", "/CN=loopback test authority", "-extensions", "authority", *with_config),
    )
    _openssl(
        *("req", "-new", "-key", str(key), "-out", str(request)),
        *("-subj", "/CN=localhost", *with_config),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-out", str(certificate), "-days", _DAYS),
        *("-CA", str(ca), "-CAkey", str(ca_key), "-set_serial", "2", "-sha256"),
        *("-extfile", str(config), "-extensions", "server"),
    )
    return TlsFiles(ca=ca, certificate=certificate, key=key)


def _create_key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path))


def _openssl(*args: str) -> None:
    program = find_openssl()
    if program is None:
        raise RuntimeError("openssl is not installed")
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {args[0]} failed: {done.stderr.strip()}")
