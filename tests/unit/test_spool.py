from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dotmac_tasks import spool as module
from dotmac_tasks.fingerprint import body_digest
from dotmac_tasks.spool import DigestingStream, Spool, SpoolError
from support.forms import Part, make_form
from support.full_disk import FullDiskFile
from support.streams import Trickle

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
FILM = make_form(Part("title", b"holiday"), Part("film", bytes(range(256)) * 40, "a.mp4"))
NO_FORM = {**FILM, "body": FILM["body"][:-9]}


@pytest.mark.parametrize("length", [0, 1, 10, 300_000])
def test_spool_reads_exactly_the_length(length: int) -> None:
    """
    It never asks for a byte beyond the length, and hands on all of them, rewound.
    """
    data = bytes(range(256)) * 1200
    stream = Trickle(data + b"next request", step=50_000)
    spool = Spool(stream, length, "text/plain", max_memory=1000)
    assert stream.tell() == length == spool.length
    assert spool.is_complete
    assert spool.file.read() == data[:length]
    assert spool.digest == body_digest("text/plain", data[:length])
    spool.close()
    spool.close()
    assert spool.file.closed


def test_spool_reads_a_terminated_stream_to_its_end() -> None:
    """
    Without a length it stops where the stream does.
    """
    spool = Spool(Trickle(b'{"a": 1}'), None, JSON)
    assert (spool.length, spool.is_complete) == (8, True)
    assert spool.digest == body_digest(JSON, b'{"a":1}')
    spool.close()


def test_spool_tells_of_a_stream_that_ends_early() -> None:
    """
    Fewer bytes than announced are no complete body.
    """
    spool = Spool(Trickle(b"abc"), 10, FORM, ignored_fields=["token"])
    assert (spool.length, spool.is_complete) == (3, False)
    spool.close()


def test_spool_removes_its_file_when_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The stream's error passes, and no temporary file stays open.
    """
    made: list[Any] = []
    original = module.SpooledTemporaryFile

    def remember(**options: Any) -> Any:
        made.append(original(**options))
        return made[-1]

    class Broken:
        def read(self, size: int, /) -> bytes:
            raise OSError("the client went away")

    monkeypatch.setattr(module, "SpooledTemporaryFile", remember)
    with pytest.raises(OSError, match="went away"):
        Spool(Broken(), None, JSON)
    assert made[0].closed


@pytest.mark.parametrize("sent", [FILM, NO_FORM], ids=["form", "no form"])
@pytest.mark.parametrize("step", [1, 100, 1_000_000])
def test_spool_digests_a_form_or_its_bytes(sent: dict[str, Any], step: int) -> None:
    """
    What turns out to be no form is read again for its bytes, and handed on rewound like a form.
    """
    body, content_type = sent["body"], sent["content_type"]
    spool = Spool(Trickle(body, step), None, content_type, max_memory=1000)
    assert spool.digest == body_digest(content_type, body)
    assert spool.file.read() == body
    spool.close()


@NEEDS_PROC
def test_temporary_file_has_no_name(tmp_path: Path) -> None:
    """
    In the directory that was named nothing is to be seen, so that nothing can be left there.
    """
    spool = Spool(Trickle(b"x" * 5000), None, FORM, max_memory=1000, directory=str(tmp_path))
    path = os.readlink(f"/proc/self/fd/{spool.file.fileno()}")
    assert path.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    spool.close()


@NEEDS_PROC
def test_temporary_file_goes_where_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Without a directory it is the one of TMPDIR.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    spool = Spool(Trickle(b"x" * 5000), 5000, FORM, max_memory=1000)
    assert os.readlink(f"/proc/self/fd/{spool.file.fileno()}").startswith(str(tmp_path))
    spool.close()


@NEEDS_FULL
def test_full_disk_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A body that finds no room is told by the name of the system's error.
    """
    monkeypatch.setattr(module, "SpooledTemporaryFile", FullDiskFile)
    with pytest.raises(SpoolError) as caught:
        Spool(Trickle(b"x" * 5000, 5000), None, FORM, max_memory=1000)
    assert str(caught.value) == "ENOSPC"


@NEEDS_FULL
def test_full_disk_that_shows_late_is_an_error_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Bytes that were buffered and find no room at the end are not taken for kept.
    """
    made: list[Any] = []

    def open_buffered(**options: Any) -> Any:
        made.append(open("/dev/full", "r+b"))  # noqa: SIM115 - outlives the call
        return made[-1]

    monkeypatch.setattr(module, "SpooledTemporaryFile", open_buffered)
    with pytest.raises(SpoolError, match="ENOSPC"):
        Spool(Trickle(b"x" * 50), None, FORM)
    assert made[0].closed


def test_missing_directory_is_an_error_of_its_own(tmp_path: Path) -> None:
    """
    A directory that is not there is told without its path.
    """
    with pytest.raises(SpoolError) as caught:
        Spool(Trickle(b"x" * 50), None, FORM, max_memory=10, directory=str(tmp_path / "none"))
    assert str(caught.value) == "ENOENT"
    assert str(SpoolError(OSError("somewhere"))) == "OSError"


@pytest.mark.parametrize("sent", [FILM, NO_FORM], ids=["form", "no form"])
def test_watched_stream_is_digested_by_its_reader(sent: dict[str, Any]) -> None:
    """
    However somebody reads it, the digest is that of the bytes, and the end is noticed.
    """
    body, content_type = sent["body"], sent["content_type"]
    for name in ("read", "readline"):
        watched = DigestingStream(io.BytesIO(body), content_type)
        assert watched.read(0) == b""
        assert not watched.has_ended
        seen = b""
        while piece := getattr(watched, name)(700):
            seen += piece
        assert seen == body
        assert (watched.length, watched.has_ended) == (len(body), True)
        assert watched.digest() == body_digest(content_type, body)


@pytest.mark.parametrize("content_type", [JSON, "text/plain"])
def test_body_that_somebody_else_reads_is_digested(content_type: str) -> None:
    """Whatever sizes and lines a body is read in, its digest is that of all its bytes."""
    body = b'{"a": 1,\n "b": [2, 3],\n "c": 4}'
    source = io.BytesIO(body)
    stream = DigestingStream(source, content_type)
    assert not stream.seekable()
    assert stream.read(3) + stream.readline() + stream.readline(2) + stream.read() == body
    assert stream.read() == b""
    assert stream.length == len(body)
    assert stream.digest() == body_digest(content_type, body)
    stream.close()
    assert source.closed


def test_part_of_a_body_has_the_digest_of_the_part() -> None:
    """What nobody has read does not count yet."""
    stream = DigestingStream(io.BytesIO(b"one two"), "text/plain")
    assert stream.read(3) == b"one"
    assert (stream.length, stream.digest()) == (3, body_digest("text/plain", b"one"))
    stream.read()
    assert stream.digest() == body_digest("text/plain", b"one two")
