from __future__ import annotations

import asyncio
import unittest
from typing import Any

import pytest
from django.test import SimpleTestCase, override_settings

from dotmac_tasks_django.conf import get_manager, load_config
from dotmac_tasks_django.testing import override_tasks_settings


class Reporting(SimpleTestCase):
    """
    Notes which settings its test, and what prepares its class, find.
    """

    __test__ = False  # for pytest, which would run it by itself
    found: list[Any]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.found.append(_read())

    def test_settings(self) -> None:
        """The settings are read where the class's tests run."""
        self.found.append(_read())


def _read() -> tuple[float, float]:
    config = load_config()
    return config.lease, config.wait


def _make_case() -> type[Reporting]:
    return type("Case", (Reporting,), {"found": []})


def _run(case: type[Reporting]) -> list[Any]:
    """
    Run a class as its runner would, and return what its test found.
    """
    result = unittest.TestResult()
    unittest.TestSuite([case("test_settings")]).run(result)
    assert result.wasSuccessful(), result
    return case.found


def test_class_gets_the_settings() -> None:
    """A decorated class has the settings from its `setUpClass` on, and nobody has them after."""
    case = override_tasks_settings(lease=7)(_make_case())
    assert _read() == (30, 10)
    assert _run(case) == [(7, 10), (7, 10)]
    assert _read() == (30, 10)


def test_class_gets_a_manager_of_its_own() -> None:
    """The manager of a decorated class is another one than before and after."""
    before = get_manager()
    managers = []

    @override_tasks_settings(lease=7)
    class Case(SimpleTestCase):
        def test_manager(self) -> None:
            """The manager is asked for where the class's test runs."""
            managers.append(get_manager())

    unittest.TestSuite([Case("test_manager")]).run(result := unittest.TestResult())
    assert result.wasSuccessful()
    assert managers[0].config.lease == 7
    assert before is not managers[0] is not get_manager()


def test_class_lays_over_what_is_set() -> None:
    """A class keeps the settings that it does not change."""
    with override_settings(DOTMAC_TASKS={"WAIT": 3}):
        case = override_tasks_settings(lease=7)(_make_case())
        assert _run(case)[-1] == (7, 3)


def test_decorators_of_a_class_add_up() -> None:
    """Two on one class count both, and the upper one wins where they disagree."""
    case = override_tasks_settings(wait=2)(_make_case())
    case = override_tasks_settings(lease=7, wait=3)(case)
    assert _run(case)[-1] == (7, 3)


def test_class_lays_over_the_setting_below() -> None:
    """Over Django's own decorator only what is named changes."""
    case = override_settings(DOTMAC_TASKS={"WAIT": 3})(_make_case())
    assert _run(override_tasks_settings(lease=7)(case))[-1] == (7, 3)


def test_subclass_lays_over_its_base() -> None:
    """A subclass adds to what its base has, and leaves the base alone."""
    base = override_tasks_settings(wait=3)(_make_case())
    derived = override_tasks_settings(lease=7)(type("Derived", (base,), {"found": []}))
    plain = type("Plain", (base,), {"found": []})
    assert _run(derived)[-1] == (7, 3)
    assert _run(plain)[-1] == (30, 3)
    assert _run(base)[-1] == (30, 3)


def test_method_lays_over_its_class() -> None:
    """On a method and in a block under a decorated class only what is named changes."""
    found = []

    @override_tasks_settings(wait=3)
    class Case(SimpleTestCase):
        @override_tasks_settings(lease=7)
        def test_method(self) -> None:
            """The settings are read under the class, the method and a block."""
            found.append(_read())
            with override_tasks_settings(wait=4):
                found.append(_read())
            found.append(_read())

    unittest.TestSuite([Case("test_method")]).run(result := unittest.TestResult())
    assert result.wasSuccessful()
    assert found == [(7, 3), (7, 4), (7, 3)]


def test_one_override_serves_several_uses() -> None:
    """The same override decorates classes and functions, and opens blocks, one after another."""
    ours = override_tasks_settings(lease=7)
    first, second = ours(_make_case()), ours(_make_case())
    with override_tasks_settings(wait=3), ours:
        assert _read() == (7, 3)
    assert ours(_read)() == (7, 10)
    assert _run(first)[-1] == _run(second)[-1] == (7, 10)


def test_coroutine_gets_the_settings() -> None:
    """An asynchronous test has them until it ends."""

    @override_tasks_settings(lease=7)
    async def read() -> tuple[float, float]:
        await asyncio.sleep(0)
        return _read()

    assert asyncio.run(read()) == (7, 10)
    assert _read() == (30, 10)


def test_other_classes_are_refused() -> None:
    """A class that Django does not prepare is refused instead of left unchanged."""
    with pytest.raises(ValueError, match="SimpleTestCase"):
        override_tasks_settings(lease=7)(type("Plain", (), {}))
