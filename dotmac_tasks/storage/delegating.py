"""
A storage that passes every call on to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from dotmac_tasks.models import (
    BackgroundPage,
    BackgroundRecord,
    ClaimReply,
    ClaimRequest,
    Lease,
    LockGrant,
    OperationStatus,
    PurgeReport,
    SettleOutcome,
    StorageHealth,
    StorageStats,
    StoredOperation,
    StoredPage,
    WriteOutcome,
)
from dotmac_tasks.storage.base import Storage

__all__ = ["DelegatingStorage"]

P = ParamSpec("P")
R = TypeVar("R")


class DelegatingStorage(Storage):
    """
    Passes every verb on to another storage; the base of what stands around one.

    Holds no state; as shareable between threads and across forks as the wrapped storage.

    Attributes:
        wrapped: The other storage.
    """

    def __init__(self, storage: Storage) -> None:
        self.wrapped = storage

    @property
    def name(self) -> str:  # type: ignore[override] # known per instance only
        """
        Short name of the wrapped storage.
        """
        return self.wrapped.name

    @property
    def breaker_state(self) -> str | None:
        """
        State of the wrapped storage's circuit breaker.
        """
        return self.wrapped.breaker_state

    @property
    def is_refusing(self) -> bool:
        """
        Whether the wrapped storage would refuse a call at once.
        """
        return self.wrapped.is_refusing

    def pass_on(self, verb: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Make one call of the wrapped storage; the one place to stand around all of them.
        """
        return call(*args, **kwargs)

    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        """
        Pass it on.
        """
        return self.pass_on("claim_operation", self.wrapped.claim_operation, request)

    def ensure_operation(self, request: ClaimRequest) -> StoredOperation:
        """
        Pass it on.
        """
        return self.pass_on("ensure_operation", self.wrapped.ensure_operation, request)

    def find_operation(self, key: str) -> StoredOperation | None:
        """
        Pass it on.
        """
        return self.pass_on("find_operation", self.wrapped.find_operation, key)

    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        """
        Pass it on.
        """
        return self.pass_on(
            "complete_operation",
            self.wrapped.complete_operation,
            request,
            fencing_token,
            payload,
            failed=failed,
        )

    def release_operation(self, key: str, owner: str) -> WriteOutcome:
        """
        Pass it on.
        """
        return self.pass_on("release_operation", self.wrapped.release_operation, key, owner)

    def defer_operation(self, request: ClaimRequest, seconds: float) -> WriteOutcome:
        """
        Pass it on.
        """
        return self.pass_on("defer_operation", self.wrapped.defer_operation, request, seconds)

    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        """
        Pass it on.
        """
        return self.pass_on(
            "settle_operation",
            self.wrapped.settle_operation,
            key,
            payload,
            failed=failed,
            tenant_id=tenant_id,
        )

    def list_operations(
        self,
        *,
        tenant_id: str | None = None,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        """
        Pass it on.
        """
        return self.pass_on(
            "list_operations",
            self.wrapped.list_operations,
            tenant_id=tenant_id,
            status=status,
            limit=limit,
            cursor=cursor,
        )

    def discard_operation(
        self,
        key: str,
        *,
        tenant_id: str | None = None,
        finished: bool = False,
        fencing_token: int | None = None,
        unreadable: bool = False,
    ) -> SettleOutcome:
        """
        Pass it on.
        """
        return self.pass_on(
            "discard_operation",
            self.wrapped.discard_operation,
            key,
            tenant_id=tenant_id,
            finished=finished,
            fencing_token=fencing_token,
            unreadable=unreadable,
        )

    def renew_leases(self, leases: Sequence[Lease]) -> list[bool]:
        """
        Pass it on.
        """
        return self.pass_on("renew_leases", self.wrapped.renew_leases, leases)

    def acquire_lock(self, name: str, owner: str, ttl: float) -> LockGrant | None:
        """
        Pass it on.
        """
        return self.pass_on("acquire_lock", self.wrapped.acquire_lock, name, owner, ttl)

    def release_lock(self, name: str, owner: str) -> bool:
        """
        Pass it on.
        """
        return self.pass_on("release_lock", self.wrapped.release_lock, name, owner)

    def save_background(
        self,
        operation_id: str,
        tenant_id: str,
        status: OperationStatus,
        data: bytes,
        *,
        expected_revision: int,
        request_id: str,
        retention: float | None,
    ) -> BackgroundRecord:
        """
        Pass it on.
        """
        return self.pass_on(
            "save_background",
            self.wrapped.save_background,
            operation_id,
            tenant_id,
            status,
            data,
            expected_revision=expected_revision,
            request_id=request_id,
            retention=retention,
        )

    def find_background(self, operation_id: str) -> BackgroundRecord | None:
        """
        Pass it on.
        """
        return self.pass_on("find_background", self.wrapped.find_background, operation_id)

    def list_background(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> BackgroundPage:
        """
        Pass it on.
        """
        return self.pass_on(
            "list_background",
            self.wrapped.list_background,
            tenant_id,
            status=status,
            limit=limit,
            cursor=cursor,
        )

    def purge_expired(self, limit: int, *, dry_run: bool = False) -> PurgeReport:
        """
        Pass it on.
        """
        return self.pass_on("purge_expired", self.wrapped.purge_expired, limit, dry_run=dry_run)

    def check_health(self) -> StorageHealth:
        """
        Pass it on.
        """
        return self.pass_on("check_health", self.wrapped.check_health)

    def get_stats(self) -> StorageStats:
        """
        Pass it on.
        """
        return self.pass_on("get_stats", self.wrapped.get_stats)

    def close(self) -> None:
        """
        Pass it on.
        """
        self.pass_on("close", self.wrapped.close)
