"""
What `dotmac_tasks.http` asks of a request, told by a Django request.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject, empty

from dotmac_tasks.http.requests import environ_name, join_credentials, principal_scope
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks_django.bodies import (
    ensure_whole_body,
    request_body_digest,
    selected_body_digest,
)
from dotmac_tasks_django.conf import get_manager

__all__ = ["Adapter", "DjangoRequest", "current_adapter", "find_tenant_id", "find_user_id"]

# Where AuthenticationMiddleware keeps the user that it has looked up.
_USER: Final = "_cached_user"
# Only what is the same in every process may become part of a key.
_IDS: Final = (str, int, UUID)


class Adapter:
    """
    How requests are read under one manager's settings.

    Immutable; shared by all threads.
    """

    def __init__(self, manager: BackgroundOperationsManager) -> None:
        config = manager.config
        self.manager = manager
        self.http = manager.http
        self.key_name = environ_name(config.idempotency_header)
        self.requires_key = config.require_key
        self.credential_names = tuple(environ_name(name) for name in config.credential_headers)
        self.tenant = config.resolve_callable("tenant")
        self.principal = config.resolve_callable("principal") or find_user_id


_adapter: Adapter | None = None


def current_adapter() -> Adapter:
    """
    Return the adapter of this process's manager.

    Raises:
        ConfigurationError: A setting is unknown or cannot work.
    """
    global _adapter
    manager = get_manager()
    adapter = _adapter
    if adapter is None or adapter.manager is not manager:
        # No lock: two threads can only put equal adapters here.
        adapter = _adapter = Adapter(manager)
    return adapter


class DjangoRequest:
    """
    One request as `dotmac_tasks.http` sees it; used by the thread that serves it.
    """

    __slots__ = ("_adapter", "_request", "_view_kwargs", "method", "path")

    def __init__(self, adapter: Adapter, request: HttpRequest, view_kwargs: dict[str, Any]) -> None:
        self._adapter = adapter
        self._request = request
        self._view_kwargs = view_kwargs
        self.method: str = request.method or ""
        self.path: str = request.path

    @property
    def query(self) -> str:
        """
        The raw query string.
        """
        query: str = self._request.META.get("QUERY_STRING", "")
        return query

    @property
    def content_type(self) -> str:
        """
        The raw content type.
        """
        content_type: str = self._request.META.get("CONTENT_TYPE", "")
        return content_type

    @property
    def native(self) -> HttpRequest:
        """
        The request that Django's views get.
        """
        return self._request

    def key_header(self) -> str | None:
        """
        Return the raw value of the key's header.
        """
        header: str | None = self._request.META.get(self._adapter.key_name)
        return header

    def scope(self) -> tuple[str, str]:
        """
        Return the tenant and the principal.
        """
        adapter = self._adapter
        if adapter.tenant is None:
            tenant = find_tenant_id(self._request, self._view_kwargs)
        else:
            tenant = _to_id(adapter.tenant(self._request), "TENANT")
        user = _to_id(adapter.principal(self._request), "PRINCIPAL")
        # Credentials count only where nobody resolved them.
        credentials = (
            None if user else join_credentials(self._request.META, adapter.credential_names)
        )
        return tenant or "default", principal_scope(user, credentials)

    def read_body(self) -> None:
        """
        Make sure that the body is whole; the view finds it as if nobody had read it.
        """
        ensure_whole_body(self._request)

    def body_digest(self, selector: Callable[[Any], Any] | None) -> bytes:
        """
        Return the digest of the body; the view finds it as if nobody had read it.
        """
        if selector is not None:
            return selected_body_digest(self._request, selector)
        return request_body_digest(self._request)


def find_tenant_id(request: HttpRequest, view_kwargs: dict[str, Any]) -> str | None:
    """
    Return the tenant that the project has put on the request or into the URL.

    Raises:
        ImproperlyConfigured: It is an object without a stable text.
    """
    candidate: Any = getattr(request, "tenant", None)
    if candidate is None:
        candidate = getattr(request, "tenant_id", None)
    if candidate is None:
        candidate = view_kwargs.get("tenant_id")
    if candidate is None:
        return None
    found = _to_id(candidate, "TENANT")
    if found is None:
        raise _without_id(candidate, "TENANT")
    return found


def _to_id(candidate: Any, setting: str) -> str | None:
    if type(candidate) is str:
        return candidate
    value = getattr(candidate, "pk", candidate)
    if value is None:
        return None  # an anonymous user, too
    if not isinstance(value, _IDS):
        raise _without_id(candidate, setting)
    return str(value)


def _without_id(candidate: Any, setting: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"A {type(candidate).__name__} has no id that could become part of a key. "
        f"Set DOTMAC_TASKS['{setting}'] to a function that returns one as text."
    )


def find_user_id(request: HttpRequest) -> str | None:
    """
    Return the primary key of the authenticated user, or None.

    A response to an anonymous user is not made to vary on the cookie by it.
    """
    user = getattr(request, "user", None)
    session = getattr(request, "session", None)
    if user is None:
        return None
    if session is None or session.accessed or not _is_unresolved(user):
        return _user_id(user)
    # Somebody who looks at request.user later must be seen to do so: an anonymous user is
    # resolved on a copy, and forgotten, so that the view's own look counts as the first.
    known = _USER in vars(request)
    user = copy.copy(user)
    found = _user_id(user)
    if found is not None:
        request.user = user
    elif not session.modified:
        session.accessed = False
        if not known:
            vars(request).pop(_USER, None)
    return found


def _is_unresolved(user: Any) -> bool:
    return type(user) is SimpleLazyObject and user._wrapped is empty  # noqa: SLF001 - no public way


def _user_id(user: Any) -> str | None:
    if not user.is_authenticated:
        return None
    return None if user.pk is None else str(user.pk)
