"""
The app: registers the system checks and opens nothing.
"""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["DotmacTasksConfig"]


class DotmacTasksConfig(AppConfig):
    """
    Puts dotmac-tasks into a project; has no tables. One instance per process.
    """

    name = "dotmac_tasks_django"
    label = "dotmac_tasks"
    verbose_name = "Background operations"

    def ready(self) -> None:
        """
        Register the system checks.
        """
        from dotmac_tasks_django.checks import register_checks

        register_checks()
