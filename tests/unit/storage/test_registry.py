from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import dotmac_tasks.storage
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.storage import MemoryStorage, Storage, registry
from dotmac_tasks.storage.registry import (
    register_storage,
    storage_from_setting,
    storage_from_url,
)

SECRET = "hunter2"


class RecordingStorage(MemoryStorage):
    def __init__(self, url: str = "", **options: Any) -> None:
        super().__init__()
        self.url = url
        self.options = options


class PlainStorage(MemoryStorage):
    def __init__(self) -> None:
        super().__init__()


class FullStorage(MemoryStorage):
    def __init__(self) -> None:
        raise ConfigurationError("STORAGE", "is full.")


class NoStorage:
    pass


@pytest.fixture
def scheme() -> Iterator[str]:
    """
    A scheme that is registered for one test.
    """
    register_storage("custom", RecordingStorage)
    yield "custom"
    del registry._factories["custom"]


class TestUrl:
    def test_memory_url_constructs_one(self) -> None:
        """The URL of the storage in memory constructs it, with its options."""
        storage = storage_from_url("memory://", max_records=1)
        assert isinstance(storage, MemoryStorage)

    def test_scheme_may_be_in_capitals(self) -> None:
        """Schemes are told apart without regard to case."""
        assert isinstance(storage_from_url("MEMORY://"), MemoryStorage)

    def test_registered_scheme_is_called(self, scheme: str) -> None:
        """A registered factory gets the URL and the options."""
        storage = storage_from_url(f"{scheme}://x", depth=3)
        assert isinstance(storage, RecordingStorage)
        assert (storage.url, storage.options) == ("custom://x", {"depth": 3})

    @pytest.mark.parametrize("wrong", ["", "Custom", "1x", "a b", "x://"])
    def test_malformed_scheme_is_not_registered(self, wrong: str) -> None:
        """What could never be the scheme of a URL is refused."""
        with pytest.raises(ConfigurationError):
            register_storage(wrong, RecordingStorage)

    @pytest.mark.parametrize(
        ("wrong", "nearest"), [("redsi", "redis"), ("memry", "memory"), ("redisss", "rediss")]
    )
    def test_unknown_scheme_names_the_nearest(self, wrong: str, nearest: str) -> None:
        """A mistyped scheme is refused with the right one, and without the URL's password."""
        with pytest.raises(ConfigurationError, match=f"Did you mean '{nearest}'") as caught:
            storage_from_url(f"{wrong}://user:{SECRET}@host")
        assert caught.value.option == "STORAGE"
        assert SECRET not in f"{caught.value!r} {caught.value.value}"

    def test_unlike_scheme_lists_the_known(self) -> None:
        """A scheme like no other is refused with the list of those there are."""
        with pytest.raises(ConfigurationError, match="memory, redis, rediss, unix") as caught:
            storage_from_url("xyz://")
        assert "Did you mean" not in str(caught.value)

    @pytest.mark.parametrize("wrong", ["", "redis", f"user:{SECRET}@host"])
    def test_what_is_no_url_is_refused(self, wrong: str) -> None:
        """A text without a scheme is refused and not repeated."""
        with pytest.raises(ConfigurationError, match="is not a URL") as caught:
            storage_from_url(wrong)
        assert SECRET not in str(caught.value)

    def test_memory_takes_nothing_behind_its_scheme(self) -> None:
        """A host behind memory:// is a mistake."""
        with pytest.raises(ConfigurationError):
            storage_from_url("memory://localhost")

    @pytest.mark.parametrize("url", ["memory://", "redis://localhost", "unix:///tmp/x"])
    def test_unfit_option_is_refused(self, url: str) -> None:
        """An option of a wrong name or kind is refused by every storage."""
        if not url.startswith("memory"):
            pytest.importorskip("redis")
        with pytest.raises(ConfigurationError):
            storage_from_url(url, no_such_option=object())

    @pytest.mark.parametrize(
        "url", ["redis://localhost:1/0", "rediss://localhost:1", "unix:///nowhere.sock"]
    )
    def test_redis_urls_construct_without_connecting(self, url: str) -> None:
        """Each of the URLs of Redis constructs that storage though no server is there."""
        pytest.importorskip("redis")
        storage = storage_from_url(url, prefix="p", timeout=1)
        assert storage.name == "redis"
        storage.close()


class TestSetting:
    def test_url_gets_prefix_and_timeout(self, scheme: str) -> None:
        """A URL's storage gets the prefix and the timeout of the settings."""
        storage = storage_from_setting(f"{scheme}://x", prefix="p", timeout=3)
        assert isinstance(storage, RecordingStorage)
        assert storage.options == {"prefix": "p", "timeout": 3}

    def test_memory_does_without_them(self) -> None:
        """The storage in memory is constructed though it has no prefix and no timeout."""
        storage = storage_from_setting("memory://", prefix="p", timeout=3)
        assert isinstance(storage, MemoryStorage)

    def test_backend_gets_prefix_and_timeout(self) -> None:
        """A class that takes them gets them, unless its options say otherwise."""
        storage = construct("RecordingStorage", OPTIONS={"prefix": "mine", "depth": 3})
        assert isinstance(storage, RecordingStorage)
        assert storage.options == {"prefix": "mine", "timeout": 3, "depth": 3}

    def test_plain_backend_is_constructed(self) -> None:
        """A class that takes no arguments needs no options."""
        assert isinstance(construct("PlainStorage"), PlainStorage)

    def test_options_are_left_alone(self) -> None:
        """The mapping of the settings is not changed."""
        options = {"depth": 3}
        construct("RecordingStorage", OPTIONS=options)
        assert options == {"depth": 3}

    @pytest.mark.parametrize("path", ["no_such_module.Storage", "dotmac_tasks.storage.Missing"])
    def test_backend_that_cannot_be_imported_is_refused(self, path: str) -> None:
        """A path that leads nowhere is refused by name."""
        with pytest.raises(ConfigurationError, match="cannot be imported") as caught:
            storage_from_setting({"BACKEND": path}, prefix="p", timeout=3)
        assert path in str(caught.value)

    def test_backend_that_is_no_class_is_refused(self) -> None:
        """A path to a module or a value is refused."""
        with pytest.raises(ConfigurationError, match="is not a class"):
            storage_from_setting({"BACKEND": "dotmac_tasks.storage"}, prefix="p", timeout=3)

    def test_backend_that_is_no_storage_is_refused(self) -> None:
        """A class that constructs something else is refused."""
        with pytest.raises(ConfigurationError, match="does not construct a Storage"):
            construct("NoStorage")

    def test_options_that_do_not_fit_are_refused(self) -> None:
        """An option that the class does not take is refused by its name."""
        with pytest.raises(ConfigurationError, match="depth"):
            construct("PlainStorage", OPTIONS={"depth": 3})

    def test_backend_of_redis_needs_its_place(self) -> None:
        """Redis as a backend is refused without a place, which would be this host by default."""
        pytest.importorskip("redis")
        redis: dict[str, Any] = {"BACKEND": "dotmac_tasks.RedisStorage"}
        for options in ({}, {"redis_url": None}, {"redis_url": ""}):
            with pytest.raises(ConfigurationError) as caught:
                storage_from_setting({**redis, "OPTIONS": options}, prefix="p", timeout=3)
            assert caught.value.option == "STORAGE"
        for options in ({"redis_url": "redis://localhost"}, {"host": "localhost"}):
            storage_from_setting({**redis, "OPTIONS": options}, prefix="p", timeout=3).close()

    def test_errors_of_a_storage_name_the_setting(self) -> None:
        """What a storage refuses is said of STORAGE, with its own option and without the URL."""
        pytest.importorskip("redis")
        with pytest.raises(ConfigurationError, match="STORAGE: the URL has a port") as caught:
            storage_from_setting(f"redis://:{SECRET}/2@h/0", prefix="p", timeout=3)
        assert SECRET not in str(caught.value)
        redis: dict[str, Any] = {"BACKEND": "dotmac_tasks.RedisStorage"}
        with pytest.raises(ConfigurationError, match=r"STORAGE: url is no option .* redis_url"):
            storage_from_setting({**redis, "OPTIONS": {"url": SECRET}}, prefix="p", timeout=3)

    def test_error_that_names_the_setting_passes(self) -> None:
        """An error of a storage that speaks of STORAGE already is not reworded."""
        with pytest.raises(ConfigurationError, match=r"^Setting STORAGE: is full\.$"):
            construct("FullStorage")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Let dotted paths lead to the classes of this file.
    """
    monkeypatch.setitem(sys.modules, "registry_backends", sys.modules[__name__])


def construct(name: str, **setting: Any) -> Storage:
    """
    Construct a class of this file by its dotted path.
    """
    mapping: Mapping[str, Any] = {"BACKEND": f"registry_backends.{name}", **setting}
    return storage_from_setting(mapping, prefix="p", timeout=3)


class TestOnDemand:
    def test_redis_storage_is_imported_when_asked_for(self) -> None:
        """Importing the storages does not import redis; asking for that one does."""
        pytest.importorskip("redis")
        script = (
            "import sys, dotmac_tasks.storage, dotmac_tasks.storage.registry\n"
            "assert 'redis' not in sys.modules\n"
            "assert dotmac_tasks.storage.RedisStorage.name == 'redis'\n"
            "assert 'redis' in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    def test_unknown_name_is_an_attribute_error(self) -> None:
        """What the package does not have is missing as in any module."""
        with pytest.raises(AttributeError, match="RedisStore"):
            _ = dotmac_tasks.storage.RedisStore

    def test_missing_redis_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without redis-py its URLs are refused with what to install."""
        hide(monkeypatch, "redis")
        with pytest.raises(ConfigurationError, match=r"pip install 'dotmac-tasks\[redis\]'"):
            storage_from_url("redis://localhost")

    def test_other_missing_module_is_not_blamed_on_redis(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A module of ours that is missing is reported as what it is."""
        hide(monkeypatch, "dotmac_tasks.storage.redis")
        with pytest.raises(ModuleNotFoundError, match=r"dotmac_tasks\.storage\.redis"):
            storage_from_url("redis://localhost")


def hide(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """
    Make a module unimportable, and have the Redis storage imported anew.
    """

    class Hider:
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname.partition(".")[0] == name or fullname == name:
                raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    for module in list(sys.modules):
        if module.partition(".")[0] == "redis" or module.startswith("dotmac_tasks.storage.redis"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(dotmac_tasks.storage, "redis", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hider(), *sys.meta_path])
