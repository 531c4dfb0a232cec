"""
Multipart forms as clients write them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Part(NamedTuple):
    """
    One part of a form; a field where there is no file name.
    """

    name: str
    content: bytes
    filename: str | None = None
    content_type: str = "application/octet-stream"


def make_form(*parts: Part, boundary: str = "b0undary") -> dict[str, Any]:
    """
    Return the body and its content type, as `HttpClient.send` takes them.
    """
    lines: list[bytes] = []
    for part in parts:
        disposition = f'Content-Disposition: form-data; name="{part.name}"'
        lines.append(f"--{boundary}".encode())
        if part.filename is None:
            lines.append(disposition.encode())
        else:
            lines.append(f'{disposition}; filename="{part.filename}"'.encode())
            lines.append(f"Content-Type: {part.content_type}".encode())
        lines += [b"", part.content]
    lines += [f"--{boundary}--".encode(), b""]
    return {
        "body": b"\r\n".join(lines),
        "content_type": f"multipart/form-data; boundary={boundary}",
    }
