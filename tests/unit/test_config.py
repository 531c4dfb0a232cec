from __future__ import annotations

import dataclasses
import posixpath
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.config import TasksConfig, check_setting, redact_url
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.events import MetricsHooks
from dotmac_tasks.testing import EventRecorder

SECRET = "redis://user:hunter2@db.example:6379/0?password=hunter2"


def resolve(request: object) -> str:
    return "tenant"


def test_defaults_are_the_documented_ones() -> None:
    """
    Nothing set means what the reference says.
    """
    assert dataclasses.asdict(TasksConfig()) == {
        "storage": "memory://",
        "key_prefix": "bgops",
        "default_idempotency_ttl": 86400.0,
        "lease": 30.0,
        "max_execution": 300.0,
        "storage_timeout": 2.0,
        "methods": ("POST", "PATCH"),
        "require_key": False,
        "exempt_paths": ("/health/", "/metrics", "/admin/", "/static/"),
        "idempotency_header": "Idempotency-Key",
        "cache_hit_header": "X-Cache-Hit",
        "idempotency_response_header": "X-Idempotency-Key",
        "in_progress": "accepted",
        "wait": 10.0,
        "on_storage_error": "proceed",
        "on_abandoned": "rerun",
        "reconcile": None,
        "tenant": None,
        "principal": None,
        "anonymous": "share",
        "credential_headers": ("Authorization",),
        "replay_headers": (),
        "max_response_bytes": 1048576,
        "redactor": None,
        "max_keys_per_caller": 0,
        "quota_window": 3600.0,
        "key_secret": "",
        "payload_codec": None,
        "require_sealed": False,
        "saga_timeout": 7200.0,
        "saga_retention": 2592000.0,
        "operation_retention": 2592000.0,
        "history_limit": 1000,
        "cleanup_interval": 3600.0,
        "enable_background_cleanup": True,
        "max_waiting": 4,
        "hooks": (),
        "_exempt_exact": frozenset({"/health/", "/metrics", "/admin/", "/static/"}),
        "_exempt_prefixes": ("/health/", "/admin/", "/static/"),
    }


def test_config_cannot_be_changed() -> None:
    """
    Settings are facts for the life of whatever was built with them.
    """
    with pytest.raises(dataclasses.FrozenInstanceError):
        TasksConfig().lease = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("lease", 5, 5.0),
        ("lease", timedelta(minutes=1), 60.0),
        ("wait", 0, 0.0),
        ("storage", "unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("storage", {"BACKEND": "a.B"}, {"BACKEND": "a.B"}),
        (
            "storage",
            {"BACKEND": "a.B", "OPTIONS": {"x": 1}},
            {"BACKEND": "a.B", "OPTIONS": {"x": 1}},
        ),
        ("key_prefix", "{bgops}", "{bgops}"),
        ("methods", ["post", "PUT"], ("POST", "PUT")),
        ("methods", (), ()),
        ("exempt_paths", ["/a", "/b/", "/c*"], ("/a", "/b/", "/c*")),
        ("in_progress", "wait", "wait"),
        ("on_storage_error", "reject", "reject"),
        ("on_abandoned", "refuse", "refuse"),
        ("tenant", resolve, resolve),
        ("principal", "shop.people.get_user", "shop.people.get_user"),
        ("max_response_bytes", 0, 0),
        ("max_waiting", 0, 0),
        ("idempotency_header", "X-Key", "X-Key"),
        ("credential_headers", ["X-Api-Key"], ("X-Api-Key",)),
        ("replay_headers", [], ()),
    ],
)
def test_value_is_accepted(name: str, value: Any, kept: Any) -> None:
    """
    Right values are kept in one form, whichever case the name is written in.
    """
    assert getattr(TasksConfig.from_mapping({name: value}), name) == kept
    assert getattr(TasksConfig.from_mapping({name.upper(): value}), name) == kept


DURATIONS = [
    "default_idempotency_ttl",
    "lease",
    "max_execution",
    "storage_timeout",
    "wait",
    "saga_timeout",
    "saga_retention",
    "operation_retention",
    "cleanup_interval",
]


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "value",
    [True, None, "30", -1, float("nan"), float("inf"), timedelta(-1), 10**400, 101 * 365 * 86400.0],
    ids=["bool", "None", "text", "negative", "NaN", "inf", "timedelta", "huge", "century"],
)
def test_senseless_duration_is_refused(name: str, value: Any) -> None:
    """
    A duration is a finite, positive number of seconds and no flag.
    """
    with pytest.raises(ConfigurationError, match="a number of seconds") as caught:
        TasksConfig(**{name: value})
    assert caught.value.option == name.upper()


@pytest.mark.parametrize("name", [name for name in DURATIONS if name != "wait"])
def test_zero_duration_is_refused(name: str) -> None:
    """
    Only a wait may be nothing.
    """
    with pytest.raises(ConfigurationError, match="over 0"):
        TasksConfig(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_prefix", ""),
        ("key_prefix", "a b"),
        ("key_prefix", "x" * 101),
        ("key_prefix", 7),
        ("methods", "POST"),
        ("methods", ["POST", 7]),
        ("methods", ["PO ST"]),
        ("methods", ["GET"]),
        ("methods", ["head"]),
        ("exempt_paths", "/a"),
        ("exempt_paths", ["a"]),
        ("exempt_paths", [""]),
        ("exempt_paths", ["/a*b"]),
        ("require_key", 1),
        ("require_key", "true"),
        ("enable_background_cleanup", None),
        ("idempotency_header", "Idempotency Key"),
        ("cache_hit_header", ""),
        ("idempotency_response_header", None),
        ("credential_headers", "Authorization"),
        ("credential_headers", ["X Api Key"]),
        ("replay_headers", [7]),
        ("in_progress", "later"),
        ("in_progress", None),
        ("on_storage_error", True),
        ("on_abandoned", "RERUN"),
        ("tenant", 7),
        ("tenant", "no_dot"),
        ("principal", "a.b c"),
        ("max_response_bytes", -1),
        ("max_response_bytes", True),
        ("max_response_bytes", 1.5),
        ("history_limit", 0),
        ("max_waiting", -1),
        ("storage", ""),
        ("storage", "localhost:6379"),
        ("storage", 7),
        ("storage", {}),
        ("storage", {"BACKEND": "NoDot"}),
        ("storage", {"BACKEND": "a.B", "OPTIONS": []}),
        ("storage", {"BACKEND": "a.B", "LOCATION": "x"}),
    ],
)
def test_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    """
    The error names the setting, in upper case as the documentation does.
    """
    with pytest.raises(ConfigurationError) as caught:
        TasksConfig.from_mapping({name: value})
    assert caught.value.option == name.upper()
    assert str(caught.value).startswith(f"Setting {name.upper()}: ")


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"lease": 61, "default_idempotency_ttl": 60}, "LEASE"),
        ({"in_progress": "wait", "wait": 0}, "WAIT"),
    ],
)
def test_combination_that_cannot_work_is_refused(settings: dict[str, Any], option: str) -> None:
    """
    Values that are right alone are refused where together they make no sense.
    """
    with pytest.raises(ConfigurationError) as caught:
        TasksConfig(**settings)
    assert caught.value.option == option


def test_combination_at_the_edge_works() -> None:
    """
    A lease as long as the retention is fine, and so is no wait where none is asked for.
    """
    config = TasksConfig(lease=60, default_idempotency_ttl=60, wait=0)
    assert (config.lease, config.wait) == (60.0, 0.0)


def test_risks_are_told_and_not_refused() -> None:
    """
    What works but may hurt is listed; the defaults carry no risk.
    """
    assert TasksConfig().find_risks() == ()
    risky = TasksConfig(lease=1, in_progress="wait", wait=10, max_execution=5)
    assert [risk for risk in risky.find_risks() if "STORAGE_TIMEOUT" in risk or "WAIT" in risk]
    assert len(risky.find_risks()) == 2
    assert len(TasksConfig(wait=10, max_execution=5).find_risks()) == 0


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("LEESE", "Did you mean LEASE?"),
        ("Lease", "Did you mean LEASE?"),
        ("default_ttl", "Did you mean DEFAULT_IDEMPOTENCY_TTL?"),
        ("xyzzy", "Choose from ANONYMOUS"),
        (7, "Choose from"),
        ("_exempt_exact", "Did you mean EXEMPT_PATHS?"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_right_one(given: Any, hint: str) -> None:
    """
    A typing error is an error, and the message helps.
    """
    with pytest.raises(ConfigurationError, match="is unknown") as caught:
        TasksConfig.from_mapping({given: 1})
    assert hint in str(caught.value)
    assert caught.value.option == str(given)


def test_name_given_twice_is_refused() -> None:
    """
    Upper and lower case of one name do not silently override one another.
    """
    with pytest.raises(ConfigurationError, match="given twice"):
        TasksConfig.from_mapping({"LEASE": 1, "lease": 2})


def test_mapping_overrides_its_base() -> None:
    """
    What is named wins, what is not stays as the base has it.
    """
    base = TasksConfig(lease=10, wait=3)
    config = TasksConfig.from_mapping({"LEASE": 20}, base=base)
    assert (config.lease, config.wait) == (20.0, 3.0)
    assert base.replace(lease=20) == config
    assert base.replace(exempt_paths=["/x"]).is_exempt("/x")
    with pytest.raises(ConfigurationError, match="Did you mean LEASE"):
        base.replace(leas=1)


def test_environment_is_parsed() -> None:
    """
    Texts become flags, numbers and lists; foreign and empty variables are left alone.
    """
    config = TasksConfig.from_env(
        {
            "DOTMAC_TASKS_STORAGE": "redis://a",
            "REDIS_URL": "redis://b",
            "DOTMAC_TASKS_LEASE": "1.5",
            "DOTMAC_TASKS_HISTORY_LIMIT": "7",
            "DOTMAC_TASKS_REQUIRE_KEY": "Yes",
            "DOTMAC_TASKS_ENABLE_BACKGROUND_CLEANUP": "off",
            "DOTMAC_TASKS_METHODS": "post, put,",
            "DOTMAC_TASKS_EXEMPT_PATHS": "/a/",
            "DOTMAC_TASKS_REPLAY_HEADERS": "X-Rate, X-Page",
            "DOTMAC_TASKS_IN_PROGRESS": "conflict",
            "DOTMAC_TASKS_TENANT": "shop.tenant",
            "DOTMAC_TASKS_WAIT": "",
            "DOTMAC_TASKS_LEGACY": "error",
            "DOTMAC": "x",
            "HOME": "/",
        }
    )
    assert config == TasksConfig(
        storage="redis://a",
        lease=1.5,
        history_limit=7,
        require_key=True,
        enable_background_cleanup=False,
        methods=("POST", "PUT"),
        exempt_paths=("/a/",),
        replay_headers=("X-Rate", "X-Page"),
        in_progress="conflict",
        tenant="shop.tenant",
    )


@pytest.mark.parametrize(
    ("environ", "storage"),
    [
        ({"REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": ""}, "memory://"),
        ({}, "memory://"),
        ({"DOTMAC_TASKS_STORAGE": "memory://", "REDIS_URL": "redis://b"}, "memory://"),
    ],
)
def test_environment_chooses_the_storage(environ: dict[str, str], storage: str) -> None:
    """
    The library's own variable, else the common one, else memory.
    """
    assert TasksConfig.from_env(environ).storage == storage


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("LEASE", "30s", "DOTMAC_TASKS_LEASE must be a number, not '30s'"),
        ("HISTORY_LIMIT", "1.5", "DOTMAC_TASKS_HISTORY_LIMIT must be a number"),
        ("REQUIRE_KEY", "maybe", "DOTMAC_TASKS_REQUIRE_KEY must be true or false"),
        ("LEASE", "nan", "must be a number of seconds"),
        ("LEESE", "1", "DOTMAC_TASKS_LEESE is unknown. Did you mean DOTMAC_TASKS_LEASE?"),
        ("XYZZY", "1", "DOTMAC_TASKS_XYZZY is unknown. Choose from ANONYMOUS"),
    ],
)
def test_environment_with_a_wrong_value_is_refused(variable: str, text: str, wanted: str) -> None:
    """
    A text that cannot be parsed is an error that names its variable.
    """
    with pytest.raises(ConfigurationError) as caught:
        TasksConfig.from_env({f"DOTMAC_TASKS_{variable}": text})
    assert wanted in str(caught.value)
    assert caught.value.option == variable


@pytest.mark.parametrize("text", ["0", "-1", "nan"])
@pytest.mark.parametrize("name", ["DEFAULT_IDEMPOTENCY_TTL", "OPERATION_RETENTION", "LEASE"])
def test_environment_with_a_senseless_duration_is_refused(name: str, text: str) -> None:
    """
    What is checked as an argument is checked in the environment, too.
    """
    with pytest.raises(ConfigurationError, match=f"{name}: must be a number of seconds"):
        TasksConfig.from_env({f"DOTMAC_TASKS_{name}": text})


def test_environment_defaults_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without a mapping the variables of the process count, as they are at the call.
    """
    monkeypatch.setenv("REDIS_URL", "redis://now")
    assert TasksConfig.from_env().storage == "redis://now"


@pytest.mark.parametrize(
    ("path", "exempt"),
    [
        ("/health", True),
        ("/healthcare", False),
        ("/health/", False),
        ("/admin/", True),
        ("/admin/orders", True),
        ("/admin", False),
        ("/api", True),
        ("/apiary", True),
        ("/ap", False),
        ("/", False),
    ],
)
def test_exempt_path_matches_exactly_or_as_a_marked_prefix(path: str, exempt: bool) -> None:
    """
    Only an entry that ends in a slash or a star covers what begins with it.
    """
    config = TasksConfig(exempt_paths=("/health", "/admin/", "/api*"))
    assert config.is_exempt(path) is exempt


def test_resolver_is_found_when_it_is_asked_for() -> None:
    """
    A callable is itself, a dotted path is imported, and nothing stays nothing.
    """
    config = TasksConfig(tenant=resolve, principal="posixpath.join")
    assert config.resolve_callable("tenant") is resolve
    assert config.resolve_callable("principal") is posixpath.join
    assert TasksConfig().resolve_callable("tenant") is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module.resolve", "cannot be imported"),
        ("posixpath.no_such_name", "cannot be imported"),
        ("posixpath.sep", "not callable"),
    ],
)
def test_resolver_that_is_not_there_is_refused_when_asked_for(path: str, reason: str) -> None:
    """
    Constructing imports nothing; asking for a wrong path is an error that names the setting.
    """
    config = TasksConfig(tenant=path)
    with pytest.raises(ConfigurationError, match=reason) as caught:
        config.resolve_callable("tenant")
    assert caught.value.option == "TENANT"


def test_hooks_are_made_when_they_are_asked_for() -> None:
    """
    An instance is itself, of a class named by its path there is a new instance.
    """
    recorder = EventRecorder()
    config = TasksConfig(hooks=[recorder, "dotmac_tasks.testing.EventRecorder"])
    first, second = config.resolve_hooks()
    assert first is recorder
    assert isinstance(second, EventRecorder)


def test_hooks_come_by_path_of_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A path may name an instance, which is used as it is.
    """
    recorder = EventRecorder()
    monkeypatch.setattr("dotmac_tasks.testing.shared", recorder, raising=False)
    assert TasksConfig(hooks=["dotmac_tasks.testing.shared"]).resolve_hooks() == (recorder,)


@pytest.mark.parametrize("hooks", ["dotmac_tasks.testing.EventRecorder", [3], ["nodots"]])
def test_hooks_of_another_kind_are_refused(hooks: Any) -> None:
    """
    Hooks are a list, of instances or dotted paths.
    """
    with pytest.raises(ConfigurationError, match="a list of MetricsHooks"):
        TasksConfig(hooks=hooks)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("posixpath.no_such_name", "cannot be imported"), ("posixpath.sep", "no MetricsHooks")],
)
def test_hooks_that_are_not_there_are_refused_when_asked_for(path: str, reason: str) -> None:
    """
    A path that leads to no hooks is an error that names the setting.
    """
    with pytest.raises(ConfigurationError, match=reason) as caught:
        TasksConfig(hooks=[path]).resolve_hooks()
    assert caught.value.option == "HOOKS"


class ArguedHooks(MetricsHooks):
    def __init__(self, registry: object) -> None:
        pass


def test_hooks_that_need_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A class that nobody can make without arguments is refused before it is made.
    """
    monkeypatch.setattr("dotmac_tasks.testing.argued", ArguedHooks, raising=False)
    config = TasksConfig(hooks=["dotmac_tasks.testing.argued"])
    (error,) = config.find_dead_paths()
    assert "needs arguments" in error.reason
    with pytest.raises(ConfigurationError, match="needs arguments"):
        config.resolve_hooks()


def test_single_setting_is_checked_under_the_name_it_was_given() -> None:
    """
    A view's option is checked as the setting is, and its error shows the option's own name.
    """
    assert check_setting("lease", timedelta(seconds=3)) == 3.0
    assert check_setting("require_key", True) is True
    assert check_setting("in_progress", "wait") == "wait"
    for name, value in (("lease", 0), ("require_key", 1), ("in_progress", "later")):
        with pytest.raises(ConfigurationError) as caught:
            check_setting(name, value, shown="option")
        assert caught.value.option == "OPTION"


def test_no_exempt_paths_exempt_nothing() -> None:
    """
    An empty list leaves every path covered.
    """
    assert not TasksConfig(exempt_paths=()).is_exempt("/health/")


@pytest.mark.parametrize(
    "storage", [SECRET, {"BACKEND": "a.B", "OPTIONS": {"password": "hunter2"}}]
)
def test_secrets_are_not_shown(storage: Any) -> None:
    """
    Neither the repr of the settings nor an error about them shows a password.
    """
    config = TasksConfig(storage=storage)
    assert "hunter2" not in repr(config)
    assert "lease=30.0" in repr(config)
    for wrong in ("user:hunter2@db", {"BACKEND": "hunter2"}, {"OPTIONS": "hunter2"}):
        with pytest.raises(ConfigurationError) as caught:
            config.replace(storage=wrong)
        assert "hunter2" not in str(caught.value)
        assert caught.value.value is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SECRET, "redis://***@db.example:6379/0"),
        ("redis://:p@ss/wo?rd#@h/0", "redis://***@h/0"),
        ("redis://h/0?password=x", "redis://h/0"),
        ("unix://:pw@/run/redis.sock?db=1", "unix://***@/run/redis.sock"),
        ("memory://", "memory://"),
        ("pw", "***"),
    ],
)
def test_url_is_redacted(url: str, shown: str) -> None:
    """
    User, password and query never show, however badly they are escaped.
    """
    assert redact_url(url) == shown


class LoudCodec:
    """
    A codec that shows its keys, as a dataclass would.
    """

    def __repr__(self) -> str:
        return "LoudCodec(key='hunter2')"

    def encode(self, payload: bytes, key: str) -> bytes:
        return payload

    def decode(self, data: bytes, key: str) -> bytes:
        return data


loud_codec = LoudCodec()


def test_secret_of_the_keys_is_not_shown() -> None:
    """
    Neither the repr of the settings, nor a risk or an error shows the secret, however it was set.
    """
    for config in (
        TasksConfig(key_secret="hunter2"),
        TasksConfig.from_env({"DOTMAC_TASKS_KEY_SECRET": "hunter2"}),
    ):
        assert config.key_secret == "hunter2"
        assert "hunter2" not in repr(config)
        assert "key_secret='***'" in repr(config)
        assert "hunter2" not in "".join(config.find_risks())
    assert "key_secret=''" in repr(TasksConfig())
    with pytest.raises(ConfigurationError) as caught:
        TasksConfig(key_secret=b"hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    assert caught.value.value is None


@pytest.mark.parametrize(("length", "risks"), [(0, 0), (31, 1), (32, 0)])
def test_short_secret_is_a_risk(length: int, risks: int) -> None:
    """
    A secret that can be guessed is reported; none at all is a choice.
    """
    assert len(TasksConfig(key_secret="x" * length).find_risks()) == risks


@pytest.mark.parametrize(
    "given", [loud_codec, "support.codecs_of_a_project.codec", None], ids=["object", "path", "none"]
)
def test_codec_is_an_object_or_its_path(given: Any) -> None:
    """
    A codec is used as it is, or imported when it is asked for.
    """
    config = TasksConfig(payload_codec=given)
    codec = config.resolve_codec()
    assert codec is given or hasattr(codec, "encode")
    assert config.find_dead_paths() == ()


def test_codec_is_not_shown() -> None:
    """
    Of a codec the settings and their errors show its class, since it may show its keys.
    """
    assert "payload_codec='LoudCodec'" in repr(TasksConfig(payload_codec=loud_codec))
    assert "payload_codec='a.codec'" in repr(TasksConfig(payload_codec="a.codec"))
    assert "payload_codec=None" in repr(TasksConfig())


@pytest.mark.parametrize("wrong", [LoudCodec, object(), 1, "hunter2", {"key": "hunter2"}])
def test_codec_that_is_none_is_refused(wrong: Any) -> None:
    """
    A class, another object or a text that is no path cannot be a codec.
    """
    with pytest.raises(ConfigurationError, match=r"encode\(\) and decode\(\)"):
        TasksConfig(payload_codec=wrong)


def test_key_in_place_of_its_codec_is_not_shown() -> None:
    """
    Whoever sets the key where its codec belongs is told so without the key.
    """
    key = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw="
    with pytest.raises(ConfigurationError) as caught:
        TasksConfig.from_env({"DOTMAC_TASKS_PAYLOAD_CODEC": key})
    assert "the dotted path of one" in str(caught.value)
    assert key not in str(vars(caught.value)) + str(caught.value)


@pytest.mark.parametrize(
    "path", ["support.nothing.codec", "support.codecs.MaskingCodec", "support.codecs.hashlib"]
)
def test_dead_path_of_a_codec_is_found(path: str) -> None:
    """
    A path that leads nowhere, to a class or to something else is found before it is needed.
    """
    config = TasksConfig(payload_codec=path)
    (error,) = config.find_dead_paths()
    assert error.option == "PAYLOAD_CODEC"
    with pytest.raises(ConfigurationError):
        config.resolve_codec()


def test_what_is_required_to_be_sealed_needs_a_codec() -> None:
    """
    Without a codec nothing could be read any more, so that cannot be set.
    """
    with pytest.raises(ConfigurationError, match="PAYLOAD_CODEC"):
        TasksConfig(require_sealed=True)
    assert TasksConfig(require_sealed=True, payload_codec=loud_codec).require_sealed
