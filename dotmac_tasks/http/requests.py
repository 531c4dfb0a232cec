"""
What an adapter tells of a request, and for whom its key counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

__all__ = [
    "USER_SCOPE",
    "HttpRequest",
    "IncompleteBodyError",
    "UnknownLengthError",
    "environ_name",
    "join_credentials",
    "principal_scope",
]

USER_SCOPE = "user:"
"""
In front of a resolved user in a scope, so that no user is called like a digest.
"""


class HttpRequest(Protocol):
    """
    What an adapter tells of a request; asked for no more than is needed.

    One per request; used by the thread that serves it.
    """

    @property
    def method(self) -> str:
        """
        The method, in capitals.
        """
        ...

    @property
    def path(self) -> str:
        """
        The path as it came, not normalised, with the mount point.
        """
        ...

    @property
    def query(self) -> str:
        """
        The raw query string, without the question mark.
        """
        ...

    @property
    def content_type(self) -> str:
        """
        The raw content type, or an empty string.
        """
        ...

    @property
    def native(self) -> Any:
        """
        The framework's own request, for the callbacks of a project.
        """
        ...

    def key_header(self) -> str | None:
        """
        Return the raw value of the key's header, or None where there is none.
        """
        ...

    def scope(self) -> tuple[str, str]:
        """
        Return the tenant and the principal, as `principal_scope` forms it.
        """
        ...

    def read_body(self) -> None:
        """
        Read the body to its end and leave it to the application, without a digest.

        Raises:
            IncompleteBodyError: The body ended early.
            UnknownLengthError: The body has no end that is known.
        """
        ...

    def body_digest(self, selector: Callable[[Any], Any] | None) -> bytes:
        """
        Return the digest of the body, or of what a view's selector makes of it.

        Raises:
            IncompleteBodyError: The body ended early.
            UnknownLengthError: The body has no end that is known.
            SpoolError: The body could not be kept.
        """
        ...


class IncompleteBodyError(Exception):
    """
    The client went away while it sent the body; raised where an `HttpRequest` reads it.

    Immutable. What arrived is not what the client meant, so nothing is claimed.
    """


class UnknownLengthError(Exception):
    """
    Nobody says clearly where the body ends; raised where an `HttpRequest` reads it.

    Immutable. Taken for empty, it would be the same as any other body.
    """


def environ_name(header: str) -> str:
    """
    Return the name of a header in the environment of a request (CGI, WSGI, Django).
    """
    return "HTTP_" + header.upper().replace("-", "_")


def join_credentials(environ: Mapping[str, Any], names: Iterable[str]) -> str:
    """
    Return the credentials that a request has under these names of its environment.
    """
    return "\n".join([f"{name}={environ[name]}" for name in names if environ.get(name)])


def principal_scope(user: object, credentials: str | None) -> str:
    """
    Return the principal's part of a key's scope.

    The authenticated user if there is one; otherwise a digest of the
    credentials that nobody resolved, so that two bearers never share a scope;
    otherwise the empty string, which all anonymous callers of a tenant share.
    A user whose id is 0 is a user.
    """
    if user is not None and user != "":
        return f"{USER_SCOPE}{user}"
    if credentials:
        return "credentials:" + hashlib.sha256(credentials.encode("utf-8", "replace")).hexdigest()
    return ""
