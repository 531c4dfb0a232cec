"""
The shop left open for visitors, with requests to paste into another terminal.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from storm.errands import PARTNERS, draw_photo
from storm.processes import Stack


def receive_visitors(console: Console, stack: Stack, token: str, storage: str) -> None:
    """
    Say what to try, and wait for Ctrl-C.
    """
    console.print(
        f"The shop is open: {stack.shop_url}/products/ (storage: {storage}).\n", soft_wrap=True
    )
    for what, line in requests_to_try(stack, token):
        console.print(f"[bold]{what}[/]", soft_wrap=True)
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        console.print()
    if stack.redis_pid is not None:
        console.print(
            "[bold]Freeze the storage, order and sign up with new keys, and thaw it again:[/]\n"
            f"kill -STOP {stack.redis_pid}\n"
            f"kill -CONT {stack.redis_pid}\n"
            "Meanwhile an order gets 503; the newsletter runs unprotected, and says so.\n",
            highlight=False,
        )
    console.print("Ctrl-C closes the shop.")
    with suppress(KeyboardInterrupt):  # the one way in which this is meant to end
        threading.Event().wait()
    console.print("\nClosing the shop.")


def requests_to_try(stack: Stack, token: str) -> list[tuple[str, str]]:
    """
    Return what each request shows, and its command.
    """
    mug = {"number": "B-1", "customer": "You", "product": "mug-blue", "quantity": 1}
    shown = Path(stack.folder, "photo.jpg"), Path(stack.folder, "other.jpg")
    for path in shown:
        path.write_bytes(draw_photo(path.name))
    order = curl(stack, "orders", "my-first-order", **json_body(mug))
    two = curl(stack, "orders", "my-first-order", **json_body({**mug, "quantity": 2}))
    known = {"Authorization": f"Token {token}"}
    partner = curl(stack, "partners/orders", "1", **json_body(mug, known))
    unknown = curl(stack, "partners/orders", "1", **json_body(mug))
    claim, other = (
        curl(stack, "claims", "my-claim", form={"number": "C-1", "photo": f"@{path}"})
        for path in shown
    )
    sign_up = curl(stack, "newsletter", "me", form={"address": "you@example.com"})
    return [
        ("Order a mug:", order),
        ("Send it again; the same answer comes back, marked Idempotent-Replayed:", order),
        ("The same key for another order is refused with 422:", two),
        (f"Order as the partner {PARTNERS[0]}, by a REST framework's token:", partner),
        ("Send it again; the same answer comes back:", partner),
        ("Without the token it is 401, and not the stored answer:", unknown),
        ("File a claim, with a photo of 3 MB:", claim),
        ("Send it again; curl draws a new boundary, and it is the same claim:", claim),
        ("Another photo under the same key is refused with 422:", other),
        ("Sign up for the newsletter:", sign_up),
    ]


def json_body(content: object, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """
    Return the arguments of `curl` for a body of JSON.
    """
    return {
        "headers": {"Content-Type": "application/json", **(headers or {})},
        "data": json.dumps(content),
    }


def curl(
    stack: Stack,
    page: str,
    key: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: str = "",
    form: Mapping[str, str] | None = None,
) -> str:
    """
    Return a command to paste into another terminal.
    """
    parts = [f"curl -i {stack.shop_url}/{page}/"]
    parts += [
        f"-H '{name}: {value}'"
        for name, value in {**(headers or {}), "Idempotency-Key": key}.items()
    ]
    parts += [f"-F '{name}={value}'" for name, value in (form or {}).items()]
    if data:
        parts.append(f"-d '{data}'")
    return " ".join(parts) + "; echo"
