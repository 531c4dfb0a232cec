"""
What callers of the earlier package wrote, for the type checker: it is checked and never run.
"""

from __future__ import annotations

from typing import assert_type

import dotmac.tasks
import dotmac_shared.middleware.background_operations as legacy
import dotmac_tasks
from dotmac.tasks import RedisStorage, SagaStatus
from dotmac_shared.middleware.background_operations import (
    BackgroundOperationsManager,
    IdempotencyKey,
    SagaStepStatus,
    is_idempotent_request,
)

manager = BackgroundOperationsManager(RedisStorage("redis://localhost"))
assert_type(manager, dotmac_tasks.BackgroundOperationsManager)
assert_type(manager.check_idempotency("k"), IdempotencyKey | None)
assert_type(is_idempotent_request({}), bool)
assert_type(legacy.MemoryStorage(), dotmac_tasks.MemoryStorage)
assert_type(legacy.SagaStepStatus("failed"), SagaStepStatus)
assert_type(dotmac.tasks.SagaStatus("failed"), SagaStatus)
assert_type(dotmac.tasks.__version__, str)

# Neither has names of its own making.
unknown = legacy.RedisStorage  # type: ignore[attr-defined]
other = dotmac.tasks.Nothing  # type: ignore[attr-defined]
