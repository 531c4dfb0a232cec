"""
The fixtures that users get, for the tests of the harness itself.
"""

from __future__ import annotations

from dotmac_tasks.testing.fixtures import tasks_harness, tasks_settings

__all__ = ["tasks_harness", "tasks_settings"]
