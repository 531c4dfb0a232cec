"""
What became of abandoned work: the question to the project, and its answer.

Work whose executor died, and whose policy is `refuse`, is not run again before
somebody has decided. A project that can find out by itself, by asking its
payment provider for example, names a callback; the next retry asks it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias, cast

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.events import log_fields
from dotmac_tasks.keys import derive_downstream_key
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import encode_error, encode_json_response, encode_result

__all__ = [
    "AbandonedOperation",
    "Decision",
    "Reconcile",
    "Reconciler",
    "Verdict",
    "find_reconcile",
]

logger = logging.getLogger(__name__)


class Decision(StrEnum):
    """
    What may happen to abandoned work.
    """

    FOUND = "found"
    """The work was done, and its outcome is recorded now."""
    FAILED = "failed"
    """The work failed, and that is recorded now."""
    RUN_AGAIN = "run_again"
    """The work was not done; the retry that asked runs it."""
    ASK_PERSON = "ask_person"
    """Nobody knows; a person has to decide."""


class Verdict(NamedTuple):
    """
    The answer of a callback; made by the methods of `AbandonedOperation`.

    Attributes:
        decision: What happens now.
        payload: The outcome as it is recorded, where there is one.
    """

    decision: Decision
    payload: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbandonedOperation:
    """
    Work whose executor died before it recorded an outcome.

    Immutable. A callback gets it and returns what one of its methods returns:
    `found`, `failed`, `run_again` or `ask_person`. Meanwhile the key is claimed
    for the callback, so that one at a time asks, and duplicates are told that the
    first request is still running. A callback that dies leaves the work abandoned
    as it was.

    Attributes:
        key: The stored key.
        tenant_id: The tenant.
        user_id: The principal, if there was one.
        operation_type: What kind of work; over HTTP the method and the path.
        fencing_token: Number of the claim under which the callback runs.
        subject: The retry that asks: the framework's request, which is the same
            request as the one that was abandoned; or a function's arguments by
            their names.
        is_http: Whether it is a request over HTTP.
        lasting_key: The stored key as it is without `KEY_SECRET`; else the stored key.
    """

    key: str
    tenant_id: str
    user_id: str | None
    operation_type: str
    fencing_token: int
    subject: Any
    is_http: bool
    lasting_key: str = ""

    def downstream_key(self, name: str) -> str:
        """
        Return the key that the dead executor gave another system under this name.

        What Django's `downstream_key(request, name)` returned there.
        """
        return derive_downstream_key(self.lasting_key or self.key, name)

    def found(self, result: Any, *, status: int = 200) -> Verdict:
        """
        Say that the work was done: retries get this result, over HTTP as JSON.

        Raises:
            SerializationError: The result is not JSON.
            ConfigurationError: A status is set for what is no HTTP request, or is none.
        """
        if status == 200:
            return Verdict(Decision.FOUND, encode_result(result))
        if not self.is_http or not 200 <= status <= 599:
            raise ConfigurationError(
                "status", "must be one of HTTP, 200 to 599, and only of a request.", value=status
            )
        return Verdict(Decision.FOUND, encode_json_response(status, result))

    def failed(self, error: str) -> Verdict:
        """
        Say that the work failed: retries get this text and are not run.
        """
        return Verdict(Decision.FAILED, encode_error(error))

    def run_again(self) -> Verdict:
        """
        Say that the work was not done: the retry that asked runs it now.
        """
        return Verdict(Decision.RUN_AGAIN)

    def ask_person(self) -> Verdict:
        """
        Say that nobody knows: retries are refused until a person has decided.

        The next retry asks the callback again.
        """
        return Verdict(Decision.ASK_PERSON)


Reconcile: TypeAlias = Callable[[AbandonedOperation], Verdict]


def find_reconcile(config: TasksConfig, own: Reconcile | None) -> Callable[[], Reconcile] | None:
    """
    Return what finds the callback: the operation's own, or that of the settings; None for none.

    That of the settings is imported when it is needed: its module may use the manager that is
    being made from them.
    """
    if own is not None:
        return lambda: own
    if config.reconcile is None:
        return None
    return lambda: cast(Reconcile, config.resolve_callable("reconcile"))


class Reconciler(NamedTuple):
    """
    Asks a project's callback on behalf of one retry.

    Attributes:
        find_callback: Returns the callback; it may have to be imported.
        get_subject: Returns what the callback is shown of the retry.
        is_http: Whether it is a request over HTTP.
        lasting_key: What downstream keys derive from; empty for the stored key.
    """

    find_callback: Callable[[], Reconcile]
    get_subject: Callable[[], Any]
    is_http: bool
    lasting_key: str = ""

    def judge(self, claimed: ClaimRequest, fencing_token: int) -> Verdict:
        """
        Return the callback's answer; whatever goes wrong with it is for a person to decide.
        """
        operation = AbandonedOperation(
            key=claimed.key,
            tenant_id=claimed.tenant_id,
            user_id=claimed.user_id or None,
            operation_type=claimed.operation_type,
            fencing_token=fencing_token,
            subject=self.get_subject(),
            is_http=self.is_http,
            lasting_key=self.lasting_key or claimed.key,
        )
        try:
            verdict = self.find_callback()(operation)
            if not isinstance(verdict, Verdict):
                raise TypeError(
                    f"The callback returned a {type(verdict).__name__}. Return what one of the "
                    "methods of the operation returns, such as operation.ask_person()."
                )
        except Exception:
            logger.exception(
                "What became of an abandoned operation could not be found out; "
                "a person has to decide",
                extra=log_fields(claimed),
            )
            return operation.ask_person()
        return verdict
