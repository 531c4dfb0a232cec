"""
Helpers for the tests of a project.

For pytest there are fixtures in `dotmac_tasks_django.testing.fixtures`.
"""

from __future__ import annotations

from dotmac_tasks_django.testing.harness import TasksHarness
from dotmac_tasks_django.testing.overrides import override_tasks_settings

__all__ = ["TasksHarness", "override_tasks_settings"]
