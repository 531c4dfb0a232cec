"""
Idempotency keys: `list`, `show`, `release` and `resolve`.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import json
import os
import shlex
import sys
from datetime import datetime
from typing import Any

from dotmac_tasks import BackgroundOperationsManager, IdempotencyKey, OperationStatus
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    SerializationError,
)
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import KeySummary, SettleOutcome, UnreadableRecord
from dotmac_tasks.serialization import HttpOutcome, JsonOutcome, decode_payload
from dotmac_tasks_django.console.parsing import Subparsers, add_command, add_reason
from dotmac_tasks_django.console.screen import (
    Answer,
    UsageError,
    clean,
    count,
    show_facts,
    show_instant,
    show_table,
    since,
)

__all__ = ["add_commands", "list_keys", "release_key", "resolve_key", "show_key"]

_PAGE = 250


# Declaring


def add_commands(subparsers: Subparsers) -> None:
    """
    Declare `list`, `show`, `release` and `resolve`.
    """
    lists = add_command(subparsers, "list", list_keys, "list idempotency keys, stuck ones first")
    lists.add_argument("--tenant", default=None, help="keys of this tenant")
    which = lists.add_mutually_exclusive_group()
    which.add_argument(
        "--status", default=None, choices=list(map(str, OperationStatus)), help="with this status"
    )
    which.add_argument(
        "--abandoned", action="store_true", help="in progress, and the executor's lease is over"
    )
    which.add_argument("--unreadable", action="store_true", help="whose record cannot be read")
    lists.add_argument("--limit", type=int, default=50, help="most keys to list (default: 50)")
    lists.add_argument("--cursor", default=None, help="go on where an earlier list ended")

    shows = add_command(subparsers, "show", show_key, "show what is recorded under a key")
    _add_key(shows)
    shows.add_argument("--body", action="store_true", help="the recorded outcome, too")

    releases = add_command(
        subparsers, "release", release_key, "give a key back, so that the next retry runs the work"
    )
    _add_key(releases)
    add_reason(releases)
    releases.add_argument("--token", type=int, default=None, help="only if it is the claim seen")
    releases.add_argument(
        "--finished", action="store_true", help="although an outcome is recorded, which is lost"
    )
    releases.add_argument(
        "--unreadable", action="store_true", help="although its record cannot be read"
    )

    resolves = add_command(
        subparsers, "resolve", resolve_key, "record what came of work that nobody is at"
    )
    _add_key(resolves)
    outcome = resolves.add_mutually_exclusive_group(required=True)
    outcome.add_argument("--result", default=None, help="it was done: JSON, or - to read it")
    outcome.add_argument("--error", default=None, help="it was not: the text that retries get")
    add_reason(resolves)


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", default=None, help="the stored key")
    parser.add_argument("--client-key", default=None, metavar="KEY", help="or what the client sent")
    parser.add_argument("--tenant", default=None, help="the key's tenant")
    parser.add_argument(
        "--principal", default=None, help="the client key's user (default: anonymous)"
    )


def _read_key(manager: BackgroundOperationsManager, options: dict[str, Any]) -> str:
    """
    Return the stored key that is meant.
    """
    key: str | None = options["key"]
    client_key, principal = options["client_key"], options["principal"]
    if (key is None) == (client_key is None):
        raise UsageError(
            "Name the stored key, or what the client sent with --client-key, --tenant and "
            "--principal."
        )
    if key is not None:
        if principal is not None:
            raise UsageError("--principal belongs to --client-key. A stored key has it inside.")
        return key
    return manager.find_stored_key(options["tenant"] or "default", principal, client_key)


def _read_tenant(options: dict[str, Any]) -> str | None:
    # A client's key is stored under a digest of the tenant: there is nothing more to compare.
    return None if options["key"] is None else options["tenant"]


# Listing


def list_keys(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    List keys, page by page until there are enough.
    """
    limit: int = options["limit"]
    if limit < 1:
        raise UsageError("--limit must be at least 1.")
    keys: list[KeySummary] = []
    unreadable: list[UnreadableRecord] = []
    cursor = options["cursor"]
    only_unreadable = options["unreadable"]
    if only_unreadable and options["tenant"] is not None:
        raise UsageError("What cannot be read has no tenant: leave out --tenant.")
    while True:
        try:
            page = manager.list_idempotency_keys(
                tenant_id=options["tenant"],
                status=options["status"],
                abandoned=options["abandoned"],
                # Few of many: looked for in large pages, of which the last is shown whole.
                limit=_PAGE if only_unreadable else limit - len(keys) - len(unreadable),
                cursor=cursor,
            )
        except ValueError as error:
            raise UsageError(f"{error} Copy it from the end of that list.") from error
        keys += () if only_unreadable else page.keys
        unreadable += page.unreadable
        cursor = page.cursor
        if cursor is None or len(keys) + len(unreadable) >= limit:
            break
    document = {
        "keys": [{**key.to_dict(), **_add_facts(key)} for key in keys],
        "unreadable": [record._asdict() for record in unreadable],
        "cursor": cursor,
    }
    return Answer(document, _show_list(keys, unreadable, cursor, options["width"]))


def _show_list(
    keys: list[KeySummary],
    unreadable: list[UnreadableRecord],
    cursor: str | None,
    width: int | None,
) -> str:
    number = len(keys) + len(unreadable)
    if not number:
        return "No keys."
    now = SystemClock().now()
    rows = [
        (key.key, _name_state(key), since(key.created_at, now), key.tenant_id, key.operation_type)
        for key in keys
    ]
    rows += [
        (each.key, "unreadable", "", "", _shorten(each.reason, each.key)) for each in unreadable
    ]
    table = show_table(("KEY", "STATE", "CREATED", "TENANT", "TYPE"), rows, width=width)
    more = "" if cursor is None else f" More follow: --cursor {cursor}"
    return f"{table}\n{count(number, 'key', 'keys')}.{more}"


def _add_facts(key: KeySummary | IdempotencyKey) -> dict[str, str]:
    return {"state": _name_state(key), "key_hash": key_hash(key.key)}


def _name_state(key: KeySummary | IdempotencyKey) -> str:
    if key.abandoned:
        return "abandoned"
    if key.deferred:
        return "deferred"
    return "running" if key.status is OperationStatus.IN_PROGRESS else key.status.value


# Showing


def show_key(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    Show what is recorded, and what can be done about it.
    """
    key = _read_key(manager, options)
    try:
        record = manager.check_idempotency(key, _read_tenant(options))
    except CorruptRecordError as error:
        return _show_unreadable(manager, error)
    if record is None:
        return _report_absent(key, options)
    document = record.to_dict()
    # Bodies are shown only when they are asked for.
    del document["result"], document["error"]
    document.update(_add_facts(record))
    text = f"{_show_facts(record, SystemClock().now())}\n\n{_advise(record)}"
    if options["body"] and record.outcome_kind is not None:
        document["outcome"] = _read_outcome(manager, record)
        text += "\n\n" + _show_outcome(document["outcome"])
    return Answer(document, text)


def _show_facts(record: IdempotencyKey, now: datetime) -> str:
    facts = [
        ("key", clean(record.key)),
        ("in the log", key_hash(record.key)),
        ("state", _name_state(record)),
        ("tenant", clean(record.tenant_id)),
        ("user", clean(record.user_id or "none")),
        ("type", clean(record.operation_type)),
        ("created", show_instant(record.created_at, now)),
    ]
    if record.lease_until is not None:
        name = "to report by" if record.deferred else "lease until"
        facts.append((name, show_instant(record.lease_until, now)))
    if record.expires_at is None:
        facts.append(("expires", "not before its outcome is known"))
    else:
        facts.append(("expires", show_instant(record.expires_at, now)))
    facts += [("token", str(record.fencing_token)), ("outcome", _describe_outcome(record))]
    return show_facts(facts)


def _describe_outcome(record: IdempotencyKey) -> str:
    kind = record.outcome_kind
    if kind is None:
        return "none"
    if kind == "response":
        kind = f"response {record.response_status}"
    elif kind == "not-kept":
        kind = f"done, but its response was not kept ({clean(str(record.not_kept_reason))})"
    return f"{kind}, {count(record.outcome_size, 'byte', 'bytes')}"


def _advise(record: IdempotencyKey) -> str:
    """
    Say what comes next by itself, and what a person can do.
    """
    resolve = _show_call("resolve", record.key, "--result JSON")
    token = f"--token {record.fencing_token}"
    release = _show_call("release", record.key, token)
    state = _name_state(record)
    if state == "running":
        return (
            "An executor is at it. Wait until it ends; or stop it, and decide when its\n"
            "lease is over."
        )
    if state == "deferred":
        return f"A worker is to report what came of it. If it cannot any more:\n\n{resolve}"
    if state == "pending":
        return f"The next request under this key runs the work. To forget the key:\n\n{release}"
    if state == "abandoned":
        again = "The next retry runs the work again."
        refused = "Retries are refused, 409 outcome-unknown, until somebody decides."
        return (
            f"{refused if record.expires_at is None else again}\n"
            f"Find out whether the work was done. If it was:\n\n{resolve}\n\n"
            f"If it was not, and the next retry is to do it:\n\n{release}"
        )
    again = _show_call("release", record.key, token, "--finished")
    if record.outcome_kind == "not-kept":
        return (
            "The work is done, and retries get 409 not-replayable. Look up the result in\n"
            f"your own data. If the next retry is to do the work once more:\n\n{again}"
        )
    return (
        "Retries get this outcome. If it is wrong, and the next retry is to do the\n"
        f"work once more:\n\n{again}"
    )


def _show_call(name: str, key: str, *options: str) -> str:
    call = " ".join(["bgops", name, shlex.quote(clean(key)), *options])
    return f"  {call} \\\n      --reason WHY"


def _show_unreadable(manager: BackgroundOperationsManager, error: CorruptRecordError) -> Answer:
    reason = _shorten(error.reason, error.key)
    document = {"key": error.key, "state": "unreadable", "reason": error.reason}
    facts = show_facts(
        [
            ("key", clean(error.key)),
            ("in the log", key_hash(error.key)),
            ("state", "unreadable"),
            ("reason", clean(reason)),
        ]
    )
    try:
        manager.storage.find_operation(error.key)
        flag = "--finished"  # the record is sound, and only its outcome is not
    except CorruptRecordError:
        flag = "--unreadable"
    if "PAYLOAD_CODEC" in error.reason:
        cure = (
            "If the key that sealed it still exists, give it\n"
            "back to PAYLOAD_CODEC. If not, find out whether the work was done, and remove"
        )
    else:
        cure = (
            "If a newer version of the library wrote the\n"
            "record, upgrade this one. If not, find out whether the work was done, and remove"
        )
    advice = (
        f"Requests under this key get 503. {cure}\n"
        "the record; the next request runs the work:\n\n"
        f"{_show_call('release', error.key, flag)}"
    )
    return Answer(document, f"{facts}\n\n{advice}")


def _shorten(reason: str, key: str) -> str:
    """
    Leave the name of the record out of the reason.
    """
    return reason.rpartition(f":{key} ")[2]


def _read_outcome(manager: BackgroundOperationsManager, record: IdempotencyKey) -> dict[str, Any]:
    stored = manager.storage.find_operation(record.key)
    outcome = decode_payload(stored.payload) if stored is not None and stored.payload else None
    if isinstance(outcome, HttpOutcome):
        document: dict[str, Any] = {"status": outcome.status, "headers": outcome.headers}
        try:
            document["body"] = outcome.body.decode()
        except UnicodeDecodeError:
            document["body_base64"] = base64.b64encode(outcome.body).decode()
        return document
    if isinstance(outcome, JsonOutcome):
        return {"result": outcome.value}
    return {"error": record.error, "not_kept_reason": record.not_kept_reason}


def _show_outcome(outcome: dict[str, Any]) -> str:
    if "status" in outcome:
        head = [f"{outcome['status']}", *(f"{name}: {value}" for name, value in outcome["headers"])]
        body = outcome.get("body", outcome.get("body_base64", ""))
        return "\n".join([*map(clean, head), "", clean(body, keep="\n\t")])
    if "result" in outcome:
        return clean(json.dumps(outcome["result"], ensure_ascii=False, indent=2), keep="\n")
    return clean(str(outcome["error"] or outcome["not_kept_reason"]), keep="\n\t")


# Deciding


def release_key(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    Give a key back.
    """
    key = _read_key(manager, options)
    try:
        outcome = manager.release_idempotency_key(
            key,
            reason=options["reason"],
            by=_read_by(options),
            tenant_id=_read_tenant(options),
            finished=options["finished"],
            unreadable=options["unreadable"],
            fencing_token=options["token"],
        )
    except CorruptRecordError as error:
        return _refuse_unreadable(manager, error)
    except ConfigurationError as error:
        raise UsageError(f"--{error.option} {error.reason}") from error
    if outcome is SettleOutcome.DONE:
        return _report_done(key, "Released. The next request under this key runs the work.")
    return _report_refused(manager, key, options, outcome)


def resolve_key(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    Record what came of the work.
    """
    key = _read_key(manager, options)
    try:
        outcome = manager.resolve_idempotency_key(
            key,
            _read_result(options["result"]),
            options["error"],
            reason=options["reason"],
            by=_read_by(options),
            tenant_id=_read_tenant(options),
        )
    except CorruptRecordError as error:
        return _refuse_unreadable(manager, error)
    except ConfigurationError as error:
        raise UsageError(f"--{error.option} {error.reason}") from error
    except SerializationError as error:
        raise UsageError(f"--result cannot be recorded. {error}") from error
    if outcome is SettleOutcome.DONE:
        return _report_done(key, "Resolved. Retries get this outcome from now on.")
    return _report_refused(manager, key, options, outcome)


def _read_result(text: str | None) -> Any:
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--result is no JSON: {error}. Text has quotes of its own: --result '\"sent\"'."
        ) from error
    except RecursionError as error:
        raise UsageError("--result is nested too deeply to be recorded.") from error


def _read_by(options: dict[str, Any]) -> str:
    by: str | None = options["by"]
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def _refuse_unreadable(manager: BackgroundOperationsManager, error: CorruptRecordError) -> Answer:
    return _show_unreadable(manager, error)._replace(refusal="Nothing was changed.")


def _report_done(key: str, message: str) -> Answer:
    text = f"{message}\nTo check: bgops show {shlex.quote(clean(key))}"
    return Answer({"key": key, "outcome": SettleOutcome.DONE.value, "message": message}, text)


def _report_absent(key: str, options: dict[str, Any]) -> Answer:
    message = f"Nothing is recorded under {clean(key)}"
    if options["client_key"] is not None:
        message += ", which is the stored key for this tenant, principal and client key"
    elif options["tenant"] is not None:
        message += " for this tenant"
    message += (
        ". It never was, it has expired, or it was released: the next request under it runs the "
        "work."
    )
    if options["client_key"] is not None:
        message += " If you expected one, check --tenant and --principal."
    document = {"key": key, "outcome": SettleOutcome.ABSENT.value, "message": message}
    return Answer(document, "", message)


def _report_refused(
    manager: BackgroundOperationsManager,
    key: str,
    options: dict[str, Any],
    outcome: SettleOutcome,
) -> Answer:
    """
    Say why nothing was done, and what to do next.
    """
    if outcome is SettleOutcome.ABSENT:
        return _report_absent(key, options)
    show = f"bgops show {shlex.quote(clean(key))}"
    if outcome is SettleOutcome.FINISHED:
        message = (
            f"An outcome is recorded, and stays. Look at it: {show} --body. To have the work done "
            "once more all the same: bgops release with --finished."
        )
    elif outcome is SettleOutcome.CHANGED:
        message = (
            "It was claimed anew since you looked, by a retry or to find out what became of it, "
            f"and is left alone. Look again: {show}"
        )
    else:
        message = _explain_running(manager, key)
    return Answer({"key": key, "outcome": outcome.value, "message": message}, "", message)


def _explain_running(manager: BackgroundOperationsManager, key: str) -> str:
    record = manager.check_idempotency(key)
    if record is None or record.lease_until is None:
        return "An executor held it, and has ended by now. Look again: bgops show."
    until = show_instant(record.lease_until, SystemClock().now())
    if record.deferred:
        return (
            f"It was handed on to a worker, which has until {until} to report. Stop that worker "
            "and wait until then; or, if you know what came of the work, bgops resolve."
        )
    return (
        f"An executor holds it until {until}, or longer if it renews its lease. Wait until it "
        "ends, or stop it and try again after that."
    )
