"""
Looks into the memory storage of the test project.
"""

from __future__ import annotations

from dotmac_tasks.models import OperationStatus
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks_django.conf import get_manager


def get_statuses() -> list[OperationStatus]:
    """
    Return the statuses of all records.
    """
    storage = get_manager().storage
    assert isinstance(storage, MemoryStorage)
    found = [storage.find_operation(key) for key in list(storage._operations)]
    return [record.status for record in found if record is not None]
