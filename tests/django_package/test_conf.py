from __future__ import annotations

import os
import threading

import pytest
from django.test import override_settings

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.events import IdempotencyMiss
from dotmac_tasks.testing import EventRecorder
from dotmac_tasks_django import conf
from dotmac_tasks_django.conf import get_manager, load_config
from dotmac_tasks_django.requests import current_adapter
from dotmac_tasks_django.testing import override_tasks_settings
from support.concurrency import run_together


def test_settings_reach_the_config() -> None:
    """`DOTMAC_TASKS` has upper-case names; what is not set keeps its default."""
    with override_settings(DOTMAC_TASKS={"LEASE": 5}):
        config = load_config()
    assert config.lease == 5
    assert config.wait == 10


def test_settings_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come before the environment, which comes before the defaults."""
    monkeypatch.setenv("DOTMAC_TASKS_LEASE", "7")
    monkeypatch.setenv("DOTMAC_TASKS_WAIT", "8")
    with override_settings(DOTMAC_TASKS={"LEASE": 5}):
        config = load_config()
    assert (config.lease, config.wait, config.max_execution) == (5, 8, 300)


def test_background_cleanup_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Django cron cleans up; settings or the environment can say otherwise."""
    assert load_config().enable_background_cleanup is False
    with override_tasks_settings(enable_background_cleanup=True):
        assert load_config().enable_background_cleanup is True
    monkeypatch.setenv("DOTMAC_TASKS_ENABLE_BACKGROUND_CLEANUP", "yes")
    assert load_config().enable_background_cleanup is True


def test_hooks_of_the_settings_receive_events() -> None:
    """A project names its hooks in the settings and learns what happens."""
    recorder = EventRecorder()
    with override_tasks_settings(hooks=[recorder]):
        manager = get_manager()
        manager.idempotent("charge")(lambda: 1)()
        assert manager.events.flush(30)
    assert len(recorder.of_type(IdempotencyMiss)) == 1


def test_missing_settings_are_empty() -> None:
    """A project without `DOTMAC_TASKS` works with the defaults."""
    with override_settings():
        from django.conf import settings

        del settings.DOTMAC_TASKS
        assert load_config().lease == 30


@pytest.mark.parametrize(
    ("value", "text"),
    [({"LAESE": 1}, "Did you mean LEASE"), ("redis://", "must be a dictionary"), (None, "must be")],
)
def test_wrong_settings_are_refused(value: object, text: str) -> None:
    """A wrong setting is an error that names the right one."""
    with override_settings(DOTMAC_TASKS=value), pytest.raises(ConfigurationError, match=text):
        get_manager()


def test_manager_is_built_once() -> None:
    """Threads that ask at the same time get one manager, and so does everybody later."""
    managers = run_together(8, get_manager)
    assert len({id(manager) for manager in managers}) == 1
    assert get_manager() is managers[0]
    assert conf._current.build() is managers[0]  # one that came second to the lock
    assert current_adapter() is current_adapter()


def test_changed_settings_build_another_manager() -> None:
    """A change of the settings replaces the manager and stops the old one's threads."""
    before = get_manager()
    with override_tasks_settings(lease=5, enable_background_cleanup=True):
        during = get_manager().start()
        assert during is not before
        assert current_adapter().manager is during
        assert during.config.lease == 5
        assert "dotmac-tasks.cleanup" in {thread.name for thread in threading.enumerate()}
    assert get_manager() not in (before, during)
    assert get_manager().config.lease == 30
    assert "dotmac-tasks.cleanup" not in {thread.name for thread in threading.enumerate()}


def test_other_settings_leave_the_manager_alone() -> None:
    """A change of other settings keeps the manager."""
    before = get_manager()
    with override_settings(DEBUG=True):
        assert get_manager() is before


def test_override_lays_over_what_is_set() -> None:
    """Overrides of single settings nest."""
    with override_tasks_settings(lease=5), override_tasks_settings(WAIT=6):
        assert (load_config().lease, load_config().wait) == (5, 6)


@override_tasks_settings(lease=6)
def test_override_works_as_a_decorator() -> None:
    """The override can stand on a function."""
    assert load_config().lease == 6


def test_child_forked_while_the_manager_is_built_gets_its_own() -> None:
    """A lock that another thread held at the fork does not stop the child."""
    with conf._current._lock:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if get_manager().config.lease == 30 else 1
            finally:
                os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
